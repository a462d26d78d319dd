"""Shared by the benchmarks: arguments, the conditions of a run, medians with their spread, result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from imgcls_search.processor import processor_name

LIBRARIES = ("torch", "torchvision", "optuna", "sqlalchemy", "numpy", "pillow")


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with a script's docstring as help, and the option `--out` that all scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="a folder; default: benchmarks")
    return parser


@contextmanager
def results(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a dictionary for the results; at the end, write it as NAME.json with the conditions and the load."""
    found: dict[str, Any] = {"conditions": conditions()}
    print(f"conditions: {found['conditions']}")
    yield found
    found["conditions"]["load_at_end"] = load()
    write(found, folder, name)


def conditions() -> dict[str, Any]:
    """Return the conditions that the results of a run depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor_name(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "load_at_start": load(),
    }


def load() -> list[float] | None:
    """Return the load averages of 1, 5 and 15 minutes; they include other programs and this one."""
    return [round(number, 2) for number in os.getloadavg()] if hasattr(os, "getloadavg") else None


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return the median, the quartiles and the extremes."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    numbers = {
        "median": statistics.median(values),
        "lower_quartile": low,
        "upper_quartile": high,
        "min": min(values),
        "max": max(values),
    }
    return {name: round(number, digits) for name, number in numbers.items()}


def write(results: dict[str, Any], folder: Path, name: str) -> None:
    """Write the results as JSON and print the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {path}")


def verdict(figure: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Return a text that compares a figure with its bound."""
    if at_least is not None:
        return f"bound: at least {at_least:g}{'' if figure >= at_least else ', MISSED'}"
    if at_most is not None:
        return f"bound: at most {at_most:g}{'' if figure <= at_most else ', MISSED'}"
    return ""
