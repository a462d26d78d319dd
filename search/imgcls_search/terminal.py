"""Output for people: text without control characters, on streams that cannot end a training."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import select
import sys
import threading
import unicodedata
import warnings
from typing import TextIO

_JOINERS = "\u200c\u200d"
"""Parts of words in some languages, and of many emoji."""

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's control and format characters, lone surrogates (from a name that is not UTF-8), and line ends."""


def shown(text: object) -> str:
    """Return a text as one line that is harmless to a terminal; unsafe characters are written as in `\\x1b`."""
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_visible, line))


def _visible(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _UNSEEN:
        return character
    return character.encode("ascii", "backslashreplace").decode() if character > "\x7f" else _ESCAPES[character]


_ESCAPES = {chr(code): repr(chr(code))[1:-1] for code in (*range(32), 127)}


class ReaderLeftError(Exception):
    """Nobody reads the output of a command that does nothing but print."""


class _Display(io.FileIO):
    """A stream whose reader may leave: the program then continues without it, and says so once."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self.label = name
        self.outlives_reader = True
        self.trouble: OSError | None = None

    def write(self, data: object) -> int:
        """Write to the stream, or to nowhere once that has failed."""
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type]
                # Another program has made the terminal non-blocking.
                select.select([], [self], [])
        except OSError as error:
            self._lose(error)
            return memoryview(data).nbytes  # type: ignore[arg-type]
        return written

    def _lose(self, error: OSError) -> None:
        # Libraries and processes started later write to the same descriptor.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if error.errno == errno.EPIPE and not self.outlives_reader:
            raise ReaderLeftError from error
        self.trouble = error
        if self.label == "standard output":
            print(  # noqa: T201
                f"warning: {self.label} cannot be written ({error.strerror}); continuing without it", file=sys.stderr
            )


def settle_streams() -> None:
    """Open closed streams, show characters that an encoding lacks as backslashes, and survive the loss of a display."""
    for number in (0, 1, 2):
        _open(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
    sys.stdout = _display(sys.stdout, 1, "standard output")
    sys.stderr = _display(sys.stderr, 2, "standard error")


def _open(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # Otherwise a file opened later would get this descriptor, and with it the output for the terminal.
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)


def _display(stream: io.TextIOWrapper | object | None, number: int, name: str) -> io.TextIOWrapper:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw = _Display(number, name)
    is_terminal = os.isatty(number)
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=is_terminal or number == 2,
        write_through=bool(getattr(stream, "write_through", False)),
    )


def show_all_characters() -> None:
    """Show characters that the encoding of the streams lacks as backslashes, and change nothing else about them."""
    sys.stdout, sys.stderr = (_plain(stream, number) for number, stream in ((1, sys.stdout), (2, sys.stderr)))


def _plain(stream: object, number: int) -> io.TextIOWrapper:
    # Not `reconfigure`, which fails if the descriptor now belongs to another kind of file.
    writer = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(writer, encoding=encoding, errors="backslashreplace", line_buffering=number == 2)


def end_with_reader() -> None:
    """End the program when the reader of its pipe ends, since it does nothing but print."""
    if (raw := _raw(sys.stdout)) is not None:
        raw.outlives_reader = False


def output_trouble() -> str | None:
    """Return why standard output was lost; None if it was not, or if its reader has left."""
    raw = _raw(sys.stdout)
    if raw is None or raw.trouble is None or raw.trouble.errno in (errno.EPIPE, errno.EIO):
        return None
    return f"{raw.label}: {raw.trouble.strerror}"


def _raw(stream: object) -> _Display | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Display) else None


_INSTALLED = re.compile(r"(?:[A-Za-z]:)?[^\s\'\"<>()]*?(?:site|dist)-packages[/\\]+")
"""The folder of installed packages at the start of a path."""

_warned: set[str] = set()


def show_plain_warnings() -> None:
    """Show each warning of a library once, as one plain line, here and in processes forked from this one."""
    # Filters, including PYTHONWARNINGS, still decide which are shown and which are errors.
    warnings.showwarning = _show_warning
    logging.lastResort = _PlainLines(logging.WARNING)


def lock_bars_by_thread() -> None:
    """Keep libraries' progress bars, which are off, from making a lock that all processes share.

    A killed process leaves such a lock behind, and Python warns about it on the user's terminal.
    """
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    parts = re.split(r"(?:site|dist)-packages[/\\]+", filename)
    library = re.split(r"[/\\.]", parts[-1])[0] if len(parts) > 1 else ""
    _warn(f"{library}: {message}" if library else str(message), file)


class _PlainLines(logging.Handler):
    """Shows the records that no library handles itself."""

    def emit(self, record: logging.LogRecord) -> None:
        _warn(f"{record.name.partition('.')[0]}: {record.getMessage()}", None)


def _warn(text: str, file: TextIO | None) -> None:
    line = shown(" ".join(_INSTALLED.sub("", text).split()))
    stream = file or sys.stderr
    if line in _warned or stream is None:
        return
    _warned.add(line)
    # A stream that is gone must not turn a warning into a failure.
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {line}", file=stream, flush=True)
