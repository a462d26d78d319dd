"""Find the loopback network interface, for processes of one machine only. Does not import torch."""

from __future__ import annotations

import socket
from pathlib import Path

NETWORKS = Path("/sys/class/net")
"""Where Linux describes its interfaces."""

UP, LOOPBACK = 0x1, 0x8
"""Bits of an interface's flags (Linux, if.h)."""


def interface() -> str | None:
    """Return the name of the loopback interface, None if none is up."""
    try:
        names = [name for _, name in socket.if_nameindex()]
    except OSError:
        return None
    return next(filter(_is_loopback, names), None)


def _is_loopback(name: str) -> bool:
    try:
        flags = int((NETWORKS / name / "flags").read_text(), 16)
    except (OSError, ValueError):
        # Other systems, and containers that hide it: lo0 on macOS and the BSDs, loopback_0 on Windows.
        return name.startswith("lo")
    return flags & UP != 0 and flags & LOOPBACK != 0
