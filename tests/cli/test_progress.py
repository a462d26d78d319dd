"""How far a long work is, and how long it will take: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.pace import Pace, numbered
from imgcls_search.protocol import Job
from imgcls_search.views.screen import StepScreen, TrainingScreen
from rich.console import Console

from tests.conftest import TINY, Answer

LINE = re.compile(r"epoch (\d+)/(\d+) of (.+?), train_loss [\d.]+, accuracy [\d.]+(?:, about (.+) left)?")


def job(number: int) -> Job:
    counts = {"counts": {"val": 216}}
    return Job(
        trial=number,
        config=TrialConfig.from_dict({}),
        data=counts,
        seed=number,
        portion="train",
        until_epoch=10,
        from_epoch=0,
        checkpoint=f"{number}.pt",
        log="",
    )


def metrics(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 0.123456, "accuracy": 0.87654}


def test_time_left_is_that_of_all_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(30)
    pace.begins(job(1), 0)
    # What an interrupted call trained took no time of this one.
    pace.begins(job(2), 6)
    clock[0] += 8
    found = pace.ended(job(1), "seed 1/3", metrics(1))
    assert (found.done, found.total, found.seconds_left) == (7, 30, 8 * 23)
    clock[0] += 2
    found = pace.ended(job(2), "seed 2/3", metrics(7))
    assert (found.done, found.seconds_left) == (8, 5 * 22)
    assert found.val_images == 216
    # A worker that died trains again from its checkpoint.
    pace.begins(job(2), 3)
    assert pace.ended(job(2), "seed 2/3", metrics(4)).done == 5


def screen_of(kind: type[Any], is_terminal: bool) -> tuple[Any, io.StringIO]:
    text = io.StringIO()
    return kind(Console(file=text, force_terminal=is_terminal, width=120, soft_wrap=True)), text


@pytest.mark.parametrize("is_terminal", [False, True])
def test_brackets_in_a_path_are_no_markup(is_terminal: bool) -> None:
    screen, text = screen_of(StepScreen, is_terminal)
    with screen:
        screen.step("writing new [old]/a [/b].html", 1, 2)
    assert "writing new [old]/a [/b].html" in text.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_epochs_are_shown(is_terminal: bool) -> None:
    screen, text = screen_of(TrainingScreen, is_terminal)
    pace = Pace(20)
    with screen:
        for epoch in range(1, 11):
            screen.epoch_ended(pace.ended(job(1), "seed 1/2", metrics(epoch)))
    shown = text.getvalue()
    assert "epoch 10/10 of seed 1/2, train_loss 0.1235, accuracy 0.877, about " in shown
    if is_terminal:
        assert "10/20 epochs" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    else:
        # Not more often than a person reads, and the last one of each training in any case.
        assert [LINE.match(line)[1] for line in shown.splitlines()] == ["1", "10"]  # type: ignore[index]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_steps_are_shown(is_terminal: bool) -> None:
    screen, text = screen_of(StepScreen, is_terminal)
    screen.started -= 60
    with screen:
        screen.step("reading", 1, 3)
        screen.step("drawing", 2, 3)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    assert "step 1/3: reading" in shown
    assert re.search(r"step 2/3: drawing, about 2 min( \d+ s)? left", shown)
    if not is_terminal:
        assert len(shown.splitlines()) == 2


def test_names_of_trainings() -> None:
    assert numbered("seed", 2) == ["seed 1/2", "seed 2/2"]


@pytest.mark.slow
def test_commands_that_train_measure_and_draw_say_how_far_they_are(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    tiny = TINY.replace("trials: 4", "trials: 2").replace("epochs: 5", "epochs: 3")
    (tmp_path / "tiny.yaml").write_text(tiny)
    assert imgcls("run", "tiny.yaml", "--workers", "1", "--set", "study.pruner=none").code == 0
    answer = imgcls("confirm", "tiny-digits", "--top", "2", "--seeds", "2")
    assert answer.code == 0, answer.err
    trainings = last_epochs(answer.err)
    assert set(trainings) == {f"trial {trial}, seed {seed}/2" for trial in (0, 1) for seed in (1, 2)}
    assert all(trainings.values()), answer.err
    # Two seeds are two values, wherever they are shown.
    assert "±" not in answer.out
    assert re.search(r"is confirmed: validation accuracy 0\.\d{3} and 0\.\d{3} \(2 seeds not used", answer.out)
    assert re.search(r"optimism of the search score: [+-]\d\.\d{3} and [+-]\d\.\d{3} ", answer.out)
    interval = r"95 % interval \d\.\d{3} to \d\.\d{3} from sampling \d+ images, test split opened once"
    assert re.search(rf"test accuracy: \d\.\d{{3}} and \d\.\d{{3}} over seeds; {interval}", answer.out)
    assert "±" not in imgcls("best", "tiny-digits").out
    answer = imgcls("report", "tiny-digits", "-o", "report.html")
    assert steps_in(answer.out) == [(number, 6) for number in range(1, 7)]
    assert re.search(r"step 2/6: .*, about .* left", answer.out)
    assert "±" not in (tmp_path / "report.html").read_text()
    answer = imgcls("export", "tiny-digits", "--bundle", "model")
    assert steps_in(answer.out) == [(number, 6) for number in range(1, 7)]
    assert imgcls("export", "tiny-digits", "-o", "best.yaml").code == 0
    answer = imgcls("train", "best.yaml", "--seeds", "2")
    assert set(last_epochs(answer.err)) == {"seed 1/2", "seed 2/2"}
    assert re.search(r"^test accuracy: \d\.\d{3} and \d\.\d{3}$", answer.out, re.MULTILINE)
    assert "±" not in answer.out
    assert imgcls("export", "trained/best/seed-1.pt", "--bundle", "trained-model").code == 0
    card = (tmp_path / "trained-model/MODEL_CARD.md").read_text()
    assert "±" not in card
    assert re.search(r"Over 2 trainings .* test accuracy is \d\.\d{3} and \d\.\d{3}\.", card)


def last_epochs(text: str) -> dict[str, bool]:
    """Return the trainings whose last epoch was shown, and whether one of their lines told the time left."""
    lines = [found for line in text.splitlines() if (found := LINE.fullmatch(line))]
    trainings = {found[3] for found in lines if found[1] == found[2]}
    is_all_told = all(found[4] for found in lines[:-1])
    return dict.fromkeys(trainings, is_all_told)


def steps_in(text: str) -> list[tuple[int, int]]:
    return [(int(number), int(of)) for number, of in re.findall(r"^step (\d+)/(\d+): ", text, re.MULTILINE)]
