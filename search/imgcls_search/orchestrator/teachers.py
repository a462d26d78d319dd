"""Teachers: find the network that a configuration learns from, check it against the images, and keep a copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imgcls_search import atomic, digests
from imgcls_search.compress.sections import DISTILL, Distillation, distillation
from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import Frame, Prepared
from imgcls_search.errors import BuildError, CheckpointError, NoResultError, StudyError, writing
from imgcls_search.executors.helper import Helper
from imgcls_search.image_size import ImageSize, by, shown
from imgcls_search.signature import build
from imgcls_search.space import Space
from imgcls_search.study import best
from imgcls_search.study.address import Address
from imgcls_search.study.facts import KnownTeacher
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.record import load
from imgcls_search.training import pretraining
from imgcls_search.trial import Origin
from imgcls_search.words import counted

Teachers = dict[str, KnownTeacher]
"""The facts that a study stores about its teachers, by name."""

SETTINGS = {"timm": "name", "file": "path", "study": "name"}
"""The argument that names the teacher, by the kind of teacher."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network to learn from, as a space names it."""

    section: str
    """The section that names it, such as `distill`."""

    kind: Literal["timm", "file", "study"]
    source: str
    """timm's name of the network, the weights file, or the name of the study."""

    weights: str | None = None
    """The weights of a network of timm: `imagenet`, or the path of a file."""

    size: ImageSize | None = None
    """The image size that it sees. None: that of the student; its answers are imitated then, not its features."""

    @property
    def key(self) -> str:
        """Its name in the facts of a study."""
        if self.kind != "timm":
            return f"{self.kind}:{self.source}"
        return (
            f"timm:{self.source}:{self.weights}"
            if self.size is None
            else f"timm:{self.source}:{self.weights}:{self.size}"
        )

    @property
    def path(self) -> str:
        """The setting that names it."""
        return f"{self.section}.{self.kind}.{SETTINGS[self.kind]}"


def settle(
    space: Space, files: StudyFiles, data: Prepared, helper: Helper, known: Mapping[str, KnownTeacher]
) -> Teachers:
    """Return every teacher that the trials of a space may have, with its weights copied into the study.

    `known` are the teachers that the study has stored; it keeps them, even if their sources change.

    Raises:
        BuildError: a teacher whose answers count has other classes, or takes images of another size.
        CheckpointError: its weights are missing, damaged, or differ from those that the study began with.
        StudyError: there is no such study, or the copy cannot be written.
        NoResultError: that study has no best trial yet.
    """
    found: Teachers = {}
    frames = _frames(space, data)
    for teacher in _named_in(space):
        entry = known.get(teacher.key)
        if entry is None or not files.teacher(entry["sha256"]).is_file():
            fresh, path = _find(teacher, files.root, files.address, data, frames, helper)
            if entry is not None and entry["sha256"] != fresh["sha256"]:
                raise CheckpointError(
                    f"{teacher.path}: {path}: other weights than this study began with; put them back, or name another "
                    "study with --name"
                )
            entry = fresh
            _copy(path, files.teacher(fresh["sha256"]))
        found[teacher.key] = entry
        _must_fit(teacher, files.teacher(entry["sha256"]), data, frames, helper)
    return found


def refuse_missing(space: Space, root: Path, at: Address | None) -> None:
    """Refuse a space that names a missing file or study as a teacher; load no network.

    A teacher that the space's study has a copy of may be missing.

    Raises:
        CheckpointError, StudyError, NoResultError: as `settle`.
    """
    for teacher in _named_in(space):
        if teacher.kind != "timm" and _kept(teacher, root, at, space.name) is None:
            _find_file(teacher, root, at)


def path_of(config: TrialConfig, files: StudyFiles, teachers: Mapping[str, KnownTeacher]) -> str | None:
    """Return the study's copy of the weights that a configuration learns from, or None if it learns from labels.

    Raises:
        StudyError: the study has no such teacher, as only a damaged one lacks it.
    """
    teacher = of_config(config)
    if teacher is None:
        return None
    if teacher.key not in teachers:
        raise StudyError(f"study {files.name!r} is damaged: it has no record of the teacher {teacher.key}")
    return str(files.teacher(teachers[teacher.key]["sha256"]))


def of_config(config: TrialConfig) -> Teacher | None:
    """Return the network that a configuration learns from, or None if there is none.

    A pretraining imitates its teacher; a training that starts from one has a teacher of its own, or none.
    """
    if config.is_pretraining:
        imitated, plan_of = pretraining.teacher_of(config), pretraining.plan(config)
        if imitated is None:
            return None
        assert isinstance(plan_of, pretraining.Imitation)
        return _of_imitation(imitated, plan_of.size)
    plan = distillation(config)
    return None if plan is None else _of_distillation(plan)


def settle_one(
    config: TrialConfig,
    root: Path,
    at: Address | None,
    origin: Origin | None,
    data: Prepared,
    helper: Helper,
) -> tuple[str, KnownTeacher] | None:
    """Return the weights that one configuration learns from and the fact about them, or None without a teacher.

    An exported configuration learns from the copy of the teacher in its study, if that can be found.

    Raises:
        BuildError: a teacher whose answers count has other classes, or takes images of another size.
        CheckpointError, StudyError, NoResultError: the teacher cannot be found.
    """
    teacher = of_config(config)
    if teacher is None:
        return None
    kept = None if origin is None else _kept(teacher, root, at, origin["study"])
    entry, path = kept if kept is not None else _find(teacher, root, at, data, [data.frame], helper)
    _must_fit(teacher, path, data, [data.frame], helper)
    return str(path), entry


def _kept(teacher: Teacher, root: Path, at: Address | None, study: str) -> tuple[KnownTeacher, Path] | None:
    try:
        files = find_study(root, study, at)
        entry = load(files).facts.get("teachers", {}).get(teacher.key)
    except StudyError:
        return None
    if entry is None or not files.teacher(entry["sha256"]).is_file():
        return None
    return entry, files.teacher(entry["sha256"])


def _copy(path: Path, kept: Path) -> None:
    with writing(kept, StudyError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic.copy(path, kept)


def _named_in(space: Space) -> Iterator[Teacher]:
    """Yield the teachers that a space names; other searched settings of theirs do not matter here."""
    if (imitation := space.document.get("pretrain", {}).get("imitate")) is not None:
        for name, arguments in imitation["teacher"].items():
            for component in _components("pretrain.imitate.teacher", name, arguments):
                yield _of_imitation(build(pretraining.TEACHERS, component), imitation["size"])
    for name, arguments in space.document.get("distill", {}).items():
        for component in _components("distill", name, arguments):
            plan = build(DISTILL, component)
            if plan is not None:
                yield _of_distillation(plan)


def _components(section: str, name: str, arguments: Mapping[str, Any]) -> Iterator[Component]:
    """Yield a component for each teacher that a section may name by its values."""
    names = [key for key in (SETTINGS.get(name, ""), "weights") if key in arguments]
    for values in itertools.product(*(_values(arguments[key]) for key in names)):
        yield Component(path=f"{section}.{name}", name=name, args=dict(zip(names, values, strict=True)))


def _of_imitation(teacher: pretraining.TeacherSource, size: int) -> Teacher:
    return Teacher(
        section="pretrain.imitate.teacher",
        kind=teacher.kind,
        source=teacher.source,
        weights=teacher.weights,
        size=size,
    )


def _of_distillation(plan: Distillation) -> Teacher:
    return Teacher(section="distill", kind=plan.kind, source=plan.source, weights=plan.weights)


def _frames(space: Space, data: Prepared) -> list[Frame]:
    """Return every way in which trials may bring images to their shape; a range counts with both its ends."""
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


def _find(
    teacher: Teacher, root: Path, at: Address | None, data: Prepared, frames: Sequence[Frame], helper: Helper
) -> tuple[KnownTeacher, Path]:
    if teacher.kind == "timm":
        return _find_in_timm(teacher, data, frames, helper)
    return _find_file(teacher, root, at)


def _find_file(teacher: Teacher, root: Path, at: Address | None) -> tuple[KnownTeacher, Path]:
    """Return the weights of a teacher that is a file, or the best trial of a study."""
    if teacher.kind == "file":
        path = expand_path(teacher.source, teacher.path)
        if not path.is_file():
            raise CheckpointError(f"{teacher.path}: {path}: no such weights file; train writes one")
        return {"sha256": digests.of_file(path), "file": str(path)}, path
    try:
        files = find_study(root, teacher.source, at)
        record = load(files)
        members = best.front(record)
    except (StudyError, NoResultError) as error:
        raise type(error)(f"{teacher.path}: {error}") from None
    if len(members) > 1:
        raise StudyError(
            f"{teacher.path}: study {teacher.source!r} has {len(members)} trials on its front: "
            f"{best.listed(members, record)}; export one of them with --trial, train it, and distil from that file"
        )
    path = files.checkpoint(members[0].number)
    if not path.is_file():
        raise CheckpointError(
            f"{teacher.path}: study {teacher.source!r} kept no weights of its best trial {members[0].number}; "
            "allowed: a study with study.keep of at least 1, or distil from a file that train writes"
        )
    return {"sha256": digests.of_file(path), "study": teacher.source, "trial": members[0].number}, path


def _find_in_timm(
    teacher: Teacher, data: Prepared, frames: Sequence[Frame], helper: Helper
) -> tuple[KnownTeacher, Path]:
    """Return the network of timm as a file of this program, for each size of images that it will see."""
    sizes = [teacher.size] if teacher.size is not None else list(dict.fromkeys(frame.size for frame in frames))
    args = {"name": teacher.source, "weights": teacher.weights}
    component = Component(path=f"{teacher.section}.timm", name="timm", args=args)
    found = [helper.keep_teacher(component, data, image_size=size, answers=teacher.size is None) for size in sizes]
    digest, path = found[0]
    if len({digest for digest, _ in found}) > 1:
        raise BuildError(
            teacher.path,
            f"{teacher.source}: this teacher needs one size of images, but got {len(sizes)}; allowed: one image.size",
        )
    return {"sha256": digest, "timm": teacher.source, "weights": str(teacher.weights)}, path


def _must_fit(teacher: Teacher, path: Path, data: Prepared, frames: Sequence[Frame], helper: Helper) -> None:
    """Refuse a teacher that would see other images than it was trained on, or that knows other classes.

    Mean and deviation may differ: `compress.distill` normalises the images for the teacher. If its features count and
    not its answers, its classes do not matter. A network of timm was built for these images.
    """
    if teacher.kind == "timm":
        return
    try:
        taught = helper.describe_weights(path)
    except CheckpointError as error:
        raise CheckpointError(f"{teacher.path}: {teacher.source}: {error}") from None
    if teacher.size is not None:
        _must_see(teacher, taught, data)
        return
    if taught.classes != data.classes:
        raise BuildError(
            teacher.path,
            f"{teacher.source}: this teacher has other classes: it knows {_show(taught.classes)}, the images have "
            f"{_show(data.classes)}",
        )
    if taught.has_several_labels != data.has_several_labels:
        one, several = "one class each", "several labels each"
        learned, here = (several, one) if taught.has_several_labels else (one, several)
        raise BuildError(
            teacher.path, f"{teacher.source}: this teacher learned from images with {learned}; these images have {here}"
        )
    theirs = taught.frame
    for ours in frames:
        if (theirs.channels, theirs.size) != (ours.channels, ours.size):
            raise BuildError(
                teacher.path,
                f"{teacher.source}: this teacher takes {_shape(theirs.channels, theirs.size)}, the "
                f"images are {_shape(ours.channels, ours.size)}; allowed: image: {{size: {shown(theirs.size)}, "
                f"channels: {theirs.channels}}}",
            )
        if theirs.settings() != ours.settings():
            raise BuildError(
                teacher.path,
                f"{teacher.source}: this teacher was trained with {_framing(theirs)}, the images have "
                f"{_framing(ours)}; allowed: image: {{{_framing(theirs)}}}",
            )


def _must_see(teacher: Teacher, taught: Prepared, data: Prepared) -> None:
    """Refuse a teacher of features that would see images of another size or with other channels."""
    if (taught.image_size, taught.channels) != (teacher.size, data.channels):
        raise BuildError(
            teacher.path,
            f"{teacher.source}: this teacher takes {_shape(taught.channels, taught.image_size)}, but it "
            f"would see {_shape(data.channels, teacher.size or data.image_size)}; allowed: pretrain.imitate.size: "
            f"{shown(taught.image_size)} and image.channels: {taught.channels}",
        )


def _framing(frame: Frame) -> str:
    fill = f", fill: {frame.fill}" if frame.fit == "pad" else ""
    return f"fit: {frame.fit}{fill}, margin: {frame.margin:g}"


def _shape(channels: int, size: ImageSize) -> str:
    return f"{by(size)} pixels of {counted('channel', channels)}"


def _show(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} ({shown}{', ...' if len(names) > 5 else ''})"
