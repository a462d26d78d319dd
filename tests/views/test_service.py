"""A bundle over HTTP: the same answers as `predict`, limits, nobody's page but its own, and a page that works."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import uvicorn
from imgcls_search import digests
from imgcls_search.data.image import Frame
from imgcls_search.deploy.bundle import DESCRIPTION, FILES, OPENVINO, Bundle, describe, read
from imgcls_search.deploy.predict import Prediction, classify, plain
from imgcls_search.views import service
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.conftest import PATIENCE, Answer, is_one_line

LABELS = ("red", "green", "blue")
SIZE = 8


def write_bundle(folder: Path, labels: tuple[str, ...] = LABELS, thresholds: tuple[float, ...] | None = None) -> Path:
    """Write a bundle whose logits are the mean values of the three channels, by 16."""
    scale = numpy_helper.from_array(np.float32(1 / 16), "scale")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "means", [pixels], [logits], [scale, axes])
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / FILES["model"]
    )
    for role in ("config", "metrics", "card"):
        (folder / FILES[role]).write_text("{}\n")
    (folder / FILES["labels"]).write_text(json.dumps(labels))
    frame = Frame(size=SIZE, channels=3, fit="crop", fill="mean", margin=1.0)
    about = describe(
        folder, frame=frame, mean=[0, 0, 0], std=[1, 1, 1], quantized="none", costs=None, thresholds=thresholds
    )
    (folder / DESCRIPTION).write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read(write_bundle(tmp_path_factory.mktemp("service") / "model"))


@pytest.fixture(scope="module")
def port(bundle: Bundle) -> Iterator[int]:
    """Yield the port of a service on the bundle."""
    with serving(bundle) as number:
        yield number


@contextlib.contextmanager
def serving(bundle: Bundle) -> Iterator[int]:
    """Yield the port of a service on a bundle."""
    with service.listen("127.0.0.1", 0) as at:
        server = uvicorn.Server(
            uvicorn.Config(service.make_service(bundle, "127.0.0.1", name="colours"), log_level="error")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        yield at.getsockname()[1]
        server.should_exit = True
        thread.join()


def picture(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(content, kind)
    return content.getvalue()


RED, BLUE = picture((200, 20, 10)), picture((5, 20, 220), "JPEG")


def ask(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    text, found = answer.read().decode(), {key.lower(): value for key, value in answer.getheaders()}
    connection.close()
    return answer.status, json.loads(text) if "json" in found.get("content-type", "") else text, found


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        b'--cut\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in parts
    )
    return body + b"--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}


def test_a_model_of_openvino_is_served_as_one_of_onnx_is(port: int, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra")
    from imgcls_search.deploy import openvino_ir

    folder = write_bundle(tmp_path / "model")
    openvino_ir.convert(folder / FILES["model"], folder / OPENVINO["model"])
    (folder / FILES["model"]).unlink()
    about = json.loads((folder / DESCRIPTION).read_text())
    for role, name in OPENVINO.items():
        about["files"][role] = {"name": name, "sha256": digests.of_file(folder / name)}
    (folder / DESCRIPTION).write_text(json.dumps(about))
    bodies = [picture((200 - step, 20, 10 + step)) for step in range(0, 200, 10)]
    with serving(read(folder)) as other, ThreadPoolExecutor(8) as pool:
        ours = list(pool.map(lambda body: ask(other, "POST", "/predict?top=3", body)[:2], bodies))
        status, model, _ = ask(other, "GET", "/model")
    theirs = [ask(port, "POST", "/predict?top=3", body)[:2] for body in bodies]
    assert (status, model["labels"]) == (200, list(LABELS))
    for (status, found), (_, wanted) in zip(ours, theirs, strict=True):
        assert status == 200
        mine, expected = (one["predictions"][0]["classes"] for one in (found, wanted))
        assert [one["label"] for one in mine] == [one["label"] for one in expected]
        assert [one["probability"] for one in mine] == pytest.approx([one["probability"] for one in expected], abs=1e-5)


def test_answers_are_those_of_predict(bundle: Bundle, port: int, tmp_path: Path) -> None:
    for number, content in enumerate((RED, BLUE)):
        (tmp_path / f"{number}").write_bytes(content)
    expected = [
        plain(one) for one in classify(bundle, sorted(tmp_path.iterdir()), top=3) if isinstance(one, Prediction)
    ]
    assert [one["classes"][0]["label"] for one in expected] == ["red", "blue"]
    status, one, _ = ask(port, "POST", "/predict?top=3", RED)
    assert (status, one) == (200, {"predictions": [{**expected[0], "image": "image"}], "skipped": []})
    body, headers = form(("a.png", RED), ("notes.txt", b"no image"), ("b.jpg", BLUE))
    status, several, _ = ask(port, "POST", "/predict?top=3", body, headers)
    assert status == 200
    assert several["predictions"] == [{**expected[0], "image": "a.png"}, {**expected[1], "image": "b.jpg"}]
    assert [entry["image"] for entry in several["skipped"]] == ["notes.txt"]
    assert str(tmp_path.anchor) not in several["skipped"][0]["reason"]
    _, fewer, _ = ask(port, "POST", "/predict?top=1", RED)
    assert fewer["predictions"][0]["classes"] == expected[0]["classes"][:1]


def test_requests_that_wait_are_answered_together_each_with_its_own(port: int) -> None:
    def send(number: int) -> list[str]:
        content = (RED, BLUE)[number % 2]
        body, headers = form(*[(f"{number}-{place}", content) for place in range(1 + number % 3)])
        _, found, _ = ask(port, "POST", "/predict?top=1", body, headers)
        return [f"{one['image']} {one['classes'][0]['label']}" for one in found["predictions"]]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(24)))
    assert found == [
        [f"{number}-{place} {('red', 'blue')[number % 2]}" for place in range(1 + number % 3)] for number in range(24)
    ]


def test_what_would_take_long_to_decode_is_refused(port: int) -> None:
    """A PNG file has no smaller form to decode, a JPEG file of the same size has."""
    large = Image.new("L", (8_000, 8_000))
    files = {kind: io.BytesIO() for kind in ("PNG", "JPEG")}
    for kind, content in files.items():
        large.save(content, kind)
    status, found, _ = ask(port, "POST", "/predict", files["PNG"].getvalue())
    assert status == 422
    assert "8000x8000 pixels are too many; allowed: 50 megapixels" in found["error"]
    assert ask(port, "POST", "/predict", files["JPEG"].getvalue())[0] == 200


def endless(total: int) -> Iterator[bytes]:
    yield from (bytes(2**20) for _ in range(total))


BAD: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "text": (("POST", "/predict", b"hello"), 422, "no image could be read: image: not an image"),
    "nothing": (("POST", "/predict", b""), 400, "no image: send its bytes as the body"),
    "no file": (("POST", "/predict", *form()), 400, "no image: the form has no file"),
    "top": (("POST", "/predict?top=0", RED), 400, "top: '0' is not allowed; allowed: 1 to 3"),
    "words": (("POST", "/predict?top=%C2%B2", RED), 400, "top: '²' is not allowed; allowed: 1 to 3"),
    "many": (("POST", "/predict", *form(*[("a", RED)] * 40)), 400, "Too many files. Maximum number of files is 32"),
    "torn": (("POST", "/predict", b"--cut\r\n???", form()[1]), 400, "the form cannot be read"),
    "no address": (("GET", "/predictions"), 404, "GET '/predictions' is not allowed; allowed: GET /, GET /model, POST"),
    "no method": (("GET", "/predict"), 405, "GET '/predict' is not allowed; allowed: GET /, GET /model, POST /predict"),
    "broken": (("POST", "/predict", RED[:60]), 422, "no image could be read: image: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line(case: str, port: int) -> None:
    request, status, said = BAD[case]
    found = ask(port, *request)
    assert found[0] == status
    assert said in found[1]["error"]
    assert "\n" not in found[1]["error"]
    assert ask(port, "POST", "/predict", RED)[0] == 200


def test_the_kind_of_a_form_may_be_in_capitals(port: int) -> None:
    body, headers = form(("a.png", RED))
    headers = {name: value.replace("multipart", "Multipart") for name, value in headers.items()}
    assert ask(port, "POST", "/predict", body, headers)[0] == 200


@pytest.mark.parametrize("is_form", [False, True])
@pytest.mark.parametrize("is_told", [False, True])
def test_what_is_too_large_is_not_read_to_its_end(port: int, is_form: bool, is_told: bool) -> None:
    """The gigabyte would come in parts; the answer is there long before, and nothing is kept of it."""
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        if is_form:
            yield b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for part in endless(1024):
            sent += len(part)
            yield part

    headers = dict(form()[1]) if is_form else {}
    if is_told:
        headers["Content-Length"] = str(2**30)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    # The server hangs up, having answered.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/predict", parts(), headers, encode_chunked=not is_told)
    assert sent < 2**29
    connection.close()
    assert ask(port, "POST", "/predict", RED)[0] == 200


def test_an_announced_size_is_refused_with_one_line(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(2**30))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read()) == {"error": "the request is too large; allowed: 32 MB and 32 images"}
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_only_its_own_pages_are_answered(port: int, headers: dict[str, str], status: int) -> None:
    assert ask(port, "POST", "/predict", RED, headers)[0] == status
    assert ask(port, "GET", "/model", None, headers)[0] == status


def test_its_own_page_is_answered(port: int) -> None:
    assert ask(port, "POST", "/predict", RED, {"Origin": f"http://127.0.0.1:{port}"})[0] == 200


def test_model_is_described(port: int) -> None:
    assert ask(port, "GET", "/model")[1] == {
        "name": "colours",
        "labels": list(LABELS),
        "several_labels": False,
        "input": {"channels": 3, "height": SIZE, "width": SIZE, "fit": "crop"},
        "quantized": "none",
    }


def test_names_of_classes_are_no_markup(tmp_path: Path) -> None:
    bundle = read(write_bundle(tmp_path / "model", ("<script>alert(1)</script>", "green", "blue")))
    page = service._page("<b>", bundle, "n")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>" not in page


def test_too_many_who_wait_are_told_so(bundle: Bundle) -> None:
    import asyncio

    async def crowd() -> list[Any]:
        queue = service.Queue(bundle)
        # Nobody works on them.
        waiting = [asyncio.create_task(queue.ask([], 1)) for _ in range(service.MOST_WAITING)]
        await asyncio.sleep(0)
        try:
            await queue.ask([], 1)
        except service.Refused as refused:
            found = [refused.status, refused.reason]
        for task in waiting:
            task.cancel()
        return found

    assert asyncio.run(crowd()) == [503, "64 requests are waiting; try again later"]


def test_a_fault_is_that_request_s_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    real = service.classify

    def faulty(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(service, "classify", real)
        raise RuntimeError("what nobody foresaw")

    async def twice(file: Path) -> Any:
        queue = service.Queue(bundle)
        worker = asyncio.create_task(queue.work())
        with pytest.raises(RuntimeError):
            await queue.ask([file], 1)
        found = await queue.ask([file], 1)
        worker.cancel()
        return found

    monkeypatch.setattr(service, "classify", faulty)
    (one,) = asyncio.run(twice(Path("nowhere.png")))
    assert one.reason == "No such file or directory"


def test_a_failed_request_gets_one_line_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*given: Any, **named: Any) -> Any:
        raise RuntimeError("what nobody foresaw")

    with monkeypatch.context() as patch:
        patch.setattr(service, "classify", faulty)
        status, said, _ = ask(port, "POST", "/predict", RED)
    assert (status, said) == (500, {"error": "the service failed; its output has the reason"})
    assert ask(port, "POST", "/predict", RED)[0] == 200


def test_command_says_where_it_is_and_ends_quietly(start: Callable[..., Any], tmp_path: Path) -> None:
    import signal
    import urllib.request

    write_bundle(tmp_path / "model")
    process = start("serve", "model", "--port", "0")
    line = process.stdout.readline()
    assert line.startswith("model on http://127.0.0.1:")
    address = line.split()[2]
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{address}model", timeout=PATIENCE) as answer:  # noqa: S310
                assert json.loads(answer.read())["labels"] == list(LABELS)
            break
        except OSError:
            assert time.monotonic() < deadline
    # A client that goes away in the middle of an upload is nobody's trouble.
    for kind in ("image/png", "multipart/form-data; boundary=cut"):
        gone = http.client.HTTPConnection("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]), timeout=PATIENCE)
        gone.request("POST", "/predict", iter([b"--cut\r\n"]), {"Content-Length": "5000", "Content-Type": kind})
        gone.close()
    with urllib.request.urlopen(f"{address}model", timeout=PATIENCE) as answer:  # noqa: S310
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    # 0 if the program that started the tests ignores Ctrl-C, as a shell does for what it runs in the background.
    assert process.returncode in (0, 130)
    assert (out, err) == ("", "")


def test_other_machines_are_answered_where_the_address_says_so(start: Callable[..., Any], tmp_path: Path) -> None:
    write_bundle(tmp_path / "model")
    process = start("serve", "model", "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    line = process.stdout.readline()
    assert line.startswith("model on http://0.0.0.0:")
    process.kill()
    assert "anyone who can reach this address can send images to the model" in process.communicate(timeout=PATIENCE)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("model", "--port", "{taken}"), "cannot be used on 127.0.0.1"),
        (("model", "--host", "no.such.host.example"), "cannot be used on no.such.host.example"),
        (("model", "--host", "a..b"), "cannot be used on a..b (not a name of a machine)"),
    ],
)
def test_command_that_cannot_serve_is_one_line(
    arguments: tuple[str, ...], said: str, imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "model")
    with service.listen("127.0.0.1", 0) as at:
        answer = imgcls("serve", *[part.format(taken=at.getsockname()[1]) for part in arguments])
    assert answer.code == 2
    assert said in answer.err
    assert is_one_line(answer)


@pytest.mark.slow
def test_page_classifies_what_is_chosen(port: int, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed; scripts/test --all installs it where it can")
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.jpg").write_bytes(BLUE)
    (tmp_path / "c.png").write_bytes(b"no image")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("#files", [str(file) for file in sorted(tmp_path.iterdir())])
        sync_api.expect(page.locator("#said")).to_have_text("3 images", timeout=1000 * PATIENCE)
        figures = page.locator("figure").all_inner_texts()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert figures[0].split("\n")[:2] == ["a.png", "red"]
    assert figures[1].split("\n")[:2] == ["b.jpg", "blue"]
    assert "not an image" in figures[2]
    # The browser itself tells of the one that was refused.
    assert [text for text in troubles if "422" not in text] == []
