"""Whether somebody works on a study: one answer in every view, and a look that is in nobody's way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import optuna_dashboard
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import endings
from imgcls_search.study.activity import activity, progress_of, shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.holder import Holder, holder_of
from imgcls_search.study.record import Record, load
from imgcls_search.study.settings import StudySettings, is_free
from imgcls_search.study.summary import summarise

from scripts.bench import simulation
from tests.conftest import Answer
from tests.orchestrator.test_run import open_study, wait_for_epochs
from tests.views.test_dashboard import serving, shown

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")

WORK = """
import sys
from pathlib import Path
from imgcls_search.study.files import StudyFiles
with StudyFiles(Path(sys.argv[1]), "s").locked(task=sys.argv[2]):
    print("at work", flush=True)
    sys.stdin.readline()
"""

LOOK = """
import sys
from pathlib import Path
from imgcls_search.study.files import StudyFiles
files = StudyFiles(Path(sys.argv[1]), "s")
print("looking", flush=True)
while True:
    files.holder()
"""


def test_every_ending_of_a_run_is_known_and_its_setting_may_change_between_runs(tmp_path: Path) -> None:
    found = {}
    for ending in get_args(endings.Ending):
        record = study_of(tmp_path / ending, "CC")
        note_end(record, ending)
        found[ending] = activity(record)
    assert [name for name, one in found.items() if one.state == "interrupted"] == ["interrupted", "terminated"]
    by_setting = {one.ended_by for one in found.values()} - {""}
    assert by_setting == set(endings.LIMITS)
    assert all(is_free(setting) for setting in endings.LIMITS)
    assert by_setting <= {f"study.{field.name}" for field in fields(StudySettings)}


def study_of(folder: Path, states: str) -> Record:
    """Return a study with a trial for each letter: Complete, Running or pAused."""
    record = simulation.new_record(folder, SPACE, "s")
    for trial, state in zip(simulation.make_trials(SPACE, len(states)), states, strict=True):
        values, trial.values, trial.state, trial.epochs = trial.values, None, "running", []
        record.add(trial)
        record.add_epoch(trial, simulation.curve(0.5)[0])
        if state == "C":
            record.complete(trial, values or ())
        elif state == "A":
            record.set_plan(trial, until=trial.epoch, paused=True)
    return record


def note_end(record: Record, ending: str, **later: int) -> None:
    record.append_fact("runs", {"seconds": 1.0, "ending": ending, **progress_of(record), **later})


@pytest.mark.parametrize(
    ("states", "ending", "said"),
    [
        ("CRR", "", "interrupted, 2 trials to resume, nobody is working"),
        ("CRAA", "interrupted", "interrupted, 1 trial to resume and 2 paused, nobody is working"),
        ("CR", "timeout", "stopped by study.timeout, 1 trial to resume, nobody is working"),
        ("CR", "target", "finished by study.target"),
        ("C", "epochs", "stopped by study.max_epochs, no trials to resume, nobody is working"),
        ("CC", "exhausted", "finished"),
        ("CC", "finished", "finished"),
        ("CC", "terminated", "interrupted, no trials to resume, nobody is working"),
        ("", "", "interrupted, no trials to resume, nobody is working"),
    ],
)
def test_study_without_a_process_says_how_it_stands(states: str, ending: str, said: str, tmp_path: Path) -> None:
    record = study_of(tmp_path, states)
    if ending:
        note_end(record, ending)
    assert summarise(load(StudyFiles(tmp_path, "s")))["stands"] == said
    record.rows.engine.dispose()


def test_the_time_of_auto_is_named_where_the_study_has_none(tmp_path: Path) -> None:
    record = study_of(tmp_path, "CR")
    record.set_fact("auto", {"given": 60.0})
    note_end(record, "timeout")
    record.facts["space"]["study"]["timeout"] = None
    assert "stopped by the --time of auto" in str(activity(record))
    # One that has a timeout of its own was ended by that.
    record.facts["space"]["study"]["timeout"] = 60.0
    assert "stopped by study.timeout" in str(activity(record))
    record.rows.engine.dispose()


def test_requested_trials_do_not_make_a_killed_search_a_finished_one(tmp_path: Path) -> None:
    record = study_of(tmp_path, "CC")
    record.facts["space"]["study"]["trials"] = 2
    assert activity(record).state == "finished"
    # One of them was requested, so one more is to be drawn.
    record.num_requested = 1
    assert activity(record).state == "interrupted"
    record.rows.engine.dispose()


def test_ending_of_an_earlier_run_is_not_that_of_one_that_was_killed(tmp_path: Path) -> None:
    record = study_of(tmp_path, "CR")
    note_end(record, "timeout", epochs=0)
    assert activity(record).state == "interrupted"
    # An earlier version noted no ending.
    record.facts["runs"] = [{"seconds": 1.0}]
    assert activity(record).state == "interrupted"
    record.complete(record.trials[1], (0.5,))
    assert activity(record).state == "finished"
    record.rows.engine.dispose()


@pytest.mark.parametrize(
    ("task", "said", "state"),
    [
        ("run", "running, process {} is working", "running"),
        ("confirm", "interrupted, 1 trial to resume, process {} is working (confirm)", "interrupted"),
    ],
)
def test_other_process_is_seen_until_it_is_killed(task: str, said: str, state: str, tmp_path: Path) -> None:
    record = study_of(tmp_path, "CR")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WORK, tmp_path, task], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at work\n"
        assert summarise(record)["stands"] == said.format(process.pid)
        assert summarise(record)["worked_on_by"] == {"process": f"process {process.pid}", "task": task}
        assert summarise(record)["trials"][state] == 1
        assert shown_state(record.trials[1], record) == state
        process.send_signal(signal.SIGKILL)
    assert summarise(record)["stands"] == "interrupted, 1 trial to resume, nobody is working"
    assert summarise(record)["worked_on_by"] is None
    record.rows.engine.dispose()


def test_own_work_is_seen_too(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    files.make()
    with files.locked():
        assert files.holder() == holder_of(files.folder / "lock.pid")
        assert isinstance(files.holder(), Holder)
    assert files.holder() is None


def test_looks_make_no_run_fail(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    files.make()
    lookers = [subprocess.Popen([sys.executable, "-c", LOOK, tmp_path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for looker in lookers:
            assert looker.stdout is not None
            assert looker.stdout.readline() == b"looking\n"
        for _ in range(500):
            with files.locked():
                pass
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate()


@pytest.mark.slow
def test_every_view_tells_a_killed_run_from_one_at_work(
    tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    studies = tiny.parent / "studies"
    settings = ("data.digits.max_train=300", "training.epochs=12", "study.pruner=none", "study.trials=5")
    arguments = (tiny, "--workers", "2", *(text for each in settings for text in ("--set", each)))
    process = start("run", *arguments)
    # Two are complete, and so there is something to report.
    wait_for_epochs(process, 27, studies)
    process.send_signal(signal.SIGSTOP)
    views = said_by(here, studies)
    assert all(f"running, process {process.pid} is working" in text for text in views.values()), views
    assert "interrupted" not in "".join(views.values())
    process.kill()
    process.communicate()
    views = said_by(here, studies)
    count = sum(trial.state.name == "RUNNING" for trial in open_study(studies).trials)
    assert count
    said = f"interrupted, {count} trial{'s' if count > 1 else ''} to resume, nobody is working"
    # Plain Optuna's dashboard reads what the run wrote.
    assert "running, process" in views.pop("note")
    assert all(said in text for text in views.values()), views
    assert "running" not in "".join(views.values()), views
    with serving(StudyFiles(studies, "tiny-digits")) as port:
        assert said in shown(port)["note"]["body"]
        assert said in optuna_dashboard.get_note(open_study(studies))
        answer = imgcls("run", *arguments)
        assert answer.code == 0, answer.err
        views = said_by(here, studies)
        views["dashboard"] = shown(port)["note"]["body"]
    assert all("finished" in text for text in views.values()), views
    assert not re.search("running|interrupted", "".join(views.values())), views


def said_by(here: Callable[..., Answer], studies: Path) -> dict[str, str]:
    """Return what each view says of how a study stands, by the name of the view."""
    page = studies.parent / "report.html"
    assert here("report", "tiny-digits", "-o", page).code == 0
    best = json.loads(here("best", "tiny-digits", "--json").out)
    found = {
        "list": here("list").out,
        "list --json": json.loads(here("list", "--json").out)[0]["stands"],
        "status": here("status", "tiny-digits").out,
        "status --json": json.loads(here("status", "tiny-digits", "--json").out)["stands"],
        "best --json": best["stands"],
        "report": re.search(r'<span id="stands">(.*?)</span>', page.read_text())[1],  # type: ignore[index]
        "note": optuna_dashboard.get_note(open_study(studies)),
    }
    states = {row["state"] for row in json.loads(here("trials", "tiny-digits", "--json").out)}
    assert states <= {"complete", "running" if best["state"] == "running" else "interrupted"}
    return found
