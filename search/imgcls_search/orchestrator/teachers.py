"""Who teaches: the weights that a configuration distils from, found, checked against the images, and kept."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls_search import atomic, digests
from imgcls_search.compress.sections import DISTILL, Distillation, distillation
from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import Frame, Prepared
from imgcls_search.errors import BuildError, CheckpointError, NoResultError, StudyError
from imgcls_search.executors.helper import Helper
from imgcls_search.image_size import ImageSize, by, shown
from imgcls_search.signature import build
from imgcls_search.space import Space
from imgcls_search.study import best
from imgcls_search.study.address import Address
from imgcls_search.study.facts import KnownTeacher
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.record import load

Teachers = dict[str, KnownTeacher]
"""What a study remembers of its teachers, by name."""


def settle(
    space: Space, files: StudyFiles, data: Prepared, helper: Helper, known: Mapping[str, KnownTeacher]
) -> Teachers:
    """Return every teacher that the trials of a space may have, its weights copied into the study.

    `known` are the teachers that the study remembers; it keeps them, whatever has become of where they came from.

    Raises:
        BuildError: a teacher has other classes, or takes images of another size.
        CheckpointError: its weights are missing, damaged, or others than when the study began.
        StudyError: there is no such study.
        NoResultError: that study has no best trial yet.
    """
    found: Teachers = {}
    for plan in _plans(space):
        entry = known.get(plan.key)
        if entry is None or not files.teacher(entry["sha256"]).is_file():
            fresh, path = _find(plan, files.root, files.address)
            if entry is not None and entry["sha256"] != fresh["sha256"]:
                raise CheckpointError(
                    f"{plan.path}: {path}: other weights than this study began with; put them back, or name another "
                    "study with --name"
                )
            entry = fresh
            kept = files.teacher(fresh["sha256"])
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic.copy(path, kept)
        found[plan.key] = entry
        _must_fit(plan, files.teacher(entry["sha256"]), data, _frames(space, data), helper)
    return found


def path_of(config: TrialConfig, files: StudyFiles, teachers: Mapping[str, KnownTeacher]) -> str | None:
    """Return the study's copy of the weights that a configuration learns from, None where it learns from labels."""
    plan = distillation(config)
    return None if plan is None else str(files.teacher(teachers[plan.key]["sha256"]))


def settle_one(
    config: TrialConfig,
    root: Path,
    at: Address | None,
    origin: Mapping[str, Any] | None,
    data: Prepared,
    helper: Helper,
) -> tuple[str, KnownTeacher] | None:
    """Return the weights that one configuration learns from, and what is known of them; None where there are none.

    A configuration that was exported learns from the teacher that its study kept, where that can be found.

    Raises:
        BuildError: the teacher has other classes, or takes images of another size.
        CheckpointError, StudyError, NoResultError: there is no teacher to be found.
    """
    plan = distillation(config)
    if plan is None:
        return None
    kept = _kept(plan, root, at, origin)
    entry, path = kept if kept is not None else _find(plan, root, at)
    _must_fit(plan, path, data, [data.frame], helper)
    return str(path), entry


def _kept(
    plan: Distillation, root: Path, at: Address | None, origin: Mapping[str, Any] | None
) -> tuple[KnownTeacher, Path] | None:
    if origin is None:
        return None
    try:
        files = find_study(root, origin["study"], at)
        entry = load(files).facts.get("teachers", {}).get(plan.key)
    except StudyError:
        return None
    if entry is None or not files.teacher(entry["sha256"]).is_file():
        return None
    return entry, files.teacher(entry["sha256"])


def _plans(space: Space) -> list[Distillation]:
    """Return the teachers that a space names; what else is searched about them does not matter here."""
    found = []
    for name, arguments in space.document.get("distill", {}).items():
        key = {"file": "path", "study": "name"}.get(name)
        if key is not None:
            sources = _values(arguments[key])
            components = [Component(path=f"distill.{name}", name=name, args={key: source}) for source in sources]
            found += [build(DISTILL, component) for component in components]
    return found


def _frames(space: Space, data: Prepared) -> list[Frame]:
    """Return how the images of trials may be brought to their shape, each end of a range for the range."""
    section = space.document["image"]
    names = ("size", "fit", "fill", "margin")
    return [
        Frame.of(dict(zip(names, values, strict=True)), values[0] or data.image_size, data.channels)
        for values in itertools.product(*(_values(section[name]) for name in names))
    ]


def _values(entry: Any) -> list[Any]:
    """Return the values that an argument of a space may take: one, those of a choice, or the ends of a range."""
    if not isinstance(entry, Mapping):
        return [entry]
    return list(entry.get("choice") or entry.get("int") or entry.get("float") or ())


def _find(plan: Distillation, root: Path, at: Address | None) -> tuple[KnownTeacher, Path]:
    if plan.kind == "file":
        path = expand_path(plan.source, plan.path)
        if not path.is_file():
            raise CheckpointError(f"{plan.path}: {path}: no such weights file; train writes one")
        return {"sha256": digests.of_file(path), "file": str(path)}, path
    try:
        files = find_study(root, plan.source, at)
        record = load(files)
        members = best.front(record)
    except (StudyError, NoResultError) as error:
        raise type(error)(f"{plan.path}: {error}") from None
    if len(members) > 1:
        raise StudyError(
            f"{plan.path}: study {plan.source!r} has {len(members)} trials on its front: "
            f"{best.listed(members, record)}; export one of them with --trial, train it, and distil from that file"
        )
    teacher = members[0]
    path = files.checkpoint(teacher.number)
    if not path.is_file():
        raise CheckpointError(
            f"{plan.path}: study {plan.source!r} kept no weights of its best trial {teacher.number}; allowed: a study "
            "with study.keep of at least 1, or distil from a file that train writes"
        )
    return {"sha256": digests.of_file(path), "study": plan.source, "trial": teacher.number}, path


def _must_fit(plan: Distillation, path: Path, data: Prepared, frames: Sequence[Frame], helper: Helper) -> None:
    """Refuse a teacher that would not see images as it was trained on them.

    Of another mean and deviation it may be: `compress.distill` gives it the images normalised by its own.
    """
    try:
        taught = helper.describe_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"{plan.path}: {plan.source}: {error}") from None
    if taught.classes != data.classes:
        raise BuildError(
            plan.path,
            f"{plan.source}: a teacher of other classes: it knows {_show(taught.classes)}, the images have "
            f"{_show(data.classes)}",
        )
    if taught.has_several_labels != data.has_several_labels:
        one, several = "one class each", "several labels each"
        learned, here = (several, one) if taught.has_several_labels else (one, several)
        raise BuildError(plan.path, f"{plan.source}: a teacher of images with {learned}; these images have {here}")
    theirs = taught.frame
    for ours in frames:
        if (theirs.channels, theirs.size) != (ours.channels, ours.size):
            raise BuildError(
                plan.path,
                f"{plan.source}: a teacher of another input: it takes {_shape(theirs.channels, theirs.size)}, the "
                f"images are {_shape(ours.channels, ours.size)}; allowed: image: {{size: {shown(theirs.size)}, "
                f"channels: {theirs.channels}}}",
            )
        if theirs.settings() != ours.settings():
            raise BuildError(
                plan.path,
                f"{plan.source}: a teacher of other images: it was trained with {_framing(theirs)}, the images have "
                f"{_framing(ours)}; allowed: image: {{{_framing(theirs)}}}",
            )


def _framing(frame: Frame) -> str:
    fill = f", fill: {frame.fill}" if frame.fit == "pad" else ""
    return f"fit: {frame.fit}{fill}, margin: {frame.margin:g}"


def _shape(channels: int, size: ImageSize) -> str:
    return f"{by(size)} pixels of {channels} channel(s)"


def _show(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} ({shown}{', ...' if len(names) > 5 else ''})"
