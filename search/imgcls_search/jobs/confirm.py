"""Confirm a winner: retrain the best trials with new seeds, then score the winner on the test split once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imgcls_search import terminal
from imgcls_search.confidence import difference, estimate, interval, optimism, share_interval
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import Prepared, describe, label_sets
from imgcls_search.errors import DataError, StudyError, UserError, refuse_idle
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.export import find_trial, now, refuse_pretraining
from imgcls_search.jobs.pace import Pace, numbered
from imgcls_search.jobs.pretrained import PretrainedNetworks
from imgcls_search.jobs.trainer import Trainer, TrainingWatcher, training_job
from imgcls_search.measures import ALWAYS, sign_of
from imgcls_search.orchestrator import code_used, named_metrics, study_data, teachers, weights_used
from imgcls_search.orchestrator.backbones import Backbone
from imgcls_search.protocol import Job, Portion
from imgcls_search.study import best
from imgcls_search.study.activity import shown_state
from imgcls_search.study.facts import Opening
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.study.result_facts import ChoiceBySeeds, Confirmation, RankedTrial, SpreadOfSeeds, TestScores
from imgcls_search.trial import Trial, can_be_confirmed
from imgcls_search.words import counted

if TYPE_CHECKING:
    from imgcls_search.jobs.evaluation import Evaluation


TOP = 3
"""Number of the best trials to retrain, by default."""


def refuse_untrained(record: Record, what: str) -> None:
    """Refuse a study whose first objective does not change by retraining on labels with another seed.

    Raises:
        UserError: it is a size or a cost, or the search is over the pretraining.
    """
    refuse_pretraining(record.objectives, what)
    if not can_be_confirmed(record.objectives):
        metric, _ = record.objectives[0]
        raise UserError(
            f"the first objective is {metric}, which no seed changes; {what} needs one of {_list(list(ALWAYS))}, "
            "or another that images are scored by"
        )


@dataclass(frozen=True, kw_only=True)
class _Retraining:
    """Retrains trials of a study for a confirmation."""

    files: StudyFiles
    record: Record
    trainer: Trainer
    metric: str
    pace: Pace
    pretrained: PretrainedNetworks
    pretrains: bool
    """Whether each seed pretrains its own network."""

    def train(self, trials: Sequence[Trial], seeds: Sequence[int]) -> dict[int, list[float]]:
        """Train every trial's configuration with every seed; return the metric of the last epochs by trial."""
        pairs = [(trial, seed) for trial in trials for seed in seeds]
        self.pretrained.make(each for trial, seed in pairs for each in self._needed(trial, seed))
        jobs = [self._job(number, trial, seed) for number, (trial, seed) in enumerate(pairs)]
        names = [f"trial {trial.number}, {seed}" for trial in trials for seed in numbered("seed", len(seeds))]
        histories = self.trainer.train(jobs, names, self.pace)
        scores: dict[int, list[float]] = {trial.number: [] for trial in trials}
        for (trial, _), history in zip(pairs, histories, strict=True):
            scores[trial.number].append(history[-1][self.metric])
        return scores

    def fit_once(self, trial: Trial, seeds: Sequence[int]) -> None:
        """Train a trial with folds on all images outside the test split, as `train` does: one network per seed."""
        self.pretrained.make(each for seed in seeds for each in self._needed(trial, seed, "train+val"))
        jobs = [self._job(number, trial, seed, "train+val") for number, seed in enumerate(seeds)]
        self.trainer.train(jobs, numbered("all images, seed", len(seeds)), self.pace)

    def compare_weights(self, trials: Sequence[Trial]) -> None:
        """Report pretrained weights that differ from those that the trials started from."""
        known = self.record.facts.get("weights", {})
        for trial in trials if known else ():
            used = weights_used.of_config(trial.candidate.config, self.data(trial).shape, self.trainer.helper)
            for line in weights_used.differing(known, used):
                self.trainer.watcher.say(f"trial {trial.number}: {line}")

    def data(self, trial: Trial) -> Prepared:
        """Return the trial's images, which must be those of the study."""
        return searched_images(self.record, trial.candidate.config, self.trainer)

    def _needed(self, trial: Trial, seed: int, portion: Portion = "train") -> tuple[Backbone, ...]:
        own = seed if self.pretrains else None
        return self.pretrained.needed_by(trial.candidate.config, self.data(trial), portion=portion, seed=own)

    def _job(self, number: int, trial: Trial, seed: int, portion: Portion = "train") -> Job:
        config = trial.candidate.config
        return training_job(
            number,
            config,
            self.data(trial),
            seed=seed,
            weights=weights_path(self.files, trial.number, seed, portion, pretrains=self.pretrains),
            portion=portion,
            backbones=self.pretrained.files_of(self._needed(trial, seed, portion)),
            teacher=teachers.path_of(config, self.files, self.record.facts.get("teachers", {})),
            metrics=(self.metric,),
        )


def confirm(
    files: StudyFiles,
    *,
    top: int | None,
    seeds: int,
    again: bool,
    watcher: TrainingWatcher,
    trial: int | None = None,
    data: Component | None = None,
    pretrains: bool = False,
) -> Confirmation:
    """Retrain the best trials with new seeds, score the winner with seeds not used to pick it, then on the test split.

    The winner has the best mean over the first seeds. The test split is opened once, for the winner; the study stores
    the result. `trial` replaces the best trials; with several objectives it is required, to choose from the front.
    `data` says where the study's images are now. With `pretrains`, each seed pretrains its own network if the trial
    pretrains; otherwise all start from the study's.

    An interrupted confirmation resumes from its checkpoints; an existing one is returned unless `again` is set.

    Raises:
        StudyError: there is no such study, another process works on it, or it was confirmed with other settings.
        NoResultError: no trial is complete and feasible, or a training failed.
        UserError: `top` and `trial` are given.
    """
    if trial is not None:
        refuse_idle({"--top": top}, "together with --trial")
    record = study_data.load_with_images(files, data)
    for line in code_used.of_record(record):
        watcher.say(line)
    chosen_from = _candidates(record, top or TOP, trial)
    refuse_untrained(record, "confirm")
    metric, direction = record.objectives[0]
    if pretrains and not any(each.candidate.config.needs_backbone for each in chosen_from):
        numbers = _list([each.number for each in chosen_from])
        raise UserError(f"--pretrain: trial {numbers} pretrains no network; leave the option out")
    known = record.facts.get("confirmed")
    if known is not None and not again:
        if data is not None:
            study_data.refuse_other_unopened(
                record, chosen_from[0].candidate.config.component("data"), image_cache(files.root)
            )
        return _known(known, [trial.number for trial in chosen_from], seeds, pretrains=pretrains)
    _refuse_other_test(chosen_from[0].candidate.config.component("data"), metric, image_cache(files.root))
    with files.taken(task="confirm"), Trainer(files.root, watcher) as trainer:
        trainer.hire(chosen_from[0].candidate.config, len(chosen_from) * seeds)
        pace = Pace(_num_epochs(chosen_from, seeds))
        retraining = _Retraining(
            files=files,
            record=record,
            trainer=trainer,
            metric=metric,
            pace=pace,
            pretrained=PretrainedNetworks.of_study(trainer, files, record),
            pretrains=pretrains,
        )
        retraining.compare_weights(chosen_from)
        found = _choose(retraining, chosen_from, seeds, sign_of(direction))
        chosen = record.by_number[found["chosen"]]
        images = retraining.data(chosen)
        if images.folds:
            watcher.say("folds: networks trained on all images outside the test split are scored on it")
            retraining.fit_once(chosen, found["seeds"]["fresh"])
    watcher.say("scoring the test split")
    test = _open_test(record, files, found, images, watcher, pretrains=pretrains)
    confirmation = cast(Confirmation, {**found, "test": test, **({"pretrains": True} if pretrains else {})})
    record.set_fact("confirmed", confirmation)
    return confirmation


def _refuse_other_test(component: Component, metric: str, cache: Path) -> None:
    """Refuse a test split on which a metric is undefined, before anything is trained or the opening is recorded.

    Raises:
        DataError: there is no such folder, or the split lacks images that the metric needs.
    """
    study_data.must_be_there(component)
    source = describe(component, cache)
    problem = named_metrics.undefined(metric, source.classes, label_sets.seen(source.labels["test"]), "test")
    if problem is not None:
        raise DataError(terminal.shown(f"{component.path}: {metric}: {problem}"))


def _num_epochs(trials: Sequence[Trial], seeds: int) -> int:
    """Return the most epochs that all trainings take together; the winner is not known yet."""
    epochs = [trial.candidate.config.epochs for trial in trials]
    # With folds, each seed that scores the winner also trains once on all images.
    once = [trial.candidate.config.epochs // trial.candidate.config.folds for trial in trials if _has_folds(trial)]
    return seeds * (sum(epochs) + max(epochs) + max(once, default=0))


def _has_folds(trial: Trial) -> bool:
    return trial.candidate.config.folds > 1


def _candidates(record: Record, top: int, number: int | None) -> list[Trial]:
    """Return the trials to choose from: the named one, or the best few of a study with one objective."""
    if number is None:
        best.the_best(record)
        return best.ranked(record)[:top]
    trial = find_trial(record, number)
    if trial.state != "complete":
        state = shown_state(trial, record)
        raise StudyError(f"trial {number} of study {record.study.study_name!r} is {state}; allowed: a complete one")
    return [trial]


def searched_images(record: Record, config: TrialConfig, trainer: Trainer) -> Prepared:
    """Return the images of a configuration, and store their place in the study.

    Raises:
        StudyError: they are not the images of the study.
    """
    found = trainer.images(config)
    study_data.refuse_other(record, config, found, trainer.helper)
    study_data.note_place(record, config)
    return found


def weights_path(
    files: StudyFiles, trial: int, seed: int, portion: Portion = "train", *, pretrains: bool = False
) -> Path:
    """Return the weights file of a confirmation's training."""
    which = ("-pretrained" if pretrains else "") + ("-all" if portion == "train+val" else "")
    return files.folder / "confirm" / f"trial-{trial:05d}-seed-{seed}{which}.pt"


def fresh_seeds(record: Record, count: int) -> list[int]:
    """Return seeds that no trial of a study was trained with; they are the same on each call."""
    import numpy as np

    used = {trial.seed for trial in record.trials}
    stream = np.random.SeedSequence([record.facts.get("space", {}).get("study", {}).get("seed", 0), 2])
    drawn = [int(seed) // 2 for seed in stream.generate_state(count + len(used))]
    return list(dict.fromkeys(seed for seed in drawn if seed not in used))[:count]


def optimism_of_each(found: Confirmation) -> list[float]:
    """Return how much better the search score of a confirmed trial was than each of its new scores."""
    searched, mean = found["searched"], found["confirmed"]["mean"]
    # Better may mean larger or smaller; the stored mean has the right sign.
    sign = math.copysign(1, found["optimism"]["mean"] * (searched - mean))
    return [sign * (searched - score) for score in found["scores"]]


def _known(known: Confirmation, trials: Sequence[int], seeds: int, *, pretrains: bool) -> Confirmation:
    if known.get("pretrains", False) != pretrains:
        before, here = ("without", "with") if pretrains else ("with", "without")
        raise StudyError(
            f"the study was confirmed {before} --pretrain, and this call is {here} it; --again confirms again and "
            "opens the test split once more"
        )
    asked = sorted(trials), seeds
    then = sorted(entry["trial"] for entry in known["ranking"]), len(known["seeds"]["choosing"])
    if asked != then:
        raise StudyError(
            f"already confirmed with trials {_list(then[0])} and {then[1]} seeds; this call is for trials "
            f"{_list(asked[0])} and {asked[1]} seeds; --again confirms again, and opens the test split once more"
        )
    return known


def _choose(retraining: _Retraining, trials: Sequence[Trial], seeds: int, sign: int) -> ChoiceBySeeds:
    drawn = fresh_seeds(retraining.record, 2 * seeds)
    choosing, fresh = drawn[:seeds], drawn[seeds:]
    retraining.trainer.watcher.say(
        f"retraining {counted('trial', len(trials))} with {seeds} new seeds each; the test split stays sealed"
    )
    scores = retraining.train(trials, choosing)
    order = sorted(trials, key=lambda trial: -sign * sum(scores[trial.number]))
    chosen = order[0]
    retraining.trainer.watcher.say(f"trial {chosen.number} is chosen; {seeds} more seeds score it")
    measured = retraining.train([chosen], fresh)[chosen.number]
    confirmed = estimate(measured, scores[chosen.number])
    searched = chosen.first_value
    lucky = optimism(searched, confirmed, sign)
    return {
        "at": now(),
        "metric": retraining.metric,
        "seeds": {"choosing": choosing, "fresh": fresh},
        "ranking": [_rank(trial, scores, chosen) for trial in order],
        "chosen": chosen.number,
        "scores": measured,
        "confirmed": {"mean": confirmed.mean, "ci95": confirmed.half, "std": confirmed.std},
        "searched": searched,
        "optimism": {"mean": lucky.mean, "ci95": lucky.half},
    }


def _rank(trial: Trial, scores: Mapping[int, Sequence[float]], chosen: Trial) -> RankedTrial:
    gap = difference(scores[chosen.number], scores[trial.number])
    return {
        "trial": trial.number,
        "searched": trial.first_value,
        "scores": list(scores[trial.number]),
        **_spread(scores[trial.number]),
        # By these seeds alone, it may be as good as the chosen trial.
        "is_tied": trial is not chosen and abs(gap.mean) <= gap.half,
    }


def _open_test(
    record: Record,
    files: StudyFiles,
    found: ChoiceBySeeds,
    data: Prepared,
    watcher: TrainingWatcher,
    *,
    pretrains: bool,
) -> TestScores:
    """Score the winner's new trainings on the test split; record the opening first."""
    from dataclasses import replace

    from imgcls_search.jobs.evaluate import read_network
    from imgcls_search.jobs.evaluation import measure_on

    seeds = found["seeds"]["fresh"]
    # With folds, score what `train` would deliver: one network trained on all images outside the test split.
    portion: Portion = "train+val" if data.folds else "train"
    opening = Opening(by="confirm", at=now(), seeds=seeds, portion=portion, trial=found["chosen"])
    component = record.by_number[found["chosen"]].candidate.config.component("data")
    study_data.note_opening(record, opening, component, Path(data.folder).parent, watcher.say)
    found_by: list[Evaluation] = []
    for seed in seeds:
        network, config, known = read_network(weights_path(files, found["chosen"], seed, portion, pretrains=pretrains))
        # The images may have moved since the training.
        config = config.moved(component.args)
        seen = replace(data, mean=known.mean, std=known.std, thresholds=known.thresholds)
        found_by.append(measure_on(network, config, seen, "test", (found["metric"],)))
    return _test_scores(found["metric"], found_by)


def _test_scores(metric: str, trainings: Sequence[Evaluation]) -> TestScores:
    """Return the test scores of several trainings, with the interval from sampling the images."""
    from imgcls_search.jobs.chance import interval_of_mean

    scores = [training.metrics[metric] for training in trainings]
    spread = _spread(scores)
    test: TestScores = {
        "scores": scores,
        "mean": spread["mean"],
        "std": spread["std"],
        "ci95": spread["ci95"],
        "images": len(trainings[0].labels),
    }
    if metric in ("accuracy", "top5_accuracy", "subset_accuracy"):
        test["images_interval"] = list(share_interval(test["mean"], test["images"]))
    elif all(map(math.isfinite, ends := interval_of_mean(trainings, metric))):
        # NaN for metrics that need more than probabilities and labels, such as corruption_accuracy.
        test["images_interval"] = list(ends)
    return test


def _spread(scores: Sequence[float]) -> SpreadOfSeeds:
    found = interval(scores)
    assert found["std"] is not None
    assert found["ci95"] is not None, "a confirmation has two seeds at least"
    return {"mean": found["mean"], "std": found["std"], "ci95": found["ci95"]}


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
