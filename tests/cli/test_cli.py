"""The command line on good and bad input: what is printed, and the exit code."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.cli.app import app
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.space import read_space
from PIL import Image

from tests.conftest import PATIENCE, TINY, Answer, begin_command, is_one_line
from tests.warm import Warm

SPACES = Path(__file__).parents[2] / "spaces"

COMMANDS = [(c.name or c.callback.__name__).replace("_", "-") for c in app.registered_commands if c.callback]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder in which `tiny.yaml` was searched to its end."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    process = begin_command(["run", "tiny.yaml", "--workers", "1"], folder, os.environ, warm)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "next: imgcls-search export tiny-digits" in out
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> str:
    shutil.copytree(finished / "studies", tmp_path / "studies")
    return "tiny-digits"


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from imgcls_search.cli.app import app; "
        "print(CliRunner().invoke(app, ['--help']).output); "
        "print('HEAVY', sorted({'torch', 'optuna', 'sklearn', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name}  ", shown, re.MULTILINE)) == 1
    assert "..." not in shown.partition("Options:")[2], "a first sentence is cut"
    assert shown.index("\nSearch:\n") < shown.index("\n  run  ") < shown.index("\nResults:\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_teaches_by_example(name: str, here: Callable[..., Answer]) -> None:
    answer = here(name, "--help")
    assert answer.code == 0
    assert f"imgcls-search {name} " in answer.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("model: [", "tiny.yaml:"),
        ("model: {lenet5: {}}\nmodle: 1", "tiny.yaml:2:1: modle: unknown key"),
        ("model: {lenet6: {}}", "did you mean 'lenet5'?"),
        ("model: {lenet5: {}}\noptimizer: {adamww: {}}", "did you mean 'adamw'?"),
        ("model: {lenet5: {}}\nstudy: {sampler: tpf}", "did you mean 'tpe'?"),
        ("model: {lenet5: {}}\nstudy: {pruner: halvin}", "did you mean 'halving'?"),
        ("model: {lenet5: {}}\noptimizer: {adamw: {lr: {float: [0.1, 0.01]}}}", "low=0.1, high=0.01"),
        ("model: {lenet5: {}}\noptimizer: {adamw: {weight_decay: {float: [0, 0.1], log: true}}}", "log"),
        ("model: {vit: {width: {int: [32, 100], step: 32}}}", "96"),
        ("model: {vit: {width: {choice: []}}}", "model.vit.width"),
        ("model: {lenet5: {}}\nmodel: {vit: {}}", "tiny.yaml:2:1: model: "),
        ("model: {lenet5: {}}\nstudy: {trials: 0}", "study.trials: 0 is not allowed; allowed: int >= 1"),
        ("model: {lenet5: {}}\nstudy: {trials: -3}", "study.trials: -3 is not allowed"),
        ("model: {lenet5: {}}\ntraining: {epochs: {int: [5, 10]}}", "is given, not searched"),
        ("model: {lenet5: !!python/object:os.system {}}", "tag"),
        ("model: {lenet5: {}}\nstudy: {name: ../out}", "study.name"),
    ],
)
def test_bad_space_is_one_line(text: str, said: str, tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "tiny.yaml").write_text(text)
    for command in ("check", "run"):
        answer = here(command, "tiny.yaml")
        assert is_one_line(answer), answer
        assert said in answer.err


def test_all_problems_of_a_file_are_reported_together(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "bad.yaml").write_text("modle: 1\nstudy: {trials: 0}\nmodel: {lenet5: {widht: 2}}\n")
    answer = here("check", "bad.yaml")
    assert answer.code == 2
    assert [line.split(": ")[1] for line in answer.err.splitlines()] == [
        "bad.yaml:1:1",
        "bad.yaml:2:17",
        "bad.yaml:3:18",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "missing.yaml"), "missing.yaml"),
        (("run", SPACES), "spaces"),
        (("run", "tiny.yaml", "--name", "../out"), "../out"),
        (("run", "tiny.yaml", "--set", "training.epochs"), "needs PATH=VALUE"),
        (("run", "tiny.yaml", "--set", "study.sampler=grid"), "optimizer.adamw.lr"),
        (("check", "tiny.yaml", "--set", "study.sampler=grid"), "needs a finite space"),
        (("status", "nothing"), "no such study"),
        (("best", "../nothing"), "allowed: letters"),
        (("export", "nothing", "-o", "x.yaml"), "no such study"),
        (("dashboard", "nothing"), "no such study"),
        (("evaluate", "nothing.pt"), "no such weights file"),
        (("train", "tiny.yaml"), "optimizer.adamw.lr"),
        (("best",), "error: Missing argument 'STUDY' (see imgcls-search best --help)"),
        (("run", "x.yaml", "--name"), "error: Option '--name' requires an argument (see imgcls-search run --help)"),
        (("--name",), "error: No such option: --name (see imgcls-search --help)"),
        (("best", "nothing", "--jsn"), "error: No such option: --jsn"),
        (("bset", "nothing"), "error: No such command 'bset'. Did you mean 'best'?"),
        (("run", "tiny.yaml", "--workers", "two"), "error: Invalid value for '--workers'"),
        (("run", "tiny.yaml", "--timeout", "10001d"), "--timeout 10001d: is too long; allowed: at most 10000d"),
        (("auto", "digits", "--time", f"{10**30}d"), "is too long; allowed: at most 10000d"),
        (("run", ""), "error: an argument: is empty; allowed: a value (is a shell variable unset?)"),
        (("run", "tiny.yaml", "--studies", ""), "error: --studies: is empty"),
        (("list", "--studies="), "error: --studies: is empty"),
        (("predict", "model", "a.png", ""), "error: an argument: is empty"),
    ],
)
def test_bad_argument_is_one_line(
    arguments: tuple[str, ...], said: str, tiny: Path, here: Callable[..., Answer]
) -> None:
    answer = here(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert all(line.startswith("error: ") for line in answer.err.splitlines())
    assert not (tiny.parent / "x.yaml").exists()


@pytest.mark.parametrize(
    "command",
    [
        *(
            "status {}",
            "best {}",
            "front {}",
            "trials {}",
            "dashboard {}",
            "export {} -o x.yaml",
            "export {} --bundle x",
        ),
        *("copy {} --to x.db", "compare {}:0 {}:1", "compare {} {}", "confirm {}", "reproduce {} --trial 0"),
        *("replay {} --sampler random", "report {} -o x.html"),
    ],
)
@pytest.mark.parametrize("name", ["../there", "/there"])
def test_study_name_leads_to_no_other_folder(
    command: str, name: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    # Something is there, so that only the name can be what is refused.
    (tmp_path / "studies").mkdir()
    (tmp_path / "there.db").write_text("a secret")
    answer = here(*command.format(name, name).split())
    assert is_one_line(answer), answer
    assert f"study name {name!r}: allowed: letters" in answer.err
    assert not list(tmp_path.glob("x*"))


@pytest.mark.slow
def test_validation_images_that_are_trained_on_are_told_before_the_first_trial(
    tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    shades = iter(range(256))
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for label in ("cat", "dog"):
            for index in range(count):
                draw(tiny.parent / "photos" / split / label / f"{index}.png", next(shades))
    shutil.copy(tiny.parent / "photos/train/dog/3.png", tiny.parent / "photos/val/cat/again.png")
    # Nothing is fit to be trained here, and so no trial begins.
    answer = imgcls("run", tiny, "--data", "folder:photos", "--set", "limits.params=1")
    assert answer.code == 1
    assert (
        "1 of 5 validation images are among the training images too, for example "
        "val/cat/again.png = train/dog/3.png: scores are too high: the model trained on these images"
    ) in answer.out


FIXED = ("--set", "model={lenet5: {width: 1}}", "--set", "optimizer={adamw: {lr: 0.01}}")
"""What leaves nothing to search in the tiny space."""


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def spoil(folder: Path, kind: str) -> None:
    """Make a folder of images that is bad in one way."""
    for label in ("cat",) if kind == "one class" else ("cat", "dog"):
        for index in range(10):
            draw(folder / "train" / label / f"{index}.png", 20 * index)
            draw(folder / "test" / label / f"{index}.png", 20 * index)
    if kind == "class only in test":
        draw(folder / "test" / "bird" / "0.png", 9)
    if kind == "corrupt image":
        (folder / "train" / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    if kind in ("missing", "empty"):
        shutil.rmtree(folder)
    if kind == "empty":
        folder.mkdir()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "photos"),
        ("empty", "photos"),
        ("one class", "cat"),
        ("class only in test", "bird"),
        ("corrupt image", "3.png"),
    ],
)
def test_bad_folder_of_images_is_one_line_before_any_trial(
    kind: str, said: str, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    spoil(tiny.parent / "photos", kind)
    answer = imgcls("run", tiny, "--data", "folder:photos")
    assert is_one_line(answer), answer
    assert said in answer.err
    assert not list(tiny.parent.glob("studies/*.db"))


def test_studies_folder_that_cannot_be_made_is_one_line(tiny: Path, here: Callable[..., Answer]) -> None:
    # A file where the folder should be: unlike a read-only mode, it stops the superuser too.
    (tiny.parent / "taken").write_text("")
    answer = here("run", tiny, "--studies", "taken/studies")
    assert is_one_line(answer)
    assert "cannot be created" in answer.err


def test_changed_space_is_refused_key_by_key(study: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here("run", tiny, "--set", "training.batch_size=25", "--set", "study.seed=4")
    assert answer.code == 2
    assert "training.batch_size: was 50, is now 25" in answer.err
    assert "study.seed: was 0, is now 4" in answer.err


def test_changed_objectives_are_refused(study: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here("run", tiny, "--set", "study.objectives={loss: minimize}")
    assert answer.code == 2
    assert "study.objectives" in answer.err


def test_changed_images_are_refused(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    photos = tiny.parent / "photos"
    spoil(photos, "nothing")
    arguments = ("run", tiny, "--data", "folder:photos", "--set", "study.trials=1", "--workers", "1")
    assert imgcls(*arguments).code == 0
    draw(photos / "train" / "dog" / "11.png", 3)
    answer = imgcls(*arguments[:-4], "--set", "study.trials=2", "--workers", "1")
    assert is_one_line(answer), answer
    assert "other images" in answer.err


ONE = ("--set", "study.trials=1", "--set", "training.epochs=2", "--workers", "1")


def test_finished_study_of_other_images_is_refused(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    for root in ("a/pets", "b/pets", "moved"):
        spoil(tiny.parent / root, "nothing")
    draw(tiny.parent / "b" / "pets" / "train" / "dog" / "3.png", 77)
    assert imgcls("run", tiny, "--data", "folder:a/pets", *ONE).code == 0
    other = imgcls("run", tiny, "--data", "folder:b/pets", *ONE)
    assert is_one_line(other), other
    assert "other images" in other.err
    assert "--name" in other.err
    moved = imgcls("run", tiny, "--data", "folder:moved", "--name", "tiny-pets", *ONE)
    assert moved.code == 0, moved.err
    assert "finished: 1 trial " in moved.out
    shutil.rmtree(tiny.parent / "a")
    gone = imgcls("run", tiny, "--data", "folder:a/pets", *ONE)
    assert is_one_line(gone), gone
    assert "does not exist" in gone.err
    assert not gone.out


def test_study_with_a_fingerprint_of_the_first_version_goes_on(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    import optuna

    photos = tiny.parent / "photos"
    spoil(photos, "nothing")
    assert imgcls("run", tiny, "--data", "folder:photos", *ONE).code == 0
    study = optuna.load_study(storage=f"sqlite:///{tiny.parent}/studies/tiny-photos.db", study_name="tiny-photos")
    source = describe(Component(path="data.folder", name="folder", args={"root": str(photos)}))
    assert source.first_fingerprint is not None
    study.set_user_attr("data", {**study.user_attrs["data"], "fingerprint": source.first_fingerprint()})
    again = imgcls("run", tiny, "--data", "folder:photos", "--set", "study.trials=2", *ONE[2:])
    assert again.code == 0, again.err
    reproduced = imgcls("reproduce", "tiny-photos", "--trial", "0")
    assert "identical" in reproduced.out, reproduced
    assert "fingerprint" not in reproduced.out
    draw(photos / "train" / "dog" / "3.png", 99)
    assert "other images" in imgcls("run", tiny, "--data", "folder:photos", "--set", "study.trials=2", *ONE[2:]).err


@pytest.mark.parametrize("change", ["added", "deleted", "edited"])
def test_train_does_not_go_on_with_what_was_trained_on_other_images(
    change: str, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    photos = tiny.parent / "photos"
    spoil(photos, "nothing")
    command = ("train", tiny, *FIXED, "--data", "folder:photos", "--set", "training.epochs=2", "--out", "out")
    assert imgcls(*command).code == 0
    # As an interruption, or a failure after the training, leaves it.
    (tiny.parent / "out" / "metrics.json").unlink()
    image = photos / "train" / "dog" / "3.png"
    if change == "added":
        draw(image.with_name("new.png"), 5)
    elif change == "deleted":
        image.unlink()
    else:
        draw(image, 99)
    refused = imgcls(*command)
    assert is_one_line(refused), refused
    assert "was trained on other images" in refused.err
    assert "--out" in refused.err
    assert not (tiny.parent / "out" / "metrics.json").exists()
    (tiny.parent / "out" / "seed-1.pt").unlink()
    assert imgcls(*command).code == 0


def test_a_refused_training_leaves_no_folder(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "photos" / "only").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "only" / "a.png")
    (tmp_path / "best.yaml").write_text(
        "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\noptimizer: {adamw: {lr: 0.003}}\ntraining: {epochs: 1}\n"
    )
    for arguments in (("train", "best.yaml", "--out", "made/of/it"), ("train", "best.yaml")):
        answer = here(*arguments)
        assert is_one_line(answer), answer
        assert "only one class" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "studies") == ["best.yaml", "photos"]


def test_worker_does_not_go_on_from_a_checkpoint_of_other_images(tmp_path: Path) -> None:
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.trainer import training_job
    from imgcls_search.worker.job_runner import JobRunner
    from imgcls_search.worker.pipeline import prepare_data

    (tmp_path / "tiny.yaml").write_text(TINY)
    spoil(tmp_path / "photos", "nothing")
    pairs = [tuple(pair.split("=", 1)) for pair in (*FIXED[1::2], "training.epochs=2")]
    space = read_space(tmp_path / "tiny.yaml", catalog(), overrides=pairs, data=f"folder:{tmp_path / 'photos'}")
    space = space.fill({"image.size": 8, "image.channels": 1})

    def known_epochs() -> int:
        data = prepare_data(space.config(), image_cache(tmp_path))
        job = training_job(0, space.config(), data, seed=1, weights=tmp_path / "seed-1.pt", teacher=None)
        started, *_ = JobRunner("cpu").work(job, threading.Event())
        return len(started.history)

    assert [known_epochs(), known_epochs()] == [0, 2]
    draw(tmp_path / "photos" / "train" / "dog" / "3.png", 99)
    assert known_epochs() == 0


def test_damaged_test_file_is_named_before_any_trial_and_the_split_stays_sealed(
    tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    photos = tiny.parent / "photos"
    spoil(photos, "nothing")
    damaged = photos / "test" / "cat" / "3.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    for command in (("run", tiny, *ONE), ("train", tiny, *FIXED)):
        answer = imgcls(*command, "--data", "folder:photos")
        assert answer.code == 2
        # A training shows its progress there too.
        assert "1 of 20 test images cannot be read: test/cat/3.png" in answer.err.splitlines()[-1]
        assert "Traceback" not in answer.err
    assert not list(tiny.parent.glob("studies/*.db"))
    assert not list(tiny.parent.glob("trained/*/*.pt"))
    damaged.write_bytes(whole)
    assert imgcls("run", tiny, *ONE, "--data", "folder:photos").code == 0
    # Looked at, but nothing is kept.
    assert not list(tiny.parent.glob("studies/.images/**/test.*"))


def test_finished_study_says_so(study: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here("run", tiny)
    assert answer.code == 0
    assert "finished: 4 trials" in answer.out


def test_missing_folder_is_one_line_first_of_all(study: str, tiny: Path, here: Callable[..., Answer]) -> None:
    (tiny.parent / "file").write_text("")
    for command in ("run", "plan", "train"):
        for data in ("folder:nowhere", "cifar10:nowhere", "folder:file"):
            answer = here(command, tiny, "--data", data, *(FIXED if command == "train" else ()))
            assert is_one_line(answer), answer
            assert not answer.out
            assert (
                "nowhere: does not exist; allowed: " in answer.err or "file: is not a folder; allowed: " in answer.err
            )
    assert not (tiny.parent / "trained").exists()


def test_two_folders_are_two_studies(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    for name in ("Pets", "cars"):
        spoil(tiny.parent / name, "nothing")
        answer = imgcls("run", tiny, "--data", f"folder:{name}", "--set", "study.trials=1", "--workers", "1")
        assert answer.code == 0, answer.err
        assert f"study tiny-{name.lower()} in " in answer.out
    assert sorted(path.stem for path in (tiny.parent / "studies").glob("*.db")) == ["tiny-cars", "tiny-pets"]


@pytest.mark.slow
def test_study_that_an_earlier_version_named_goes_on(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    for name in ("pets", "cars"):
        spoil(tiny.parent / name, "nothing")
    arguments = ("--set", "study.trials=1", "--workers", "1")
    assert imgcls("run", tiny, "--data", "folder:pets", "--name", "tiny-folder", *arguments).code == 0
    again = imgcls("run", tiny, "--data", "folder:pets", *arguments)
    assert "study tiny-folder in " in again.out
    assert "finished: 1 trial " in again.out
    other = imgcls("run", tiny, "--data", "folder:cars", *arguments)
    assert "study tiny-cars in " in other.out
    assert other.code == 0
    # Once there is a study of today's name, it is the one.
    assert imgcls("run", tiny, "--data", "folder:pets", "--name", "tiny-pets", *arguments).code == 0
    assert "study tiny-pets in " in imgcls("run", tiny, "--data", "folder:pets", *arguments).out


def test_study_names_near_ones(study: str, here: Callable[..., Answer]) -> None:
    assert "did you mean 'tiny-digits'?" in here("status", "tiny-digit").err


def test_status_and_best_agree_with_optuna(study: str, tmp_path: Path, here: Callable[..., Answer]) -> None:
    import optuna

    known = optuna.load_study(storage=f"sqlite:///{tmp_path}/studies/{study}.db", study_name=study)
    status = json.loads(here("status", study, "--json").out)
    assert status["trials"]["total"] == len(known.trials) == 4
    (run,) = status["runs"]
    assert 0 < run["writer_seconds"] < run["seconds"]
    assert status["trials"]["complete"] == sum(trial.state.name == "COMPLETE" for trial in known.trials)
    (best,) = json.loads(here("best", study, "--json").out)["best"]
    assert best["values"] == {"accuracy": known.best_value}
    assert best["params"] == known.trials[best["trial"]].params
    assert f"trial {best['trial']}" in here("best", study).out


def test_trial_carries_everything(study: str, tmp_path: Path) -> None:
    import optuna

    known = optuna.load_study(storage=f"sqlite:///{tmp_path}/studies/{study}.db", study_name=study)
    for trial in known.trials:
        attributes = trial.user_attrs
        decoded = {"size": 8, "channels": 1, "fit": "crop", "fill": "mean", "margin": 1.0}
        assert attributes["config"]["image"] == {**decoded, "mean": "auto", "std": "auto", "cache_gb": 20.0}
        assert attributes["config"]["training"]["epochs"] == 5
        assert [epoch["epoch"] for epoch in attributes["epochs"]] == list(range(1, len(trial.intermediate_values) + 1))
        assert {"loss", "accuracy", "macro_f1", "top5_accuracy", "seconds"} <= attributes["epochs"][0].keys()
        assert attributes["worker"] == "worker-0"
        assert attributes["params"] > 1000
        assert "epoch 1" in (tmp_path / "studies" / attributes["log"]).read_text()


def test_export_train_evaluate(study: str, tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("export", study, "-o", "best.yaml").code == 0
    assert json.loads(imgcls("check", "best.yaml", "--json").out)["is_config"] is True
    report = json.loads(imgcls("train", "best.yaml", "--seeds", "2", "--out", "out", "--json").out)
    assert report == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["seeds"] == [1, 2]
    assert report["test"]["1"] != report["test"]["2"]
    mean = (report["test"]["1"]["accuracy"] + report["test"]["2"]["accuracy"]) / 2
    assert report["summary"]["accuracy"]["mean"] == pytest.approx(mean)
    # The opening of the sealed split is remembered by the study.
    assert len(json.loads(imgcls("status", study, "--json").out)["test_openings"]) == 1
    # A fresh process measures the same from the file.
    arguments = ("evaluate", "out/seed-1.pt", "--split", "test", "--predictions", "p.csv", "--json")
    again = json.loads(imgcls(*arguments).out)
    assert again["metrics"] == report["test"]["1"]
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / len(rows) == pytest.approx(again["metrics"]["accuracy"])
    assert len(rows) == again["images"]
    # Results are not overwritten.
    assert "holds the results of a training already" in imgcls("train", "best.yaml", "--out", "out").err


def test_export_of_a_trial_as_a_bundle(study: str, tmp_path: Path, here: Callable[..., Answer]) -> None:
    facts = json.loads(here("export", study, "--bundle", "model", "--json").out)
    (best,) = json.loads(here("best", study, "--json").out)["best"]
    (score,) = facts["scores"]
    assert facts["provenance"]["trial"] == best["trial"]
    # What the exported file gives is what the search recorded, to the last image.
    assert round(score["accuracy"] * score["images"]) == round(best["values"]["accuracy"] * 216)
    assert score["images"] == facts["parity"]["equal_top1"] == 216
    assert f'origin: {{"study": "{study}", "trial": {best["trial"]}}}' in (tmp_path / "model/config.yaml").read_text()
    # Only finished trials whose weights are kept.
    states = {trial["trial"]: trial["state"] for trial in json.loads(here("trials", study, "--json").out)}
    pruned = next(trial for trial, state in states.items() if state == "pruned")
    answer = here("export", study, "--bundle", "other", "--trial", str(pruned))
    assert is_one_line(answer)
    assert f"trial {pruned} of study '{study}' is pruned; allowed: a complete trial" in answer.err
    shutil.rmtree(tmp_path / "studies" / study / "checkpoints")
    answer = here("export", study, "--bundle", "other")
    assert is_one_line(answer)
    assert "are not kept" in answer.err
    assert "train it again: imgcls-search export" in answer.err


def test_train_on_both_portions_sees_more_images(study: str, imgcls: Callable[..., Answer]) -> None:
    imgcls("export", study, "-o", "best.yaml")
    report = json.loads(imgcls("train", "best.yaml", "--on", "train+val", "--json").out)
    assert report["trained_on"] == "train+val"
    assert "accuracy" not in report["validation"]["1"]
    assert report["summary"]["accuracy"]["std"] is None


def test_damaged_weights_are_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 nothing")
    answer = here("evaluate", "bad.pt")
    assert is_one_line(answer)
    assert "damaged" in answer.err


def test_export_of_a_missing_trial_names_the_range(study: str, here: Callable[..., Answer]) -> None:
    assert "allowed: 0 to 3" in here("export", study, "--trial", "9", "-o", "x.yaml").err


def test_export_below_a_file_is_one_line(study: str, here: Callable[..., Answer]) -> None:
    Path("file").touch()
    answer = here("export", study, "-o", "file/x.yaml")
    assert is_one_line(answer)
    assert "cannot be written (Not a directory)" in answer.err


def test_database_of_something_else_is_one_line(tiny: Path, here: Callable[..., Answer]) -> None:
    (tiny.parent / "studies").mkdir()
    (tiny.parent / "studies" / "tiny-digits.db").write_bytes(b"this is no database" * 100)
    for arguments in (("run", tiny), ("status", "tiny-digits")):
        answer = here(*arguments)
        assert is_one_line(answer)
        assert "tiny-digits.db" in answer.err


def test_images_over_the_bound_are_said_and_trained_on(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    small = ("--set", "study.trials=1", "--set", "training.epochs=2", "--set", "study.pruner=none")
    kept = imgcls("run", tiny, *small, "--name", "kept")
    streamed = imgcls("run", tiny, *small, "--name", "streamed", "--set", "image.cache_gb=0", "--studies", "other")
    assert streamed.code == 0, streamed.err
    assert "do not fit into image.cache_gb: 0; they are decoded again every epoch" in streamed.out
    values = [
        json.loads(imgcls("best", name, "--json", "--studies", folder).out)["best"][0]["values"]
        for name, folder in (("kept", "studies"), ("streamed", "other"))
    ]
    assert values[0] == values[1]
    assert kept.code == 0


def test_clean_deletes_decoded_images_and_nothing_else(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    small = ("--set", "study.trials=1", "--set", "training.epochs=1", "--set", "study.pruner=none")
    assert imgcls("run", tiny, *small).code == 0
    before = sorted(path for path in tiny.parent.rglob("*") if ".images" not in path.parts)
    assert "would delete" in imgcls("clean", "--dry-run").out
    assert list(tiny.parent.glob("studies/.images/*/train.images.npy"))
    assert "in 1 folder" in imgcls("clean").out
    assert not list(tiny.parent.glob("studies/.images/*"))
    assert sorted(path for path in tiny.parent.rglob("*") if ".images" not in path.parts) == before
    assert "in 0 folders" in imgcls("clean").out
    # The next command makes them again.
    assert imgcls("run", tiny, *small, "--set", "study.trials=2").code == 0
