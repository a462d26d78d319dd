"""The elements of a report: sections with text, pictures and tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as an element of a page."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with the content below it."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()
    """Rows of cells, headings first."""

    is_dense: bool = False
    """Whether it has many small pictures, shown side by side if there is room."""


@dataclass
class Sketchbook:
    """Draws the pictures of one page, whose elements need unique names."""

    drawn: Any = field(default_factory=itertools.count)

    def picture(self, figure: Any, caption: str) -> Picture:
        """Return a figure as a picture."""
        from imgcls_search.worker import drawing

        return Picture(svg=drawing.to_svg(figure, f"p{next(self.drawn)}"), caption=caption)
