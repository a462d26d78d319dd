"""A process that answers questions about torch or the images, so that the run process needs neither."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from imgcls_search import own_code
from imgcls_search.config import Component, TrialConfig, expand_path
from imgcls_search.data import InputShape, Prepared, Prints
from imgcls_search.data.image import check_normalisation
from imgcls_search.errors import BuildError, SearchError, UserError
from imgcls_search.executors import processes
from imgcls_search.executors.counts import Counts
from imgcls_search.executors.questions import (
    Answer,
    ComparePrints,
    Decoding,
    DescribeBackbone,
    DescribeWeights,
    FetchWeights,
    FindDevices,
    KeepTeacher,
    Measure,
    NameHardware,
    NameVersions,
    Notice,
    OpenUnlabeled,
    Prepare,
    Question,
    Refusal,
    Reply,
    TryMetrics,
)
from imgcls_search.image_size import ImageSize
from imgcls_search.progress import Progress
from imgcls_search.worker import head_plan
from imgcls_search.worker.pretrained_file import AboutBackbone

T = TypeVar("T")

MOST_DEATHS = 3
"""Helper processes that may die of one question."""


class HelperDiedError(SearchError):
    """The helper process died each time it was asked this question."""


def image_cache(root: Path) -> Path:
    """Return the folder of decoded images, shared by all studies under a root."""
    return root / ".images"


def feature_cache(root: Path) -> Path:
    """Return the folder of features of frozen networks, shared by all studies under a root."""
    return root / ".features"


def backbone_cache(root: Path) -> Path:
    """Return the folder of pretrained networks, shared by all studies under a root."""
    return root / ".backbones"


def teacher_cache(root: Path) -> Path:
    """Return the folder of timm networks that trainings learn from, shared by all studies under a root."""
    return root / ".teachers"


def counts_file(root: Path) -> Path:
    """Return the file of cached counts, shared by all studies under a root."""
    return root / ".counts.sqlite"


_NOT_COUNTED = ("data", "image", "augment", "distill", "quantize")
"""Sections that no size depends on; the shape of the images is a separate part of the question."""


def _what_counts(config: TrialConfig) -> dict[str, Any]:
    """Return the part of a configuration that its sizes depend on, including the state of its weights file."""
    sections = config.to_dict()
    model = config.component("model")
    file = expand_path(model.args.get("weights") or "", f"{model.path}.weights")
    if model.name == "custom":
        with contextlib.suppress(UserError):
            sections["code"] = own_code.digest(model.args["function"])
    with contextlib.suppress(OSError):
        state = file.stat()
        sections["weights_file"] = [state.st_mtime_ns, state.st_size]
    return {name: section for name, section in sections.items() if name not in _NOT_COUNTED}


class Helper:
    """Answers questions one at a time, and caches answers about data sets and architectures."""

    def __init__(self, root: Path) -> None:
        """Decoded images and counts are kept under `root`; the process starts with the first question."""
        self.root = root
        self.counts = Counts(counts_file(root))
        self.prepared: dict[str, Prepared] = {}
        self.process: BaseProcess | None = None
        self.fatal_models: dict[str, str] = {}
        """Models that no helper process survives, by digest, with the reason to report."""
        self.later: _Later | None = None
        """An answer that the caller waits for while doing other things."""

    def devices(self, wanted: str) -> list[str]:
        """Return the devices that trials may use.

        Raises:
            DeviceError: the wanted kind is not on this machine.
        """
        return self._ask(FindDevices(wanted=wanted))

    def hardware(self, device: str) -> str:
        """Return the name of a device's hardware."""
        return self._ask(NameHardware(device=device))

    def prepare(
        self, config: TrialConfig, progress: Progress | None = None, say: Callable[[str], None] | None = None
    ) -> Prepared:
        """Return the data set of a configuration, its images decoded at the configured size.

        On the first call, `say` gets lines about what is read and what was found in it.

        Raises:
            DataError: the images are missing, damaged or unusable.
        """
        key = config.digest("data", "image")
        if key not in self.prepared:
            question = Prepare(config=config, cache=image_cache(self.root), is_described=say is not None)
            self.prepared[key] = self._ask(question, progress, say)
        return self.prepared[key]

    def open_unlabeled(
        self, config: TrialConfig, data: Prepared, fold: int | None = None, progress: Progress | None = None
    ) -> tuple[str, list[str]]:
        """Decode the images that a configuration pretrains on; return their fingerprint and lines for the user.

        Raises:
            DataError: they are missing, damaged or too few.
        """
        return self._ask(OpenUnlabeled(config=config, data=data, cache=image_cache(self.root), fold=fold), progress)

    def has_prints(self, config: TrialConfig, known: Prints) -> bool:
        """Tell whether the data set of a configuration is the recorded one, see `Source.has_prints`.

        This decodes no image.

        Raises:
            DataError: the images are missing or unusable.
        """
        return self._ask(ComparePrints(config=config, cache=image_cache(self.root), known=known))

    def measure(self, config: TrialConfig, shape: InputShape) -> dict[str, float]:
        """Return the sizes of a configuration that are known before training, see `imgcls_search.trial.SIZES`.

        Raises:
            BuildError: nothing can be built from the configuration.
        """
        steps = self.measuring(config, shape)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self.wait(None)

    def measuring(self, config: TrialConfig, shape: InputShape) -> Generator[None, None, dict[str, float]]:
        """Do what `measure` does, but yield until the answer is available."""
        has_weights = config.component("model").args.get("weights") is not None
        # Not cached with the sizes, which do not depend on it.
        check_normalisation(config.section("image"), shape.channels, has_weights=has_weights)
        head_plan.check(config)
        question = {"config": _what_counts(config), "shape": dataclasses.asdict(shape)}
        sizes: dict[str, float] | None = self.counts.get(question)
        if sizes is None:
            model = config.digest("model", "image")
            if model in self.fatal_models:
                raise BuildError("model", self.fatal_models[model])
            later = _Later()
            self._send(Measure(config=config, shape=shape, counts=counts_file(self.root)))
            self.later = later
            while later.found is None and not self.connection.poll():
                yield
            self._settle()
            if later.death is not None:
                self.fatal_models[model] = f"{later.death} while it was measured"
                raise BuildError("model", self.fatal_models[model])
            sizes = self.counts.ask(question, lambda: _value(later.found))
        return sizes

    @property
    def is_measuring(self) -> bool:
        """True while the caller waits for an answer."""
        return self.later is not None

    def wait(self, seconds: float | None) -> None:
        """Return when that answer is available, or after these seconds."""
        if self.later is not None:
            self.connection.poll(seconds)

    def try_metrics(self, names: tuple[str, ...], data: Prepared) -> None:
        """Call metrics of other packages once, so that mistakes in them show before a training.

        Raises:
            UserError: one cannot be loaded, fails, or does not give a finite number.
        """
        self._ask(TryMetrics(names=names, data=data))

    def fetch_weights(
        self, config: TrialConfig, shape: InputShape, say: Callable[[str], None] | None = None
    ) -> dict[str, str] | None:
        """Fetch or read the pretrained weights that a configuration starts from, if any, and check that they fit.

        `say` gets a note if they were trained on images of another size. Return the name and digest of their file, or
        None if there is none or a library manages it.

        Raises:
            CheckpointError: they cannot be fetched or read.
            BuildError: they do not fit the model.
        """
        if config.component("model").args.get("weights") is None:
            return None
        return self._ask(FetchWeights(config=config, shape=shape), say=say)

    def describe_weights(self, path: Path) -> Prepared:
        """Return the data set that saved weights were trained on; this also loads the weights into their network.

        Raises:
            CheckpointError: the file is missing, damaged, or not a trained model of this program.
        """
        return self._ask(DescribeWeights(path=path))

    def keep_teacher(
        self, component: Component, data: Prepared, *, image_size: ImageSize, answers: bool
    ) -> tuple[str, Path]:
        """Return the digest and the file of the timm network that a component names, to learn from it.

        With `answers`, its head is kept too and must have the images' classes.

        Raises:
            CheckpointError: the weights cannot be fetched or read.
            BuildError: there is no such network, or the weights do not fit it or the classes.
        """
        folder = teacher_cache(self.root)
        question = KeepTeacher(component=component, data=data, image_size=image_size, answers=answers, folder=folder)
        return self._ask(question)

    def describe_backbone(self, path: Path) -> AboutBackbone:
        """Return the description in a file that a pretraining wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or was written by something else.
        """
        return self._ask(DescribeBackbone(path=path))

    def versions(self) -> dict[str, str]:
        """Return the versions that a training's numbers depend on."""
        return self._ask(NameVersions())

    def close(self) -> None:
        """End the process now."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()

    def _ask(
        self, question: Question[T], progress: Progress | None = None, say: Callable[[str], None] | None = None
    ) -> T:
        self._send(question)
        found: T = _value(self._receive(progress, say))
        return found

    def _send(self, question: Question[Any]) -> None:
        self._settle()
        self.asked, self.deaths = question, 0
        self._deliver()

    def _deliver(self) -> None:
        if self.process is None:
            self.process, self.connection = processes.start(_answer_all, "helper")
        # If the process has just died, `_receive` notices it.
        with contextlib.suppress(OSError):
            self.connection.send(self.asked)

    def _settle(self) -> None:
        """Receive the answer that the caller waits for."""
        later, self.later = self.later, None
        if later is not None:
            try:
                later.found = self._receive()
            except HelperDiedError as error:
                later.death = str(error)

    def _receive(self, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> Answer | Refusal:
        while True:
            try:
                reply: Reply = self.connection.recv()
            except (EOFError, OSError):
                self._ask_another()
                continue
            match reply:
                case Notice(text=text):
                    if say is not None:
                        say(text)
                case Decoding(done=done, total=total):
                    if progress is not None:
                        progress(done, total)
                case Answer() | Refusal():
                    return reply

    def _ask_another(self) -> None:
        """Send the question to a new process in place of one that died."""
        assert self.process is not None
        self.process.join()
        code, self.process = self.process.exitcode, None
        self.connection.close()
        self.deaths += 1
        if self.deaths == MOST_DEATHS:
            raise HelperDiedError(f"the helper process died {self.deaths} times (exit code {code})")
        self._deliver()


@dataclasses.dataclass
class _Later:
    """An answer that is still pending."""

    found: Answer | Refusal | None = None
    death: str | None = None
    """Why there is none."""


def _value(found: Answer | Refusal | None) -> Any:
    assert found is not None
    if isinstance(found, Refusal):
        raise found.error
    return found.value


def _answer_all(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            question: Question[Any] = connection.recv()
            try:
                reply: Reply = Answer(question.answer(connection.send))
            except SearchError as error:
                reply = Refusal(error)
            connection.send(reply)
    # The run is gone; an orderly shutdown of torch would outlive it by seconds.
    os._exit(0)
