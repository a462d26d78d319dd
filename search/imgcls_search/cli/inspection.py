"""Print the findings of `inspect`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_search.cli.output import echo, print_table, warn
from imgcls_search.rounding import share
from imgcls_search.words import counted, some

if TYPE_CHECKING:
    from imgcls_search.jobs.inspect.clean_table import CleanTable
    from imgcls_search.jobs.inspect.findings import Copies, Inspection

SHOWN = 10
"""Suspects, sets of copies and unreadable images to print; --json and the page have more."""

MOST_CLASSES = 40
"""Classes to print: of more, the largest and the smallest."""

WEAK = 0.9
"""If a model agrees with a smaller share of the labels, only its first suspects are reliable."""

KINDS = {
    "file": "equal files",
    "pixels": "equal pixels, other files",
    "near": "near-copies",
}


def show_inspection(found: Inspection) -> None:
    """Print the findings of an inspection."""
    _show_counts(found)
    _show_files(found)
    _show_copies(found)
    _show_labels(found)


def _show_counts(found: Inspection) -> None:
    splits = list(found.classes[0].by_split)
    echo(f"{found.place}: {counted('image', found.images)}, {counted('class', len(found.classes))}")
    if found.uncut is not None:
        warn(f"cannot be cut into train, val and test: {found.uncut}")
    names = [split or "uncut" for split in splits]
    classes = found.extreme_classes(MOST_CLASSES)
    rows = [(entry.name, f"{entry.total:,}", *(f"{entry.by_split[s]:,}" for s in splits)) for entry in classes]
    total = ("all", f"{found.images:,}", *(f"{sum(entry.by_split[s] for entry in found.classes):,}" for s in splits))
    if len(classes) < len(found.classes):
        echo(f"{len(classes)} of {len(found.classes):,} classes, the largest and the smallest; --json has all:")
    print_table(("class", "images", *names), [*rows, total])
    if len(found.classes) > 1:
        totals = {entry.total for entry in found.classes}
        if len(totals) == 1:
            echo(f"{counted('image', totals.pop())} of each class")
        else:
            echo(f"imbalance: the largest class has {found.imbalance:,.3g} times the images of the smallest")
    if found.groups is not None:
        echo(f"groups: {found.groups:,}")


def _show_files(found: Inspection) -> None:
    from imgcls_search.data import describe_left_out

    if (sizes := found.sizes) is not None:
        small, median, large = (f"{width}x{height}" for width, height in (sizes.smallest, sizes.median, sizes.largest))
        low, middle, high = sizes.aspect
        if low == high and small == large:
            echo(f"sizes: all {median}")
        else:
            echo(
                f"sizes: smallest {small} ({sizes.smallest_name}), median {median}, "
                f"largest {large} ({sizes.largest_name})"
            )
            echo(f"width / height: {low:.2f} to {high:.2f}, median {middle:.2f}")
    for name, counts in (("formats", found.formats), ("channels", found.kinds)):
        if counts:
            echo(f"{name}: {', '.join(f'{key} {count:,}' for key, count in counts.items())}")
    if found.transparent:
        echo(f"with an alpha channel: {found.transparent:,}")
    if found.turned:
        echo(f"turned or mirrored by EXIF: {found.turned:,}")
    if found.flat:
        echo(f"almost one colour: {len(found.flat):,}, for example {found.flat[0].name}")
    if found.unreadable:
        echo(f"cannot be read: {len(found.unreadable):,}")
        for entry in found.unreadable[:SHOWN]:
            echo(f"  {entry.image.name}: {entry.reason}")
        _more(len(found.unreadable))
    if found.left_out:
        echo(f"not counted: {describe_left_out(found.left_out)}")
    for note in found.notes:
        echo(f"note: {note}")


def _show_copies(found: Inspection) -> None:
    if not found.copies:
        echo("no copies")
        return
    rows = [
        (
            KINDS[kind],
            *(
                f"{count:,}"
                for count in (
                    entry.sets,
                    entry.images,
                    entry.within_class,
                    entry.across_classes,
                    entry.across_splits,
                    entry.across_test,
                )
            ),
        )
        for kind, entry in found.copy_counts.items()
        if entry.sets
    ]
    print_table(("copies", "sets", "images", "within a class", "across classes", "across splits", "with test"), rows)
    worst = sorted(found.copies, key=lambda each: (not each.across_classes, not each.touches_test, each.kind == "near"))
    for each in worst[:SHOWN]:
        echo(f"  {KINDS[each.kind]}: {_named(each)}")
    _more(len(worst))
    if found.copies_cut:
        echo("note: very many images look alike; not all pairs of them were compared")


def _named(copies: Copies) -> str:
    shown = [f"{image.name} ({image.label}{', ' if image.split else ''}{image.split})" for image in copies.images[:4]]
    more = f" and {len(copies.images) - 4:,} more" if len(copies.images) > 4 else ""
    return " = ".join(shown) + more if copies.kind != "near" else " ~ ".join(shown) + more


def _show_labels(found: Inspection) -> None:
    judged = found.judgement
    if judged is None:
        echo(f"labels are not judged: {found.not_judged}")
        return
    without = "" if judged.with_test or found.uncut is not None else "; the test split stays sealed"
    echo(
        f"labels of {judged.images:,} images, judged by {judged.by} in {judged.folds} folds{without}: "
        f"{share(judged.agreement, judged.images)} agree, {len(judged.suspects):,} are suspicious"
        + (" (a weak model suspects too many: look at the first ones)" if judged.agreement < WEAK else "")
    )
    if judged.left_out:
        echo(f"too few images to be judged: {some([repr(name) for name in judged.left_out])}")
    rows = [
        (each.image.name, each.image.label, each.likely, f"{each.confidence:.2f}", f"{each.given:.2f}")
        for each in judged.suspects[:SHOWN]
    ]
    if rows:
        print_table(("suspicious", "given label", "likely label", "p(likely)", "p(given)"), rows)
        _more(len(judged.suspects))


def _more(count: int) -> None:
    if count > SHOWN:
        echo(f"  and {count - SHOWN:,} more; the page and --json have them")


def show_table(table: CleanTable, path: Path) -> None:
    """Print the number of images in a clean table, and those left out."""
    left = "; ".join(f"{count:,} x {reason} ({table.examples[reason]})" for reason, count in table.left_out.items())
    suspects = f", {table.marked:,} of them marked as suspicious" if table.marked else ""
    suspects += f", {table.relabelled:,} with the likely label" if table.relabelled else ""
    echo(f"wrote {path}: {table.rows:,} images{suspects}; left out: {left or 'none'}")
    if table.empty_classes:
        warn(f"{path}: no image of class {some([repr(name) for name in table.empty_classes])} is left")
    settings = "".join(f" --set {setting}" for setting in table.settings)
    echo(f"use it with: --data {shlex.quote(table.data)}{settings}")
