"""Check a space before searching it: check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.options import PathLikeText, SpaceLike, as_data, changes_of, read_space_of, with_settings
from imgcls_search.api.session import session
from imgcls_search.errors import DataError, refuse_idle

if TYPE_CHECKING:
    from imgcls_search.data import Source, Summary
    from imgcls_search.jobs.survey import SurveySummary
    from imgcls_search.space import Space
    from imgcls_search.views.screens import Screens


def check(
    space: SpaceLike,
    data: PathLikeText | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
    unlabeled: PathLikeText | None = None,
    skip_unreadable: bool = False,
    samples: int = 200,
    seed: int | None = None,
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
        seed: Seed of the samples; default: 0.
        studies: The folder of the studies, where the sizes of networks are cached.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        SpaceError: The space has problems; the message lists all of them.
        UserError: An argument or the images are not usable.
    """
    if not samples:
        refuse_idle({"--seed": seed}, "together with --samples 0")
    found = read_space_of(
        space,
        with_settings(changes_of(changes), name=name),
        None if data is None else as_data(data),
        skip_unreadable=skip_unreadable,
        unlabeled=None if unlabeled is None or unlabeled == "train" else as_data(unlabeled),
    )
    with session(progress, weights_dir) as screens:
        return Checked.of(found, Path(studies)).with_survey(samples, seed or 0, Path(studies), screens).to_dict()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A space without problems, and information about it."""

    space: Space
    images: Summary | None
    """A summary of the images, if their folder or table exists."""

    notes: tuple[str, ...]
    pretraining: Any
    """The expected pretraining of the trials; None if there is none."""

    survey: SurveySummary | None = None

    @classmethod
    def of(cls, space: Space, studies: Path) -> Checked:
        """Examine a space, and its images if they exist.

        Raises:
            UserError: the space cannot be searched.
        """
        from imgcls_search.catalog import refuse_with_devices, refuse_with_folds
        from imgcls_search.executors.helper import image_cache
        from imgcls_search.jobs.expected_pretrainings import expected
        from imgcls_search.orchestrator import teachers
        from imgcls_search.orchestrator.named_classes import refuse_unknown
        from imgcls_search.orchestrator.named_metrics import custom, refuse_early
        from imgcls_search.signature import build
        from imgcls_search.strategy.pruners import make_pruner
        from imgcls_search.strategy.samplers import SAMPLERS
        from imgcls_search.study.address import settle
        from imgcls_search.training.custom_metrics import load

        build(SAMPLERS, space.sampler, space=space)
        make_pruner(space.pruner, space.first(), 1)
        refuse_with_devices(space)
        if not space.is_config:
            # Without folds, `train` supports all of these sections.
            refuse_with_folds(space)
        teachers.refuse_missing(space, studies, settle(None, space.study["storage"]))
        source = _source_there(space, studies)
        refuse_early(space, image_cache(studies), source)
        images = None if source is None else _look_at(space, source)
        notes = _missing(space) if source is None else refuse_unknown(space.document, source.classes, space.locate)
        pretraining = expected(space)
        for metric in custom(space):
            load(metric)
        return cls(space=space, images=images, notes=tuple(notes), pretraining=pretraining)

    def with_survey(self, samples: int, seed: int, studies: Path, screens: Screens) -> Checked:
        """Return the same with a survey of random configurations.

        Raises:
            UserError: no configuration of the space can be built.
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
    """Return the images of a space; None if they must be downloaded or their folder does not exist."""
    from imgcls_search.data import describe, is_there, must_be_apart
    from imgcls_search.executors.helper import image_cache

    component = space.first().component("data")
    must_be_apart(component, studies, "--studies")
    return describe(component, image_cache(studies)) if is_there(component) else None


def _missing(space: Space) -> list[str]:
    """Return a note if the folder or table of the images does not exist."""
    from imgcls_search.data import is_of_files, must_exist

    component = space.first().component("data")
    try:
        if is_of_files(component):
            must_exist(component)
    except DataError as error:
        return [f"note: {error}"]
    return []


def _look_at(space: Space, source: Source) -> Summary:
    """Return a summary of a folder or table of images."""
    from imgcls_search.data import choose_shape, read_headers, summarise

    headers = read_headers(source)
    size, _, is_chosen = choose_shape(headers)
    chosen = size if is_chosen and space.first().section("image")["size"] is None else None
    return summarise(source, headers, chosen_size=chosen)
