"""Resolve plain scalars: YAML 1.2's core schema, plus `500_000` and the booleans of YAML 1.1."""

from __future__ import annotations

import math
import re

from imgcls_search.config import Scalar

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
DECIMAL = re.compile(rf"[-+]?{_DIGITS}")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

_WIDEST = 2**63
"""Larger whole numbers become floats: no argument needs them, and Python refuses to print very long ones."""


def resolve(text: str) -> Scalar:
    """Return the value of an unquoted scalar; dates, `12:30` and everything else are strings."""
    if text in _NULLS:
        return None
    if is_switch(text) or text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return _TRUTHS[text.lower()]
    if DECIMAL.fullmatch(text):
        return _whole(text, 10)
    if _BASED.fullmatch(text):
        return _whole(text, 0)
    if FLOAT.fullmatch(text):
        return float(text) + 0.0  # -0.0 is 0.0: one value, one digest
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def is_switch(text: str) -> bool:
    """Tell whether YAML 1.1 reads a word as a boolean that users may mean as a name, such as `off`."""
    word = text.lower()
    return word in ("yes", "no", "on", "off") and text in (word, word.title(), word.upper())


def _whole(text: str, base: int) -> int | float:
    # Python refuses to parse an int of more than 4,300 digits, but accepts it as a float.
    if len(text) > 80:
        return float(text) if base == 10 else float("inf")
    return narrow(int(text, base))


def narrow(number: int) -> int | float:
    """Return a whole number, as a float if it is larger than any that is needed."""
    if abs(number) < _WIDEST:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.inf
