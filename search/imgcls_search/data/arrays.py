"""The files of one folder of the store: written completely or not at all, with checksums."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from imgcls_search import atomic, digests
from imgcls_search.data import label_sets
from imgcls_search.data.decode import THREADS, blank, decode_in, reason, unlimited_pillow
from imgcls_search.data.image import Frame
from imgcls_search.data.source import Source, Split, advice
from imgcls_search.errors import UNWRITTEN, DataError
from imgcls_search.progress import Progress
from imgcls_search.rounding import size
from imgcls_search.words import some

BATCH = 256


class SplitSummary(TypedDict, total=False):
    """Statistics of a decoded split; stores of earlier versions lack some of them."""

    mean: list[float]
    """Per channel, in 0..1."""

    std: list[float]
    count: int
    class_counts: list[int]
    repeated: int
    """Images that are also training images."""

    repeated_for_example: list[str]
    twins: int
    """Images that are also in another class."""

    twins_for_example: list[str]
    blank: int
    blank_for_example: list[str]
    unreadable: list[str]
    """Images that were left out, each with the reason."""


Summaries = dict[Split, SplitSummary]


def intact(folder: Path, splits: Sequence[Split], channels: int) -> Summaries | None:
    """Return what `build` returned for a folder, None if the folder is missing, incomplete or damaged."""
    try:
        text = (folder / "meta.json").read_bytes()
        meta = digests.unsealed(text) or _of_earlier_version(text)
        sound = all(_checksum(folder / name) == checksum for name, checksum in meta["files"].items())
        summaries: Summaries = meta["facts"]
        fits = set(splits) <= summaries.keys() and all(_is_summary(known, channels) for known in summaries.values())
    except (OSError, *UNWRITTEN):
        return None
    return summaries if sound and fits else None


def names(folder: Path, split: Split) -> tuple[str, ...]:
    """Return the names of the images of a split.

    Raises:
        OSError, and one of `UNWRITTEN`: they are missing, or damaged.
    """
    found = json.loads((folder / f"{split}.names.json").read_bytes())
    if not _are_texts(found):
        raise ValueError("no list of names")
    return tuple(found)


def _of_earlier_version(text: bytes) -> dict[str, Any]:
    """Return a description without a digest.

    Raises:
        ValueError: it has one.
    """
    found: dict[str, Any] = json.loads(text)
    if set(found) != {"files", "facts"}:
        raise ValueError("not what an earlier version wrote")
    return found


def _is_summary(known: Any, channels: int) -> bool:
    moments = [*known["mean"], *known["std"]]
    if len(known["mean"]) != channels or len(moments) != 2 * channels:
        return False
    if not all(type(value) is float and 0 <= value <= 1 for value in moments) or min(known["std"]) <= 0:
        return False
    # Earlier versions lack some.
    counts = [known.get(name, 0) for name in ("count", "repeated", "twins", "blank")]
    if not all(type(count) is int and count >= 0 for count in [*counts, *known.get("class_counts", [])]):
        return False
    examples = [known.get(f"{name}_for_example", []) for name in ("repeated", "twins", "blank")]
    if not all(map(_are_texts, [*examples, known.get("unreadable", [])])):
        return False
    return all(example for count, example in zip(counts[1:], examples, strict=True) if count)


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


def build(
    folder: Path,
    source: Source,
    splits: Sequence[Split],
    frame: Frame,
    progress: Progress | None,
    *,
    keeps_pixels: bool,
) -> Summaries:
    """Decode splits into a folder and return a summary of each; the caller holds the folder's lock.

    Without `keeps_pixels`, the images are only checked, so that damaged ones are found before any training.

    Raises:
        DataError: images cannot be read, or the disk is too small; nothing is kept.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (folder, partial):
        atomic.remove(stale)
    if keeps_pixels:
        _check_space(folder.parent, num_bytes(source, splits, frame))
    try:
        with atomic.replacing(folder, draft=partial):
            partial.mkdir()
            try:
                summaries = _Writer(partial, source, splits, frame, progress, keeps_pixels).write()
            except _UnreadableError as error:
                if not source.skips_unreadable:
                    raise
                # Start over without them: an array's header comes first and states the number of images.
                kept = _without(source, error.found)
                writer = _Writer(partial, kept, splits, frame, progress, keeps_pixels)
                writer.left_out = error.found
                summaries = writer.write()
    except OSError as error:
        raise DataError(f"{folder.parent}: decoded images cannot be written ({error.strerror})") from error
    return summaries


class _UnreadableError(DataError):
    """Some images of a source cannot be read."""

    def __init__(self, message: str, found: Mapping[Split, Mapping[str, str]]) -> None:
        super().__init__(message)
        self.found = found
        """Reasons by split and name."""

    def __reduce__(self) -> tuple[type[DataError], tuple[str]]:
        # Exceptions cross process boundaries; the receiver needs only the text.
        return DataError, (str(self),)


def _without(source: Source, unreadable: Mapping[Split, Mapping[str, str]]) -> Source:
    """Return a source without its unreadable images.

    Raises:
        DataError: no training image of a class is left, or no image of a split.
    """
    kept = source.without(unreadable)
    had, has = (label_sets.count(each.labels["train"], len(source.classes)) for each in (source, kept))
    if empty := [repr(source.classes[number]) for number in np.flatnonzero((had > 0) & (has == 0))]:
        raise DataError(f"{source.place}: no image of class {some(empty)} to train on can be read")
    for split, names in kept.names.items():
        if not names and source.names[split]:
            raise DataError(f"{source.place}: no image in {split} can be read")
    return kept


def num_bytes(source: Source, splits: Sequence[Split], frame: Frame) -> int:
    """Return the size of some splits' decoded images, bytes."""
    return sum(len(source.names[split]) for split in splits) * math.prod(frame.kept_shape)


class _Writer:
    """Decodes splits in order, with threads over images, and collects statistics."""

    def __init__(
        self,
        folder: Path,
        source: Source,
        splits: Sequence[Split],
        frame: Frame,
        progress: Progress | None,
        keeps_pixels: bool,
    ) -> None:
        self.keeps_pixels = keeps_pixels
        self.folder, self.source, self.splits = folder, source, splits
        self.frame = frame
        self.progress = progress or (lambda done, total: None)
        self.done, self.total = 0, sum(len(source.names[split]) for split in splits)
        self.broken: dict[Split, dict[str, str]] = {}
        """Why images cannot be read, by split and name."""
        self.left_out: Mapping[Split, Mapping[str, str]] = {}
        """Unreadable images that were removed from the source, with the reasons."""
        self.checksums: dict[str, int] = {}
        self.seen: dict[bytes, str] = {}
        """Training images by a hash of their pixels."""
        self.fold_of = source.fold_of()
        self.labels: dict[bytes, tuple[str, Any]] = {}
        """The first image with these pixels in any split, and its class or labels."""
        self.blank: dict[str, str] = {}
        """Why images are almost blank, by name."""

    def write(self) -> Summaries:
        with unlimited_pillow(), ThreadPoolExecutor(THREADS) as pool:
            summaries: Summaries = {split: self.write_split(split, pool) for split in self.splits}
        if self.broken:
            broken = [f"{name} ({why})" for found in self.broken.values() for name, why in found.items()]
            raise _UnreadableError(
                f"{self.source.place}: {len(broken)} of {self.total} images cannot be read: "
                f"{some(broken)}{advice(self.source, self.total - len(broken))}",
                self.broken,
            )
        # Written last, so that a folder with this file is complete.
        self.save("meta.json", [digests.sealed({"files": self.checksums, "facts": summaries}).encode()])
        return summaries

    def write_split(self, split: Split, pool: ThreadPoolExecutor) -> SplitSummary:
        histogram = np.zeros((self.frame.channels, 256), dtype=np.int64)
        repeated: list[str] = []
        twins: list[str] = []
        chunks = self.stream(split, pool, histogram, repeated, twins)
        if self.keeps_pixels:
            self.save(f"{split}.images.npy", chunks)
        else:
            deque(chunks, maxlen=0)
        self.save(f"{split}.labels.npy", [_npy(self.source.labels[split])])
        self.save(f"{split}.names.json", [json.dumps(self.source.names[split]).encode()])
        blank = [f"{name} ({self.blank[name]})" for name in self.source.names[split] if name in self.blank]
        mean, std = _moments(histogram)
        return {
            "mean": mean,
            "std": std,
            "count": len(self.source.names[split]),
            "class_counts": label_sets.count(self.source.labels[split], len(self.source.classes)).tolist(),
            "repeated": len(repeated),
            "repeated_for_example": repeated[:1],
            "twins": len(twins),
            "twins_for_example": twins[:1],
            "blank": len(blank),
            "blank_for_example": blank[:1],
            "unreadable": [f"{name} ({why})" for name, why in self.left_out.get(split, {}).items()],
        }

    def stream(
        self,
        split: Split,
        pool: ThreadPoolExecutor,
        histogram: npt.NDArray[np.int64],
        repeated: list[str],
        twins: list[str],
    ) -> Iterator[bytes]:
        """Yield the bytes of an .npy file of uint8 [N, channels, height, width].

        Pixel values are counted [channels, 256]; images that also are in train, or in another class, are noted with the
        name of their copy.
        """
        # Sequential writes instead of a memory map: a full disk then raises an error, not a SIGBUS.
        count = len(self.source.names[split])
        yield _npy_header((count, *self.frame.kept_shape))
        for start in range(0, count, BATCH):
            rows = list(pool.map(lambda index: self.decode(split, index), range(start, min(start + BATCH, count))))
            self.done += len(rows)
            self.progress(self.done, self.total)
            for name, row in zip(self.source.names[split][start:], rows, strict=False):
                if isinstance(row, str):
                    self.broken.setdefault(split, {})[name] = row
            if not self.broken:
                batch = np.stack([row for row in rows if not isinstance(row, str)])
                for channel, counts in enumerate(histogram):
                    counts += np.bincount(batch[:, channel].ravel(), minlength=256)
                labels = self.source.labels[split][start : start + len(batch)].tolist()
                for name, label, pixels in zip(self.source.names[split][start:], labels, batch, strict=False):
                    digest = hashlib.blake2b(pixels.tobytes(), digest_size=12).digest()
                    self.look_up(split, name, digest, repeated)
                    # Blank images have equal pixels without being copies; they are counted as blank.
                    first, other = self.labels.setdefault(digest, (name, label))
                    if other != label and name not in self.blank:
                        twins.append(f"{name} = {first}")
                yield batch.tobytes()

    def look_up(self, split: Split, name: str, digest: bytes, repeated: list[str]) -> None:
        if split == "train" and not self.fold_of:
            self.seen.setdefault(digest, name)
        elif split == "train" or self.fold_of:
            # A copy in another fold is a training image when this fold is scored.
            first = self.seen.setdefault(digest, name)
            if self.fold_of.get(first) != self.fold_of.get(name):
                repeated.append(f"{name} = {first}")
        elif digest in self.seen:
            repeated.append(f"{name} = {self.seen[digest]}")

    def decode(self, split: Split, index: int) -> npt.NDArray[np.uint8] | str:
        """Return the pixels of an image, or why it cannot be read."""
        try:
            with self.source.read(split, index) as image:
                mode = image.mode
                pixels = decode_in(self.frame, image)
        # Pillow raises almost anything for damaged files: OSError, SyntaxError, struct.error, IndexError.
        except Exception as error:
            return reason(error)
        if (why := blank(pixels, mode)) is not None:
            self.blank[self.source.names[split][index]] = why
        return pixels

    def save(self, name: str, chunks: Iterable[bytes]) -> None:
        checksum = 0
        with (self.folder / name).open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                checksum = zlib.crc32(chunk, checksum)
        self.checksums[name] = checksum


def _moments(histogram: npt.NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and std, in 0..1, from a histogram of values [channels, 256]."""
    share = histogram / np.maximum(histogram.sum(axis=1, keepdims=True), 1)
    levels = np.arange(256) / 255
    mean = share @ levels
    # The std of images of one colour is 0; at least one level keeps the division harmless.
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, (1 / 255) ** 2))
    return mean.tolist(), std.tolist()


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _check_space(cache: Path, needed: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise DataError(f"{cache}: decoded images need {size(needed)}, but only {size(free)} are free")
