"""The store of decoded images: every image is decoded once, then read from memory-mapped arrays."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.config import Component
from imgcls_search.data import arrays, fingerprint, label_sets
from imgcls_search.data.arrays import Progress, Summaries
from imgcls_search.data.decode import unreadable
from imgcls_search.data.fingerprint import Prints
from imgcls_search.data.image import Fill, Fit, Frame
from imgcls_search.data.prepared import Images, Prepared
from imgcls_search.data.source import Source, Split
from imgcls_search.data.stream import Streamed
from imgcls_search.errors import BuildError, DataError, writing
from imgcls_search.image_size import ImageSize, normal, sides

READABLE = "-test-is-readable"
"""Ends the names of empty files that say so of the test split."""

STREAMED = "-streamed"
"""Ends the names of folders that hold names and labels but no pixels."""

VERSION = 1
"""Part of every key: raise it when `decode` gives other pixels or the files another layout."""


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
    """Decode train and val into arrays below `cache`, once for all processes; the test split stays closed.

    If everything there would become larger than `most_bytes`, the images are looked at and not kept; workers
    then read them again from `origin`, the component that the source was built from.

    Raises:
        BuildError: a size or a number of channels that images cannot have.
        DataError: images that cannot be read, or a cache that cannot be written.
    """
    if min(sides(image_size)) < 1:
        raise BuildError("image.size", f"{image_size} is not allowed; allowed: int >= 1")
    if channels not in (1, 3):
        raise BuildError("image.channels", f"{channels} is not allowed; allowed: 1, 3")
    frame = Frame(size=normal(image_size), channels=channels, fit=fit, fill=fill, margin=margin)
    folder = cache.expanduser().resolve() / _seen_key(source, frame)
    needed = arrays.num_bytes(source, ("train", "val"), frame)
    is_streamed = not folder.exists() and needed + sum(stored(folder.parent).values()) > most_bytes
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
    """Return the sizes of a source's folds without the images that could not be read.

    Raises:
        DataError: none of a fold can be read.
    """
    if not source.folds:
        return ()
    splits: list[Split] = ["train", "val"]
    kept = {split: set(json.loads((folder / f"{split}.names.json").read_bytes())) for split in splits}
    sizes = source.without({split: set(source.names[split]) - kept[split] for split in splits}).folds
    if 0 in sizes:
        raise DataError(f"{source.place}: no image in fold {sizes.index(0) + 1} can be read")
    return sizes


def _first(examples: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the first example of all splits, if there is one."""
    return tuple(name for names in examples for name in names)[:1]


def stored(cache: Path) -> dict[Path, int]:
    """Return the folders of decoded images below `cache` with their sizes in bytes."""
    folders = sorted(path for path in cache.glob("*") if path.is_dir())
    return {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}


def remove(folder: Path) -> None:
    """Delete a folder of decoded images; a process that reads it continues, the next one decodes again.

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
    """Map a prepared split; `whole` images have their margin, to be cut from.

    Raises:
        DataError: the store is gone or damaged.
    """
    count = prepared.counts[split]
    source = _streaming_source(prepared)
    return _load(Path(prepared.folder), split, count, prepared.frame, source, whole=whole)


def open_test(source: Source, prepared: Prepared, progress: Progress | None = None) -> Images:
    """Break the seal: decode the test split of the data that `prepared` was made of, or map it if that was done.

    A test split that the data comes with is taken as it is now.

    Raises:
        DataError: `source` is other data or other splits than `prepared`, or has images that cannot be read.
    """
    _must_be(source, prepared)
    frame = prepared.frame
    sealed = Path(prepared.folder).with_name(f"{_key(source, frame)}-test")
    summaries = _ensure(sealed, source, ("test",), frame, progress)
    # How many of them can be read is known only now.
    count = summaries["test"].get("count", len(source.names["test"]))
    reader = source if prepared.streamed_from is not None else None
    return _load(sealed, "test", count, frame, reader)


def open_all(
    source: Source,
    *,
    frame: Frame,
    cache: Path,
    most_bytes: float = math.inf,
    progress: Progress | None = None,
) -> list[Images]:
    """Decode the images of all splits, also of the sealed one, and return the splits that have any.

    Where all that is kept below `cache` would become larger than `most_bytes`, they are decoded where they are read.

    Raises:
        DataError: images that cannot be read, or a cache that cannot be written.
    """
    splits: list[Split] = [split for split in ("train", "val", "test") if source.names[split]]
    folder, summaries, reader = _keep_all(source, splits, frame, cache, most_bytes, progress)
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
    """Decode images that are no part of a labelled data set, all of them in `train`, as `open_all` does.

    Return also those that were left out since they cannot be read, each with the reason. `whole` images have their
    margin, to be cut from.

    Raises:
        DataError: images that cannot be read, or a cache that cannot be written.
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
    """Return the folder of some splits, what is known of them, and the source where no pixels are kept."""
    folder = cache.expanduser().resolve() / f"{_key(source, frame)}-all"
    needed = arrays.num_bytes(source, splits, frame)
    is_streamed = not folder.exists() and needed + sum(stored(folder.parent).values()) > most_bytes
    if is_streamed:
        folder = folder.with_name(f"{folder.name}{STREAMED}")
    return folder, _ensure(folder, source, splits, frame, progress), source if is_streamed else None


def look_at_test(source: Source, prepared: Prepared, progress: Progress | None = None) -> list[str]:
    """See once that the files of the test split can be read; nothing of them is kept, and the split stays sealed.

    Returns those that will be left out since they cannot be read, each with the reason.

    Raises:
        DataError: some cannot; they are named.
    """
    key = _key(source, prepared.frame)
    mark = Path(prepared.folder).with_name(f"{key}{READABLE}")
    if (known := _read_mark(mark)) is not None:
        return known
    broken = unreadable(source, "test", prepared.frame, progress)
    if broken and not source.skips_unreadable:
        shown = ", ".join(broken[: arrays.SHOWN])
        more = f" and {len(broken) - arrays.SHOWN} more" if len(broken) > arrays.SHOWN else ""
        is_cut = source.prints.seen == source.prints.whole
        when = " before the search, which remembers what images it had" if is_cut else ""
        raise DataError(
            f"{source.place}: {len(broken)} of {len(source.names['test'])} test images cannot be read: {shown}{more}; "
            f"fix or remove them{when}"
        )
    with writing(mark, DataError):
        atomic.write_text(mark, json.dumps(broken))
    return broken


def _read_mark(mark: Path) -> list[str] | None:
    """Return what a look at the test files found; None where there was none, or it cannot be read."""
    try:
        text = mark.read_text()
        # The first ones were empty files.
        found = json.loads(text) if text else []
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None


def _streaming_source(prepared: Prepared) -> Source | None:
    if prepared.streamed_from is None:
        return None
    with fingerprint.remembering(Path(prepared.folder).parent):
        source = _described(json.dumps(prepared.streamed_from))
    _must_be(source, prepared)
    return source


@lru_cache(maxsize=1)
def _described(component: str) -> Source:
    # A worker asks with each job; looking through a large folder takes seconds.
    from imgcls_search.data import describe

    found = json.loads(component)
    return describe(Component(path=f"data.{found['name']}", **found))


def _must_be(source: Source, prepared: Prepared) -> None:
    if _seen_key(source, prepared.frame) != Path(prepared.folder).name.removesuffix(STREAMED):
        raise DataError(f"{source.place}: not the data that was prepared: images or splits have changed since")


def _seen_key(source: Source, frame: Frame) -> str:
    """Return the name of a store that a test split which the data comes with has no part in."""
    if source.prints.seen == source.prints.whole:
        return _key(source, frame)
    kept = replace(
        source,
        names={split: names for split, names in source.names.items() if split != "test"},
        make_prints=lambda: Prints(whole=source.prints.seen),
    )
    return _key(kept, frame)


def _key(source: Source, frame: Frame) -> str:
    # The names in the splits stand for the settings of the cuts.
    names = {split: list(names) for split, names in sorted(source.names.items())}
    parts = [VERSION, source.fingerprint, names, *frame.settings()]
    # Only where it is so, since stores of before have no such part.
    text = json.dumps([*parts, "skips unreadable"] if source.skips_unreadable else parts)
    return digests.of_text(text)[:16]


def _load(
    folder: Path, split: Split, count: int, frame: Frame, source: Source | None, *, whole: bool = False
) -> Images:
    """Map a split of `count` images, or read them from a source where no pixels are kept."""
    pixels: npt.NDArray[np.uint8] | Streamed
    try:
        if source is None:
            pixels = np.load(folder / f"{split}.images.npy", mmap_mode="r")
            shape = (count, *frame.kept_shape)
        else:
            kept = set(json.loads((folder / f"{split}.names.json").read_bytes()))
            items = [(split, index) for index, name in enumerate(source.names[split]) if name in kept]
            pixels = Streamed(source, items, frame, whole=whole)
            shape = (count, *(frame.kept_shape if whole else frame.shape))
        labels = np.load(folder / f"{split}.labels.npy")
        names = tuple(json.loads((folder / f"{split}.names.json").read_bytes()))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder}: {split} images are missing or damaged; run again to decode them again") from error
    if pixels.shape != shape or (len(labels), len(names)) != (count, count):
        raise DataError(f"{folder}: {split} images are damaged; run again to decode them again")
    if isinstance(pixels, np.ndarray) and not whole and frame.kept_shape != frame.shape:
        # A view: nothing is read or copied before it is needed.
        rows, columns = frame.middle
        pixels = pixels[..., rows, columns]
    return Images(pixels=pixels, labels=labels, names=names)


def _ensure(
    folder: Path, source: Source, splits: Sequence[Split], frame: Frame, progress: Progress | None
) -> Summaries:
    """Return what is known of the splits' pixels, decoding them unless the folder holds them unharmed."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            keeps_pixels = STREAMED not in folder.name
            known = arrays.intact(folder)
            if known is not None and not _fits(known, splits, frame.channels):
                known = None
            return known or arrays.build(folder, source, splits, frame, progress, keeps_pixels=keeps_pixels)
    except OSError as error:
        raise DataError(f"{folder.parent}: decoded images cannot be kept there: {error}") from error


def _fits(summaries: Summaries, splits: Sequence[Split], channels: int) -> bool:
    """Tell whether they are as `build` returns them: no checksum covers them, and they can be made again."""
    try:
        for split in splits:
            known = summaries[split]
            moments = [*known["mean"], *known["std"]]
            if len(known["mean"]) != channels or len(moments) != 2 * channels:
                return False
            if not all(type(value) is float and 0 <= value <= 1 for value in moments) or min(known["std"]) <= 0:
                return False
            examples = known.get("repeated_for_example", [])
            if type(known.get("repeated", 0)) is not int or not all(isinstance(name, str) for name in examples):
                return False
            if known.get("repeated", 0) and not examples:
                return False
    except (KeyError, TypeError, AttributeError):
        return False
    return True
