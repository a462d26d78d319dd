"""Retrain the changes from the first configuration to the winner one by one, to measure the gain of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls_search.confidence import interval
from imgcls_search.config import Component, TrialConfig
from imgcls_search.errors import BuildError, StudyError, UserError
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.confirm import fresh_seeds, refuse_untrained, searched_images
from imgcls_search.jobs.export import chosen_trial, now
from imgcls_search.jobs.pace import numbered
from imgcls_search.jobs.pretrained import PretrainedNetworks
from imgcls_search.jobs.trainer import PARTIAL, Trainer, TrainingWatcher, training_job
from imgcls_search.orchestrator import study_data, teachers
from imgcls_search.space import differences
from imgcls_search.study.activity import shown_state
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.result_facts import Ablation
from imgcls_search.words import counted


@dataclass(frozen=True, kw_only=True)
class Step:
    """A configuration between the first and the winner, and its changes from the previous one."""

    changes: tuple[str, ...]
    config: TrialConfig


SEEDS = 3
"""Number of new seeds per step, by default."""


def ablate(
    files: StudyFiles,
    *,
    seeds: int,
    watcher: TrainingWatcher,
    trial: int | None = None,
    data: Component | None = None,
) -> Ablation:
    """Train the first configuration, each step from it to the winner, and the winner, on new seeds; store the scores.

    `trial` is the winner's number, by default that of the confirmed trial, or else of the best. `data` says where the
    study's images are now.

    The test split stays sealed. An interrupted ablation resumes from its checkpoints; a stored one with the same
    winner and number of seeds is returned.

    Raises:
        StudyError: there is no such study, or its folder contains other images now.
        NoResultError: no trial is complete and feasible, or a training failed.
        UserError: the winner is the first configuration, or no seed changes the first objective.
    """
    record = study_data.load_with_images(files, data)
    winner, first = chosen_trial(record, trial), record.trials[0]
    if winner.state != "complete":
        state = shown_state(winner, record)
        raise StudyError(f"trial {winner.number} of study {files.name!r} is {state}; allowed: a complete one")
    refuse_untrained(record, "--ablation")
    metric, direction = record.objectives[0]
    if winner.number == first.number:
        raise UserError(
            f"--ablation: the winner is trial {first.number}, the first configuration; there is no step to retrain"
        )
    known = record.facts.get("ablation")
    if known is not None and (known["winner"], len(known["seeds"])) == (winner.number, seeds):
        if data is not None:
            study_data.refuse_other_unopened(record, winner.candidate.config.component("data"), image_cache(files.root))
        return known
    study_data.must_be_there(winner.candidate.config.component("data"))
    with files.taken(task="report --ablation"), Trainer(files.root, watcher) as trainer:
        config = winner.candidate.config
        searched_images(record, config, trainer)

        def can_be_built(config: TrialConfig) -> bool:
            try:
                trainer.helper.measure(config, trainer.images(config).shape)
            except BuildError:
                return False
            return True

        way = list(steps(first.candidate.config, config, can_be_built))
        trainer.hire(config, len(way) * seeds)
        drawn = fresh_seeds(record, seeds)
        written = study_data.written_root(record)
        pretrained = PretrainedNetworks.of_study(trainer, files, record)
        needed = [pretrained.needed_by(step.config, trainer.images(step.config)) for step in way]
        watcher.say(f"{len(way)} configurations on {counted('new seed', seeds)} each; the test split stays sealed")
        pretrained.make(each for some in needed for each in some)
        jobs = [
            training_job(
                number,
                step.config,
                trainer.images(step.config),
                seed=seed,
                weights=_weights_path(files, step.config, seed, written),
                teacher=teachers.path_of(step.config, files, record.facts.get("teachers", {})),
                backbones=pretrained.files_of(starts),
                metrics=(metric,),
            )
            for number, (step, starts, seed) in enumerate(
                (step, starts, seed) for step, starts in zip(way, needed, strict=True) for seed in drawn
            )
        ]
        names = [f"{step}, {seed}" for step in numbered("configuration", len(way)) for seed in numbered("seed", seeds)]
        scores = [history[-1][metric] for history in trainer.train(jobs, names)]
    found: Ablation = {
        "at": now(),
        "metric": metric,
        "direction": direction,
        "first": first.number,
        "winner": winner.number,
        "seeds": drawn,
        "steps": [
            {"changes": list(step.changes), "scores": part, **interval(part)}
            for step, part in zip(way, _parts(scores, seeds), strict=True)
        ],
    }
    record.set_fact("ablation", found)
    return found


def steps(first: TrialConfig, last: TrialConfig, can_be_built: Callable[[TrialConfig], bool]) -> Iterator[Step]:
    """Yield the configurations from the first to the last, with one more change each, in the order of the sections.

    Another branch (family, optimizer, policy) is one change, with all its settings. A change that cannot be built
    alone, such as a width that the number of heads does not divide, is combined with the next change.
    """
    yield Step(changes=(), config=first)
    tree, wanted = first.to_dict(), last.to_dict()
    pending: list[str] = []
    paths = list(_changed(tree, wanted))
    for index, path in enumerate(paths):
        *above, key = path
        node, goal = _node(tree, above), _node(wanted, above)
        made = differences({key: node[key]}, {key: goal[key]})
        pending += [".".join([*above, str(change)]) for change in made]
        node[key] = goal[key]
        config = TrialConfig.from_dict(tree)
        if index == len(paths) - 1 or can_be_built(config):
            yield Step(changes=tuple(pending), config=config)
            pending = []


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths at which two trees of the same sections differ; a subtree with other keys counts as one path."""
    for key, value in old.items():
        below = (*above, key)
        both = isinstance(value, Mapping) and isinstance(new[key], Mapping)
        if both and value.keys() == new[key].keys():
            yield from _changed(value, new[key], below)
        elif value != new[key]:
            yield below


def _node(tree: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    for key in path:
        tree = tree[key]
    return tree


def _parts(scores: Sequence[float], size: int) -> Iterator[list[float]]:
    for start in range(0, len(scores), size):
        yield list(scores[start : start + size])


def _weights_path(files: StudyFiles, config: TrialConfig, seed: int, written: str | None) -> Path:
    """Return the weights file of a step; `written` is the folder of the images when the study began."""
    folder = files.folder / "ablation"
    # Earlier versions included the folder of the images in the name.
    earlier = config if written is None else config.moved({"root": written})
    former = folder / f"{earlier.digest()}-seed-{seed}.pt"
    if former.exists() or former.with_suffix(PARTIAL).exists():
        return former
    return folder / f"{config.digest_anywhere()}-seed-{seed}.pt"
