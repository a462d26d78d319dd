"""Durations as people write them: `90s`, `90m`, `1h30m`, `2d`, read and shown."""

from __future__ import annotations

import math
import re

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
PATTERN = rf"(?=.)(?:{_NUMBER} ?d ?)?(?:{_NUMBER} ?h ?)?(?:{_NUMBER} ?m(?:in)? ?)?(?:{_NUMBER} ?s)?"
"""Days, hours, minutes and seconds, the longest unit first; editors read it too, so it has no Python-only syntax."""

EXAMPLES = "90s, 90m, 1h30m or 2d"

LONGEST = 864_000_000.0
"""Longest time that an option may give, in seconds, 10,000 days: system clocks overflow beyond some limit."""

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def parse(text: str) -> float | None:
    """Return the seconds in `1h30m`, `1 h 30 min` as `show` writes it, or a bare number; None for other texts."""
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(PATTERN, text):
        return None
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in re.findall(rf"({_NUMBER}) ?([dhms])", text))


def show(seconds: float, *, exact: bool = False) -> str:
    """Return a duration in its two largest units, as `1 h 30 min`; in all of them if `exact`."""
    if seconds < (60 if exact else 10):
        return f"{seconds:g} s" if exact else f"{seconds:.2g} s"
    whole, rest = (math.floor(seconds), seconds % 1) if exact else (round(seconds), 0.0)
    if not exact:
        # Show whole minutes from 10 minutes on, and whole hours from a day on.
        step = 60 if whole >= 600 else 1
        step = 3_600 if whole >= 86_400 else step
        whole = round(whole / step) * step
    parts = []
    for name, size in _UNITS:
        count: float = whole // size
        whole -= int(count) * size
        count += rest if name == "s" else 0
        if count:
            parts.append(f"{count:g} {name}")
    return " ".join(parts)
