"""Write a report of a study as one page that needs neither a network nor scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from imgcls_search import atomic, durations
from imgcls_search.confidence import share_interval
from imgcls_search.errors import NoResultError, SearchError, StudyError, writing
from imgcls_search.jobs.confirm import optimism_of_each
from imgcls_search.jobs.export import chosen_trial
from imgcls_search.measures import of_features, retraining_command, share_of_images
from imgcls_search.progress import ShowStep
from imgcls_search.rounding import gained, measured, share, spread, without_long_numbers
from imgcls_search.space import differences
from imgcls_search.study import best
from imgcls_search.study.activity import shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load
from imgcls_search.study.summary import STATES, Summary, summarise
from imgcls_search.trial import Trial, can_be_confirmed
from imgcls_search.views.browse import row_of
from imgcls_search.views.closer import Close, Mistake, TrainingImages, look_closer
from imgcls_search.views.mistakes import EvaluatedTrial, WrongImage, look, mistakes_of
from imgcls_search.views.searching import how_it_went, what_mattered
from imgcls_search.views.sections import Section, Sketchbook
from imgcls_search.views.sureness import sureness, worse_pictures
from imgcls_search.views.verdict import cost, hours, interval_of_choice, verdict
from imgcls_search.words import counted, times
from imgcls_search.worker import figures

TOP_ROWS = 20
"""Most rows of a table: the best trials, or reasons of failures."""


STEPS = 6

REASONS_TO_BELIEVE: tuple[Callable[[EvaluatedTrial, Sketchbook], Section | None], ...] = (sureness, worse_pictures)
"""Sections below 'Why to believe it', from the winner's predictions on the validation images; None is left out."""


def write_report(
    files: StudyFiles, output: Path, trial: int | None = None, step: ShowStep = lambda what, number, of: None
) -> int:
    """Write the report and return its size in bytes.

    It is about the trial with this number, by default the confirmed or else the best one; with several objectives, the
    trial on the front that is best in the first objective.

    Raises:
        StudyError: there is no such study.
        NoResultError: no trial is complete and feasible.
        UserError: the file cannot be written.
    """
    step("reading the study", 1, STEPS)
    record = load(files)
    front = best.front(record)
    is_confirmed = record.facts.get("confirmed") is not None
    winner = front[0] if trial is None and not is_confirmed else chosen_trial(record, trial)
    if winner.state != "complete":
        state = shown_state(winner, record)
        raise StudyError(f"trial {winner.number} of study {files.name!r} is {state}; allowed: a complete one")
    book = Sketchbook()
    overview = _overview(record, winner, front)
    step(f"measuring trial {winner.number} on the validation images", 2, STEPS)
    about = _winner(record, winner, files, book)
    step("drawing the search", 3, STEPS)
    went = how_it_went(record, winner, files, book)
    step("finding what mattered", 4, STEPS)
    mattered = what_mattered(record, book)
    step("drawing the way to the winner", 5, STEPS)
    changes = _changes(record, winner, book)
    step(f"writing {output}", 6, STEPS)
    page = _render({**overview, **about, **changes, "sections": [*went, *mattered]})
    with writing(output):
        atomic.write_text(output, page)
    return output.stat().st_size


def _render(values: Mapping[str, Any]) -> str:
    text = (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(
        measured=measured,
        share=share,
        counted=counted,
        spread=spread,
        optimism_of_each=optimism_of_each,
        duration=durations.show,
        most_rows=TOP_ROWS,
        hours=hours,
    )
    return environment.from_string(text).render(values)


def _overview(record: Record, winner: Trial, front: Sequence[Trial]) -> dict[str, Any]:
    found = summarise(record)
    data = record.fact("data")
    right = share_of_images(winner.epochs[-1]) if winner.epochs else ""
    accuracy = winner.epochs[-1].get(right) if winner.epochs else None
    count = record.val_images or 0
    return {
        "study": found["study"],
        "argument": record.argument,
        "objectives": [f"{direction} {metric}" for metric, direction in record.objectives],
        "stands": found["stands"],
        "after": retraining_command("best.yaml", pretrains=of_features(record.objectives) is not None),
        "counts": found["trials"],
        "epochs": found["epochs"],
        "seconds": found["training_seconds"],
        "images": ", ".join(f"{number:,} {split} images" for split, number in data["images"].items()),
        "classes": len(data["classes"]),
        "fingerprint": data["fingerprint"],
        "versions": record.facts.get("versions", {}),
        "confirmed": record.facts.get("confirmed"),
        "can_be_confirmed": can_be_confirmed(record.objectives),
        "opened": times(len(record.facts.get("test_openings", []))),
        "val_images": count,
        "interval_of": right,
        "interval": share_interval(accuracy, count) if accuracy is not None and 0 <= accuracy <= 1 and count else None,
        "failures": _failures(found),
        "best": row_of(winner, record),
        "front": [trial.number for trial in front] if len(front) > 1 else [],
        "cost": cost(record, STATES),
        "top": [row_of(trial, record) for trial in best.ranked(record)[:TOP_ROWS]],
    }


def _failures(found: Summary) -> list[tuple[str, int]]:
    """Return the reasons of failures and rejections with the number of trials, the most frequent of each first."""
    failed = Counter(f"failed: {failure['reason']}" for failure in found["failures"])
    rejected = Counter({f"rejected before training: {reason}": count for reason, count in found["rejected"].items()})
    return [*failed.most_common(), *rejected.most_common()]


def _winner(record: Record, winner: Trial, files: StudyFiles, book: Sketchbook) -> dict[str, Any]:
    """Return the parts about the winner: the verdict, why to believe it, its mistakes."""
    try:
        if winner.candidate.config.is_pretraining:
            raise NoResultError("it was pretrained, and classifies nothing yet")
        looked, why = look(winner, files), ""
    except SearchError as error:
        looked, why = None, f"The weights of trial {winner.number} could not be looked at: {error}"
    found = None if looked is None else mistakes_of(looked, book)
    closer = None if looked is None or found is None else _look_closer(record, winner, looked, found.worst)
    reasons = () if looked is None else [reason(looked, book) for reason in REASONS_TO_BELIEVE]
    choice = interval_of_choice(record, looked)
    return {
        "verdict": verdict(record, winner, looked, None if found is None else found.confused, choice),
        "choice": choice,
        "reasons": [section for section in reasons if section is not None],
        "mistakes": found,
        "closer": closer,
        "why_no_mistakes": why,
    }


@dataclass(frozen=True, kw_only=True)
class _Closer:
    """A closer look at the most confident mistakes."""

    worst: list[tuple[WrongImage, Close]]
    has_maps: bool
    sampled: tuple[int, int]
    """Number of training images searched for similar ones, and number of all training images."""

    of_last_fold: bool
    """Whether only the images of the last fold could be explained."""


def _look_closer(record: Record, winner: Trial, looked: EvaluatedTrial, worst: Sequence[WrongImage]) -> _Closer:
    noted = {"root": record.facts.get("data_root"), "file": record.facts.get("data_file")}
    place = {name: value for name, value in noted.items() if isinstance(value, str)}
    chosen = [Mistake(place=item.place, target=item.target) for item in worst]
    among = TrainingImages(looked, winner.sizes["macs"])
    close = look_closer(looked, chosen, place, among)
    return _Closer(
        worst=list(zip(worst, close, strict=True)),
        has_maps=any(each.map for each in close),
        sampled=(len(among.items), among.count),
        of_last_fold=bool(looked.data.folds),
    )


def _changes(record: Record, winner: Trial, book: Sketchbook) -> dict[str, Any]:
    """Return the winner's changes from the first trial, and the gain of each if it was measured."""
    first = record.trials[0]
    has_start = bool(record.fact("space").get("start"))
    what = "the first start configuration" if has_start else "the first trial, as the space has no start configuration"
    shown = (
        f"{winner.metric} {measured(winner.metric, first.value_at(first.last_shown), record.val_images)} "
        f"at epoch {first.last_shown}"
        if first.last_shown
        else first.state
    )
    changed = differences(first.candidate.config.to_dict(), winner.candidate.config.to_dict())
    return {
        "baseline": f"Against trial {first.number}, {what} ({shown}).",
        "changed": [without_long_numbers(str(change)) for change in changed] or ["nothing: it is the winner"],
        "ablation": _ablation(record, winner, book),
    }


def _ablation(record: Record, winner: Trial, book: Sketchbook) -> dict[str, Any] | None:
    """Return the gain of each step to the winner, None if it was not measured for this winner."""
    found = record.facts.get("ablation")
    if found is None or found["winner"] != winner.number:
        return None
    rows: list[dict[str, Any]] = []
    bands: list[tuple[float, float]] = []
    before = None
    for step in found["steps"]:
        half = step["ci95"] if len(found["seeds"]) > 2 else None
        gain = "" if before is None else gained(found["metric"], step["mean"] - before, half, record.val_images)
        changes = [without_long_numbers(change) for change in step["changes"]]
        rows.append({**step, "changes": changes, "gain": gain})
        bands.append((step["mean"], half or 0.0))
        before = step["mean"]
    caption = f"{found['metric']} from trial {found['first']} to trial {found['winner']}"
    return {**found, "rows": rows, "picture": book.picture(figures.path(bands, found["metric"]), caption)}
