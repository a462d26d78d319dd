"""A sampler that learns from partial curves: it draws what a surrogate expects to end above all that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.config import Scalar
from search.space import Parameter
from search.strategy.encoding import Encoding, place
from search.strategy.samplers import View, draw_evenly, fixed_candidate, value_at
from search.strategy.surrogate import Points, Surrogate, expected_improvement, squash, times_of
from search.trial import Candidate, Trial

if TYPE_CHECKING:
    import numpy as np

CANDIDATES = 300
"""Random configurations that a draw chooses from."""

NEIGHBOURS = 150
"""And this many beside the best trials."""

MOST_TRIALS = 400
"""As many are learned from, the best half of them and others by chance: the time grows with the cube."""

BEST_TRIALS = 6
FEWEST_TRIALS = 8
"""As many must have come to an epoch before a draw may learn from that and later ones alone."""

STEP = 0.1
"""How far neighbours are moved: a share of a number's range, and the probability that a choice is drawn anew."""


class CurveSampler:
    """Spreads trials evenly at first and now and then later, else draws by expected improvement at the last epoch."""

    def __init__(self, *, epochs: int, n_startup_trials: int, random_share: float) -> None:
        """`epochs` is what a curve is expected at."""
        self.epochs = epochs
        self.n_startup_trials = n_startup_trials
        self.random_share = random_share

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        """Return a candidate."""
        import numpy as np

        rng = np.random.default_rng(view.derive(number, attempt, 7))
        sign = 1 if view.space.objectives[0][1] == "maximize" else -1
        if number < self.n_startup_trials or rng.random() < self.random_share:
            return draw_evenly(view, number, attempt)
        shown = _few(list(_shown(view.trials)), sign, rng)
        if len(shown) < 3:
            return draw_evenly(view, number, attempt)
        params = self._candidates(view, shown, sign, rng)
        chosen = params[self._choose(view, shown, params, sign, rng)]
        return fixed_candidate(view, chosen)

    def _choose(
        self, view: View, shown: Sequence[Trial], params: Sequence[Mapping[str, Scalar]], sign: int, rng: Any
    ) -> int:
        import numpy as np

        encoding = Encoding(view.space)
        known = encoding.rows([trial.candidate.params for trial in shown])
        surrogate = Surrogate(self._points(shown, known, sign, rng), rng)
        time = float(times_of([self.epochs], self.epochs)[0])
        owners = np.array([trial.number for trial in shown], dtype=float)
        best = float(surrogate.predict(known, owners, time)[0].max())
        rows = encoding.rows(params)
        return int(expected_improvement(*surrogate.predict(rows, np.full(len(rows), -1.0), time), best).argmax())

    def _points(self, shown: Sequence[Trial], known: np.ndarray[Any, Any], sign: int, rng: Any) -> Points:
        import numpy as np

        rungs = sorted({_rung(trial) for trial in shown})
        counts = {rung: sum(_shows(trial, rung) for trial in shown) for rung in rungs}
        # Early epochs say most where they rank as the last one does, and lead astray where late bloomers win; which of
        # the two it is nobody knows, so that draws take turns by chance in what they leave out.
        known_well = [rung for rung in rungs if counts[rung] >= FEWEST_TRIALS]
        first = known_well[int(rng.integers(len(known_well)))] if known_well else 0
        several = [rung for rung in rungs if rung >= first]
        places = [(index, rung) for index, t in enumerate(shown) for rung in several if _shows(t, rung)]
        values = np.array([sign * shown[index].value_at(rung) for index, rung in places])
        indices = [index for index, _ in places]
        return Points(
            rows=known[indices],
            times=times_of([rung for _, rung in places], self.epochs),
            owners=np.array([shown[index].number for index in indices], dtype=float),
            values=squash(values),
        )

    def _candidates(self, view: View, shown: Sequence[Trial], sign: int, rng: Any) -> list[dict[str, Scalar]]:
        top = sorted(shown, key=lambda t: _standing(t, sign))[:BEST_TRIALS]
        parameters = view.space.parameters()
        found = [_reachable(parameters, _Anywhere(rng)) for _ in range(CANDIDATES)]
        for _ in range(NEIGHBOURS):
            centre = top[int(rng.integers(len(top)))].candidate.params
            found.append(_reachable(parameters, _Beside(rng, centre)))
        return found


def _shown(trials: Sequence[Trial]) -> Iterator[Trial]:
    for trial in trials:
        if (rung := _rung(trial)) and math.isfinite(trial.value_at(rung)):
            yield trial


def _few(shown: Sequence[Trial], sign: int, rng: Any) -> Sequence[Trial]:
    if len(shown) <= MOST_TRIALS:
        return shown
    ordered = sorted(shown, key=lambda t: _standing(t, sign))
    best, others = ordered[: MOST_TRIALS // 2], ordered[MOST_TRIALS // 2 :]
    chosen = rng.choice(len(others), MOST_TRIALS - len(best), replace=False)
    return sorted([*best, *(others[index] for index in chosen)], key=lambda t: t.number)


def _standing(trial: Trial, sign: int) -> tuple[int, float, int]:
    rung = _rung(trial)
    return -rung, -sign * trial.value_at(rung), trial.number


def _rung(trial: Trial) -> int:
    """Return the last epoch that counts: of a trial under way the one that was judged, whatever came after it."""
    return (
        trial.judged if trial.is_open and trial.has_value_at(trial.judged) else 0 if trial.is_open else trial.last_shown
    )


def _shows(trial: Trial, rung: int) -> bool:
    return rung <= _rung(trial) and trial.has_value_at(rung) and math.isfinite(trial.value_at(rung))


class _Anywhere:
    """Draws a parameter from all that it may be."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __call__(self, parameter: Parameter) -> Scalar:
        return value_at(parameter, float(self.rng.random()))


class _Beside(_Anywhere):
    """Moves a parameter of a configuration a little; what that does not have is drawn from all."""

    def __init__(self, rng: Any, centre: Mapping[str, Scalar]) -> None:
        super().__init__(rng)
        self.centre = centre

    def __call__(self, parameter: Parameter) -> Scalar:

        if parameter.path not in self.centre:
            return super().__call__(parameter)
        value = self.centre[parameter.path]
        if parameter.choices:
            return super().__call__(parameter) if self.rng.random() < STEP else value
        moved = place(parameter, value) + STEP * float(self.rng.standard_normal())
        return value_at(parameter, min(max(moved, 0.0), 1 - 1e-9))


def _reachable(parameters: Sequence[Parameter], draw: _Anywhere) -> dict[str, Scalar]:
    """Draw the parameters that exist under the branches drawn before them."""
    params: dict[str, Scalar] = {}
    for parameter in parameters:
        if all(params.get(path) == branch for path, branch in parameter.when):
            params[parameter.path] = draw(parameter)
    return params
