#!/usr/bin/env python
"""Run a command and write its output as an SVG in which the lines appear one by one, like a terminal recording:

python scripts/record.py -o docs/recording.svg --lines 40 -- imgcls-search run vit --set study.trials=12

The times are those of the run, shortened to `--seconds`. The picture contains no font and loads nothing.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text


def main() -> None:
    """Record a command and write the SVG."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-o", "--output", type=Path, required=True, help="the SVG to write")
    options.add_argument("--width", type=int, default=104, help="columns of the terminal")
    options.add_argument("--lines", type=int, default=26, help="the most lines to show; the middle is left out")
    options.add_argument("--seconds", type=float, default=10, help="how long the recording takes")
    options.add_argument("--drop", default="(?!)", help="leave out lines that begin with this regular expression")
    options.add_argument("command", nargs="+")
    given = options.parse_args()
    began = time.monotonic()
    process = subprocess.Popen(given.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said: list[tuple[float, str]] = []
    for line in process.stdout or ():
        said.append((time.monotonic() - began, line.rstrip("\n")))
        print(line, end="", flush=True)
    if process.wait():
        sys.exit(f"error: the command ended with {process.returncode}; nothing is written")
    said = [(at, line) for at, line in said if not re.match(given.drop, line)]
    given.output.write_text(svg(" ".join(given.command), said, given.width, given.lines, given.seconds))


def svg(command: str, said: list[tuple[float, str]], width: int, lines: int, seconds: float) -> str:
    """Return the SVG: the command, then each line at its time."""
    shown = [(0.0, f"$ {command}"), *said]
    if len(shown) > lines:
        half = lines // 2
        shown = [*shown[:half], (shown[half][0], "..."), *shown[half + 1 - lines :]]
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False)
    for place, (_, text) in enumerate(shown):
        console.print(Text(text, style="bold green" if not place else ""), no_wrap=True, overflow="ellipsis", crop=True)
    text = console.export_svg(title="imgcls-search", theme=MONOKAI)
    # rich's SVG loads its font from a server.
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"Fira Code, ?monospace|Fira Code", "ui-monospace, Menlo, Consolas, monospace", text)
    longest = max(at for at, _ in shown) or 1.0
    for place, (at, _) in enumerate(shown):
        delay = 0.3 + (seconds - 0.3) * at / longest
        # In rich's SVG, each line refers to its own clip path.
        text = re.sub(
            rf'(<text [^>]*clip-path="url\(#[\w-]+-line-{place}\)")',
            rf'\1 style="opacity:0;animation:appear 0.01s linear {delay:.2f}s forwards"',
            text,
        )
    still = "@media (prefers-reduced-motion: reduce) { text { opacity: 1 !important; animation: none !important } }"
    return text.replace("<style>", f"<style>\n    @keyframes appear {{ to {{ opacity: 1 }} }}\n    {still}", 1)


if __name__ == "__main__":
    main()
