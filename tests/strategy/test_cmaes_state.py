"""What a study keeps of CMA-ES is loaded only if it is such a state."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from imgcls_search.errors import StudyError
from imgcls_search.strategy.cmaes_state import CheckedCmaEs
from optuna.samplers import CmaEsSampler

TRIALS = 30


class Code:
    """Runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def value(trial: optuna.Trial) -> float:
    return (
        trial.suggest_float("x", 0, 1) + trial.suggest_int("k", 1, 9) + trial.suggest_float("rate", 1e-3, 1, log=True)
    )


def searched(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    study.optimize(value, n_trials=TRIALS)
    return study


def with_states(study: optuna.Study, change: Any) -> optuna.Study:
    """Return a copy of a study whose states of CMA-ES were changed."""
    found = optuna.create_study(sampler=CheckedCmaEs(seed=1, n_startup_trials=1))
    for trial in study.trials:
        trial.system_attrs = change(trial.system_attrs)
        found.add_trial(trial)
    return found


def replaced(state: bytes, attributes: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: text for key, text in attributes.items() if ":optimizer" not in key}
    return kept if kept == attributes else {**kept, "cma:optimizer:0": state.hex()}


def test_its_own_states_are_loaded_as_by_optuna() -> None:
    ours, theirs = (searched(kind(seed=1, n_startup_trials=1)) for kind in (CheckedCmaEs, CmaEsSampler))
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]
    assert any("cma:optimizer:0" in trial.system_attrs for trial in ours.trials)
    with_states(ours, dict).optimize(value, n_trials=1)


def test_nothing_else_is_loaded(tmp_path: Path) -> None:
    study, file = searched(CheckedCmaEs(seed=1, n_startup_trials=1)), tmp_path / "written"
    state = pickle.dumps(Code(f"touch {file}"))
    changed = with_states(study, lambda attributes: replaced(state, attributes))
    with pytest.raises(
        StudyError, match=r"trial \d+: the state of the sampler cmaes is damaged \(.*system is not part"
    ):
        changed.optimize(value, n_trials=1)
    assert not file.exists()


@pytest.mark.parametrize("state", [b"", b"\x80\x04", pickle.dumps({"a": 1}), pickle.dumps(3), b"\xff" * 50])
def test_damage_is_named(state: bytes) -> None:
    study = searched(CheckedCmaEs(seed=1, n_startup_trials=1))
    changed = with_states(study, lambda attributes: replaced(state, attributes))
    with pytest.raises(StudyError, match="the state of the sampler cmaes is damaged"):
        changed.optimize(value, n_trials=1)
