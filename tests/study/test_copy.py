"""A study copied while it is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import StudyError
from imgcls_search.space import parse
from imgcls_search.study import record as records
from imgcls_search.study.copy import copy_study
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record

from scripts.bench import simulation
from tests.conftest import PATIENCE, Answer
from tests.views.test_dashboard import ask, serving

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


def test_copy_of_a_live_study_holds_every_trial_acknowledged_before_it(tmp_path: Path) -> None:
    record = simulation.new_record(tmp_path, SPACE, "s")
    trials = simulation.make_trials(SPACE, 150)
    done = [0]
    is_copied = threading.Event()

    def write() -> None:
        for trial in trials:
            if len(record.trials) >= 50:
                # However slow copies are, two are made while trials are written.
                is_copied.wait(PATIENCE)
            epochs, trial.epochs, trial.state, trial.values = trial.epochs, [], "running", None
            record.add(trial)
            record.add_epoch(trial, epochs[0])
            record.complete(trial, [epochs[0]["accuracy"]])
            done[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    copies = 0
    while writer.is_alive() and copies < 20:
        before = done[0]
        target = copy_study(StudyFiles(tmp_path, "s"), tmp_path / f"copy-{copies}" / "s.db")
        after = done[0]
        # Read as a study of its own: every trial is whole, and none that was there is missing.
        held = records.load(StudyFiles(target.parent, "s")).trials
        ended = [trial for trial in held if trial.state == "complete"]
        assert before <= len(ended) <= after + 1
        assert all(trial.epoch == 1 for trial in ended)
        copies += 1
        if copies == 2:
            is_copied.set()
        time.sleep(0.02)
    is_copied.set()
    writer.join()
    assert copies >= 2


def test_copy_with_its_folder_goes_on_and_replaces_nothing(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    record = simulation.new_record(tmp_path / "studies", SPACE, "s")
    files = StudyFiles(tmp_path / "studies", "s")
    files.checkpoint(0).parent.mkdir()
    files.checkpoint(0).write_bytes(b"weights")
    files.log(0).parent.mkdir()
    files.log(0).write_text("epoch 1")
    answer = imgcls("copy", "s", "--to", "backup", "--with-folder")
    assert answer.code == 0, answer.err
    copied = StudyFiles(tmp_path / "backup", "s")
    assert records.load(copied).facts == record.facts
    assert copied.checkpoint(0).read_bytes() == b"weights"
    assert copied.log(0).read_text() == "epoch 1"
    assert not (copied.folder / "lock").exists()
    answer = imgcls("copy", "s", "--to", "backup", "--with-folder")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "exists already; name another place" in answer.err
    with pytest.raises(StudyError, match="no such study"):
        copy_study(StudyFiles(tmp_path / "studies", "t"), tmp_path / "t.db")
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"file/s.db: cannot be written \(.+\)$"):
        copy_study(files, tmp_path / "file/s.db")
    with pytest.raises(StudyError, match=r"^/proc/s.db: cannot be written \(.+\)$"):
        copy_study(files, Path("/proc/s.db"))
    assert not list(tmp_path.glob("**/*.tmp*"))


def test_pictures_go_along_and_their_absence_is_one_line(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    files = StudyFiles(tmp_path / "studies", "s")
    add_trial_with_picture(simulation.new_record(files.root, SPACE, "s"), files)
    assert imgcls("copy", "s", "--to", "backup.db").code == 0
    assert imgcls("copy", "s", "--to", "elsewhere/").code == 0
    assert (tmp_path / "backup/artifacts" / PICTURE).read_bytes() == b"a picture"
    copied = StudyFiles(tmp_path / "elsewhere", "s")
    assert (copied.pictures / PICTURE).read_bytes() == b"a picture"
    assert [trial.pictures for trial in records.load(copied).trials] == [{PICTURE: "curves.png"}]
    answer = imgcls("copy", "s", "--to", "backup.db")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    (copied.pictures / PICTURE).unlink()
    said: list[str] = []
    with serving(copied, said.append) as port:
        assert said == [
            f"{copied.pictures}: lacks pictures of 1 trial, for example 0; put the folder back, or look where the "
            "study was searched"
        ]
        assert ask(port, f"/artifacts/1/1/{PICTURE}") == 404
    with serving(files, said.append) as port:
        assert ask(port, f"/artifacts/1/1/{PICTURE}") == 200
    assert len(said) == 1


PICTURE = "0a1b2c3d-0000-4000-8000-000000000000"


def add_trial_with_picture(record: Record, files: StudyFiles) -> None:
    """Add a complete trial that has a picture."""
    (trial,) = simulation.make_trials(SPACE, 1)
    epochs, trial.epochs, trial.state, trial.values = trial.epochs, [], "running", None
    trial.pictures = {PICTURE: "curves.png"}
    record.add(trial)
    for metrics in epochs:
        record.add_epoch(trial, metrics)
    record.complete(trial, [epochs[-1]["accuracy"]])
    files.pictures.mkdir()
    (files.pictures / PICTURE).write_bytes(b"a picture")


@pytest.mark.parametrize("with_folder", [False, True])
@pytest.mark.parametrize("name", ["artifacts/0a", "artifacts"])
def test_copy_takes_no_file_along_that_a_link_leads_to(name: str, with_folder: bool, tmp_path: Path) -> None:
    simulation.new_record(tmp_path / "studies", SPACE, "s").rows.engine.dispose()
    files = StudyFiles(tmp_path / "studies", "s")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "0b").write_text("secret")
    link = files.folder / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "secrets" / ("0b" if "/" in name else ""))
    with pytest.raises(StudyError, match=rf"^{link}: a link that leads out of the study's folder"):
        copy_study(files, tmp_path / "copy" / "s.db", with_folder=with_folder)
    assert not (tmp_path / "copy").exists()
