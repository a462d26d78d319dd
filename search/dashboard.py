"""optuna-dashboard on one study, for this machine alone."""

from __future__ import annotations

import socketserver
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from search.errors import UserError
from search.study.database import open_storage
from search.study.files import StudyFiles


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
    try:
        return make_server(host, port, wsgi(open_storage(files.database)), server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used on {host} ({error.strerror}); try another") from error
