"""The dashboard answers this machine only, and nobody's page but its own."""

from __future__ import annotations

import http.client
import io
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.jobs.evaluation import Evaluation, predictions_csv
from imgcls_search.space import parse
from imgcls_search.study import best
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.views import attributes, dashboard
from imgcls_search.views.addresses import is_loopback
from imgcls_search.views.dashboard import make_dashboard, refusing_strangers

from scripts.bench import simulation
from tests.conftest import PATIENCE

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


@contextmanager
def serving(files: StudyFiles, say: Callable[[str], None] = print) -> Iterator[int]:
    """Yield the port of a dashboard on a study."""
    server = make_dashboard(files, "127.0.0.1", 0, say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    simulation.new_record(tmp_path, SPACE, "s").rows.engine.dispose()
    with serving(StudyFiles(tmp_path, "s")) as found:
        yield found


def study_with(
    files: StudyFiles, objectives: Sequence[tuple[str, str]], ends: Sequence[tuple[Sequence[float], float]]
) -> Record:
    """Make a study of complete trials with these values, over a limit of latency by so much."""
    files.make()
    with warnings.catch_warnings():
        # Names of metrics are an experiment of Optuna's.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        record = records.create(files, objectives, {"space": records.to_json(SPACE.document)})
    for trial, (values, excess) in zip(simulation.make_trials(SPACE, len(ends)), ends, strict=True):
        epochs, trial.epochs, trial.state, trial.values = trial.epochs, [], "running", None
        trial.sizes = {**trial.sizes, "params": 1000 - trial.number}
        record.add(trial)
        record.add_epoch(trial, epochs[0])
        record.complete(trial, values, {"limits.latency_ms": excess})
    return record


def ask(port: int, path: str = "/api/studies", method: str = "GET", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, headers=headers)
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


@pytest.mark.parametrize("site", ["same-origin", "none", None])
def test_browser_s_own_requests_are_answered(site: str | None, port: int) -> None:
    """Browsers send no Origin with a page's own GETs, but say of what kind they are."""
    about = (
        {}
        if site is None
        else {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Referer": f"http://127.0.0.1:{port}/"}
    )
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert ask(port, Host=name, **about) == 200
        # Also with an Origin, as with each POST; behind a tunnel the port is another one, on both sides.
        assert ask(port, Host=name, Origin=f"http://{name.lower()}", **about) == 200
    assert ask(port, Host="localhost:9999", Origin="http://localhost:9999", **about) == 200


def test_pages_of_other_ports_of_this_machine_are_refused(port: int) -> None:
    for origin in (
        f"http://127.0.0.1:{port + 1}",
        f"http://localhost:{port + 1}",
        "http://127.0.0.1",
        "http://localhost",
        f"http://127.0.0.2:{port}",
        f"http://[::1]:{port}",
        f"https://127.0.0.1:{port}",
        f"http://127.0.0.1:{port}.evil.example",
        f"http://127.0.0.1:{port}@evil.example",
        f"http://evil@127.0.0.1:{port}",
        f"http://127.0.0.1:{port}/evil",
        "http://127.0.0.1:port",
        "file://",
        "null",
        "",
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, "/api/studies", method=method, Host=f"127.0.0.1:{port}", Origin=origin) == 403, origin
    for site in ("same-site", "cross-site"):
        assert ask(port, **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}) == 403
        assert ask(port, method="POST", **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == 403
        # A link to the dashboard may be followed from anywhere.
        assert ask(port, "/dashboard/", **{"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}) == 200


PICTURE = "0a0a0a0a-0000-5000-8000-000000000001"


@pytest.fixture
def pictured(tmp_path: Path) -> StudyFiles:
    """A study with a picture of its own, and a secret beside the studies."""
    files = StudyFiles(tmp_path / "studies", "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0)])
    files.pictures.mkdir(parents=True)
    (files.pictures / PICTURE).write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}")
    entry = {"artifact_id": PICTURE, "filename": "a.png", "mimetype": "image/png", "encoding": None}
    # The second is how optuna-dashboard notes a picture of a trial that has ended.
    for key in (f"artifacts:{PICTURE}", f"dashboard:artifacts:1:{PICTURE}"):
        study._storage.set_study_system_attr(study._study_id, key, json.dumps(entry))
    record.rows.engine.dispose()
    return files


ROUTES = (f"/artifacts/1/1/{PICTURE}", f"/artifacts/1/{PICTURE}")


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_picture_that_is_a_file_is_served(pictured: StudyFiles) -> None:
    with serving(pictured) as port:
        assert [get(port, path) for path in ROUTES] == [(200, b"picture")] * 2


def link_to_file(files: StudyFiles) -> None:
    (files.pictures / PICTURE).unlink()
    (files.pictures / PICTURE).symlink_to(files.root.parent / "secret")


def link_to_other_picture(files: StudyFiles) -> None:
    (files.pictures / PICTURE).rename(files.pictures / "secret")
    (files.pictures / PICTURE).symlink_to("secret")


def link_to_folder(files: StudyFiles) -> None:
    elsewhere = files.root.parent / "elsewhere"
    files.pictures.rename(elsewhere)
    files.pictures.symlink_to(elsewhere)


def pipe(files: StudyFiles) -> None:
    (files.pictures / PICTURE).unlink()
    os.mkfifo(files.pictures / PICTURE)


def folder(files: StudyFiles) -> None:
    (files.pictures / PICTURE).unlink()
    (files.pictures / PICTURE).mkdir()


@pytest.mark.parametrize("spoil", [link_to_file, link_to_other_picture, link_to_folder, pipe, folder])
def test_picture_that_is_no_plain_file_of_the_study_is_not_served(
    spoil: Callable[[StudyFiles], None], pictured: StudyFiles
) -> None:
    spoil(pictured)
    with serving(pictured) as port:
        for path in ROUTES:
            status, body = get(port, path)
            assert status == 404
            assert b"secret" not in body
            assert b"picture" not in body.replace(b"This picture", b"")
        assert get(port, f"/api{ROUTES[1]}", "DELETE")[0] in (204, 404)
    # Deleting takes the link away, and never what it leads to.
    assert (pictured.root.parent / "secret").read_bytes() == b"secret"
    if spoil is link_to_folder:
        assert (pictured.root.parent / "elsewhere" / PICTURE).read_bytes() == b"picture"


def test_study_s_folder_may_be_a_link_to_another_disk(pictured: StudyFiles, tmp_path: Path) -> None:
    pictured.folder.rename(tmp_path / "disk")
    pictured.folder.symlink_to(tmp_path / "disk")
    with serving(pictured) as port:
        assert get(port, ROUTES[0]) == (200, b"picture")


def test_what_somebody_adds_to_the_study_is_written_and_served(pictured: StudyFiles) -> None:
    with serving(pictured) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        body = json.dumps({"file": "data:text/plain;base64,bm90ZQ==", "filename": "note.txt"})
        connection.request("POST", "/api/artifacts/1", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 201
        key = json.loads(answer.read())["artifact_id"]
        connection.close()
        assert get(port, f"/artifacts/1/{key}") == (200, b"note")


def shown(port: int, after: int = 0) -> dict[str, Any]:
    """Return a study as the page gets it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/api/studies/1?after={after}")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


TWO = (("accuracy", "maximize"), ("latency_ms", "minimize"))


@pytest.mark.parametrize(
    ("objectives", "ends", "expected"),
    [
        # The highest is over the limit; of two equal ones the smaller model is best.
        (TWO[:1], [([0.5], 0.0), ([0.8], -1.0), ([0.9], 0.1), ([0.8], -1.0)], [3]),
        (TWO[:1], [([0.5], 2.0), ([0.8], 1.0)], []),
        # What is over the limit would beat all the others.
        (TWO, [([0.9, 1.0], 0.5), ([0.8, 2.0], 0.0), ([0.7, 1.5], -1.0), ([0.7, 3.0], 0.0)], [1, 2]),
        (TWO, [], []),
    ],
)
def test_best_in_the_dashboard_is_ours(
    objectives: Sequence[tuple[str, str]],
    ends: Sequence[tuple[Sequence[float], float]],
    expected: list[int],
    tmp_path: Path,
) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, objectives, ends)
    with serving(files) as port:
        page = shown(port)
        assert [trial["number"] for trial in page["best_trials"]] == expected
        assert [trial["constraints"] for trial in page["trials"]] == [[excess] for _, excess in ends]
        if expected:
            assert [trial.number for trial in best.front(record)] == expected
            assert page["best_trials"][0] == page["trials"][expected[0]]
        # The page asks for what it has not seen, and the best is mostly older.
        later = shown(port, after=max(0, len(ends) - 1))
        assert later["trials"] == page["trials"][-1:]
        assert later["best_trials"] == page["best_trials"]


def test_best_of_an_earlier_state_of_a_study_is_ours(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s", kept=1)
    study_with(files, TWO[:1], [([0.5], 0.0), ([0.8], -1.0), ([0.9], 0.1), ([0.8], -1.0)])
    with serving(files) as port:
        page = shown(port)
    assert page["name"] == "s@1"
    assert [trial["number"] for trial in page["best_trials"]] == [3]


def test_best_in_the_dashboard_follows_a_search(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0)])
    with serving(files) as port:
        assert [trial["number"] for trial in shown(port)["best_trials"]] == [0]
        trial = simulation.make_trials(SPACE, 2)[1]
        trial.epochs, trial.state, trial.values = [], "running", None
        record.add(trial)
        record.complete(trial, [0.9])
        # The dashboard itself keeps what it read for two seconds: never a best one that is not on the page.
        found, deadline = shown(port), time.monotonic() + PATIENCE
        while found["best_trials"][0]["number"] == 0 and time.monotonic() < deadline:
            assert len(found["trials"]) == 1
            time.sleep(0.1)
            found = shown(port)
        assert found["best_trials"] == found["trials"][1:]


def test_dashboard_that_others_may_reach_answers_to_numbers_but_to_no_strangers_name() -> None:
    def answer(host: str, name: str) -> str:
        said: list[str] = []
        application = refusing_strangers(lambda environ, start: start("200 OK", []) or [], host)
        application({"HTTP_HOST": name, "REQUEST_METHOD": "GET"}, lambda status, headers: said.append(status))
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
        decided=np.zeros(5, dtype=int),
        classes=("=SUM(1)", "dog"),
    )
    lines = predictions_csv(evaluation).splitlines()
    assert lines[1].startswith("'=cmd")
    assert ",'=SUM(1)," in lines[1]
    assert [line[:2] for line in lines[2:5]] == ["'+", "'-", "'@"]
    assert lines[5].startswith("a=b.png,")


class _Broken(io.BytesIO):
    """A connection that ends in the middle of an upload."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise ConnectionResetError
        return super().read(10)


def test_what_is_added_to_a_trial_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    store = dashboard._Pictures(tmp_path / "artifacts")
    with pytest.raises(ConnectionResetError):
        store.write(PICTURE, _Broken(b"x" * 1000))
    assert list((tmp_path / "artifacts").iterdir()) == []
    store.write(PICTURE, io.BytesIO(b"whole"))
    with store.open_reader(PICTURE) as file:
        assert file.read() == b"whole"
    with pytest.raises(FileExistsError):
        store.write(PICTURE, io.BytesIO(b"another"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (tmp_path / "artifacts" / PICTURE).unlink()
    (tmp_path / "artifacts" / PICTURE).symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        store.write(PICTURE, io.BytesIO(b"another"))
    assert elsewhere.read_bytes() == b"mine"


def long_study(files: StudyFiles) -> Record:
    """Make a study with a trial whose attributes are long."""
    record = study_with(files, TWO[:1], [([0.5], 0.0), ([0.75], 0.0)])
    trial = simulation.make_trials(SPACE, 3)[2]
    epochs, trial.epochs, trial.state, trial.values = trial.epochs, [], "running", None
    record.add(trial)
    for metrics in epochs:
        record.add_epoch(trial, metrics)
    record.note(trial, troubles=[f"out of memory {number}" for number in range(50)], worker="worker-0")
    record.complete(trial, [0.9])
    record.set_fact("data", {"images": {"train": 800}, "classes": [f"c{n}" for n in range(200)], "fingerprint": "0"})
    return record


@pytest.mark.parametrize("is_older", [False, True])
def test_objectives_have_names_also_in_studies_of_earlier_versions(is_older: bool, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0)])
    if is_older:
        key = "study:metric_names"
        with record.rows.engine.begin() as connection:
            connection.exec_driver_sql(f"DELETE FROM study_system_attributes WHERE key = '{key}'")  # noqa: S608
        assert optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}").metric_names is None
    with serving(files) as port:
        assert shown(port)["objective_names"] == ["accuracy"]
    # Plain optuna-dashboard and Optuna have them as well from now on.
    assert optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}").metric_names == ["accuracy"]


def test_names_that_a_person_gave_stay(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    study_with(files, TWO[:1], [([0.5], 0.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}").set_metric_names(["top-1"])
    with serving(files) as port:
        assert shown(port)["objective_names"] == ["top-1"]


def test_attributes_are_a_line_each_and_whole_at_their_address(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = long_study(files)
    with serving(files) as port:
        page = shown(port)
        (summary,) = json.loads(get(port, "/api/studies")[1])["study_summaries"]
        for entry in (summary, page, *page["trials"], *page["best_trials"]):
            assert all(len(each["value"]) <= 160 for each in entry["user_attrs"])
            assert not any(each["value"].startswith(("{", "[")) for each in entry["user_attrs"])
        # Of another study, the list has what fits.
        other = {"study_name": "other", "user_attrs": [{"key": "a", "value": '{"x": [1'}, {"key": "b", "value": "[2]"}]}
        attributes.shorten_summary(other, record)
        assert [each["value"] for each in other["user_attrs"]] == ["too long for this list", "2"]
        short = {each["key"]: each["value"] for each in page["trials"][2]["user_attrs"]}
        assert short["config"].startswith("data digits")
        assert "model vit" in short["config"]
        assert short["epochs"].startswith("10, last: train_loss 0.23, accuracy ")
        assert short["troubles"] == "50, last: out of memory 49"
        assert short["seed"] == str(record.trials[2].seed)
        status, body = get(port, short["all"])
        kept = optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}")
        assert (status, json.loads(body)) == (200, kept.trials[2].user_attrs)
        whole = {each["key"]: each["value"] for each in page["user_attrs"]}["all"]
        assert json.loads(get(port, whole)[1]) == kept.user_attrs
        assert get(port, "/attributes/77.json")[0] == 404
        assert ask(port, short["all"], Host="evil.example") == 403


def change(files: StudyFiles, statement: str) -> None:
    with closing(sqlite3.connect(files.database)) as connection, connection:
        assert connection.execute(statement).rowcount


def test_whole_attributes_of_a_damaged_study_are_shown_as_they_are(tmp_path: Path) -> None:
    files, said = StudyFiles(tmp_path, "s"), list[str]()
    long_study(files)
    with serving(files, said.append) as port:
        change(files, "UPDATE trial_user_attributes SET value_json = '[[[' WHERE key = 'epochs'")
        change(files, "UPDATE trial_user_attributes SET value_json = x'ff00' WHERE key = 'config'")
        change(files, "UPDATE trial_params SET distribution_json = 'nope'")
        change(files, "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'data'")
        status, body = get(port, "/attributes/2.json")
        found = json.loads(body)
        assert (status, found["epochs"], found["config"], found["worker"]) == (200, "[[[", "b'\\xff\\x00'", "worker-0")
        status, body = get(port, "/attributes/study.json")
        assert (status, json.loads(body)["data"]) == (200, "{")
        change(files, "UPDATE study_user_attributes SET value_json = CAST(x'ff' AS TEXT) WHERE key = 'data'")
        status, body = get(port, "/attributes/study.json")
        assert (status, "s.db: cannot be read (Could not decode" in json.loads(body)) == (503, True)


def test_page_of_a_damaged_study_is_a_line_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files, said = StudyFiles(tmp_path, "s"), list[str]()
    long_study(files)
    with serving(files, said.append) as port:
        change(files, "DELETE FROM trials WHERE number = 2")
        # What was best is no longer there.
        assert get(port, "/api/studies/1")[0] == 200
        change(files, "UPDATE trial_user_attributes SET value_json = '[[[' WHERE key = 'epochs'")
        for _ in range(2):
            assert get(port, "/api/studies/1")[0] == 500
    assert [line for line in said if line.startswith("a page cannot be shown: ")] == [
        "a page cannot be shown: Expecting value: line 1 column 4 (char 3)"
    ]
    assert "Traceback" not in "".join(capfd.readouterr())


def test_attribute_of_many_levels_is_a_line() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert attributes.brief(deep) == "too many levels of values in each other"


@pytest.mark.parametrize(("host", "shown_host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("box.lan", "box.lan")])
def test_printed_address_is_the_study_s_own_page(host: str, shown_host: str, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0)])
    address = dashboard.address_of(record, host, 8080)
    assert address == f"http://{shown_host}:8080/dashboard/studies/1"
    server = make_dashboard(files, "127.0.0.1", 0, print)
    server.server_close()
    assert server.address == f"http://127.0.0.1:{server.server_port}/dashboard/studies/1"
    with serving(files) as port:
        assert ask(port, "/dashboard/studies/1") == 200
