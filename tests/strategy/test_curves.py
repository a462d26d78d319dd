"""The sampler that learns from partial curves, and promotion in two brackets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import Scalar, TrialConfig
from imgcls_search.errors import BuildError
from imgcls_search.jobs.replay import replay, table_catalog
from imgcls_search.signature import build
from imgcls_search.space import Space, parse, read_space
from imgcls_search.strategy.curves import CANDIDATES, NEIGHBOURS, STEP, CurveSampler, _few, _sort_key
from imgcls_search.strategy.draws import draw_evenly, draw_random, fixed_candidate
from imgcls_search.strategy.earlier import EarlierStudy, EarlierTrial, Knowledge
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.race import RACES
from imgcls_search.strategy.samplers import SAMPLERS, OptunaSampler
from imgcls_search.strategy.surrogate import Points, Surrogate, _Loss, squash, times_of
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate, Rejection, Trial
from scipy.optimize import check_grad

from tests.strategy.test_strategy import trial

TEXT = """
config: {x: {float: [0.0, 1.0]}, y: {float: [0.001, 1.0], log: true}, kind: {choice: [a, b]}}
training: {epochs: 27}
"""


class Hill:
    """A narrow hill whose height shows from early on."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        values = config.section("config")
        far = (values["x"] - 0.7) ** 2 + (np.log10(values["y"]) / 3 + 0.5) ** 2 + 0.1 * (values["kind"] == "a")
        return {"accuracy": float(np.exp(-8 * far) * (1 - 0.6 ** (epoch + 1)))}


def search(sampler: str, pruner: str, seed: int, epochs: int = 400) -> list[tuple[dict[str, object], int]]:
    study = f"study: {{name: x, trials: 500, max_epochs: {epochs}, seed: {seed}, sampler: {sampler}, pruner: {pruner}}}"
    outcome, _ = replay(parse(study + TEXT, table_catalog(), source="x"), Hill())
    return [(dict(t.candidate.params), t.epoch) for t in outcome.record.trials]


def best(found: list[tuple[dict[str, object], int]]) -> float:
    configs = (
        TrialConfig.from_dict({"config": {k.removeprefix("config."): v for k, v in p.items()}}) for p, _ in found
    )
    return max(Hill().at(config, 27)["accuracy"] for config in configs)


def test_curves_finds_the_top_that_random_misses_and_draws_the_same_again() -> None:
    found = search("curves", "brackets", 0)
    assert found == search("curves", "brackets", 0)
    assert best(found) > 0.97
    assert best(found) > best(search("random", "none", 0))


def height(candidate: Candidate, epoch: int) -> float:
    return Hill().at(candidate.config, epoch)["accuracy"]


def known_trials(
    space: Space,
    count: int = 12,
    metric: str = "accuracy",
    sign: int = 1,
    shown: Callable[[Candidate, int], float] = height,
) -> list[Trial]:
    """Return trials that have ended or rest at several epochs, as they would be with any sampler."""
    made = []
    for number in range(count):
        candidate = draw_random(View(space, [], [], 3), number, 0)
        last = (2, 6, 18, 27)[number % 4]
        values = [sign * shown(candidate, epoch) for epoch in range(1, last + 1)]
        made.append(
            replace(
                trial(number, *values, state="complete" if last == 27 else "paused"),
                candidate=candidate,
                metric=metric,
                epochs=[{"epoch": float(n), metric: value, "seconds": 1.0} for n, value in enumerate(values, start=1)],
            )
        )
    return made


def begun(space: Space, first: int, count: int) -> list[Trial]:
    """Return trials without any result yet."""
    return [
        replace(
            trial(first + number, state="running"), candidate=draw_random(View(space, [], [], 9), number, 0), judged=0
        )
        for number in range(count)
    ]


def hills(study: str = "") -> Space:
    return parse(f"study: {{name: x, trials: 500{study}}}" + TEXT, table_catalog(), source="x")


def curve_sampler(space: Space, random_share: float = 0.0) -> CurveSampler:
    return CurveSampler(space, epochs=27, n_startup_trials=5, random_share=random_share)


def drawn_by(sampler: CurveSampler, view: View, number: int, attempt: int = 0) -> dict[str, Scalar]:
    found = sampler.draw(view, number, attempt)
    assert found is not None
    return dict(found.params)


# A study that resumes with a later version continues as with this one: change these only together with a line in
# CHANGELOG.md that says so.
@pytest.mark.parametrize(
    ("seed", "open_trials", "x", "y"),
    [
        (0, 0, 0.6871056048550795, 0.007427560567474657),
        (0, 3, 0.7286637193908136, 0.0045919469966363745),
        (1, 0, 0.6802551374124981, 0.011767319361365013),
        (1, 3, 0.7240296811325249, 0.005256146766006995),
        (2, 0, 0.6934937223228033, 0.01809861685925621),
        (2, 3, 0.6845023783871473, 0.006363011839135164),
    ],
)
def test_draws_from_known_curves_are_those_of_earlier_versions(seed: int, open_trials: int, x: float, y: float) -> None:
    space = hills()
    trials = [*known_trials(space), *begun(space, 12, open_trials)]
    drawn = drawn_by(curve_sampler(space), View(space, trials, [], seed), len(trials))
    assert drawn.pop("config.kind") == "b"
    assert drawn == pytest.approx({"config.x": x, "config.y": y}, rel=1e-6)


BRANCHES = """
study: {name: x, trials: 500}
model:
  lenet5: {width: {float: [0.5, 2]}, activation: {choice: [relu, tanh]}}
  resnet: {depths: {choice: [[1], [1, 1]]}, width: {int: [8, 32], log: true}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}, weight_decay: {float: [0.0, 0.3], step: 0.1}}}
training: {epochs: 27, batch_size: {int: [10, 20]}}
"""


def worth_in_branches(params: Mapping[str, Any]) -> float:
    far = (np.log10(params["optimizer.adamw.lr"]) + 3) ** 2 + params["optimizer.adamw.weight_decay"]
    return float(np.exp(-far - 0.1 * (params["model"] == "lenet5") - 0.05 * abs(params["training.batch_size"] - 15)))


@pytest.mark.parametrize(
    ("seed", "open_trials", "width", "lr", "batch_size"),
    [
        (0, 0, 0.6042233876184135, 0.0011609197085579153, 17),
        (1, 2, 0.6044932987924277, 0.0010631303009042868, 16),
        (2, 0, 0.5, 0.0012714074335571065, 17),
        (3, 2, 0.5, 0.001129544155645991, 16),
    ],
)
def test_draws_among_branches_are_those_of_earlier_versions(
    seed: int, open_trials: int, width: float, lr: float, batch_size: int
) -> None:
    space = parse(BRANCHES, catalog(), source="x")
    trials = known_trials(
        space, 16, shown=lambda config, epoch: worth_in_branches(config.params) * (1 - 0.6 ** (epoch + 1))
    )
    trials += begun(space, 16, open_trials)
    drawn = drawn_by(curve_sampler(space), View(space, trials, [], seed), len(trials))
    numbers = {"model.lenet5.width": width, "optimizer.adamw.lr": lr, "optimizer.adamw.weight_decay": 0.0}
    numbers["training.batch_size"] = batch_size
    assert {name: drawn.pop(name) for name in numbers} == pytest.approx(numbers, rel=1e-6)
    assert drawn == {"model": "lenet5", "model.lenet5.activation": "tanh"}


def test_neighbours_are_near_the_best_trials_and_sometimes_in_another_branch() -> None:
    space = parse(BRANCHES, catalog(), source="x")
    sampler = curve_sampler(space)
    drawn = [draw_random(View(space, [], [], 3), number, 0) for number in range(60)]
    centres = np.array([sampler.encoding.point(each.params) for each in drawn if each.params["model"] == "lenet5"][:8])
    names = [parameter.path for parameter in space.parameters()]
    at = names.index("optimizer.adamw.lr")
    # The last two stand lower than the six best, and are elsewhere.
    centres[:6, at], centres[6:, at] = 0.5, 0.05
    standings = [(-27, -0.9 + 0.1 * number, number) for number in range(8)]
    found = sampler._candidates(standings, centres, np.random.default_rng(0))
    several = [sampler.encoding.params_at(point) for point in found]
    for params in several:
        assert fixed_candidate(View(space, [], [], 0), params).params == params
    near = found[CANDIDATES:, at]
    assert (near.mean(), near.std()) == pytest.approx((0.5, STEP), abs=0.03)
    assert found[:CANDIDATES, at].std() > 0.2
    branches = [params["model"] for params in several]
    # One in ten draws its choices again, and half of these draw the other branch.
    assert 0.4 < np.mean([branch == "resnet" for branch in branches[:CANDIDATES]]) < 0.6
    assert 0.01 < np.mean([branch == "resnet" for branch in branches[CANDIDATES:]]) < 0.12
    assert len(found) == CANDIDATES + NEIGHBOURS == 450


def test_to_minimize_is_to_maximize_the_opposite() -> None:
    space = hills()
    text = "study: {name: x, trials: 500, objectives: {loss: minimize}}" + TEXT
    opposite = parse(text, table_catalog({"loss": "a loss"}), source="x")
    for open_trials in (0, 3):
        drawn = [
            drawn_by(curve_sampler(each), View(each, [*known, *begun(each, 12, open_trials)], [], 0), 12 + open_trials)
            for each, known in (
                (space, known_trials(space)),
                (opposite, known_trials(opposite, metric="loss", sign=-1)),
            )
        ]
        assert drawn[0] == drawn[1]


def test_first_trials_and_a_share_of_the_others_are_spread_evenly() -> None:
    space = hills()
    known = known_trials(space)
    view, few = View(space, known, [], 0), View(space, known[:2], [], 0)

    def even(view: View, number: int) -> dict[str, Scalar]:
        return dict(draw_evenly(view, number, 0).params)

    assert drawn_by(curve_sampler(space), view, 4) == even(view, 4)
    assert drawn_by(curve_sampler(space), view, 5) != even(view, 5)
    # Two trials tell nothing yet, three do.
    assert drawn_by(curve_sampler(space), few, 5) == even(few, 5)
    three = View(space, known[:3], [], 0)
    assert drawn_by(curve_sampler(space), three, 5) != even(three, 5)
    assert drawn_by(curve_sampler(space, random_share=1.0), view, 12) == even(view, 12)
    default = build(SAMPLERS, hills(", sampler: curves").sampler, space=space)
    assert isinstance(default, CurveSampler)
    assert default.random_share == 0.33


def knowing(space: Space) -> CurveSampler:
    """Return a sampler that knows an earlier study of the hill."""
    rng = np.random.default_rng(0)
    before = [draw_random(View(space, [], [], int(rng.integers(99))), number, 0) for number in range(30)]
    trials = [
        EarlierTrial(settings=dict(each.params), reached=1.0, value=Hill().at(each.config, 27)["accuracy"])
        for each in before
    ]
    sampler = curve_sampler(space)
    sampler.num_racers = 8
    sampler.knowledge = Knowledge(space, [EarlierStudy(name="before", trials=trials)], 0)
    return sampler


def test_what_an_earlier_study_says_is_what_it_said_to_earlier_versions() -> None:
    sampler = knowing(hills())
    assert sampler.knowledge is not None
    portfolio = [sampler.encoding.params_at(point) for point in sampler.knowledge.portfolio]
    assert [(each["config.x"], each["config.y"]) for each in (*portfolio[:4], portfolio[-1])] == [
        pytest.approx(pair, rel=1e-6)
        for pair in (
            (0.8255260915064897, 0.04886385054162007),
            (0.995563046575725, 0.02376961724988281),
            (0.7169159390513719, 0.03484803716412059),
            (0.7617708147487093, 0.030010506441405765),
            (0.6848095352569117, 0.059294401389535026),
        )
    ]


@pytest.mark.parametrize(
    ("seed", "open_trials", "x", "y"),
    [
        (0, 0, 0.7219200818005811, 0.04628703930907768),
        (0, 3, 0.8012371845151759, 0.04267078914663799),
        (1, 3, 0.8357460710411775, 0.03990566146761017),
    ],
)
def test_draws_that_use_an_earlier_study_are_those_of_earlier_versions(
    seed: int, open_trials: int, x: float, y: float
) -> None:
    space = hills()
    trials = [*known_trials(space), *begun(space, 12, open_trials)]
    drawn = drawn_by(knowing(space), View(space, trials, [], seed), len(trials))
    assert drawn.pop("config.kind") == "b"
    assert drawn == pytest.approx({"config.x": x, "config.y": y}, rel=1e-6)


def test_race_takes_the_portfolio_in_turn_with_every_fourth_racer_spread_evenly() -> None:
    space = hills()
    sampler = knowing(space)
    assert sampler.knowledge is not None
    each = [sampler.encoding.params_at(point) for point in sampler.knowledge.portfolio]
    blank = View(space, [], [], 0)
    found = [drawn_by(sampler, blank, number) for number in range(8)]
    even = [dict(draw_evenly(blank, number, 0).params) for number in range(8)]
    assert found == [*each[:3], even[3], *each[4:7], even[7]]
    racer = sampler.draw(blank, 2, 0)
    assert racer is not None
    assert racer.sampler_state == RACES
    # What was refused or repeated is passed over, until none is left.
    assert drawn_by(sampler, blank, 2, attempt=4) == each[6]
    refused = Rejection(params={}, distributions={}, reason="too large")
    seen = replace(known_trials(space)[0], rejected_before=(refused,) * 5)
    assert drawn_by(sampler, View(space, [seen], [], 0), 1) == each[6]
    assert drawn_by(sampler, blank, 2, attempt=len(each) - 3) == each[-1]
    last = len(each) - 2
    assert drawn_by(sampler, blank, 2, attempt=last) == dict(draw_evenly(blank, 2, last).params)
    # Start configurations come first, and do not count as racers.
    started = replace(space, start=({"config.x": 0.5}, {"config.x": 0.6}))
    assert drawn_by(sampler, View(started, [], [], 0), 0, attempt=1) == each[1]
    assert drawn_by(sampler, View(started, [], [], 0), 8) == each[6]
    # Three results are needed to go on.
    assert drawn_by(sampler, blank, 8) == dict(draw_evenly(blank, 8, 0).params)


def test_after_the_race_the_portfolio_and_even_draws_take_turns_until_the_start_is_over() -> None:
    space = hills()
    sampler = knowing(space)
    assert sampler.knowledge is not None
    sampler.n_startup_trials = 20
    each = [sampler.encoding.params_at(point) for point in sampler.knowledge.portfolio]
    view = View(space, known_trials(space), [], 0)
    assert drawn_by(sampler, view, 13) == each[13]
    assert drawn_by(sampler, view, 14) == dict(draw_evenly(view, 14, 0).params)
    assert drawn_by(sampler, view, 13, attempt=2) == each[15]
    assert drawn_by(sampler, view, 19) == each[19]
    assert drawn_by(sampler, view, 21) != each[21]
    # Start configurations make the beginning longer.
    started = View(replace(space, start=({"config.x": 0.5},) * 2), view.trials, [], 0)
    assert drawn_by(sampler, started, 21) == each[21]
    # A study that misleads has no say.
    opposite = View(space, known_trials(space, sign=-1), [], 0)
    assert drawn_by(sampler, opposite, 13) == dict(draw_evenly(opposite, 13, 0).params)


def test_of_many_trials_the_best_and_some_others_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = [(-27, float(place), 100 - place) for place in range(50)]
    rng = np.random.default_rng(0)
    monkeypatch.setattr("imgcls_search.strategy.curves.MOST_TRIALS", 20)
    few = _few(ordered, rng)
    assert few == sorted(few, key=lambda standing: standing[-1])
    assert len(set(few)) == 20
    assert set(ordered[:10]) < set(few)
    assert len(set(few) & set(ordered[30:])) > 2
    assert set(_few(ordered[:20], rng)) == set(ordered[:20])


def test_open_trial_stands_where_it_was_judged_and_an_ended_one_where_it_last_had_a_value() -> None:
    assert _sort_key(trial(1, 0.1, 0.2, 0.3, state="running", judged=2), 1, 9) == (-2, -0.2, 1)
    assert _sort_key(trial(1, 0.1, 0.2, 0.3, state="running", judged=0), 1, 9) is None
    assert _sort_key(trial(1, 0.1, 0.2, 0.3, state="pruned", judged=1), -1, 9) == (-3, 0.3, 1)
    assert _sort_key(trial(1, 0.1, float("nan"), state="pruned"), 1, 9) is None
    assert _sort_key(trial(1, state="fail"), 1, 9) is None


def test_objective_that_no_epoch_measures_is_learned_from_complete_trials() -> None:
    done, going = trial(1, 0.1, 0.2, state="complete"), trial(2, 0.1, state="running")
    for each in (done, going):
        each.metric = "latency_ms"
    done.values = (3.0,)
    assert _sort_key(done, -1, 9) == (-9, 3.0, 1)
    assert _sort_key(going, -1, 9) is None


class Sized:
    """Curves that do not matter."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        return {"accuracy": 0.5}


class Small(dict[TrialConfig, Mapping[str, float]]):
    """Sizes that are least at one value of a setting."""

    def __bool__(self) -> bool:
        return True

    def get(self, config: TrialConfig, default: Any = None) -> Any:
        return {**default, "params": abs(config.section("config")["x"] - 0.7)}


def test_curves_finds_the_smallest_if_the_objective_is_a_size() -> None:
    study = "study: {name: x, trials: 40, sampler: curves, pruner: none, objectives: {params: minimize}}"
    wanted = parse(study + TEXT.replace("27", "2"), table_catalog(), source="x")
    outcome, _ = replay(wanted, Sized(), sizes=Small({}))
    found = [each.first_value for each in outcome.record.trials]
    # Even draws, a third of all, are 0.3 away on average.
    assert np.median(found[20:]) < 0.05


class Compared:
    """Draws with a sampler that remembers, and holds it to one that sees the search for the first time."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.remembers = self.fresh()
        self.draws = 0

    def fresh(self) -> CurveSampler:
        return CurveSampler(self.space, epochs=27, n_startup_trials=5, random_share=0.1)

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        found, again = (sampler.draw(view, number, attempt) for sampler in (self.remembers, self.fresh()))
        assert found == again
        self.draws += 1
        return found


def test_what_curves_remembers_is_no_more_than_what_the_trials_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls_search.strategy.curves.MOST_TRIALS", 30)
    wanted = parse("study: {trials: 80, max_epochs: 700, pruner: asha}" + TEXT, table_catalog(), source="x")
    sampler = Compared(wanted)
    replay(wanted, Hill(), sampler=sampler, workers=3)
    assert sampler.draws >= 75


class Renumbered:
    """Draws as if others had put trials into the study between its own, and compares."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.plain, self.with_gaps = (
            CurveSampler(space, epochs=27, n_startup_trials=5, random_share=0.1) for _ in range(2)
        )
        self.draws = 0

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        trials = [replace(trial, number=2 * trial.number + 3) for trial in view.trials]
        moved = View(view.space, trials, view.rejections, view.seed)
        found = self.plain.draw(view, number, attempt)
        assert self.with_gaps.draw(moved, number, attempt) == found
        self.draws += 1
        return found


def test_trials_of_others_between_its_own_change_no_draw() -> None:
    wanted = parse("study: {trials: 40, max_epochs: 400, pruner: asha}" + TEXT, table_catalog(), source="x")
    sampler = Renumbered(wanted)
    replay(wanted, Hill(), sampler=sampler, workers=1)
    assert sampler.draws >= 20


def test_every_fourth_trial_passes_over_the_first_rung() -> None:
    brackets = PRUNERS["brackets"](epochs=52, sign=1)
    assert [brackets.milestone(trial(number, state="running")) for number in range(8)] == [2, 2, 2, 6, 2, 2, 2, 6]
    assert brackets.milestone(trial(3, *[0.5] * 6, state="running")) == 18


def points(count: int = 20) -> Points:
    rng = np.random.default_rng(0)
    rows = rng.random((count, 2))
    owners = np.arange(count, dtype=float)
    values = squash(np.sin(3 * rows[:, 0]))
    return Points(rows=rows, owners=owners, which=np.arange(count), times=times_of([27] * count, 27), values=values)


def test_fit_follows_the_gradient_of_its_density() -> None:
    loss = _Loss(points(), np.zeros(8), np.ones(8))
    theta = np.random.default_rng(1).normal(-0.5, 0.3, 8)
    assert check_grad(lambda t: loss(t)[0], lambda t: loss(t)[1], theta) < 1e-4 * np.abs(loss(theta)[1]).max()


def test_surrogate_knows_what_it_saw_and_doubts_what_it_did_not() -> None:
    given = points()
    surrogate = Surrogate(given, np.random.default_rng(0))
    means, near = surrogate.predict(given.rows, given.owners, 2.0)
    assert np.abs(means - given.values).max() < 0.3
    _, far = surrogate.predict(np.full((1, 2), 9.0), np.array([-1.0]), 2.0)
    assert far[0] > 2 * near.max()


@pytest.mark.parametrize(
    ("study", "startup"),
    [
        ("trials: 3", 5),
        ("trials: 12", 5),
        ("trials: 40", 13),
        ("trials: 500", 20),
        # A trial gets 2 + 4 / 3 + 12 / 9 + 9 / 27 = 5 epochs.
        ("trials: 500, max_epochs: 135", 9),
        ("trials: 500, max_epochs: 27", 5),
        ("trials: 500, max_epochs: 540", 20),
        ("trials: 500, max_epochs: 540, pruner: {asha: {min_epochs: 9}}", 12),
    ],
)
def test_default_is_curves_which_learns_from_a_third_of_the_trials_on(study: str, startup: int) -> None:
    space = parse(f"study: {{name: x, {study}}}" + TEXT, table_catalog(), source="x")
    sampler = build(SAMPLERS, space.sampler, space=space)
    assert isinstance(sampler, CurveSampler)
    assert sampler.n_startup_trials == startup
    assert space.pruner.name == "asha"
    several = "study: {name: x, objectives: {accuracy: maximize, params: minimize}}" + TEXT
    space = parse(several, table_catalog(), source="x")
    assert isinstance(build(SAMPLERS, space.sampler, space=space), OptunaSampler)


def test_several_objectives_are_refused() -> None:
    text = "study: {name: x, sampler: curves, objectives: {accuracy: maximize, params: minimize}}" + TEXT
    space = parse(text, table_catalog(), source="x")
    with pytest.raises(BuildError, match="handles one objective only"):
        build(SAMPLERS, space.sampler, space=space)


MIXED = """
study: {name: x}
config:
  x: {float: [0.0, 1.0]}
  y: {float: [0.001, 1.0], log: true}
  steps: {float: [0.1, 0.5], step: 0.1}
  whole: {int: [3, 9], step: 2}
  plain: {int: [0, 4]}
  counts: {int: [1, 500], log: true}
  kind: {choice: [true, 2, a, [1, 2]]}
  same: {int: [4, 4]}
training: {epochs: 27}
"""


@pytest.mark.parametrize(
    "space",
    [parse(MIXED, table_catalog(), source="x"), read_space(Path(__file__).parents[2] / "spaces/mixed.yaml", catalog())],
    ids=["all kinds", "branches"],
)
def test_points_tell_the_configurations_that_they_stand_for(space: Space) -> None:
    encoding = Encoding(space)
    drawn = [draw_random(View(space, [], [], 0), number, 0) for number in range(300)]
    points = np.array([encoding.point(candidate.params) for candidate in drawn])
    for candidate, point in zip(drawn, points, strict=True):
        assert encoding.params_at(point) == pytest.approx(dict(candidate.params))
    untouched = points.copy()
    encoding.reach(points)
    assert np.array_equal(points, untouched, equal_nan=True)
    rows = encoding.rows_at(points)
    assert len(np.unique(rows.round(9), axis=0)) == len({candidate.config for candidate in drawn})
    assert rows.min() >= 0
    assert 0.99 < rows.max() < 1 + 1e-9
    # Anywhere in the cube a point stands for what its row says: the row of the values themselves.
    anywhere = np.random.default_rng(1).random((300, len(encoding.parameters)))
    encoding.reach(anywhere)
    several = [encoding.params_at(point) for point in anywhere]
    assert np.allclose(encoding.rows_at(anywhere), encoding.rows(several))
    for params in several:
        assert fixed_candidate(View(space, [], [], 0), params).params == params
