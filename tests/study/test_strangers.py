"""Trials that plain Optuna, or a dashboard, adds to a study."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.errors import SpaceError
from imgcls_search.space import parse, start_of
from optuna.trial import TrialState, create_trial

from tests.conftest import PATIENCE, TINY, Answer, is_one_line
from tests.orchestrator.test_run import wait_for

SHORT = ("--workers", "1", "--set", "training.epochs=2", "--set", "study.pruner=none")


def opened(folder: Path) -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/studies/tiny-digits.db", study_name="tiny-digits")


@pytest.mark.slow
def test_study_with_trials_of_others_is_shown_and_goes_on(
    tiny: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    assert imgcls("run", tiny, *SHORT, "--set", "study.trials=1").code == 0
    study = opened(tiny.parent)
    study.ask()
    study.add_trial(create_trial(value=0.99, user_attrs={"seed": 3}))
    study.enqueue_trial({"model.lenet5.width": 0.5, "optimizer.adamw.lr": 0.002}, user_attrs={"by": "me"})
    study.enqueue_trial({"model.lenet5.width": 7, "model.vit.depth": 3})
    for command in (
        ("status", "--json"),
        ("best",),
        ("trials",),
        ("front",),
        ("export", "-o", "best.yaml"),
        ("report", "-o", "report.html"),
    ):
        answer = here(command[0], "tiny-digits", *command[1:])
        assert answer.code == 0, (command, answer.err)
        assert "Traceback" not in answer.err
    others = json.loads(here("status", "tiny-digits", "--json").out)["others"]
    assert [(other["trial"], other["state"]) for other in others] == [
        (1, "running"),
        (2, "complete"),
        (3, "waiting"),
        (4, "waiting"),
    ]
    assert "trial 0" in here("best", "tiny-digits").out
    answer = here("export", "tiny-digits", "--trial", "2", "-o", "x.yaml")
    assert is_one_line(answer)
    assert "was not made by imgcls-search" in answer.err
    answer = imgcls("run", tiny, *SHORT, "--set", "study.trials=1")
    assert "not tried: 2 waiting trials, since" in answer.out + answer.err
    assert "left out 4 trials that imgcls-search did not make: 1 (running)" in answer.err
    # The one that fits is tried, the other ends with the reason, and numbers go on behind them.
    answer = imgcls("run", tiny, *SHORT, "--set", "study.trials=3")
    assert answer.code == 0, answer.err
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    running, complete, failed = TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL
    assert states == [complete, running, complete, complete, failed, complete]
    tried, refused = study.trials[3], study.trials[4]
    assert tried.params["model.lenet5.width"] == 0.5
    assert tried.params["optimizer.adamw.lr"] == 0.002
    assert tried.user_attrs["by"] == "me"
    assert len(tried.user_attrs["epochs"]) == 2
    assert "model.lenet5.width: 7 is not allowed; allowed: one of 0.5, 1.0" in refused.user_attrs["reason"]
    assert (tiny.parent / "studies/tiny-digits/checkpoints/trial-00005.pt").is_file()
    assert here("best", "tiny-digits").code == 0


def test_trials_added_while_a_run_is_at_work_are_tried_or_left_alone(
    tiny: Path, start: Callable[..., Any], here: Callable[..., Answer]
) -> None:
    process = start("run", tiny, *SHORT, "--set", "study.trials=1000")
    wait_for((tiny.parent / "studies/tiny-digits.db").is_file)
    study = opened(tiny.parent)
    # One that another program works on, and one that it has finished, better than all.
    asked = study.ask()
    study.add_trial(create_trial(value=0.999))
    study.enqueue_trial({"model.lenet5.activation": "tanh", "optimizer.adamw.lr": 0.0033})
    study.enqueue_trial({"model.lenet5.activation": "swish"})

    def ends() -> list[TrialState]:
        asked_for = (
            {"model.lenet5.activation": "tanh", "optimizer.adamw.lr": 0.0033},
            {"model.lenet5.activation": "swish"},
        )
        return [t.state for t in study.trials if t.system_attrs.get("fixed_params") in asked_for]

    wait_for(lambda: ends() == [TrialState.COMPLETE, TrialState.FAIL])
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, out + err
    assert "starts; it was waiting in the study" in out + err
    tried = next(trial for trial in study.trials if trial.params.get("optimizer.adamw.lr") == 0.0033)
    assert len(tried.user_attrs["epochs"]) == 2
    assert study.trials[asked.number].state is TrialState.RUNNING
    best = json.loads(here("best", "tiny-digits", "--json").out)["best"][0]
    assert best["values"]["accuracy"] < 0.999
    assert here("status", "tiny-digits").code == 0


@pytest.mark.parametrize(
    "params",
    [{"nothing": 1}, {"optimizer.adamw.lr": "high"}, {"optimizer.adamw.lr": 5}, {"model.lenet5.width": {"a": [1]}}],
)
def test_setting_that_is_not_of_the_space_is_named(params: dict[str, Any]) -> None:
    space = parse(TINY, catalog(), source="tiny.yaml")
    with pytest.raises(SpaceError, match=f"not of this space: {next(iter(params))}: "):
        start_of(params, space.root)
    assert start_of({"optimizer.adamw.lr": 0.01, "model.lenet5.activation": "tanh"}, space.root) == {
        "optimizer.adamw.lr": 0.01,
        "model.lenet5.activation": "tanh",
    }
