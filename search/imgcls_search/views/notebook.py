"""Show progress in a notebook: one output below the cell that is redrawn, without widgets or scripts."""

from __future__ import annotations

import html
import importlib
import io
import sys
import time
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, TaskID

REDRAW_SECONDS = 0.5
"""Least time between redraws: each is a message to the browser."""

COLUMNS = 110


def is_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook, which displays output in a browser."""
    library: Any = sys.modules.get("IPython")
    shell = None if library is None else library.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class NotebookConsole(Console):
    """Prints lines below the cell as text."""

    def __init__(self) -> None:
        """Write to the output of the cell."""
        super().__init__(
            file=sys.stdout, force_jupyter=False, force_terminal=False, soft_wrap=True, highlight=False, width=COLUMNS
        )


class NotebookLive:
    """Replaces rich's live display in a notebook; its output is cleared at the end."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self.handle: Any = None
        self.latest: RenderableType = ""
        self.drawn_at = -REDRAW_SECONDS

    def start(self) -> None:
        """Create an output below the cell."""
        library = _library()
        self.handle = library.display(library.HTML(""), display_id=True)

    def stop(self) -> None:
        """Clear the output."""
        if self.handle is not None:
            self.handle.update(_library().HTML(""))

    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None:
        """Draw new content, now or soon."""
        self.latest = renderable
        now = time.monotonic()
        if self.handle is None or (now - self.drawn_at < REDRAW_SECONDS and not refresh):
            return
        self.drawn_at = now
        self.handle.update(_library().HTML(f"<pre>{html.escape(as_text(renderable))}</pre>"))


def _library() -> Any:
    # The kernel of a notebook has this package; nothing else needs it.
    return importlib.import_module("IPython.display")


def as_text(renderable: RenderableType) -> str:
    """Render with rich as plain text."""
    text = io.StringIO()
    Console(file=text, force_terminal=False, force_jupyter=False, width=COLUMNS).print(renderable)
    return text.getvalue().rstrip()


class NotebookProgress(Progress):
    """Replaces rich's progress bars in a notebook."""

    def __init__(self, *columns: str | ProgressColumn) -> None:
        """Draw nothing yet; `columns` are rich's columns."""
        super().__init__(*columns, auto_refresh=False, console=Console(file=io.StringIO(), width=COLUMNS))
        self.notebook = NotebookLive()

    def start(self) -> None:
        """Create an output below the cell, once."""
        if self.notebook.handle is None:
            self.notebook.start()

    def stop(self) -> None:
        """Clear the output."""
        self.notebook.stop()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a bar and draw it, now or soon."""
        changes.pop("refresh", None)
        super().update(task_id, **changes)
        self.notebook.update(self.get_renderable())
