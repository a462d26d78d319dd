"""Write an inspection as one page with pictures that needs neither a network nor scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from imgcls_search import atomic
from imgcls_search.data import describe_left_out
from imgcls_search.data.decode import unlimited_pillow, upright_rgb
from imgcls_search.data.inventory import Inventory
from imgcls_search.errors import UserError, writing
from imgcls_search.jobs.inspect.findings import Copies, ImageRef, Inspection
from imgcls_search.rounding import share
from imgcls_search.space.study_section import slug
from imgcls_search.terminal import shown

MOST_SUSPECTS, MOST_SETS, MOST_IN_SET, MOST_ROWS = 120, 60, 4, 200
"""Most suspects, sets of copies, images in a set, and rows of classes and other lists on a page."""

SIDE = 112
"""Pixels of the longer side of a picture."""

KINDS = {"file": "equal files", "pixels": "equal pixels", "near": "near-copies"}


def default_page(images: Inventory) -> Path | None:
    """Return the default page: in the working folder, None if it would be among the images there."""
    page = Path(f"inspect-{slug(images.name) or 'images'}.html")
    return None if _is_among(images, page) else page


def check_page(images: Inventory, page: Path) -> None:
    """Refuse a page that cannot be written, or that would be among the images.

    Raises:
        UserError: the path is not allowed or cannot be written.
    """
    if _is_among(images, page):
        raise UserError(f"-o {page}: is in a folder of the images; allowed: a file anywhere else")
    if page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"-o {page}: not a page by its name; allowed: a name that ends in .html")
    with writing(page):
        atomic.check_writable(page)


def write_page(found: Inspection, page: Path) -> int:
    """Write the page, completely or not at all, and return its size in bytes.

    Raises:
        UserError: it cannot be written.
    """
    text = (Path(__file__).parent / "inspection.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(share=share)
    environment.filters["shown"] = shown
    with unlimited_pillow():
        values = _values(found)
    with writing(page):
        atomic.write_text(page, environment.from_string(text).render(values))
    return page.stat().st_size


def _is_among(images: Inventory, page: Path) -> bool:
    if images.root is None:
        return False
    here = page.absolute().parent.resolve()
    if images.place.startswith("data.table"):
        # A table's folder is often the working folder, with the images in folders below it.
        return any(here == (images.root / name).parent for name in images.names)
    return here.is_relative_to(images.root)


def _values(found: Inspection) -> dict[str, Any]:
    splits = list(found.classes[0].by_split)
    order = sorted(found.copies, key=lambda each: (not each.across_classes, not each.touches_test, each.kind == "near"))
    judged = found.judgement
    most = max(entry.total for entry in found.classes)
    suspects = judged.suspects[:MOST_SUSPECTS] if judged is not None else ()
    return {
        "found": found,
        "judged": judged,
        "splits": [split or "uncut" for split in splits],
        "classes": [
            (entry.name, entry.total, [entry.by_split[split] for split in splits], round(100 * entry.total / most, 1))
            for entry in found.extreme_classes(MOST_ROWS)
        ],
        "more_classes": max(0, len(found.classes) - MOST_ROWS),
        "properties": list(_properties(found)),
        "bars": _bars(found),
        "kinds": KINDS,
        "left_out": describe_left_out(found.left_out),
        "unreadable": found.unreadable[:MOST_ROWS],
        "flat": found.flat[:MOST_ROWS],
        "sets": [_shown_copies(found.inventory, each) for each in order[:MOST_SETS]],
        "more_sets": max(0, len(order) - MOST_SETS),
        "suspects": [(each, _picture(found.inventory, each.image)) for each in suspects],
        "more_suspects": max(0, len(judged.suspects) - MOST_SUSPECTS) if judged is not None else 0,
    }


def _properties(found: Inspection) -> Sequence[tuple[str, str]]:
    properties = []
    if (sizes := found.sizes) is not None:
        for name, (width, height) in (
            ("smallest", sizes.smallest),
            ("median size", sizes.median),
            ("largest", sizes.largest),
        ):
            properties.append((name, f"{width} × {height}"))
        properties.append(("width / height", f"{sizes.aspect[0]:.2f} to {sizes.aspect[2]:.2f}"))
    for name, counts in (("formats", found.formats), ("channels", found.kinds)):
        properties.append((name, ", ".join(f"{key} {count:,}" for key, count in counts.items()) or "–"))
    for name, count in (("with an alpha channel", found.transparent), ("turned by EXIF", found.turned)):
        properties.append((name, f"{count:,}"))
    return properties


def _bars(found: Inspection) -> list[tuple[float, float, str]]:
    """Return position and height (both in percent) and title of each bar of the histogram of sizes."""
    if found.sizes is None:
        return []
    bins = found.sizes.histogram
    most = max(count for _, _, count in bins)
    return [
        (100 * place / len(bins), 100 * count / most, f"{low:.0f} to {high:.0f} pixels: {count:,}")
        for place, (low, high, count) in enumerate(bins)
    ]


@dataclass(frozen=True, kw_only=True)
class _ShownCopies:
    """A set of copies for the page."""

    kind: str
    across_classes: bool
    across_splits: bool
    touches_test: bool
    images: list[tuple[ImageRef, str]]
    """Images with their pictures."""

    more: int
    """Number of images that are not shown."""


def _shown_copies(images: Inventory, copies: Copies) -> _ShownCopies:
    return _ShownCopies(
        kind=KINDS[copies.kind],
        across_classes=copies.across_classes,
        across_splits=copies.across_splits,
        touches_test=copies.touches_test,
        images=[(image, _picture(images, image)) for image in copies.images[:MOST_IN_SET]],
        more=max(0, len(copies.images) - MOST_IN_SET),
    )


def _picture(images: Inventory, image: ImageRef) -> str:
    """Return an image as a data URI of a small JPEG file, an empty string if it can no longer be read."""
    from PIL import Image

    try:
        with images.read(image.number) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            small = upright_rgb(opened)
            if max(small.size) <= SIDE // 2:
                factor = SIDE // max(small.size)
                small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
            else:
                small = small.copy()
                small.thumbnail((SIDE, SIDE))
    # It was readable before, so it has changed or was deleted meanwhile; its name is still shown.
    except Exception:
        return ""
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
