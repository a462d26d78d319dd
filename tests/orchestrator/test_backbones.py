"""Pretrained networks of a search: made once, shared, waited for, made again where they are gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from imgcls_search import archive
from imgcls_search.orchestrator.backbones import IN_USE_SECONDS, BackboneStore
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import load
from optuna.artifacts import get_all_artifact_meta
from PIL import Image

from tests.conftest import PATIENCE, Answer, is_one_line, linux_only
from tests.orchestrator.test_run import is_alive, offspring_of, table, wait_for, worker_of
from tests.study.test_storage import small_disk

__all__ = ["small_disk"]

SPACE = """
study: {trials: 5, pruner: none, sampler: random, pictures: false}
data: {digits: {max_train: 200}}
model: {lenet5: {width: 0.5}}
pretrain: {none: {}, simclr: {epochs: 2, batch_size: 256, health_every: 2}}
optimizer: {adamw: {lr: {float: [1e-3, 1e-2], log: true}}}
training: {epochs: 2, batch_size: 100}
"""

ALWAYS = ("--set", "pretrain={simclr: {epochs: 2, batch_size: 256, health_every: 2}}")

LONG = ("--set", "pretrain={simclr: {epochs: 6, batch_size: 128, health_every: 6}}", "--set", "study.trials=2")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPACE)
    return path


def networks(studies: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((studies / ".backbones").glob("*.pt"))}


def facts(studies: Path, name: str = "tiny-digits") -> Mapping[str, Any]:
    return load(StudyFiles(studies, name)).facts.get("backbones", {})


def pictures(studies: Path, name: str) -> set[str]:
    """Return the names of the pictures of the only trial of a study, as Optuna reads them."""
    study = optuna.load_study(storage=f"sqlite:///{studies}/{name}.db", study_name=name)
    (trial,) = study.trials
    return {meta.filename for meta in get_all_artifact_meta(study_or_trial=trial, storage=study._storage)}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def are_equal(one: Path, other: Path) -> bool:
    mine, theirs = tensors(one), tensors(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_one_network_is_made_for_all_trials_that_start_from_it(
    space: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    studies = space.parent / "studies"
    done = imgcls("run", space, "--workers", "2", "--set", "study.seed=1")
    assert done.code == 0, done.err
    record = load(StudyFiles(studies, "tiny-digits"))
    assert [trial.state for trial in record.trials] == ["complete"] * 5
    pretrained = [trial for trial in record.trials if trial.candidate.config.needs_backbone]
    assert 1 < len(pretrained) < 5
    ((key, path),) = networks(studies).items()
    archive.verify(path)
    (fact,) = facts(studies).values()
    assert (fact["state"], fact["epoch"], fact["epochs"]) == ("made", 2, 2)
    assert done.out.count("pretraining lenet5 (simclr, 2 epochs); trial") == 1
    assert done.out.count("pretraining lenet5 (simclr, 2 epochs): done") == 1
    assert "unlabeled.train: pretrains on 1,222 images" in done.out
    # Nothing that only the pretraining needed is left, and another study makes nothing.
    assert sorted(each.suffix for each in path.parent.iterdir()) == [".lock", ".log", ".pt"]
    before = path.stat().st_mtime_ns, path.read_bytes()
    other = ("--name", "other", "--set", "study.trials=1", "--set", "study.pictures=true")
    again = imgcls("run", space, *ALWAYS, *other, "--set", "study.seed=1")
    assert again.code == 0, again.err
    assert "pretraining" not in again.out
    assert path.read_bytes() == before[1]
    assert set(facts(studies, "other")) == {key}
    # The dashboard and the report draw how its features developed.
    assert {"health-of-pretraining.png", "learning-curves.png"} <= pictures(studies, "other")
    assert here("report", "other", "-o", "page.html").code == 0
    page = (space.parent / "page.html").read_text()
    assert "What the epochs of the pretraining of lenet5 (simclr) measured" in page


@linux_only
@pytest.mark.slow
def test_killed_in_the_middle_of_a_pretraining_it_goes_on_bit_for_bit(
    space: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    arguments = (space, "--workers", "1", *LONG)
    undisturbed, disturbed = space.parent / "a", space.parent / "b"
    assert imgcls("run", *arguments, "--studies", undisturbed).code == 0
    for epoch in (1, 3, 5):
        process = start("run", *arguments, "--studies", disturbed)
        wait_for(lambda process=process, epoch=epoch: is_at(process, disturbed, epoch))
        offspring = offspring_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda offspring=offspring: not any(is_alive(child) for child in offspring))
    answer = imgcls("run", *arguments, "--studies", disturbed)
    assert answer.code == 0, answer.err
    assert "resumes after epoch" in answer.out
    assert table(disturbed) == table(undisturbed)
    ((mine, theirs),) = zip(networks(disturbed).values(), networks(undisturbed).values(), strict=True)
    assert are_equal(mine, theirs)


def is_at(process: Any, studies: Path, epoch: int) -> bool:
    assert process.poll() is None, process.communicate()
    logs = list((studies / ".backbones").glob("*.log"))
    return any(f"epoch {epoch}:" in log.read_text() for log in logs)


@linux_only
def test_a_dead_worker_is_replaced_and_the_pretraining_goes_on(
    space: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    studies = space.parent / "studies"
    process = start("run", space, "--workers", "1", *LONG, "--set", "study.trials=1")
    wait_for(lambda: is_at(process, studies, 2))
    os.kill(worker_of(process.pid), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "worker-0 died (killed by SIGKILL); it resumes from its last checkpoint" in out
    assert "pretraining lenet5 (simclr, 6 epochs): resumes after epoch" in out
    # With no retries left it fails, and so do the trials that start from it, with one reason.
    process = start("run", space, "--workers", "1", *LONG, "--set", "study.retries=0", "--name", "t", "--studies", "t")
    wait_for(lambda: is_at(process, space.parent / "t", 1))
    os.kill(worker_of(process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    trials = load(StudyFiles(space.parent / "t", "t")).trials
    assert [trial.state for trial in trials] == ["fail", "fail"]
    (reason,) = {trial.reason for trial in trials}
    assert str(reason).startswith("its pretraining failed: worker-0 died (killed by SIGKILL), 1 times without")


@linux_only
def test_stopped_in_the_middle_of_a_pretraining_it_goes_on(
    space: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    studies = space.parent / "studies"
    long = ("--set", "pretrain={simclr: {epochs: 20, batch_size: 64, health_every: 20}}")
    arguments = ("run", space, "--workers", "1", *long, "--set", "study.trials=1")
    process = start(*arguments)
    wait_for(lambda: is_at(process, studies, 1))
    # Held in the middle until another command has looked and the run has said that it is to stop.
    worker = worker_of(process.pid)
    os.kill(worker, signal.SIGSTOP)
    status = imgcls("status", "tiny-digits")
    assert "pretraining lenet5 (simclr): epoch " in status.out
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    os.kill(worker, signal.SIGCONT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "run the same command again to resume" in out
    assert not networks(studies) or ".state" in next(iter(networks(studies)))
    done = imgcls(*arguments)
    assert done.code == 0, done.err
    assert "resumes after epoch" in done.out
    status = imgcls("status", "tiny-digits")
    assert "pretrained networks: 1 made" in status.out


def test_a_pretraining_that_fails_fails_its_trials_with_one_reason_and_no_others(
    space: Path, imgcls: Callable[..., Answer]
) -> None:
    # No finite loss at such a rate.
    broken = "pretrain={none: {}, simclr: {epochs: 2, batch_size: 256, optimizer: {sgd: {lr: 1e30}}}}"
    done = imgcls("run", space, "--workers", "1", "--set", broken, "--set", "study.seed=1", "--set", "study.trials=6")
    assert done.code == 0, done.err
    trials = load(StudyFiles(space.parent / "studies", "tiny-digits")).trials
    states = {trial.candidate.config.needs_backbone: trial.state for trial in trials}
    assert states == {True: "fail", False: "complete"}
    reasons = {trial.reason for trial in trials if trial.state == "fail"}
    assert len(reasons) == 1
    assert "its pretraining failed: " in str(reasons)
    assert done.out.count("pretraining lenet5 (simclr, 2 epochs) failed: ") == 1
    (fact,) = facts(space.parent / "studies").values()
    assert fact["state"] == "failed"
    assert "1 failed" in imgcls("status", "tiny-digits").out


def test_each_fold_has_a_network_that_never_saw_its_images(space: Path, imgcls: Callable[..., Answer]) -> None:
    studies = space.parent / "studies"
    folds = ("--set", "data.digits.folds=3", "--set", "study.trials=1", *ALWAYS)
    done = imgcls("run", space, "--workers", "2", *folds)
    assert done.code == 0, done.err
    found = facts(studies)
    assert sorted(fact["fold"] for fact in found.values()) == [0, 1, 2]
    assert len(networks(studies)) == 3
    record = load(StudyFiles(studies, "tiny-digits"))
    # `reproduce` trains the same from the same networks, also where these are gone.
    for path in list(networks(studies).values())[:2]:
        path.unlink()
    again = imgcls("reproduce", "tiny-digits", "--trial", "0")
    assert again.code == 0, again.err
    assert again.out.startswith("data") or "identical: trial 0" in again.out
    assert "identical: trial 0" in again.out
    assert len(networks(studies)) == 3
    assert record.trials[0].state == "complete"


def test_networks_are_made_again_where_they_are_gone_or_damaged(space: Path, imgcls: Callable[..., Answer]) -> None:
    studies = space.parent / "studies"
    assert imgcls("run", space, *ALWAYS, "--set", "study.trials=1").code == 0
    ((_, path),) = networks(studies).items()
    first = path.with_name("kept")
    path.rename(first)
    reproduced = imgcls("reproduce", "tiny-digits", "--trial", "0")
    assert "identical: trial 0" in reproduced.out, reproduced.err
    assert are_equal(path, first)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    assert imgcls("export", "tiny-digits", "-o", "best.yaml").code == 0
    trained = imgcls("train", "best.yaml", "--seeds", "1", "--out", "out")
    assert trained.code == 0, trained.err
    assert are_equal(path, first)


@pytest.mark.slow
def test_confirm_reuses_the_network_and_redoes_it_on_request(space: Path, imgcls: Callable[..., Answer]) -> None:
    studies = space.parent / "studies"
    assert imgcls("run", space, "--workers", "1", *ALWAYS, "--set", "study.trials=2").code == 0
    confirm = ("confirm", "tiny-digits", "--top", "1", "--seeds", "2")
    done = imgcls(*confirm)
    assert done.code == 0, done.err
    assert len(networks(studies)) == 1
    refused = imgcls(*confirm, "--pretrain")
    assert is_one_line(refused), refused.err
    assert "--again confirms again" in refused.err
    redone = imgcls(*confirm, "--pretrain", "--again", "--json")
    assert redone.code == 0, redone.err
    assert json.loads(redone.out)["pretrains"] is True
    assert len(networks(studies)) == 5
    page = imgcls("report", "tiny-digits", "--ablation", "--seeds", "1", "-o", "r.html")
    assert page.code in (0, 2), page.err


def test_pretrain_of_confirm_needs_trials_that_pretrain(space: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("run", space, "--set", "pretrain=none", "--set", "study.trials=1").code == 0
    answer = imgcls("confirm", "tiny-digits", "--pretrain")
    assert is_one_line(answer), answer.err
    assert "--pretrain: trial 0 pretrains no network; leave the option out" in answer.err


@linux_only
@pytest.mark.slow
def test_two_studies_at_a_time_make_a_network_once(space: Path, start: Callable[..., Any]) -> None:
    runs = [
        start("run", space, "--workers", "1", *LONG, "--set", "study.trials=1", "--name", name) for name in ("a", "b")
    ]
    said = [process.communicate(timeout=PATIENCE) for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    outs = [out for out, _ in said]
    assert sum("): done, its epochs took" in out for out in outs) == 1
    one, other = (load(StudyFiles(space.parent / "studies", name)).facts["backbones"] for name in ("a", "b"))
    assert {key: fact["sha256"] for key, fact in one.items()} == {key: fact["sha256"] for key, fact in other.items()}


REFUSED = {
    "weights": ("model={resnet: {depth: 18, weights: imagenet}}", "weights"),
    "few": ("pretrain={simclr: {batch_size: 700}}", "fewer than two batches of 700"),
    "nowhere": ("unlabeled={folder: {root: nowhere}}", "does not exist; allowed: a folder of images"),
    "empty": ("unlabeled={folder: {root: empty}}", "no image in it; allowed: files ending in"),
    "teacher": (
        "pretrain={imitate: {teacher: {file: {path: nowhere.pt}}}}",
        "pretrain.imitate.teacher.file.path: nowhere.pt: no such weights file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pretrained_is_refused_before_any_trial(
    case: str, space: Path, imgcls: Callable[..., Answer]
) -> None:
    (space.parent / "empty").mkdir()
    setting, said = REFUSED[case]
    answer = imgcls("run", space, *ALWAYS, "--set", setting)
    assert is_one_line(answer), answer.err
    assert said in answer.err
    assert not (space.parent / "studies" / "tiny-digits.db").exists()


def test_networks_that_were_not_used_for_longest_are_deleted(tmp_path: Path) -> None:
    store = BackboneStore(tmp_path)
    store.folder.mkdir(parents=True)
    for number in range(5):
        torch.save({"model": {"w": torch.zeros(25_000)}}, store.path(str(number)))
        store.log(str(number)).write_text("epochs")
        then = time.time() - IN_USE_SECONDS - 100 * (5 - number)
        os.utime(store.path(str(number)), (then, then))
    size = store.path("0").stat().st_size
    assert store.has("1"), "a look counts as a use"
    assert store.tidy(10 * size) == []
    assert store.tidy(3.5 * size, needed={"2"}) == ["0", "3"]
    assert sorted(path.stem for path in store.folder.iterdir()) == ["1", "1", "2", "2", "4", "4"]
    # What another process may be about to read stays, whatever the budget.
    assert store.tidy(0, needed={"2"}) == ["4"]
    assert store.has("1")


def test_a_damaged_network_is_none(tmp_path: Path) -> None:
    store = BackboneStore(tmp_path)
    store.folder.mkdir(parents=True)
    torch.save({"model": {"w": torch.zeros(1000)}}, store.path("k"))
    content = bytearray(store.path("k").read_bytes())
    content[len(content) // 2] ^= 1
    store.path("k").write_bytes(content)
    assert not store.has("k")
    assert not store.path("k").exists()
    lock = store.taken("k")
    assert lock is not None
    lock.release()


def pool_of(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
    return folder


def test_a_folder_of_images_may_move_and_may_not_become_another(space: Path, imgcls: Callable[..., Answer]) -> None:
    pool = pool_of(space.parent / "pool", 520)
    arguments = ("run", space, "--workers", "1", *ALWAYS)
    done = imgcls(*arguments, "--unlabeled", f"folder:{pool}", "--set", "study.trials=1")
    assert done.code == 0, done.err
    assert f"unlabeled.folder: {pool}: pretrains on 520 images" in done.out
    shutil.move(pool, space.parent / "moved")
    gone = imgcls(*arguments, "--unlabeled", f"folder:{pool}", "--set", "study.trials=2")
    assert is_one_line(gone), gone.err
    moved = ("--unlabeled", f"folder:{space.parent / 'moved'}")
    done = imgcls(*arguments, *moved, "--set", "study.trials=2")
    assert done.code == 0, done.err
    assert "pretraining" not in done.out, "the network is there"
    assert len(networks(space.parent / "studies")) == 1
    # The jobs of the study find them too, where they need to pretrain again.
    for path in (space.parent / "studies" / ".backbones").iterdir():
        path.unlink()
    again = imgcls("reproduce", "tiny-digits", "--trial", "1")
    assert again.code == 0, again.err
    assert again.out.startswith("identical: trial 1")
    assert imgcls("export", "tiny-digits", "--trial", "1", "-o", "moved.yaml").code == 0
    assert json.dumps(str(space.parent / "moved")) in (space.parent / "moved.yaml").read_text()
    pool_of(space.parent / "moved", 1, first=900)
    other = imgcls(*arguments, *moved, "--set", "study.trials=3")
    assert is_one_line(other), other.err
    assert "other images to pretrain on than this study began with" in other.err
    # A trial that pretrains nothing is exported from such a space too.
    assert imgcls("export", "tiny-digits", "-o", "best.yaml").code == 0
    assert imgcls("check", "best.yaml", "--set", "pretrain=none", "--samples", "0").code == 0


@linux_only
def test_a_full_disk_is_one_line_and_the_pretraining_goes_on(
    small_disk: Path, space: Path, imgcls: Callable[..., Answer]
) -> None:
    wide = "model={lenet5: {width: 8}}"
    arguments = ("run", space, "--workers", "1", *ALWAYS, "--set", wide, "--studies", small_disk)
    full = imgcls(*arguments, "--set", "study.trials=1")
    assert is_one_line(full), (full.out, full.err)
    assert "pretraining lenet5 (simclr, 2 epochs): " in full.err
    assert "No space left on device" in full.err
    assert not networks(small_disk), "nothing half-written"
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done = imgcls(*arguments, "--set", "study.trials=1")
    assert done.code == 0, done.err
    assert len(networks(small_disk)) == 1


def test_weights_of_images_of_another_size_are_taken_and_that_is_said(
    space: Path, imgcls: Callable[..., Answer]
) -> None:
    vit = "model={vit: {patch_size: 4, width: 16, depth: 1, heads: 2}}"
    small = ("--set", vit, "--set", "pretrain={simclr: {epochs: 1, batch_size: 256}}")
    made = imgcls("pretrain", space, *small, "--set", "image.size=8", "-o", "backbone.pt")
    assert made.code == 0, made.err
    wide = vit.replace("heads: 2", "heads: 2, weights: backbone.pt")
    plain = ("--set", wide, "--set", "pretrain=none", "--set", "study.trials=1")
    other = imgcls("run", space, *plain, "--set", "image.size=16")
    assert other.code == 0, other.err
    line = (
        "model.vit.weights: backbone.pt: was trained at 8x8 pixels, the images are 16x16; its position embeddings are"
    )
    assert other.out.count(line) == 1
    trained = imgcls("train", space, *plain, "--set", "image.size=16", "--set", "optimizer.adamw.lr=1e-3")
    assert trained.code == 0, trained.err
    assert "was trained at 8x8 pixels" in trained.err
    equal = imgcls("run", space, *plain, "--set", "image.size=8", "--name", "equal")
    assert equal.code == 0, equal.err
    assert "was trained at" not in equal.out
