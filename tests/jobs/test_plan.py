"""How far a budget goes: worked out from made epochs, and asked of the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.jobs.plan import CALIBRATION, timed_as, work_out
from imgcls_search.space import parse
from imgcls_search.study.memory import record_in_memory

from tests.conftest import Answer
from tests.jobs.test_replay import space
from tests.strategy.test_strategy import trial


@pytest.mark.parametrize(
    ("study", "epochs"),
    [
        ("pruner: none", 18),
        ("pruner: median", 18),
        ("pruner: {halving: {min_epochs: 2, eta: 3}}", 2 + 4 / 3 + 12 / 9),
        ("pruner: {asha: {min_epochs: 2, eta: 3}}", 2 + 4 / 3 + 12 / 9),
        ("pruner: {brackets: {min_epochs: 2, eta: 3, every: 4}}", 0.75 * (2 + 4 / 3 + 12 / 9) + 0.25 * (6 + 12 / 3)),
        ("pruner: halving, objectives: {accuracy: maximize, params: minimize}", 18),
    ],
)
def test_plan_follows_the_rungs_and_leaves_out_the_first_epoch(study: str, epochs: float) -> None:
    made = record_in_memory("x", (("accuracy", "maximize"),))
    for number, seconds in enumerate((2.0, 4.0)):
        ran = trial(number, 0.1, 0.2)
        made.trials.append(replace(ran, epochs=[{**ran.epochs[0], "seconds": 99.0}, {"seconds": seconds}]))
    found = work_out(space(f"trials: 30, timeout: 600, {study}"), made, workers=2)
    assert found.epoch_seconds == 3.0
    assert found.epochs_of_trial == pytest.approx(epochs)
    assert found.seconds == pytest.approx(30 * epochs * 3.0 / 2)
    assert found.trials_in_timeout == int(600 * 2 / (3.0 * epochs))


@pytest.mark.slow
def test_command_times_a_few_epochs_and_leaves_no_study(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("plan", tiny, "--json", "--workers", 1, "--epochs", 2, "--set", "study.timeout=6000")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["measured_epochs"] == 2
    assert 0 < found["fastest_seconds"] <= found["epoch_seconds"] <= found["slowest_seconds"]
    assert found["trials_in_timeout"] > 0
    assert [path.name for path in (tiny.parent / "studies").iterdir()] == [".images"]


HEADS = """
study: {trials: 30, pruner: {asha: {min_epochs: 4, eta: 3}}}
data: {digits: {}}
model: {resnet: {weights: a.pt}}
head: {own: {}, logistic: {}}
finetune: {freeze: backbone, freeze_epochs: 4}
training: {epochs: 12}
"""


def test_plan_tells_epochs_of_heads_and_fits_from_those_of_whole_networks() -> None:
    asked = parse(HEADS, catalog(), source="x")
    assert timed_as(asked)["study.pruner"] == "{asha: {min_epochs: 6}}"
    whole = parse(HEADS, catalog(), source="x", overrides=[("finetune.freeze_epochs", "null")])
    assert timed_as(whole) == CALIBRATION
    made = record_in_memory("x", (("accuracy", "maximize"),))
    times = {"own": [9.0, 0.1, 0.1, 0.1, 2.0, 2.0], "logistic": [3.0]}
    for number, head in enumerate(("own", "logistic", "own")):
        config = parse(HEADS, catalog(), source="x", overrides=[("head", head)]).first()
        ran = trial(number, *[0.5] * len(times[head]))
        epochs = [{**epoch, "seconds": taken} for epoch, taken in zip(ran.epochs, times[head], strict=True)]
        made.trials.append(replace(ran, epochs=epochs, candidate=replace(ran.candidate, config=config)))
    found = work_out(asked, made, workers=1)
    # All heads train their 4 epochs, a third of them the 8 that follow.
    training = 4 * 0.1 + 8 / 3 * 2.0
    assert found.seconds == pytest.approx(30 * (2 * training + 3.0) / 3)
