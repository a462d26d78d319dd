"""Every option is in a command line of some test or of the documentation; those that all commands share are here."""

from __future__ import annotations

import ast
import json
import os
import re
import selectors
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from imgcls_search.cli.app import app
from imgcls_search.words import argument
from typer.main import get_command

from tests.conftest import TINY, Answer, begin_command, is_one_line
from tests.docs import pages
from tests.warm import Warm

TESTS = Path(__file__).parents[1]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def command_lines() -> Iterator[list[str]]:
    """Yield the strings of calls and sequences in the tests that begin with a command, and those of the pages."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call():
                    parts: list[ast.expr] = node.args
                case ast.Tuple() | ast.List():
                    parts = node.elts
                case _:
                    continue
            words = [leaf.value for part in parts for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)]
            if words and words[0] in COMMANDS:
                yield [word for word in words if isinstance(word, str)]
    yield from pages.commands()


@cache
def words_by_command() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in COMMANDS}
    for words in command_lines():
        found[words[0]].update(words)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_run_by_a_test(name: str) -> None:
    ran = words_by_command()[name]
    options = [parameter.opts for parameter in COMMANDS[name].params if parameter.param_type_name == "option"]
    missing = {opts[0] for opts in options if not {*opts} & ran and "--help" not in opts}
    assert not missing


def test_check_reads_other_data_by_another_name(tiny: Path, here: Callable[..., Answer]) -> None:
    first, other = (json.loads(here("check", tiny, "--samples", "5", "--json", "--seed", seed).out) for seed in "07")
    assert json.loads(here("check", tiny, "--samples", "5", "--json").out)["survey"] == first["survey"]
    assert other["survey"]["samples"] == 5
    named = here("check", tiny, "--samples", "0", "--json", "--name", "mine", "--data", "cifar10:there")
    found = json.loads(named.out)
    assert (found["name"], found["space"]["data"]["cifar10"]["root"]) == ("mine", "there")
    assert here("check", tiny, "--samples", "1", "--studies", "elsewhere").code == 0
    assert (tiny.parent / "elsewhere" / ".counts.sqlite").is_file()


def test_sheet_of_the_first_setting_of_other_data(tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here(
        "augment-preview",
        tiny,
        "-o",
        "s.png",
        "--first",
        "--data",
        "digits",
        "--studies",
        "elsewhere",
        "--set",
        "augment.flip=horizontal",
    )
    assert answer.code == 0, answer.err
    assert (tiny.parent / "s.png").is_file()
    assert list((tiny.parent / "elsewhere" / ".images").iterdir())


STUDY = "tiny-digits"
WEIGHTS = "trained/best/seed-1.pt"

FIXED = "model: {lenet5: {}}\ntraining: {epochs: 1}\n"
IDLE = {
    "auto digits --flips none --set augment.flip=horizontal": "--flips: has no effect together with --set augment.flip",
    "check s.yaml --samples 0 --seed 1": "--seed: has no effect together with --samples 0",
    "confirm s --top 2 --trial 1": "--top: has no effect together with --trial",
    "ensemble s --student 1": "--student: has no effect without --distill",
    "evaluate w.pt --split folds --data digits": "--data: has no effect together with --split folds, ",
    "evaluate w.pt --split folds --skip-unreadable": "--skip-unreadable: has no effect together with --split folds, ",
    "evaluate w.pt --split folds --corruptions": "--corruptions: has no effect together with --split folds, ",
    "evaluate w.pt --split folds --tta mirror": "--tta: has no effect together with --split folds, ",
    "export s -o x.yaml --target-precision 0.9": "--target-precision: has no effect without --bundle",
    "export s -o x.yaml --tta mirror": "--tta: has no effect without --bundle",
    "export s -o x.yaml --format onnx": "--format: has no effect without --bundle",
    "export s -o x.yaml --data folder:a": "--data: has no effect without --bundle; ",
    "init digits --flips both --set augment.flip=none": "--flips: has no effect together with --set augment.flip",
    "inspect --study s --group a": "--group: has no effect without DATA",
    "inspect --study s --set data.digits.val=0.3": "--set: has no effect without DATA",
    "inspect digits -o x.html --no-page": "--output: has no effect together with --no-page",
    "inspect digits --suspects mark": "--suspects: has no effect without --write",
    "inspect digits --confidence 0.9": "--confidence: has no effect without --write",
    "inspect digits --force": "--force: has no effect without --write",
    "inspect photos --write x.csv --suspects drop --no-labels": "--suspects: has no effect together with --no-labels",
    "inspect photos --write x.csv --confidence 0": "--confidence: has no effect without --suspects relabel or drop",
    "inspect photos --write x.csv --suspects mark --confidence 0.9": "--confidence: has no effect without --suspects ",
    "inspect digits --no-labels --study s": "--study: has no effect together with --no-labels",
    "inspect digits --no-labels --model quick": "--model: has no effect together with --no-labels",
    "inspect digits --no-labels --quick-epochs 1": "--quick-epochs: has no effect together with --no-labels",
    "inspect digits --no-labels --judge-test": "--judge-test: has no effect together with --no-labels",
    "inspect digits --no-labels --seed 0": "--seed: has no effect together with --no-labels",
    "inspect digits --study s --model quick": "--model: has no effect together with --study",
    "inspect digits --trial 0": "--trial: has no effect without --study",
    "inspect digits --study s --quick-epochs 1": "--quick-epochs: has no effect together with --study",
    "inspect digits --study s --judge-test": "--judge-test: has no effect together with --study, ",
    "inspect digits --model {resnet: {weights: imagenet}} --quick-epochs 1": "--quick-epochs: has no effect together ",
    "predict model photos --top 2 -o x.csv": "--top: has no effect together with -o, which writes all classes",
    "replay s --share 0.5": "--share: has no effect without --seeds",
    "replay s --max-epochs 9": "--max-epochs: has no effect without --seeds",
    "replay s --seeds 9 --seed 1": "--seed: has no effect together with --seeds, ",
    "report s -o x.html --seeds 2": "--seeds: has no effect without --ablation",
    "report s -o x.html --data folder:a": "--data: has no effect without --ablation",
    "run s.yaml --extend": "tiny.db: no such study",
    "spaces --output x.yaml": "--output: has no effect without copy, ",
    "spaces --force": "--force: has no effect without copy, ",
    "train folds.yaml --on train": "--on train: has no effect with folds, ",
    # Settings with an option of their own.
    "auto digits --workers 2 --set study.workers=1": "--set study.workers: has no effect together with --workers",
    "auto digits --set study.timeout=1h": "--set study.timeout: has no effect in auto, which keeps to --time",
    "auto photos --group a --set data.folder.group=b": "--set data.folder.group: has no effect together with --group",
    "check s.yaml --name a --set study.name=b": "--set study.name: has no effect together with --name",
    "plan s.yaml --timeout 9 --set study.timeout=1": "--set study.timeout: has no effect together with --timeout",
    "run s.yaml --workers 2 --set study.workers=1": "--set study.workers: has no effect together with --workers",
    "run s.yaml --data folder:photos --skip-unreadable --set data.folder.skip_unreadable=false": "together with --skip",
    "run s.yaml --data folder:a --set data.folder.root=b": "data.folder.root: is what --data folder:a gives; ",
    "check s.yaml --data digits --set data=digits": "data: is what --data digits gives; leave one of them out",
    "check fixed.yaml --unlabeled folder:a": "--unlabeled: has no effect without pretrain: simclr or imitate",
    "train fixed.yaml --unlabeled train": "--unlabeled: has no effect without pretrain: simclr or imitate",
    "train fixed.yaml --unlabeled folder:a --set unlabeled.folder.root=b": "unlabeled.folder.root: is what --unl",
}
"""Commands with an option that would change nothing, and what they say."""


@pytest.mark.parametrize("line", IDLE)
def test_option_without_effect_is_one_line_and_nothing_is_written(
    line: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(f"{TINY}\n".replace("study: {", "study: {name: tiny, "))
    (tmp_path / "fixed.yaml").write_text(FIXED)
    (tmp_path / "folds.yaml").write_text(f"data: {{digits: {{folds: 3}}}}\n{FIXED}")
    before = sorted(tmp_path.rglob("*"))
    # A value in braces has spaces.
    answer = here(*(first or second for first, second in re.findall(r"(\{.*\})|(\S+)", line)))
    assert is_one_line(answer), answer
    assert IDLE[line] in answer.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder with a finished search and a training of its best; the studies folder is called `elsewhere`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "tiny.yaml").write_text(TINY)
    small = ("study.trials=2", "study.pruner=none", "training.epochs=1", "data.digits.max_train=100")
    settings = [part for setting in small for part in ("--set", setting)]
    changed = ("--set", "training.batch_size=200", "--set", "data.digits.max_train=null")
    for command in (
        ("run", "tiny.yaml", "--workers", "1", "--studies", "elsewhere", *settings),
        ("export", STUDY, "-o", "best.yaml", "--studies", "elsewhere"),
        ("train", "best.yaml", "--studies", "elsewhere", "--data", "digits", *changed),
    ):
        process = begin_command(command, folder, os.environ, warm)
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def elsewhere(searched: Path, tmp_path: Path) -> Path:
    """Copy all of it to the folder that commands work in."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    return tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("status", STUDY, "--studies", "elsewhere"), "2 trials (2 complete)"),
        (("best", STUDY, "--studies", "elsewhere"), "accuracy"),
        (("front", STUDY, "--studies", "elsewhere"), "of 2 complete trials"),
        (("export", STUDY, "-o", "again.yaml", "--studies", "elsewhere"), "wrote again.yaml"),
        (("export", STUDY, "--bundle", "model", "--studies", "elsewhere"), "on 216 validation images"),
        (("replay", STUDY, "--sampler", "random", "--studies", "elsewhere"), "random"),
        (("copy", STUDY, "--to", "copy.db", "--studies", "elsewhere"), "wrote copy.db"),
        (("list", "--studies", "elsewhere"), f"{STUDY}  2 ("),
        (("trials", STUDY, "--studies", "elsewhere"), "optimizer.adamw.lr="),
        (("compare", STUDY, STUDY, "--studies", "elsewhere"), "the configurations are equal"),
        (("compare", f"{STUDY}:0", f"{STUDY}:1", "--studies", "elsewhere"), "optimizer.adamw.lr"),
        (("report", STUDY, "-o", "page.html", "--studies", "elsewhere"), "wrote page.html"),
        (("clean", "--dry-run", "--studies", "elsewhere"), "would delete elsewhere"),
        (("clean", "--studies", "elsewhere"), "deleted elsewhere"),
    ],
)
def test_a_studies_folder_of_another_name_is_looked_into(
    command: tuple[str, ...], shown: str, elsewhere: Path, here: Callable[..., Answer]
) -> None:
    answer = here(*command)
    assert answer.code == 0, answer.err
    assert shown in answer.out
    # And nowhere else.
    assert not (elsewhere.parent / "studies").exists()
    without = here(*command[:-2])
    assert shown not in without.out
    assert without.code == (0 if command[0] in ("list", "clean") else 2)


def test_a_copy_whose_name_is_no_studys_is_listed_and_stops_no_other_command(
    elsewhere: Path, here: Callable[..., Answer]
) -> None:
    shutil.copy(elsewhere / f"{STUDY}.db", elsewhere / f"{STUDY} copy.db")
    listed = json.loads(here("list", "--studies", "elsewhere", "--json").out)
    assert [entry["study"] for entry in listed] == [STUDY, f"{STUDY} copy"]
    assert "allowed: letters, digits" in listed[1]["problem"]
    answer = here("clean", "--studies", "elsewhere")
    assert answer.code == 0, answer.err
    assert "deleted elsewhere" in answer.out


@pytest.mark.parametrize("command", ["list", "clean"])
def test_a_file_in_place_of_the_studies_is_one_line(command: str, tiny: Path, here: Callable[..., Answer]) -> None:
    answer = here(command, "--studies", tiny.name)
    assert is_one_line(answer)
    assert f"{tiny.name}: is not a folder" in answer.err


def test_weights_are_measured_on_images_decoded_elsewhere(elsewhere: Path, here: Callable[..., Answer]) -> None:
    here("clean", "--studies", "elsewhere")
    assert not list((elsewhere / ".images").iterdir())
    answer = here("evaluate", WEIGHTS, "--studies", "elsewhere")
    assert answer.code == 0, answer.err
    assert "val split, 216 images" in answer.out
    assert list((elsewhere / ".images").iterdir())
    assert not (elsewhere.parent / "studies").exists()


def test_training_of_other_settings_and_data_is_noted_in_its_study(
    elsewhere: Path, here: Callable[..., Answer]
) -> None:
    found = json.loads((elsewhere.parent / "trained" / "best" / "metrics.json").read_text())
    # best.yaml says 50, and 100 training images.
    assert "max_train: 100" in (elsewhere.parent / "best.yaml").read_text()
    assert found["config"]["training"]["batch_size"] == 200
    assert found["images"]["train"] > 1000
    assert not (elsewhere.parent / "studies").exists()
    (opening,) = json.loads(here("status", STUDY, "--studies", "elsewhere", "--json").out)["test_openings"]
    assert opening["by"] == "train"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("plan", "tiny.yaml", "--epochs", "1", "--studies", "elsewhere"), "study.trials: 4 take about"),
        (("reproduce", STUDY, "--trial", "0", "--studies", "elsewhere"), "trial 0, 1 epoch,"),
    ],
)
def test_what_is_trained_is_trained_elsewhere(
    command: tuple[str, ...], shown: str, elsewhere: Path, imgcls: Callable[..., Answer]
) -> None:
    answer = imgcls(*command)
    assert answer.code == 0, answer.err
    assert shown in answer.out
    assert not (elsewhere.parent / "studies").exists()


def test_a_study_is_confirmed_otherwise_only_when_asked_again(
    elsewhere: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    answer = imgcls("confirm", STUDY, "--top", "1", "--seeds", "2", "--studies", "elsewhere", "--json")
    assert answer.code == 0, answer.err
    assert not (elsewhere.parent / "studies").exists()
    trial = json.loads(answer.out)["chosen"]
    other = ("--trial", str(1 - trial), "--seeds", "2", "--studies", "elsewhere")
    refused = here("confirm", STUDY, *other)
    assert is_one_line(refused), refused
    again = imgcls("confirm", STUDY, *other, "--again", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["chosen"] == 1 - trial
    status = json.loads(here("status", STUDY, "--studies", "elsewhere", "--json").out)
    # The first of the three is that of `train`.
    assert [opening["by"] for opening in status["test_openings"]] == ["train", "confirm", "confirm"]
    best = json.loads(here("best", STUDY, "--studies", "elsewhere", "--json").out)
    assert best["confirmed"]["chosen"] == 1 - trial
    # From now on, this is the trial that is exported and reported.
    moved = ("--studies", "elsewhere")
    exported = here("export", STUDY, "-o", "best.yaml", *moved)
    assert exported.out.startswith(f"wrote best.yaml: trial {1 - trial}; ")
    bundle = here("export", STUDY, "--bundle", "model", *moved)
    assert f"wrote model: {STUDY}, trial {1 - trial}, " in bundle.out, bundle.err
    pages = []
    for options in ((), ("--trial", str(trial))):
        assert here("report", STUDY, "-o", "page.html", *options, *moved).code == 0
        pages.append(Path("page.html").read_text())
    assert "test split opened 3 times" in pages[0]
    assert f"confirm chose trial {1 - trial}: only its report has a test score" in pages[1]


def test_shown_commands_can_be_pasted(elsewhere: Path, here: Callable[..., Answer]) -> None:
    export = ("export", STUDY, "-o", "my best.yaml", "--studies", "elsewhere")
    found = json.loads(here(*export, "--json").out)
    assert found == {"study": STUDY, "trial": found["trial"], "file": "my best.yaml"}
    assert here(*export).out.endswith("retrain it with: imgcls-search train 'my best.yaml' --seeds 3\n")
    for command, shown in (("best", "to confirm: imgcls-search confirm"), ("front", "details: imgcls-search best")):
        assert f"{shown} {STUDY} --studies elsewhere\n" in here(command, STUDY, "--studies", "elsewhere").out


@pytest.mark.parametrize(
    ("path", "shown"), [("a.yaml", "a.yaml"), ("my best.yaml", "'my best.yaml'"), ("-a.yaml", "./-a.yaml")]
)
def test_a_path_in_a_shown_command_is_one_argument(path: str, shown: str) -> None:
    assert argument(Path(path)) == shown


def test_tables_as_json_hold_what_is_shown(elsewhere: Path, here: Callable[..., Answer]) -> None:
    (listed,) = json.loads(here("list", "--studies", "elsewhere", "--json").out)
    assert (listed["study"], listed["trials"]["complete"], listed["confirmed"]) == (STUDY, 2, None)
    found = json.loads(here("front", STUDY, "--studies", "elsewhere", "--json").out)
    assert (found["objectives"], found["complete"], found["over_limits"]) == ({"accuracy": "maximize"}, 2, [])
    (best,) = listed["best"]
    assert [trial["trial"] for trial in found["front"]] == [best["trial"]]
    assert found["front"][0]["values"] == best["values"]


def test_a_replay_takes_workers_and_a_seed(elsewhere: Path, here: Callable[..., Answer]) -> None:
    def replayed(workers: int, seed: int) -> list[dict[str, Any]]:
        own = ("replay", STUDY, "--sampler", "random", "--workers", str(workers), "--seed", str(seed))
        answer = here(*own, "--studies", "elsewhere", "--json")
        assert answer.code == 0, answer.err
        found: list[dict[str, Any]] = json.loads(answer.out)["replays"]
        return found

    (was, alone), (_, beside) = replayed(1, 0), replayed(2, 0)
    assert alone["seconds"] == pytest.approx(was["seconds"])
    # Two trials side by side take as long as the slower of them.
    assert beside["seconds"] < alone["seconds"]
    assert (beside["trials"], beside["best"]) == (alone["trials"], alone["best"])
    # Chance decides which of the two comes first, and the same seed decides the same.
    assert len({json.dumps(replayed(1, seed)[1]["bests"]) for seed in range(8)}) > 1
    assert replayed(1, 3) == replayed(1, 3)


def test_a_dashboard_of_another_database_is_one_line(here: Callable[..., Answer]) -> None:
    answer = here("dashboard", STUDY, "--storage", "mysql://me@host/studies")
    assert is_one_line(answer)
    assert "got an address of mysql; allowed: postgresql://" in answer.err


def test_a_dashboard_shows_another_folder_on_another_address(elsewhere: Path, start: Callable[..., Any]) -> None:
    process = start("dashboard", STUDY, "--studies", "elsewhere", "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        assert waiting.select(timeout=100)
    line = process.stdout.readline()
    port = re.search(r"http://0\.0\.0\.0:(\d+)/", line)[1]
    with urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=60) as answer:
        (found,) = json.load(answer)["study_summaries"]
    assert found["study_name"] == STUDY
    process.kill()
    assert "anyone who can reach this address" in process.communicate(timeout=60)[1]
