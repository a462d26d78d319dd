"""Score trained weights on images: the validation split or, if requested, the test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from imgcls_search import atomic, costs
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import (
    Prepared,
    comes_with,
    describe_whole,
    is_of_files,
    label_sets,
    must_be_apart,
    skipping_unreadable,
)
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.views import ViewsName
from imgcls_search.errors import DataError, UserError, closest, writing
from imgcls_search.jobs import finished
from imgcls_search.jobs.bundle.weights import trained_portion
from imgcls_search.jobs.evaluation import Evaluation, SplitName, decided_classes, images_of, measure
from imgcls_search.jobs.export import now
from imgcls_search.measures import CORRUPTION
from imgcls_search.orchestrator import study_data
from imgcls_search.study.facts import ChangedTest
from imgcls_search.training import checkpoint, custom_metrics
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.words import some
from imgcls_search.worker import cross_validation, finish, pipeline

CUTS = ("val", "test", "split_seed", "max_train", "folds", "image", "label", "separator", "labels", "split", "group")
"""Arguments of a data set that decide which images are in which split, including the columns of a table."""


def evaluate_weights(
    weights: Path,
    split: SplitName,
    cache: Path,
    *,
    data: Component | None = None,
    skip_unreadable: bool = False,
    corruptions: bool = False,
    tta: ViewsName = "none",
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score a weights file on a split of its own data set, or of another one with some of its classes.

    Classes are matched by name. `all` uses every image, without splits; a split that comes with the data is used as it
    is. Other splits are made as in the training: a moved folder gives the same splits. `folds` uses stored predictions,
    and so none of the options.

    With `corruptions`, 15 corrupted versions of each image are scored too. `tta` names the views of an image whose
    logits are averaged. `say` gets notes for the user.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network is missing.
        DataError: the images are missing or damaged, or some are of a class that was not trained.
        UserError: an option has no use here, or the cache would be among the images.
    """
    if split == "folds":
        return out_of_fold(weights)
    network, config, trained_on = read_network(weights)
    if corruptions and trained_on.has_several_labels:
        raise UserError("--corruptions: is for images with one label each; corruption_accuracy is a top-1 accuracy")
    # Bring the images to the size and channels that the weights were trained with.
    image = {**config.section("image"), "size": trained_on.image_size, "channels": trained_on.channels}
    trained_as = config.component("data").name
    component = config.component("data") if data is None else _cut_alike(data, config.component("data"))
    if skip_unreadable:
        component = skipping_unreadable(component)
    if is_of_files(component):
        study_data.must_be_there(component)
    must_be_apart(component, cache.parent, "--studies")
    tree = {**config.to_dict(), "data": {component.name: dict(component.args)}, "image": image}
    config = TrialConfig.from_dict(tree)
    is_given = data is not None and split != "all" and comes_with(component, split)
    is_of_training = False
    if split == "all" or is_given:
        source = describe_whole(component, split if split != "all" else None)
        classes, parts = source.classes, pipeline.open_whole(config, source, cache, say)
        if split == "all" and say is not None and (data is None or source.has_prints(trained_on.prints)):
            say(f"{weights}: scores on all images are too high: the model trained on some of them")
    else:
        try:
            found = pipeline.prepare_data(config, cache, say=say)
        except DataError as error:
            raise DataError(f"{error} ({_instead(component)})") from error
        classes, parts = found.classes, images_of(config, found, split)
        is_of_training = component.name == trained_as and pipeline.has_prints(config, found, trained_on.prints)
        if not is_of_training and not comes_with(component, split) and say is not None:
            say(
                f"{weights}: these are not the images of the training, and {split} is cut from them anew: scores are "
                "too high if some of them were trained on"
            )
    opening: dict[str, Any] = {"weights": weights.name, "split": split}
    if split != "val" and (changed := _look_for_other_test(component, cache, trained_on)) is not None:
        opening["test_changed"] = changed[0]
        if say is not None:
            say(changed[1])
    numbers = _class_numbers(classes, trained_on.classes, f"{weights}: {component.path}")
    if any(label_sets.are_several(part.labels) != trained_on.has_several_labels for part in parts):
        one, several = "one class each", "several labels each"
        was, got = (several, one) if trained_on.has_several_labels else (one, several)
        raise DataError(f"{weights}: {component.path}: was trained on images with {was}; these images have {got}")
    parts = [
        replace(part, labels=label_sets.renumbered(part.labels, numbers, len(trained_on.classes))) for part in parts
    ]
    if split == "val" and is_of_training and say is not None and trained_portion(weights) == "train+val":
        say(f"{weights}: scores on val are too high: the model trained on these images")
    if split != "val":
        record_opening(weights.parent / "test-openings.jsonl", opening)
    named = (CORRUPTION,) if corruptions else ()
    return measure(network, config, trained_on, parts, split, named, tta)


def out_of_fold(weights: Path, metrics: Sequence[str] = ()) -> Evaluation:
    """Score the stored predictions of a trial with folds: each image by the network that was not trained on it.

    Of `metrics`, those are measured too that need no other predictions.

    Raises:
        CheckpointError: the file is not of such a trial.
    """
    state = checkpoint.load(weights)
    found = cross_validation.read_out_of_fold(state, str(weights))
    _, config, data = finished.load_finished(state, str(weights))
    stated = costs.of(config.tree)
    wanted = Wanted(
        classes=data.classes,
        named=(*metrics, *custom_metrics.installed()),
        costs=stated,
        is_full=True,
        thresholds=data.cuts,
    )
    return Evaluation(
        split="folds",
        metrics=score(found.logits, found.labels, wanted),
        names=found.names,
        labels=found.labels,
        probabilities=found.probabilities,
        decided=decided_classes(found.probabilities, data, stated),
        classes=data.classes,
        thresholds=data.cuts,
    )


def _look_for_other_test(component: Component, cache: Path, trained_on: Prepared) -> tuple[ChangedTest, str] | None:
    known = study_data.as_fact(trained_on)
    return study_data.look_for_other_test(component, cache, known, "the weights were trained")


def _cut_alike(data: Component, trained: Component) -> Component:
    """Return a data set with the same split settings as in the training, if both are of the same kind."""
    if data.name != trained.name:
        return data
    cuts = {name: trained.args[name] for name in CUTS if name in data.args and name in trained.args}
    return replace(data, args={**data.args, **cuts})


def _instead(component: Component) -> str:
    """Return what to evaluate instead if a split cannot be made."""
    given = [split for split in ("val", "test") if comes_with(component, split)]
    of = "the rows that say {}" if component.name == "table" else "{}/"
    shown = "".join(f"--split {split} measures {of.format(split)}; " for split in given)
    return f"{shown}--split all measures all images, and cuts nothing"


def _class_numbers(found: Sequence[str], trained: Sequence[str], place: str) -> np.ndarray[Any, Any]:
    """Return the number of each class among the trained classes.

    Raises:
        DataError: a class is not among them.
    """
    numbers = {name: number for number, name in enumerate(trained)}
    strange = [name for name in found if name not in numbers]
    if strange:
        near = closest(strange[0], trained)
        raise DataError(
            f"{place}: the weights were not trained on class {_show(strange)}{near}; allowed: {_show(trained)}"
        )
    return np.array([numbers[name] for name in found], dtype=np.int64)


def read_network(weights: Path) -> tuple[nn.Module | Artifact, TrialConfig, Prepared]:
    """Return the network that saved weights were scored with, its configuration and the data set of the training.

    The network is the model or, if that was compressed or measured as a file, the exported network beside it.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network is missing.
        DeployError: the exported network is damaged.
    """
    model, artifact, config, data = read_both(weights)
    return artifact or model, config, data


def read_both(weights: Path) -> tuple[nn.Module, Artifact | None, TrialConfig, Prepared]:
    """Like `read_network`, but return both the trained model and the exported network, if there is one.

    Raises:
        CheckpointError: the file is not a trained model of this program, or its exported network is missing.
        DeployError: the exported network is damaged.
    """
    state = checkpoint.load(weights)
    model, config, data = finished.load_finished(state, str(weights))
    return model, finish.find_artifact(state, weights), config, data


def record_opening(path: Path, about: dict[str, Any]) -> None:
    """Append a line to the log of test split openings."""
    with writing(path):
        atomic.append_line(path, json.dumps({"at": now(), **about}))


def _show(names: Sequence[str]) -> str:
    return some([repr(name) for name in names], 5)
