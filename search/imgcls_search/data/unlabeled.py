"""The images of a pretraining, whose labels nobody needs: what the section `unlabeled` may say, and opening them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from imgcls_search.config import TrialConfig
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.folds import places
from imgcls_search.data.prepared import Prepared
from imgcls_search.data.store import load
from imgcls_search.errors import DataError
from imgcls_search.signature import Arg


@dataclass(frozen=True, kw_only=True, eq=False)
class Unlabeled:
    """The images of a pretraining, decoded."""

    pixels: Any
    """uint8 [N, channels, height, width], an array or what is indexed like one."""

    prints: str
    """What the images are recognised by: equal for equal images in equal order, wherever they are."""

    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many images take no part, by the reason."""


def train() -> None:
    """Take the labelled training images, and those that max_train leaves out."""


def folder(
    *,
    root: Annotated[str, Arg("folder of images, at any depth; no classes are needed")],
    max: Annotated[int | None, Arg("most images; null: all", ge=1)] = None,  # noqa: A002 - its name in a space file
) -> None:
    """Take the images of a folder."""


UNLABELED: Mapping[str, Callable[..., None]] = {"train": train, "folder": folder}


def open_unlabeled(config: TrialConfig, data: Prepared, cache: Path, fold: int | None = None) -> Unlabeled:
    """Return the images that a configuration pretrains on; a fold, where one is named, takes no part.

    Raises:
        DataError: there are none, or they are damaged.
    """
    name = config.component("unlabeled").name
    if name != "train":
        raise DataError(f"unlabeled.{name}: not there yet")
    images = load(data, "train", whole=True)
    if fold is None:
        return Unlabeled(pixels=images.pixels, prints=data.fingerprint)
    count = data.counts["train"]
    rest = np.setdiff1d(np.arange(count + data.counts["val"]), places(data.folds, count)[fold])
    pixels = Chosen([images.pixels, load(data, "val", whole=True).pixels], rest)
    return Unlabeled(pixels=pixels, prints=f"{data.fingerprint}-{fold}")
