"""A written report that a notebook can show."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from imgcls_search.api.frames import card

LARGEST_SHOWN = 8_000_000
"""Size limit in bytes for pages that a notebook shows; for larger ones it shows the path."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report page of a study."""

    path: Path
    study: str

    @property
    def html(self) -> str:
        """The HTML of the page."""
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        size = self.path.stat().st_size if self.path.is_file() else None
        if size is None:
            return card(f"Report of {self.study}", [f"{self.path}: the file is gone"])
        head = card(f"Report of {self.study}", [f"{self.path} ({size / 1e6:.1f} MB)"])
        if size > LARGEST_SHOWN:
            return head
        # Sandboxed: the page cannot run scripts, and its text cannot leave the frame. It has its own colours.
        page = html.escape(self.html, quote=True)
        return f'{head}<iframe sandbox srcdoc="{page}" style="width: 100%; height: 640px; border: 0"></iframe>'
