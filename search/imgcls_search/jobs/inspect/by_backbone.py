"""Judge labels by a linear layer on features of a pretrained network, fitted on folds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared
from imgcls_search.data.decode import decode_in, unlimited_pillow
from imgcls_search.data.image import Frame
from imgcls_search.data.inventory import Inventory
from imgcls_search.data.stream import DecodedOnIndexing
from imgcls_search.jobs.inspect.out_of_fold import Floats, Numbers
from imgcls_search.probabilities import softmax
from imgcls_search.progress import WorkProgress
from imgcls_search.space import parse
from imgcls_search.training.device import available_devices
from imgcls_search.training.images import ImageSet
from imgcls_search.training.probe import fit_linear
from imgcls_search.worker import features

FEWEST_PIXELS, MOST_PIXELS = 64, 128
"""Limits of the shorter side of the images that the network sees."""

STEP = 32
"""Both sides are multiples of this, as the patches of transformers require."""

SAMPLE = 200
"""Number of images whose headers determine this size."""


def judging_by_backbone(
    model: Mapping[str, Any], *, seed: int
) -> Callable[[Inventory, Numbers, Numbers, WorkProgress], tuple[Floats, str]]:
    """Return a function that predicts out of fold with a pretrained network, given as under `model` in a space.

    The network sees whole images, stretched to the median shape: an error may be visible only at the edge.
    """

    def judge(images: Inventory, numbers: Numbers, folds: Numbers, progress: WorkProgress) -> tuple[Floats, str]:
        frame = Frame(size=_size(images, numbers), channels=3, fit="squash")
        text = json.dumps({"model": model, "image": {"size": list(frame.shape[1:]), "channels": 3}})
        config = parse(text, catalog(), source="--model", overrides=[("study.name", "unnamed")]).config()
        labels = images.labels[numbers]
        device = available_devices("auto")[0]
        backbone = features.frozen_network(config, _data(images, frame, labels), device)
        pixels: Any = DecodedInventory(images, numbers, frame)
        shown = ImageSet(pixels=pixels, labels=labels, mean=backbone.data.mean, std=backbone.data.std, device=device)
        name = model[next(iter(model))].get("name", next(iter(model)))
        values = features.compute(
            backbone, shown, lambda done, total: progress(f"judging labels: features by {name}", done, total)
        )
        return _out_of_fold(values, labels, folds, len(images.classes), seed, progress), (
            f"a linear layer on features of {name}"
        )

    return judge


def _out_of_fold(
    values: npt.NDArray[np.float32], labels: Numbers, folds: Numbers, classes: int, seed: int, progress: WorkProgress
) -> Floats:
    found = np.zeros((len(labels), classes))
    strength: float | None = None
    count = int(folds.max()) + 1
    for fold in range(count):
        progress("judging labels: linear layers", fold, count)
        held = folds == fold
        head = fit_linear(values[~held], labels[~held], classes, seed, strength)
        strength = head.strength
        found[held] = softmax(head.logits(values[held]))
    return found


def _size(images: Inventory, numbers: Numbers) -> tuple[int, int]:
    """Return height and width of the median image, within bounds."""
    sizes = []
    with unlimited_pillow():
        for number in numbers[:: max(1, len(numbers) // SAMPLE)].tolist():
            with images.read(number) as image:
                sizes.append(image.size)
    width, height = np.median(np.array(sizes), axis=0)
    scale = float(np.clip(min(width, height), FEWEST_PIXELS, MOST_PIXELS)) / min(width, height)
    # Limited, because a strip 20 times as wide as high would take 20 times as long.
    sides = [min(STEP * max(1, round(scale * side / STEP)), 4 * MOST_PIXELS) for side in (height, width)]
    return sides[0], sides[1]


def _data(images: Inventory, frame: Frame, labels: Numbers) -> Prepared:
    return Prepared(
        fingerprint="",
        classes=images.classes,
        image_size=frame.size,
        channels=3,
        counts={"train": len(labels), "val": 0, "test": 0},
        class_counts=tuple(np.bincount(labels, minlength=len(images.classes)).tolist()),
        # Placeholders: the normalisation of the weights is used.
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        folder="",
        fit="squash",
    )


class DecodedInventory(DecodedOnIndexing):
    """Images of an inventory, uint8 [N, 3, height, width]."""

    def __init__(self, images: Inventory, numbers: Numbers, frame: Frame) -> None:
        """`numbers` are the numbers of the images in the inventory."""
        self.images, self.numbers, self.frame = images, numbers, frame
        self.shape = (len(numbers), *frame.kept_shape)

    def _decode(self, number: int) -> npt.NDArray[np.uint8]:
        with self.images.read(int(self.numbers[number])) as image:
            return decode_in(self.frame, image)
