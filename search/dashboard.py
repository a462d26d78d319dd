"""optuna-dashboard on one study, for this machine alone unless told otherwise."""

from __future__ import annotations

import ipaddress
import re
import socket
import socketserver
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from search.errors import UserError
from search.study.database import open_storage
from search.study.files import StudyFiles

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Answers several requests at a time; optuna-dashboard's own server answers one."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Logs no requests; the page polls."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


def make_dashboard(files: StudyFiles, host: str, port: int) -> WSGIServer:
    """Return a server, bound and not yet serving.

    Raises:
        StudyError: there is no such study.
        UserError: the port is taken or not allowed.
    """
    from optuna_dashboard import wsgi

    files.must_exist()
    application = refusing_strangers(wsgi(open_storage(files.database)), host)
    try:
        return make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used on {host} ({error.strerror}); try another") from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refusing_strangers(application: Application, host: str) -> Application:
    """Refuse requests under a name that is not this server's, or from a page of another's.

    The page of a stranger could otherwise read and delete studies through the browser of whoever looks at it: by a name
    that comes to mean this machine (DNS rebinding), or by sending forms here.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        named = [environ.get("HTTP_HOST", ""), *([urlsplit(origin).netloc] if origin else [])]
        if all(_is_ours(name, host) for name in named):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"This dashboard answers only under its own address.\n"]

    return answer


def _is_ours(name: str, host: str) -> bool:
    bare = re.sub(r":\d+$", "", name.lower()).strip("[]")
    if is_loopback(bare) or bare == host.lower():
        return True
    if is_loopback(host):
        return False
    # Nobody can make a number mean another machine.
    with_numbers = re.fullmatch(r"[\d.]+|[0-9a-f:]+:[0-9a-f:.]*", bare) is not None
    return with_numbers or bare in (socket.gethostname().lower(), socket.getfqdn().lower())
