"""Serve optuna-dashboard for one study, by default only to this machine."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import re
import shutil
import socketserver
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from bottle import HTTPError
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from imgcls_search import atomic
from imgcls_search.errors import NoResultError, StudyError, UserError
from imgcls_search.study import best
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.note import is_ours, name_metrics, note_text, write_note
from imgcls_search.study.record import Record, load, load_again
from imgcls_search.views import addresses, attributes
from imgcls_search.words import counted

_ARTIFACT = re.compile(r"[0-9A-Za-z-]+")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class DashboardServer(socketserver.ThreadingMixIn, WSGIServer):
    """Answers several requests at a time, unlike optuna-dashboard's own server."""

    daemon_threads = True

    address = ""
    """URL of the study's page."""


class _Quiet(WSGIRequestHandler):
    """Logs no requests, because the page polls."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


class _Reasons(logging.Handler):
    """Reports why optuna-dashboard cannot answer, each reason once; it would log a traceback for each request."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self.say = say
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Report the first line of a message."""
        line = record.getMessage().removeprefix("Exception: ").partition("\n")[0]
        if line not in self.said:
            self.said.add(line)
            self.say(f"a page cannot be shown: {line}")


def make_dashboard(files: StudyFiles, host: str, port: int, say: Callable[[str], None]) -> DashboardServer:
    """Return a server that is bound but does not serve yet; report what it cannot show.

    Raises:
        StudyError: there is no such study, or it is damaged or not ours.
        UserError: the port is taken or not allowed.
    """
    from optuna_dashboard import wsgi

    logger = logging.getLogger("optuna_dashboard")
    logger.handlers, logger.propagate = [_Reasons(say)], False
    latest = Latest(files, say)
    _write_note(latest.record, files)
    _tell_lost_pictures(files, latest.record, say)
    store = _Pictures(files.pictures)
    application = agreeing_on_best(wsgi(files.store.open(), artifact_store=store), latest)
    application = serving_attributes(shortening_list(application, latest), latest)
    application = refusing_strangers(application, host)
    try:
        server = make_server(host, port, application, server_class=DashboardServer, handler_class=_Quiet)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used on {host} ({error.strerror}); try another") from error
    server.address = address_of(latest.record, host, server.server_port)
    return server


def address_of(record: Record, host: str, port: int) -> str:
    """Return the URL of a study's page in the dashboard."""
    # An IPv6 address contains colons.
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/dashboard/studies/{record.study._study_id}"


def shortening_list(application: Application, latest: Latest) -> Application:
    """Shorten the attributes of studies in the list of all studies to what a page can show."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or environ.get("PATH_INFO", "").rstrip("/") != "/api/studies":
            return application(environ, start_response)
        status, headers, body = _ask(application, environ)
        if status.startswith("200"):
            page, record = json.loads(body), latest.read()
            for summary in page["study_summaries"]:
                attributes.shorten_summary(summary, record)
            body = json.dumps(page).encode()
        return _reply(start_response, status, headers, body)

    return answer


def _ask(application: Application, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return the status, the headers and the whole body of an application's answer."""
    said: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(application(environ, lambda status, headers, trouble=None: said.append((status, headers))))
    return *said[-1], body


def _reply(
    start_response: Callable[..., Any], status: str, headers: Sequence[tuple[str, str]], body: bytes
) -> list[bytes]:
    """Answer with a body that may have another length than the headers say."""
    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
    start_response(status, [*kept, ("Content-Length", str(len(body)))])
    return [body]


def serving_attributes(application: Application, latest: Latest) -> Application:
    """Serve the full attributes of the study or a trial as JSON; its page shows only one line of each."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] != "GET" or not attributes.is_address(path):
            return application(environ, start_response)
        try:
            body, status = attributes.whole(path, latest.read()), "200 OK"
        except KeyError as error:
            body, status = json.dumps(f"there is no trial {error}").encode(), "404 Not Found"
        except StudyError as error:
            body, status = json.dumps(str(error)).encode(), "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class _Pictures(FileSystemArtifactStore):
    """Serves the plain files of one folder; a missing file is answered with 404, while Optuna's own store raises."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact, which must be a file in the folder and not a link: a study may come from anyone."""
        path = self._inside(artifact_id)
        try:
            # Do not wait for the writer of a pipe. Not every system has these flags.
            flags = (
                os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
            file = os.fdopen(os.open(path, flags), "rb")
        except OSError:
            raise _missing() from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise _missing()
        return file

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact that a user adds to a trial, completely or not at all."""
        self._base_path.mkdir(parents=True, exist_ok=True)
        path = self._inside(artifact_id)
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: is there already")
        with atomic.replacing(path) as draft, draft.open("xb") as file:
            shutil.copyfileobj(content_body, file)

    def remove(self, artifact_id: str) -> None:
        """Delete an artifact."""
        try:
            self._inside(artifact_id).unlink()
        except (HTTPError, OSError) as error:
            raise ArtifactNotFound("not found") from error

    def _inside(self, artifact_id: str) -> Path:
        """Return the path of an artifact; refuse a folder of artifacts that is a link."""
        # The study's folder may be the user's link to a larger disk.
        base = self._base_path.parent.resolve() / self._base_path.name
        if base.is_symlink() or not _ARTIFACT.fullmatch(artifact_id):
            raise _missing()
        return base / artifact_id


def _missing() -> HTTPError:
    return HTTPError(404, "This picture is not in the study's folder.")


def _tell_lost_pictures(files: StudyFiles, record: Record, say: Callable[[str], None]) -> None:
    lacking = [
        trial.number
        for trial in record.trials
        if not all(_is_plain(files.pictures / key) for key in trial.pictures or ())
    ]
    if lacking:
        say(
            f"{files.pictures}: lacks pictures of {counted('trial', len(lacking))}, for example {lacking[0]}; put the "
            "folder back, or look where the study was searched"
        )


def _write_note(record: Record, files: StudyFiles) -> None:
    """Write the study's state into its note if no process works on it: a killed run has not written it."""
    # A read-only study can still be shown.
    with contextlib.suppress(StudyError):
        if files.holder() is None:
            name_metrics(record)
            write_note(record)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


class Latest:
    """The current state of a study, read again when its database has changed."""

    def __init__(self, files: StudyFiles, say: Callable[[str], None]) -> None:
        self.files = files
        self.say = say
        self.stamp = files.store.stamp()
        self.record = load(files)

    def read(self) -> Record:
        """Return the record, which must not be changed."""
        # Take the stamp first: changes during the read are read next time.
        stamp = self.files.store.stamp()
        if stamp != self.stamp:
            try:
                self.record = load_again(self.files, self.record)
            except StudyError as error:
                # The page continues with the last readable state: data from other people must not end it.
                self.say(str(error))
            self.stamp = stamp
        return self.record


def agreeing_on_best(application: Application, latest: Latest) -> Application:
    """Let optuna-dashboard show the same best trials as `best` and `front`, and trials over a limit as infeasible.

    It ignores named limits, so a trial that breaks one could be shown as the best instead of a feasible one.
    """
    seen: dict[int, Any] = {}

    def ask(environ: dict[str, Any], after: int) -> tuple[str, list[tuple[str, str]], bytes]:
        return _ask(application, {**environ, "QUERY_STRING": f"after={after}"})

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = re.fullmatch(r"(?:after=(\d+))?", environ.get("QUERY_STRING", ""))
        is_study = re.fullmatch(r"/api/studies/\d+/?", environ.get("PATH_INFO", ""))
        if environ["REQUEST_METHOD"] != "GET" or not is_study or not query:
            return application(environ, start_response)
        after = int(query[1] or 0)
        status, headers, body = ask(environ, after)
        page = json.loads(body) if status.startswith("200") else None
        if page is not None and page["name"] == latest.files.recorded_as:
            record = latest.read()
            _tell_limits(page["trials"], record)
            numbers = _best_of(page["trials"], after, record)
            seen.update((entry["number"], entry) for entry in page["trials"] if entry["number"] in numbers)
            if missing := set(numbers) - set(seen):
                # The page requests only new trials, but the best ones may be older.
                older = json.loads(ask(environ, min(missing))[2]).get("trials", [])
                _tell_limits(older, record)
                seen.update((entry["number"], entry) for entry in older if entry["number"] in missing)
            # The database may have been damaged since the record was read.
            page["best_trials"] = [seen[number] for number in numbers if number in seen]
            _tell_standing(page, record)
            attributes.shorten(page, record)
            # Earlier versions named no objective in studies with only one.
            page.setdefault("objective_names", [metric for metric, _ in record.objectives])
            body = json.dumps(page).encode()
        return _reply(start_response, status, headers, body)

    return answer


def _tell_standing(page: dict[str, Any], record: Record) -> None:
    """Update the note to the study's current state: a run may have been killed since it was written."""
    with contextlib.suppress(StudyError):
        if record.files is not None and is_ours(page["note"]["body"], record):
            page["note"]["body"] = note_text(record, record.files.holder())


def _tell_limits(entries: Sequence[dict[str, Any]], record: Record) -> None:
    for entry in entries:
        # The record may be older than the page.
        if (trial := record.by_number.get(entry["number"])) is not None:
            entry["constraints"] = list(trial.constraints.values())


def _best_of(entries: Sequence[dict[str, Any]], after: int, record: Record) -> list[int]:
    """Return the numbers of the best trials among those that the page, which is some seconds old, shows as complete."""
    new = {entry["number"] for entry in entries if entry["state"] == "Complete"}
    as_shown = copy.copy(record)
    as_shown.trials = [
        trial for trial in record.trials if trial.state == "complete" and (trial.number < after or trial.number in new)
    ]
    try:
        return [trial.number for trial in best.front(as_shown)]
    except NoResultError:
        return []


def refusing_strangers(application: Application, host: str) -> Application:
    """Refuse requests to a name that is not this server's, or from another server's page.

    Otherwise, another website could read and delete studies through a visitor's browser.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
        if addresses.is_ours(headers, environ["REQUEST_METHOD"], host):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"This dashboard answers only under its own address.\n"]

    return answer
