"""The command `auto` as a user meets it: once, again, killed, stopped, by hand."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import imgcls_search as ic
import pytest
from imgcls_search.api.options import images_of
from imgcls_search.automatic.automatic import Auto
from imgcls_search.automatic.bundling import trial_in
from imgcls_search.automatic.request import Request
from imgcls_search.errors import UserError
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.views.screens import SilentScreens

from tests.conftest import PATIENCE, Answer, begin_command, is_one_line, linux_only
from tests.gate import LIMITS, slow_epochs
from tests.jobs.test_init import picture
from tests.warm import Warm

SPACE = """
study: {name: mine, trials: 3, pruner: none, sampler: random, pictures: false, workers: 1}
data: {digits: {max_train: 200}}
model: {lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}}
optimizer: {adamw: {lr: 3e-3}}
training: {epochs: 2, batch_size: 50}
start: [{model.lenet5.width: 1, model.lenet5.activation: relu}]
"""
"""Four configurations, all of them tried in seconds: a search of it ends before its time."""


def with_space(folder: Path, text: str = SPACE) -> Path:
    """Put a space where `auto digits` looks for its own."""
    out = folder / "auto-digits"
    out.mkdir(parents=True)
    (out / "digits.yaml").write_text(text)
    return out


def study(folder: Path, name: str = "mine") -> records.Record:
    return records.load(StudyFiles(folder / "studies", name))


def account(folder: Path) -> dict[str, Any]:
    """What is known of the time now, by a look that takes no part."""
    database = folder / "studies" / "mine.db"
    if not database.exists():
        return {}
    # The table itself: who waits shall not take a processor from those who train.
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        rows = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'auto'").fetchall()
    found: dict[str, Any] = json.loads(rows[0][0]) if rows else {}
    return found


def table(record: records.Record) -> list[tuple[Any, ...]]:
    return [(each.number, each.state, each.seed, each.candidate.params, each.values) for each in record.trials]


def call(folder: Path, warm: Warm | None, *options: str) -> Answer:
    env = {**os.environ, "PYTHONWARNINGS": "error::FutureWarning"}
    process = begin_command(["auto", "digits", *options, "--json"], folder, env, warm)
    out, err = process.communicate(timeout=PATIENCE)
    return Answer(process.returncode, out, err)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> tuple[Path, Answer]:
    """Return a folder in which one call delivered all, and what the call said."""
    folder = tmp_path_factory.mktemp("delivered")
    with_space(folder)
    return folder, call(folder, warm, "--time", "20m")


def test_one_call_delivers_all_and_the_next_finds_it_done(delivered: tuple[Path, Answer], warm: Warm | None) -> None:
    folder, first = delivered
    out = folder / "auto-digits"
    assert first.code == 0, first.err
    found = json.loads(first.out)
    record = study(folder)
    # All four configurations are tried though the space says three: time was left.
    assert len(record.trials) == 4
    assert re.search(r"^baseline: accuracy 0\.\d+ after .* \(trial 0, on the validation split\)$", first.err, re.M)
    assert (out / "model" / "model.onnx").is_file()
    assert "no network" not in first.err
    assert (out / "report.html").stat().st_size > 10_000
    assert Path(folder / found["files"]["weights"]).is_file()
    assert trial_in(out / "model", "mine") == found["bundled"] == found["chosen"]["trial"]
    confirmed = record.facts["confirmed"]
    assert found["chosen"]["trial"] == confirmed["chosen"]
    assert found["test"]["score"] == confirmed["test"]["mean"]
    assert (len(confirmed["ranking"]), len(confirmed["seeds"]["fresh"])) == (3, 3)
    assert [opening["by"] for opening in record.facts["test_openings"]] == ["confirm"]
    largest = [entry for entry in found["baselines"] if entry["name"] == "always the largest class"]
    assert {entry["on"] for entry in largest} == {"validation", "test"}
    assert all(0.05 < entry["score"] < 0.2 for entry in largest if entry["metric"] == "accuracy")
    spent = found["time"]["spent"]
    assert set(spent) == {"init", "baseline", "search", "confirm", "bundle", "report"}

    again = call(folder, warm)
    assert again.code == 0, again.err
    second = json.loads(again.out)
    assert table(study(folder)) == table(record)
    assert len(study(folder).facts["test_openings"]) == 1
    assert second["chosen"] == found["chosen"]
    assert second["test"] == found["test"]
    assert second["time"]["given"] == 20 * 60
    assert sum(second["time"]["spent"].values()) > sum(spent.values())


def test_what_a_call_says_holds_for_a_space_that_is_there(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    for kind, shade in (("a", 30), ("b", 220)):
        for index in range(12):
            picture(tmp_path / "photos" / kind / f"{index}.png", (12, 12), shade + index)
    (tmp_path / "photos/a/3.png").write_bytes(b"no image")
    (tmp_path / "weights").mkdir()
    out = tmp_path / "auto-photos"
    out.mkdir()
    data = f"folder: {{root: {tmp_path / 'photos'}}}"
    (out / "photos.yaml").write_text(SPACE.replace("digits: {max_train: 200}", data))
    said = ("auto", "photos", "--time", "20m", "--studies", "others", "--workers", "1", "--set", "study.seed=3",
            "--set", "data.folder.split_seed=4", "--group", r"^./(\d)", "--skip-unreadable",
            "--weights-dir", "weights", "--yes", "--json")  # fmt: skip
    done = imgcls(*said)
    assert done.code == 0, done.err
    record = records.load(StudyFiles(tmp_path / "others", "mine"))
    settings = record.trials[0].candidate.config.component("data").args
    assert (settings["group"], settings["skip_unreadable"], settings["split_seed"]) == (r"^./(\d)", True, 4)
    assert record.fact("space")["study"]["seed"] == 3
    assert json.loads(done.out)["chosen"]["trials"] == len(record.trials)
    # Nothing is left to search, and what was found is not that of other settings or images.
    other = imgcls(*said, "--set", "study.seed=4")
    assert (other.code, other.out) == (2, "")
    assert "study.seed: was 3, is now 4" in other.err
    assert "put them back, or name another study with --set study.name=NAME" in other.err
    for number, path in enumerate((tmp_path / "photos").rglob("*.png")):
        if path.read_bytes() != b"no image":
            picture(tmp_path / "elsewhere" / path.relative_to(tmp_path), (12, 12), 500 + number)
    other = imgcls("auto", "elsewhere/photos", *said[2:])
    assert (other.code, other.out) == (2, "")
    assert "study 'mine' was started with other images" in other.err


def test_steps_by_hand_give_the_same(
    delivered: tuple[Path, Answer], tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    folder, made = delivered
    out = folder / "auto-digits"
    assert made.code == 0, made.err
    found = json.loads(made.out)
    elsewhere = ["--studies", "others"]
    ran = imgcls("run", out / "digits.yaml", "--set", "study.trials=4", *elsewhere)
    assert ran.code == 0, ran.err
    top, seeds = len(study(folder).facts["confirmed"]["ranking"]), len(found["test"]["scores"])
    confirmed = imgcls("confirm", "mine", "--top", str(top), "--seeds", str(seeds), *elsewhere, "--json")
    assert confirmed.code == 0, confirmed.err
    other = records.load(StudyFiles(tmp_path / "others", "mine"))
    assert table(other) == table(study(folder))
    by_hand = json.loads(confirmed.out)
    assert by_hand["chosen"] == found["chosen"]["trial"]
    assert by_hand["scores"] == found["validation"]["scores"]
    assert by_hand["test"]["scores"] == found["test"]["scores"]
    exported = imgcls("export", "mine", "--trial", str(by_hand["chosen"]), "-o", "by-hand.yaml", *elsewhere)
    assert exported.code == 0, exported.err
    assert (tmp_path / "by-hand.yaml").read_text() == (out / "best.yaml").read_text()


def wait_for(what: Callable[[], bool], process: Any) -> None:
    began = time.monotonic()
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.05)


REACHED: dict[str, Callable[[Path], bool]] = {
    "init": lambda folder: (folder / "auto-digits" / "time.json").exists(),
    "baseline": lambda folder: "baseline" in account(folder).get("spent", {}),
    "search": lambda folder: "search" in account(folder).get("spent", {}),
    "confirm": lambda folder: any((folder / "studies" / "mine" / "confirm").glob("*.pt")),
    "bundle": lambda folder: "bundle" in account(folder).get("spent", {}),
    "report": lambda folder: "report" in account(folder).get("spent", {}),
}


@linux_only
@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("baseline", signal.SIGKILL),
        pytest.param("all", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("all", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_call_that_ends_in_any_step_goes_on(
    step: str, number: int, tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    with_space(tmp_path)
    before = 0.0
    for name in REACHED if step == "all" else [step]:
        process = start("auto", "digits", "--time", "20m")
        wait_for(lambda name=name: REACHED[name](tmp_path), process)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=PATIENCE)
        # The page may be written by the time that the signal comes, and nothing is left to do.
        is_done = (tmp_path / "auto-digits" / "report.html").exists()
        ended = -number if number == signal.SIGKILL else 130
        assert process.returncode in ((ended, 0) if is_done else (ended,)), (name, said)
        if number == signal.SIGINT and not is_done:
            assert "to resume: imgcls-search auto digits --time 20m" in said, name
        spent = sum(account(tmp_path).get("spent", {}).values())
        assert spent >= before
        before = spent
    last = imgcls("auto", "digits", "--time", "20m", "--json")
    assert last.code == 0, last.err
    found = json.loads(last.out)
    assert sum(found["time"]["spent"].values()) > before
    record = study(tmp_path)
    assert [trial.state for trial in record.trials] == ["complete"] * 4
    assert len(record.facts["confirmed"]["ranking"]) == 3
    left = sorted(path.name for path in (tmp_path / "auto-digits").iterdir())
    assert left == ["best.yaml", "digits.yaml", "model", "report.html"]


def test_no_time_for_a_score_is_said_and_more_time_goes_on(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    with_space(tmp_path, f"{SPACE.replace('epochs: 2', 'epochs: 100000')}limits: {LIMITS}\n")
    env = slow_epochs(tmp_path / "gate", 0.5)
    answer = imgcls("auto", "digits", "--time", "8s", env=env)
    assert answer.code == 1
    assert answer.err.count("error:") == 1
    assert re.search(
        r"error: 8 s were not enough for a first score: .*run the same command with --time 2m to continue", answer.err
    )
    assert "Traceback" not in answer.err
    again = imgcls("auto", "digits", "--time", "8s", env=env)
    assert again.code == 1
    assert re.search(r"left of 8 s; earlier calls took", again.out)


@pytest.mark.slow
def test_time_that_ends_in_the_search_leaves_the_best_so_far(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    """More configurations than the time holds; afterwards more time continues the same study."""
    text = SPACE.replace("lr: 3e-3", "lr: {float: [1e-4, 1e-2]}").replace("trials: 3", "trials: 900")
    env = slow_epochs(tmp_path / "gate", 0.5)
    # A busy machine needs longer for a search and a confirmation.
    for seconds in (60, 120, 240):
        folder = tmp_path / f"{seconds}s"
        out = with_space(folder, f"{text}limits: {LIMITS}\n")
        command = ("auto", "digits", "-o", out, "--studies", folder / "studies", "--json", "--time")
        first = imgcls(*command, f"{seconds}s", env=env)
        assert first.code == 0, first.err
        found = json.loads(first.out)
        if found["test"] is not None:
            break
    record = study(folder)
    assert record.facts["runs"][-1]["ending"] == "timeout"
    assert found["test"] is not None
    assert len(record.facts["test_openings"]) == 1
    assert (out / "model" / "model.onnx").is_file()
    # A quarter at most is kept for confirming, and what bundle and page took, which a busy machine makes longer.
    spent = found["time"]["spent"]
    longer = math.ceil((sum(spent.values()) + 1.5 * (spent["bundle"] + spent["report"]) + 20) / 0.75)
    second = imgcls(*command, f"{longer}s", env=env)
    assert second.code == 0, second.err
    later = study(folder)
    assert len(later.trials) > len(record.trials)
    assert table(later)[: found["chosen"]["trial"]] == table(record)[: found["chosen"]["trial"]]
    assert json.loads(second.out)["time"]["given"] == longer


def refused(answer: Answer, said: str) -> bool:
    return is_one_line(answer) and said in answer.err


def test_places_that_are_not_fit_are_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    assert refused(here("auto", "photos", "-o", "full"), "full: exists and is not of an earlier call")
    assert refused(here("auto", "photos", "-o", "full/thesis.txt"), "is a file")
    assert refused(here("auto", "photos", "-o", "photos/results"), "is in the folder of the images")
    assert refused(here("auto", "photos", "--studies", "photos/studies"), "is in the folder of the images")
    assert refused(here("auto", "nowhere"), "nowhere")
    assert refused(here("auto", "photos", "--time", "soon"), "--time soon: is not a duration > 0")
    assert refused(here("auto", "photos", "--time", "0"), "--time 0: is not a duration > 0")
    assert refused(here("auto", "photos", "--flips", "sideways"), "--flips")
    (tmp_path / "studies" / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "studies" / "old" / "lock").touch()
    assert refused(here("auto", "studies/old"), "is the folder of a study")
    (tmp_path / "studies" / "old" / "lock").rename(tmp_path / "studies" / "old.2.db")
    (tmp_path / "studies" / "old").rename(tmp_path / "studies" / "old.2")
    assert refused(here("auto", "studies/old.2"), "is the folder of a study")
    assert (full / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "photos", "studies"]


@pytest.mark.parametrize(("chosen", "known"), [(None, None), ("none", "none")])
def test_an_answer_about_flips_is_kept_only_if_it_was_given(
    chosen: Any, known: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --set, nobody was asked: a later --flips is not answered as if it had been."""
    monkeypatch.chdir(tmp_path)
    request = Request(
        component=images_of("digits"),
        seconds=100.0,
        out=None,
        flips=None,
        ask_flips=lambda: chosen,
        studies=Path("studies"),
        storage=None,
        cluster=None,
        changes=[("augment.flip", "horizontal")],
        started=time.monotonic(),
    )
    Path("auto-digits").mkdir()
    work = Auto(request, SilentScreens())
    work._draft()
    assert work.ledger.fact.get("flips") == known
    assert "flip: horizontal" in (tmp_path / "auto-digits" / "digits.yaml").read_text()


def test_space_of_other_images_and_of_another_answer_is_one_line(tmp_path: Path, here: Callable[..., Answer]) -> None:
    for name in ("a", "b"):
        (tmp_path / "other" / name).mkdir(parents=True)
    out = with_space(tmp_path)
    assert refused(here("auto", "other", "-o", "auto-digits"), "exists and is not of an earlier call")
    assert refused(here("auto", "digits", "--flips", "both"), "was drafted; change augment.flip there")
    (out / "time.json").write_text(json.dumps({"given": 60, "spent": {"init": 1.0}, "flips": "none"}))
    assert refused(here("auto", "digits", "--flips", "both"), "was drafted with none")
    (out / "time.json").write_text("{")
    assert refused(here("auto", "digits"), "time.json: damaged")
    (out / "time.json").unlink()
    # The space file may be of `init`, and beside it may be what `export` and `report` wrote.
    for name in ("model/model.onnx", "best.yaml", "report.html"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        assert refused(here("auto", "digits"), f"{Path(name).parts[0]}: is there already, and not of an earlier call")
        assert (out / name).read_text() == "mine"
        (out / name).rename(tmp_path / Path(name).name)
        if name.startswith("model"):
            (out / "model").rmdir()


def test_answer_about_flips_is_kept_before_the_space_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise, after a kill between the two, the same call would be refused as one with other flips.
    monkeypatch.chdir(tmp_path)
    known: list[str] = []

    def draft(component: Any, **more: Any) -> None:
        known.append(json.loads((tmp_path / "auto-digits" / "time.json").read_text())["flips"])
        raise UserError("stopped")

    monkeypatch.setattr("imgcls_search.jobs.init.draft.draft", draft)
    with pytest.raises(UserError, match="stopped"):
        ic.auto("digits", flips="horizontal", progress=False)
    assert known == ["horizontal"]


def test_study_that_somebody_works_on_is_one_line(
    tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    with_space(tmp_path, f"{SPACE.replace('epochs: 2', 'epochs: 100000')}limits: {LIMITS}\n")
    env = slow_epochs(tmp_path / "gate", 0.5)
    process = start("auto", "digits", "--time", "20m", env=env)
    wait_for(lambda: REACHED["baseline"](tmp_path), process)
    assert refused(imgcls("auto", "digits", env=env), "another run is working on this study")
    process.kill()
