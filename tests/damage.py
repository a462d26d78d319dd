"""Damage to files at random places (from a seed), like that of disks, editors and other programs."""

# ruff: noqa: S608 - the names of tables and columns come from the database itself
from __future__ import annotations

import json
import math
import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

PAGE = 4096

JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 10**30, 1.5, 1e308, math.nan, math.inf, "", "x", "\ud800", "\x1b[31m", "a" * 5000),
    *([], {}, [[]], [1, 2], ["x"], {"x": 1}, {"study": {}}, [{}], [{"epoch": 1}], {"": None}),
)
"""Replacements for a JSON value."""

TEXTS: tuple[Any, ...] = ("", "nope", "{", '{"a": 1', "[" * 5000, "NaN", "1", "null", b"\xff\xfe{", b"\x00", None, 7)
"""Replacements for a whole JSON text."""

CELLS: tuple[Any, ...] = (
    None,
    -1,
    2**62,
    0,
    1,
    0.5,
    1e300,
    "x",
    "",
    b"\xff\xfe",
    "COMPLETE",
    "RUNNING",
    "WAITING",
    "FAIL",
)
"""Replacements for a value in any other column."""


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Change bytes of a file as a bad disk does, and return the kind of damage."""
    data = bytearray(path.read_bytes())
    how = rng.choice(("flip", "flips", "zero", "truncate", "swap", "overwrite"))
    size = len(data)
    if how in ("flip", "flips"):
        for _ in range(1 if how == "flip" else rng.randrange(2, 60)):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[rng.randrange(size) :]
    elif how == "overwrite":
        start = rng.randrange(size)
        stop = min(size, start + rng.randrange(1, 200))
        data[start:stop] = rng.randbytes(stop - start)
    else:
        pages = max(1, size // PAGE)
        first, second = (PAGE * rng.randrange(pages) for _ in range(2))
        one, other = bytes(data[first : first + PAGE]), bytes(data[second : second + PAGE])
        if how == "zero":
            other = bytes(len(one))
        elif len(one) == len(other):
            data[second : second + PAGE] = one
        data[first : first + len(one)] = other[: len(one)]
    path.write_bytes(data)
    return how


def damage_row(path: Path, rng: random.Random) -> str:
    """Change one value in a database as a faulty program does, and return a description of it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        filled = [name for name in tables if connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
        # Most values of a study are JSON.
        weights = [6 if name.endswith(("user_attributes", "system_attributes")) else 1 for name in filled]
        (table,) = rng.choices(filled, weights)
        rows = [row for (row,) in connection.execute(f"SELECT rowid FROM {table}")]
        row = rng.choice(rows)
        columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        column = next((name for name in columns if name.endswith("_json")), None) if rng.random() < 0.85 else None
        if column is None:
            column = rng.choice(columns)
        if rng.random() < 0.04:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
            return f"{table}: row {row} is deleted"
        (text,) = connection.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()
        value = _damaged_json(text, rng) if column.endswith("_json") else rng.choice(CELLS)
        with suppress(sqlite3.IntegrityError):
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, row))
        key = connection.execute(f"SELECT * FROM {table} WHERE rowid = {row}").fetchone() if "key" in columns else ()
        name = key[columns.index("key")] if key else ""
        return f"{table}.{column} {name!r} of row {row}: {value!r:.300}"


def _damaged_json(text: str, rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return rng.choice(TEXTS)
    document = json.loads(text)
    places = list(_places(document))
    if not places:
        return json.dumps(rng.choice(JUNK))
    holder, key = rng.choice(places)
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(JUNK)
    return json.dumps(document)


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in inner for place in ((value, key), *_places(part))]
