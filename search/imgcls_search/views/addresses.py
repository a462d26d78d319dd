"""Decide which requests a server on this machine answers: to its own address, from its own pages or no page."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_ours(headers: Mapping[str, str], method: str, host: str) -> bool:
    """Tell whether a request is for a server that listens on `host`, and not from another server's page.

    Otherwise, another website could use the server through a visitor's browser: by a name that resolves to this
    machine later (DNS rebinding), by sending forms here, or from another port of this machine. `headers` have names in
    lower case.
    """
    return _is_our_name(headers.get("host", ""), host) and _is_from_itself(headers, method)


def _is_from_itself(headers: Mapping[str, str], method: str) -> bool:
    """Tell whether a request is from this server's own page, or from no page.

    A page belongs to the server in the browser's address bar, by name and port, which the browser sends as Host.
    """
    origin = headers.get("origin")
    if origin is not None:
        return _address(origin) == _address(f"http://{headers.get('host', '')}")
    # Browsers send no Origin with a GET for a picture or a script, but most send these headers. Links to here are fine.
    is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    is_link = headers.get("sec-fetch-mode") == "navigate" and method in ("GET", "HEAD")
    return is_link or not is_foreign


def _address(url: str) -> tuple[str, str, int] | None:
    """Return scheme, name and port, None if the URL is not the origin of a page."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (KeyError, ValueError):
        return None
    is_bare = parts.hostname and not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    return (parts.scheme, str(parts.hostname), port) if is_bare else None


def _is_our_name(name: str, host: str) -> bool:
    bare = re.sub(r":\d+$", "", name.lower()).strip("[]")
    if is_loopback(bare) or bare == host.lower():
        return True
    if is_loopback(host):
        return False
    # An attacker cannot make an IP address resolve to another machine.
    with_numbers = re.fullmatch(r"[\d.]+|[0-9a-f:]+:[0-9a-f:.]*", bare) is not None
    return with_numbers or bare in (socket.gethostname().lower(), socket.getfqdn().lower())
