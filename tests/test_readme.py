"""What the README says: its commands run, as printed; its space and its error are those of the program."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.cli.app import app
from imgcls_search.space import parse
from PIL import Image
from typer.main import get_command

from tests.conftest import Answer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^imgcls-search (.+?)(?: +#.*)?$", README, re.MULTILINE)

ELSEWHERE = ("dashboard", "serve ", "--storage", "--cluster", "copy ", "auto ")
"""Commands that serve until they are stopped, take all the time they get, or need a server: other tests run them."""

SMALL = ("--set", "training.epochs=2", "--set", "training.batch_size=16", "--set", "study.pictures=false")
FROM_SCRATCH = "model={resnet: {depth: 18, stem: large, weights: null}}"
PRETRAINED = {
    way: tuple(
        word
        for change in (f"{way}.epochs=1", f"{way}.batch_size=8", *more)
        for word in ("--set", f"pretrain.{change}" if change.startswith(way) else change)
    )
    for way, more in (("simclr", ("image.size=32",)), ("imitate", ("image.size=32", "imitate.size=32")))
}
SMALLER = {
    # One trial more of the study that the test begins with.
    "run spaces/vit.yaml --set study.log": (
        *(*SMALL, "--set", "study.trials=4", "--set", "data.digits.max_train=200", "--workers", "1"),
    ),
    "run spaces/vit.yaml": (*SMALL, "--set", "study.trials=8", "--set", "image.size=16", "--workers", "1"),
    "run spaces/photos.yaml": (
        *(*SMALL, "--set", "study.trials=1", "--set", "image.size=32", "--workers", "1"),
        *("--set", FROM_SCRATCH, "--set", "finetune={}", "--set", "start=[]", "--set", "optimizer=adamw"),
    ),
    "run spaces/finetune.yaml": (
        *(*SMALL, "--set", "study.trials=1", "--set", "image.size=32", "--workers", "1"),
        *("--set", "start=[{head: logistic}]"),
    ),
    **{f"pretrain spaces/pretrain.yaml --set pretrain={way}": few for way, few in PRETRAINED.items()},
    "run spaces/pretrain.yaml --name": (*SMALL, "--set", "study.trials=1", "--set", "image.size=32", "--workers", "1"),
    "run spaces/pretrain.yaml": (
        *(*SMALL, *PRETRAINED["simclr"], *PRETRAINED["imitate"]),
        *("--set", "study.trials=2", "--workers", "1"),
    ),
    "run spaces/compressed.yaml": (*SMALL, "--set", "study.trials=1", "--set", "data.digits.max_train=200"),
    # What a network of two epochs can promise.
    "export vit-digits --bundle careful": ("--target-precision", "0.1"),
    "check": ("--samples", "9"),
    "inspect photos --study": (),
    "inspect": ("--quick-epochs", "2"),
    "init": ("--time", "20s"),
    "plan": ("--data", "folder:photos", "--epochs", "1"),
    "augment-preview": ("--data", "folder:photos"),
}
"""Options that are added to commands, by how they begin, so that each takes seconds."""


def test_commands_exist_with_their_options() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in COMMANDS:
        name, *arguments = line.split()
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options, line


def test_space_parses() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert parse(block, catalog(), source="README.md").num_combinations() is None


def test_error_is_what_the_program_says() -> None:
    (shown,) = re.findall(r"^error: bad\.yaml:3:18: (.+)$", README, re.MULTILINE)
    with pytest.raises(Exception, match=re.escape(shown)):
        parse("\n\nmodel: {vit: {  widht: 3}}", catalog(), source="bad.yaml")


@pytest.mark.slow
def test_commands_run_in_their_order(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "spaces").symlink_to(ROOT / "spaces")
    make_photos(tmp_path)
    digits = imgcls("run", "spaces/vit.yaml", *SMALL, "--set", "study.trials=3", "--set", "data.digits.max_train=200")
    assert digits.code == 0, digits.err
    ran = [line for line in COMMANDS if not any(word in line for word in ELSEWHERE)]
    assert len(ran) >= 25
    for line in ran:
        words, redirected = shlex.split(line), None
        if ">" in words:
            words, redirected = words[: words.index(">")], words[-1]
        added = next((options for begin, options in SMALLER.items() if line.startswith(begin)), ())
        if words[0] == "export" and "model" in words:
            # The README makes one bundle in two ways.
            shutil.rmtree(tmp_path / "model", ignore_errors=True)
        answer = imgcls(*words, *added)
        assert answer.code == 0, (line, answer.out, answer.err)
        assert answer.out, line
        if redirected:
            (tmp_path / redirected).write_text(answer.out)
    written = "inspect-photos.html clean.csv report.html best.yaml test.csv front.png sheet.png space.schema.json"
    assert [name for name in f"{written} model/model.onnx".split() if not (tmp_path / name).is_file()] == []


def make_photos(folder: Path) -> None:
    """Write three classes of 40 images, each in a colour of its own, and the files that the README predicts."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(("cat", "dog", "owl")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 150, (20, 20, 3))
            pixels[..., place] += 100
            Image.fromarray(pixels.astype("uint8")).save(folder / "photos" / name / f"{index}.jpg")
    for several in ("more-photos", "folder-of-scans", "many-photos"):
        shutil.copytree(folder / "photos" / "cat", folder / several)
    Image.fromarray(np.full((8, 8), 90, "uint8")).save(folder / "scan.png")
    (folder / "weights").mkdir()
