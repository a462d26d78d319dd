"""What commands do besides searching, called from Python: the same results as the commands print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imgcls_search as ic
import pytest
from imgcls_search.api.options import study_files_of
from imgcls_search.api.study import Study
from imgcls_search.cli.app import COMMANDS

from tests.api.test_search import _Tags
from tests.conftest import Answer

SPACE: dict[str, Any] = {
    "study": {"trials": 4, "pruner": "none", "pictures": False, "learn_from": "none", "keep": 4, "workers": 1},
    "data": {"digits": {"max_train": 100}},
    "model": {"lenet5": {"width": {"choice": [0.5, 1]}, "activation": {"choice": ["relu", "tanh"]}}},
    "optimizer": {"adamw": {"lr": {"float": [1e-3, 1e-2], "log": True}}},
    "training": {"epochs": 2, "batch_size": 50},
}

IN_PYTHON = {
    "list": "studies",
    "spaces": "shipped_spaces",
    "augment-preview": "augment_preview",
    "predict": "Model.predict",
    "status": "Study.status",
    "best": "Study.best",
    "front": "Study.front",
    "trials": "Study.trials",
    "export": "Study.export",
    "confirm": "Study.confirm",
    "reproduce": "Study.reproduce",
    "report": "Study.report",
    "ensemble": "Study.ensemble",
    "replay": "Study.replay",
    "try": "Study.try_configuration",
    "copy": "Study.copy",
}
"""Commands whose function has another name, or is a method."""

ONLY_COMMANDS = {"serve", "dashboard"}
"""Servers, which run until they are stopped."""


def test_every_command_is_in_python() -> None:
    for name in (name for section in COMMANDS.values() for name in section):
        if name in ONLY_COMMANDS:
            continue
        found: Any = ic
        for part in IN_PYTHON.get(name, name).split("."):
            found = getattr(found, part)
        assert found.__doc__, name


FIXED = {"data": {"digits": {"folds": 3}}, "model": {"lenet5": {}}, "training": {"epochs": 1}}
IDLE: dict[str, Callable[[Study], object]] = {
    "--seed: has no effect together with --samples 0": lambda study: ic.check(SPACE, samples=0, seed=0),
    "group: has no effect without data": lambda study: ic.inspect(study="s", group="a"),
    "changes: has no effect without data": lambda study: ic.inspect(study="s", changes={"data.digits.val": 0.3}),
    "--seed: has no effect together with --no-labels": lambda study: ic.inspect("digits", labels=False, seed=0),
    "--on train: has no effect with folds": lambda study: ic.train(FIXED, on="train"),
    "--skip-unreadable: has no effect together with --split folds": lambda study: ic.evaluate(
        "w.pt", split="folds", skip_unreadable=True
    ),
    "--set study.workers: has no effect together with --workers": lambda study: ic.auto(
        "digits", workers=2, changes={"study.workers": 1}
    ),
    "--set study.name: has no effect together with --name": lambda study: ic.run(
        SPACE, name="a", changes={"study.name": "b"}
    ),
    "--flips: has no effect together with --set augment.flip": lambda study: ic.init(
        "digits", flips="none", changes={"augment.flip": "both"}
    ),
    "--flips: has no effect together with --set augment": lambda study: ic.auto(
        "digits", flips="both", changes={"augment": {"flip": "none"}}
    ),
    "no such study": lambda study: ic.run(SPACE, name="a", extend=True),
    "--top: has no effect together with --trial": lambda study: study.confirm(2, trial=1),
    "--seeds: has no effect without --ablation": lambda study: study.report(seeds=2),
    "format and data need a folder": lambda study: study.export("x.yaml", format="onnx"),
    "--student: has no effect without --distill": lambda study: study.ensemble(student=1),
    "--share: has no effect without --seeds": lambda study: study.replay(share=0.5),
}


@pytest.mark.parametrize("says", IDLE)
def test_argument_without_effect_is_refused_first(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ic.UserError, match=says):
        IDLE[says](Study(study_files_of("s", "studies", None)))
    assert not list(tmp_path.iterdir())


def test_command_for_a_space_without_a_choice_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("my results")
    out.mkdir()
    (out / "digits.yaml").write_text("data: {digits: {}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1}\n")
    calls: list[Callable[[], object]] = [
        lambda: ic.run(out / "digits.yaml"),
        lambda: ic.plan(out / "digits.yaml"),
        lambda: ic.auto("digits", output=out),
    ]
    for call in calls:
        with pytest.raises(ic.UserError, match=r"train it with: imgcls-search train 'my results/digits\.yaml'"):
            call()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with two studies of one space."""
    made = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        for name, seed in (("one", 0), ("two", 5)):
            ic.run(SPACE, name=name, changes={"study.seed": seed}, progress=False)
        yield made


@pytest.fixture
def one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ic.Study:
    monkeypatch.chdir(folder)
    return ic.open_study("one")


def shown(result: Any) -> str:
    """Return the text that a notebook shows of a result, having seen that it runs nothing."""
    found = _Tags(result._repr_html_())
    assert {tag for tag, _ in found.tags} <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "img"}
    return found.text


def test_a_plan_says_what_the_command_prints(one: ic.Study) -> None:
    found = ic.plan(SPACE, timeout="1h", epochs=2)
    assert (found.trials, found.timeout, found.pruner, found.epochs_of_full_trial) == (4, 3600.0, "none", 2)
    assert found.measured_epochs >= 2
    assert found.seconds == pytest.approx(4 * 2 * found.epoch_seconds / found.workers, rel=0.01)
    assert "study.trials: 4 take about" in shown(found)
    with pytest.raises(ic.UserError, match="epochs: 0 is not allowed"):
        ic.plan(SPACE, epochs=0)
    with pytest.raises(ic.UserError, match="space: nothing is searched in it"):
        ic.plan({**SPACE, "model": {"lenet5": {}}, "optimizer": "adamw"})


def test_a_comparison_says_what_the_command_prints(one: ic.Study, here: Callable[..., Answer]) -> None:
    studies = str(one.files.root)
    for first, second in (("one", "two"), ("one:0", "two:1")):
        said = here("compare", first, second, "--studies", studies)
        found = ic.compare(first, second, studies=studies)
        assert json.loads(here("compare", first, second, "--studies", studies, "--json").out) == found.facts
        lines = said.out.splitlines()
        assert lines[: len(found.differences())] == found.differences()
        assert lines[-len(found.notes()) :] == found.notes()
        assert [line.split()[0] for line in lines if line.split()[0] in found.of_trials["measured"]] == [
            row[0] for row in found.rows()
        ]
        assert all(line in shown(found) for line in found.differences())
        assert found.is_of_studies == (first == "one")


def test_objects_are_compared_as_their_names_are(one: ic.Study) -> None:
    two = ic.open_study("two")
    assert ic.compare(one, two).facts == ic.compare("one", "two").facts
    assert ic.compare(one.trial(0), two.trial(1)).facts == ic.compare("one:0", "two:1").facts
    for first, second, said in (
        (one, "two:1", "a trial and a study"),
        (3, "two", "got a int"),
        ("one", "three", "no such study"),
    ):
        with pytest.raises(ic.UserError, match=said):
            ic.compare(first, second)  # type: ignore[arg-type]


def test_replays_are_those_of_the_command(one: ic.Study, here: Callable[..., Answer]) -> None:
    studies = ("--studies", str(one.files.root))
    words = ("--sampler", "random", "--pruner", "asha", "--pruner", "none")
    found = one.replay("random", [{"asha": {}}, "none"])
    said = here("replay", "one", *studies, *words, "--json")
    assert json.loads(said.out) == json.loads(json.dumps(found.facts))
    assert [row[0] for row in found.rows] == ["as it was", "random + asha", "random + none"]
    assert list(found.frame()["strategy"]) == [row[0] for row in found.rows]
    assert "random + asha" in shown(found)
    parts = one.replay("random", "none", seeds=3, share=1, max_epochs=4)
    assert [row[0] for row in parts.rows] == ["random + none"]
    assert parts.facts["seeds"] == 3
    assert {"strategy", "over_random.value", "over_random.low"} <= set(parts.frame().columns)
    for call, message in (
        (lambda: one.replay(seed=1, seeds=3), "--seed: has no effect together with --seeds"),
        (lambda: one.replay(seeds=1), "seeds: 1 is not allowed"),
        (lambda: one.replay(share=0), "share: 0 is not allowed"),
        (lambda: one.replay("no-sampler"), "no-sampler"),
    ):
        with pytest.raises(ic.UserError, match=message):
            call()


def test_studies_are_merged_and_combined(one: ic.Study) -> None:
    both = ic.merge([one, "two"], "both")
    assert (both.name, both.status["trials"]["complete"]) == ("both", 8)
    assert [both.trial(number).value for number in range(8)] == [
        ic.open_study(name).trial(number).value for name in ("one", "two") for number in range(4)
    ]
    for wrong, name, message in (
        ([one], "x", "needs two studies"),
        ([], "x", "needs two studies"),
        ("one", "x", "allowed: a list of names"),
        ([one, "two"], "both", "both"),
        ([one, "three"], "x", "no such study"),
    ):
        with pytest.raises(ic.UserError, match=message):
            ic.merge(wrong, name)  # type: ignore[arg-type]
    found = both.ensemble(3, bundle="model")
    assert found.facts["picks"] <= 3
    assert found.weights.is_file()
    assert len(found.load_model().classes) == 10
    assert [row[0] for row in found.rows()[-2:]] == ["ensemble", f"best: trial {both.best.number}"]
    assert "ensemble" in shown(found)
    with pytest.raises(ic.UserError, match="exists already"):
        both.ensemble(3, bundle="model")
    with pytest.raises(ic.UserError, match="picks: 1 is not allowed"):
        both.ensemble(1)
    with pytest.raises(ic.NoResultError, match="no bundle was written"):
        both.ensemble(2).load_model()


def test_a_configuration_is_asked_for(one: ic.Study) -> None:
    found = one.try_configuration({"optimizer.adamw.lr": 0.004})
    assert found["named"] == {"optimizer.adamw.lr": 0.004}
    assert [request["id"] for request in one.status["requests"]] == [found["request"]]
    after = ic.run(SPACE, name="one")
    assert after.trial(4).params["optimizer.adamw.lr"] == 0.004
    for wrong, message in (({}, "nothing to try"), ({"optimizer.adamw.rl": 1}, "rl"), ({"model": len}, "module:name")):
        with pytest.raises(ic.UserError, match=message):
            one.try_configuration(wrong)


def test_a_network_is_pretrained(one: ic.Study, tmp_path: Path) -> None:
    space = {**SPACE, "model": {"resnet": {"depths": [1], "width": 8}}, "pretrain": {"simclr": {"epochs": 1}}}
    found = ic.pretrain(space, out=tmp_path / "backbone.pt")
    assert (found["epochs"], Path(found["weights"])) == (1, tmp_path / "backbone.pt")
    changes = {"pretrain": "none", "model.resnet.weights": str(tmp_path / "backbone.pt")}
    assert ic.check(space, changes=changes, samples=1)["survey"]["fit"] == 1
    with pytest.raises(ic.UserError, match="pretrain: none; allowed: simclr or imitate"):
        ic.pretrain(SPACE)
    with pytest.raises(ic.UserError, match="seed: -1 is not allowed"):
        ic.pretrain(space, seed=-1)


def test_lists_are_those_of_the_commands(one: ic.Study, here: Callable[..., Answer]) -> None:
    for name, found in (
        (("families",), ic.families()),
        (("families", "vit"), ic.families("vit")),
        (("options", "training"), ic.options("training")),
        (("spaces",), ic.shipped_spaces()),
        (("weights",), ic.weights()),
    ):
        assert json.loads(here(*name, "--json").out) == json.loads(json.dumps(found))
    assert json.loads(here("schema").out) == ic.schema()
    with pytest.raises(ic.UserError, match="vti"):
        ic.families("vti")


def test_a_preview_is_shown(one: ic.Study, tmp_path: Path) -> None:
    found = ic.augment_preview(SPACE, tmp_path / "sheet.png", rows=2, changes={"augment.flip": "horizontal"})
    assert found.rows == 2
    assert any("flip" in line for line in found.settings)
    assert "data:image/png;base64," in found._repr_html_()
    assert "flip" in shown(found)
    with pytest.raises(ic.UserError, match="not a PNG file"):
        ic.augment_preview(SPACE, tmp_path / "sheet.gif")


def test_copies_and_caches(one: ic.Study, tmp_path: Path) -> None:
    assert one.copy(tmp_path / "backup.db") == str(tmp_path / "backup.db")
    with pytest.raises(ic.UserError, match="exists"):
        one.copy(tmp_path / "backup.db")
    found = ic.clean(one.files.root, dry_run=True)
    assert found
    assert all(size > 0 and path.is_dir() for path, size in found.items())
    assert ic.clean(one.files.root) == found
    assert not any(path.exists() for path in found)


def test_networks_are_compared_on_images(one: ic.Study, tmp_path: Path) -> None:
    space = {**SPACE, "model": {"resnet": {"depths": [1], "width": 8}}, "pretrain": {"simclr": {"epochs": 1}}}
    ic.pretrain(space, out=tmp_path / "backbone.pt")
    model = {"resnet": {"depths": [1], "width": 8, "weights": str(tmp_path / "backbone.pt")}}
    found = ic.backbones("digits", [model], changes={"image.channels": 1})
    assert found.best["resnet"]["weights"] == str(tmp_path / "backbone.pt")
    assert len(found.frame()) == 1
    assert "1 networks" in shown(found)
    missing = {"resnet": {"depths": [1], "width": 8, "weights": str(tmp_path / "none.pt")}}
    with pytest.raises(ic.SearchError, match=r"none\.pt"):
        ic.backbones("digits", [missing])
