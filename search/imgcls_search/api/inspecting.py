"""Inspect a folder or table of images, and find labels that are likely wrong: inspect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgcls_search.api.options import PathLikeText, changes_of, images_of, study_files_of
from imgcls_search.api.session import session
from imgcls_search.errors import UserError, refuse_idle

if TYPE_CHECKING:
    from imgcls_search.space import Space
    from imgcls_search.views.screens import Screens


def inspect(
    data: PathLikeText | None = None,
    *,
    group: str | None = None,
    changes: Mapping[str, Any] | None = None,
    labels: bool = True,
    study: str | None = None,
    trial: int | None = None,
    model: Mapping[str, Any] | Literal["quick"] | None = None,
    quick_epochs: int | None = None,
    judge_test: bool = False,
    page: PathLikeText | None = None,
    seed: int | None = None,
    studies: PathLikeText = Path("studies"),
    storage: str | None = None,
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Inspect a folder or table of images: counts, sizes, copies, and labels that are likely wrong.

    Args:
        data: A folder, a table, or a data set such as `digits`; not needed with `study`.
        group: Keep groups in one split: a table's column, or a regular expression on a folder's paths.
        changes: Values of the data to set, by path.
        labels: Judge the labels, which takes longest.
        study: Judge labels with the best configuration of this study.
        trial: Judge with this trial of the study; default: the confirmed one, or else the best.
        model: Judge labels with this pretrained network, as under `model` in a space, or with a `quick` model.
        quick_epochs: Epochs of the quick model.
        judge_test: Judge the labels of the sealed test split, too.
        page: Write an HTML page with pictures.
        seed: Seed of the folds and trainings; default: 0.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument or the images are not usable.
    """
    import json

    from imgcls_search.jobs.inspect.inspection import take_inventory
    from imgcls_search.views.inspection import check_page, write_page

    if data is None:
        refuse_idle({"group": group, "changes": changes or None}, "without data")
    judging = Judging(
        labels=labels,
        study=study,
        trial=trial,
        model=model if model is None or isinstance(model, str) else json.dumps(model),
        quick_epochs=quick_epochs,
        judge_test=judge_test,
        seed=seed,
    )
    with session(progress, weights_dir, uses_torch=True) as screens:
        component, settings = inspected(
            None if data is None else images_of(data, group, changes_of(changes)), judging, Path(studies), storage
        )
        images = take_inventory(component)
        if page is not None:
            check_page(images, Path(page))
        found = look_at_labels(images, component, settings, judging, studies=Path(studies), screens=screens)
        if page is not None:
            write_page(found, Path(page))
    return {**found.to_dict(), "page": None if page is None else str(page)}


QUICK = "quick"
"""The value that selects the quick model instead of a network."""


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How the caller wants labels to be judged; options that would have no effect are refused.

    Raises:
        UserError: the option, and what it requires.
    """

    labels: bool
    study: str | None
    trial: int | None
    model: str | None
    quick_epochs: int | None
    judge_test: bool
    seed: int | None

    def __post_init__(self) -> None:
        """Refuse options without effect."""
        of_model = {"--model": self.model, "--quick-epochs": self.quick_epochs}
        if not self.labels:
            of_judge = {"--study": self.study, **of_model, "--judge-test": self.judge_test, "--seed": self.seed}
            refuse_idle(of_judge, "together with --no-labels")
        if self.study is None:
            refuse_idle({"--trial": self.trial}, "without --study")
        else:
            refuse_idle(of_model, "together with --study")
            why = "together with --study, whose models never see the test split"
            refuse_idle({"--judge-test": self.judge_test}, why)
        if self.model not in (None, QUICK):
            refuse_idle({"--quick-epochs": self.quick_epochs}, "together with --model, unless it is quick")


def inspected(component: Any, judging: Judging, studies: Path, storage: str | None) -> tuple[Any, Any]:
    """Return the images to inspect, by default those of the study, and the configuration of the study's trial.

    Raises:
        UserError: neither images nor a study are given.
    """
    from imgcls_search.data import must_exist
    from imgcls_search.jobs.inspect.by_study import settings_of

    study = judging.study
    settings = settings_of(study_files_of(study, studies, storage), judging.trial) if study is not None else None
    if component is None:
        if settings is None:
            raise UserError("inspect: needs DATA, for example a folder, or --study for the images of a study")
        component = settings[0].component("data")
    must_exist(component)
    return component, settings


def look_at_labels(
    images: Any, component: Any, settings: Any, judging: Judging, *, studies: Path, screens: Screens
) -> Any:
    """Inspect an inventory of images, with its labels judged; `settings` are those that `inspected` returns.

    Raises:
        UserError: the images or the network are not usable.
    """
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.inspect.by_backbone import judging_by_backbone
    from imgcls_search.jobs.inspect.by_study import judging_by
    from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images

    judge, seed, model, epochs = None, judging.seed or 0, judging.model, judging.quick_epochs
    if settings is not None:
        name = f"trial {settings[1]} of study {judging.study}"
        judge = judging_by(settings[0], component, name, image_cache(studies), seed=seed)
    elif judging.labels and epochs is None and model != QUICK:
        chosen = _model(model) if model is not None else _usual_model(images)
        judge = judging_by_backbone(chosen, seed=seed) if chosen is not None else None
    wanted = Wanted(labels=judging.labels, with_test=judging.judge_test, epochs=epochs, seed=seed)
    with screens.drafting() as show:
        return inspect_images(images, wanted, show, judge)


def backbone_space(
    model: str, data: str, changes: list[tuple[str, str]] | None = None, *, skip_unreadable: bool = False
) -> Space:
    """Return the space of one network on some images.

    Raises:
        SpaceError, UserError: an argument is not allowed.
    """
    import json

    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    component = images_of(data, skip_unreadable=skip_unreadable)
    given = [("study.name", "unnamed"), ("image.channels", "3"), ("model", model), *(changes or [])]
    text = json.dumps({"data": {component.name: dict(component.args)}, "model": {"lenet5": {}}})
    return parse(text, catalog(), source="backbones", overrides=given)


def _model(text: str) -> dict[str, Any]:
    """Return the network in an option.

    Raises:
        SpaceError, UserError: it is not a network, or has no pretrained weights.
    """
    config = backbone_space(text, "digits").config()
    component = config.component("model")
    if component.args.get("weights") is None:
        raise UserError(f"--model: {component.path}.weights: null; allowed: imagenet, or a file of pretrained weights")
    found: dict[str, Any] = config.to_dict()["model"]
    return found


def _usual_model(images: Any) -> dict[str, Any] | None:
    """Return the first available pretrained network; None for small images, where the quick model is better."""
    import json

    from imgcls_search.jobs.inspect.looking import are_small
    from imgcls_search.jobs.weights import at_hand

    models = [one.model for one in at_hand() if one.model is not None]
    return None if not models or are_small(images) else _model(json.dumps(models[0]))
