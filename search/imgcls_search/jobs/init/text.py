"""Write a drafted space as YAML, in which a comment above each key gives the reason for its value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imgcls_search.space.writer import inline
from imgcls_search.terminal import shown

WIDTH = 110
DOMAINS = ({"choice"}, {"int"}, {"float"}, {"int", "step"}, {"int", "log"}, {"float", "step"}, {"float", "log"})


def write(tree: Mapping[str, Any], comments: Mapping[str, str], header: Sequence[str]) -> str:
    """Return a nested mapping as YAML; `comments` are by dotted path, `header` is the comment at the top.

    A list of mappings takes one line per entry; domains and plain values take one line.
    """
    lines = [f"# {shown(line)}".rstrip() for line in header]
    for key, value in tree.items():
        lines += ["", *_entry(key, value, key, comments, 0)] if lines else _entry(key, value, key, comments, 0)
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any, path: str, comments: Mapping[str, str], depth: int) -> Iterator[str]:
    indent = "  " * depth
    if path in comments:
        yield from (f"{indent}# {line}" for line in _wrapped(shown(comments[path]), WIDTH - len(indent)))
    name = inline(key)
    if isinstance(value, Mapping) and value and not _is_line(value, path, comments):
        yield f"{indent}{name}:"
        for below, inner in value.items():
            yield from _entry(below, inner, f"{path}.{below}", comments, depth + 1)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        yield f"{indent}{name}:"
        for number, item in enumerate(value):
            yield from (f"{indent}  # {line}" for line in _wrapped(comments.get(f"{path}.{number}", ""), WIDTH - 2))
            yield f"{indent}  - {inline(item)}"
    else:
        yield f"{indent}{name}: {inline(value)}"


def _is_line(value: Mapping[str, Any], path: str, comments: Mapping[str, str]) -> bool:
    """Tell whether a mapping fits on a line: a domain, or plain values without comments."""
    if set(value) in DOMAINS:
        return True
    return (
        not any(isinstance(inner, Mapping) and inner and set(inner) not in DOMAINS for inner in value.values())
        and not any(comment.startswith(f"{path}.") for comment in comments)
        and len(inline(value)) < WIDTH - 30
    )


def _wrapped(comment: str, width: int) -> list[str]:
    """Return the lines of a comment; names of options such as `--weights-dir` are not broken."""
    return textwrap.wrap(comment, width, break_on_hyphens=False)
