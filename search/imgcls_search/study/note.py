"""The note that optuna-dashboard shows beside a study: what was searched, on which images, and the best trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from imgcls_search import digests, rounding
from imgcls_search.study.activity import Activity, activity_of
from imgcls_search.study.holder import Holder
from imgcls_search.study.record import Record
from imgcls_search.study.rows import Rows
from imgcls_search.study.summary import summarise
from imgcls_search.study.usage import usage_lines

PART = 2045
"""Characters per attribute: optuna-dashboard splits a note into parts of this size."""

VERSION, PREFIX = "dashboard:note_ver", "dashboard:note_str:"
DIGEST = "imgcls_search:note_digest"
"""Key of the digest of the text that we wrote last; it reveals changes by a person."""

MOST_SHOWN = 20

_ASK = " (`imgcls-search status` tells whether it still is)"
"""Needed because a killed process cannot update the note."""


_METRIC_NAMES = "study:metric_names"
"""The key that `optuna.Study.set_metric_names` uses."""


def name_metrics(record: Record) -> None:
    """Name the objectives if they have no names: older versions named them only if there were several."""
    rows = record.rows
    assert isinstance(rows, Rows)
    if _METRIC_NAMES not in rows.read_system_facts():
        rows.set_system_facts({_METRIC_NAMES: [metric for metric, _ in record.objectives]})


def write_note(record: Record, holder: Holder | None = None) -> None:
    """Update the note in one transaction, unless a person has written or changed it.

    `holder` is the process that works on the study from now on, None if there is none.

    The attributes are those of `optuna_dashboard.save_note`, which would import scikit-learn.
    """
    rows = record.rows
    assert isinstance(rows, Rows)
    known = rows.read_system_facts()
    num_parts = sum(key.startswith(PREFIX) for key in known)
    # A part that is missing or not a string was changed by someone else.
    old = "".join(str(known.get(f"{PREFIX}{number}", "")) for number in range(num_parts))
    text = note_text(record, holder)
    if text == old or (old and _digest(old) != known.get(DIGEST)):
        return
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    # Empty the parts that are no longer needed, as the dashboard does.
    parts += [""] * (num_parts - len(parts))
    written = {f"{PREFIX}{number}": part for number, part in enumerate(parts)}
    version = known.get(VERSION)
    rows.set_system_facts({VERSION: version + 1 if type(version) is int else 1, DIGEST: _digest(text), **written})


def note_text(record: Record, holder: Holder | None) -> str:
    """Return the text of the note while `holder`, or nobody, works on the study."""
    return "\n".join(_lines(record, activity_of(record, holder))) + "\n"


def is_ours(text: str, record: Record) -> bool:
    """Tell whether a note is unchanged since we wrote it.

    Raises:
        StudyError: the database cannot be read.
    """
    assert isinstance(record.rows, Rows)
    return _digest(text) == record.rows.read_system_facts().get(DIGEST)


def _digest(text: str) -> str:
    return digests.of_text(text)[:16]


def _lines(record: Record, now: Activity) -> Iterator[str]:
    found, data = summarise(record, now), record.fact("data")
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    states = ", ".join(f"{count} {state}" for state, count in found["trials"].items() if state != "total" and count)
    yield f"**Images**: {images}; {len(data['classes'])} classes; fingerprint `{data['fingerprint']}`\n"
    yield f"**State**: {now}{_ASK if now.state == 'running' else ''}\n"
    yield f"**Trials**: {found['trials']['total']} ({states or 'none'}), {found['epochs']:,} epochs\n"
    if lines := usage_lines(found["usage"]):
        yield f"**Cost**: {'; '.join(lines)}\n"
    yield from _best(record, found)
    yield "**Searched**\n"
    yield from _parameters(record)
    yield "\n*Written by imgcls-search when a run begins and ends; once you change it, it is left as it is.*"


def _best(record: Record, found: Mapping[str, Any]) -> Iterator[str]:
    objectives = ", ".join(f"{direction} {metric}" for metric, direction in record.objectives)
    which = "Best" if len(record.objectives) == 1 else "Pareto front"
    yield f"**{which}** ({objectives})\n"
    if not found["best"]:
        yield "no complete trial within the limits yet\n"
        return
    for entry in found["best"][:MOST_SHOWN]:
        values = rounding.pairs(entry["values"], record.val_images)
        yield f"- trial {entry['trial']}: {values}; {entry['sizes']['params']:,.0f} parameters"
    if len(found["best"]) > MOST_SHOWN:
        yield f"- and {len(found['best']) - MOST_SHOWN} more"
    confirmed = record.facts.get("confirmed")
    if confirmed is None:
        yield f"\nNot confirmed: scores are {record.where_scored} and partly luck.\n"
    else:
        found, metric = confirmed["confirmed"], confirmed["metric"]
        scores = rounding.spread(
            metric, confirmed.get("scores", []), found["mean"], found.get("ci95"), record.val_images
        )
        yield f"\nConfirmed: trial {confirmed['chosen']}, {metric} {scores}.\n"


def _parameters(record: Record) -> Iterator[str]:
    ranges: dict[str, BaseDistribution] = {}
    for trial in record.trials:
        ranges |= trial.candidate.distributions
    for name, distribution in sorted(ranges.items()):
        # Between backticks nothing is markup but a backtick.
        yield f"- `{name}`: `{_range(distribution).replace('`', chr(39))}`"


def _range(distribution: BaseDistribution) -> str:
    match distribution:
        case CategoricalDistribution():
            return ", ".join(str(choice) for choice in distribution.choices)
        case FloatDistribution() | IntDistribution():
            return f"{distribution.low:g} to {distribution.high:g}" + (", log" if distribution.log else "")
    return str(distribution)
