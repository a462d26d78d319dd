"""Measure the effect of compression in ONNX Runtime: sizes, speeds and accuracy of exported files.

python scripts/bench/compress.py --images cifar10-images                everything, on photographs
python scripts/bench/compress.py --images cifar10-images --epochs 12    a better trained network

One run on the CPU. Speeds are ratios of medians: single images on one thread of ONNX Runtime, alternating between the
two files, in processor time of that thread, so that other work on the machine matters only by its use of the caches.
All weights are random except those of the trained network; accuracy is on the validation split. Writes compress.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch
from imgcls_search.catalog import catalog
from imgcls_search.compress.prune import shrink
from imgcls_search.compress.quantize import quantize
from imgcls_search.data import Images, InputShape, load
from imgcls_search.deploy.artifact import Artifact, archive_kb, size_kb
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.models import MODELS
from imgcls_search.space import parse
from imgcls_search.training import loop
from imgcls_search.worker import image_sets, pipeline
from torch import nn

VITS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "ViT 8 px, width 96, depth 3, patch 4": (8, {"width": 96, "depth": 3, "patch_size": 4}),
    "ViT 8 px, width 32, depth 4, patch 2": (8, {"width": 32, "depth": 4, "patch_size": 2}),
    "ViT 32 px, width 32, depth 4, patch 8": (32, {"width": 32, "depth": 4, "patch_size": 8}),
    "ViT 32 px, width 64, depth 4, patch 8": (32, {"width": 64, "depth": 4, "patch_size": 8}),
    "ViT 32 px, width 64, depth 4, patch 4": (32, {"width": 64, "depth": 4, "patch_size": 4}),
    "ViT 32 px, width 96, depth 6, patch 4": (32, {"width": 96, "depth": 6, "patch_size": 4}),
    "ViT 32 px, width 192, depth 6, patch 4": (32, {"width": 192, "depth": 6, "patch_size": 4}),
}
PARTS = ("resnet18", "vits", "trained")
CALIBRATION = 128
WARM_UP_TURNS = 5


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    torch.set_num_threads(1)
    with frame.results("compress", arguments.out) as results, tempfile.TemporaryDirectory() as folder:
        results["conditions"]["vnni"] = _has_vnni()
        bench = _Bench(Path(folder), arguments)
        parts = {"resnet18": bench.resnet18, "vits": bench.vits, "trained": bench.trained}
        results |= {name: parts[name]() for name in arguments.only}
        _print(results)


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="an ImageFolder tree of photographs; default: digits")
    parser.add_argument("--turns", type=int, default=100, help="images timed in each comparison; default: 100")
    parser.add_argument("--epochs", type=int, default=6, help="of the trained network; default: 6")
    parser.add_argument("--train-images", type=int, default=10_000, help="that it is trained on; default: 10000")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of it; default: all")
    return parser.parse_args()


class _Bench:
    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.turns: int = arguments.turns

    def resnet18(self) -> dict[str, Any]:
        """Measure ResNet-18 with a CIFAR stem: quantized to INT8, and with half of its channels pruned."""
        shape = InputShape(image_size=32, channels=3, classes=10)
        model = _build("resnet", shape, {"depth": 18, "stem": "small"})
        pixels = _noise(shape)
        whole = self._export(model, shape, "resnet18")
        int8, mode = self._quantize(whole, pixels, "auto")
        shrink(model, 0.5, channels=3, image_size=32)
        pruned = self._export(model, shape, "resnet18-pruned")
        pruned_int8, _ = self._quantize(pruned, pixels, "auto")
        files = {"int8": int8, "pruned": pruned, "pruned_int8": pruned_int8}
        return {"auto": mode, "fp32": _sizes(whole)} | {
            name: self._compare(whole, file, pixels) for name, file in files.items()
        }

    def vits(self) -> dict[str, Any]:
        """Measure vision transformers: what `auto` does to each, and how many times as fast as in floats it is."""
        return {name: self._vit(size, arguments) for name, (size, arguments) in VITS.items()}

    def _vit(self, size: int, arguments: dict[str, Any]) -> dict[str, Any]:
        shape = InputShape(image_size=size, channels=3, classes=10)
        whole = self._export(_build("vit", shape, {"heads": 4, **arguments}), shape, "vit")
        auto, mode = self._quantize(whole, _noise(shape), "auto")
        return {"auto": mode, **self._compare(whole, auto, _noise(shape))}

    def trained(self) -> dict[str, Any]:
        """Train a small ResNet and measure the accuracy of its files, in this process and in a new one."""
        config = parse(_config(self.arguments), catalog(), source="bench").config()
        data = pipeline.prepare_data(config, self.folder / "images")
        session = pipeline.new_session(config, data, seed=0, device="cpu")
        started = time.perf_counter()
        *_, last = loop.fit(session, *image_sets.image_sets(data, "train", "cpu"), until_epoch=self.arguments.epochs)
        found: dict[str, Any] = {"torch": last["accuracy"], "training_seconds": round(time.perf_counter() - started)}
        whole = self.folder / "trained.onnx"
        export_onnx(session.deployed, whole, shape=data.shape, mean=data.mean, std=data.std)
        calibration = np.asarray(load(data, "train").pixels[np.arange(CALIBRATION)])
        files = {"fp32": whole, **{m: self._quantize(whole, calibration, m)[0] for m in ("static", "dynamic", "auto")}}
        validation = load(data, "val")
        found["images"] = {split: data.counts[split] for split in ("train", "val")}
        for name, file in files.items():
            right = _right(Artifact.load(file), validation)
            fresh = self._right_in_a_new_process(file, validation)
            found[name] = {"right": right, "right_in_a_new_process": fresh, "accuracy": right / len(validation.labels)}
            found[name] |= self._compare(whole, file, calibration)
        return found

    def _export(self, model: nn.Module, shape: InputShape, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        export_onnx(model, path, shape=shape, mean=[0.5] * 3, std=[0.25] * 3)
        return path

    def _quantize(self, whole: Path, pixels: np.ndarray[Any, Any], mode: Any) -> tuple[Path, str]:
        target = whole.with_name(f"{whole.stem}-{mode}.onnx")
        return target, quantize(whole, target, mode=mode, calibration=pixels[:CALIBRATION])

    def _compare(self, whole: Path, other: Path, pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Return the sizes of the other file, both times and the ratios."""
        times = _times([Artifact.load(whole), Artifact.load(other)], pixels, self.turns)
        return {
            **_sizes(other),
            "size_ratio": round(size_kb(other) / size_kb(whole), 4),
            "fp32_ms": frame.spread(times[0]),
            "ms": frame.spread(times[1]),
            "times_as_fast": round(float(np.median(times[0]) / np.median(times[1])), 3),
        }

    def _right_in_a_new_process(self, file: Path, images: Images) -> int:
        np.save(self.folder / "pixels.npy", np.asarray(images.pixels[np.arange(len(images.labels))]))
        np.save(self.folder / "labels.npy", images.labels)
        code = (
            "import sys; import numpy as np; from pathlib import Path; from imgcls_search.deploy.artifact import "
            "Artifact; "
            "file, pixels, labels = sys.argv[1:]; logits = Artifact.load(Path(file)).logits(np.load(pixels)); "
            "print((logits.argmax(1) == np.load(labels)).sum())"
        )
        command = [sys.executable, "-c", code, file, self.folder / "pixels.npy", self.folder / "labels.npy"]
        return int(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout)


def _times(artifacts: Sequence[Artifact], pixels: np.ndarray[Any, Any], turns: int) -> list[list[float]]:
    """Return the processor time of single images for each file, turn by turn, ms."""
    times: list[list[float]] = [[] for _ in artifacts]
    for turn in range(-WARM_UP_TURNS, turns):
        image = pixels[turn % len(pixels)][None]
        # The first file of a turn is slightly slower, so alternate the order.
        for artifact, found in list(zip(artifacts, times, strict=True))[:: 1 if turn % 2 == 0 else -1]:
            # The other file's weights have displaced this one's from the caches: run once to load them again.
            artifact.logits(image)
            started = time.thread_time()
            artifact.logits(image)
            if turn >= 0:
                found.append(1000 * (time.thread_time() - started))
    return times


def _right(artifact: Artifact, images: Images) -> int:
    return int((artifact.logits(images.pixels).argmax(1) == images.labels).sum())


def _sizes(file: Path) -> dict[str, float]:
    return {"size_kb": round(size_kb(file), 1), "archive_kb": round(archive_kb(file), 1)}


def _build(family: str, shape: InputShape, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"image_size": shape.image_size, "channels": shape.channels, "classes": shape.classes}
    return MODELS[family](**sizes, **arguments).eval()


def _noise(shape: InputShape) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, shape.channels, shape.image_size, shape.image_size))
    return pixels.astype(np.uint8)


def _config(arguments: argparse.Namespace) -> str:
    data = "{digits: {}}"
    if arguments.images is not None:
        data = f"{{folder: {{root: {arguments.images.resolve()}, val: 0.1, max_train: {arguments.train_images}}}}}"
    return f"""
data: {data}
augment: {{flip: {"horizontal" if arguments.images is not None else "none"}, crop_padding: 1}}
model: {{resnet: {{depths: [1, 1, 1], width: 16}}}}
optimizer: {{sgd: {{lr: 0.1, nesterov: true, weight_decay: 5e-4}}}}
schedule: {{cosine: {{warmup_epochs: 1}}}}
training: {{epochs: {arguments.epochs}, batch_size: 128}}
"""


def _has_vnni() -> bool | None:
    """Return whether the processor has VNNI (products of four pairs of 8-bit integers at a time); None if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    return "vnni" in cpuinfo.read_text() if cpuinfo.exists() else None


def _print(results: dict[str, Any]) -> None:
    for part, show in (("resnet18", _print_resnet), ("vits", _print_vits), ("trained", _print_trained)):
        if part in results:
            show(results[part])


def _print_resnet(resnet: dict[str, Any]) -> None:
    print(f"ResNet-18, CIFAR stem, {resnet['auto']} INT8, processor with VNNI: {_has_vnni()}")
    _say("file / fp32 file", resnet["int8"]["size_ratio"], at_most=0.27)
    _say("times as fast", resnet["int8"]["times_as_fast"], at_least=2.5)
    _say("half the channels, times as fast", resnet["pruned"]["times_as_fast"], at_least=1.5)
    _say("the same in INT8, times as fast", resnet["pruned_int8"]["times_as_fast"])


def _print_vits(vits: dict[str, Any]) -> None:
    for name, vit in vits.items():
        _say(f"{name}: {vit['auto']}, times as fast", vit["times_as_fast"], at_least=1.0)


def _print_trained(trained: dict[str, Any]) -> None:
    print(f"ResNet-8 trained on {trained['images']['train']} images, {trained['images']['val']} to measure by")
    for mode in ("static", "dynamic", "auto"):
        lost = 100 * (trained["fp32"]["accuracy"] - trained[mode]["accuracy"])
        _say(f"{mode}: points of accuracy lost of {100 * trained['fp32']['accuracy']:.2f}", lost, at_most=1.0)
    apart = [abs(trained[n]["right"] - trained[n]["right_in_a_new_process"]) for n in ("fp32", "static", "dynamic")]
    _say("images on which a new process differs", max(apart), at_most=0)


def _say(what: str, figure: float, **asked: float) -> None:
    said = frame.verdict(figure, **asked)
    print(f"  {what}: {figure:.3g}{f' ({said})' if said else ''}")


if __name__ == "__main__":
    main()
