"""Export a torch model to an ONNX file that takes decoded images."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from imgcls_search import atomic
from imgcls_search.data import InputShape
from imgcls_search.deploy.artifact import INPUT, OUTPUT
from imgcls_search.errors import DeployError, first_line
from imgcls_search.image_size import sides


def export_onnx(
    model: nn.Module, path: Path, *, shape: InputShape, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write a model with its normalisation as an ONNX file, completely or not at all; the model is not changed.

    The input is `pixels`, uint8 [N, channels, height, width] with any N, the output `logits`, float32 [N, classes].

    Raises:
        DeployError: the exporter cannot export the model.
    """
    # Imported here, because every worker imports this module and few export.
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    served = _without_inplace(Served(copy.deepcopy(model).cpu().float(), mean, std).eval())
    # Two images, because a batch of one would be traced as a constant.
    pixels = torch.zeros(2, shape.channels, *sides(shape.image_size), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.replacing(path) as draft, _quiet(), torch.no_grad():
            # Trace here: after a failure, torch.onnx would try a second way and print a page about both.
            shapes = {"pixels": {0: torch.export.Dim("N")}}
            traced = torch.export.export(served, (pixels,), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(traced, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
            assert program is not None
            # Remove the source lines that it notes for every node, with paths of this machine: a third of a small file.
            ClearMetadataAndDocStringPass()(program.model)
            program.save(draft)
    except Exception as error:
        raise DeployError(f"{path}: the model cannot be exported to ONNX ({first_line(error)})") from error


def _without_inplace(model: nn.Module) -> nn.Module:
    """Turn off in-place activations, which would be traced several times."""
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]
    return model


class Served(nn.Module):
    """A model with the normalisation of its training images."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        self.model = model
        self.register_buffer("scale", 1 / (255 * stds))
        self.register_buffer("shift", -means / stds)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits, float32 [N, classes], of images, uint8 [N, channels, height, width]."""
        # The same arithmetic as in training, to the last bit.
        logits: Tensor = self.model(pixels.float() * self.scale + self.shift)
        return logits.float()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages about its internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Deprecations inside torch and onnxscript are not ours to fix.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
