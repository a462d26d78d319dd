"""What earlier studies say about a space, and the race that it begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.space import Space, parse
from imgcls_search.strategy import earlier
from imgcls_search.strategy.earlier import (
    NOISE,
    RACERS,
    SPARE,
    EarlierStudy,
    EarlierTrial,
    Knowledge,
    StudyPredictor,
    normal_scores,
)
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.race import make_race, races
from imgcls_search.trial import Trial
from scipy.stats import norm, spearmanr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

RANGES = "{rate: {float: [1e-4, 1e-1], log: true}, width: {float: [0.0, 1.0]}, kind: {choice: [a, b]}}"


def space(config: str = RANGES, study: str = "", start: str = "[]") -> Space:
    text = f"study: {{name: x, trials: 60{study}}}\nconfig: {config}\ntraining: {{epochs: 18}}\nstart: {start}\n"
    return parse(text, table_catalog(), source="x.yaml")


def worth(settings: Mapping[str, Any]) -> float:
    """Best at a rate of 0.01, a width of 0.7 and kind b."""
    rate, width = settings["config.rate"], settings["config.width"]
    return float(
        1 - 0.1 * np.log10(rate / 0.01) ** 2 - 0.3 * (width - 0.7) ** 2 - 0.1 * (settings["config.kind"] == "a")
    )


class Peak:
    """Curves that rise to what settings are worth; the last epoch ranks as the first does."""

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        settings = {f"config.{name}": value for name, value in config.section("config").items()}
        return {"accuracy": self.sign * worth(settings) * (1 - 0.5**epoch)}


def draw(rng: np.random.Generator, low: float = 1e-4, high: float = 1e-1) -> dict[str, Scalar]:
    rate = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return {"config.rate": rate, "config.width": float(rng.random()), "config.kind": "ab"[int(rng.integers(2))]}


def study(
    sign: int = 1, count: int = 50, change: Callable[[dict[str, Scalar]], dict[str, Scalar]] = dict, **ranges: float
) -> EarlierStudy:
    """A study of random settings, of which one in three came further."""
    rng = np.random.default_rng(count)
    drawn = [draw(rng, **ranges) for _ in range(count)]
    values = [sign * worth(settings) for settings in drawn]
    bar = np.quantile(values, 2 / 3)
    return EarlierStudy(
        name="before",
        trials=[
            EarlierTrial(settings=change(settings), reached=1.0 if value > bar else 0.1, value=value)
            for settings, value in zip(drawn, values, strict=True)
        ],
    )


def agreement(knowledge: Knowledge, kept: Callable[[Mapping[str, Any]], bool] = lambda settings: True) -> float:
    """Return how well the first study ranks points of the pool that are of interest."""
    several = [knowledge.encoding.params_at(point) for point in knowledge.pool]
    seen = [index for index, settings in enumerate(several) if kept(settings)]
    expected = knowledge.expected[seen, 0]
    return float(spearmanr(expected, [worth(several[index]) for index in seen])[0])


def test_normal_scores_keep_the_order_and_nothing_else() -> None:
    scores = normal_scores([(0.1, 5.0), (1.0, 0.2), (0.1, 5.0), (1.0, 0.3)])
    assert scores[0] == scores[2] < scores[1] < scores[3]
    assert scores.sum() == pytest.approx(0, abs=0.2)


def test_normal_scores_are_quantiles_of_the_ranks() -> None:
    found = normal_scores([(1.0, 0.5), (0.1, 0.9), (0.1, 0.7), (0.1, 0.7)])
    # Better than three, than two, and two that share the last places.
    assert found == pytest.approx(norm.ppf(np.array([3.5, 2.5, 1.0, 1.0]) / 4))


def test_expectations_are_those_of_a_gaussian_process() -> None:
    """scikit-learn's, of the same kernel, with the noise of ranks."""
    encoding, given = Encoding(space()), study(count=30)
    found = StudyPredictor(encoding, given)
    rows = encoding.rows([trial.settings for trial in given.trials])
    scores = normal_scores([(trial.reached, trial.value) for trial in given.trials])
    # Two numbers and a column for each of two choices.
    kernel = ConstantKernel(1 - NOISE) * Matern(nu=2.5, length_scale=0.5 * np.sqrt(4 / 3))
    reference = GaussianProcessRegressor(kernel, alpha=NOISE, optimizer=None).fit(rows, scores - scores.mean())
    points = np.array([encoding.point(draw(np.random.default_rng(seed))) for seed in range(6)])
    asked = encoding.rows_at(points)
    means, covariance = reference.predict(asked, return_cov=True)
    assert found.predict(points, asked) == pytest.approx(means + scores.mean())
    assert np.allclose(found.covariance(asked), covariance, atol=1e-6)


def test_of_a_large_study_the_best_half_and_a_spread_of_the_others_are_learned_from() -> None:
    scores = np.random.default_rng(0).permutation(301).astype(float)
    chosen = scores[earlier._few(scores)]
    assert len(chosen) == earlier.MOST_TRIALS
    assert chosen[:50].tolist() == list(range(300, 250, -1))
    assert (chosen[50], chosen[-1]) == (250, 0)
    assert set(-np.diff(chosen[50:])) == {5, 6}
    assert len(earlier._few(scores[:100])) == 100


def test_a_portfolio_has_spare_points_for_those_that_cannot_be_trials() -> None:
    knowledge = Knowledge(space(), [study()], 0)
    assert len(knowledge.portfolio) == RACERS + SPARE
    assert len(knowledge.pool) == earlier.POOL
    # Measured over the pool, a study's predictions have mean 0 and deviation 1.
    assert (knowledge.expected.mean(), knowledge.expected.std()) == pytest.approx((0, 1))
    assert np.allclose(knowledge.predict(knowledge.pool[:5]), knowledge.expected[:5])


def test_the_weight_of_a_study_is_its_rank_correlation_if_that_is_more_than_chance() -> None:
    knowledge = Knowledge(space(), [study(), study(sign=-1), study(count=40)], 0)
    scores = np.arange(9.0)
    theirs = np.column_stack([scores**3, [0, 2, 1, 3, 5, 4, 6, 8, 7], [0.0] * 9])
    assert knowledge.weights(theirs, scores) == pytest.approx([1, spearmanr(theirs[:, 1], scores)[0], 0])
    # One over the root of the number of trials is chance.
    weak = np.array([0, 8, 1, 7, 2, 6, 3, 5, 4.0])
    assert spearmanr(weak, scores)[0] < 1 / 3
    assert knowledge.weights(np.column_stack([weak] * 3), scores).tolist() == [0, 0, 0]
    assert knowledge.weights(theirs[:8], scores[:8])[0] == 1
    assert knowledge.weights(theirs[:7], scores[:7]).tolist() == [0.5] * 3


def test_a_study_ranks_settings_that_it_never_saw() -> None:
    assert agreement(Knowledge(space(), [study()], 0)) > 0.8


@pytest.mark.parametrize("ranges", [{"low": 1e-3, "high": 3e-2}, {"low": 1e-6, "high": 10.0}])
def test_a_study_of_other_ranges_ranks_what_both_hold(ranges: dict[str, float]) -> None:
    """Its own values, and not their place in its range, stand in the space."""
    low, high = max(1e-4, ranges["low"]), min(1e-1, ranges["high"])
    found = agreement(Knowledge(space(), [study(**ranges)], 0), lambda settings: low < settings["config.rate"] < high)
    assert found > 0.7


def without(name: str) -> Callable[[dict[str, Scalar]], dict[str, Scalar]]:
    return lambda settings: {key: value for key, value in settings.items() if key != name}


def test_settings_that_a_study_did_not_have_or_did_not_vary_have_no_say() -> None:
    for change in (without("config.width"), lambda settings: {**settings, "config.width": 0.2}):
        knowledge = Knowledge(space(), [study(change=change)], 0)
        points = knowledge.pool[:50].copy()
        before = knowledge.predict(points)
        points[:, 1] = 0.9
        assert np.allclose(knowledge.predict(points), before)
        assert agreement(knowledge) > 0.6


def test_values_of_another_kind_are_left_out() -> None:
    """A space may search `off` or a list where another has a number."""
    for value in ("off", True, None, -1.0, 0):
        odd = study().trials[:10]
        mixed = [EarlierTrial(settings={**t.settings, "config.rate": value}, reached=0.1, value=0.0) for t in odd]
        knowledge = Knowledge(space(), [EarlierStudy(name="odd", trials=[*study().trials, *mixed])], 0)
        assert np.isfinite(knowledge.expected).all()


def test_of_a_family_that_a_study_never_tried_it_says_nothing() -> None:
    from imgcls_search.catalog import catalog

    text = "model: {lenet5: {width: {float: [0.5, 2.0]}}, resnet: {width: {int: [8, 32]}}}\n"
    families = parse(text, catalog(), source="x.yaml")
    rng = np.random.default_rng(0)
    widths = rng.uniform(0.5, 2.0, 40)
    before = [
        EarlierTrial(settings={"model": "lenet5", "model.lenet5.width": float(w)}, reached=1.0, value=float(w))
        for w in widths
    ]
    knowledge = Knowledge(families, [EarlierStudy(name="before", trials=before)], 0)
    several = [knowledge.encoding.params_at(point) for point in knowledge.pool]
    other = np.array([settings["model"] == "resnet" for settings in several])
    points = knowledge.pool[other]
    assert not knowledge.predictors[0].predict(points, knowledge.encoding.rows_at(points)).any()
    begun = [knowledge.encoding.params_at(point) for point in knowledge.portfolio[:RACERS]]
    assert {settings["model"] for settings in begun[:2]} == {"lenet5"}
    assert all(settings["model.lenet5.width"] > 1.5 for settings in begun[:2])


def test_a_portfolio_is_good_wide_and_the_same_again() -> None:
    found = [Knowledge(space(), [study(), study(count=40)], 3).portfolio for _ in range(2)]
    assert np.array_equal(*found)
    knowledge = Knowledge(space(), [study()], 3)
    values = [worth(knowledge.encoding.params_at(point)) for point in knowledge.portfolio[:RACERS]]
    drawn = [worth(knowledge.encoding.params_at(point)) for point in knowledge.pool]
    assert np.mean(values) > np.quantile(drawn, 0.8)
    assert len({tuple(point) for point in knowledge.portfolio}) == len(knowledge.portfolio)


@pytest.mark.parametrize("size", [1e-18, 1.0, 1e18])
def test_a_covariance_that_rounding_has_spoiled_has_a_root(size: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((60, 3))
    # Of rank 3, with equal points, and a little less than semidefinite.
    covariance = size * (np.repeat(root @ root.T, 2, axis=0).repeat(2, axis=1) - 1e-9 * np.eye(120))
    found = earlier._root(covariance)
    assert np.isfinite(found).all()
    scale = max(1.0, float(np.diag(covariance).max()))
    assert np.abs(found @ found.T - covariance).max() < 1e-4 * scale


def test_a_study_that_expects_about_the_same_everywhere_is_no_trouble() -> None:
    same = EarlierStudy(
        name="flat",
        trials=[EarlierTrial(settings=each.settings, reached=1.0, value=1e-12 * each.value) for each in study().trials],
    )
    few = space("{kind: {choice: [a, b, c]}, other: {choice: [d, e]}}")
    for searched in (space(), few):
        knowledge = Knowledge(searched, [same, study()], 0)
        if knowledge.predictors:
            assert np.isfinite(knowledge.portfolio).all()


def test_a_study_that_misleads_loses_its_say_and_one_that_agrees_keeps_it() -> None:
    knowledge = Knowledge(space(), [study(), study(sign=-1)], 0)
    several = [draw(np.random.default_rng(seed)) for seed in range(10)]
    points = np.array([knowledge.encoding.point(settings) for settings in several])
    expected, shown = knowledge.predict(points), np.array([worth(settings) for settings in several])
    few = knowledge.weights(expected[:4], shown[:4])
    assert few[0] == few[1] > 0
    good, bad = knowledge.weights(expected, shown)
    assert good > 0.5
    assert bad == 0


def searched(studies: Sequence[EarlierStudy], start: str = "[]", changes: str = "", sign: int = 1) -> list[Trial]:
    outcome, _ = replay(space(study=changes, start=start), Peak(sign), earlier=studies)
    return outcome.record.trials


@pytest.mark.parametrize("known", [[], [study()]], ids=["from nothing", "from a study"])
def test_a_search_with_start_settings_goes_beyond_its_beginning(known: Sequence[EarlierStudy]) -> None:
    start = "[{config.rate: 0.01}, {config.width: 0.5}, {config.rate: 0.02, config.kind: b}]"
    # With some seeds the draws in question are all even ones.
    for seed in range(3):
        assert len(searched(known, start=start, changes=f", seed: {seed}")) == 60


def test_the_best_predicted_settings_race_and_the_winner_is_complete_first() -> None:
    seen: list[int] = []

    class Watched(Peak):
        def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
            seen.append(epoch)
            return super().at(config, epoch)

    outcome, steps = replay(space(), Watched(), earlier=[study()])
    trials = outcome.record.trials
    racers = [trial for trial in trials if races(trial)]
    assert [trial.number for trial in racers] == list(range(len(racers)))
    assert len(racers) == RACERS
    first = max(racers, key=lambda trial: trial.value_at(2))
    half = sorted(racers, key=lambda trial: -trial.value_at(2))[: (RACERS + 1) // 2]
    assert all(trial.epoch >= 6 for trial in half)
    # Nobody is promoted before all have arrived.
    assert seen[: 2 * RACERS] == [1, 2] * RACERS
    # All to the second epoch, half of them to the sixth, one to its end; nothing else before.
    assert steps.bests[0] == (RACERS * 2 + len(half) * 4 + 12, first.values[0])  # type: ignore[index]


def test_start_settings_race_with_what_was_learned_and_train_to_their_end_without() -> None:
    worst = "[{config.rate: 1e-4, config.kind: a}, {config.rate: 1.1e-4, config.kind: a}]"
    alone = searched([], worst)
    assert [trial.state for trial in alone[:2]] == ["complete", "complete"]
    racing = searched([study()], worst)
    assert all(races(trial) for trial in racing[: RACERS + 2])
    assert not any(races(trial) for trial in racing[RACERS + 2 :])
    assert [trial.epoch for trial in racing[:2]] == [2, 2]


def test_a_search_that_knows_finds_sooner_and_one_that_was_misled_is_not_lost() -> None:
    def epochs_to(goal: float, studies: Sequence[EarlierStudy], seed: int) -> float:
        _, steps = replay(space(study=f", seed: {seed}"), Peak(), earlier=studies)
        return next((float(spent) for spent, value in steps.bests if value >= goal), np.inf)

    goal = 0.99 * (1 - 0.5**18)
    plain, told, misled = (
        [epochs_to(goal, studies, seed) for seed in range(5)] for studies in ([], [study()], [study(sign=-1)])
    )
    assert 1.5 * np.median(told) < np.median(plain)
    assert np.median(misled) < 2 * np.median(plain)


def test_with_many_epochs_the_race_goes_over_all_rungs() -> None:
    text = f"study: {{name: x, trials: 40}}\nconfig: {RANGES}\ntraining: {{epochs: 54}}\n"
    _, steps = replay(parse(text, table_catalog(), source="x.yaml"), Peak(), earlier=[study()])
    # Eight to the second epoch, four to the sixth, two to the eighteenth, one to its end.
    assert steps.bests[0][0] == 8 * 2 + 4 * 4 + 2 * 12 + 36


def test_a_short_search_has_a_small_race() -> None:
    outcome, _ = replay(space(study=", max_epochs: 60"), Peak(), earlier=[study()])
    racers = [trial for trial in outcome.record.trials if races(trial)]
    assert 2 <= len(racers) < RACERS
    assert sum(trial.epoch for trial in outcome.record.trials) <= 60
    assert any(trial.state == "complete" for trial in outcome.record.trials)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_race_is_decided_with_many_workers_too(workers: int) -> None:
    seen: list[tuple[Any, int]] = []

    class Slower(Peak):
        """Some trials take many times as long as others, so that racers arrive one by one."""

        def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
            rate = config.section("config")["rate"]
            seen.append((rate, epoch))
            return {
                **super().at(config, epoch),
                "seconds": 1000.0 if len({each for each, _ in seen}) == RACERS else 1.0,
            }

    outcome, _ = replay(space(), Slower(), workers=workers, earlier=[study()])
    racers = [trial for trial in outcome.record.trials if races(trial)]
    assert len(racers) == RACERS
    # Nobody is promoted before all have arrived.
    went_on = next(index for index, (_, epoch) in enumerate(seen) if epoch == 3)
    assert all((trial.candidate.params["config.rate"], 2) in seen[:went_on] for trial in racers)
    best = max(racers, key=lambda trial: worth(trial.candidate.params))
    assert best.state == "complete"


def test_a_study_that_shares_nothing_changes_nothing() -> None:
    other = EarlierStudy(name="o", trials=[EarlierTrial(settings={"x.y": n}, reached=1.0, value=n) for n in range(9)])
    assert [t.candidate.params for t in searched([other])] == [t.candidate.params for t in searched([])]


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_other_samplers_learn_nothing(sampler: str) -> None:
    changes = f", sampler: {sampler}"
    assert [t.candidate.params for t in searched([study()], changes=changes)] == [
        t.candidate.params for t in searched([], changes=changes)
    ]


@pytest.mark.parametrize("pruner", ["none", "halving", "median", "brackets", "hyperband"])
def test_with_every_pruner_the_best_predicted_settings_come_first(pruner: str) -> None:
    trials = searched([study()], changes=f", pruner: {pruner}")
    drawn = [worth(draw(np.random.default_rng(seed))) for seed in range(200)]
    assert np.median([worth(trial.candidate.params) for trial in trials[:RACERS]]) > np.quantile(drawn, 0.8)
    assert any(trial.state == "complete" for trial in trials)


def test_a_loss_is_learned_from_as_well() -> None:
    text = (
        f"study: {{name: x, trials: 30, objectives: {{loss: minimize}}}}\nconfig: {RANGES}\ntraining: {{epochs: 18}}\n"
    )
    minimized = parse(text, table_catalog({"loss": "a loss"}), source="x.yaml")

    class Loss:
        def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
            return {"loss": -Peak().at(config, epoch)["accuracy"]}

    outcome, _ = replay(minimized, Loss(), earlier=[study()])
    first = min(
        trial.values[0] for trial in outcome.record.trials[:RACERS] if trial.state == "complete" and trial.values
    )
    assert first < -0.97


def test_a_finite_space_ends_though_its_race_has_fewer_racers_than_it_may_have() -> None:
    few = space("{rate: {choice: [0.001, 0.01]}, width: 0.7, kind: {choice: [a, b]}}")
    outcome, _ = replay(few, Peak(), earlier=[study()])
    assert outcome.ending == "exhausted"
    assert len(outcome.record.trials) == 4
    assert any(trial.state == "complete" for trial in outcome.record.trials)


def test_race_needs_rungs_where_trials_wait_and_two_of_them() -> None:
    long = PRUNERS["asha"](epochs=2000, sign=1, min_epochs=1, eta=2)
    race = make_race(long, 2, -1)
    assert race is not None
    assert (race.rungs, race.size, race.sign, race.epochs) == ((1, 2, 4, 8, 16, 32, 64, 128), 2, -1, 2000)
    assert make_race(long, 1, 1) is None
    assert make_race(PRUNERS["halving"](epochs=20, sign=1), 8, 1) is None
    assert make_race(PRUNERS["asha"](epochs=1, sign=1), 8, 1) is None
