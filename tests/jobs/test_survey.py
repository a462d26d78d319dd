"""`check` builds samples of a space: sizes, impossible combinations with their lines, limits, remembered counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.data import InputShape
from imgcls_search.errors import BuildError, UserError
from imgcls_search.executors.counts import Counts
from imgcls_search.executors.helper import Helper
from imgcls_search.jobs.survey import summarise, survey
from imgcls_search.models import MODELS
from imgcls_search.space import parse

from tests.conftest import Answer

WIDE = """\
data: {digits: {}}
model:
  vit:
    patch_size: {choice: [2, 3]}
    width: {choice: [24, 32]}
    heads: {choice: [4, 5]}
    depth: 2
  resnet:
    depths: {choice: [[1, 1], [1, 1, 1, 1, 1]]}
    width: 8
limits: {macs: 300_000}
start:
  - {model: vit, model.vit.patch_size: 3, model.vit.heads: 4}
  - {model: resnet, model.resnet.depths: [1, 1]}
"""


def surveyed(text: str, root: Path, **settings: Any) -> dict[str, Any]:
    space = parse(text, catalog(), source="wide.yaml")
    asked: dict[str, Any] = {"samples": 200, "seed": 0, "progress": lambda done, total: None, **settings}
    return summarise(survey(space, root, **asked), space)


def test_a_finite_space_is_built_whole_and_blames_its_lines(tmp_path: Path) -> None:
    found = surveyed(WIDE, tmp_path)
    assert found["every_combination"]
    assert found["samples"] == 10
    vit, resnet = found["families"]["vit"], found["families"]["resnet"]
    # Patch size 3 never divides 8, heads 5 never divide the width.
    assert (vit["samples"], vit["impossible"]) == (8, 6)
    assert (resnet["samples"], resnet["impossible"]) == (2, 1)
    by_path = {entry["path"]: entry for entry in found["impossible"]}
    assert by_path["model.vit.patch_size"]["place"] == "wide.yaml:4:5"
    assert by_path["model.vit.patch_size"]["count"] == 4
    assert "3 does not divide the image size 8" in by_path["model.vit.patch_size"]["example"]
    assert by_path["model.vit.heads"]["place"] == "wide.yaml:6:5"
    assert by_path["model.resnet.depths"]["share"] == 0.1
    # What is predicted is what a real model has.
    import torch

    real = MODELS["resnet"](image_size=8, channels=1, classes=10, depths=(1, 1), width=8)
    assert resnet["params"]["max"] == sum(parameter.numel() for parameter in real.parameters())
    assert isinstance(real, torch.nn.Module)
    assert found["over_limits"] == {"macs": vit["over_limits"] + resnet["over_limits"]}
    assert found["fit"] == vit["fit"] + resnet["fit"]
    ((start),) = found["start"]
    assert start["number"] == 0
    assert start["problem"].startswith("model.vit.patch_size: 3 does not divide")


def test_seed_decides_the_samples(tmp_path: Path) -> None:
    text = "model: {lenet5: {width: {float: [0.5, 4]}}}\n"
    first, again, other = (surveyed(text, tmp_path, samples=20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["families"] != other["families"]


def test_images_that_are_not_there_are_assumed_only_where_that_is_said(tmp_path: Path) -> None:
    text = "data: {folder: {root: nowhere}}\nmodel: {lenet5: {}}\n"
    with pytest.raises(
        UserError, match=r"image\.size: null takes the size of the images, but data\.folder is not there"
    ):
        surveyed(text, tmp_path)
    found = surveyed(text + "image: {size: 64}\n", tmp_path)
    assert (found["image_sizes"], found["channels"], found["classes"], found["assumed"]) == ([64], 3, 10, True)
    known = surveyed("data: {torchvision: {name: CIFAR100}}\nmodel: {lenet5: {}}\n", tmp_path)
    assert (known["image_sizes"], known["classes"], known["assumed"]) == ([32], 100, False)


def test_counts_are_remembered_across_processes_and_helpers_stay_asleep(tmp_path: Path) -> None:
    space = parse("model: {lenet5: {width: {choice: [1, 2]}}}\n", catalog(), source="x")
    shape = InputShape(image_size=8, channels=1, classes=10)
    first = Helper(tmp_path)
    sizes = first.measure(space.first(), shape)
    first.close()
    second = Helper(tmp_path)
    assert second.measure(space.first(), shape) == sizes
    assert second.process is None


def test_refusals_are_remembered_too_and_a_damaged_memory_is_no_harm(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise BuildError("model.x", "no")

    counts = Counts(tmp_path / "counts")
    with pytest.raises(BuildError, match=r"model\.x: no"):
        counts.ask({"a": 1}, refuse)
    with pytest.raises(BuildError, match=r"model\.x: no"):
        Counts(tmp_path / "counts").get({"a": 1})
    (tmp_path / "broken").write_bytes(b"no database, but long enough to be taken for one" * 100)
    assert Counts(tmp_path / "broken").ask({"a": 1}, lambda: 5) == 5


def test_check_prints_a_table_and_the_lines_to_blame(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "wide.yaml").write_text(WIDE)
    answer = imgcls("check", "wide.yaml")
    assert answer.code == 0, answer.err
    assert "built every combination for 8 pixels, 10 classes: 2 fit" in answer.out
    assert "impossible: 40.0%: wide.yaml:4:5: model.vit.patch_size: for example 3 does not divide" in answer.out
    assert "start configuration 0 cannot be trained: model.vit.patch_size: 3 does not divide" in answer.out
    found = json.loads(imgcls("check", "wide.yaml", "--json", "--samples", "5").out)
    assert found["survey"]["samples"] == 5
    assert json.loads(imgcls("check", "wide.yaml", "--json", "--samples", "0").out)["survey"] is None


PAGE = (Path(__file__).parents[2] / "docs/how-to/add-a-family.md").read_text()


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """Install the family of the documentation as a package next to the test; return the environment that finds it."""
    site = tmp_path / "site"
    about = site / "towers-1.0.dist-info"
    about.mkdir(parents=True)
    (code,) = re.findall(r"```python\n(# towers\.py\n.*?)```", PAGE, re.DOTALL)
    ((group, entry),) = re.findall(r'```toml\n\[project\.entry-points\."(.*?)"\]\n(tower = .*?)\n```', PAGE)
    (site / "towers.py").write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: towers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{entry}\n".replace('"', ""))
    return {"PYTHONPATH": str(site)}


@pytest.mark.slow
def test_a_family_from_outside_is_searched_like_any_other(
    plugin: dict[str, str], tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    space = tmp_path / "towers.yaml"
    space.write_text(
        "study: {trials: 4, pictures: false}\ndata: {digits: {max_train: 100}}\ntraining: {epochs: 1}\n"
        "model: {tower: {floors: {int: [2, 5]}}, lenet5: {}}\n"
    )
    assert imgcls("check", space).code == 2
    found = json.loads(imgcls("check", space, "--json", "--samples", "50", env=plugin).out)["survey"]
    assert found["families"]["tower"]["samples"] == 4
    assert found["families"]["tower"]["impossible"] == 2
    assert [entry["path"] for entry in found["impossible"]] == ["model.tower.floors"]
    assert "hidden layers" in imgcls("families", "tower", env=plugin).out
    answer = imgcls("run", space, "--set", "start=[{model: tower, model.tower.floors: 2}]", env=plugin)
    assert answer.code == 0, answer.err
    # Another text of the same version is counted again.
    path = tmp_path / "site/towers.py"
    path.write_text(path.read_text().replace("floors > 3", "floors > 5"))
    changed = json.loads(imgcls("check", space, "--json", "--samples", "50", env=plugin).out)["survey"]
    assert changed["impossible"] == []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("tower = towers:missing", "the model family 'tower' of the package towers cannot be loaded (module 'towers'"),
        ("vit = towers:tower", "the package towers adds a model family 'vit', but there is one of that name"),
    ],
)
def test_a_broken_family_from_outside_gets_one_line(
    entry: str, said: str, plugin: dict[str, str], tmp_path: Path, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    (tmp_path / "site/towers-1.0.dist-info/entry_points.txt").write_text(f"[imgcls_search.models]\n{entry}\n")
    answer = imgcls("check", tiny, env=plugin)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1
