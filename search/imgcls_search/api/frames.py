"""Tables for users: pandas frames (an optional extra), and HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgcls_search.errors import UserError
from imgcls_search.terminal import shown

if TYPE_CHECKING:
    import pandas as pd

_LINE = "1px solid rgba(128, 128, 128, 0.4)"


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], what: str) -> pd.DataFrame:
    """Return rows as a pandas frame.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError(f"{what}: needs pandas; pip install 'imgcls-search[pandas]'") from None
    return pd.DataFrame(list(rows), columns=list(columns))


def flat(row: Mapping[str, Any], sections: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with mappings expanded to columns; `sections` maps their names to column prefixes."""
    found = {key: value for key, value in row.items() if not isinstance(value, (Mapping, list))}
    for name, prefix in sections.items():
        found |= {f"{prefix}{key}": _plain(value) for key, value in row[name].items()}
    return found


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def card(title: str, lines: Iterable[str], *tables: str) -> str:
    """Return HTML with a title, lines of text, and tables; its colours follow the page, dark or light."""
    text = "".join(f"<div>{escaped(line)}</div>" for line in lines)
    return (
        f'<div style="color: inherit; background: transparent"><strong>{escaped(title)}</strong>{text}'
        f"{''.join(tables)}</div>"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as an HTML table."""
    style = f'style="text-align: left; padding: 2px 10px 2px 0; border-bottom: {_LINE}"'
    head = "".join(f"<th {style}>{escaped(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td {style}>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<table style="border-collapse: collapse; color: inherit; background: transparent">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def escaped(value: Any) -> str:
    """Return a value as HTML-escaped text, safe for any names."""
    return html.escape(shown(value))
