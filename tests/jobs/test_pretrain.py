"""The command `pretrain`: its file, what it says, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.jobs.trainer import working_alone
from PIL import Image

from tests.conftest import Answer, is_one_line
from tests.orchestrator.test_run import wait_for
from tests.study.test_storage import fill_up, small_disk

__all__ = ["small_disk"]

SPACE = """
data: {digits: {max_train: 100}}
model: {lenet5: {}}
pretrain: {simclr: {epochs: 3, batch_size: 64, flip: none}}
training: {device: cpu}
"""


def photos(folder: Path, count: int, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def test_a_backbone_is_written_says_what_it_is_from_and_is_trained_on(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    photos(tmp_path / "many/deep/er", 150)
    answer = imgcls("pretrain", "s.yaml", "--unlabeled", "folder:many", "-o", "out/b.pt", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["images"] == 150
    assert found["epochs"] == 3
    assert {"probe_accuracy", "knn_accuracy", "spread", "effective_rank", "train_loss"} <= found["health"].keys()
    assert "epoch 3/3 of the pretraining" in answer.err
    assert "left" in answer.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.log", "b.pt"]
    # The same command has nothing left to do, another one is refused.
    again = here("pretrain", "s.yaml", "--unlabeled", "folder:many", "-o", "out/b.pt", "--json")
    assert json.loads(again.out) == found
    assert "out/b.pt: was pretrained already" in again.err
    for change in (["--seed", "1"], ["--set", "pretrain.simclr.crop=0.5"], ["--unlabeled", "train"]):
        other = here("pretrain", "s.yaml", "--unlabeled", "folder:many", "-o", "out/b.pt", *change)
        assert other.code == 2
        assert other.err.splitlines()[-1] == (
            "error: out/b.pt: holds other weights (lenet5 by simclr, 3 epochs, 150 images, seed 0); choose another "
            "file with -o, or delete it to pretrain again"
        )
    start = ["--set", "pretrain=none", "--set", "model.lenet5.weights=out/b.pt", "--set", "training.epochs=1"]
    assert here("train", "s.yaml", *start).code == 0
    assert here("check", "s.yaml", *start).code == 0


def test_two_at_once_do_not_write_one_file(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    with working_alone(tmp_path / ".b.pt.lock", "busy"):
        answer = here("pretrain", "s.yaml", "-o", "b.pt")
    assert is_one_line(answer), answer
    assert "b.pt: another process is pretraining it" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_a_killed_one_goes_on_to_the_same_weights(
    tmp_path: Path, imgcls: Callable[..., Answer], start: Callable[..., Any]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE.replace("epochs: 3", "epochs: 8"))
    assert imgcls("pretrain", "s.yaml", "-o", "whole.pt").code == 0
    process = start("pretrain", "s.yaml", "-o", "killed.pt")
    wait_for((tmp_path / "killed.pt.part").exists)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed.pt").exists()
    answer = imgcls("pretrain", "s.yaml", "-o", "killed.pt")
    assert answer.code == 0, answer.err
    one, other = weights(tmp_path / "whole.pt"), weights(tmp_path / "killed.pt")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "killed.pt.part").exists()


WRITERS = {
    "pretrain": ("pretrain", "s.yaml", "-o", "disk/b.pt"),
    "train": ("train", "s.yaml", "--set", "pretrain=none", "--set", "training.epochs=1", "--out", "disk"),
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    command: str, small_disk: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    # Images and sizes of models are kept elsewhere.
    assert imgcls(*WRITERS[command][:-1], "elsewhere").code == 0
    ballast = fill_up(small_disk)
    full = imgcls(*WRITERS[command])
    assert full.code == 2, full.err
    assert [line.partition(": ")[0] for line in full.err.splitlines()].count("error") == 1
    assert full.err.splitlines()[-1].endswith("make room, then run the same command again to resume")
    assert f"disk/{'b' if command == 'pretrain' else 'seed-1'}." in full.err
    assert ": No space left on device; " in full.err
    assert not {path.suffix for path in small_disk.iterdir()} - {"", ".log"}, "something is half-written"
    ballast.unlink()
    done = imgcls(*WRITERS[command])
    assert done.code == 0, done.err
    assert len(list(small_disk.glob("*.pt"))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--set", "pretrain=none"], "pretrain: none; allowed: simclr or imitate"),
        (["--unlabeled", "folder:nowhere"], "nowhere: does not exist; allowed: a folder of images"),
        (["--unlabeled", "folder:empty"], "empty: no image in it"),
        (
            ["--unlabeled", "folder:few"],
            "70 images to pretrain on, fewer than two batches of 64; allowed: at least 128",
        ),
        (["--unlabeled", "photos"], "--unlabeled photos: unlabeled.photos: unknown key; allowed: train, folder"),
        (["--unlabeled", "folder:"], "takes a name, or a name and a place, as in train or folder:photos"),
        (["--set", "model.lenet5.weights=w.pt"], "model.lenet5.weights: a network that starts from weights is not pre"),
        (["--set", "model.lenet5.width={choice: [1, 2]}"], "model.lenet5.width: is still searched"),
        (["--set", "pretrain.imitate={}"], "pretrain: is still searched"),
        (["--set", "pretrain={imitate: {teacher: {file: {path: gone.pt}}}}"], "gone.pt"),
        (["--set", "pretrain={imitate: {teacher: {study: {name: gone}}}}"], "gone"),
        (["--set", "pretrain={imitate: {teacher: {timm: {name: no_such_net}}}}"], "no_such_net"),
        (["-o", "s.yaml"], "s.yaml: not a weights file of this program"),
        (["-o", "s.yaml/b.pt"], "s.yaml"),
    ],
)
def test_mistakes_are_one_line(change: list[str], said: str, tmp_path: Path, here: Callable[..., Answer]) -> None:
    if "timm" in str(change):
        pytest.importorskip("timm")
    (tmp_path / "s.yaml").write_text(SPACE)
    (tmp_path / "empty").mkdir()
    photos(tmp_path / "few", 70)
    answer = here("pretrain", "s.yaml", *change)
    assert answer.code == 2, answer.err
    assert said in answer.err.splitlines()[-1]
    assert answer.err.count("error: ") == 1
    assert "Traceback" not in answer.err
    assert not (tmp_path / "backbone.pt").exists()


def test_validation_and_test_images_take_no_part(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for label in range(2):
            photos(tmp_path / "labelled" / split / str(label), 20, seed=10 * number + label)
    shutil.copytree(tmp_path / "labelled", tmp_path / "pool")
    photos(tmp_path / "pool/more", 100, seed=99)
    space = SPACE.replace("data: {digits: {max_train: 100}}", "data: {folder: {root: labelled}}")
    (tmp_path / "s.yaml").write_text(space)
    answer = imgcls("pretrain", "s.yaml", "--unlabeled", "folder:pool", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["images"] == 140
    assert "pretrains on 140 images" in answer.err
    assert "left out 40: validation images" in answer.err
    assert "left out 40: test images" in answer.err
    for split in ("val", "test"):
        refused = here("pretrain", "s.yaml", "--unlabeled", f"folder:labelled/{split}", "-o", "other.pt")
        assert refused.code == 2
        assert is_one_line(refused)


UNLABELED = "data: digits\nmodel: lenet5\nunlabeled: {folder: {root: a}}\n"


def test_unlabeled_images_without_a_pretraining_are_refused(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(f"{UNLABELED}optimizer: {{adamw: {{lr: {{choice: [0.1, 0.2]}}}}}}\n")
    answer = here("check", "s.yaml")
    assert answer.code == 2
    assert is_one_line(answer)
    assert "unlabeled: nothing here pretrains" in answer.err


def test_imitation_by_a_network_of_this_program(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    teacher = "data: digits\nimage: {size: 16}\nmodel: {resnet: {depths: [1], width: 4}}\ntraining: {epochs: 1}\n"
    (tmp_path / "teacher.yaml").write_text(teacher)
    assert here("train", "teacher.yaml").code == 0
    taught = "{imitate: {epochs: 2, batch_size: 64, size: 16, teacher: {file: {path: trained/teacher/seed-1.pt}}}}"
    (tmp_path / "s.yaml").write_text(SPACE)
    answer = imgcls("pretrain", "s.yaml", "--set", f"pretrain={taught}")
    assert answer.code == 0, answer.err
    assert "features of 1,222 images by the teacher, at 16 pixels" in answer.err
    assert "lenet5 by imitate" in answer.err
    again = here("pretrain", "s.yaml", "--set", f"pretrain={taught}")
    assert "backbone.pt: was pretrained already" in again.err
    wrong = here("pretrain", "s.yaml", "-o", "o.pt", "--set", f"pretrain={taught.replace('size: 16', 'size: 32')}")
    assert wrong.code == 2
    assert "pretrain.imitate.size: 16" in wrong.err.splitlines()[-1]
    # The file may become another network, from which these weights are not.
    assert here("train", "teacher.yaml", "--set", "training.epochs=2", "--out", "trained/longer").code == 0
    shutil.copy(tmp_path / "trained/longer/seed-1.pt", tmp_path / "trained/teacher/seed-1.pt")
    other = here("pretrain", "s.yaml", "--set", f"pretrain={taught}")
    assert other.code == 2
    said = other.err.splitlines()[-1]
    assert said.startswith(
        "error: backbone.pt: holds other weights (lenet5 by imitate, 2 epochs, 1,222 images, seed 0, teacher "
    )
    assert said.endswith("(sha256)); choose another file with -o, or delete it to pretrain again")


def test_its_options_reach_it(tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(SPACE.replace("data: {digits: {max_train: 100}}\n", ""))
    for number, name in enumerate("ab"):
        photos(tmp_path / "few" / name, 40, seed=number)
    photos(tmp_path / "many", 150, seed=9)
    (tmp_path / "few" / "a" / "torn.png").write_bytes(b"no image")

    given = ("pretrain", "s.yaml", "--data", "folder:few", "--studies", "elsewhere", "--weights-dir", "few")
    refused = here(*given, "--unlabeled", "folder:many", "-o", "x.pt")
    assert refused.code == 2
    assert "torn.png" in refused.err
    found = []
    for seed in (1, 2):
        seeded = ("pretrain", "s.yaml", "--seed", str(seed), "--skip-unreadable", "-o", f"{seed}.pt", "--json")
        answer = imgcls(*seeded, *given[2:], "--unlabeled", "folder:many")
        assert answer.code == 0, answer.err
        found.append(weights(tmp_path / f"{seed}.pt"))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert (tmp_path / "elsewhere").is_dir()
    assert not (tmp_path / "studies").exists()
    strange = here("pretrain", "s.yaml", "--storage", "somewhere", "-o", "x.pt")
    assert (strange.code, is_one_line(strange)) == (2, True)


NOWHERE = (
    ("run", "s.yaml", "--unlabeled", "folder:nowhere"),
    ("plan", "s.yaml", "--unlabeled", "folder:nowhere"),
    ("check", "s.yaml", "--unlabeled", "folder:nowhere"),
    ("train", "s.yaml", "--unlabeled", "folder:nowhere"),
)


@pytest.mark.parametrize("command", NOWHERE, ids=lambda command: command[0])
def test_images_to_pretrain_on_that_are_not_there_are_one_line(
    command: tuple[str, ...], tmp_path: Path, here: Callable[..., Answer]
) -> None:
    searched = "" if command[0] == "train" else "optimizer: {adamw: {lr: {float: [0.001, 0.01]}}}\n"
    (tmp_path / "s.yaml").write_text(SPACE + searched)
    answer = here(*command)
    assert answer.code == 2, answer
    (problem,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert "unlabeled.folder" in problem
    assert "nowhere" in problem
    assert answer.err.splitlines()[-1] == problem
