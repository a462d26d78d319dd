"""Serve a bundle over HTTP: a page to drop images on, and JSON for programs. Does not import torch."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.deploy.bundle import Bundle
from imgcls_search.deploy.predict import Prediction, Skipped, classify, plain
from imgcls_search.errors import UserError
from imgcls_search.views import addresses

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_BYTES = 32 * 2**20
"""Largest size of a request."""

MOST_IMAGES = 32
"""Most images in a request."""

MOST_PIXELS = 50_000_000
"""Most pixels decoded of an image; a file of a few kilobytes may claim any number, and other requests wait."""

MOST_WAITING = 64
"""Most requests that wait; more are refused and may try again."""

TOP = 5
"""Default number of classes per image in an answer."""

Found = list[Prediction | Skipped]


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A request that is answered with one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True, kw_only=True)
class WaitingImages:
    """Images of a waiting request."""

    files: Sequence[Path]
    top: int
    answer: asyncio.Future[Found]


class Queue:
    """Classifies the images of all waiting requests together, on one thread."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.waiting: asyncio.Queue[WaitingImages] = asyncio.Queue(MOST_WAITING)

    async def ask(self, files: Sequence[Path], top: int) -> Found:
        """Return the predictions for images, in order.

        Raises:
            Refused: too many requests wait.
        """
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        try:
            self.waiting.put_nowait(WaitingImages(files=files, top=top, answer=answer))
        except asyncio.QueueFull:
            raise Refused(503, f"{MOST_WAITING} requests are waiting; try again later") from None
        return await answer

    async def work(self) -> None:
        """Answer until cancelled."""
        while True:
            asked = [await self.waiting.get()]
            while not self.waiting.empty():
                asked.append(self.waiting.get_nowait())
            try:
                found = await asyncio.to_thread(self._classify, asked)
            # Pass any error to these requests, and continue with the next ones.
            except Exception as error:
                for one in asked:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, answer in zip(asked, found, strict=True):
                # The client may be gone.
                if not one.answer.done():
                    one.answer.set_result(answer)

    def _classify(self, asked: Sequence[WaitingImages]) -> list[Found]:
        files = [file for one in asked for file in one.files]
        found = iter(list(classify(self.bundle, files, top=max(one.top for one in asked), most_pixels=MOST_PIXELS)))
        return [[_first(next(found), one.top) for _ in one.files] for one in asked]


def _first(found: Prediction | Skipped, top: int) -> Prediction | Skipped:
    return found if isinstance(found, Skipped) else found.first(top)


def make_service(bundle: Bundle, host: str, *, name: str) -> Starlette:
    """Return the application for a bundle; `host` is where it listens.

    Raises:
        UserError: its packages are not installed.
    """
    if any(find_spec(package) is None for package in ("starlette", "uvicorn", "python_multipart")):
        raise UserError("serve: needs packages that are not installed; pip install 'imgcls-search[serve]'")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    queue = Queue(bundle)

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(_page(name, bundle, nonce), headers={"Content-Security-Policy": policy})

    async def about(request: Request) -> Response:
        return JSONResponse(_about(name, bundle))

    async def predict(request: Request) -> Response:
        with tempfile.TemporaryDirectory(prefix="imgcls-") as folder:
            try:
                uploads = await _uploads(request, Path(folder))
            except ClientDisconnect:
                # The client is gone; without this, the server would print a traceback.
                raise Refused(400, "the request ended early") from None
            found = await queue.ask([file for _, file in uploads], _top(request, bundle))
        predictions, skipped = [], []
        for (given, _), one in zip(uploads, found, strict=True):
            if isinstance(one, Skipped):
                skipped.append({"image": given, "reason": one.reason})
            else:
                predictions.append({**plain(one), "image": given})
        answer: dict[str, Any] = {"predictions": predictions, "skipped": skipped}
        if not predictions:
            reason = f"{skipped[0]['image']}: {skipped[0]['reason']}"
            return JSONResponse({"error": f"no image could be read: {reason}", **answer}, 422)
        return JSONResponse(answer)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        # Otherwise, the unread rest of the body would be read as the next request.
        return JSONResponse({"error": error.reason}, error.status, headers={"Connection": "close"})

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path[:100]!r} is not allowed"
        allowed = "allowed: GET /, GET /model, POST /predict"
        return JSONResponse({"error": f"{what}; {allowed}"}, error.status_code, headers=error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        # The server prints the error itself.
        return JSONResponse({"error": "the service failed; its output has the reason"}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    application = Starlette(
        routes=[Route("/", page), Route("/model", about), Route("/predict", predict, methods=["POST"])],
        exception_handlers={Refused: refused, HTTPException: unknown, Exception: failed},
        lifespan=lifespan,
    )
    application.add_middleware(_OwnPagesOnly, host=host)
    return application


class _OwnPagesOnly:
    """Refuses requests to a name that is not this server's, or from another server's page."""

    def __init__(self, app: Callable[..., Awaitable[None]], host: str) -> None:
        self.app, self.host = app, host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            from starlette.datastructures import Headers
            from starlette.responses import JSONResponse

            headers = {key.lower(): value for key, value in Headers(scope=scope).items()}
            if not addresses.is_ours(headers, scope["method"], self.host):
                answer = JSONResponse({"error": "this service answers only under its own address"}, 403)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _top(request: Request, bundle: Bundle) -> int:
    given = request.query_params.get("top", str(TOP))
    if not given.isascii() or not given.isdigit() or len(given) > 6 or int(given) < 1:
        raise Refused(400, f"top: {given[:20]!r} is not allowed; allowed: 1 to {len(bundle.labels)}")
    return min(int(given), len(bundle.labels))


async def _uploads(request: Request, folder: Path) -> list[tuple[str, Path]]:
    """Write the images of a request into a folder; return the client's name and the file of each.

    The body is the bytes of one image, or a form with files.

    Raises:
        Refused: there are no images, too many, or too large ones.
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MOST_BYTES:
        raise _too_large()
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _form_files(request, folder)
    size, file = 0, folder / "0"
    with file.open("wb") as target:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise _too_large()
            target.write(part)
    if not size:
        raise Refused(400, "no image: send its bytes as the body, or a form with files")
    return [("image", file)]


async def _form_files(request: Request, folder: Path) -> list[tuple[str, Path]]:
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    size, receive = 0, request.receive

    async def counted() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise _too_large()
        return message

    found = []
    try:
        async with Request(_in_small_letters(request.scope), counted).form(
            max_files=MOST_IMAGES, max_fields=MOST_IMAGES
        ) as form:
            for number, (_, value) in enumerate(form.multi_items()):
                if isinstance(value, UploadFile):
                    file = folder / str(number)
                    file.write_bytes(await value.read())
                    found.append((value.filename or "image", file))
    except HTTPException as error:
        raise Refused(400, f"the form cannot be read: {error.detail}") from None
    if not found:
        raise Refused(400, "no image: the form has no file")
    return found


def _in_small_letters(scope: Any) -> dict[str, Any]:
    """Return a request's scope with the content type in lower case, as older versions of starlette need it."""
    headers = []
    for name, value in scope["headers"]:
        kind, semicolon, rest = value.partition(b";")
        headers.append((name, kind.lower() + semicolon + rest if name == b"content-type" else value))
    return {**scope, "headers": headers}


def _too_large() -> Refused:
    return Refused(413, f"the request is too large; allowed: {MOST_BYTES // 2**20} MB and {MOST_IMAGES} images")


def _about(name: str, bundle: Bundle) -> dict[str, Any]:
    channels, height, width = bundle.artifact.pixel_shape
    return {
        "name": name,
        "labels": list(bundle.labels),
        "several_labels": bundle.thresholds is not None,
        "input": {"channels": channels, "height": height, "width": width, "fit": bundle.frame.fit},
        "quantized": bundle.artifact.quantized,
    }


def _page(name: str, bundle: Bundle, nonce: str) -> str:
    import jinja2

    text = (Path(__file__).parent / "service.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(text).render(
        about=_about(name, bundle), nonce=nonce, most_mb=MOST_BYTES // 2**20, most_images=MOST_IMAGES, top=TOP
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 picks a free one.

    Raises:
        UserError: it is taken or not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family)
    # A name such as `a..b` is no name at all, which Python says in another way.
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name of a machine"
        raise UserError(f"--port {port}: cannot be used on {host} ({reason}); try another") from error
    # Connections inherit this. Otherwise, the second part of an answer waits 40 ms until the first is acknowledged.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def serve(application: Starlette, at: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    import uvicorn

    # Connections are closed after this many seconds without a request.
    settings = uvicorn.Config(application, log_level="warning", access_log=False, timeout_keep_alive=5)
    uvicorn.Server(settings).run(sockets=[at])
