"""What a report is made of: sections with a text and pictures, drawn when they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a page, as an element of it."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()
    """Rows of cells, the headings first."""

    is_dense: bool = False
    """Many small pictures, side by side where there is room."""


@dataclass
class Sketchbook:
    """Draws the pictures of one page, whose elements all need names of their own."""

    drawn: Any = field(default_factory=itertools.count)

    def picture(self, figure: Any, caption: str) -> Picture:
        """Return a figure as a picture."""
        from imgcls_search.worker import drawing

        return Picture(svg=drawing.to_svg(figure, f"p{next(self.drawn)}"), caption=caption)
