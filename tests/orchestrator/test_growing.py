"""Studies that grow, are asked to try a configuration, or are merged, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.jobs.asking import ask
from imgcls_search.orchestrator.upcoming import Upcoming
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import load

from tests.conftest import PATIENCE, Answer, begin_command, is_one_line, linux_only
from tests.orchestrator.test_run import open_study, wait_for, without_times, worker_of
from tests.warm import Warm

SMALL = """
study: {trials: 3, pruner: none, pictures: false, learn_from: none, name: s}
data: {digits: {max_train: 100}}
model: {lenet5: {width: {choice: [0.5, 1]}, activation: relu}}
optimizer: {adamw: {lr: {float: [1e-3, 1e-2], log: true}}}
training: {epochs: 2, batch_size: 50}
"""
WIDE = """
study: {trials: 5, pruner: none, pictures: false, learn_from: none, name: s}
data: {digits: {max_train: 100}}
start: [{model: resnet}]
model:
  lenet5: {width: {choice: [2, 0.5, 1]}, activation: {choice: [tanh, relu]}}
  resnet: {depths: [1, 1], width: {choice: [8, 16]}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-1], log: true}}}
training: {epochs: 2, batch_size: 50}
"""
ONE_WORKER = ("--workers", "1")


def table(folder: Path, name: str = "s") -> list[Any]:
    return [
        (trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, without_times(trial))
        for trial in open_study(folder, name).trials
    ]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder with two studies, `s` and `b`, that were searched to their end on real images."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "s.yaml").write_text(SMALL)
    (folder / "wide.yaml").write_text(WIDE)
    for more in (["--name", "s"], ["--name", "b", "--set", "study.seed=5"]):
        process = begin_command(["run", "s.yaml", "--workers", "1", *more], folder, os.environ, warm)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def there(begun: Path, tmp_path: Path) -> Path:
    """A copy of that folder, in which commands run."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_search_that_found_nothing_to_try_leaves_no_study_in_the_way(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SMALL)
    refused = imgcls("run", "s.yaml", *ONE_WORKER, "--set", "study.sampler=grid")
    assert is_one_line(refused)
    assert not (tmp_path / "studies").exists()
    nothing = imgcls("run", "s.yaml", *ONE_WORKER, "--set", "limits.params=10")
    assert nothing.code != 0
    assert (tmp_path / "studies/s.db").is_file()
    answer = imgcls("run", "s.yaml", *ONE_WORKER, "--set", "limits.params=100000", "--set", "study.trials=1")
    assert answer.code == 0, answer.err
    assert "the study has no trial yet: it begins again with this space" in answer.out
    assert len(open_study(tmp_path / "studies", "s").trials) == 1
    # With a trial it is refused as ever.
    assert imgcls("run", "s.yaml", *ONE_WORKER, "--set", "limits.params=90000").code == 2
    again = imgcls(
        "run", "s.yaml", *ONE_WORKER, "--extend", "--set", "limits.params=100000", "--set", "study.sampler=grid"
    )
    assert is_one_line(again)
    assert "s@1" not in imgcls("list").out


def test_space_that_adds_needs_extend_and_then_the_study_goes_on(there: Path, imgcls: Callable[..., Answer]) -> None:
    before, weights = table(there / "studies"), (there / "studies/s/checkpoints/trial-00000.pt").read_bytes()
    answer = imgcls("run", "wide.yaml", *ONE_WORKER)
    assert is_one_line(answer)
    assert "--extend" in answer.err
    for words in ("model: resnet too", "model.lenet5.width: one of", "optimizer.adamw.lr: float 0.0001..0.1 log"):
        assert words in answer.err
    narrow = imgcls("run", "s.yaml", *ONE_WORKER, "--extend", "--set", "model.lenet5.width=1")
    assert narrow.code == 2
    assert "model.lenet5.width: was" in narrow.err
    assert table(there / "studies") == before
    answer = imgcls("run", "wide.yaml", *ONE_WORKER, "--extend", "--set", "study.sampler=tpe")
    assert answer.code == 0, answer.err
    assert "the study grows: study.sampler: auto becomes tpe; " in answer.out
    assert "as it was before: s@1" in answer.out
    record = load(StudyFiles(there / "studies", "s"))
    assert (record.num_drawn, record.num_requested, len(record.trials)) == (5, 1, 6)
    assert [next(iter(trial.strategy["sampler"])) for trial in record.trials] == ["auto"] * 3 + ["tpe"] * 3
    assert record.trials[3].candidate.params["model"] == "resnet"
    assert [row[:3] for row in table(there / "studies")[:3]] == [row[:3] for row in before]
    kept = [path.name for path in (there / "studies/s/checkpoints").glob("*.pt")]
    if "trial-00000.pt" in kept:
        assert (there / "studies/s/checkpoints/trial-00000.pt").read_bytes() == weights
    # The same command resumes, the space of before is a narrower one, and what was is shown under its own name.
    assert imgcls("run", "wide.yaml", *ONE_WORKER, "--set", "study.sampler=tpe").code == 0
    assert "model.resnet: was" in imgcls("run", "s.yaml", *ONE_WORKER, "--extend").err
    assert json.loads(imgcls("status", "s@1", "--json").out)["trials"]["total"] == 3
    for command in (("best", "s"), ("export", "s", "-o", "x.yaml"), ("report", "s", "-o", "r.html"), ("best", "s@1")):
        answer = imgcls(*command)
        assert answer.code == 0, (command, answer.err)
    answer = imgcls("reproduce", "s", "--trial", "1", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["verdict"] == "identical", answer.out
    assert imgcls("list").out.count("\n") == 3


@pytest.mark.slow
def test_trial_that_a_killed_run_left_goes_on_in_the_wider_space(
    there: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    long = ("--set", "training.epochs=8", "--name", "k", "--set", "study.trials=1")
    process = start("run", "s.yaml", *ONE_WORKER, *long)
    wait_for(lambda: list((there / "studies/k/checkpoints").glob("*.pt")))
    process.kill()
    process.wait()
    epochs = len(open_study(there / "studies", "k").trials[0].user_attrs.get("epochs", []))
    assert epochs < 8
    answer = imgcls("run", "wide.yaml", *ONE_WORKER, *long, "--extend")
    assert answer.code == 0, answer.err
    assert "resuming 1 trial " in answer.out
    first, asked = open_study(there / "studies", "k").trials
    assert len(first.user_attrs["epochs"]) == 8
    assert first.params["model"] == "lenet5"
    assert asked.params["model"] == "resnet"
    assert "trained again" not in answer.out


def test_request_is_filled_in_by_the_best_and_trained_by_the_next_run(
    there: Path, imgcls: Callable[..., Answer]
) -> None:
    best = json.loads(imgcls("best", "s", "--json").out)["best"][0]
    answer = imgcls("try", "s", "--set", "optimizer.adamw.lr=3e-3")
    assert answer.code == 0, answer.err
    assert "optimizer.adamw.lr=0.003" in answer.out
    assert f"as trial {best['trial']}: model.lenet5.width=" in answer.out
    assert "the next run trains it to its end" in answer.out
    # Nothing is a trial before a run makes it one.
    assert len(load(StudyFiles(there / "studies", "s")).trials) == 3
    found = json.loads(imgcls("try", "s", "--set", "model.lenet5.width=0.5", "--json").out)
    assert found["named"] == {"model.lenet5.width": 0.5}
    assert found["sources"] == {"optimizer.adamw.lr": best["trial"]}
    answer = imgcls("run", "s.yaml", *ONE_WORKER)
    assert answer.code == 0, answer.err
    assert f"trial 4: answers request {found['request']}; it begins" in answer.out
    record = load(StudyFiles(there / "studies", "s"))
    third, fourth = record.trials[3:]
    assert third.candidate.params["optimizer.adamw.lr"] == 3e-3
    assert third.candidate.params["model.lenet5.width"] == best["params"]["model.lenet5.width"]
    assert dict(fourth.candidate.params) == found["params"]
    assert {third.state, fourth.state} == {"complete"}
    assert (record.num_drawn, record.num_requested) == (3, 2)
    # Once is enough.
    assert "begins" not in imgcls("run", "s.yaml", *ONE_WORKER).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("s", "--set", "optimizer.adamw.lr=5"), "optimizer.adamw.lr: 5 is not allowed; allowed: float 0.001..0.01"),
        (("s", "--set", "optimizer.adamw.lr=fast"), "'fast' is not allowed"),
        (("s", "--set", "model=resnet"), "model: 'resnet' is not allowed; allowed: one of lenet5"),
        (("s", "--set", "model.lenet5.widht=1"), "the space has no such path"),
        (("s", "--set", "training.batch_size=51"), "the space fixes it to 50"),
        (("s", "--set", "model.lenet5.width"), "needs PATH=VALUE"),
        (("s", "--set", "model.lenet5.width=[1"), "--set model.lenet5.width=[1"),
        (("s",), "nothing to try"),
        (("nope", "--set", "a=1"), "no such study"),
    ],
)
def test_what_cannot_be_tried_is_refused_at_once(
    arguments: tuple[str, ...], said: str, begun: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(begun)
    answer = here("try", *arguments, "--studies", str(begun / "studies"))
    assert is_one_line(answer)
    assert said in answer.err
    assert "requests" not in load(StudyFiles(begun / "studies", "s")).facts


@pytest.mark.slow
@linux_only
def test_run_under_way_takes_a_request_also_when_all_its_trials_are_drawn(
    there: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    process = start(
        "run", "s.yaml", *ONE_WORKER, "--name", "w", "--set", "training.epochs=200", "--set", "study.trials=1"
    )
    wait_for((there / "studies/w.db").is_file)
    wait_for(lambda: open_study(there / "studies", "w").trials)
    # However slow this machine is, the trial is not over before the request is there.
    worker = worker_of(process.pid)
    os.kill(worker, signal.SIGSTOP)
    answer = imgcls("try", "w", "--set", "optimizer.adamw.lr=0.002", "--json")
    os.kill(worker, signal.SIGCONT)
    assert json.loads(answer.out)["taken_by"] == f"process {process.pid}"
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "trial 1: answers request" in out
    assert [len(trial.user_attrs["epochs"]) for trial in open_study(there / "studies", "w").trials] == [200, 200]


def test_run_says_that_it_takes_a_request_only_where_it_does(
    there: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(there)
    files, answers = StudyFiles(there / "studies", "s"), []
    take, look = Upcoming.take_requests, Upcoming.is_asked

    def asking_before(upcoming: Upcoming, takes: bool) -> None:
        if upcoming.takes_requests and not answers:
            answers.append(ask(files, [("optimizer.adamw.lr", "0.002")]))
        take(upcoming, takes)

    def asking_after(upcoming: Upcoming) -> bool:
        found = look(upcoming)
        if not upcoming.takes_requests and not found:
            answers.append(ask(files, [("optimizer.adamw.lr", "0.003")]))
        return found

    monkeypatch.setattr(Upcoming, "take_requests", asking_before)
    monkeypatch.setattr(Upcoming, "is_asked", asking_after)
    answer = here("run", "s.yaml", *ONE_WORKER, "--set", "study.trials=4")
    assert answer.code == 0, answer.err
    first, second = answers
    tried = {trial.request for trial in load(files).trials if not trial.is_open}
    assert first.taken_by == f"process {os.getpid()}"
    assert second.taken_by is None
    assert first.request in tried
    assert second.request not in tried
    assert f"1 request left to the next run: {second.request}" in answer.out


def test_merged_study_has_the_trials_and_weights_of_both_and_goes_on(
    there: Path, imgcls: Callable[..., Answer]
) -> None:
    def files() -> dict[str, bytes]:
        paths = [path for name in ("s", "b") for path in sorted((there / "studies" / name).rglob("*"))]
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    first, second, before = table(there / "studies", "s"), table(there / "studies", "b"), files()
    answer = imgcls("merge", "s", "b", "-o", "both")
    assert answer.code == 0, answer.err
    assert "s: trials 0 to 2" in answer.out
    assert "b: trials 3 to 5" in answer.out
    assert files() == before
    merged = table(there / "studies", "both")
    assert [row[1:5] for row in merged] == [row[1:5] for row in [*first, *second]]
    assert [row[0] for row in merged] == list(range(6))
    record = load(StudyFiles(there / "studies", "both"))
    assert [trial.origin for trial in record.trials] == [
        *({"study": "s", "trial": number} for number in range(3)),
        *({"study": "b", "trial": number} for number in range(3)),
    ]
    for name, offset in (("s", 0), ("b", 3)):
        for number in range(3):
            source = StudyFiles(there / "studies", name)
            target = StudyFiles(there / "studies", "both")
            for own, theirs in ((source.checkpoint, target.checkpoint), (source.log, target.log)):
                assert own(number).read_bytes() == theirs(number + offset).read_bytes()
    assert sorted(path.name for path in (there / "studies/both").iterdir()) == [
        "checkpoints",
        "lock",
        "lock.pid",
        "logs",
    ]
    for command in (("best", "both"), ("export", "both", "-o", "x.yaml"), ("reproduce", "both", "--trial", "4")):
        assert imgcls(*command).code == 0
    answer = imgcls("run", "s.yaml", *ONE_WORKER, "--name", "both", "--set", "study.trials=7")
    assert answer.code == 0, answer.err
    assert len(load(StudyFiles(there / "studies", "both")).trials) == 7


def test_what_does_not_belong_together_is_not_merged(there: Path, imgcls: Callable[..., Answer]) -> None:
    for name, path, value in (
        ("other", "s.yaml", "data.digits.max_train=90"),
        ("wide", "s.yaml", "optimizer.adamw.lr={float: [1e-3, 1e-1]}"),
        ("down", "s.yaml", "study.objectives={loss: minimize}"),
    ):
        answer = imgcls("run", path, *ONE_WORKER, "--name", name, "--set", value, "--set", "study.trials=1")
        assert answer.code == 0, answer.err
    shutil.copytree(there / "studies/b", there / "moved/b")
    for name in ("b", "s"):
        shutil.copy(there / f"studies/{name}.db", there / f"moved/{name}.db")
    with closing(sqlite3.connect(there / "moved/b.db")) as connection, connection:
        key = "study_user_attributes SET value_json = replace(value_json, 'fingerprint\": \"', 'fingerprint\": \"0')"
        connection.execute(f"UPDATE {key} WHERE key = 'data'")
    answer = imgcls("merge", "s", "b", "-o", "x", "--studies", "moved")
    assert is_one_line(answer)
    assert "b: has other images than s" in answer.err
    for arguments, said in (
        (("s", "other", "-o", "x"), "other: has another space than s: data.digits.max_train: was 100, is now 90"),
        (("s", "down", "-o", "x"), "down: its objective is to minimize loss, that of s to maximize accuracy"),
        (("s", "wide", "-o", "x"), "wide: has another space than s: optimizer.adamw.lr: was"),
        (("s", "s", "-o", "x"), "needs two studies or more, each once"),
        (("s", "-o", "x"), "needs two studies or more, each once"),
        (("s", "b", "-o", "s"), "name another with -o"),
        (("s", "b", "-o", "other"), "has a study 'other' already"),
        (("s", "b", "-o", "../x"), "study name '../x'"),
        (("s", "nope", "-o", "x"), "no such study"),
    ):
        answer = imgcls("merge", *arguments)
        assert is_one_line(answer), answer.err
        assert said in answer.err
        assert not (there / "studies/x").exists() or not any((there / "studies/x").glob("*/*"))
    with closing(sqlite3.connect(there / "studies/b.db")) as connection, connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'plan'")
    answer = imgcls("merge", "s", "b", "-o", "x")
    assert is_one_line(answer)
    assert "damaged" in answer.err
    assert not (there / "studies/x.db").exists()
    (there / "studies/y").mkdir()
    (there / "studies/y/mine").touch()
    answer = imgcls("merge", "s", "wide", "-o", "y")
    assert is_one_line(answer)
    assert (there / "studies/y/mine").exists()


def test_neither_grows_nor_merges_while_a_run_is_at_work(
    there: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    process = start("run", "s.yaml", *ONE_WORKER, "--set", "study.trials=1000")
    wait_for(lambda: len(open_study(there / "studies", "s").trials) > 3)
    answer = imgcls("run", "wide.yaml", *ONE_WORKER, "--extend")
    assert is_one_line(answer)
    assert "another run is working on this study" in answer.err
    answer = imgcls("merge", "s", "b", "-o", "x")
    assert is_one_line(answer)
    assert "is working on this study (run)" in answer.err
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert "extended" not in load(StudyFiles(there / "studies", "s")).facts
