"""Write a table of the images worth training on: without unreadable images and exact copies."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imgcls_search import atomic
from imgcls_search.errors import UserError, writing
from imgcls_search.jobs.inspect.findings import Copies, ImageRef, Inspection, Suspect

SuspectRule = Literal["mark", "relabel", "drop"]

CONFIDENCE = 0.8
"""Drop or relabel an image only if its likely label has this probability: a weak model suspects too many."""

HELD_OUT_FIRST = {"test": 0, "val": 1, "train": 2, "": 3}
"""Of exact copies, the one in the most held-out split stays: the test split stays complete, and no copy of a test
image is trained on."""

COPY, CONFLICT, UNREAD, DROPPED, NAME = (
    "exact copy of an image that stays",
    "exact copies with different labels",
    "cannot be read",
    "suspicious label (--suspects drop)",
    "name that a table cannot hold",
)


@dataclass(frozen=True, kw_only=True)
class CleanTable:
    """Counts of the images that were written and left out."""

    rows: int
    marked: int
    """Suspects in the table with their given label."""

    relabelled: int
    left_out: Mapping[str, int]
    """Number of images by reason."""

    examples: Mapping[str, str]
    """An image for each reason."""

    empty_classes: tuple[str, ...]
    """Classes with no image in the table."""

    data: str
    """Value for `--data`."""

    settings: tuple[str, ...]
    """Values for `--set` that keep splits and groups unchanged."""


def check_target(found_in: Path | None, target: Path, *, force: bool, read: Path | None = None) -> None:
    """Refuse a table that cannot be written, before any work is done for it; `read` is the table of the images, if any.

    Raises:
        UserError: it exists, is not a .csv file, cannot be written, or is the table that was read; or the images are
        not files.
    """
    if found_in is None:
        raise UserError(f"--write {target}: needs images that are files; these are parts of larger files")
    if target.suffix.lower() != ".csv":
        raise UserError(f"--write {target}: not a table by its name; allowed: a name that ends in .csv")
    if read is not None and target.resolve() == read.resolve():
        # Its other columns, and the rows that are left out, would be lost.
        raise UserError(f"--write {target}: is the table of the images itself; allowed: another file")
    if target.exists() and not force:
        raise UserError(f"--write {target}: is there already; --force replaces it")
    with writing(target):
        atomic.check_writable(target)


def write_clean(found: Inspection, target: Path, suspects: SuspectRule, confidence: float = CONFIDENCE) -> CleanTable:
    """Write the table, completely or not at all.

    Suspects whose likely label has a probability below `confidence` are only marked, whatever the rule.

    Raises:
        UserError: it cannot be written, or no image is left to write.
    """
    images = found.inventory
    assert images.root is not None, "who writes a table has checked that there are files"
    why = _left_out(found, suspects, confidence)
    judged: Mapping[int, Suspect] = {
        suspect.image.number: suspect for suspect in (found.judgement.suspects if found.judgement else ())
    }
    prefix, root = _prefix(images.root, target)
    # An empty cell is cut, as it was before.
    has_splits = any(images.splits)
    near = {ref.number: place for place, each in enumerate(_near(found), start=1) for ref in each.images}
    header = ["image", "label", *(["split"] if has_splits else []), *(["group"] if images.groups else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, "given_label", "likely_label", "confidence", "near_copies"])
    left: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kept: set[str] = set()
    rows = marked = relabelled = 0
    for number, name in enumerate(images.names):
        given = images.classes[images.labels[number]]
        suspect = judged.get(number)
        is_changed = suspect is not None and suspects == "relabel" and suspect.confidence >= confidence
        label = suspect.likely if suspect is not None and is_changed else given
        cells = [f"{prefix}{name}", label]
        cells += [images.splits[number]] if has_splits else []
        cells += [images.groups[number]] if images.groups else []
        reason = why.get(number) or (None if all(map(_fits, cells)) else NAME)
        if reason is not None:
            left[reason] += 1
            examples.setdefault(reason, name)
            continue
        likely = [suspect.likely, f"{suspect.confidence:.4f}"] if suspect is not None else ["", ""]
        writer.writerow([*cells, given if is_changed else "", *likely, near.get(number, "")])
        kept.add(label)
        rows += 1
        relabelled += is_changed
        marked += suspect is not None and not is_changed
    if not rows:
        raise UserError(f"--write {target}: no image is left to be written")
    with writing(target):
        atomic.write_text(target, text.getvalue())
    return CleanTable(
        rows=rows,
        marked=marked,
        relabelled=relabelled,
        left_out=dict(left.most_common()),
        examples=examples,
        empty_classes=tuple(entry.name for entry in found.classes if entry.name not in kept),
        data=f"table:{target}" + (f":{root}" if root is not None else ""),
        settings=(
            *(["data.table.split=split"] if has_splits else []),
            *(["data.table.group=group"] if images.groups else []),
        ),
    )


def _left_out(found: Inspection, suspects: SuspectRule, confidence: float) -> dict[int, str]:
    """Return why images are not in the table, by number."""
    why = {entry.image.number: UNREAD for entry in found.unreadable}
    if suspects == "drop" and found.judgement is not None:
        sure = [suspect for suspect in found.judgement.suspects if suspect.confidence >= confidence]
        why |= {suspect.image.number: DROPPED for suspect in sure}
    for copies in _exact(found):
        free = [image for image in copies if image.split != "test"]
        sealed = [image for image in copies if image.split == "test"]
        # Labels of the test split decide nothing: its first copy always stays.
        if not sealed and len({image.label for image in free}) > 1:
            why |= {image.number: CONFLICT for image in free}
            continue
        _, *others = sorted(copies, key=lambda image: (HELD_OUT_FIRST[image.split], image.number))
        why |= {image.number: COPY for image in others}
    return why


def _exact(found: Inspection) -> list[list[ImageRef]]:
    """Return the sets of exact copies; sets of equal files are merged with those of equal pixels."""
    groups: dict[int, dict[int, ImageRef]] = {}
    for copies in found.copies:
        if copies.kind == "near":
            continue
        joined = {image.number: image for image in copies.images}
        for image in copies.images:
            joined |= groups.get(image.number, {})
        for number in joined:
            groups[number] = joined
    unique = {id(group): group for group in groups.values()}
    return [list(group.values()) for group in unique.values()]


def _near(found: Inspection) -> list[Copies]:
    return [copies for copies in found.copies if copies.kind == "near"]


def _prefix(root: Path, target: Path) -> tuple[str, Path | None]:
    """Return the prefix of each name, and the root to read the table with, None for its folder."""
    here = target.absolute().parent.resolve()
    if root == here:
        return "", None
    if root.is_relative_to(here):
        return f"{root.relative_to(here).as_posix()}/", None
    return "", Path(os.path.relpath(root)) if root.is_relative_to(Path.cwd()) else root


def _fits(cell: str) -> bool:
    """Tell whether a table returns a cell unchanged: it is UTF-8 without NUL, and has no space at its ends."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return cell == cell.strip() and "\0" not in cell
