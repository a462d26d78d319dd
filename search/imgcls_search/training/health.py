"""The quality of features learned without labels, and the detection of collapse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from imgcls_search.data.label_sets import Labels
from imgcls_search.errors import DivergedError
from imgcls_search.measures import LEAST_SPREAD, NEIGHBOURS, PROBE
from imgcls_search.training.device import autocast
from imgcls_search.training.images import ImageSet, in_order
from imgcls_search.training.learner import Learner
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.probe import fit_linear, predict_by_neighbours

RANDOM = "random_probe_accuracy"
SPREAD, RANK = "spread", "effective_rank"

COLLAPSED_EPOCHS, GROWTH = 3, 0.01
"""Projections with a spread below `LEAST_SPREAD` for this many epochs have collapsed, unless the spread grows by
`GROWTH`: the projections of a network that just started are close too."""

MEASUREMENTS = 20
"""How often neighbours and probe are measured in total, unless the configuration sets `health_every`."""

MOST_KNOWN, MOST_ASKED, MOST_SPREAD = 2_000, 5_000, 512
"""Labelled training images that probe and neighbours learn from, validation images that they classify, and images whose
spread is measured after each epoch."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Health:
    """Measures a learner on labelled images after an epoch, from features of images without augmentation."""

    known: ImageSet
    """Labelled training images."""

    asked: ImageSet
    """Validation images."""

    classes: int
    """Number of classes; 0 with several labels per image, where there is no accuracy."""

    epochs: int
    every: int | None
    seed: int
    precision: str = "fp32"

    def __call__(self, learner: nn.Module, epoch: int, wanted: Wanted | None) -> dict[str, float]:
        """Return the measurements after an epoch, counted from 1; epoch 0 is the random network."""
        assert isinstance(learner, Learner), "only learners have features without a head"
        learner.eval()
        if epoch == 0:
            return self._of_random(learner)
        shown = _outputs(learner, self.asked, self.precision, MOST_SPREAD)
        found = {SPREAD: spread(torch.from_numpy(shown))}
        every = self.every or math.ceil(self.epochs / MEASUREMENTS)
        is_named = wanted is not None and {PROBE, NEIGHBOURS} & set(wanted.named)
        if not is_named and epoch % every and epoch != self.epochs:
            return found
        asked = _outputs(learner.features, self.asked, self.precision)
        found[RANK] = effective_rank(torch.from_numpy(asked))
        if not np.isfinite(asked).all():
            raise DivergedError("the network gives NaN or infinite features")
        if self.classes:
            known = _outputs(learner.features, self.known, self.precision)
            nearest = predict_by_neighbours(known, _numbers(self.known), asked)
            found[NEIGHBOURS] = float((nearest == _numbers(self.asked)).mean())
            found[PROBE] = self._probe(known, asked)
        return found

    def _of_random(self, learner: Learner) -> dict[str, float]:
        if not self.classes:
            return {}
        known, asked = (_outputs(learner.features, images, self.precision) for images in (self.known, self.asked))
        return {RANDOM: self._probe(known, asked)}

    def _probe(self, known: Floats, asked: Floats) -> float:
        # BLAS would start a thread for each core, in competition with other workers.
        with threadpool_limits(torch.get_num_threads(), "blas"):
            head = fit_linear(known, _numbers(self.known), self.classes, self.seed)
        return float((head.logits(asked).argmax(axis=1) == _numbers(self.asked)).mean())


def chosen(labels: Labels, most: int) -> npt.NDArray[np.int64]:
    """Return the numbers of at most this many images, the same in every training."""
    drawn = np.random.RandomState(0).permutation(len(labels))[:most]
    numbers: npt.NDArray[np.int64] = np.sort(drawn).astype(np.int64)
    return numbers


def spread(projections: Tensor) -> float:
    """Return how far projections [N, D] are apart: about 1 if they fill all directions, 0 if all are equal.

    It is the mean over dimensions of the standard deviation of the normalised projections, times sqrt(D).
    """
    directions = functional.normalize(projections.double(), dim=1)
    return float(directions.std(dim=0, correction=0).mean() * math.sqrt(projections.shape[1]))


def effective_rank(features: Tensor) -> float:
    """Return over how many directions features [N, F] vary: exp of the entropy of the shares of the singular values.

    Roy and Vetterli 2007; of centred features.
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(dim=0))
    shares = values / values.sum().clamp(min=1e-30)
    return float(torch.exp(-(shares * shares.clamp(min=1e-30).log()).sum()))


def refuse_collapsed(history: Sequence[Mapping[str, float]]) -> None:
    """Stop a training whose projections have collapsed.

    Raises:
        DivergedError: they have had almost no spread for some epochs.
    """
    last = [epoch[SPREAD] for epoch in history[-COLLAPSED_EPOCHS:] if SPREAD in epoch]
    if len(last) == COLLAPSED_EPOCHS and max(last) < LEAST_SPREAD and last[-1] - last[0] < GROWTH:
        raise DivergedError(
            f"collapsed: the spread of the projections was under {LEAST_SPREAD} for {COLLAPSED_EPOCHS} epochs (last "
            f"{last[-1]:.3f}): all images look alike to the network; a lower learning rate, a longer warmup or "
            "a larger batch_size may help"
        )


def remark(history: Sequence[Mapping[str, float]]) -> str | None:
    """Return a warning if a finished pretraining is no better than a random network, None otherwise."""
    random = next((epoch[RANDOM] for epoch in history if RANDOM in epoch), None)
    probe = next((epoch[PROBE] for epoch in reversed(history) if PROBE in epoch), None)
    if random is None or probe is None or probe > random or random == 1:
        return None
    return (
        f"{PROBE} {probe:.3f} is no better than a random network's, {random:.3f}: the pretraining did not help; "
        "try more epochs, more images or other views"
    )


@torch.inference_mode()
def _outputs(call: Callable[[Tensor], Tensor], images: ImageSet, precision: str, most: int | None = None) -> Floats:
    parts = []
    for _, pixels, _ in images.batches(in_order(images, most)):
        with autocast(images.device, precision):
            parts.append(call(images.normalise(pixels)).float())
    found: Floats = torch.cat(parts).cpu().numpy()
    return found


def _numbers(images: ImageSet) -> npt.NDArray[np.int64]:
    labels: Any = images.labels
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels, dtype=np.int64)
