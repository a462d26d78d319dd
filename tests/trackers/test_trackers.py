"""Trackers get each trial once, whatever happens to them or to the run, and no search waits for one."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.orchestrator import tracking
from imgcls_search.trackers import clients, process, settings
from imgcls_search.trackers.messages import End, EpochMeasured, Message, TrackedStudy, TrialBegan, TrialEnded

from tests.conftest import PATIENCE, Answer, is_one_line

STUDY = TrackedStudy(name="s", identity="abc", notes={})

SPACE = """
study:
  name: s
  trials: {trials}
  objectives: {{accuracy: maximize}}
  log: {log}
data: {{digits: {{max_train: 60}}}}
model: {{lenet5: {{width: 0.5}}}}
optimizer: {{sgd: {{lr: {{float: [0.01, 0.1]}}}}}}
training: {{epochs: 2, batch_size: 30}}
"""


def messages(trial: int, epochs: int = 2) -> list[Message]:
    return [
        TrialBegan(trial=trial, params={"model.lenet5.width": 0.5, "loss": None}, config="model: lenet5\n"),
        *(EpochMeasured(trial=trial, epoch=epoch, metrics={"accuracy": epoch / 10}) for epoch in range(1, epochs + 1)),
        TrialEnded(trial=trial, state="complete", values={"accuracy": 0.2, "params": 12.0}),
    ]


class Notebook:
    """A tracker that notes what it receives, and fails on demand."""

    def __init__(self, failures: int = 0, seconds: float = 0.0) -> None:
        self.said: list[str] = []
        self.failures, self.seconds = failures, seconds

    def begin(self, trial: TrialBegan, known: str | None) -> str:
        self._note(f"begin {trial.trial} {known}")
        return f"run-{trial.trial}"

    def measure(self, run: str, epoch: EpochMeasured) -> None:
        self._note(f"{run} epoch {epoch.epoch}")

    def end(self, run: str, trial: TrialEnded) -> None:
        self._note(f"{run} {trial.state}")

    def close(self) -> None:
        self.said.append("close")

    def _note(self, text: str) -> None:
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody answers.\nA page of advice")
        self.said.append(text)


def work(notebook: Notebook, file: Path, *given: Message) -> list[Any]:
    """Let a tracker hand messages to a tracker; return what it told the run."""
    ours, theirs = Pipe()
    for message in given:
        ours.send(message)
    ours.send(End())
    process.TrackerQueue(theirs, lambda settings, study: notebook, {"uri": "x"}, STUDY, file).work()
    found = []
    while ours.poll(0):
        found.append(ours.recv())
    return found


WHOLE = ["begin 0 None", "run-0 epoch 1", "run-0 epoch 2", "run-0 complete"]


def test_what_is_known_is_not_said_again(tmp_path: Path) -> None:
    first, again = Notebook(), Notebook()
    assert work(first, tmp_path / "log.json", *messages(0), *messages(1)[:2]) == [("end", 0)]
    assert first.said == [*WHOLE, "begin 1 None", "run-1 epoch 1", "close"]
    # The next run tells all that the study holds.
    assert work(again, tmp_path / "log.json", *messages(0), *messages(1)) == [("end", 0)]
    assert again.said == ["begin 1 run-1", "run-1 epoch 2", "run-1 complete", "close"]


def test_another_target_gets_everything(tmp_path: Path) -> None:
    work(Notebook(), tmp_path / "log.json", *messages(0))
    known = json.loads((tmp_path / "log.json").read_text())
    (tmp_path / "log.json").write_text(json.dumps({**known, "target": {"uri": "y", "study": "abc"}}))
    other = Notebook()
    work(other, tmp_path / "log.json", *messages(0))
    assert other.said == [*WHOLE, "close"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"target": 3}', '{"target": {"uri": "x", "study": "abc"}}'])
def test_damaged_notes_are_made_again(content: str, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(content)
    notebook = Notebook()
    assert work(notebook, tmp_path / "log.json", *messages(0)) == [("end", 0)]
    assert notebook.said == [*WHOLE, "close"]


def test_what_did_not_go_through_is_said_later_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "AGAIN_SECONDS", 0.05)
    ours, theirs = Pipe()
    notebook = Notebook(failures=3)
    tracker = process.TrackerQueue(theirs, lambda settings, study: notebook, {"uri": "x"}, STUDY, tmp_path / "log.json")
    thread = threading.Thread(target=tracker.work)
    thread.start()
    for message in messages(0):
        ours.send(message)
    assert ours.recv() == ("trouble", "nobody answers")
    assert ours.recv() == ("well", "")
    ours.send(End())
    assert ours.recv() == ("end", 0)
    thread.join()
    assert notebook.said == [*WHOLE, "close"]


def test_what_was_never_taken_is_counted_and_kept_for_the_next_run(tmp_path: Path) -> None:
    away = Notebook(failures=100)
    assert work(away, tmp_path / "log.json", *messages(0)) == [("trouble", "nobody answers"), ("end", 4)]
    back = Notebook()
    work(back, tmp_path / "log.json", *messages(0))
    assert back.said == [*WHOLE, "close"]


def test_a_run_that_died_is_handed_on_as_far_as_it_came(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    for message in messages(0)[:3]:
        ours.send(message)
    ours.close()
    notebook = Notebook()
    process.TrackerQueue(theirs, lambda settings, study: notebook, {"uri": "x"}, STUDY, tmp_path / "log.json").work()
    assert notebook.said == [*WHOLE[:3], "close"]


def test_every_section_has_a_client_and_a_switch() -> None:
    assert list(settings.SETTINGS) == list(clients.CLIENTS) == list(settings.SWITCHES) == list(settings.PACKAGES)
    for name, section in settings.SETTINGS.items():
        assert getattr(section(), settings.SWITCHES[name]) is None


def test_off_unless_it_is_told_where() -> None:
    log = {name: vars(section()) for name, section in settings.SETTINGS.items()}
    assert settings.wanted(log) == {}


REFUSED: Mapping[str, tuple[str, str]] = {
    "{mlflow: {uri: 'https://me:secret@host'}}": ("", "study.log.mlflow.uri: the address holds a password"),
    "{tensorboard: {folder: '${NOWHERE_AT_ALL}'}}": ("", "study.log.tensorboard.folder: ${NOWHERE_AT_ALL}"),
    "{comet: {}}": ("", "study.log.comet: unknown key; allowed: tensorboard, mlflow, wandb"),
    "{wandb: {mode: sometimes}}": ("", "'sometimes' is not allowed; allowed: 'online', 'offline'"),
    "{wandb: {mode: offline}}": ("", "study.log.wandb.project: is not set, so nothing would be sent, but"),
    "{mlflow: {experiment: e}}": (
        "",
        "study.log.mlflow.uri: is not set, so nothing would be sent, but study",
    ),
    "{mlflow: {uri: x}}": ("mlflow", "needs a package that is not installed; pip install 'imgcls-search[mlflow]'"),
}


@pytest.mark.parametrize("log", REFUSED)
def test_what_cannot_be_is_one_line(log: str, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    lacking, said = REFUSED[log]
    real = settings.find_spec
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == lacking else real(name))
    Path("s.yaml").write_text(SPACE.format(trials=1, log=log))
    answer = here("run", "s.yaml")
    assert answer.code == 2
    assert said in answer.err
    assert "secret" not in answer.err
    assert is_one_line(answer)
    assert not Path("studies").exists()


def tensorboard(folder: Path) -> dict[int, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for run in sorted((folder / "s").iterdir()):
        events = EventAccumulator(str(run))
        events.Reload()
        assert "result/accuracy/text_summary" not in events.Tags()["tensors"]
        assert {"config/text_summary", "state/text_summary"} <= set(events.Tags()["tensors"])
        found[int(run.name[-5:])] = [event.step for event in events.Scalars("accuracy")]
    return found


def mlflow(uri: str) -> dict[int, list[int]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (study,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert study.info.run_name == "s"
    found = {}
    for run in runs:
        if run is study:
            continue
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert run.info.status in ("FINISHED", "KILLED")
        assert "optimizer.sgd.lr" in run.data.params
        assert "config.yaml" in [each.path for each in client.list_artifacts(run.info.run_id)]
        steps = [each.step for each in client.get_metric_history(run.info.run_id, "accuracy")]
        found[int(run.data.tags["imgcls_search.trial"])] = steps
    return found


def wandb(folder: Path) -> dict[int, list[int]]:
    from wandb.proto import wandb_internal_pb2

    found: dict[int, list[int]] = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        steps, name = [], ""
        for data in _records(file.read_bytes()):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(data)
            if entry.HasField("run"):
                name = entry.run.display_name
                assert entry.run.run_group == "s"
            items = {item.key or "/".join(item.nested_key): item.value_json for item in entry.history.item}
            if "accuracy" in items:
                steps.append(int(items["epoch"]))
        found.setdefault(int(name.split()[1]), []).extend(steps)
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which wandb's offline files have behind 7 bytes of their own."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        (size, kind) = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        # 1: whole, 4: the last part.
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_all_three_hold_each_epoch_of_each_trial_once(imgcls: Callable[..., Answer], tmp_path: Path) -> None:
    """Through their own packages, over two runs of one study, the second of which finds the first one's trials."""
    uri = f"sqlite:///{tmp_path}/ml.db"
    local = "tensorboard: {folder: tb}, wandb: {project: p, mode: offline, folder: wb}"
    log = f"{{mlflow: {{uri: '{uri}'}}, {local}}}"
    for trials in (1, 3):
        (tmp_path / "s.yaml").write_text(SPACE.format(trials=trials, log=log))
        answer = imgcls("run", "s.yaml", "--workers", "1", timeout=2 * PATIENCE)
        assert answer.code == 0, answer.err
        assert "study.log" not in answer.out
    table = imgcls("trials", "s", "--json")
    expected = {row["trial"]: list(range(1, row["epochs"] + 1)) for row in json.loads(table.out)}
    assert len(expected) == 3
    assert tensorboard(tmp_path / "tb") == expected
    assert mlflow(uri) == expected
    assert wandb(tmp_path / "wb") == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dead_server_and_no_login_are_a_line_each_and_cost_nothing(
    imgcls: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    log = "{mlflow: {uri: 'http://127.0.0.1:9'}, wandb: {project: p, folder: wb}}"
    (tmp_path / "s.yaml").write_text(SPACE.format(trials=2, log=log))
    answer = imgcls("run", "s.yaml", "--workers", "1", timeout=2 * PATIENCE)
    assert answer.code == 0, answer.err
    assert "2 trials" in answer.out
    for name in ("mlflow", "wandb"):
        lines = [line for line in answer.out.splitlines() if line.startswith(f"study.log.{name}: ")]
        assert [("continues" in line, "next run" in line) for line in lines] == [(True, False), (False, True)], lines
    # The trackers may be others from one run to the next, and then have all trials.
    uri = f"sqlite:///{tmp_path}/ml.db"
    (tmp_path / "s.yaml").write_text(SPACE.format(trials=3, log=f"{{mlflow: {{uri: '{uri}'}}}}"))
    answer = imgcls("run", "s.yaml", "--workers", "1", timeout=2 * PATIENCE)
    assert answer.code == 0, answer.err
    assert sorted(mlflow(uri)) == [0, 1, 2]


def test_a_slow_tracker_holds_nothing_up(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    slow = process.TrackerQueue(theirs, lambda settings, study: Notebook(seconds=1), {}, STUDY, tmp_path / "log.json")
    threading.Thread(target=slow.work, daemon=True).start()
    tracker = tracking.TrackerProcess("study.log.x", None, ours)
    began = time.monotonic()
    for trial in range(2_000):
        for message in messages(trial):
            tracker.tell(message)
    # It would take more than two hours to take them all, and its pipe is full after some hundred.
    assert time.monotonic() - began < PATIENCE
    assert list(tracker.close(0.01)) == [
        "study.log.x: did not accept everything within 15 s; the next run sends the rest"
    ]
