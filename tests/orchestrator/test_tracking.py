"""What trackers are told of a search, and what they answer through their pipes."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from imgcls_search.jobs.replay import Steps
from imgcls_search.orchestrator import tracking
from imgcls_search.orchestrator.tracking import TrackedWatcher, TrackerProcess, close
from imgcls_search.trackers.messages import End, EpochMeasured, Message, TrialBegan, TrialEnded

from tests.orchestrator.test_endings import context, in_memory, running


def tracker() -> tuple[TrackerProcess, Connection]:
    """Return a tracker whose process is this test, and its end of the pipe."""
    ours, theirs = Pipe()
    return TrackerProcess("study.log.x", None, ours), theirs


def told(theirs: Connection) -> list[Message]:
    """Return what was sent up to the end."""
    found: list[Message] = []
    while not isinstance(message := theirs.recv(), End):
        found.append(message)
    return found


def test_each_trial_epoch_and_end_is_told_once(tmp_path: Path) -> None:
    first, second = running(0, 0.1), running(1, 0.2, 0.3)
    there = context(tmp_path, "trials: 2", first)
    mine, theirs = tracker()
    first.epochs[0] |= {"recall:cat": 0.5, "recall:dog": 0.6}
    telling = TrackedWatcher(Steps(), [mine], ("accuracy", "recall:dog"))
    record = there.record
    telling.tell(record)
    telling.tell(record)
    record.add(second)
    record.add_epoch(first, {"epoch": 2.0, "accuracy": 0.4, "seconds": 1.0})
    picture = there.files.pictures / "key"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"image")
    (picture.parent / "link").symlink_to(picture)
    first.pictures = {"key": "matrix.png", "gone": "curves.png", "link": "link.png"}
    record.complete(first, [0.4])
    telling.tell(record)
    record.prune(second, "too low")
    telling.tell(record)
    telling.tell(record)
    mine.tell(End())
    messages = told(theirs)
    seen = [(type(each).__name__, getattr(each, "trial", None)) for each in messages]
    assert seen == [
        ("TrialBegan", 0),
        ("EpochMeasured", 0),
        ("TrialBegan", 1),
        ("EpochMeasured", 0),
        ("TrialEnded", 0),
        ("EpochMeasured", 1),
        ("EpochMeasured", 1),
        ("TrialEnded", 1),
    ]
    began, epoch, later, end, cut = (messages[place] for place in (0, 1, 3, 4, 7))
    assert isinstance(began, TrialBegan)
    assert "lenet5" in began.config
    # Of single classes only what the space names.
    assert epoch == EpochMeasured(
        trial=0, epoch=1, metrics={"epoch": 1.0, "accuracy": 0.1, "seconds": 1.0, "recall:dog": 0.6}
    )
    assert isinstance(later, EpochMeasured)
    assert later.epoch == 2
    assert isinstance(end, TrialEnded)
    assert (end.state, end.values["accuracy"], end.values["params"]) == ("complete", 0.4, 1.0)
    assert end.pictures == {"matrix.png": picture}
    assert isinstance(cut, TrialEnded)
    assert (cut.state, cut.reason, cut.pictures) == ("pruned", "too low", {})
    assert "accuracy" not in cut.values


def test_answers_of_a_tracker_are_lines_for_the_user() -> None:
    mine, theirs = tracker()
    for answer in (("trouble", "no network"), ("well", "")):
        theirs.send(answer)
    theirs.send(("end", 3))
    assert list(mine.close(60.0)) == [
        "study.log.x: no network; the search continues and tries again later",
        "study.log.x: works again, and everything missed was sent",
        "study.log.x: 3 messages not sent; the next run sends what is missing",
    ]
    quiet, theirs = tracker()
    theirs.send(("end", 0))
    assert list(quiet.close(60.0)) == []
    dead, theirs = tracker()
    theirs.close()
    assert list(dead.close(60.0)) == ["study.log.x: its process died; the search continues without it"]


def test_all_trackers_together_get_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 0.05)
    slow, ends = zip(*(tracker() for _ in range(2)), strict=True)
    line = "study.log.x: did not accept everything within 0.05 s; the next run sends the rest"
    assert list(close(list(slow))) == [line, line]
    for end in ends:
        end.close()


def test_identity_of_a_study_stays(tmp_path: Path) -> None:
    there = in_memory(tmp_path, "trials: 1, objectives: {loss: minimize, params: minimize}")
    first = tracking._identity(there.record)
    assert len(first) == 12
    assert tracking._identity(there.record) == first
    notes = tracking._notes(replace(there.space, source="folder/s.yaml"), there.record)
    assert notes == {"space": "s.yaml", "objectives": "loss minimize, params minimize"}
