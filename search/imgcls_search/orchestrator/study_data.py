"""The images of a study: compare them with those it began with, and find them again after a move.

A study's configurations name the folder that its images were in when it began. A run that finds them elsewhere stores
that place in the study, and every job that reads images gets its configurations from `load_with_images`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import Prepared, Prints, describe, is_of_files, must_exist
from imgcls_search.errors import DataError, StudyError, UserError
from imgcls_search.executors.helper import Helper
from imgcls_search.space import Space
from imgcls_search.space.study_section import slug
from imgcls_search.study.address import Address
from imgcls_search.study.facts import ChangedTest, DataFact, Opening
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.record import Record, load
from imgcls_search.words import counted

FACTS: Final[Mapping[str, Literal["data_root", "data_file"]]] = {"root": "data_root", "file": "data_file"}
"""The facts that say in which folder, and in which table, the images of a study were last found."""

UNLABELED = "unlabeled.folder.root"


def load_with_images(files: StudyFiles, data: Component | None = None) -> Record:
    """Open a study for a job that reads its images; its configurations then name the current folder of the images.

    That is the folder of `data`, else the one in which they were last found, else the original one.

    Raises:
        StudyError: there is no such study, or it is damaged.
        UserError: `data` is another kind of data set than the study's.
        DataError: the folder of `data` does not exist.
    """
    record = load(files)
    if record.trials:
        known = record.trials[0].candidate.config
        latest = {name: record.facts[fact] for name, fact in FACTS.items() if fact in record.facts}
        move(
            record,
            known.moved(_place(known, latest, data, f"study {files.name!r}")),
            unlabeled=_unlabeled_place(record),
        )
    return record


def move(record: Record, config: TrialConfig, *, unlabeled: str | None = None) -> None:
    """Set the place of the images in all trials to that of a configuration; the database stays unchanged.

    Images to pretrain on are in the folder `unlabeled`, else where the configuration says.
    """
    if "data" not in config.tree:
        return
    place = config.component("data").args
    unlabeled = unlabeled or _unlabeled_root(config)
    for trial in record.trials:
        moved = trial.candidate.config.moved(place)
        if unlabeled is not None:
            moved = moved.pretraining_on(unlabeled)
        if moved is not trial.candidate.config:
            trial.candidate = replace(trial.candidate, config=moved)


def moved(config: TrialConfig, data: Component | None, owner: str) -> TrialConfig:
    """Return a configuration that reads its images from the place that `data` names; errors mention `owner`.

    Raises:
        UserError: `data` is another kind of data set.
        DataError: its folder does not exist.
    """
    return config.moved(_place(config, {}, data, owner))


def note_place(record: Record, config: TrialConfig) -> None:
    """Store in a study where its images were found, for later jobs."""
    for name, place in _located(config.component("data")).items():
        if record.facts.get(FACTS[name]) != place:
            record.set_fact(FACTS[name], place)
    root = _unlabeled_root(config)
    if root is not None and record.facts.get("unlabeled_root") != (place := _absolute(root, UNLABELED)):
        record.set_fact("unlabeled_root", place)


def _unlabeled_root(config: TrialConfig) -> str | None:
    """Return the folder of images to pretrain on that a configuration names."""
    folder = config.tree.get("unlabeled", {}).get("folder")
    return None if folder is None else str(folder["root"])


def _unlabeled_place(record: Record) -> str | None:
    """Return where the images to pretrain on were last found, or None to use the original place."""
    latest = record.facts.get("unlabeled_root")
    written = next(filter(None, (_unlabeled_root(trial.candidate.config) for trial in record.trials)), None)
    if latest is None or written is None:
        return None
    try:
        is_there = Path(_absolute(written, UNLABELED)).is_dir() and not Path(latest).is_dir()
    except UserError:
        # The original path has an environment variable that is no longer set.
        return latest
    return None if is_there else latest


def written_root(record: Record) -> str | None:
    """Return the original folder of a study's images, or None if its data needs none."""
    if not record.trials:
        return None
    name = record.trials[0].candidate.config.component("data").name
    root: str | None = record.fact("space")["data"].get(name, {}).get("root")
    return root


def must_be_there(component: Component) -> None:
    """Raise an error if the folder of the images does not exist, with a hint in case they have moved.

    Raises:
        DataError: there is no such folder.
    """
    try:
        must_exist(component)
    except DataError as error:
        raise DataError(f"{error}; if they have moved, say where: --data {_shown_place(component)}") from None


def _place(config: TrialConfig, latest: Mapping[str, str], data: Component | None, owner: str) -> Mapping[str, str]:
    """Return where the images of a configuration are; empty if they are where it says."""
    if "data" not in config.tree:
        return {}
    known = config.component("data")
    if data is not None:
        if (data.name, data.args.get("name")) != (known.name, known.args.get("name")):
            shown = _shown_place(known)
            raise UserError(f"--data {_shown_kind(data)}: {owner} has images of another kind; allowed: {shown}")
        if "file" in data.args and data.args["root"] is None and known.args.get("root") is not None:
            # As in `run --data table:FILE`, keep the root that the study was given.
            root = latest.get("root", known.args["root"])
            data = replace(data, args={**data.args, "root": root})
        must_exist(data)
        return _located(data)
    if not latest:
        return {}
    try:
        written = _located(known)
    except UserError:
        # The original path has an environment variable that is no longer set.
        return latest
    # On another machine, the original place may be valid there, as with `~` and `${PHOTOS}`.
    is_there = _are_there(written) and not _are_there(latest)
    return {} if written == latest or is_there else latest


def _located(component: Component) -> dict[str, str]:
    """Return the absolute paths of a data set's folder and table, with links unresolved; empty if it needs none."""
    found = {
        name: _absolute(component.args[name], f"{component.path}.{name}")
        for name in FACTS
        if component.args.get(name) is not None
    }
    if "file" in found:
        found.setdefault("root", str(Path(found["file"]).parent))
    return found


def _absolute(path: str, where: str) -> str:
    return os.path.abspath(expand_path(path, where))  # noqa: PTH100


def _are_there(places: Mapping[str, str]) -> bool:
    tests = {"root": Path.is_dir, "file": Path.is_file}
    return bool(places) and all(tests[name](Path(place)) for name, place in places.items())


def _shown_place(component: Component) -> str:
    """Return the form of `--data` for a data set of this kind."""
    kind = _shown_kind(component)
    return f"{kind}:FILE" if "file" in component.args else f"{kind}:FOLDER" if "root" in component.args else kind


def _shown_kind(component: Component) -> str:
    name = component.args.get("name")
    return component.name if name is None else f"{component.name}:{name}"


def with_known_name(space: Space, root: Path, address: Address | None) -> Space:
    """Return a space with the name of its study: earlier versions named every study of a folder `<space>-folder`.

    Such a study belongs to the space if it would get the space's name today, and no study has that name yet.

    Raises:
        StudyError: a study of either name is damaged.
    """
    if space.former_name is None or find_study(root, space.name, address).store.exists():
        return space
    former = find_study(root, space.former_name, address)
    if not former.store.exists() or _slug(load(former)) != slug(space.first().component("data").args["root"]):
        return space
    return replace(space, name=space.former_name, former_name=None)


def prints_of(record: Record) -> Prints:
    """Return the fingerprints of a study's images."""
    known = record.fact("data")
    return Prints(whole=known["fingerprint"], seen=known.get("seen_fingerprint", ""))


def as_fact(data: Prepared) -> DataFact:
    """Return the fact to store about images."""
    found: DataFact = {
        "fingerprint": data.fingerprint,
        "seen_fingerprint": data.seen_fingerprint,
        "classes": list(data.classes),
        "images": dict(data.counts),
    }
    if data.folds:
        found["folds"] = list(data.folds)
    return found


def look_for_other_test(
    component: Component, cache: Path, known: DataFact, since: str
) -> tuple[ChangedTest, str] | None:
    """Return the old and new number of test images, with a line about it, if nothing else has changed since.

    `known` is the fact that a study, or a training, stored about its images; `since` says when that was.
    """
    if not is_of_files(component):
        # A library checks its own data.
        return None
    prints = Prints(whole=known["fingerprint"], seen=known.get("seen_fingerprint", ""))
    try:
        source = describe(component, cache)
        if not source.prints.differ_in_test(prints):
            return None
    except DataError:
        # Images that cannot be split differ in more than the test split.
        return None
    then, now = known["images"]["test"], len(source.names["test"])
    line = f"the test split has changed since {since}: then {then} images, now {now}; it is scored as it is now"
    return {"then": then, "now": now}, line


def note_opening(
    record: Record, opening: Opening, component: Component, cache: Path, say: Callable[[str], None]
) -> None:
    """Record that a study's test split is opened, and say so if it has changed since the study began."""
    assert record.files is not None, "only a stored study has a test split to open"
    since = f"study {record.files.name!r} began"
    if (changed := look_for_other_test(component, cache, record.fact("data"), since)) is not None:
        opening["test_changed"] = changed[0]
        say(changed[1])
    record.append_fact("test_openings", opening)


def refuse_other(record: Record, config: TrialConfig, data: Prepared, helper: Helper) -> None:
    """Refuse images that are not those of a study, compared by the version of its fingerprint.

    Raises:
        StudyError: they differ; the message gives the old and new counts.
    """
    known = prints_of(record)
    if not data.prints.are_of(known) and not helper.has_prints(config, known):
        raise _others(record, data.classes, data.counts)


def refuse_other_unopened(record: Record, component: Component, cache: Path) -> None:
    """Do the same for a study that has nothing left to do, without decoding images.

    Only a user's own files can change: a library checks its own data.

    Raises:
        StudyError: they differ.
        DataError: they are missing.
    """
    if not is_of_files(component):
        return
    source = describe(component, cache)
    if not source.has_prints(prints_of(record)):
        raise _others(record, source.classes, {split: len(names) for split, names in source.names.items()})


def _others(record: Record, classes: Sequence[str], counts: Mapping[str, int]) -> StudyError:
    known = record.fact("data")
    then, now = _in_words(known["images"], len(known["classes"])), _in_words(counts, len(classes))
    differ = (
        f"then {then}; now {now}" if then != now else f"as many as now, {now}, but some with another name or content"
    )
    return StudyError(
        f"study {record.study.study_name!r} was started with other images: {differ}; put them back, or begin another "
        "study: run ... --name NAME"
    )


def _in_words(counts: Mapping[str, int], classes: int) -> str:
    shown = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test") if split in counts)
    return f"{shown} images of {counted('class', classes)}"


def _slug(record: Record) -> str | None:
    folder = record.fact("space")["data"].get("folder")
    return None if folder is None else slug(folder["root"])
