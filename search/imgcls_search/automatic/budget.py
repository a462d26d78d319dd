"""Divide the remaining time between search, confirmation, bundle and report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from imgcls_search import durations
from imgcls_search.errors import NoResultError
from imgcls_search.executors.local import num_cores
from imgcls_search.jobs.report_effort import (
    CORRUPTED_MACS,
    CORRUPTED_VERSIONS,
    LEAST_CORRUPTED,
    MOST_CORRUPTED,
    SIMILAR_MACS,
)
from imgcls_search.study import best
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import AutoFact, Confirmation, ConfirmPlan
from imgcls_search.trial import Trial
from imgcls_search.words import counted

CHOICES = ((3, 3), (3, 2), (2, 2), (1, 2))
"""Trials and seeds of a confirmation; the first affordable pair is used."""

CONFIRM_SHARE = 0.25
"""Largest share of the total time to reserve for confirming."""

JOB_SECONDS = 1.5
"""Overhead of a training besides its epochs: loading images and weights, writing a checkpoint."""

START_SECONDS = 6.0
"""Overhead of confirming besides trainings and tests: starting processes, loading images and libraries."""

LEAST_SECONDS, SHARE_OF_DRAFT, MOST_SHARE = 8.0, 0.6, 1 / 6
"""Time to assume for bundle or report until one was measured: at least these seconds or this share of the draft's
time, which shows how busy the machine is; at most this share of the total time."""

MAP_PASSES = 500
"""Passes of the network that the maps of a report's mistakes take, an estimate."""

STOP_SECONDS = 3.0
"""Time between the end of the search and the next step: its running trials are saved."""

END_SECONDS = 3.0
"""Time to print the result and end the process."""

SAFETY = 1.3
"""Reserve this many times the expected time of a step."""


def closing_seconds(fact: AutoFact, record: Record | None = None, testing: float = 0.0) -> float:
    """Return the seconds to reserve for bundle, report and `testing` seconds of testing.

    With two or more cores, the bundle is written in parallel with the others.
    """
    others = _report_seconds(fact, record) + testing
    bundle = _bundle_seconds(fact, record)
    return end_seconds(fact) + SAFETY * (max(bundle, others) if num_cores() > 1 else bundle + others)


def end_seconds(fact: AutoFact) -> float:
    """Return the seconds that the end of the process needs."""
    return min(END_SECONDS, fact["given"] / 8)


def note_speeds(fact: AutoFact, speeds: Mapping[str, Mapping[str, float]]) -> None:
    """Store the seconds per multiply-accumulate of a prediction by a draft's slowest network."""
    fact["measured"] = {**fact.get("measured", {}), "mac": max(speed["predict"] for speed in speeds.values())}


def _report_seconds(fact: AutoFact, record: Record | None) -> float:
    """Estimate the seconds for the report: the measured ones, or pictures and the network's passes over images."""
    measured = fact.get("measured", {})
    if "report" in measured or record is None or "mac" not in measured:
        return measured.get("report", _assumed(fact))
    images, each = record.fact("data")["images"], _macs(record)
    macs = (images.get("val", 0) + MAP_PASSES) * each
    corrupted = CORRUPTED_VERSIONS * each
    macs += max(min(MOST_CORRUPTED * corrupted, CORRUPTED_MACS), LEAST_CORRUPTED * corrupted)
    # The features of a frozen network are stored; others are computed to find similar training images.
    configs = [trial.candidate.config.tree for trial in best.ranked(record)[:3]]
    if any(tree.get("finetune", {}).get("freeze") != "backbone" for tree in configs):
        macs += min(images.get("train", 0) * each, SIMILAR_MACS)
    return _assumed(fact) + macs * measured["mac"]


def _bundle_seconds(fact: AutoFact, record: Record | None) -> float:
    """Estimate the seconds to bundle one of the best trials: the measured bundle's, plus more for a larger network.

    A bundle predicts the validation images about twice: with its file and with torch.
    """
    measured = fact.get("measured", {}).get("bundle", _assumed(fact))
    if record is None or "baseline" not in fact:
        return measured
    first = fact["baseline"]["trial"]
    if first not in record.by_number or fact.get("bundled") != first:
        return measured
    known = record.by_number[first].sizes.get("macs", math.inf)
    more = max(0.0, _macs(record) - known)
    return measured + 2 * record.fact("data")["images"].get("val", 0) * more * _mac_seconds(record, fact)


def _macs(record: Record) -> float:
    """Return the multiply-accumulates of the most expensive of the best three trials."""
    return max((trial.sizes.get("macs", 0) for trial in best.ranked(record)[:3]), default=0)


def _mac_seconds(record: Record, fact: AutoFact) -> float:
    """Return the seconds per multiply-accumulate; without a measured draft, from half of a bundle's time."""
    measured = fact.get("measured", {})
    if "mac" in measured:
        return measured["mac"]
    images = record.fact("data")["images"].get("val", 0)
    return 0.5 * measured.get("bundle", _assumed(fact)) / max(1.0, 2 * images * _macs(record))


def _assumed(fact: AutoFact) -> float:
    """Return the seconds to assume for a step that was not measured yet."""
    draft = fact.get("spent", {}).get("init", 0.0)
    return min(MOST_SHARE * fact["given"], max(LEAST_SECONDS, SHARE_OF_DRAFT * draft))


def testing_seconds(record: Record, fact: AutoFact) -> float:
    """Return the seconds to score a network on the validation and test images."""
    images = record.fact("data")["images"]
    return 1.0 + (images.get("val", 0) + images.get("test", 0)) * _macs(record) * _mac_seconds(record, fact)


def confirm_seconds(trials: Sequence[Trial], seeds: int, workers: int, test: float) -> float:
    """Return the seconds to confirm the best of these trials."""
    # No call has had fewer workers, whatever a damaged account says.
    workers = max(1, workers)
    each = [sum(epoch["seconds"] for epoch in trial.epochs) + JOB_SECONDS for trial in trials]
    choosing = max(sum(each) * seeds / workers, math.ceil(len(each) * seeds / workers) * min(each))
    measuring = math.ceil(seeds / workers) * max(each)
    return START_SECONDS + SAFETY * (choosing + measuring) + seeds * test


def affordable(record: Record, fact: AutoFact, seconds: float) -> ConfirmPlan | None:
    """Return the best confirmation that fits into these seconds, None if none does."""
    order = best.ranked(record)
    test = testing_seconds(record, fact)
    for top, seeds in CHOICES:
        trials = order[:top]
        if len(trials) == top and confirm_seconds(trials, seeds, fact.get("workers", 1), test) <= seconds:
            return {"trials": [trial.number for trial in trials], "seeds": seeds}
    return None


def is_valid(plan: ConfirmPlan, ranking: Sequence[int]) -> bool:
    """Tell whether a plan is one of `affordable`, for the trials that are still the best ones."""
    return (len(plan["trials"]), plan["seeds"]) in CHOICES and _are_best(plan["trials"], ranking)


def is_confirmed(known: Confirmation, ranking: Sequence[int]) -> bool:
    """Tell whether a confirmation has chosen among the trials that are still the best ones."""
    trials = [entry["trial"] for entry in known["ranking"]]
    return known["chosen"] in trials and _are_best(trials, ranking)


def _are_best(trials: Sequence[int], ranking: Sequence[int]) -> bool:
    return sorted(trials) == sorted(ranking[: len(trials)])


def kept_seconds(record: Record, fact: AutoFact) -> float:
    """Return the seconds to reserve after the search: for confirming if it is affordable, bundle and report."""
    plan = affordable(record, fact, CONFIRM_SHARE * fact["given"])
    test = testing_seconds(record, fact)
    if plan is None:
        return closing_seconds(fact, record, test)
    trials = [record.by_number[number] for number in plan["trials"]]
    # Confirming includes the test. Without the seconds to stop, it would never be affordable afterwards.
    confirm = confirm_seconds(trials, plan["seeds"], fact.get("workers", 1), test)
    return STOP_SECONDS + closing_seconds(fact, record) + confirm


def too_short(fact: AutoFact, how_far: str) -> NoResultError:
    """Return the error for a time that was too short for a first score."""
    given = durations.show(fact["given"], exact=True)
    longer = durations.show(max(120.0, 3 * fact["given"]), exact=True).replace(" ", "")
    return NoResultError(
        f"{given} were not enough for a first score: {how_far}; run the same command with --time "
        f"{longer.replace('min', 'm')} to continue"
    )


def how_far(record: Record | None) -> str:
    """Return in words how far a search without a score came."""
    if record is None:
        return "the images were still being read"
    epochs = sum(trial.epoch for trial in record.trials)
    failed = [trial.reason for trial in record.trials if trial.state == "fail"]
    why = f" ({failed[0]})" if failed else ""
    return f"no trial is complete after {counted('epoch', epochs)} of {counted('trial', len(record.trials))}{why}"
