"""Write docs/decisions/index.md: all records, sorted by date.

python scripts/decisions.py            write it
python scripts/decisions.py --check    exit with 1 if it is not up to date
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "decisions"

BEGINNING = """# Decisions

Each page records one decision: its context, the choice, what it costs and whether it still holds. A new decision is
a new page, `DATE-what-it-is-about.md`, with the headings of the others; `python scripts/decisions.py` adds it to
this list. If a decision replaces an earlier one, change the earlier page's status and link the new page from there.
"""


def index() -> str:
    """Return the list of all records, with a heading for each day."""
    pages = sorted(path for path in FOLDER.glob("*.md") if path.name[:1].isdigit())
    parts = [BEGINNING]
    for day, group in groupby(pages, key=lambda path: path.name[:10]):
        lines = [f"- [{title(path)}]({path.name})" for path in group]
        parts.append("\n".join((f"## {day}\n", *lines)) + "\n")
    return "\n".join(parts)


def title(page: Path) -> str:
    """Return the first heading of a page."""
    return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


if __name__ == "__main__":
    target = FOLDER / "index.md"
    if "--check" not in sys.argv[1:]:
        target.write_text(index(), encoding="utf-8")
    elif not target.is_file() or target.read_text(encoding="utf-8") != index():
        sys.exit(
            "error: docs/decisions/index.md does not list the records that there are; run: python scripts/decisions.py"
        )
