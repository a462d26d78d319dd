"""What can be known before anything is searched: check, init, inspect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgcls_search.api.options import (
    Duration,
    PathLikeText,
    SpaceLike,
    as_data,
    changes_of,
    images_of,
    read_space_of,
    seconds_of,
    study_files_of,
    with_settings,
)
from imgcls_search.api.session import session
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.data import Source, Summary
    from imgcls_search.jobs.init.draft import Draft as Drafted
    from imgcls_search.jobs.survey import SurveySummary
    from imgcls_search.space import Space
    from imgcls_search.views.screens import Screens

FlipsName = Literal["none", "horizontal", "both"]


def check(
    space: SpaceLike,
    data: PathLikeText | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
    unlabeled: PathLikeText | None = None,
    skip_unreadable: bool = False,
    samples: int = 200,
    seed: int = 0,
    studies: PathLikeText = Path("studies"),
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Validate a space, describe what it searches, and build samples of it without training.

    Args:
        space: The path of a YAML file, or the same as nested dictionaries.
        data: Other images: a folder, a table, or a data set such as `digits`.
        changes: Values of the space to set, by path.
        name: The name of the study.
        unlabeled: Images to pretrain on.
        skip_unreadable: Leave out images that cannot be read.
        samples: Configurations to build; 0 only validates the space.
        seed: Seed of the draw.
        studies: The folder of the studies, where counts are stored.
        weights_dir: Look for pretrained weights there first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        SpaceError: The space has problems; the message lists all of them.
        UserError: An argument or the images are not usable.
    """
    found = read_space_of(
        space,
        with_settings(changes_of(changes), name=name),
        None if data is None else as_data(data),
        skip_unreadable=skip_unreadable,
        unlabeled=None if unlabeled is None or unlabeled == "train" else as_data(unlabeled),
    )
    with session(progress, weights_dir) as screens:
        return Checked.of(found, Path(studies)).with_survey(samples, seed, Path(studies), screens).to_dict()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A space without problems, and what is known of it."""

    space: Space
    images: Summary | None
    """What there is to read of a folder or a table that is there."""

    notes: tuple[str, ...]
    pretraining: Any
    """What the trials are expected to pretrain; None where they do not."""

    survey: SurveySummary | None = None

    @classmethod
    def of(cls, space: Space, studies: Path) -> Checked:
        """Look at a space, and at its images where they are there.

        Raises:
            UserError: something in it can be no search.
        """
        from imgcls_search.catalog import refuse_with_devices, refuse_with_folds
        from imgcls_search.executors.helper import image_cache
        from imgcls_search.jobs.expected_pretrainings import expected
        from imgcls_search.orchestrator.named_classes import refuse_unknown
        from imgcls_search.orchestrator.named_metrics import custom, refuse_early
        from imgcls_search.signature import build
        from imgcls_search.strategy.pruners import make_pruner
        from imgcls_search.strategy.samplers import SAMPLERS
        from imgcls_search.training.custom_metrics import load

        build(SAMPLERS, space.sampler, space=space)
        make_pruner(space.pruner, space.first(), 1)
        refuse_with_devices(space)
        if not space.is_config:
            # `train` fits a configuration once, and does all of it.
            refuse_with_folds(space)
        source = _source_there(space, studies)
        refuse_early(space, image_cache(studies), source)
        images = None if source is None else _look_at(space, source)
        notes = refuse_unknown(space.document, source.classes, space.locate) if source is not None else []
        pretraining = expected(space)
        for metric in custom(space):
            load(metric)
        return cls(space=space, images=images, notes=tuple(notes), pretraining=pretraining)

    def with_survey(self, samples: int, seed: int, studies: Path, screens: Screens) -> Checked:
        """Return the same with what random configurations of it are like.

        Raises:
            UserError: nothing can be built from the space.
        """
        from dataclasses import replace

        from imgcls_search.jobs.survey import summarise, survey

        if not samples:
            return self
        with screens.building() as built:
            found = survey(self.space, studies, samples=samples, seed=seed, progress=built)
        return replace(self, survey=summarise(found, self.space))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        from dataclasses import asdict

        space = self.space
        return {
            "name": space.name,
            "is_config": space.is_config,
            "space": dict(space.document),
            "parameters": [
                {"path": p.path, "kind": p.kind, "domain": p.domain, "when": dict(p.when)} for p in space.parameters()
            ],
            "combinations": space.num_combinations(),
            "data": None if self.images is None else self.images.to_dict(),
            "pretraining": None if self.pretraining is None else asdict(self.pretraining),
            "survey": self.survey,
        }


def _source_there(space: Space, studies: Path) -> Source | None:
    """Return the images of a space; None of data that is to be fetched, and of a folder that is not there."""
    from imgcls_search.data import describe, is_there
    from imgcls_search.executors.helper import image_cache

    component = space.first().component("data")
    return describe(component, image_cache(studies)) if is_there(component) else None


def _look_at(space: Space, source: Source) -> Summary:
    """Return what there is to read of a folder or a table of images."""
    from imgcls_search.data import choose_shape, read_headers, summarise

    headers = read_headers(source)
    size, _, is_chosen = choose_shape(headers)
    chosen = size if is_chosen and space.first().section("image")["size"] is None else None
    return summarise(source, headers, chosen_size=chosen)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A space that was drafted for some images, this machine and a time."""

    path: Path
    """The file that was written, which `run` accepts."""

    name: str
    """Of the study."""

    space: str
    """The text of the file."""

    decisions: tuple[Mapping[str, Any], ...]
    """Each with its `path`, `value` and the reason, `because`."""

    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    """Of the images, the machine, the weights, the speeds and the time."""

    @classmethod
    def of(cls, drafted: Drafted, path: Path) -> Draft:
        """Return a draft that was written to a path."""
        return cls(
            path=path,
            name=drafted.name,
            space=drafted.space,
            decisions=tuple(one.to_dict() for one in drafted.decisions),
            notes=drafted.notes,
            facts=drafted.facts,
        )

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        rows = [(one["path"], one["value"], one["because"]) for one in self.decisions]
        return card(f"Draft {self.path}", self.notes, table(("setting", "value", "because"), rows))


def init(
    data: PathLikeText,
    time: Duration = "1h",
    *,
    output: PathLikeText | None = None,
    flips: FlipsName = "none",
    group: str | None = None,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    force: bool = False,
    studies: PathLikeText = Path("studies"),
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> Draft:
    """Draft a search space for images, this machine and a time, and write it with a reason for each choice.

    Args:
        data: A folder, a table, or a data set such as `digits`.
        time: Time for search and confirmation: seconds, or a text such as `1h30m`.
        output: The YAML file to write; default: NAME.yaml in the working folder.
        flips: Which mirrored images keep their class: `none`, `horizontal` or `both`.
        group: Keep groups in one split: a table's column, or a regular expression on a folder's paths.
        changes: Values of the space to set yourself, by path.
        skip_unreadable: Leave out images that cannot be read.
        force: Replace a file.
        studies: The folder of the studies.
        weights_dir: Look for pretrained weights there first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the images or the file is not usable.
    """
    refuse_other("flips", flips, ("none", "horizontal", "both"))
    seconds = seconds_of(time, "--time")
    of_data, others = split(changes_of(changes))
    component = images_of(data, group, of_data, skip_unreadable=skip_unreadable)
    with session(progress, weights_dir, uses_torch=True) as screens:
        drafted, target = draft_space(
            component,
            seconds=seconds,
            output=None if output is None else Path(output),
            ask_flips=lambda: flips,
            changes=others,
            force=force,
            studies=Path(studies),
            screens=screens,
        )
    return Draft.of(drafted, target)


def draft_space(
    component: Any,
    *,
    seconds: float,
    output: Path | None,
    ask_flips: Any,
    changes: list[tuple[str, str]],
    force: bool,
    studies: Path,
    screens: Screens,
) -> tuple[Drafted, Path]:
    """Draft a space and write it; return it and the file.

    Raises:
        UserError: the images or the file is not usable.
    """
    from imgcls_search.data import must_exist
    from imgcls_search.jobs.init.draft import check_target, default_target, draft, write_draft

    must_exist(component)
    target = output or default_target(component)
    check_target(target, force=force)
    flips = ask_flips()
    with screens.drafting() as show:
        found = draft(
            component, seconds=seconds, root=studies, flips=flips, changes=changes, file=str(target), progress=show
        )
    write_draft(found, target, force=force)
    return found, target


def split(changes: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the changes of the data, and those of the rest of a space."""
    of_data = [change for change in changes if change[0].startswith("data.")]
    return of_data, [change for change in changes if change not in of_data]


def inspect(
    data: PathLikeText | None = None,
    *,
    group: str | None = None,
    changes: Mapping[str, Any] | None = None,
    labels: bool = True,
    study: str | None = None,
    model: Mapping[str, Any] | Literal["quick"] | None = None,
    quick_epochs: int | None = None,
    judge_test: bool = False,
    page: PathLikeText | None = None,
    seed: int = 0,
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
        study: Judge by the settings of the best trial of this study.
        model: Judge by a pretrained network, as under `model` in a space, or by a `quick` model.
        quick_epochs: Epochs of the quick model.
        judge_test: Judge the labels of the sealed test split, too.
        page: Write an HTML page with pictures.
        seed: Seed of the folds and trainings.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights there first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument or the images are not usable.
    """
    import json

    from imgcls_search.jobs.inspect.inspection import take_inventory
    from imgcls_search.views.inspection import check_page, write_page

    refuse_idle_judges(labels=labels, study=study, model=model, quick_epochs=quick_epochs, judge_test=judge_test)
    named = model if model is None or isinstance(model, str) else json.dumps(model)
    with session(progress, weights_dir, uses_torch=True) as screens:
        component, settings = inspected(
            None if data is None else images_of(data, group, changes_of(changes)),
            study,
            Path(studies),
            storage,
        )
        images = take_inventory(component)
        if page is not None:
            check_page(images, Path(page))
        found = look_at_labels(
            images,
            component,
            settings=settings,
            study=study,
            labels=labels,
            model=named,
            quick_epochs=quick_epochs,
            judge_test=judge_test,
            seed=seed,
            studies=Path(studies),
            screens=screens,
        )
        if page is not None:
            write_page(found, Path(page))
    return {**found.to_dict(), "page": None if page is None else str(page)}


def inspected(component: Any, study: str | None, studies: Path, storage: str | None) -> tuple[Any, Any]:
    """Return the images to inspect, those of a study where none are named, and the settings of its best trial.

    Raises:
        UserError: neither names any images.
    """
    from imgcls_search.data import must_exist
    from imgcls_search.jobs.inspect.by_study import best_settings

    settings = best_settings(study_files_of(study, studies, storage)) if study is not None else None
    if component is None:
        if settings is None:
            raise UserError("inspect: needs DATA, for example a folder, or --study for the images of a study")
        component = settings[0].component("data")
    must_exist(component)
    return component, settings


QUICK = "quick"
"""Stands for the quick model among networks."""


def look_at_labels(
    images: Any,
    component: Any,
    *,
    settings: Any,
    study: str | None,
    labels: bool,
    model: str | None,
    quick_epochs: int | None,
    judge_test: bool,
    seed: int,
    studies: Path,
    screens: Screens,
) -> Any:
    """Return what is in an inventory of images, with the labels judged as the arguments say.

    Raises:
        UserError: the images or the network are not usable.
    """
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.inspect.by_backbone import judging_by_backbone
    from imgcls_search.jobs.inspect.by_study import judging_by
    from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images

    judge = None
    if settings is not None:
        name = f"trial {settings[1]} of study {study}"
        judge = judging_by(settings[0], component, name, image_cache(studies), seed=seed)
    elif labels and quick_epochs is None and model != QUICK:
        chosen = _model(model) if model is not None else _usual_model(images)
        judge = judging_by_backbone(chosen, seed=seed) if chosen is not None else None
    wanted = Wanted(labels=labels, with_test=judge_test, epochs=quick_epochs, seed=seed)
    with screens.drafting() as show:
        return inspect_images(images, wanted, show, judge)


def refuse_idle_judges(
    *, labels: bool, study: str | None, model: Any, quick_epochs: int | None, judge_test: bool
) -> None:
    """Refuse options of judging labels that would change nothing.

    Raises:
        UserError: the option, and what it goes with.
    """
    if not labels:
        given = {"--study": study, "--model": model, "--quick-epochs": quick_epochs, "--judge-test": judge_test}
        for name, is_given in given.items():
            if is_given:
                raise UserError(f"{name}: is about judging labels; got --no-labels too")
    if study is not None and quick_epochs is not None:
        raise UserError("--quick-epochs: is of the quick model; with --study its best trial says how many there are")
    if study is not None and model is not None:
        raise UserError("--model: judges instead of --study; give one of them")
    if quick_epochs is not None and model not in (None, QUICK):
        raise UserError("--quick-epochs: is of the quick model; got --model too")
    if study is not None and judge_test:
        raise UserError("--judge-test: goes with the quick model; a study's settings never see the test split")


def backbone_space(
    model: str, data: str, changes: list[tuple[str, str]] | None = None, *, skip_unreadable: bool = False
) -> Space:
    """Return the space of one network on some images.

    Raises:
        SpaceError, UserError: an argument says something that is not allowed.
    """
    import json

    from imgcls_search.catalog import catalog
    from imgcls_search.space import parse

    component = images_of(data, skip_unreadable=skip_unreadable)
    given = [("study.name", "unnamed"), ("image.channels", "3"), ("model", model), *(changes or [])]
    text = json.dumps({"data": {component.name: dict(component.args)}, "model": {"lenet5": {}}})
    return parse(text, catalog(), source="backbones", overrides=given)


def _model(text: str) -> dict[str, Any]:
    """Return the network that an option names.

    Raises:
        SpaceError, UserError: it is none, or has no pretrained weights.
    """
    config = backbone_space(text, "digits").config()
    component = config.component("model")
    if component.args.get("weights") is None:
        raise UserError(f"--model: {component.path}.weights: null; allowed: imagenet, or a file of pretrained weights")
    found: dict[str, Any] = config.to_dict()["model"]
    return found


def _usual_model(images: Any) -> dict[str, Any] | None:
    """Return the first pretrained network at hand for photographs; for small pictures the quick model is better."""
    import json

    from imgcls_search.jobs.inspect.inspection import are_small
    from imgcls_search.jobs.weights import at_hand

    models = [one.model for one in at_hand() if one.model is not None]
    return None if not models or are_small(images) else _model(json.dumps(models[0]))


def refuse_other(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not among the allowed ones.

    Raises:
        UserError: it is not.
    """
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not allowed; allowed: {', '.join(allowed)}")
