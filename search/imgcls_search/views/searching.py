"""The part of a report about the search: its progress, trade-offs, and important settings."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import StudyDirection

from imgcls_search.measures import main_measure
from imgcls_search.orchestrator.backbones import BackboneStore
from imgcls_search.study import best
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.trial import Trial
from imgcls_search.views.browse import family_of
from imgcls_search.views.front import draw_pair, is_log
from imgcls_search.views.sections import Section, Sketchbook
from imgcls_search.words import counted
from imgcls_search.worker import drawing, figures

TOP_CURVES, MOST_COLUMNS, MOST_BARS, MOST_PRETRAININGS = 5, 9, 12, 4

KEY = re.compile("[0-9a-f]+")
"""The name of a pretrained network; any other is damage, and no path."""

LEAST_TRIALS, TRIALS_PER_SETTING = 20, 5
"""Fewest complete trials for importances: in total, and per setting that varies."""

LEAST_EXPLAINED = 0.1
"""Least R² on held-out trials to show importances: fANOVA would also attribute chance to settings."""

MOST_FITTED = 400
"""Most trials for importances; of more, use about this many at equal distances: thousands take fANOVA minutes."""

_UNITS = (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1))


def how_it_went(record: Record, winner: Trial, files: StudyFiles, book: Sketchbook) -> list[Section]:
    """Return sections with the best so far, curves, pretrainings, and the front, or one cost against the score."""
    done = best.feasible(record)
    curves = book.picture(_curves(record), "Learning curves: the best trials, and faintly all others, pruned ones too")
    pictures = [book.picture(*_progress(record, done)), curves]
    if len(record.objectives) == 1 and (found := _cost(done, record)) is not None:
        pictures.append(book.picture(*found))
    sections = [Section(title="The search", pictures=pictures)]
    health = [book.picture(*found) for found in _health(record, winner, files)]
    if health:
        sections.append(Section(title="Health of the pretraining", pictures=health))
    if len(record.objectives) > 1:
        sections.append(Section(title="Pareto front", pictures=[book.picture(*_front(record, winner))]))
    return sections


def what_mattered(record: Record, book: Sketchbook) -> list[Section]:
    """Return importances, if there are enough trials, and the score by each setting."""
    done = best.feasible(record)
    columns = _columns(done)
    metric = record.objectives[0][0]
    importance, text = _importances(record, len(columns))
    bars = []
    if importance:
        bars = [book.picture(figures.bars(importance, "share of the variation explained"), f"Of {metric}, by fANOVA")]
    sections = [Section(title="What mattered", text=text, pictures=bars)]
    if columns and len(done) > 1:
        names = sorted(columns, key=lambda name: -importance.get(name, 0.0))[:MOST_COLUMNS]
        scores = [trial.first_value for trial in done]
        slices = _slices({name: columns[name] for name in names}, scores, done)
        drawn = [
            book.picture(figures.slices({name: column}, metric, across=1), f"{metric} by {name}")
            for name, column in slices.items()
        ]
        left_out = f" {counted('more setting', len(columns) - len(names))} varied." if len(columns) > len(names) else ""
        text = f"A point is a complete trial.{left_out}"
        sections.append(Section(title="Score by setting", text=text, pictures=drawn, is_dense=True))
    return sections


def _health(record: Record, winner: Trial, files: StudyFiles) -> Iterator[tuple[Any, str]]:
    """Yield pictures of the winner's epochs if it is a pretraining, else of pretrainings that trials started from."""
    from imgcls_search.worker.pretraining import epochs_of_pretraining

    config = winner.candidate.config
    if config.is_pretraining:
        yield figures.health(winner.epochs), f"What the epochs of trial {winner.number} measured"
        return
    own = (config.component("model").name, config.component("pretrain").name) if config.needs_backbone else None
    known = [each for each in record.facts.get("backbones", {}).items() if KEY.fullmatch(each[0])]
    known.sort(key=lambda each: (each[1].get("model"), each[1].get("pretrain")) != own)
    store, shown = BackboneStore(files.root), 0
    for key, fact in known:
        epochs = epochs_of_pretraining([str(store.path(key))])
        if epochs and shown < MOST_PRETRAININGS:
            shown += 1
            held = f", fold {fact['fold'] + 1} held out" if "fold" in fact else ""
            what = f"{fact.get('model', 'network')} ({fact.get('pretrain', 'pretrained')}{held})"
            yield figures.health(epochs), f"What the epochs of the pretraining of {what} measured"


def _progress(record: Record, done: Sequence[Trial]) -> tuple[Any, str]:
    """Return the best so far against the training time, or against epochs if no time was recorded."""
    metric, direction = record.objectives[0]
    better = max if direction == "maximize" else min
    numbers = {trial.number for trial in done}
    costs = [sum(epoch.get("seconds", 0.0) for epoch in trial.epochs) for trial in record.trials]
    unit, size = next(((name, size) for name, size in _UNITS if sum(costs) >= 2 * size), _UNITS[-1])
    axis = f"{unit} of training, all workers"
    if not sum(costs):
        costs, size, axis = [float(trial.epoch) for trial in record.trials], 1, "epochs trained"
    spent = [total / size for total in itertools.accumulate(costs)]
    xs = [total for trial, total in zip(record.trials, spent, strict=True) if trial.number in numbers]
    ys = [trial.first_value for trial in done]
    figure = figures.steps(xs, list(itertools.accumulate(ys, better)), (xs, ys), axis, metric)
    return figure, f"Best {metric} so far against {axis}, in the order of trials"


def _curves(record: Record) -> Any:
    metric = record.objectives[0][0]
    last = [trial.epochs[-1] for trial in record.trials if trial.epochs]
    # Sizes and costs have no curve.
    is_shown = not last or any(metric in epoch for epoch in last)
    name = metric if is_shown else main_measure(last[0])
    curves = {
        trial.number: [epoch.get(name, math.nan) for epoch in trial.epochs]
        for trial in record.trials
        if any(name in epoch for epoch in trial.epochs)
    }
    top = [trial.number for trial in best.ranked(record)[:TOP_CURVES] if trial.number in curves]
    lines = [(f"trial {number}", curves[number]) for number in top]
    return figures.curves(lines, [curve for number, curve in curves.items() if number not in top], name)


def _cost(done: Sequence[Trial], record: Record) -> tuple[Any, str] | None:
    """Return one cost against the score by family: the latency if it was measured, else the computation.

    Parameters and computation are correlated, so one picture is enough.
    """
    metric = record.objectives[0][0]
    for name, label in (("latency_ms", "latency, ms"), ("macs", "MACs of one image"), ("params", "parameters")):
        known = [(trial, {**trial.sizes, **trial.scores.get(trial.epoch, {})}) for trial in done]
        if known and all(name in costs for _, costs in known) and len({costs[name] for _, costs in known}) > 1:
            groups: dict[str, tuple[list[float], list[float]]] = {}
            for trial, costs in known:
                xs, ys = groups.setdefault(family_of(trial), ([], []))
                xs.append(costs[name])
                ys.append(trial.first_value)
            log = is_log(name, [costs[name] for _, costs in known])
            return figures.scatter(groups, label, metric, log=log), f"{label} against {metric}, by family"
    return None


def _front(record: Record, winner: Trial) -> tuple[Any, str]:
    with drawing.in_style():
        figure, axes = drawing.new_figure(height=3.6)
        draw_pair(axes, record, best.front(record), (0, 1), about=winner)
        figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return figure, f"Trials that no other beats in every objective; this page is about trial {winner.number}"


def _importances(record: Record, varied: int) -> tuple[dict[str, float], str]:
    """Return each parameter's share of the variation of the first objective (fANOVA), and a text about it."""
    complete = [trial for trial in record.trials if trial.state == "complete"]
    least = max(LEAST_TRIALS, TRIALS_PER_SETTING * varied)
    if len(complete) < least:
        return {}, (
            f"No importances: {counted('setting', varied)} varied over "
            f"{counted('complete trial', len(complete))}; about {least} are needed, {TRIALS_PER_SETTING} per setting "
            f"and at least {LEAST_TRIALS}."
        )
    fitted = complete[:: -(-len(complete) // MOST_FITTED)]
    explained = _explained(fitted)
    if explained < LEAST_EXPLAINED:
        return {}, (
            "No importances: the settings explain too little of the score. A random forest fitted on "
            f"{len(fitted):,} complete trials explains {max(0.0, explained):.0%} of the variation of unseen ones."
        )
    # Only from the loaded trials: those of other programs say nothing about this search.
    study = optuna.create_study(directions=[StudyDirection[way.upper()] for _, way in record.objectives])
    try:
        study.add_trials([_frozen(trial) for trial in fitted])
        target = _first_value if len(record.objectives) > 1 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importances: Any = optuna.importance.get_param_importances
            found = importances(study, evaluator=FanovaImportanceEvaluator(seed=0), target=target)
    except (ValueError, RuntimeError) as error:
        return {}, f"No importances: {error}"
    if not found or sum(found.values()) == 0:
        return {}, "No importances: the complete trials differ too little."
    of = "" if len(fitted) == len(complete) else f" of {len(complete):,}"
    text = (
        f"From {len(fitted):,}{of} complete trials; a random forest explains {explained:.0%} of the variation of "
        "unseen ones. Settings that only some trials have (those of one branch of a choice) are left out."
    )
    return dict(list(found.items())[:MOST_BARS]), text


def _explained(trials: Sequence[Trial]) -> float:
    """Return the share of the variation of scores that settings explain, on trials that trees were not fitted on."""
    from sklearn.ensemble import RandomForestRegressor

    names = dict.fromkeys(name for trial in trials for name in trial.candidate.params)
    columns = [[trial.candidate.params.get(name) for trial in trials] for name in names]
    if not columns:
        return 0.0
    forest = RandomForestRegressor(n_estimators=64, oob_score=True, min_samples_leaf=2, random_state=0)
    forest.fit(np.column_stack([_as_numbers(column) for column in columns]), [trial.first_value for trial in trials])
    return float(forest.oob_score_)


def _as_numbers(values: Sequence[Any]) -> Any:
    """Return settings as numbers that a tree can split: options by their order, -1 if a trial has none."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values if value is not None):
        return [-1.0 if value is None else float(value) for value in values]
    options = {option: place for place, option in enumerate(sorted({str(value) for value in values}))}
    return [-1.0 if value is None else float(options[str(value)]) for value in values]


def _frozen(trial: Trial) -> optuna.trial.FrozenTrial:
    params, domains = dict(trial.candidate.params), dict(trial.candidate.distributions)
    return optuna.create_trial(params=params, distributions=domains, values=trial.values)


def _first_value(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _columns(done: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the settings that vary among trials, one value per trial, None if a trial has none."""
    names = dict.fromkeys(name for trial in done for name in trial.candidate.params)
    columns = {name: [trial.candidate.params.get(name) for trial in done] for name in names}
    return {name: values for name, values in columns.items() if len({str(v) for v in values if v is not None}) > 1}


def _slices(
    columns: Mapping[str, Sequence[Any]], scores: Sequence[float], done: Sequence[Trial]
) -> dict[str, figures.Slice]:
    found = {}
    for name, values in columns.items():
        kept = [(value, score) for value, score in zip(values, scores, strict=True) if value is not None]
        log = any(getattr(trial.candidate.distributions.get(name), "log", False) for trial in done)
        found[name] = figures.Slice([value for value, _ in kept], [score for _, score in kept], log)
    return found
