"""An exported model, ready to predict, without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imgcls_search.api.frames import card, frame_of, table
from imgcls_search.api.options import PathLikeText
from imgcls_search.api.session import session
from imgcls_search.errors import NoResultError, UserError
from imgcls_search.words import counted, some

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.deploy.bundle import Bundle
    from imgcls_search.deploy.predict import InMemory, Prediction, Skipped
    from imgcls_search.deploy.views import ViewsName

VIEWS = ("none", "mirror", "shift", "mirror_shift")
SHOWN_IMAGES = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions of a model, in the order of the images."""

    images: tuple[str, ...]
    """Paths, or `image 0` and so on for images in memory."""

    labels: tuple[str | tuple[str, ...] | None, ...]
    """For each image, the predicted class, or all labels that it has; None if it could not be read."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]
    """[images, classes]; NaN if an image could not be read."""

    unsure: tuple[bool | None, ...] = ()
    """Whether the class is less likely than the required confidence; None if none is required."""

    unlike: tuple[bool | None, ...] = ()
    """Whether the image is unlike the training images; None if the model cannot tell."""

    skipped: Mapping[str, str] = field(default_factory=dict)
    """Images that could not be read, each with the reason."""

    def __len__(self) -> int:
        return len(self.images)

    def frame(self) -> pd.DataFrame:
        """Return a pandas frame: image, label, its probability, and the probability of each class.

        Raises:
            UserError: pandas is not installed.
        """
        return frame_of(list(self._rows()), self._columns(), "frame()")

    def _columns(self) -> list[str]:
        found = ["image", "label", "probability"]
        for name, values in (("unsure", self.unsure), ("unlike", self.unlike)):
            if any(value is not None for value in values):
                found.append(name)
        return [*found, *(f"p.{name}" for name in self.classes)]

    def _rows(self) -> Iterator[dict[str, Any]]:
        doubts = zip(self.unsure, self.unlike, strict=True)
        for image, label, row, (unsure, unlike) in zip(
            self.images, self.labels, self.probabilities.tolist(), doubts, strict=True
        ):
            known = dict(zip(self.classes, row, strict=True))
            yield {
                "image": image,
                "label": label,
                "probability": known.get(label) if isinstance(label, str) else None,
                "unsure": unsure,
                "unlike": unlike,
                **{f"p.{name}": value for name, value in known.items()},
            }

    def _repr_html_(self) -> str:
        rows = []
        for row in list(self._rows())[:SHOWN_IMAGES]:
            label = row["label"]
            shown = some(label) if isinstance(label, tuple) else label
            probability = row["probability"]
            rows.append((row["image"], shown, "" if probability is None else f"{probability:.4f}"))
        more = len(self) - len(rows)
        lines = [f"{len(self.skipped)} could not be read"] if self.skipped else []
        lines += [f"and {more} more; frame() has all"] if more > 0 else []
        return card(counted("image", len(self)), lines, table(("image", "label", "probability"), rows))


class Model:
    """A model in a folder that `export` wrote."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        """Create a model from a bundle; use `load_model` instead."""
        self.folder = folder
        self.bundle = bundle

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, or labels, in the order of the probabilities."""
        return self.bundle.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input images."""
        channels, height, width = self.bundle.artifact.pixel_shape
        return channels, height, width

    def predict(
        self,
        images: Any,
        *,
        min_confidence: float | None = None,
        tta: ViewsName = "none",
        progress: bool | None = None,
    ) -> Predictions:
        """Classify images, decoded in the same way as the training images.

        Args:
            images: A path, a folder, a PIL image, a NumPy array (uint8 [H, W] or [H, W, 3], or a batch
                [N, H, W] or [N, H, W, 3]), or a list of such.
            min_confidence: Mark images whose class has a lower probability as unsure.
            tta: Average these views of an image: `none`, `mirror`, `shift` or `mirror_shift`.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument is not usable, or there is no image.
            NoResultError: None of the images could be read.
        """
        from imgcls_search.deploy.predict import check_confidence, classify, count_images

        if tta not in VIEWS:
            raise UserError(f"tta: {tta!r} is not allowed; allowed: {', '.join(VIEWS)}")
        items = list(_items(images))
        if not items:
            raise UserError(
                "images: there is none; allowed: a path, a folder, PIL images, NumPy arrays, or a list of them"
            )
        with session(progress) as screens:
            if (note := check_confidence(self.bundle, min_confidence)) is not None:
                screens.say(f"{self.folder}: {note}")
            found = []
            total = count_images(items)
            with screens.drafting() as show:
                every = classify(self.bundle, items, top=len(self.classes), min_confidence=min_confidence, views=tta)
                for number, one in enumerate(every, start=1):
                    found.append(one)
                    show("classifying", number, total)
        return self._together(found)

    def _together(self, found: Sequence[Prediction | Skipped]) -> Predictions:
        from imgcls_search.deploy.predict import Skipped

        probabilities = np.full((len(found), len(self.classes)), np.nan)
        place = {name: number for number, name in enumerate(self.classes)}
        labels: list[str | tuple[str, ...] | None] = []
        skipped = {}
        for row, one in zip(probabilities, found, strict=True):
            if isinstance(one, Skipped):
                skipped[one.image] = one.reason
                labels.append(None)
                continue
            for name, probability in one.ranked:
                row[place[name]] = probability
            labels.append(one.ranked[0][0] if one.labels is None else one.labels)
        if len(skipped) == len(found):
            image, why = next(iter(skipped.items()))
            raise NoResultError(
                f"{self.folder}: no image could be read ({counted('file', len(found))} tried): {image}: {why}"
            )
        return Predictions(
            images=tuple(one.image for one in found),
            labels=tuple(labels),
            classes=self.classes,
            probabilities=probabilities,
            unsure=tuple(None if isinstance(one, Skipped) else one.is_unsure for one in found),
            unlike=tuple(None if isinstance(one, Skipped) else one.is_unlike for one in found),
            skipped=skipped,
        )

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        return f"Model({str(self.folder)!r}, {len(self.classes)} classes, {channels}x{height}x{width} pixels)"


def load_model(folder: PathLikeText) -> Model:
    """Load a folder that `export` wrote, and check its files; does not need torch.

    Raises:
        DeployError: It is not such a folder, or it is incomplete.
    """
    from imgcls_search.deploy.bundle import read

    if not isinstance(folder, (str, PathLike)):
        raise UserError(f"load_model: got a {type(folder).__name__}; allowed: the folder that export wrote")
    return Model(Path(folder), read(Path(folder)))


def _items(images: Any) -> Iterator[Path | InMemory]:
    """Yield images in the form for `classify`.

    Raises:
        UserError: an image is of another kind.
    """
    if isinstance(images, (str, PathLike)):
        yield Path(images)
    elif isinstance(images, np.ndarray) and (images.ndim == 4 or (images.ndim == 3 and images.shape[2] > 4)):
        for number, image in enumerate(images):
            yield _in_memory(image, number)
    elif isinstance(images, np.ndarray) or _is_picture(images):
        yield _in_memory(images, 0)
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, Mapping)):
        for number, image in enumerate(images):
            yield Path(image) if isinstance(image, (str, PathLike)) else _in_memory(image, number)
    else:
        raise UserError(f"images: got a {type(images).__name__}; allowed: {_ALLOWED}")


_ALLOWED = "a path, a folder, PIL images, NumPy arrays, or a list of them"


def _is_picture(image: Any) -> bool:
    with contextlib.suppress(ImportError):
        from PIL.Image import Image

        return isinstance(image, Image)
    return False


def _in_memory(image: Any, number: int) -> InMemory:
    from PIL import Image

    from imgcls_search.deploy.predict import InMemory

    name = f"image {number}"
    if _is_picture(image):
        return InMemory(name=name, image=image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"images: {name} is a {type(image).__name__}; allowed: {_ALLOWED}")
    is_shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if image.dtype != np.uint8 or not is_shaped or 0 in image.shape:
        raise UserError(
            f"images: {name} is an array of {image.dtype} {list(image.shape)}; allowed: uint8 [H, W], [H, W, 3] or "
            "[H, W, 4], with values of 0 to 255"
        )
    squeezed = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    return InMemory(name=name, image=Image.fromarray(np.ascontiguousarray(squeezed)))
