"""Questions that the run asks its helper process: one class per question, with the code that answers it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape, Prepared, Prints
from imgcls_search.errors import SearchError
from imgcls_search.executors.counts import Counts
from imgcls_search.image_size import ImageSize
from imgcls_search.worker.pretrained_file import AboutBackbone

if TYPE_CHECKING:
    from imgcls_search.models.cost import Cost

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Decoding:
    """How many of all images are decoded."""

    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The answer: the last reply to a question."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """An error instead of an answer; it is raised where the question was asked."""

    error: SearchError


Reply = Decoding | Notice | Answer | Refusal

Tell = Callable[[Decoding | Notice], None]
"""Sends a reply before the answer."""


class Question(Generic[T_co]):
    """A question whose answer needs torch or the images."""

    def answer(self, tell: Tell) -> T_co:
        """Return the answer; called in the helper process.

        Raises:
            SearchError: there is no answer.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FindDevices(Question[list[str]]):
    """Which devices may trials use?"""

    wanted: str

    def answer(self, tell: Tell) -> list[str]:
        """Return the devices."""
        from imgcls_search.training.device import available_devices

        return available_devices(self.wanted)


@dataclass(frozen=True, kw_only=True)
class NameHardware(Question[str]):
    """What is the name of a device's hardware?"""

    device: str

    def answer(self, tell: Tell) -> str:
        """Return the name."""
        from imgcls_search.training.device import hardware

        return hardware(self.device)


@dataclass(frozen=True, kw_only=True)
class Prepare(Question[Prepared]):
    """Which data set does a configuration have, once its images are decoded?"""

    config: TrialConfig
    cache: Path
    is_described: bool
    """Whether lines about the images are wanted."""

    def answer(self, tell: Tell) -> Prepared:
        """Decode the images and return the data set."""
        from imgcls_search.worker.pipeline import prepare_data

        return prepare_data(
            self.config,
            self.cache,
            lambda done, total: tell(Decoding(done, total)),
            (lambda text: tell(Notice(text))) if self.is_described else None,
            looks_at_test=True,
        )


@dataclass(frozen=True, kw_only=True)
class OpenUnlabeled(Question[tuple[str, list[str]]]):
    """Which images does a configuration pretrain on, once they are decoded?"""

    config: TrialConfig
    data: Prepared
    cache: Path
    fold: int | None

    def answer(self, tell: Tell) -> tuple[str, list[str]]:
        """Decode them, also as a teacher sees them; return their fingerprint and lines for the user."""
        from imgcls_search.worker.pretraining import open_all

        progress = lambda done, total: tell(Decoding(done, total))  # noqa: E731 - as short as it is
        found = open_all(self.config, self.data, self.fold, progress)
        return found.prints, found.lines()


@dataclass(frozen=True, kw_only=True)
class ComparePrints(Question[bool]):
    """Is the data set of a configuration the recorded one, as far as a search sees it?"""

    config: TrialConfig
    cache: Path
    known: Prints

    def answer(self, tell: Tell) -> bool:
        """Return whether it is."""
        from imgcls_search.data import describe

        return describe(self.config.component("data"), self.cache).has_prints(self.known)


@dataclass(frozen=True, kw_only=True)
class Measure(Question[dict[str, float]]):
    """Which sizes of a configuration are known before training, see `imgcls_search.trial.SIZES`?"""

    config: TrialConfig
    shape: InputShape
    counts: Path
    """The file of cached counts."""

    def answer(self, tell: Tell) -> dict[str, float]:
        """Count the sizes, or read them from the cache, and return them."""
        from imgcls_search.models import pretrained
        from imgcls_search.models.cost import Cost
        from imgcls_search.worker import measuring, start_weights

        known = _COUNTS.setdefault(self.counts, Counts(self.counts))
        model = self.config.component("model")
        head = measuring.head_to_count(self.config)
        found = known.ask(self._asked(), lambda: dataclasses.asdict(measuring.count(model, self.shape, head=head)))
        if smaller := measuring.smaller_sizes(self.config, self.shape):
            known.ask(
                {**self._asked(), "sizes": smaller}, lambda: measuring.check_sizes(model, self.shape, smaller, head)
            )
        if pretrained.is_file(model):
            start_weights.check_weights(model, self.shape)
        return measuring.measure(self.config, self.shape, Cost(**found), deployed=self._deployed(known))

    def _deployed(self, known: Counts) -> Cost | None:
        """Return the cost of the network that structured pruning leaves, or None without such pruning."""
        from imgcls_search.models.cost import Cost
        from imgcls_search.worker import measuring

        amount = measuring.structured_amount(self.config)
        if not amount:
            return None
        model = self.config.component("model")
        head = measuring.head_to_count(self.config)
        question = {**self._asked(), "pruned": amount}
        return Cost(
            **known.ask(
                question, lambda: dataclasses.asdict(measuring.count(model, self.shape, pruned=amount, head=head))
            )
        )

    def _asked(self) -> dict[str, Any]:
        """Return the settings that the cost of the network depends on."""
        from imgcls_search.worker import measuring

        head = measuring.head_to_count(self.config)
        # Without a head, use the key of earlier versions, so that their cached answers stay valid.
        named = {} if head is None else {"head": {head.name: dict(head.args)}}
        return {"model": self.config.to_dict()["model"], "shape": dataclasses.asdict(self.shape), **named}


@dataclass(frozen=True, kw_only=True)
class TryMetrics(Question[None]):
    """Do metrics of other packages work on the validation images of a data set?"""

    names: tuple[str, ...]
    data: Prepared

    def answer(self, tell: Tell) -> None:
        """Call the metrics."""
        import numpy as np

        from imgcls_search.data import load
        from imgcls_search.training.custom_metrics import try_on

        try_on(self.names, len(self.data.classes), np.asarray(load(self.data, "val").labels))


@dataclass(frozen=True, kw_only=True)
class FetchWeights(Question[dict[str, str] | None]):
    """Can the pretrained weights of a configuration be read, do they fit, and which file are they from?"""

    config: TrialConfig
    shape: InputShape

    def answer(self, tell: Tell) -> dict[str, str] | None:
        """Fetch or read them, and return the file's name and digest, or None if a library manages it."""
        from imgcls_search import digests
        from imgcls_search.models import pretrained
        from imgcls_search.worker.start_weights import check_weights

        model = self.config.component("model")
        file = check_weights(model, self.shape)
        if (line := pretrained.size_note(model, self.shape.image_size)) is not None:
            tell(Notice(line))
        return None if file is None else {"file": file.name, "sha256": digests.of_file(file)}


@dataclass(frozen=True, kw_only=True)
class KeepTeacher(Question[tuple[str, Path]]):
    """Which file of this program has the weights of a timm network?"""

    component: Component
    data: Prepared
    image_size: ImageSize
    answers: bool
    """Whether its head is kept too, which must have the images' classes."""

    folder: Path

    def answer(self, tell: Tell) -> tuple[str, Path]:
        """Write the file unless it exists, and return the digest of its weights and its path."""
        from imgcls_search.worker import timm_teacher

        return timm_teacher.keep(
            self.component, self.data, image_size=self.image_size, answers=self.answers, folder=self.folder
        )


@dataclass(frozen=True, kw_only=True)
class DescribeWeights(Question[Prepared]):
    """Which data set were saved weights trained on?"""

    path: Path

    def answer(self, tell: Tell) -> Prepared:
        """Load them into their network, and return the data set."""
        from imgcls_search.training import checkpoint
        from imgcls_search.worker.networks import load_finished

        _, _, data = load_finished(checkpoint.load(self.path), str(self.path))
        return data


@dataclass(frozen=True, kw_only=True)
class DescribeBackbone(Question[AboutBackbone]):
    """How does a file that a pretraining wrote describe itself?"""

    path: Path

    def answer(self, tell: Tell) -> AboutBackbone:
        """Read the description."""
        from imgcls_search.worker.pretraining import read_backbone

        return read_backbone(self.path)


@dataclass(frozen=True, kw_only=True)
class NameVersions(Question[dict[str, str]]):
    """Which versions do a training's numbers depend on?"""

    def answer(self, tell: Tell) -> dict[str, str]:
        """Return the versions by name."""
        from imgcls_search.worker.pipeline import versions

        return versions()


_COUNTS: dict[Path, Counts] = {}
"""In the helper process: caches of counts, by file."""
