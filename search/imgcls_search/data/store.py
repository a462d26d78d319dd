"""The store of decoded images: every image is decoded once, then read from memory-mapped arrays."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.config import Component
from imgcls_search.data import arrays, label_sets
from imgcls_search.data.arrays import Summaries
from imgcls_search.data.decode import unreadable
from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.image import Fill, Fit, Frame
from imgcls_search.data.prepared import Images, Prepared
from imgcls_search.data.source import Source, Split
from imgcls_search.data.stream import Streamed
from imgcls_search.errors import UNWRITTEN, BuildError, DataError, writing
from imgcls_search.image_size import ImageSize, normal, sides
from imgcls_search.progress import Progress
from imgcls_search.words import some

READABLE = "-test-is-readable"
"""Suffix of files that mark a test split as checked for unreadable images."""

_OF_DAMAGED_FILES = (OSError, SyntaxError, TokenError, *UNWRITTEN)
"""What reading a damaged file raises: NumPy parses the header of an array as Python code."""

STREAMED = "-streamed"
"""Suffix of folders with names and labels but no pixels."""

VERSION = 1
"""Part of every key: raise it when the pixels from `decode` or the file layout change."""


def prepare(
    source: Source,
    *,
    image_size: ImageSize,
    channels: int,
    cache: Path,
    fit: Fit = "crop",
    fill: Fill = "mean",
    margin: float = 1.0,
    progress: Progress | None = None,
    most_bytes: float = math.inf,
    origin: Component | None = None,
) -> Prepared:
    """Decode train and val into arrays below `cache`, once for all processes; the test split stays sealed.

    If the cache would exceed `most_bytes`, the images are only checked, not stored; workers then read them again from
    `origin`, the component that the source was built from.

    Raises:
        BuildError: the size or the number of channels is not allowed.
        DataError: images cannot be read, or the cache cannot be written.
    """
    if min(sides(image_size)) < 1:
        raise BuildError("image.size", f"{image_size} is not allowed; allowed: int >= 1")
    if channels not in (1, 3):
        raise BuildError("image.channels", f"{channels} is not allowed; allowed: 1, 3")
    frame = Frame(size=normal(image_size), channels=channels, fit=fit, fill=fill, margin=margin)
    folder = cache.expanduser().resolve() / _seen_key(source, frame)
    is_streamed = _exceeds(folder, source, ("train", "val"), frame, most_bytes)
    if is_streamed:
        assert origin is not None, "who sets a bound tells where to read again"
        folder = folder.with_name(f"{folder.name}{STREAMED}")
    summaries = _ensure(folder, source, ("train", "val"), frame, progress)
    repeated: list[Split] = ["train", "val"] if source.folds else ["val"]
    return Prepared(
        fingerprint=source.fingerprint,
        seen_fingerprint=source.prints.seen,
        classes=source.classes,
        image_size=frame.size,
        channels=channels,
        fit=fit,
        fill=fill,
        margin=margin,
        counts={split: summaries.get(split, {}).get("count", len(names)) for split, names in source.names.items()},
        class_counts=tuple(
            summaries["train"].get("class_counts")
            or label_sets.count(source.labels["train"], len(source.classes)).tolist()
        ),
        mean=tuple(summaries["train"]["mean"]),
        std=tuple(summaries["train"]["std"]),
        folder=str(folder),
        repeated=sum(summaries[split].get("repeated", 0) for split in repeated),
        repeated_for_example=_first(summaries[split].get("repeated_for_example", ()) for split in repeated),
        twins=sum(split.get("twins", 0) for split in summaries.values()),
        twins_for_example=_first(split.get("twins_for_example", ()) for split in summaries.values()),
        blank=sum(split.get("blank", 0) for split in summaries.values()),
        blank_for_example=_first(split.get("blank_for_example", ()) for split in summaries.values()),
        unreadable=tuple(name for split in summaries.values() for name in split.get("unreadable", ())),
        has_several_labels=source.has_several_labels,
        streamed_from={"name": origin.name, "args": dict(origin.args)} if origin and is_streamed else None,
        folds=_fold_sizes(folder, source),
    )


def _fold_sizes(folder: Path, source: Source) -> tuple[int, ...]:
    """Return the sizes of a source's folds without unreadable images.

    Raises:
        DataError: no image of a fold can be read.
    """
    if not source.folds:
        return ()
    splits: list[Split] = ["train", "val"]
    try:
        kept = {split: set(arrays.names(folder, split)) for split in splits}
    except (OSError, *UNWRITTEN) as error:
        raise _damaged(folder, "train and val") from error
    sizes = source.without({split: set(source.names[split]) - kept[split] for split in splits}).folds
    if 0 in sizes:
        raise DataError(f"{source.place}: no image in fold {sizes.index(0) + 1} can be read")
    return sizes


def _first(examples: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the first example over all splits, if there is one."""
    return tuple(name for names in examples for name in names)[:1]


def stored(cache: Path) -> dict[Path, int]:
    """Return the folders of decoded images below `cache` with their sizes in bytes."""
    found: dict[Path, int] = {}
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        # Another process may rename or delete a folder, or a file in it.
        with contextlib.suppress(FileNotFoundError):
            found[folder] = sum(file.stat().st_size for file in folder.iterdir())
    return found


def remove(folder: Path) -> None:
    """Delete a folder of decoded images; processes that read it continue, the next one decodes again.

    Raises:
        DataError: it cannot be deleted.
    """
    from filelock import FileLock

    lock = folder.with_name(f"{folder.name}.lock")
    try:
        with FileLock(lock):
            shutil.rmtree(folder)
        lock.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be deleted ({error.strerror})") from error


def load(prepared: Prepared, split: Literal["train", "val"], *, whole: bool = False) -> Images:
    """Map a prepared split; `whole` images include their margin.

    Raises:
        DataError: the store is gone or damaged.
    """
    count = prepared.counts[split]
    source = _streaming_source(prepared)
    return _load(Path(prepared.folder), split, count, prepared.frame, source, whole=whole)


def open_test(source: Source, prepared: Prepared, progress: Progress | None = None) -> Images:
    """Break the seal: decode the test split of the data behind `prepared`, or map it if already decoded.

    A test split that the data comes with is read as it is now.

    Raises:
        DataError: `source` has other data or splits than `prepared`, or unreadable images.
    """
    _must_be(source, prepared)
    frame = prepared.frame
    sealed = Path(prepared.folder).with_name(f"{_key(source, frame)}-test")
    summaries = _ensure(sealed, source, ("test",), frame, progress)
    # Only now is it known how many images can be read.
    count = summaries["test"].get("count", len(source.names["test"]))
    reader = source if prepared.streamed_from is not None else None
    return _load(sealed, "test", count, frame, reader)


def open_all(
    source: Source,
    *,
    frame: Frame,
    cache: Path,
    most_bytes: float = math.inf,
) -> list[Images]:
    """Decode the images of all splits, including the sealed one, and return the non-empty splits.

    If the cache would exceed `most_bytes`, images are decoded on each read instead.

    Raises:
        DataError: images cannot be read, or the cache cannot be written.
    """
    splits: list[Split] = [split for split in ("train", "val", "test") if source.names[split]]
    folder, summaries, reader = _keep_all(source, splits, frame, cache, most_bytes, None)
    counts = {split: summaries[split].get("count", len(source.names[split])) for split in splits}
    return [_load(folder, split, counts[split], frame, reader) for split in splits]


def open_pool(
    source: Source,
    *,
    frame: Frame,
    cache: Path,
    most_bytes: float = math.inf,
    progress: Progress | None = None,
    whole: bool = False,
) -> tuple[Images, list[str]]:
    """Decode images outside the labelled data set, all in `train`, as `open_all` does.

    Return also the unreadable images that were left out, each with the reason. `whole` images include their margin.

    Raises:
        DataError: images cannot be read, or the cache cannot be written.
    """
    folder, summaries, reader = _keep_all(source, ["train"], frame, cache, most_bytes, progress)
    known = summaries["train"]
    images = _load(folder, "train", known.get("count", len(source.names["train"])), frame, reader, whole=whole)
    return images, known.get("unreadable", [])


def _keep_all(
    source: Source,
    splits: Sequence[Split],
    frame: Frame,
    cache: Path,
    most_bytes: float,
    progress: Progress | None,
) -> tuple[Path, Summaries, Source | None]:
    """Return the folder and summaries of some splits, and the source if no pixels are stored."""
    folder = cache.expanduser().resolve() / f"{_key(source, frame)}-all"
    is_streamed = _exceeds(folder, source, splits, frame, most_bytes)
    if is_streamed:
        folder = folder.with_name(f"{folder.name}{STREAMED}")
    return folder, _ensure(folder, source, splits, frame, progress), source if is_streamed else None


def _exceeds(folder: Path, source: Source, splits: Sequence[Split], frame: Frame, most_bytes: float) -> bool:
    """Tell whether the pixels of some splits, which are not stored yet, would make the cache too large."""
    needed = arrays.num_bytes(source, splits, frame)
    return not folder.exists() and needed + sum(stored(folder.parent).values()) > most_bytes


def look_at_test(source: Source, prepared: Prepared, progress: Progress | None = None) -> list[str]:
    """Check once that the test files can be read; the split stays sealed, and nothing of it is stored.

    Return the unreadable images that will be left out, each with the reason.

    Raises:
        DataError: some images cannot be read, and the source does not skip them.
    """
    key = _key(source, prepared.frame)
    mark = Path(prepared.folder).with_name(f"{key}{READABLE}")
    if (known := read_note(mark)) is not None:
        return list(known["unreadable"])
    broken = unreadable(source, "test", prepared.frame, progress)
    if broken and not source.skips_unreadable:
        is_cut = source.prints.seen == source.prints.whole
        when = " before the search, which remembers what images it had" if is_cut else ""
        raise DataError(
            f"{source.place}: {len(broken)} of {len(source.names['test'])} test images cannot be read: {some(broken)}; "
            f"fix or remove them{when}"
        )
    with writing(mark, DataError):
        atomic.write_text(mark, digests.sealed({"unreadable": broken}))
    return broken


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the result of a previous look at images; None if there is none, or it is damaged."""
    try:
        return digests.unsealed(path.read_bytes())
    except OSError:
        return None


def _streaming_source(prepared: Prepared) -> Source | None:
    if prepared.streamed_from is None:
        return None
    from imgcls_search.data import describe_once

    origin = Component(path=f"data.{prepared.streamed_from['name']}", **prepared.streamed_from)
    source = describe_once(origin, Path(prepared.folder).parent)
    _must_be(source, prepared)
    return source


def _must_be(source: Source, prepared: Prepared) -> None:
    if _seen_key(source, prepared.frame) != Path(prepared.folder).name.removesuffix(STREAMED):
        raise DataError(f"{source.place}: not the data that was prepared: images or splits have changed since")


def _seen_key(source: Source, frame: Frame) -> str:
    """Return the name of a store that does not depend on a test split that the data comes with."""
    if source.prints.seen == source.prints.whole:
        return _key(source, frame)
    kept = replace(
        source,
        names={split: names for split, names in source.names.items() if split != "test"},
        make_prints=lambda: Prints(whole=source.prints.seen),
    )
    return _key(kept, frame)


def _key(source: Source, frame: Frame) -> str:
    # The names in the splits represent the split settings.
    names = {split: list(names) for split, names in sorted(source.names.items())}
    parts = [VERSION, source.fingerprint, names, *frame.settings()]
    # Only added when set, since older stores have no such part.
    text = json.dumps([*parts, "skips unreadable"] if source.skips_unreadable else parts)
    return digests.of_text(text)[:16]


def _load(
    folder: Path, split: Split, count: int, frame: Frame, source: Source | None, *, whole: bool = False
) -> Images:
    """Map a split of `count` images, or read them from a source if no pixels are stored."""
    pixels: npt.NDArray[np.uint8] | Streamed
    try:
        if source is None:
            # Unlike `np.load`, this opens no archive.
            pixels = np.lib.format.open_memmap(folder / f"{split}.images.npy", mode="r")
            shape = (count, *frame.kept_shape)
        else:
            kept = set(arrays.names(folder, split))
            items = [(split, index) for index, name in enumerate(source.names[split]) if name in kept]
            pixels = Streamed(source, items, frame, whole=whole)
            shape = (count, *(frame.kept_shape if whole else frame.shape))
        with (folder / f"{split}.labels.npy").open("rb") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
        names = arrays.names(folder, split)
        is_whole = pixels.shape == shape and (len(labels), len(names)) == (count, count)
    except _OF_DAMAGED_FILES as error:
        raise _damaged(folder, split) from error
    if not is_whole:
        raise _damaged(folder, split)
    if isinstance(pixels, np.ndarray) and not whole and frame.kept_shape != frame.shape:
        # A view: nothing is read or copied until needed.
        rows, columns = frame.middle
        pixels = pixels[..., rows, columns]
    return Images(pixels=pixels, labels=labels, names=names)


def _damaged(folder: Path, split: str) -> DataError:
    return DataError(f"{folder}: {split} images are missing or damaged; run again to decode them again")


def _ensure(
    folder: Path, source: Source, splits: Sequence[Split], frame: Frame, progress: Progress | None
) -> Summaries:
    """Return the summaries of the splits, decoding them unless the folder is intact."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            keeps_pixels = STREAMED not in folder.name
            known = arrays.intact(folder, splits, frame.channels)
            return known or arrays.build(folder, source, splits, frame, progress, keeps_pixels=keeps_pixels)
    except OSError as error:
        raise DataError(f"{folder.parent}: decoded images cannot be kept there: {error}") from error
