"""`init` as a user meets it: a file that check and run take as it is, mistakes in one line, nothing half-written."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import PATIENCE, Answer, is_one_line, linux_only
from tests.jobs.test_init import picture
from tests.warm import Command, Warm

SHORT = ("--time", "5s")
"""So little that no speed is measured."""


def photos(folder: Path, each: int = 8, kinds: str = "ab") -> Path:
    for number, kind in enumerate(kinds):
        for index in range(each):
            picture(folder / kind / f"{index}.png", (12, 12), 1000 * number + index)
    return folder


def test_a_draft_is_checked_and_run_as_it_is_from_any_folder(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    photos(tmp_path / "my photos")
    done = imgcls("init", "my photos", *SHORT)
    assert done.code == 0, done.err
    assert "study.objectives: {accuracy: maximize}  # the classes are about equally large" in done.out
    assert done.out.splitlines()[-1] == "wrote my-photos.yaml; next: imgcls-search run my-photos.yaml"
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "my-photos.yaml", tmp_path / "elsewhere/drafted.yaml")
    checked = imgcls("check", "elsewhere/drafted.yaml", "--samples", "3")
    assert checked.code == 0, checked.err
    assert "3 fit" in checked.out
    done = imgcls("run", "elsewhere/drafted.yaml", "--set", "study.trials=1", "--set", "training.epochs=1",
                  "--set", "study.timeout=null", "--studies", "elsewhere/studies")  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "elsewhere/studies/my-photos.db").is_file()


def test_json_has_facts_decisions_and_the_path(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "photos/a/0.png").write_bytes(b"no image")
    done = imgcls(
        "init", "photos", *SHORT, "--json", "--flips", "both", "-o", "x.yaml", "--set", "data.folder.test=0.3"
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["path"] == "x.yaml"
    assert found["facts"]["images"]["unreadable"] == ["a/0.png (not an image)"]
    decided = {one["path"]: one["value"] for one in found["decisions"]}
    assert decided["augment.flip"] == "horizontal_vertical"
    assert decided["data.folder.skip_unreadable"] is True
    text = (tmp_path / "x.yaml").read_text()
    assert "test: 0.3" in text
    # In so little time a busy machine reads some of them only.
    assert re.search(r"1 of \d+ images that were read are damaged", text)
    assert found["time"]["all"] == 5


def test_what_is_said_is_kept_and_told(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    photos(tmp_path / "photos")
    said = ("study.seed=7", "training.epochs=3", "optimizer={sgd: {lr: 1e-2}}", "start=[]", "data.folder.split_seed=5")
    done = imgcls("init", "photos", *SHORT, "--yes", *(word for one in said for word in ("--set", one)))
    assert done.code == 0, done.err
    assert "training.epochs: 3  # as you said" in done.out
    written = yaml.safe_load((tmp_path / "photos.yaml").read_text())
    assert (written["study"]["seed"], written["training"]["epochs"], written["start"]) == (7, 3, [])
    assert list(written["optimizer"]) == ["sgd"]
    assert written["data"]["folder"]["split_seed"] == 5
    checked = imgcls("check", "photos.yaml", "--samples", "2")
    assert checked.code == 0, checked.err


def test_groups_damaged_images_and_the_folder_of_studies_are_named(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    photos(tmp_path / "photos", 12)
    (tmp_path / "photos/a/3.png").write_bytes(b"no image")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/photos.db").touch()
    done = imgcls("init", "photos", *SHORT, "--yes", "--group", r"^./(\d)", "--skip-unreadable", "--studies", "others")
    assert done.code == 0, done.err
    space = yaml.safe_load((tmp_path / "photos.yaml").read_text())
    # A study of the folder's name is there already.
    assert space["study"]["name"] == "photos-2"
    written = space["data"]["folder"]
    assert written["group"] == r"^./(\d)"
    assert written["skip_unreadable"] is True


def test_a_file_is_replaced_only_when_that_is_asked_for(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "photos.yaml").write_text("mine")
    refused = imgcls("init", "photos", *SHORT)
    assert is_one_line(refused)
    assert "photos.yaml: is there already; --force replaces it" in refused.err
    assert (tmp_path / "photos.yaml").read_text() == "mine"
    assert imgcls("init", "photos", *SHORT, "--force").code == 0
    assert (tmp_path / "photos.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("empty",), "no class folders"),
        (("one",), "only one class, 'a'"),
        (("three",), "too few images in class"),
        (("missing",), "does not exist"),
        (("photos", "--time", "soon"), "--time soon: is not a duration"),
        (("photos", "--time", "0s"), "--time 0s: is not a duration"),
        (("photos", "-o", "photos"), "photos: is a folder"),
        (("photos", "-o", "none/x.yaml"), "none/x.yaml"),
        (("photos", "--weights-dir", "none"), "no such folder"),
        (("photos", "--set", "training.epochs=none"), "training.epochs"),
        (("photos", "--set", "training.epoch=3"), "training.epoch: unknown key"),
        (("photos", "--set", "training.epochs"), "needs PATH=VALUE"),
        (("photos", "--studies", "photos/studies"), "would be taken for a class"),
        (("labels.csv",), "labels.csv"),
        (("table:lacking.csv",), "has no column"),
        (("rotten",), "none of its images can be read"),
        (("nonsense:photos",), "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: tuple[str, ...], message: str, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    photos(tmp_path / "photos", 3)
    photos(tmp_path / "one", 3, "a")
    photos(tmp_path / "three", 1)
    picture(tmp_path / "three/a/1.png", (9, 9), 5)
    (tmp_path / "empty").mkdir()
    for file in photos(tmp_path / "rotten", 4).rglob("*.png"):
        file.write_bytes(b"rotten")
    (tmp_path / "labels.csv").write_text("image,label\nnone.png,a\nphotos/a/0.png,b\n")
    (tmp_path / "lacking.csv").write_text("x,y\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    done = imgcls("init", *(words if "--time" in words else (*words, *SHORT)))
    assert is_one_line(done), done
    assert message in done.err
    assert [path for path in sorted(tmp_path.rglob("*")) if "studies" not in path.parts] == before


def test_weights_of_another_architecture_are_said_and_left_out(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    import torch

    photos(tmp_path / "photos")
    (tmp_path / "weights").mkdir()
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights/resnet18.pth")
    done = imgcls("init", "photos", *SHORT, "--weights-dir", "weights")
    assert done.code == 0, done.err
    assert "weights not used: " in done.out
    assert "resnet18.pth" in done.out
    assert "resnet18" not in (tmp_path / "photos.yaml").read_text()


def test_weights_of_a_persons_folder_are_found_without_being_named_again(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    import torch
    from torchvision.models import mobilenet_v3_small

    for index in range(16):
        picture(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", (32, 32), index)
    (tmp_path / "weights").mkdir()
    torch.save(mobilenet_v3_small().state_dict(), tmp_path / "weights/mobilenet_v3_small.pth")
    done = imgcls("init", "photos", "--time", "100s", "--weights-dir", "weights", "--json")
    assert done.code == 0, done.err
    text = (tmp_path / "photos.yaml").read_text()
    assert str(tmp_path / "weights/mobilenet_v3_small.pth") in text, done.out
    checked = imgcls("check", "photos.yaml", "--samples", "3")
    assert checked.code == 0, checked.err
    assert "3 fit" in checked.out, checked.out


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "answer", "flip"),
    [
        ((), "horizontal\r", "horizontal"),
        ((), "\r", "none"),
        (("--flips", "horizontal"), None, "horizontal"),
        (("--set", "augment.flip=horizontal"), None, "horizontal"),
    ],
)
def test_flips_are_asked_once_on_a_terminal_unless_they_are_given(
    options: tuple[str, ...], answer: str | None, flip: str, tmp_path: Path, warm: Warm | None
) -> None:
    photos(tmp_path / "photos")
    ours, theirs = pty.openpty()
    arguments = ["init", "photos", *SHORT, *options]
    process: Command | subprocess.Popen[bytes]
    if warm is not None:
        process = warm.start(arguments, tmp_path, os.environ, terminal=theirs)
    else:
        command = [sys.executable, "-m", "imgcls_search", *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, is_answered, ends = b"", False, time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if select.select([ours], [], [], 1)[0]:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                break
        elif process.poll() is not None:
            break
        if answer is not None and b"[none]" in shown and not is_answered:
            is_answered = True
            os.write(ours, answer.encode())
    assert process.wait(PATIENCE) == 0, shown
    process.communicate(timeout=PATIENCE)
    assert shown.count(b"mirrored picture keep its class?") == (answer is not None)
    assert f"flip: {flip}" in (tmp_path / "photos.yaml").read_text()
