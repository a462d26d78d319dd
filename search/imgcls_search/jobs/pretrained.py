"""Pretrained networks for trainings outside a search: taken from the cache, or trained first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from imgcls_search import digests
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import UserError
from imgcls_search.jobs.trainer import Trainer
from imgcls_search.orchestrator import teachers
from imgcls_search.orchestrator.backbones import Backbone, BackboneFinder, BackboneStore, job_of
from imgcls_search.protocol import Portion
from imgcls_search.study.address import Address
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.record import Record, load
from imgcls_search.study.settings import StudySettings
from imgcls_search.trial import Origin

POLL_SECONDS = 0.5
"""How often to look for a network that another process trains."""


class PretrainedNetworks:
    """Provides the networks that trainings of one command start from."""

    def __init__(
        self,
        trainer: Trainer,
        seed: int,
        teacher_of: Callable[[TrialConfig], str | None],
        most_gb: float = StudySettings.disk_gb,
    ) -> None:
        """`seed` is the seed of the pretrainings; `teacher_of` returns the weights file that one imitates.

        If all networks together are larger than `most_gb`, the least recently used ones are deleted.
        """
        self.trainer, self.most_bytes = trainer, most_gb * 1e9
        self.store = BackboneStore(trainer.helper.root)
        self.finder = BackboneFinder(
            helper=trainer.helper, seed=seed, teacher_of=teacher_of, progress=trainer.watcher.decoding
        )

    @classmethod
    def of_study(cls, trainer: Trainer, files: StudyFiles, record: Record) -> PretrainedNetworks:
        """Return the networks of a study's trials."""
        known = record.facts.get("teachers", {})
        most_gb = _study_section(record).get("disk_gb", StudySettings.disk_gb)
        return cls(trainer, seed_of(record), lambda alone: teachers.path_of(alone, files, known), most_gb)

    def needed_by(
        self, config: TrialConfig, data: Prepared, *, portion: Portion = "train", seed: int | None = None
    ) -> tuple[Backbone, ...]:
        """Return the networks that a training starts from; with `seed`, those pretrained with it.

        Raises:
            DataError: the images to pretrain on are missing, damaged or too few.
        """
        found = self.finder.of(config, data, portion=portion, seed=seed)
        for line in self.finder.lines:
            self.trainer.watcher.say(line)
        self.finder.lines.clear()
        return found

    def files_of(self, needed: Iterable[Backbone]) -> tuple[str, ...]:
        """Return the weights files of networks."""
        return tuple(str(self.store.path(each.key)) for each in needed)

    def make(self, needed: Iterable[Backbone]) -> None:
        """Train the missing networks; wait for those that another process trains.

        Raises:
            NoResultError: a pretraining failed.
            StudyError: the folder of the networks cannot be written.
        """
        missing = {each.key: each for each in needed if not self.store.has(each.key)}
        is_told = False
        while missing:
            with ExitStack() as stack:
                mine = [each for each in missing.values() if self._takes(each, stack)]
                if mine:
                    self._make(mine)
                elif not is_told:
                    is_told = True
                    self.trainer.watcher.say("waiting for a pretraining by another process")
            missing = {key: each for key, each in missing.items() if not self.store.has(key)}
            if missing and not mine:
                time.sleep(POLL_SECONDS)

    def differing(self, record: Record, needed: Iterable[Backbone]) -> list[str]:
        """Return a line for each network that differs from the one that a study's trials started from."""
        known, found = record.facts.get("backbones", {}), []
        for each in needed:
            then, now = known.get(each.key, {}).get("sha256"), digests.of_file(self.store.path(each.key))
            if then is None and known:
                found.append(f"pretraining {each.what}: by other versions, images or settings than the study's")
            elif then not in (None, now):
                found.append(f"pretraining {each.what}: its weights were {str(then)[:12]}, are now {now[:12]} (sha256)")
        return found

    def _takes(self, backbone: Backbone, stack: ExitStack) -> bool:
        lock = self.store.taken(backbone.key)
        if lock is None:
            return False
        stack.callback(lock.release)
        # Another process may have trained it meanwhile.
        return not self.store.has(backbone.key)

    def _make(self, backbones: Sequence[Backbone]) -> None:
        for each in backbones:
            self.store.clear_leftovers(each.key)
            self.trainer.watcher.say(f"pretraining {each.what}")
        jobs = [job_of(each, self.store, number) for number, each in enumerate(backbones)]
        self.trainer.train(jobs, [f"pretraining {each.what}" for each in backbones])
        for each in backbones:
            self.store.finish(each.key)
        self.store.tidy(self.most_bytes, {each.key for each in self.finder.known.values()})


def seed_of(record: Record) -> int:
    """Return the seed of a study's pretrainings."""
    return int(_study_section(record).get("seed", 0))


def _study_section(record: Record) -> Mapping[str, Any]:
    space: Mapping[str, Any] = record.facts.get("space", {})
    section: Mapping[str, Any] = space.get("study", {})
    return section


def of_configuration(trainer: Trainer, data: Prepared, origin: Origin | None, at: Address | None) -> PretrainedNetworks:
    """Return the networks of one configuration, with the seed of the study it was exported from, 0 if unknown.

    Raises:
        CheckpointError, StudyError, NoResultError: the network that it imitates cannot be found.
        BuildError: that network takes other images.
    """
    seed, root = 0, trainer.helper.root
    if origin is not None:
        with suppress(UserError):
            seed = seed_of(load(find_study(root, origin["study"], at)))

    def teacher_of(alone: TrialConfig) -> str | None:
        found = teachers.settle_one(alone, root, at, origin, data, trainer.helper)
        return None if found is None else found[0]

    return PretrainedNetworks(trainer, seed, teacher_of)
