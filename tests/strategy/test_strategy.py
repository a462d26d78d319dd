"""Pruners and proposals on trials made by hand."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import Component, TrialConfig
from imgcls_search.errors import BuildError, NoResultError
from imgcls_search.signature import build
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_evenly, draw_random
from imgcls_search.strategy.encoding import value_at
from imgcls_search.strategy.propose import MeasureSizes, Proposal, Proposer
from imgcls_search.strategy.pruners import PRUNERS, make_pruner
from imgcls_search.strategy.rungs import Brackets, Pruner, Rungs, expected_epochs
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.strategy.view import Ended, View
from imgcls_search.trial import Candidate, Rejection, Trial
from scipy.stats import qmc

CONFIG = TrialConfig.from_dict({"model": {"lenet5": {}}})


def trial(number: int, *accuracies: float, state: str = "pruned", judged: int | None = None) -> Trial:
    epochs = [{"epoch": float(n), "accuracy": value, "seconds": 1.0} for n, value in enumerate(accuracies, start=1)]
    made = Trial(
        number=number,
        candidate=Candidate(params={"x": number}, distributions={}, config=CONFIG),
        seed=number,
        sizes={"params": 1},
        metric="accuracy",
        state=state,  # type: ignore[arg-type]
        epochs=epochs,
    )
    made.judged = len(epochs) if judged is None else judged
    return made


def milestones(pruner: Pruner, epochs: int) -> list[int]:
    found, current = [], trial(0, state="running")
    while current.epoch < epochs:
        until = pruner.milestone(current)
        current = trial(0, *[0.5] * until, state="running")
        found.append(until)
    return found


@pytest.mark.parametrize(
    ("name", "arguments", "epochs", "expected"),
    [
        ("none", {}, 15, [15]),
        ("halving", {}, 15, [2, 6, 15]),
        ("halving", {}, 100, [8, 24, 72, 100]),
        ("halving", {}, 3, [2, 3]),
        ("halving", {}, 1, [1]),
        ("halving", {"min_epochs": 1, "eta": 2}, 8, [1, 2, 4, 8]),
        ("asha", {"min_epochs": 3, "eta": 3}, 27, [3, 9, 27]),
        ("asha", {}, 200, [7, 21, 63, 189, 200]),
        ("asha", {}, 52, [2, 6, 18, 52]),
        ("asha", {}, 8, [2, 6, 8]),
        ("asha", {}, 2, [2]),
        ("asha", {"eta": 2}, 30, [4, 8, 16, 30]),
        ("median", {"n_warmup_epochs": 2, "interval": 3}, 10, [3, 6, 9, 10]),
        ("percentile", {}, 3, [1, 2, 3]),
    ],
)
def test_milestones(name: str, arguments: dict[str, int], epochs: int, expected: list[int]) -> None:
    assert milestones(PRUNERS[name](epochs=epochs, sign=1, **arguments), epochs) == expected


def test_first_rung_of_halving_is_five_to_ten_percent_and_at_least_two() -> None:
    for epochs in range(20, 400):
        first = milestones(PRUNERS["halving"](epochs=epochs, sign=1), epochs)[0]
        assert first == 2 or 0.05 <= first / epochs <= 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_halving_decides_as_optuna_does(sign: int) -> None:
    # Optuna's own pruner, asked in the same order, is the reference: one rung at epoch 2, values without ties.
    direction = "maximize" if sign == 1 else "minimize"
    reference = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    study = optuna.create_study(direction=direction, pruner=reference)
    ours = PRUNERS["halving"](epochs=5, sign=sign, min_epochs=2, eta=3)
    seen: list[Trial] = []
    for number, value in enumerate(np.random.default_rng(0).random(60)):
        asked = study.ask()
        asked.report(float(value), 2)
        current = trial(number, 0.0, float(value), state="running", judged=0)
        decision = ours.judge(current, [*seen, current])
        assert (decision == "prune") == asked.should_prune()
        seen.append(trial(number, 0.0, float(value)))
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("percentile", [10.0, 25.0, 50.0, 80.0])
def test_percentile_decides_as_optuna_does(percentile: float, sign: int) -> None:
    reference = optuna.pruners.PercentilePruner(percentile, n_startup_trials=3)
    study = optuna.create_study(direction="maximize" if sign == 1 else "minimize", pruner=reference)
    ours = PRUNERS["percentile"](epochs=4, sign=sign, percentile=percentile, n_startup_trials=3)
    if percentile == 50:
        assert ours == PRUNERS["median"](epochs=4, sign=sign, n_startup_trials=3)
    random = np.random.default_rng(1)
    seen: list[Trial] = []
    decisions = []
    for number in range(40):
        asked, values, pruned = study.ask(), [], False
        for epoch, value in enumerate(random.random(4), start=1):
            values.append(float(value))
            asked.report(float(value), epoch)
            if epoch < 4:
                decision = ours.judge(trial(number, *values, state="running", judged=0), seen)
                assert (decision == "prune") == asked.should_prune()
                pruned = decision == "prune"
            if pruned:
                break
        decisions.append(pruned)
        seen.append(trial(number, *values, state="pruned" if pruned else "complete"))
        state = optuna.trial.TrialState.PRUNED if pruned else None
        study.tell(asked, None if pruned else values[-1], state=state)
    # The smaller the share that counts as good, the more are pruned.
    assert 0.3 * (100 - percentile) < 100 * sum(decisions) / len(decisions) < 98


def test_asha_promotes_the_best_of_the_highest_rung_that_may_pass_one() -> None:
    asha = PRUNERS["asha"](epochs=9, sign=1, min_epochs=1, eta=3)
    assert asha.judge(trial(0, 0.9, state="running", judged=0), []) == "pause"
    low = [trial(n, value, state="paused") for n, value in enumerate((0.1, 0.5))]
    assert asha.promote(low) is None
    three = [*low, trial(2, 0.3, state="paused")]
    promoted = asha.promote(three)
    assert promoted is three[1]
    # Once it is under way again it keeps its place among the leaders, and nobody else passes.
    three[1].state = "running"
    assert asha.promote(three) is None
    upper = [trial(n, 0.1 * n, 0.2, 0.1 * n, state="paused") for n in range(3, 6)]
    assert asha.promote([*low, *upper]) is upper[2]


def promoted_by_definition(trials: list[Trial], eta: int, sign: int) -> Trial | None:
    """Asynchronous successive halving (Li et al. 2018, algorithm 2) as it is written, over all trials each time."""
    for rung in sorted({t.epoch for t in trials if t.state == "paused"}, reverse=True):
        reached = [t for t in trials if t.epoch >= rung]
        there = [t for t in reached if t.judged >= rung or t.state not in ("running", "paused")]
        values = {t.number: t.epochs[rung - 1]["accuracy"] for t in there}
        order = sorted(values, key=lambda n: (np.isnan(values[n]), -sign * values[n], n))
        for number in order[: len(order) // eta]:
            if trials[number].state == "paused" and trials[number].epoch == rung:
                return trials[number]
    return None


@pytest.mark.parametrize(("sign", "eta", "seed"), [(1, 3, 0), (-1, 3, 1), (1, 2, 2), (-1, 4, 3), (1, 3, 4)])
def test_asha_promotes_whom_the_definition_names_however_a_search_goes(sign: int, eta: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    arguments = {"epochs": 27, "sign": sign, "min_epochs": 1, "eta": eta}
    asha, trials, on_workers = PRUNERS["brackets"](**arguments), [], []
    promotions = 0
    for _ in range(600):
        chosen = asha.promote(trials)
        assert chosen is promoted_by_definition(trials, eta, sign)
        # As after a restart.
        assert chosen is PRUNERS["brackets"](**arguments).promote(trials)
        if chosen is None:
            chosen = trial(len(trials), state="running")
            trials.append(chosen)
            # A start configuration trains straight to its end.
            chosen.until = 27 if random.random() < 0.1 else asha.milestone(chosen)
        else:
            promotions += 1
            chosen.state, chosen.until = "running", asha.milestone(chosen)
        on_workers.append(chosen)
        while len(on_workers) > random.integers(4):
            worked = on_workers.pop(int(random.integers(len(on_workers))))
            dies = random.random() < 0.1
            for epoch in range(worked.epoch + 1, worked.until + (0 if dies else 1)):
                # Of few values some are equal; one has no order.
                value = float("nan") if random.random() < 0.02 else float(random.integers(20))
                worked.epochs.append({"epoch": float(epoch), "accuracy": value, "seconds": 1.0})
            if dies or worked.epoch == 27:
                worked.state = "fail" if dies else "complete"
            else:
                worked.judged, worked.state = worked.epoch, "paused"
        resting = [t for t in trials if t.state == "paused"]
        if resting and random.random() < 0.05:
            # Somebody ends it in the dashboard, or its checkpoint was deleted.
            resting[int(random.integers(len(resting)))].state = "pruned"
    assert promotions > 50
    assert {t.state for t in trials} >= {"complete", "paused", "fail", "pruned"}


def test_hyperband_brackets_start_at_different_rungs() -> None:
    hyperband = PRUNERS["hyperband"](epochs=18, sign=1, min_epochs=2, eta=3)
    firsts = [hyperband.milestone(trial(number, state="running")) for number in range(13)]
    assert set(firsts) == {2, 6, 18}
    assert firsts.count(2) == 9
    assert firsts.count(6) == 3


def space(text: str) -> Space:
    return parse(text, catalog(), source="test.yaml")


WIDE = """
model:
  lenet5: {width: {choice: [0.5, 1, 2]}, activation: {choice: [relu, tanh]}}
  resnet: {depths: {choice: [[1], [1, 1]]}, width: {int: [8, 32], log: true}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}, weight_decay: {float: [0.0, 0.3], step: 0.1}}}
"""


def waited(answer: Callable[[TrialConfig], dict[str, float] | str]) -> MeasureSizes:
    """Answer as the helper process does: not at once."""

    def measure_sizes(config: TrialConfig) -> Generator[None, None, dict[str, float] | str]:
        yield
        return answer(config)

    return measure_sizes


def following(proposer: Proposer, trials: list[Trial]) -> Proposal | None:
    """Return the next proposal, or None at the end of the space."""
    return next((proposal for proposal in proposer.proposals(trials) if proposal is not None), None)


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2", "qmc"])
def test_proposals_are_new_fit_the_space_and_repeat_after_a_restart(name: str) -> None:
    wide = space(WIDE + f"study: {{sampler: {name}, seed: 3}}")
    found: list[list[Trial]] = []
    for _ in range(2):
        trials: list[Trial] = []
        for number in range(25):
            # A new proposer each time, as after a restart.
            proposer = Proposer(
                wide, build(SAMPLERS, wide.sampler, space=wide), 3, waited(lambda config: {"params": 1})
            )
            proposal = following(proposer, trials)
            assert proposal is not None
            assert wide.config_of(proposal.candidate.params) == proposal.candidate.config
            done = trial(number, 0.1, 0.2 + number % 7 / 10, state="complete")
            done.candidate, done.values = proposal.candidate, (done.epochs[-1]["accuracy"],)
            trials.append(done)
        found.append(trials)
    first, second = ([t.candidate.config for t in trials] for trials in found)
    assert first == second
    assert len(set(first)) == 25


def test_proposal_is_the_same_however_far_the_last_trial_is() -> None:
    wide = space(WIDE + "study: {sampler: {tpe: {n_startup_trials: 2}}}")
    proposer = Proposer(wide, build(SAMPLERS, wide.sampler, space=wide), 0, waited(lambda config: {"params": 1}))
    trials: list[Trial] = []
    for number in range(6):
        proposal = following(proposer, trials)
        assert proposal is not None
        done = trial(number, 0.1, number / 10, state="complete")
        done.candidate, done.values = proposal.candidate, (number / 10,)
        trials.append(done)
    proposals = []
    for state, epochs in (("running", []), ("running", [0.1]), ("paused", [0.1]), ("complete", [0.1, 0.9])):
        last = trial(5, *epochs, state=state)
        last.candidate, last.values = trials[-1].candidate, (0.9,) if state == "complete" else None
        proposals.append(following(proposer, [*trials[:-1], last]))
    assert proposals.count(proposals[0]) == 4
    # An earlier trial does count.
    trials[1].values = (0.99,)
    assert following(proposer, trials) != proposals[0]


def test_qmc_fills_each_choice_evenly() -> None:
    wide = space(WIDE)
    sobol = build(SAMPLERS, parse(WIDE + "study: {sampler: qmc}", catalog(), source="x").sampler, space=wide)
    trials: list[Trial] = []
    for number in range(64):
        done = trial(number, 0.1)
        done.candidate = sobol.draw(View(wide, trials, [], 0), number, 0)
        trials.append(done)
    assert sum(t.candidate.params["model"] == "vit" for t in trials) == 0
    assert 31 <= sum(t.candidate.params["model"] == "resnet" for t in trials) <= 33


def test_qmc_counts_rejected_and_repeated_draws_so_that_no_point_comes_twice() -> None:
    wide = space(WIDE)
    parameters = wide.parameters()
    # scipy's own sequence, of which each draw takes the next point.
    points = qmc.Sobol(d=len(parameters), rng=7).random(16)
    trials: list[Trial] = []
    seen: list[int] = []
    for number, (rejected, attempt) in enumerate([(0, 0), (2, 0), (0, 1), (1, 2), (0, 0)]):
        index = number + attempt + sum(len(done.rejected_before) for done in trials)
        view = View(wide, trials, [], 7)
        candidate = draw_evenly(view, number, attempt)
        expected = {p.path: value_at(p, float(u)) for p, u in zip(parameters, points[index], strict=True)}
        assert dict(candidate.params) == {path: expected[path] for path in candidate.params}
        seen.append(index)
        done = trial(number, 0.1)
        done.candidate = candidate
        again = Rejection(params=candidate.params, distributions=candidate.distributions, reason="too large")
        done.rejected_before = (again,) * rejected
        trials.append(done)
    assert seen == [0, 1, 5, 7, 7]


def test_rejected_candidates_are_kept_and_counted_and_the_next_fits() -> None:
    wide = space(WIDE)
    proposer = Proposer(
        wide,
        build(SAMPLERS, wide.sampler, space=wide),
        0,
        waited(lambda config: {"params": 1} if config.component("model").name == "resnet" else "limits.params: over 5"),
    )
    proposals = [following(proposer, []) for _ in range(3)]
    assert proposals[0] == proposals[1] == proposals[2]
    rejected = 0
    trials: list[Trial] = []
    for number in range(12):
        proposal = following(proposer, trials)
        assert proposal is not None
        assert proposal.candidate.params["model"] == "resnet"
        rejected += len(proposal.rejections)
        done = trial(number, 0.5, state="complete")
        done.candidate, done.values, done.rejected_before = proposal.candidate, (0.5,), proposal.rejections
        trials.append(done)
    assert rejected > 0


def test_space_without_a_fit_ends_with_the_numbers() -> None:
    wide = space(WIDE)
    proposer = Proposer(wide, build(SAMPLERS, wide.sampler, space=wide), 0, waited(lambda config: "too large"))
    with pytest.raises(
        NoResultError, match="only 0 of 200 configurations that were drawn can be trials: 200 x too large"
    ):
        following(proposer, [])


def test_space_in_which_nearly_nothing_fits_is_given_up_with_the_numbers() -> None:
    wide = space(WIDE + "study: {sampler: random}")
    calls = 0

    def measure_sizes(config: TrialConfig) -> dict[str, float] | str:
        nonlocal calls
        calls += 1
        return {"params": 1} if calls % 120 == 0 else "limits.macs: over 5"

    proposer = Proposer(wide, build(SAMPLERS, wide.sampler, space=wide), 0, waited(measure_sizes))
    proposal = following(proposer, [])
    assert proposal is not None
    done = trial(0, 0.5, state="complete")
    done.candidate, done.values, done.rejected_before = proposal.candidate, (0.5,), proposal.rejections
    with pytest.raises(NoResultError, match=r"only 1 of 200 configurations .*: 199 x limits\.macs: over 5"):
        following(proposer, [done])


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ("grid", "study.sampler.grid: needs a finite space; without an end: optimizer.adamw.lr"),
        ("gp", "study.sampler.gp: does not model conditional parameters"),
        ("cmaes", "study.sampler.cmaes: does not model conditional parameters"),
    ],
)
def test_sampler_that_would_quietly_degrade_is_refused(sampler: str, said: str) -> None:
    wide = space(WIDE + f"study: {{sampler: {sampler}}}")
    with pytest.raises(BuildError, match=said):
        build(SAMPLERS, wide.sampler, space=wide)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("random", optuna.samplers.RandomSampler),
        ("tpe", optuna.samplers.TPESampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
    ],
)
def test_a_view_that_shares_ended_trials_draws_as_a_plain_study_does(
    name: str, reference: Callable[..., optuna.samplers.BaseSampler]
) -> None:
    space = parse(
        "model: {lenet5: {width: {float: [0.5, 2]}}}\n"
        "optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}, sgd: {momentum: {float: [0, 0.9]}}}\n",
        catalog(),
        source="space.yaml",
    )
    sampler = build(SAMPLERS, Component(path=f"sampler.{name}", name=name, args={}), space=space)
    ended: Ended = {}
    trials: list[Trial] = []
    # Beyond the first population of nsga2.
    for number in range(60):
        view = View(space, trials, [], 7, ended)
        drawn = sampler.draw(view, number, 0)
        assert drawn is not None
        plain = optuna.create_study(direction="maximize", sampler=reference(seed=view.derive(number, 0)))
        for past in trials:
            plain.add_trial(
                optuna.trial.create_trial(
                    params=dict(past.candidate.params),
                    distributions=dict(past.candidate.distributions),
                    system_attrs=dict(past.candidate.sampler_state),
                    values=list(past.values or ()),
                )
            )
        asked = plain.ask()
        space.sample(asked)
        assert drawn.params == asked.params
        made = trial(number, 0.1 * (number % 7), state="complete")
        made.candidate, made.values = drawn, (float(np.sin(number)),)
        trials.append(made)


@pytest.mark.parametrize(
    ("text", "folds", "rungs"),
    [
        ({"asha": {"min_epochs": 3, "eta": 3}}, 5, (3, 9, 30)),
        ({"halving": {"min_epochs": 15, "eta": 2}}, 5, (15, 30, 60)),
        ({"asha": {"min_epochs": 3, "eta": 3}}, 1, (3, 9)),
    ],
)
def test_rungs_beyond_the_first_fold_are_at_the_end_of_one(
    text: dict[str, dict[str, int]], folds: int, rungs: tuple[int, ...]
) -> None:
    tree = {"training": {"epochs": 15}, "data": {"digits": {"folds": folds if folds > 1 else None}}}
    component = TrialConfig.from_dict({"pruner": text}).component("pruner")
    found = make_pruner(component, TrialConfig.from_dict(tree), 1)
    assert isinstance(found, Rungs)
    assert (found.rungs, found.epochs) == (rungs, 15 * folds)
    brackets = TrialConfig.from_dict({"pruner": {"hyperband": {"min_epochs": 3, "eta": 3}}}).component("pruner")
    each = make_pruner(brackets, TrialConfig.from_dict(tree), 1)
    assert isinstance(each, Brackets)
    assert all(rung <= 15 or rung % 15 == 0 for bracket in each.brackets for rung in bracket.rungs)


def test_of_equal_values_at_a_rung_more_pass_than_one_in_eta() -> None:
    halving = PRUNERS["halving"](epochs=9, sign=1, min_epochs=1, eta=3)
    seen = [trial(number, 0.5) for number in range(6)]
    assert halving.judge(trial(9, 0.5, state="running", judged=0), seen) == "continue"
    # Itself included there are six, of which two pass; of five it is one.
    one_better = [*seen[:4], trial(6, 0.6)]
    assert halving.judge(trial(9, 0.5, state="running", judged=0), one_better) == "continue"
    assert halving.judge(trial(9, 0.5, state="running", judged=0), one_better[1:]) == "prune"


@pytest.mark.parametrize(("name", "bar"), [("median", 0.5), ("percentile", 0.75)])
def test_nothing_is_compared_before_five_complete_trials_unless_set_otherwise(name: str, bar: float) -> None:
    pruner = PRUNERS[name](epochs=3, sign=1)
    done = [trial(number, 0.25 * number, state="complete") for number in range(5)]
    assert pruner.judge(trial(9, 0.0, state="running", judged=0), done[1:]) == "continue"
    assert pruner.judge(trial(9, bar, state="running", judged=0), done) == "continue"
    assert pruner.judge(trial(9, bar - 0.01, state="running", judged=0), done) == "prune"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", 27),
        ("halving", 2 + 4 / 3 + 12 / 9 + 9 / 27),
        # One in four skips the first rung: 6 + 12 / 3 + 9 / 9.
        ("brackets", (3 * (2 + 4 / 3 + 12 / 9 + 9 / 27) + 11) / 4),
        # Nine turns from epoch 2, three from 6, and one from 18: 18 + 9 / 3.
        ("hyperband", (9 * (2 + 4 / 3 + 12 / 9 + 9 / 27) + 3 * 11 + 21) / 13),
    ],
)
def test_expected_epochs_are_those_of_trials_of_which_one_in_eta_passes(name: str, expected: float) -> None:
    arguments = {} if name == "none" else {"min_epochs": 2, "eta": 3}
    pruner = PRUNERS[name](epochs=27, sign=1, **arguments)
    assert expected_epochs(pruner, 27) == pytest.approx(expected)
    # Of rungs beyond the epochs that count, none.
    if name == "halving":
        assert expected_epochs(pruner, 4) == pytest.approx(2 + 2 / 3)


def test_hyperband_judges_each_trial_among_those_of_its_own_turn() -> None:
    hyperband = PRUNERS["hyperband"](epochs=18, sign=1, min_epochs=6, eta=3)
    # Turns of four: three from epoch 6, one from 18.
    assert [hyperband.milestone(trial(number, state="running")) for number in range(4)] == [6, 6, 6, 18]
    good = [trial(number, *[0.9] * 6) for number in (3, 7, 11)]
    worse = [trial(number, *[0.1] * 6) for number in (0, 1, 2)]
    mine = trial(4, *[0.5] * 6, state="running", judged=0)
    assert hyperband.judge(mine, [*good, *worse]) == "continue"
    assert hyperband.judge(mine, [replace(each, number=each.number - 3) for each in good]) == "prune"


NUMBERS = """
model: {lenet5: {}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}, weight_decay: {float: [0.0, 0.3]}}}
training: {epochs: 3}
"""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", ["gp", "cmaes"])
def test_samplers_of_numbers_draw_as_those_of_optuna_do(name: str) -> None:
    numbers = space(NUMBERS)
    sampler = build(SAMPLERS, Component(path=f"sampler.{name}", name=name, args={}), space=numbers)
    make: Callable[[int], optuna.samplers.BaseSampler] = {
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=10),
        "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1, consider_pruned_trials=True),
    }[name]
    trials: list[Trial] = []
    for number in range(11):
        view = View(numbers, trials, [], 7)
        drawn = sampler.draw(view, number, 0)
        assert drawn is not None
        plain = view.study(make(view.derive(number, 0)))
        asked = plain.ask()
        numbers.sample(asked)
        assert drawn.params == asked.params
        # Beyond the random ones it depends on what was seen, with `cmaes` on pruned trials too.
        is_pruned = name == "cmaes" and number % 3 == 0
        made = trial(number, float(np.sin(number)), state="pruned" if is_pruned else "complete")
        made.candidate, made.values = drawn, None if is_pruned else (float(np.sin(number)),)
        trials.append(made)


def test_sampler_sees_of_a_trial_what_it_was_last_judged_by() -> None:
    from optuna.trial import TrialState

    numbers = space(NUMBERS)
    begun, judged, paused = (
        trial(0, 0.1, 0.2, state="running", judged=0),
        trial(1, 0.1, 0.2, 0.3, state="running", judged=2),
        trial(2, 0.1, 0.2, state="paused"),
    )
    failed, done = trial(3, 0.4, 0.3, state="fail"), trial(4, 0.1, 0.8, state="complete")
    done.values, done.constraints = (0.8,), {"limits.size_kb": 2.0}
    trials = [begun, judged, paused, failed, done]
    for each in trials:
        each.candidate = replace(each.candidate, params={})
    rejected = Rejection(params={}, distributions={}, reason="too large")
    trials[1].rejected_before = (rejected,)
    shown = View(numbers, trials, [rejected], 0).study(optuna.samplers.RandomSampler()).get_trials()
    assert [each.state for each in shown] == [
        *[TrialState.PRUNED] * 2,
        TrialState.RUNNING,
        *[TrialState.PRUNED] * 3,
        TrialState.COMPLETE,
    ]
    assert [each.intermediate_values for each in shown] == [{}, {}, {}, {2: 0.2}, {2: 0.2}, {2: 0.3}, {}]
    assert shown[-1].values == [0.8]
    # With several objectives an early epoch compares with nothing.
    several = space(NUMBERS + "study: {objectives: {accuracy: maximize, params: minimize}}")
    (seen,) = View(several, [paused], [], 0).study(optuna.samplers.RandomSampler()).get_trials()
    assert (seen.state, seen.intermediate_values) == (TrialState.PRUNED, {})


def test_every_second_trial_of_a_study_that_grew_tries_a_new_value_three_times() -> None:
    wide = space(WIDE + "study: {sampler: random}")
    novel = [("model.resnet.depths", "[1, 1]"), ("model", "gone"), ("gone", 1)]
    proposer = Proposer(
        wide, build(SAMPLERS, wide.sampler, space=wide), 5, waited(lambda _: {"params": 1}), novel=novel
    )
    assert proposer.novel == [{"model": "resnet", "model.resnet.depths": "[1, 1]"}]

    def is_new(made: Trial) -> bool:
        return bool(made.candidate.params.get("model.resnet.depths") == "[1, 1]")

    trials: list[Trial] = []
    asked: list[int] = []
    for number in range(14):
        tried = sum(map(is_new, trials))
        found = following(proposer, trials)
        assert found is not None
        trials.append(replace(trial(number, 0.5), candidate=found.candidate))
        if number % 2 and tried < 3:
            asked.append(number)
            assert is_new(trials[-1])
    assert asked[0] == 1
    # What was refused counts as tried too.
    refused = Rejection(params=proposer.novel[0], distributions={}, reason="too large")
    empty = [replace(trial(0, 0.5), candidate=next(t.candidate for t in trials if not is_new(t)))]
    assert proposer._untried(View(wide, empty, [refused] * 2, 5)) == proposer.novel[0]
    assert proposer._untried(View(wide, empty, [refused] * 3, 5)) is None


class Stuck:
    """Draws the same configuration again and again."""

    def __init__(self) -> None:
        self.draws = 0

    def draw(self, view: View, number: int, attempt: int) -> Candidate | None:
        self.draws += 1
        return draw_random(View(view.space, [], [], 0), 0, 0)


@pytest.mark.parametrize("text", [WIDE, WIDE.replace("{float: [1e-4, 1e-2], log: true}", "1e-3")])
def test_sampler_that_repeats_itself_is_asked_twenty_times(text: str) -> None:
    wide, sampler = space(text), Stuck()
    proposer = Proposer(wide, sampler, 0, waited(lambda _: {"params": 1}))
    first = following(proposer, [])
    assert first is not None
    done = replace(trial(0, 0.5, state="complete"), candidate=first.candidate)
    sampler.draws = 0
    second = following(proposer, [done])
    assert second is not None
    assert second.candidate.config != first.candidate.config
    assert sampler.draws == 20


def test_search_goes_on_where_one_draw_in_forty_is_valid() -> None:
    wide = space(WIDE + "study: {sampler: random}")
    calls = 0

    def measure_sizes(config: TrialConfig) -> dict[str, float] | str:
        nonlocal calls
        calls += 1
        return {"params": 1} if calls % 40 == 0 else "limits.macs: over 5"

    proposer = Proposer(wide, build(SAMPLERS, wide.sampler, space=wide), 0, waited(measure_sizes))
    trials: list[Trial] = []
    for number in range(7):
        found = following(proposer, trials)
        assert found is not None
        assert len(found.rejections) == 39
        trials.append(replace(trial(number, 0.5), candidate=found.candidate, rejected_before=found.rejections))
    # It draws 40 for each of seven trials, more than the 200 from which the share counts.
    assert calls == 280


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {lenet5: {width: {choice: [0.5, 1]}}}\n", "handles numbers only, got choices: model.lenet5.width"),
        (
            "model: {lenet5: {width: {float: [0.5, 1]}}}\nstudy: {objectives: {loss: minimize, params: minimize}}\n",
            "handles one objective only",
        ),
    ],
)
def test_cmaes_refuses_choices_and_several_objectives(text: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        build(SAMPLERS, Component(path="study.sampler.cmaes", name="cmaes", args={}), space=space(text))
