"""A study as one page that opens anywhere, without a network or a script."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import StudyDirection

from imgcls_search import atomic, durations
from imgcls_search.confidence import share_interval
from imgcls_search.errors import NoResultError, SearchError, StudyError, writing
from imgcls_search.jobs.confirm import optimism_of_each
from imgcls_search.jobs.export import find_trial
from imgcls_search.measures import command_for, main_measure, share_of_images
from imgcls_search.rounding import gained, measured, share, spread, without_long_numbers
from imgcls_search.space import differences
from imgcls_search.study import best
from imgcls_search.study.activity import shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load
from imgcls_search.study.summary import summarise
from imgcls_search.trial import MEASURED, SIZES, Trial
from imgcls_search.views.browse import family_of, row_of
from imgcls_search.views.mistakes import mistakes_of
from imgcls_search.worker import figures

TOP_CURVES, TOP_ROWS, MOST_COLUMNS = 5, 20, 9


Step = Callable[[str, int, int], None]
"""Takes the work that begins, its number, and how many steps there are."""

STEPS = 6


def write_report(
    files: StudyFiles, output: Path, trial: int | None = None, step: Step = lambda what, number, of: None
) -> int:
    """Write the page and return its size in bytes.

    It is about the trial of that number; by default about the best, with several objectives about the trial of the
    front that is best in the first one.

    Raises:
        StudyError: there is no such study.
        NoResultError: no trial is complete and feasible.
        UserError: the file cannot be written.
    """
    step("reading the study", 1, STEPS)
    record = load(files)
    front = best.front(record)
    winner = front[0] if trial is None else find_trial(record, trial)
    if winner.state != "complete":
        state = shown_state(winner, record)
        raise StudyError(f"trial {trial} of study {files.name!r} is {state}; allowed: a complete one")
    facts = _facts(record, winner, front)
    step(f"measuring trial {winner.number} on the validation images", 2, STEPS)
    about = _winner(record, winner, files)
    sections = _sections(record, winner, step)
    step(f"writing {output}", 6, STEPS)
    page = _render({**facts, **about, "sections": sections})
    with writing(output):
        atomic.write_text(output, page)
    return output.stat().st_size


def _render(values: Mapping[str, Any]) -> str:
    text = (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(
        measured=measured, share=share, spread=spread, optimism_of_each=optimism_of_each, duration=durations.show
    )
    return environment.from_string(text).render(values)


def _facts(record: Record, winner: Trial, front: Sequence[Trial]) -> dict[str, Any]:
    found = summarise(record)
    data = record.fact("data")
    right = share_of_images(winner.epochs[-1]) if winner.epochs else ""
    accuracy = winner.epochs[-1].get(right) if winner.epochs else None
    count = record.val_images or 0
    return {
        "study": found["study"],
        "objectives": [f"{direction} {metric}" for metric, direction in record.objectives],
        "how_known": {metric: _how_known(metric, len(data.get("folds", []))) for metric, _ in record.objectives},
        "stands": found["stands"],
        "after": command_for(record.objectives[0][0], "best.yaml"),
        "counts": found["trials"],
        "epochs": found["epochs"],
        "seconds": found["training_seconds"],
        "images": ", ".join(f"{number:,} {split} images" for split, number in data["images"].items()),
        "classes": len(data["classes"]),
        "fingerprint": data["fingerprint"],
        "versions": record.facts.get("versions", {}),
        "confirmed": record.facts.get("confirmed"),
        "val_images": count,
        "interval_of": right,
        "interval": share_interval(accuracy, count) if accuracy is not None and count else None,
        "rejected": found["rejected"],
        "failures": Counter(failure["reason"] for failure in found["failures"]).most_common(),
        "best": row_of(winner, record),
        "front": [trial.number for trial in front] if len(front) > 1 else [],
        "top": [row_of(trial, record) for trial in best.ranked(record)[:TOP_ROWS]],
    }


def _how_known(metric: str, folds: int) -> str:
    """Return where the value of an objective is from, in a few words."""
    if metric in SIZES:
        return "known before training"
    how = f"cross-validation in {folds} folds" if folds else "validation split"
    return "of the exported network" if metric in MEASURED else f"{how}, searched"


def _winner(record: Record, winner: Trial, files: StudyFiles) -> dict[str, Any]:
    first = record.trials[0]
    has_start = bool(record.fact("space").get("start"))
    what = "the first known-good setting" if has_start else "the first trial, as the space has no start setting"
    shown = (
        f"{winner.metric} {measured(winner.metric, first.value_at(first.last_shown), record.val_images)} "
        f"at epoch {first.last_shown}"
        if first.last_shown
        else first.state
    )
    changed = differences(first.candidate.config.to_dict(), winner.candidate.config.to_dict())
    try:
        if winner.candidate.config.is_pretraining:
            raise NoResultError("it was pretrained, and classifies nothing yet")
        mistakes, why = mistakes_of(winner, files), ""
    except SearchError as error:
        mistakes, why = None, f"The weights of trial {winner.number} could not be looked at: {error}"
    return {
        "mistakes": mistakes,
        "why_no_mistakes": why,
        "baseline": f"Against trial {first.number}, {what} ({shown}).",
        "changed": [without_long_numbers(str(change)) for change in changed] or ["nothing: it is the winner"],
        "ablation": _ablation(record, winner),
    }


def _ablation(record: Record, winner: Trial) -> dict[str, Any] | None:
    """Return what each step to the winner brought, None where that was not measured for this winner."""
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
    return {**found, "rows": rows, "svg": figures.to_svg(figures.path(bands, found["metric"]), "ablation")}


def _sections(record: Record, winner: Trial, step: Step) -> list[dict[str, Any]]:
    drawn = itertools.count()

    def picture(figure: Any, caption: str) -> dict[str, str]:
        return {"svg": figures.to_svg(figure, f"p{next(drawn)}"), "caption": caption}

    done = [trial for trial in record.trials if trial.state == "complete" and trial.is_feasible]
    metric, direction = record.objectives[0]
    columns = _columns(done)
    scores = [_value(trial) for trial in done]
    step("finding what mattered", 3, STEPS)
    importance, why = _importances(record)
    step("drawing the search", 4, STEPS)
    sections = [
        _section("The search", [picture(*pair) for pair in _progress(record, done, direction)]),
        _section(
            "Learning curves",
            [picture(_curves(record), "The best trials above the faint curves of all others, pruned ones too")],
        ),
        _section("Size against score", [picture(*pair) for pair in _sizes(done, record)]),
    ]
    if winner.candidate.config.is_pretraining:
        drawn_health = picture(figures.health(winner.epochs), f"What the epochs of trial {winner.number} measured")
        sections.insert(2, _section("Health of the pretraining", [drawn_health], wide=True))
    if len(record.objectives) > 1:
        sections.append(_section("Pareto front", [picture(*_front(record, winner, done))]))
    bars = []
    if importance:
        caption = f"Of {metric}, by fANOVA on the complete trials"
        bars = [picture(figures.bars(importance, "share of the variation explained"), caption)]
    sections.append(_section("What mattered", bars, text=why))
    step("drawing the settings", 5, STEPS)
    if columns and len(done) > 1:
        lines = picture(
            figures.parallel(dict(list(columns.items())[:MOST_COLUMNS]), scores, metric),
            f"Complete trials, coloured by {metric}",
        )
        sections.append(_section("Settings side by side", [lines], wide=True))
        sections.append(
            _section(
                "Score by setting",
                [
                    picture(
                        figures.slices(_slices(columns, scores, done), metric),
                        f"{metric} against each setting; on the left axis in every row",
                    )
                ],
                wide=True,
            )
        )
    return sections


def _section(
    title: str, pictures: Sequence[Mapping[str, str]], *, text: str = "", wide: bool = False
) -> dict[str, Any]:
    return {"title": title, "figures": pictures, "text": text, "wide": wide}


_UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1))


def _value(trial: Trial) -> float:
    assert trial.values is not None
    return trial.values[0]


def _progress(record: Record, done: Sequence[Trial], direction: str) -> list[tuple[Any, str]]:
    """Return the best so far against the epochs trained and the seconds of training, in the order of trials."""
    found = []
    better = max if direction == "maximize" else min
    numbers = {trial.number for trial in done}
    seconds = sum(epoch["seconds"] for trial in record.trials for epoch in trial.epochs)
    unit, size = next(((name, size) for name, size in _UNITS if seconds >= 2 * size), _UNITS[-1])
    for axis, cost in (
        ("epochs trained", lambda t: t.epoch),
        (f"{unit} of training, all workers", lambda t: sum(e["seconds"] for e in t.epochs) / size),
    ):
        spent = list(itertools.accumulate(cost(trial) for trial in record.trials))  # type: ignore[no-untyped-call]
        xs = [total for trial, total in zip(record.trials, spent, strict=True) if trial.number in numbers]
        ys = [_value(trial) for trial in done]
        found.append(
            (
                figures.steps(xs, list(itertools.accumulate(ys, better)), (xs, ys), axis, record.objectives[0][0]),
                f"Best so far against {axis}",
            )
        )
    return found


def _curves(record: Record) -> Any:
    metric = record.objectives[0][0]
    first = record.trials[0].epochs
    name = metric if not first or metric in first[-1] else main_measure(first[-1])
    top = best.ranked(record)[:TOP_CURVES]
    others = [trial for trial in record.trials if trial not in top]
    lines = [(f"trial {trial.number}", [epoch[name] for epoch in trial.epochs]) for trial in top]
    return figures.curves(lines, [[epoch[name] for epoch in trial.epochs] for trial in others if trial.epochs], name)


def _sizes(done: Sequence[Trial], record: Record) -> list[tuple[Any, str]]:
    metric = record.objectives[0][0]
    found = []
    for name, label in (("params", "parameters"), ("macs", "MACs"), ("latency_ms", "latency, ms")):
        groups: dict[str, tuple[list[float], list[float]]] = {}
        for trial in done:
            measured = {**trial.sizes, **trial.scores.get(trial.epoch, {})}
            if name in measured:
                xs, ys = groups.setdefault(family_of(trial), ([], []))
                xs.append(measured[name])
                ys.append(_value(trial))
        if groups:
            found.append((figures.scatter(groups, label, metric, log=True), f"{label} against {metric}, by family"))
    return found


def _front(record: Record, winner: Trial, done: Sequence[Trial]) -> tuple[Any, str]:
    front = best.front(record)
    groups = {}
    for name, trials in (
        ("other complete trials", [t for t in done if t not in front]),
        ("Pareto front", front),
        ("this page", [winner]),
    ):
        pairs = [(trial.values or ())[:2] for trial in trials]
        groups[name] = ([pair[1] for pair in pairs], [pair[0] for pair in pairs])
    (first, _), (second, _) = record.objectives[:2]
    return figures.scatter(
        groups, second, first, log=False
    ), f"Trials that no other beats in every objective; this page is about trial {winner.number}"


def _importances(record: Record) -> tuple[dict[str, float], str]:
    """Return the share that each parameter has in the spread of the first objective (fANOVA), or why there is none."""
    # Of what was loaded and looked at: trials of others tell nothing about this search.
    study = optuna.create_study(directions=[StudyDirection[way.upper()] for _, way in record.objectives])
    try:
        for trial in record.trials:
            if trial.state == "complete":
                params, domains = dict(trial.candidate.params), dict(trial.candidate.distributions)
                study.add_trial(optuna.create_trial(params=params, distributions=domains, values=trial.values))
        target = _first_value if len(record.objectives) > 1 else None
        with warnings.catch_warnings():
            # Few trials make them rough; that is plain from the number of trials on the page.
            warnings.simplefilter("ignore")
            importances: Any = optuna.importance.get_param_importances
            found = importances(study, evaluator=FanovaImportanceEvaluator(seed=0), target=target)
    except (ValueError, RuntimeError) as error:
        return {}, f"Importances cannot be told yet: {error}"
    if not found or sum(found.values()) == 0:
        return {}, "Importances cannot be told: the complete trials differ too little."
    return dict(list(found.items())[:12]), ""


def _first_value(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _columns(done: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the settings that vary among trials, one value a trial, None where a trial has none."""
    names = dict.fromkeys(name for trial in done for name in trial.candidate.params)
    columns = {name: [trial.candidate.params.get(name) for trial in done] for name in names}
    return {name: values for name, values in columns.items() if len({str(v) for v in values if v is not None}) > 1}


def _slices(columns: Mapping[str, Sequence[Any]], scores: Sequence[float], done: Sequence[Trial]) -> dict[str, Any]:
    found = {}
    for name, values in columns.items():
        kept = [(value, score) for value, score in zip(values, scores, strict=True) if value is not None]
        log = any(getattr(trial.candidate.distributions.get(name), "log", False) for trial in done)
        found[name] = ([value for value, _ in kept], [score for _, score in kept], log)
    return found
