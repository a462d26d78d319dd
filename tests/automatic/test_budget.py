"""How the rest of the time is divided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from imgcls_search.automatic import budget
from imgcls_search.data.corruptions import CORRUPTIONS, SEVERITIES
from imgcls_search.jobs import report_effort
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import AutoFact

from tests.strategy.test_strategy import trial


def record_of(*scores: float, seconds: float) -> Record:
    trials = [trial(number, score, score, state="complete") for number, score in enumerate(scores)]
    for made, score in zip(trials, scores, strict=True):
        made.values = (score,)
        for epoch in made.epochs:
            epoch["seconds"] = seconds
    return cast(
        Record,
        SimpleNamespace(
            trials=trials,
            by_number={made.number: made for made in trials},
            objectives=(("accuracy", "maximize"),),
            fact=lambda name: {"images": {"train": 100, "val": 50, "test": 100}},
        ),
    )


FACT: AutoFact = {"given": 600.0, "spent": {}, "workers": 2, "measured": {"bundle": 10.0, "report": 5.0}}


def test_time_of_a_report_grows_with_the_passes_of_the_network() -> None:
    unmeasured: AutoFact = {"given": 600.0, "spent": {"init": 20.0}, "workers": 2, "measured": {"mac": 1e-9}}
    record = record_of(0.5, 0.6, seconds=1.0)
    times = []
    for macs in (0, 10_000_000, 10_000_000_000):
        for made in record.trials:
            made.sizes["macs"] = macs
        times.append(budget._report_seconds(unmeasured, record))
    versions = len(CORRUPTIONS) * len(SEVERITIES)
    most, least = versions * report_effort.MOST_CORRUPTED, versions * report_effort.LEAST_CORRUPTED
    assert times[1] - times[0] == pytest.approx((50 + budget.MAP_PASSES + most + 100) * 0.01)
    # Of large networks, fewer images are corrupted, and not all training images are compared.
    rest = 1e-9 * report_effort.SIMILAR_MACS
    assert times[2] - times[0] == pytest.approx((50 + budget.MAP_PASSES + least) * 10 + rest)
    # Where no draft has timed a network, the time of a bundle says little about it.
    assert budget._report_seconds({**unmeasured, "measured": {}}, record) == pytest.approx(times[0])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1000.0, (3, 3)), (0.0, None), (12.0, None)],
)
def test_confirmation_is_what_fits(seconds: float, expected: tuple[int, int] | None) -> None:
    plan = budget.affordable(record_of(0.5, 0.9, 0.7, 0.8, seconds=2.0), FACT, seconds)
    assert (plan is None) if expected is None else plan == {"trials": [1, 3, 2], "seeds": 3}


def test_damaged_plans_and_confirmations_do_not_count() -> None:
    trials = record_of(0.5, 0.9, seconds=2.0).trials
    assert budget.confirm_seconds(trials, 2, 0, 0.0) == budget.confirm_seconds(trials, 2, 1, 0.0)
    assert budget.is_valid({"trials": [3, 1], "seeds": 2}, [1, 3, 2])
    for trials_of, seeds in (([], 2), ([1, 3], 0), ([1, 2], 2)):
        assert not budget.is_valid({"trials": trials_of, "seeds": seeds}, [1, 3, 2])
    confirmed: Any = {"ranking": [{"trial": 3}, {"trial": 1}], "chosen": 3}
    assert budget.is_confirmed(confirmed, [1, 3, 2])
    assert not budget.is_confirmed({**confirmed, "chosen": 2}, [1, 3, 2])
    assert not budget.is_confirmed({**confirmed, "ranking": []}, [1, 3, 2])


def test_less_time_means_fewer_seeds_and_trials_and_never_more_than_it() -> None:
    record = record_of(0.5, 0.9, 0.7, 0.8, seconds=20.0)
    seen = []
    for seconds in range(0, 1500, 10):
        plan = budget.affordable(record, FACT, seconds)
        if plan is not None:
            chosen = [record.by_number[number] for number in plan["trials"]]
            assert budget.confirm_seconds(chosen, plan["seeds"], 2, budget.testing_seconds(record, FACT)) <= seconds
            seen.append((len(chosen), plan["seeds"]))
    assert list(dict.fromkeys(seen)) == [(1, 2), (2, 2), (3, 2), (3, 3)]


def test_one_trial_is_confirmed_alone() -> None:
    plan = budget.affordable(record_of(0.5, seconds=1.0), FACT, 1000.0)
    assert plan == {"trials": [0], "seeds": 2}


def test_what_is_kept_grows_with_the_confirmation_up_to_its_share() -> None:
    short, long = (budget.kept_seconds(record_of(0.5, 0.6, 0.7, seconds=each), FACT) for each in (1.0, 1000.0))
    closing = budget.closing_seconds(FACT, testing=budget.testing_seconds(record_of(0.5, seconds=1.0), FACT))
    assert closing < short <= closing + budget.CONFIRM_SHARE * FACT["given"] + budget.STOP_SECONDS
    # What can never be confirmed keeps no time.
    assert long == closing


@pytest.mark.parametrize(("cores", "expected"), [(1, 15.0), (2, 10.0)])
def test_measured_steps_count_for_what_they_took(cores: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundle and page are written at the same time where there are cores for both."""
    monkeypatch.setattr(budget, "num_cores", lambda: cores)
    unmeasured: Any = {"given": 60.0, "spent": {}}
    assert budget.closing_seconds(unmeasured) < 0.5 * 60
    assert budget.closing_seconds(FACT) == pytest.approx(budget.END_SECONDS + budget.SAFETY * expected)


def test_a_larger_network_than_the_first_one_s_takes_longer_to_bundle_and_to_test() -> None:
    record = record_of(0.5, 0.9, seconds=1.0)
    for made, macs in zip(record.trials, (1e8, 4e8), strict=True):
        made.sizes["macs"] = macs
    fact: AutoFact = {**FACT, "baseline": {"trial": 0, "seconds": 1.0}, "bundled": 0}
    budget.note_speeds(fact, {"fast": {"predict": 1e-11}, "slow": {"predict": 1e-10}})
    assert fact["measured"] == {"bundle": 10.0, "report": 5.0, "mac": 1e-10}
    # 150 images to test by, and 2 x 50 that a bundle looks at.
    assert budget.testing_seconds(record, fact) == pytest.approx(1.0 + 150 * 0.04)
    bundle = (budget.closing_seconds(fact, record) - budget.END_SECONDS) / budget.SAFETY
    assert bundle == pytest.approx(10.0 + 100 * 0.03)
    # Of a bundle that is the winner's own all is known.
    known = (budget.closing_seconds({**fact, "bundled": 1}, record) - budget.END_SECONDS) / budget.SAFETY
    assert known == pytest.approx(10.0)
    # Without a draft of its own half of what a bundle took tells.
    unknown: AutoFact = {**fact, "measured": {"bundle": 10.0}}
    assert budget.testing_seconds(record, unknown) == pytest.approx(1.0 + 150 * 5.0 / 100)


def test_without_a_complete_trial_nothing_is_confirmed() -> None:
    assert budget.affordable(record_of(seconds=1.0), FACT, 100.0) is None


def test_test_split_is_paid_for_once() -> None:
    record = record_of(0.5, 0.6, 0.7, seconds=1.0)
    plan = budget.affordable(record, FACT, budget.CONFIRM_SHARE * FACT["given"])
    assert plan is not None
    chosen = [record.by_number[number] for number in plan["trials"]]
    confirming = budget.confirm_seconds(chosen, plan["seeds"], 2, budget.testing_seconds(record, FACT))
    kept = budget.kept_seconds(record, FACT)
    assert kept == pytest.approx(budget.STOP_SECONDS + budget.closing_seconds(FACT, record) + confirming)
    # What the search leaves is enough for that very plan, although stopping the search takes a moment.
    left = kept - 0.9 * budget.STOP_SECONDS
    assert budget.affordable(record, FACT, left - budget.closing_seconds(FACT, record)) == plan
