"""Explain mistakes: the original image, where the network looked, and the most similar training images."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imgcls_search.data import Images, Prepared, Source, Split, describe
from imgcls_search.data import load as load_images
from imgcls_search.data.decode import unlimited_pillow, upright_rgb
from imgcls_search.jobs.class_maps import class_maps
from imgcls_search.jobs.neighbours import affordable, features, nearest, unit
from imgcls_search.terminal import shown
from imgcls_search.training.images import ImageSet, step_of
from imgcls_search.views.mistakes import EvaluatedTrial
from imgcls_search.words import some
from imgcls_search.worker import features as kept_features
from imgcls_search.worker import image_sets

if TYPE_CHECKING:
    from PIL.Image import Image

NEIGHBOURS = 3
"""Training images to show with a mistake."""

LONGEST = 448
"""Most pixels of an original's longer side; without a limit, a page of photographs would have hundreds of MB."""

SMALL = 96
"""Small images are enlarged to about this many pixels without smoothing, maps to twice as many."""

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image and the class or label to explain."""

    place: int
    """Its index among the images of the evaluation."""

    target: int


@dataclass(frozen=True, kw_only=True)
class Close:
    """The pictures that explain a mistake."""

    original: str
    """A data URI, like the others."""

    size: str
    """The size in pixels and whether it is shown smaller, or a note that the file could not be read."""

    map: str
    """Empty if there is none."""

    near: Sequence[tuple[str, str]]
    """The nearest training images with their labels."""


class TrainingImages:
    """The training images to search for those most similar to a mistake.

    If the search has cached their features, all images are used; otherwise as many as are affordable with `macs`
    multiply-accumulates per image.
    """

    def __init__(self, looked: EvaluatedTrial, macs: float) -> None:
        self.looked = looked
        self.count = looked.data.counts["train"]
        self.kept = kept_features.kept_of(looked.model, looked.config, looked.data, "train", _device(looked))
        self.items = affordable(self.count, macs) if self.kept is None else np.arange(self.count)
        """Indices of the images to use, [K]."""

    @cached_property
    def features(self) -> np.ndarray[Any, Any]:
        """Input of the last layer for each image, [K, D], with length 1."""
        if self.kept is not None:
            return unit(self.kept)
        every = _set(self.looked, load_images(self.looked.data, "train"))
        blocks = torch.split(torch.from_numpy(self.items).to(every.home), step_of(every, BATCH))
        return features(self.looked.model, (every.normalise(part) for _, part, _ in every.batches(blocks)))


def look_closer(
    looked: EvaluatedTrial, mistakes: Sequence[Mistake], place: Mapping[str, str], among: TrainingImages
) -> list[Close]:
    """Return the pictures that explain each mistake; `place` says where the images are now."""
    if not mistakes:
        return []
    pixels = looked.pixels[np.array([each.place for each in mistakes])]
    # With folds, only the last fold's network is kept, which was trained on the images of the other folds.
    explained = [n for n, each in enumerate(mistakes) if each.place >= _first_unseen(looked)]
    maps, near = {}, {}
    if explained:
        inputs, targets = pixels[explained], [mistakes[number].target for number in explained]
        drawn = class_maps(looked.model, _normalised(looked, inputs), targets)
        maps = {} if drawn is None else dict(zip(explained, drawn, strict=True))
        near = dict(zip(explained, _near(looked, inputs, among), strict=True))
    read = _originals(looked, place)
    with unlimited_pillow():
        return [
            Close(
                **_original(read, looked.evaluation.names[each.place], pixels[number]),
                map=_overlaid(pixels[number], maps[number]) if number in maps else "",
                near=near.get(number, ()),
            )
            for number, each in enumerate(mistakes)
        ]


def _first_unseen(looked: EvaluatedTrial) -> int:
    return sum(looked.data.folds[:-1])


def _device(looked: EvaluatedTrial) -> str:
    return str(next(looked.model.parameters()).device)


def _set(looked: EvaluatedTrial, images: Images) -> ImageSet:
    return image_sets.on_device(images, looked.data, _device(looked))


def _normalised(looked: EvaluatedTrial, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    images = _set(looked, Images(pixels=pixels, labels=np.zeros(len(pixels), np.int64), names=()))
    return images.normalise(torch.from_numpy(np.ascontiguousarray(pixels)).to(_device(looked)))


def _near(looked: EvaluatedTrial, pixels: np.ndarray[Any, Any], among: TrainingImages) -> list[list[tuple[str, str]]]:
    """Return for each image the training images that the network considers most similar."""
    train = load_images(looked.data, "train")
    found = nearest(features(looked.model, iter([_normalised(looked, pixels)])), among.features, NEIGHBOURS)
    return [
        [
            (
                _uri(_picture(train.pixels[among.items[[row]]][0]), 64),
                _label(train.labels[among.items[row]], looked.data),
            )
            for row in rows
        ]
        for rows in found.tolist()
    ]


def _label(label: Any, data: Prepared) -> str:
    if np.ndim(label) == 0:
        return shown(data.classes[int(label)])
    return some([shown(data.classes[number]) for number in np.flatnonzero(label).tolist()]) or "none"


def _originals(looked: EvaluatedTrial, place: Mapping[str, str]) -> Callable[[str], Image | None]:
    """Return a function that opens an image by its name, or returns None if its file is missing."""
    config = looked.config.moved(place)
    source: Source | None
    try:
        source = describe(config.component("data"), Path(looked.data.folder).parent)
    # If anything is wrong with the folder now, the page shows the pixels that the network saw.
    except Exception:
        source = None
    splits: tuple[Split, ...] = ("train", "val")
    names = {} if source is None else source.names
    where = {name: (split, number) for split in splits for number, name in enumerate(names.get(split, ()))}

    def read(name: str) -> Image | None:
        if source is None or name not in where:
            return None
        try:
            with source.read(*where[name]) as image:
                return upright_rgb(image)
        # It was readable before, so it has changed or was deleted meanwhile.
        except Exception:
            return None

    return read


def _original(read: Callable[[str], Image | None], name: str, pixels: np.ndarray[Any, Any]) -> dict[str, str]:
    image = read(name)
    if image is None:
        return {"original": _uri(_picture(pixels), LONGEST), "size": "file not readable; shown as the network saw it"}
    size = f"{image.width}×{image.height}"
    smaller = f", shown with {LONGEST} pixels" if max(image.size) > LONGEST else ""
    return {"original": _uri(image, LONGEST), "size": size + smaller}


def _picture(pixels: np.ndarray[Any, Any]) -> Image:
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _overlaid(pixels: np.ndarray[Any, Any], heat: np.ndarray[Any, Any]) -> str:
    """Return an image as the network saw it, in grey, overlaid with the colours of a map."""
    import matplotlib as mpl
    from PIL import Image

    image = _picture(pixels).convert("L").convert("RGB")
    if max(image.size) < 2 * SMALL:
        factor = 2 * SMALL // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    wide = Image.fromarray((255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(wide, dtype=np.float32)[..., None] / 255
    colours = 255 * mpl.colormaps["inferno"](strength[..., 0])[..., :3]
    mixed = np.asarray(image) * (1 - 0.65 * strength) + colours * 0.65 * strength
    return _uri(Image.fromarray(mixed.astype(np.uint8)), 2 * SMALL)


def _uri(image: Image, longest: int) -> str:
    """Return an image as a data URI, with sides of at most `longest` pixels: small ones as PNG, others as JPEG."""
    from PIL import Image

    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    kind = "PNG" if max(image.size) <= SMALL else "JPEG"
    if max(image.size) <= SMALL // 2:
        factor = SMALL // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.save(buffer, format=kind, **({"quality": 87} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
