"""Pretrained networks that trainings start from: which one a configuration needs, and the folder that keeps them.

Equal networks, images, pretraining, seed and versions share one file below the studies' folder, made once for all
trials and studies. A deleted file is made again when it is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search import archive, atomic, digests
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.data.unlabeled import look_for_unlabeled
from imgcls_search.errors import StudyError, writing
from imgcls_search.executors.helper import Helper, backbone_cache
from imgcls_search.progress import Progress
from imgcls_search.protocol import Job, Portion
from imgcls_search.study.facts import KnownBackbone
from imgcls_search.study.record import Record

if TYPE_CHECKING:
    from filelock import FileLock

VERSION = 1
"""Part of every key: raise it when a pretraining gives other weights."""

IN_USE_SECONDS = 3600.0
"""Files used more recently than this are not deleted: another process may be about to read them."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pretrained network that trainings start from."""

    config: TrialConfig
    """Configuration of the pretraining alone."""

    data: Prepared
    seed: int
    has_own_seed: bool
    """Whether the seed differs from the study's."""

    fold: int | None
    """The held-out fold, None if there is none."""

    teacher: str | None
    """The weights file of the network that it imitates."""

    key: str
    """Its name in the folder: equal for equal networks."""

    @property
    def what(self) -> str:
        """The pretraining in words."""
        model, way = self.config.component("model"), self.config.component("pretrain").name
        name = f"{model.name} {model.args['name']}" if model.name == "timm" else model.name
        held = "" if self.fold is None else f", fold {self.fold + 1} held out"
        seeded = f", seed {self.seed}" if self.has_own_seed else ""
        return f"{name} ({way}, {self.config.epochs} epochs{held}{seeded})"

    def fact(self, **more: Any) -> KnownBackbone:
        """Return the fact that a study stores about it."""
        model, way = self.config.component("model").name, self.config.component("pretrain").name
        known = KnownBackbone(model=model, pretrain=way, epochs=self.config.epochs, seed=self.seed)
        if self.fold is not None:
            known["fold"] = self.fold
        return {**known, **more}  # type: ignore[typeddict-item]


class BackboneStore:
    """The folder of pretrained networks."""

    def __init__(self, root: Path) -> None:
        """The folder is below `root`, the folder of the studies."""
        self.folder = backbone_cache(root)
        self.sound: set[str] = set()
        """Keys of files whose digests were checked."""

    def path(self, key: str) -> Path:
        """Return the path of the finished weights."""
        return self.folder / f"{key}.pt"

    def checkpoint(self, key: str) -> Path:
        """Return the path of the state of an unfinished pretraining."""
        return self.folder / f"{key}.state.pt"

    def log(self, key: str) -> Path:
        """Return the path of the pretraining's log."""
        return self.folder / f"{key}.log"

    def has(self, key: str) -> bool:
        """Tell whether an intact network exists, and mark it as used; delete a damaged one."""
        path = self.path(key)
        try:
            if key not in self.sound:
                archive.verify(path)
                self.sound.add(key)
            os.utime(path)
        except FileNotFoundError:
            self.sound.discard(key)
            return False
        except archive.DamagedError:
            path.unlink(missing_ok=True)
            return False
        except OSError as error:
            # A file on a disk that stores no times can still be read.
            if not path.is_file():
                raise StudyError(f"{path}: cannot be read ({error.strerror})") from error
        return True

    def taken(self, key: str) -> FileLock | None:
        """Return the lock of a network to be made, or None if another process is making it.

        Raises:
            StudyError: the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / f"{key}.lock")
        with writing(self.folder, StudyError):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return None
        return lock

    def finish(self, key: str) -> str:
        """Delete the state of the pretraining, and return the digest of the weights file."""
        self.checkpoint(key).unlink(missing_ok=True)
        return digests.of_file(self.path(key))

    def tidy(self, most_bytes: float, needed: Collection[str] = ()) -> list[str]:
        """Delete the least recently used networks until the rest fit into a budget; return their keys."""
        kept = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.pt"):
                # Another process may delete the same file.
                with contextlib.suppress(OSError):
                    state = path.stat()
                    kept.append((state.st_mtime, state.st_size, path))
        total, gone = sum(size for _, size, _ in kept), []
        for used, size, path in sorted(kept):
            key = path.name.partition(".")[0]
            if total <= most_bytes:
                break
            if key in needed or time.time() - used < IN_USE_SECONDS:
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                self.log(key).unlink(missing_ok=True)
                total -= size
                gone.append(key)
        return gone

    def clear_leftovers(self, key: str) -> None:
        """Delete files that a killed worker left half-written; the caller holds the lock."""
        for path in self.folder.glob(f"{key}*{atomic.SUFFIX}"):
            path.unlink(missing_ok=True)


@dataclass(kw_only=True)
class BackboneFinder:
    """Finds the pretrained networks that configurations need."""

    helper: Helper
    seed: int
    """Seed of the pretrainings: that of the study."""

    teacher_of: Callable[[TrialConfig], str | None]
    """Returns the weights file that a pretraining imitates."""

    progress: Progress | None = None
    known: dict[tuple[str, int | None, int], Backbone] = field(default_factory=dict)
    prints: dict[tuple[str, int, int | None], str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the images, by a digest of image format and held-out fold."""

    lines: list[str] = field(default_factory=list)
    """Lines to report about the images, each once."""

    def of(
        self, config: TrialConfig, data: Prepared, *, portion: Portion = "train", seed: int | None = None
    ) -> tuple[Backbone, ...]:
        """Return the networks that a training starts from: none, one, or one for each fold.

        Raises:
            DataError: the images to pretrain on are missing, damaged or too few.
        """
        if not config.needs_backbone:
            return ()
        folds: Sequence[int | None] = range(len(data.folds)) if data.folds and portion == "train" else [None]
        alone = config.pretraining()
        return tuple(self._of(alone, data, fold, self.seed if seed is None else seed) for fold in folds)

    def _of(self, config: TrialConfig, data: Prepared, fold: int | None, seed: int) -> Backbone:
        asked = config.digest(), fold, seed
        if asked not in self.known:
            teacher = self.teacher_of(config)
            self.known[asked] = Backbone(
                config=config,
                data=data,
                seed=seed,
                has_own_seed=seed != self.seed,
                fold=fold,
                teacher=teacher,
                key=self._key(config, data, fold, seed, teacher),
            )
        return self.known[asked]

    def _key(self, config: TrialConfig, data: Prepared, fold: int | None, seed: int, teacher: str | None) -> str:
        image = {name: value for name, value in config.section("image").items() if name != "cache_gb"}
        origin = [
            VERSION,
            config.to_dict()["model"],
            {**image, "size": data.image_size, "channels": data.channels},
            [data.mean, data.std],
            _without_source(config.to_dict()["pretrain"]),
            self._prints(config, data, fold),
            seed,
            None if teacher is None else digests.of_file(Path(teacher)),
            self.helper.versions(),
        ]
        return digests.of_text(json.dumps(origin, sort_keys=True))[:24]

    def _prints(self, config: TrialConfig, data: Prepared, fold: int | None) -> str:
        asked = config.digest("data", "image", "unlabeled"), config.batch_size, fold
        if asked not in self.prints:
            self.prints[asked], lines = self.helper.open_unlabeled(config, data, fold, self.progress)
            self.lines += [line for line in lines if line not in self.lines]
            image = [data.frame.settings(), fold]
            self.images[digests.of_text(json.dumps(image))[:16]] = self.prints[asked]
        return self.prints[asked]


def look_early(configs: Iterable[TrialConfig]) -> None:
    """Check that the folders to pretrain on exist and have images, before anything slow.

    Raises:
        DataError: a folder is missing, has too few images, or has images of a split that is scored.
    """
    # List a large folder only once.
    asked = {}
    for config in configs:
        if config.needs_backbone or config.is_pretraining:
            alone = config.pretraining()
            asked[alone.digest("data", "unlabeled"), alone.batch_size] = alone
    for alone in asked.values():
        look_for_unlabeled(alone)


def note_images(record: Record, images: Mapping[str, str]) -> None:
    """Store which images a study pretrains on, or refuse other images than it began with.

    Raises:
        StudyError: they differ.
    """
    known = record.facts.get("unlabeled", {})
    if any(known.get(name, prints) != prints for name, prints in images.items()):
        raise StudyError(
            "unlabeled: other images to pretrain on than this study began with; put them back, or name another study "
            "with --name"
        )
    if images.keys() - known.keys():
        record.set_fact("unlabeled", {**known, **images})


def _without_source(pretrain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pretraining without the source of its teacher: only the teacher's weights count."""
    ((name, args),) = pretrain.items()
    return {name: {key: value for key, value in args.items() if key != "teacher"}}


def job_of(backbone: Backbone, store: BackboneStore, number: int, *, micro_batches: int = 1) -> Job:
    """Return the job that makes a network, or resumes an interrupted one."""
    return Job(
        trial=number,
        config=backbone.config,
        data=backbone.data.to_dict(),
        seed=backbone.seed,
        portion="train",
        until_epoch=backbone.config.epochs,
        from_epoch=0,
        checkpoint=str(store.checkpoint(backbone.key)),
        log=str(store.log(backbone.key)),
        micro_batches=micro_batches,
        artifact=str(store.path(backbone.key)),
        teacher=backbone.teacher,
        fold=backbone.fold,
    )
