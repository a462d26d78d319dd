"""Images that have moved: the jobs of a study find them where a run last did, or where `--data` says."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import describe
from imgcls_search.jobs import ablation
from imgcls_search.protocol import Started
from imgcls_search.space import parse
from imgcls_search.space.study_section import slug
from imgcls_search.study.files import StudyFiles
from PIL import Image

from tests.conftest import PATIENCE, Answer, begin_command, is_one_line, linux_only
from tests.jobs.test_evaluate import paint
from tests.orchestrator.test_run import epochs_recorded, wait_for
from tests.warm import Warm

SPACE = """
study: {trials: 2, pruner: none, pictures: false}
data: {folder: {root: photos, val: 0.3, split_seed: 5}}
image: {size: 8}
model: {lenet5: {width: 0.5, activation: {choice: [relu, tanh]}}}
optimizer: {adamw: {lr: {choice: [0.01, 0.001]}}}
training: {epochs: 2, batch_size: 20}
start:
  - {model.lenet5.activation: relu, optimizer.adamw.lr: 0.001}
  - {model.lenet5.activation: relu, optimizer.adamw.lr: 0.01}
"""
STUDY = "base-photos"
JOBS = {
    "reproduce": ("reproduce", STUDY, "--trial", "0"),
    "confirm": ("confirm", STUDY, "--top", "1", "--seeds", "2"),
    "bundle": ("export", STUDY, "--bundle", "model"),
    "ablation": ("report", STUDY, "-o", "page.html", "--ablation", "--seeds", "1", "--trial", "1"),
}


def make_photos(folder: Path) -> Path:
    for name in ("blue", "red"):
        paint(folder, name, 20)
    # More than fingerprints of the first version saw of a file.
    Image.new("RGB", (120, 120), (220, 0, 0)).save(folder / "red" / "large.bmp")
    return folder


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder with a finished study, whose images have moved to `attic/photos` since."""
    folder = tmp_path_factory.mktemp("searched")
    make_photos(folder / "photos")
    (folder / "base.yaml").write_text(SPACE)
    process = begin_command(("run", "base.yaml", "--workers", "1"), folder, os.environ, warm)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    (folder / "attic").mkdir()
    (folder / "photos").rename(folder / "attic" / "photos")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def photos(searched: Path, tmp_path: Path) -> Path:
    """Return where the images of the study in this test's folder are now."""
    for name in ("studies", "attic"):
        shutil.copytree(searched / name, tmp_path / name)
    shutil.copy(searched / "base.yaml", tmp_path)
    return tmp_path / "attic" / "photos"


def facts(folder: Path) -> dict[str, Any]:
    return dict(optuna.load_study(storage=f"sqlite:///{folder}/studies/{STUDY}.db", study_name=STUDY).user_attrs)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_takes_the_place_of_moved_images(
    job: str, photos: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    lost = imgcls(*JOBS[job])
    assert is_one_line(lost), lost
    assert "photos: does not exist" in lost.err
    assert "--data folder:FOLDER" in lost.err
    other = make_photos(tmp_path / "other")
    (other / "red" / "3.png").unlink()
    refused = imgcls(*JOBS[job], "--data", "folder:other")
    assert refused.code == 2, refused
    assert len([line for line in refused.err.splitlines() if line.startswith("error: ")]) == 1
    assert "other images" in refused.err or "not those" in refused.err
    assert not (tmp_path / "model").exists()
    # Neither the shell nor anything else has replaced the variable.
    found = imgcls(*JOBS[job], "--data", "folder:${ATTIC}/photos", env={"ATTIC": str(photos.parent)})
    assert found.code == 0, found.err
    if job in ("confirm", "ablation"):
        assert facts(tmp_path)["data_root"] == str(photos)
        # What is known already is not said of other images either.
        refused = imgcls(*JOBS[job], "--data", "folder:other")
        assert is_one_line(refused), refused
        assert "other images" in refused.err
    if job == "bundle":
        # What is handed on does not name folders of this machine.
        assert "root: photos" in (tmp_path / "model" / "config.yaml").read_text()


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("digits", "has images of another kind; allowed: folder:FOLDER"),
        ("cifar10:attic", "has images of another kind; allowed: folder:FOLDER"),
        ("torchvision:STL10:attic", "has images of another kind; allowed: folder:FOLDER"),
        ("folder:nowhere", "nowhere: does not exist"),
        ("folder:base.yaml", "base.yaml: is not a folder"),
        ("folder:${NOT_SET}/x", "the environment variable NOT_SET is not set"),
        ("folder", "required"),
        ("folders:attic", "unknown"),
    ],
)
def test_place_that_is_none_is_one_line(
    job: str, data: str, said: str, photos: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    answer = here(*JOBS[job], "--data", data)
    assert is_one_line(answer), answer
    assert said in answer.err


def test_place_with_other_options_is_looked_at_first(photos: Path, here: Callable[..., Answer]) -> None:
    for command in (
        ("confirm", STUDY, "--trial", "0", "--data", "folder:nowhere"),
        ("reproduce", STUDY, "--trial", "0", "--data", "folder:nowhere"),
    ):
        answer = here(*command)
        assert is_one_line(answer), answer
        assert "nowhere: does not exist" in answer.err


def test_place_goes_with_what_reads_images(photos: Path, here: Callable[..., Answer]) -> None:
    assert "without --bundle; for an" in here("export", STUDY, "-o", "best.yaml", "--data", f"folder:{photos}").err
    assert "without --ablation" in here("report", STUDY, "-o", "page.html", "--data", f"folder:{photos}").err


def test_run_finds_moved_images_and_the_study_remembers(
    photos: Path, tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    # A study that is finished has no more to do, and remembers all the same.
    assert imgcls("run", "base.yaml", "--data", "folder:attic/photos", "--workers", "1").code == 0
    assert facts(tmp_path)["data_root"] == str(photos)
    assert "identical" in imgcls("reproduce", STUDY, "--trial", "0").out
    assert here("export", STUDY, "-o", "best.yaml").code == 0
    assert f'root: "{photos}"' in (tmp_path / "best.yaml").read_text()
    # What was tried is known wherever the images are, and a start configuration is no new one.
    (tmp_path / "shed").mkdir()
    photos.rename(tmp_path / "shed" / "photos")
    command = ("run", "base.yaml", "--data", "folder:shed/photos", "--workers", "1", "--set", "study.trials=9")
    ended = imgcls(*command)
    assert ended.code == 0, ended.err
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/studies/{STUDY}.db", study_name=STUDY)
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == len(study.trials) == 4
    assert facts(tmp_path)["data_root"] == str(tmp_path / "shed" / "photos")


def test_written_place_holds_where_the_latest_is_of_another_machine(
    photos: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    known = optuna.load_study(storage=f"sqlite:///{tmp_path}/studies/{STUDY}.db", study_name=STUDY)
    for root in ("/of/another/machine", None):
        if root is None:
            # As studies of earlier versions are.
            forget_fact(tmp_path, "data_root")
        else:
            known.set_user_attr("data_root", root)
        answer = imgcls("reproduce", STUDY, "--trial", "0")
        assert "identical" in answer.out, answer


def forget_fact(folder: Path, name: str) -> None:
    with sqlite3.connect(folder / "studies" / f"{STUDY}.db") as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = ?", (name,))


@pytest.mark.slow
@linux_only
def test_killed_run_goes_on_after_its_images_have_moved(
    tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    make_photos(tmp_path / "photos")
    (tmp_path / "base.yaml").write_text(SPACE)
    long = ("--set", "training.epochs=400", "--set", "study.trials=1", "--workers", "1", "--name", STUDY)
    run = start("run", "base.yaml", *long)
    wait_for(lambda: epochs_recorded(tmp_path / "studies", STUDY) >= 2)
    run.kill()
    run.communicate()
    (tmp_path / "photos").rename(tmp_path / "moved")
    again = imgcls("run", "base.yaml", *long, "--data", "folder:moved")
    assert again.code == 0, again.err
    log = (tmp_path / "studies" / STUDY / "logs" / "trial-00000.log").read_text()
    assert "training again" not in log
    assert log.count("epoch 1:") == 1


def test_worker_goes_on_from_a_checkpoint_after_a_move(tmp_path: Path) -> None:
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.retrain import training_job
    from imgcls_search.training import checkpoint
    from imgcls_search.worker.job_runner import JobRunner
    from imgcls_search.worker.pipeline import prepare_data

    def events(root: Path, lr: str = "0.01") -> list[Any]:
        pairs = [("model.lenet5.activation", "relu"), ("optimizer.adamw.lr", lr), ("start", "[]")]
        space = parse(SPACE, catalog(), source="base.yaml", overrides=pairs, data=f"folder:{root}")
        config = space.fill({"image.channels": 3}).config()
        data = prepare_data(config, image_cache(tmp_path / "studies"))
        job = training_job(0, config, data, seed=1, weights=tmp_path / "seed-1.pt", teacher=None)
        return [config, *JobRunner("cpu").work(job, threading.Event())]

    make_photos(tmp_path / "photos")
    config, *_ = events(tmp_path / "photos")
    path = tmp_path / "seed-1.partial.pt"
    (tmp_path / "photos").rename(tmp_path / "moved")
    for known in (None, f"{config.digest()} 1 train"):
        if known is not None:
            # As earlier versions wrote it, with the place of the images.
            checkpoint.save({**checkpoint.load(path), "job": known}, path)
        _, started, *_ = events(tmp_path / "moved")
        assert isinstance(started, Started)
        assert len(started.history) == 2
    _, other, *_ = events(tmp_path / "moved", lr="0.001")
    assert other.history == []


def test_weights_of_an_ablation_are_found_after_a_move_and_by_their_former_name(tmp_path: Path) -> None:
    config = TrialConfig.from_dict({"data": {"folder": {"root": "photos", "val": 0.2}}, "model": {"lenet5": {}}})
    moved = config.moved({"root": "/elsewhere", "download": True, "val": 0.5})
    assert moved.to_dict()["data"] == {"folder": {"root": "/elsewhere", "val": 0.2}}
    files = StudyFiles(tmp_path, "study")
    path = ablation._weights_path(files, config, 3, "photos")
    assert path == ablation._weights_path(files, moved, 3, "photos")
    former = path.with_name(f"{config.digest()}-seed-3.partial.pt")
    former.parent.mkdir(parents=True)
    former.touch()
    assert ablation._weights_path(files, moved, 3, "photos") == path.with_name(f"{config.digest()}-seed-3.pt")


def test_other_data_of_the_same_kind_keeps_the_cuts_of_the_space() -> None:
    def data(given: str | None, text: str = SPACE) -> dict[str, Any]:
        return parse(text, catalog(), source="base.yaml", data=given).first().section("data")

    own = {**data(None)["folder"]}
    assert (own["val"], own["split_seed"]) == (0.3, 5)
    assert data("folder:other") == {"folder": {**own, "root": "other"}}
    assert data("digits")["digits"]["val"] != 0.3
    sets = SPACE.replace("{folder: {root: photos,", "{torchvision: {name: STL10, root: sets, download: true,")
    found = data("torchvision:STL10:more", sets)["torchvision"]
    assert (found["root"], found["download"], found["val"]) == ("more", True, 0.3)
    assert data("torchvision:DTD", sets)["torchvision"]["root"] == "sets"
    assert data("digits", SPACE.replace("{folder: {root: photos, val: 0.3, split_seed: 5}}", "digits")) == data(
        "digits"
    )


def test_names_of_folders_expand_as_paths_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETS", "/data/My Pets")
    assert slug("${PETS}") == "my-pets"
    # A shell's way of writing it is no other path's.
    assert slug("$PETS") == "pets"
    monkeypatch.delenv("PETS")
    assert slug("${PETS}/dogs") == "dogs"


def compare_by_the_first_version(folder: Path, photos: Path) -> None:
    """Let a study compare its images as the first versions did, which saw 16 KB at either end of a file."""
    source = describe(Component(path="data.folder", name="folder", args={"root": str(photos)}))
    assert source.first_fingerprint is not None
    known = {name: value for name, value in facts(folder)["data"].items() if name != "seen_fingerprint"}
    study = optuna.load_study(storage=f"sqlite:///{folder}/studies/{STUDY}.db", study_name=STUDY)
    study.set_user_attr("data", {**known, "fingerprint": source.first_fingerprint()})


def edit_the_middle(photos: Path) -> None:
    path = photos / "red" / "large.bmp"
    content = bytearray(path.read_bytes())
    content[20_000:23_000] = bytes(3_000)
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(("job", "fact", "trainings"), [("confirm", "confirmed", 4), ("ablation", "ablation", 2)])
def test_checkpoints_of_other_images_are_not_continued_and_this_is_seen(
    job: str, fact: str, trainings: int, photos: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    compare_by_the_first_version(tmp_path, photos)
    command = (*JOBS[job], "--data", "folder:attic/photos")
    assert imgcls(*command).code == 0
    # As it is where a job is interrupted before its last step.
    forget_fact(tmp_path, fact)
    again = imgcls(*command)
    assert again.code == 0, again.err
    assert "other images" not in again.err
    forget_fact(tmp_path, fact)
    edit_the_middle(photos)
    logs = {path: path.read_text() for path in (tmp_path / "studies" / STUDY / job).glob("*.log")}
    again = imgcls(*command)
    assert again.code == 0, again.err
    line = "its checkpoint was trained on other images; it is trained from the start"
    assert len([said for said in again.err.splitlines() if said.endswith(line)]) == trainings == len(logs)
    assert all(path.read_text().count("epoch 1:") == 2 for path in logs)


@pytest.mark.slow
def test_trial_whose_checkpoint_is_of_other_images_says_so(
    tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    make_photos(tmp_path / "photos")
    (tmp_path / "base.yaml").write_text(SPACE)
    command = ("run", "base.yaml", "--set", "training.epochs=300", "--set", "study.trials=1", "--workers", "1")
    run = start(*command)
    wait_for(lambda: epochs_recorded(tmp_path / "studies", STUDY) >= 2)
    run.kill()
    run.communicate()
    compare_by_the_first_version(tmp_path, tmp_path / "photos")
    edit_the_middle(tmp_path / "photos")
    again = imgcls(*command)
    assert again.code == 0, again.err
    assert (
        "trial 0: its checkpoint was trained on other images; it trains from the start again" in again.out + again.err
    )
    troubles = json.loads(imgcls("status", STUDY, "--json").out)["troubles"]
    assert troubles == {"its checkpoint was trained on other images": 1}
