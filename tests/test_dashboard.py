"""The dashboard answers this machine only, and nobody's page but its own."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scripts import simulation
from search.catalog import catalog
from search.dashboard import is_loopback, make_dashboard, refusing_strangers
from search.evaluate import Evaluation, predictions_csv
from search.space import parse
from search.study.files import StudyFiles

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    simulation.new_record(tmp_path, SPACE, "s").rows.engine.dispose()
    server = make_dashboard(StudyFiles(tmp_path, "s"), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int, path: str = "/api/studies", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_dashboard_answers_under_its_own_address_only(port: int) -> None:
    assert ask(port) == 200
    assert ask(port, Host=f"localhost:{port}") == 200
    assert ask(port, Origin=f"http://127.0.0.1:{port}") == 200
    # A stranger's name that was made to mean this machine, and a stranger's page.
    for foreign in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.7",
    ):
        assert ask(port, Host=foreign) == 403, foreign
    assert ask(port, Origin="http://evil.example") == 403
    assert ask(port, Origin="null") == 403


def test_dashboard_that_others_may_reach_answers_to_numbers_but_to_no_strangers_name() -> None:
    def answer(host: str, name: str) -> str:
        said: list[str] = []
        application = refusing_strangers(lambda environ, start: start("200 OK", []) or [], host)
        application({"HTTP_HOST": name}, lambda status, headers: said.append(status))
        return said[0][:3]

    assert answer("0.0.0.0", "192.168.1.5:8080") == "200"  # noqa: S104
    assert answer("0.0.0.0", "evil.example") == "403"  # noqa: S104
    assert answer("box.lan", "box.lan:8080") == "200"
    assert answer("::1", "[::1]:8080") == "200"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert not is_loopback("0.0.0.0")  # noqa: S104


def test_csv_quotes_what_a_spreadsheet_would_run() -> None:
    evaluation = Evaluation(
        split="val",
        metrics={},
        names=("=cmd|'/c calc'!A1/1.png", "+1.png", "-1.png", "@x.png", "a=b.png"),
        labels=np.array([0, 1, 0, 1, 0]),
        probabilities=np.full((5, 2), 0.5),
        classes=("=SUM(1)", "dog"),
    )
    lines = predictions_csv(evaluation).splitlines()
    assert lines[1].startswith("'=cmd")
    assert ",'=SUM(1)," in lines[1]
    assert [line[:2] for line in lines[2:5]] == ["'+", "'-", "'@"]
    assert lines[5].startswith("a=b.png,")
