"""Images for pretraining: those of the training split, or a folder without classes; never images that scores use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as remembered
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from imgcls_search import digests
from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import describe_once, file_root, fingerprint
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.held_out import Part, find_twins, held_out
from imgcls_search.data.image import CACHE_GB
from imgcls_search.data.listing import from_files
from imgcls_search.data.opening import EXTENSIONS
from imgcls_search.data.prepared import Prepared
from imgcls_search.data.source import LeftOut, Source, Split
from imgcls_search.data.store import load, open_pool
from imgcls_search.data.stream import Streamed
from imgcls_search.data.tally import Tally, image_files
from imgcls_search.errors import DataError
from imgcls_search.progress import Progress
from imgcls_search.signature import Arg, build
from imgcls_search.words import counted, some

Pixels = npt.NDArray[np.uint8] | Streamed | Chosen

DRAW_SEED = (0, 3)
"""Seed for the images that `max` draws; 0 to 2 in the second place are the cuts of `splits`."""


@dataclass(frozen=True, kw_only=True)
class UnlabeledFrom:
    """The source of the pretraining images."""

    root: str | None = None
    """A folder; None for the labelled training images."""

    most: int | None = None
    skip_unreadable: bool = False


def training_images() -> UnlabeledFrom:
    """Pretrain on the labelled training images, and on those that max_train leaves out."""
    return UnlabeledFrom()


def image_folder(
    *,
    root: Annotated[str, Arg("a folder of images, flat or with folders in it; classes are not needed", fixed=True)],
    max: Annotated[  # noqa: A002 - the name in the space file
        int | None, Arg("use only this many images, drawn at random; null: all", ge=2, fixed=True)
    ] = None,
    skip_unreadable: Annotated[
        bool, Arg("leave out images that cannot be read, and list them, instead of refusing the folder", fixed=True)
    ] = False,
) -> UnlabeledFrom:
    """Pretrain on all images of a folder except validation and test images."""
    return UnlabeledFrom(root=root, most=max, skip_unreadable=skip_unreadable)


UNLABELED: Mapping[str, Callable[..., UnlabeledFrom]] = {"train": training_images, "folder": image_folder}


@dataclass(frozen=True, kw_only=True, eq=False)
class Unlabeled:
    """Decoded images for pretraining."""

    place: str
    """The location in error messages."""

    pixels: Pixels
    """uint8 [N, channels, height, width], memory-mapped, or read on indexing."""

    names: tuple[str, ...]
    prints: str
    """Equal for equal images, wherever they are stored."""

    left_out: Mapping[str, int]
    """Number of images and files that are left out, by reason."""

    unreadable: tuple[str, ...] = ()
    """Images that were left out because they cannot be read, each with the reason."""

    def __len__(self) -> int:
        return len(self.names)

    def lines(self) -> list[str]:
        """Return notes about the images for users, one line each."""
        left = "".join(f"; {_as_line(reason, count)}" for reason, count in self.left_out.items())
        found = [f"{self.place}: pretrains on {counted('image', len(self))}{left}"]
        if self.unreadable:
            number = counted("image", len(self.unreadable))
            found.append(f"{self.place}: left out {number} that cannot be read: {some(self.unreadable)}")
        return found


def _as_line(reason: str, count: int) -> str:
    return f"left out {count:,}: {reason}"


def unlabeled_of(config: TrialConfig) -> tuple[Component, UnlabeledFrom]:
    """Return the `unlabeled` section of a configuration; by default the training images."""
    if "unlabeled" not in config.tree:
        return Component(path="unlabeled.train", name="train", args={}), training_images()
    component = config.component("unlabeled")
    return component, build(UNLABELED, component)


def look_for_unlabeled(config: TrialConfig) -> int | None:
    """Return the number of images in a pretraining folder, before reading any; None for the training images.

    Raises:
        DataError: the folder is missing, has no or too few images, or is a held-out split.
    """
    _, wanted = unlabeled_of(config)
    if wanted.root is None:
        return None
    listing = _list(_top(wanted.root))
    _refuse_sealed(listing, config)
    count = min(len(listing.paths), wanted.most or len(listing.paths))
    _refuse_few(config, listing.place, count)
    return count


def open_unlabeled(
    config: TrialConfig,
    data: Prepared,
    cache: Path,
    fold: int | None = None,
    *,
    whole: bool = False,
    progress: Progress | None = None,
) -> Unlabeled:
    """Return the images that a configuration pretrains on, decoded once for all processes.

    Images of the validation and test splits are never included; with folds, those of the held-out `fold` (None: no fold
    is held out) and of the test split. `whole` images include their margin.

    Raises:
        DataError: images are missing, damaged or too few, or the cache cannot be written.
    """
    _, wanted = unlabeled_of(config)
    component = config.component("data")
    labelled = describe_once(component, cache)
    most_bytes = config.section("image").get("cache_gb", CACHE_GB) * 1e9
    pool = _Pool(data, cache, most_bytes, whole, progress)
    if wanted.root is None:
        place, parts = "unlabeled.train", pool.of_training(component, labelled)
    else:
        place, parts = pool.of_folder(wanted, config, labelled)
    return _not_held_out(pool, parts, place, labelled, config, fold)


class _Pool:
    """Opens the candidate images."""

    def __init__(self, data: Prepared, cache: Path, most_bytes: float, whole: bool, progress: Progress | None) -> None:
        self.data, self.cache, self.most_bytes = data, cache, most_bytes
        self.whole, self.progress = whole, progress

    def of_training(self, component: Component, labelled: Source) -> list[Part]:
        splits: tuple[Any, ...] = ("train", "val") if self.data.folds else ("train",)
        parts = [
            Part(images=load(self.data, split, whole=self.whole), print=self.data.prints.seen, split=split, left_out={})
            for split in splits
        ]
        if component.args.get("max_train") is None:
            return parts
        wide = replace(component, args={**component.args, "max_train": None})
        every = describe_once(wide, self.cache)
        known = {name for names in labelled.names.values() for name in names}
        others: Sequence[Split] = ("train", "val")
        items = [(s, i) for s in others for i, name in enumerate(every.names[s]) if name not in known]
        if not items:
            return parts
        source = _bare(
            every,
            names=[every.names[split][index] for split, index in items],
            read=lambda index: every.read(*items[index]),
            make_prints=lambda: Prints(whole=every.prints.seen),
        )
        return [*parts, self.opened(source, {})]

    def of_folder(self, wanted: UnlabeledFrom, config: TrialConfig, labelled: Source) -> tuple[str, list[Part]]:
        assert wanted.root is not None
        listing = _list(_top(wanted.root))
        _refuse_sealed(listing, config)
        paths, left_out = _without_files(listing, labelled, config.component("data"), self.cache)
        _refuse_none(listing.place, len(paths), left_out)
        if wanted.most is not None and wanted.most < len(paths):
            # NumPy has frozen the stream of RandomState.
            drawn = np.sort(np.random.RandomState(DRAW_SEED).permutation(len(paths))[: wanted.most])
            paths = [paths[place] for place in drawn.tolist()]
        names = [path.relative_to(listing.top).as_posix() for path in paths]
        listed = (("unlabeled",), names, np.zeros(len(names), dtype=np.int64), paths)
        source = _bare(
            None,
            place=listing.place,
            names=names,
            read=from_files(paths),
            make_prints=remembered(partial(fingerprint.of_files, *listed, memory=self.cache / fingerprint.FILE)),
            skips_unreadable=wanted.skip_unreadable,
        )
        return listing.place, [self.opened(source, left_out)]

    def opened(self, source: Source, left_out: Mapping[str, int]) -> Part:
        images, unreadable = open_pool(
            source,
            frame=self.data.frame,
            cache=self.cache,
            most_bytes=self.most_bytes,
            progress=self.progress,
            whole=self.whole,
        )
        return Part(images=images, print=source.fingerprint, left_out=left_out, unreadable=tuple(unreadable))


def _not_held_out(
    pool: _Pool, parts: Sequence[Part], place: str, labelled: Source, config: TrialConfig, fold: int | None
) -> Unlabeled:
    """Return the images of some parts that are not used for scores."""
    kinds = held_out(labelled, fold)
    twins = find_twins(pool.data, pool.cache, parts, labelled)
    names: list[str] = []
    own: list[bool] = []
    for part in parts:
        names += part.images.names
        own += [part.split is not None and kinds.get(name) is not None for name in part.images.names]
    left_out: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    kept = []
    for number in range(len(names)):
        # A fold's own images are left out silently; only their copies are counted.
        kind = next((kinds[name] for name in twins.get(number, ()) if name in kinds), None)
        if own[number]:
            continue
        if kind is None:
            kept.append(number)
        else:
            left_out[kind] = left_out.get(kind, 0) + 1
    _refuse_none(place, len(kept), left_out)
    _refuse_few(config, place, len(kept), left_out)
    pixels: Any = [part.images.pixels for part in parts]
    is_whole = len(parts) == 1 and len(kept) == len(names)
    parts_and_names = [sorted(part.print for part in parts), [names[number] for number in kept]]
    return Unlabeled(
        place=place,
        pixels=pixels[0] if is_whole else Chosen(pixels, np.array(kept, dtype=np.int64)),
        names=tuple(names[number] for number in kept),
        prints=digests.of_text(json.dumps(parts_and_names))[:16],
        left_out=left_out,
        unreadable=tuple(name for part in parts for name in part.unreadable),
    )


def _without_files(
    listing: _Listing, labelled: Source, component: Component, cache: Path
) -> tuple[list[Path], dict[str, int]]:
    """Return the files of a folder that are not copies of held-out images, and what is left out.

    With folds, only copies of test images are left out here, because each fold holds out other images.

    Raises:
        DataError: a file cannot be read.
    """
    left_out = {f"{entry.reason}s" if entry.count > 1 else entry.reason: entry.count for entry in listing.left_out}
    root = file_root(component)
    if not labelled.is_in_files or root is None:
        return list(listing.paths), left_out
    kinds = held_out(labelled, None)
    held = list(kinds)
    memory = cache / fingerprint.FILE
    try:
        known = dict(zip(fingerprint.of_each([root / name for name in held], memory), held, strict=True))
        files = fingerprint.of_each(listing.paths, memory)
    except OSError as error:
        raise DataError(f"{listing.place}: cannot be read: {error}") from error
    kept = []
    for path, digest in zip(listing.paths, files, strict=True):
        if digest in known:
            kind = kinds[known[digest]]
            left_out[kind] = left_out.get(kind, 0) + 1
        else:
            kept.append(path)
    return kept, left_out


# The folder.


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The images of a folder, in order."""

    top: Path
    place: str
    paths: Sequence[Path]
    left_out: tuple[LeftOut, ...]


def _top(root: str) -> Path:
    return expand_path(root, "unlabeled.folder.root").resolve()


def _list(top: Path) -> _Listing:
    place = f"unlabeled.folder: {top}"
    if not top.exists():
        raise DataError(f"{place}: does not exist; allowed: a folder of images")
    if not top.is_dir():
        raise DataError(f"{place}: is not a folder; allowed: a folder of images")
    tally = Tally(top)
    try:
        paths = sorted(image_files(top, tally))
        tally.refuse_broken_links(place)
        fingerprint.must_be_files(paths)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}") from error
    if not paths:
        raise DataError(f"{place}: no image in it; allowed: files ending in {' '.join(EXTENSIONS)}")
    return _Listing(top=top, place=place, paths=paths, left_out=tally.left_out())


def _refuse_sealed(listing: _Listing, config: TrialConfig) -> None:
    """Refuse the folder of the validation or test split, or a folder in it."""
    component = config.component("data")
    root = file_root(component) if component.name == "folder" else None
    for split in ("val", "test"):
        if root is not None and listing.top.is_relative_to(root / split):
            raise DataError(f"{listing.place}: holds the {split} images of {component.path}; allowed: other images")


def _refuse_none(place: str, count: int, left_out: Mapping[str, int]) -> None:
    if not count:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        raise DataError(f"{place}: no image is left to pretrain on ({reasons}); allowed: other images")


def _refuse_few(config: TrialConfig, place: str, count: int, left_out: Mapping[str, int] | None = None) -> None:
    """Refuse fewer images than two batches, if the configuration sets the batch size."""
    component = config.component("pretrain") if "pretrain" in config.tree else None
    batch_size = component.args.get("batch_size") if component is not None else None
    if component is None or batch_size is None or count >= 2 * batch_size:
        return
    # A network learns nothing from a batch of one image.
    smaller = f", or {component.path}.batch_size of at most {count // 2}" if count >= 4 else ""
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in (left_out or {}).items())
    raise DataError(
        f"{place}: {counted('image', count)} to pretrain on{f' (left out: {reasons})' if reasons else ''}, fewer than "
        f"two batches of {batch_size}; allowed: at least {2 * batch_size} images{smaller}"
    )


def _bare(
    source: Source | None,
    *,
    names: Sequence[str],
    read: Callable[[int], Any],
    make_prints: Callable[[], Prints],
    place: str = "",
    skips_unreadable: bool = False,
) -> Source:
    """Return a source of images without classes, all in `train`; `source` is the data set they come from."""
    nothing = np.zeros(0, dtype=np.int64)
    return Source(
        name="unlabeled",
        place=place if source is None else source.place,
        classes=("unlabeled",),
        labels={"train": np.zeros(len(names), dtype=np.int64), "val": nothing, "test": nothing},
        names={"train": tuple(names), "val": (), "test": ()},
        read=lambda split, index: read(index),
        make_prints=make_prints,
        skips_unreadable=skips_unreadable if source is None else source.skips_unreadable,
    )
