"""Draft a search space for a data set from its images, the machine and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from imgcls_search import atomic, durations
from imgcls_search.catalog import catalog
from imgcls_search.config import Component, expand_path
from imgcls_search.data import describe
from imgcls_search.errors import DataError, UserError, writing
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.init import rules, text
from imgcls_search.jobs.init.columns import guess_columns
from imgcls_search.jobs.init.cuts import possible_cuts
from imgcls_search.jobs.init.images import ImageFacts, look_at_images
from imgcls_search.jobs.init.machine import look_at_machine
from imgcls_search.jobs.init.networks import pretrained_at_hand
from imgcls_search.jobs.init.plan import make_plan
from imgcls_search.progress import WorkProgress
from imgcls_search.space import parse
from imgcls_search.space.overrides import plain_value
from imgcls_search.space.study_section import name_of_images, slug
from imgcls_search.space.writer import inline
from imgcls_search.words import argument

Flips = Literal["none", "horizontal", "both"]

LOOK_SHARE, MOST_LOOK_SECONDS = 0.03, 20.0
"""Most time to read pixels, as a share and in seconds; after that, only sizes are read, from headers."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One choice of a draft."""

    path: str
    """Its key in the space."""

    value: Any
    because: str

    def __str__(self) -> str:
        """Return one line: the entry in the space, and the reason."""
        return f"{self.path}: {inline(self.value)}  # {self.because}"

    def to_dict(self) -> dict[str, Any]:
        """Return the decision for JSON."""
        return {**vars(self)}


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A space for a data set, with the reasons for all decisions."""

    name: str
    """Name of the study."""

    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    """Notes for the user that belong to no key."""

    space: str
    """The text of the file."""

    facts: Mapping[str, Any]
    """Facts about the images, the machine, the weights and the speeds, ready for JSON."""

    seconds: float
    search_seconds: float
    confirm_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the draft for JSON, without the text."""
        return {
            "study": self.name,
            "decisions": [one.to_dict() for one in self.decisions],
            "notes": list(self.notes),
            "facts": dict(self.facts),
            "time": {"all": self.seconds, "search": self.search_seconds, "confirm": self.confirm_seconds},
        }


def _nothing(what: str, done: int, total: int) -> None:
    """Show nothing."""


def draft(
    component: Component,
    *,
    seconds: float,
    root: Path,
    flips: Flips = "none",
    changes: Sequence[tuple[str, str]] = (),
    file: str = "space.yaml",
    seed: int = 0,
    progress: WorkProgress = _nothing,
) -> Draft:
    """Draft a space for the images of a data section, to search and confirm within these seconds.

    `root` is the folder of the studies; `changes` are dotted paths and YAML values that the user has set; `file` is the
    name that the space file will have. Nothing is written.

    Raises:
        BuildError: an argument of the data section has a value that cannot be used.
        DataError: the images are missing, or cannot be cut into splits.
        SpaceError: a change is not allowed.
        UserError: a folder of weights does not exist.
    """
    component = located(component)
    refuse_study(component, root)
    component, guesses, hints = guess_columns(component)
    source = describe(component, image_cache(root))
    images = look_at_images(
        source, component, seconds=min(MOST_LOOK_SECONDS, LOOK_SHARE * seconds), seed=seed, progress=progress
    )
    rules.refuse_unreadable(images)
    machine = look_at_machine(root)
    cuts = possible_cuts(component, source, images)
    pretrained, troubles = pretrained_at_hand(len(source.classes))
    number, plan = make_plan(
        [one.source for one in cuts], images, machine, pretrained, seconds=seconds, progress=progress
    )
    name = free_name(slug(images.name), root)
    found = rules.decide(images, machine, plan, cuts[number], guesses, flips=flips, name=name)
    header = _header(images, file, seconds)
    parse(text.write(found.tree, found.comments, header), catalog(), source=file, overrides=changes)
    for path, value in changes:
        found.put(path, plain_value(value), "as you said")
    written = text.write(found.tree, found.comments, header)
    parse(written, catalog(), source=file)
    return Draft(
        name=name,
        decisions=tuple(Decision(path=path, value=value, because=why) for path, value, why in found.decisions),
        notes=(*hints, *rules.notes(images), *(f"weights not used: {trouble}" for trouble in troubles), *plan.notes),
        space=written,
        facts={
            "images": images.to_dict(),
            "machine": machine.to_dict(),
            "weights": [one.name for one in pretrained],
            "weights_not_used": troubles,
            "speeds": {network.name: {**vars(plan.speeds[network.key])} for network in plan.fit.networks},
        },
        seconds=seconds,
        search_seconds=plan.budget.search,
        confirm_seconds=plan.budget.confirm,
    )


def located(component: Component) -> Component:
    """Return a data section with absolute paths; those that start with `~` or a variable stay unchanged.

    Raises:
        UserError: the path of the working folder contains `${`, which would be read as a variable.
    """
    args = dict(component.args)
    for name in ("root", "file"):
        path = args.get(name)
        if path is None or path.startswith(("~", "${")):
            continue
        args[name] = str(Path(path).absolute())
        if "${" in args[name] and "${" not in path:
            raise UserError(
                f"{component.path}.{name}: {args[name]}: a path with ${{ cannot stand in a space; rename it"
            )
    return replace(component, args=args)


def refuse_study(component: Component, root: Path) -> None:
    """Refuse a folder of studies or of one study as images, and a folder of studies inside that of the images.

    Raises:
        DataError: the images are a study or a folder of studies.
        UserError: the folder of studies is inside that of the images.
    """
    if component.name != "folder":
        return
    top = expand_path(component.args["root"], f"{component.path}.root").resolve()
    # Not `with_name`: the root of the file system has none.
    if (top.parent / f"{top.name}.db").is_file() and any((top / name).is_dir() for name in ("checkpoints", "logs")):
        raise DataError(f"{component.path}: {top}: is the folder of study {top.name!r}; allowed: a folder of images")
    if any(file.with_suffix("").is_dir() for file in top.glob("*.db")):
        raise DataError(f"{component.path}: {top}: is a folder of studies; allowed: a folder of images")
    if root.resolve().is_relative_to(top):
        raise UserError(
            f"--studies {root}: is inside {top}, where it would be taken for a class of images; start the command in "
            "another folder, or give one with --studies"
        )


def free_name(name: str, root: Path) -> str:
    """Return a name that no study in a folder has: the given one, with a number if needed."""
    number, found = 1, name
    while (root / found).exists() or (root / f"{found}.db").exists():
        number += 1
        found = f"{name}-{number}"
    return found


def _header(images: ImageFacts, file: str, seconds: float) -> list[str]:
    return [
        f"A search for a good classifier of {images.name}, in {durations.show(seconds)} including confirmation. "
        "Drafted by imgcls-search init.",
        f"  imgcls-search check {argument(Path(file))}          # show what is searched, or mistakes",
        f"  imgcls-search run {argument(Path(file))}            # search; run it again to resume",
        "{choice: [...]}, {int: [low, high]} and {float: [low, high]} are searched; everything else is fixed.",
        "Change whatever you know better: each comment gives the reason for the line below it.",
    ]


def default_target(component: Component) -> Path:
    """Return the default file of a draft: in the working folder, named after the images."""
    return Path(f"{name_of_images(component)}.yaml")


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before anything slow.

    Raises:
        UserError: it exists and must not be replaced, or its folder does not exist.
    """
    if target.is_dir():
        raise UserError(f"{target}: is a folder; allowed: the name of a file")
    if target.exists() and not force:
        raise UserError(f"{target}: is there already; --force replaces it, -o FILE writes another one")
    with writing(target):
        atomic.check_writable(target)


def write_draft(found: Draft, target: Path, *, force: bool) -> None:
    """Write a draft to a file, completely or not at all.

    Raises:
        UserError: the file cannot be written, or was created meanwhile.
    """
    check_target(target, force=force)
    with writing(target):
        atomic.write_text(target, found.space)
