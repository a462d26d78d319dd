"""Judge labels with the configuration of a study's best trial, retrained on folds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.data.chosen import Chosen
from imgcls_search.data.inventory import Inventory
from imgcls_search.errors import DataError
from imgcls_search.jobs.export import chosen_trial, refuse_pretraining
from imgcls_search.jobs.inspect.out_of_fold import Floats, Numbers, by_network
from imgcls_search.orchestrator.study_data import load_with_images
from imgcls_search.progress import WorkProgress
from imgcls_search.study.files import StudyFiles
from imgcls_search.training.device import available_devices
from imgcls_search.worker import pipeline, start_weights

AFTER = ("distill", "prune", "quantize")
"""Sections that change a network after training, or train it with a teacher: judging does not use them."""


def settings_of(files: StudyFiles, number: int | None) -> tuple[TrialConfig, int]:
    """Return the configuration of a study's trial, with the last known path of its images, and its number.

    Without a number, it is the trial that `confirm` chose, or else the best.

    Raises:
        StudyError: there is no such study or trial, or several trials are on its front and none is named.
        UserError: it is a search over the pretraining.
        NoResultError: no trial is complete.
    """
    record = load_with_images(files)
    refuse_pretraining(record.objectives, "--study")
    trial = chosen_trial(record, number)
    return trial.candidate.config, trial.number


def judging_by(
    config: TrialConfig, data: Component, name: str, cache: Path, *, seed: int
) -> Callable[[Inventory, Numbers, Numbers, WorkProgress], tuple[Floats, str]]:
    """Return a function that predicts out of fold with a configuration on the images of a data section."""

    def judge(images: Inventory, numbers: Numbers, folds: Numbers, progress: WorkProgress) -> tuple[Floats, str]:
        tree = config.to_dict()
        args = {**data.args, **({"skip_unreadable": True} if "skip_unreadable" in data.args else {})}
        plain: dict[str, Any] = {section: {"none": {}} for section in AFTER if section in tree}
        settings = TrialConfig.from_dict({**tree, **plain, "data": {data.name: args}})
        prepared = start_weights.with_normalisation(
            settings,
            pipeline.prepare_data(settings, cache, lambda done, total: progress("decoding images", done, total)),
        )
        if prepared.classes != images.classes:
            raise DataError(f"{images.place}: its classes are not those that were inspected: it has changed meanwhile")
        whole, middle = (_joined(prepared, whole) for whole in (True, False))
        places = _places(prepared, images, numbers)
        device = available_devices(settings.section("training")["device"])[0]
        probabilities = by_network(
            settings,
            prepared,
            (Chosen(whole, places), Chosen(middle, places)),
            images.labels[numbers],
            folds,
            device=device,
            seed=seed,
            progress=progress,
        )
        return probabilities, name

    return judge


def _joined(data: Prepared, whole: bool) -> list[Any]:
    return [load(data, "train", whole=whole).pixels, load(data, "val", whole=whole).pixels]


def _places(data: Prepared, images: Inventory, numbers: Numbers) -> Numbers:
    """Return the index of each image among the prepared ones, training images first.

    Raises:
        DataError: an image is not among them.
    """
    names = (*load(data, "train").names, *load(data, "val").names)
    place = {name: number for number, name in enumerate(names)}
    missing = [images.names[number] for number in numbers.tolist() if images.names[number] not in place]
    if missing:
        raise DataError(
            f"{images.place}: the study's settings leave out {len(missing):,} of the images to be judged, "
            f"for example {missing[0]}"
        )
    return np.array([place[images.names[number]] for number in numbers.tolist()], dtype=np.int64)
