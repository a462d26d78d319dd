"""Train and evaluate outside a search: train and evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgcls_search.api.options import (
    PathLikeText,
    SpaceLike,
    as_data,
    changes_of,
    component_of_data,
    name_of,
    read_space_of,
    refuse_below,
    refuse_other,
)
from imgcls_search.api.session import session
from imgcls_search.api.trial import Trial
from imgcls_search.errors import UserError, refuse_idle
from imgcls_search.measures import of_features

if TYPE_CHECKING:
    from imgcls_search.deploy.views import ViewsName
    from imgcls_search.jobs.evaluation import Evaluation, EvaluationFacts
    from imgcls_search.jobs.retrain import Training, TrainingReport
    from imgcls_search.trial import Origin

VIEWS = ("none", "mirror", "shift", "mirror_shift")
SPLITS = ("val", "test", "all", "folds")


def train(
    config: SpaceLike | Trial,
    data: PathLikeText | None = None,
    *,
    seeds: int = 1,
    on: Literal["train", "train+val"] | None = None,
    out: PathLikeText | None = None,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    studies: PathLikeText = Path("studies"),
    storage: str | None = None,
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> TrainingReport:
    """Train a final model and open the test split: scores of each seed, their mean and its interval.

    Weights and `metrics.json` are written into `out`.

    Args:
        config: A configuration: a trial, the path of a YAML file, or nested dictionaries without a choice.
        data: Other images: a folder, a table, or a data set such as `digits`.
        seeds: Number of trainings, each with another seed.
        on: Train on the training images (`train`, the default), or on the validation images too (`train+val`); with
            folds, always on both.
        out: The folder of the results; by default trained/NAME.
        changes: Values of the configuration by their paths.
        skip_unreadable: Leave out images that cannot be read.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the configuration, the images or the folder is not usable.
        NoResultError: A training diverged or failed.
    """
    from imgcls_search.jobs.retrain import train as train_all

    if on is not None:
        refuse_other("on", on, ("train", "train+val"))
    refuse_below("seeds", seeds, 1)
    with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
        training = training_of(
            config,
            changes_of(changes),
            None if data is None else as_data(data),
            None,
            skip_unreadable=skip_unreadable,
            seeds=seeds,
            on=on,
            out=None if out is None else Path(out),
            studies=Path(studies),
            storage=storage,
            say=screen.say,
        )
        return train_all(training, screen)


def training_of(
    config: SpaceLike | Trial,
    changes: list[tuple[str, str]],
    data: str | None,
    unlabeled: str | None,
    *,
    skip_unreadable: bool,
    seeds: int,
    on: Literal["train", "train+val"] | None,
    out: Path | None,
    studies: Path,
    storage: str | None,
    say: Any,
) -> Training:
    """Return the training to run and its output folder; `say` receives problems with a file's origin.

    Raises:
        UserError: the configuration is not allowed.
    """
    from imgcls_search.jobs.export import read_origin
    from imgcls_search.jobs.retrain import Training
    from imgcls_search.space import shipped
    from imgcls_search.study.address import settle

    origin: Origin | None = None
    problem, name = None, "space"
    given: SpaceLike
    if isinstance(config, Trial):
        origin, name, given = (
            {"study": config.study, "trial": config.number},
            f"{config.study}-{config.number}",
            {**config.config, "study": {"name": config.study}},
        )
    else:
        given = config
    space = read_space_of(given, changes, data, skip_unreadable=skip_unreadable, unlabeled=unlabeled)
    if not isinstance(given, Mapping):
        name = Path(given).stem
        origin, problem = read_origin(shipped.find(Path(given)).read_text(encoding="utf-8"))
    trained = space.config()
    if (objective := of_features(space.objectives)) is not None:
        raise UserError(
            f"{space.locate('study.objectives')}: study.objectives: {objective}: such a configuration only pretrains; "
            f"{space.how_to_train(Path(name_of(given)))}"
        )
    if trained.folds > 1:
        refuse_idle({"--on train": on == "train"}, "with folds, which train on all images outside the test split")
    if problem is not None:
        say(f"{config}:{problem}; no study will know that its test split was opened")
    return Training(
        config=trained,
        seeds=tuple(range(1, seeds + 1)),
        portion=on or "train",
        out=out or Path("trained") / name,
        studies=studies,
        origin=origin,
        locate=space.locate,
        at=settle(storage),
    )


def evaluate(
    weights: PathLikeText,
    data: PathLikeText | None = None,
    *,
    split: Literal["val", "test", "all", "folds"] = "val",
    predictions: PathLikeText | None = None,
    corruptions: bool = False,
    tta: ViewsName = "none",
    skip_unreadable: bool = False,
    studies: PathLikeText = Path("studies"),
    progress: bool | None = None,
) -> EvaluationFacts:
    """Measure saved weights on images: their own validation split, the test split, or other images.

    Args:
        weights: A file of weights, such as trained/best/seed-1.pt.
        data: Other images: a folder, a table, or a data set such as `digits`.
        split: `val`, `test`, `all` or `folds`; `test` and `all` open the sealed test split.
        predictions: Write every image's prediction into this CSV file.
        corruptions: Also score noisy, blurred and otherwise damaged versions of the images.
        tta: Average these views of an image: `none`, `mirror`, `shift` or `mirror_shift`.
        skip_unreadable: Leave out images that cannot be read.
        studies: The folder of the studies, where decoded images are kept.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the weights or the images are not usable.
    """
    refuse_other("split", split, SPLITS)
    refuse_other("tta", tta, VIEWS)
    refuse_idle_with_folds(split, data, skip_unreadable=skip_unreadable, corruptions=corruptions, tta=tta)
    path = Path(weights)
    if not path.is_file():
        from imgcls_search.errors import CheckpointError

        raise CheckpointError(
            f"{path}: no such file; allowed: weights that train saved, such as trained/best/seed-1.pt"
        )
    with session(progress, uses_torch=True) as screens:
        from imgcls_search.executors.helper import image_cache
        from imgcls_search.jobs.evaluate import evaluate_weights

        if predictions is not None:
            check_predictions(Path(predictions))
        found = evaluate_weights(
            path,
            split,
            image_cache(Path(studies)),
            data=component_of_data(None if data is None else as_data(data)),
            skip_unreadable=skip_unreadable,
            corruptions=corruptions,
            tta=tta,
            say=screens.say,
        )
        if predictions is not None:
            write_predictions(found, Path(predictions))
    return evaluation_as_dict(found)


def refuse_idle_with_folds(split: str, data: Any, *, skip_unreadable: bool, corruptions: bool, tta: str) -> None:
    """Refuse options that `--split folds` does not use.

    Raises:
        UserError: it names the option.
    """
    if split == "folds":
        given = {
            "--data": data,
            "--skip-unreadable": skip_unreadable,
            "--corruptions": corruptions,
            "--tta": tta != "none",
        }
        refuse_idle(given, "together with --split folds, which scores the predictions of the search")


def check_predictions(path: Path) -> None:
    """Refuse a file that cannot be written, before the images are scored and the test split is opened.

    Raises:
        UserError: it cannot be written.
    """
    from imgcls_search import atomic
    from imgcls_search.errors import writing

    with writing(path):
        atomic.check_writable(path)


def write_predictions(found: Evaluation, path: Path) -> None:
    """Write the prediction of every image as CSV.

    Raises:
        UserError: the file cannot be written.
    """
    from imgcls_search import atomic
    from imgcls_search.errors import writing
    from imgcls_search.jobs.evaluation import predictions_csv

    with writing(path):
        atomic.write_text(path, predictions_csv(found))


def evaluation_as_dict(found: Evaluation) -> EvaluationFacts:
    """Return an evaluation as plain values."""
    from imgcls_search.data import label_sets
    from imgcls_search.measures import by_class

    counts = dict(zip(found.classes, label_sets.count(found.labels, len(found.classes)).tolist(), strict=True))
    shown: EvaluationFacts = {
        "split": found.split,
        "images": len(found.labels),
        "classes": counts,
        "metrics": found.metrics,
        "by_class": by_class(found.metrics)[1],
    }
    if found.thresholds is not None:
        shown["thresholds"] = dict(zip(found.classes, found.thresholds, strict=True))
    if found.corruptions is not None:
        shown["corruptions"] = by_severity(found.corruptions)
    if found.tta is not None:
        shown["tta"] = asdict(found.tta)
    return shown


def by_severity(table: Mapping[tuple[str, int], float]) -> dict[str, dict[str, float]]:
    """Return the accuracies on corrupted images by corruption, then by severity."""
    found: dict[str, dict[str, float]] = {}
    for (name, severity), value in table.items():
        found.setdefault(name, {})[str(severity)] = value
    return found
