"""How the rest of the time is divided: what confirming costs, what must stay for bundle and report, and if none is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from imgcls_search import durations
from imgcls_search.errors import NoResultError
from imgcls_search.executors.local import num_cores
from imgcls_search.study import best
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import AutoFact, ConfirmPlan
from imgcls_search.trial import Trial
from imgcls_search.words import counted

CHOICES = ((3, 3), (3, 2), (2, 2), (1, 2))
"""Trials and seeds of a confirmation, the best affordable one first."""

CONFIRM_SHARE = 0.25
"""The largest part of all time that is kept for confirming."""

JOB_SECONDS = 1.5
"""What a training takes beside its epochs: images, weights, a checkpoint."""

START_SECONDS = 6.0
"""What confirming takes beside trainings and tests: processes, images, libraries."""

LEAST_SECONDS, SHARE_OF_DRAFT, MOST_SHARE = 8.0, 0.6, 1 / 6
"""Of bundle and page before one was measured: at least so long, or a share of what the draft took, which tells how
busy the machine is; at most a share of all time."""

END_SECONDS = 3.0
"""For what is printed at the end, and the end of the process."""

MOST_TIMES = 4.0
"""The longest testing, in those seconds of a bundle: of few validation images they say little."""

SAFETY = 1.3
"""Steps get this many times what they took before."""


def closing_seconds(fact: AutoFact, record: Record | None = None, testing: float = 0.0) -> float:
    """Return the seconds that bundle, page and so many seconds of testing need.

    Where there are two cores the bundle is written beside the others.
    """
    others = fact.get("measured", {}).get("report", _assumed(fact)) + testing
    bundle = sum(_bundle_seconds(fact, record))
    return end_seconds(fact) + SAFETY * (max(bundle, others) if num_cores() > 1 else bundle + others)


def end_seconds(fact: AutoFact) -> float:
    """Return the seconds that the end of the process needs."""
    return min(END_SECONDS, fact["given"] / 8)


def _bundle_seconds(fact: AutoFact, record: Record | None) -> tuple[float, float]:
    """Return how long the bundle of one of the best trials takes: the export, and running images through it."""
    measured: Mapping[str, float] = fact.get("measured", {})
    whole = measured.get("bundle", _assumed(fact))
    images = measured.get("bundle_images", whole / 2)
    return whole - images, images * (1.0 if record is None else _growth(record, fact))


def _growth(record: Record, fact: AutoFact) -> float:
    """Return how many times as many multiply-accumulates as the bundle that was measured one of the best trials has."""
    if "baseline" not in fact:
        return 1.0
    known = record.by_number[fact["baseline"]["trial"]].sizes.get("macs")
    if not known or fact.get("bundled") != fact["baseline"]["trial"]:
        return 1.0
    most = max((trial.sizes.get("macs", known) for trial in best.ranked(record)[:3]), default=known)
    return max(1.0, most / known)


def _assumed(fact: AutoFact) -> float:
    """Return the seconds of a step that was not measured yet."""
    draft = fact.get("spent", {}).get("init", 0.0)
    return min(MOST_SHARE * fact["given"], max(LEAST_SECONDS, SHARE_OF_DRAFT * draft))


def testing_seconds(record: Record, fact: AutoFact) -> float:
    """Return the seconds that a network needs for the validation and the test images, told from those of its bundle.

    A bundle runs the validation images through the exported file twice, which is about as long as once through torch.
    """
    images = record.fact("data")["images"]
    times = 1 + images.get("test", 0) / max(1, images.get("val", 1))
    return 1.0 + _bundle_seconds(fact, record)[1] * min(MOST_TIMES, times)


def confirm_seconds(trials: Sequence[Trial], seeds: int, workers: int, test: float) -> float:
    """Return what it takes to confirm the best of some trials."""
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


def kept_seconds(record: Record, fact: AutoFact) -> float:
    """Return the seconds at the end that are not the search's: for confirming as far as that fits, bundle, report."""
    plan = affordable(record, fact, CONFIRM_SHARE * fact["given"])
    if plan is None:
        return closing_seconds(fact, record, testing_seconds(record, fact))
    trials = [record.by_number[number] for number in plan["trials"]]
    test = testing_seconds(record, fact)
    # Confirming opens the test split itself, in its own time.
    return closing_seconds(fact, record) + confirm_seconds(trials, plan["seeds"], fact.get("workers", 1), test)


def too_short(fact: AutoFact, how_far: str) -> NoResultError:
    """Return the error of a time in which no score was reached."""
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
