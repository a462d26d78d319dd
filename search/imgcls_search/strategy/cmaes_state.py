"""Optuna's CMA-ES, which stores its state in trials as a pickle: only what such a state is made of is loaded."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import optuna

from imgcls_search.errors import StudyError

ALLOWED = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
"""All that a state of CMA-ES consists of, by module and name."""


class CheckedCmaEs(optuna.samplers.CmaEsSampler):
    """Refuses a state that would load, and so run, anything else: a study may come from anyone."""

    def _restore_optimizer(self, completed_trials: Sequence[optuna.trial.FrozenTrial]) -> Any:
        # Optuna takes the latest state that it finds.
        for trial in reversed(completed_trials):
            parts = {key: text for key, text in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if parts:
                try:
                    check(bytes.fromhex(self._concat_optimizer_attrs(parts)))
                # A damaged pickle raises almost anything.
                except Exception as error:
                    raise StudyError(
                        f"trial {trial.number}: the state of the sampler cmaes is damaged ({error})"
                    ) from error
                break
        return super()._restore_optimizer(completed_trials)  # type: ignore[arg-type]


def check(state: bytes) -> None:
    """Load a pickled state with nothing but the classes that it is made of.

    Raises:
        pickle.UnpicklingError: it has another class or function.
    """
    found = _Unpickler(io.BytesIO(state)).load()
    if type(found).__name__ != "CMA":
        raise pickle.UnpicklingError(f"a {type(found).__name__}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of one")
        return super().find_class(module, name)
