"""A process that answers what needs torch or the images, so that the run process needs neither."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from imgcls_search.config import TrialConfig, expand_path
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import BuildError, SearchError
from imgcls_search.executors import processes
from imgcls_search.executors.counts import Counts

Progress = Callable[[int, int], None]
"""Called with images decoded and images in all."""


MOST_DEATHS = 3
"""Processes that may die of one question."""


class HelperDiedError(SearchError):
    """The process that should answer died of the question, each time it was asked."""


def image_cache(root: Path) -> Path:
    """Return where decoded images lie, shared by all studies under a root."""
    return root / ".images"


def counts_file(root: Path) -> Path:
    """Return where counts are remembered, shared by all studies under a root."""
    return root / ".counts.sqlite"


_NOT_COUNTED = ("data", "image", "augment", "distill", "quantize")
"""Sections that no size depends on; the image's shape is asked about apart."""


def _what_counts(config: TrialConfig) -> dict[str, Any]:
    """Return the part of a configuration that its sizes depend on, and what file of weights it must fit."""
    sections = config.to_dict()
    model = config.component("model")
    file = expand_path(model.args.get("weights") or "", f"{model.path}.weights")
    with contextlib.suppress(OSError):
        state = file.stat()
        sections["weights_file"] = [state.st_mtime_ns, state.st_size]
    return {name: section for name, section in sections.items() if name not in _NOT_COUNTED}


class Helper:
    """Answers questions one at a time; what it learned of a data set or an architecture it remembers."""

    def __init__(self, root: Path) -> None:
        """Decoded images and counts are kept under `root`; the process starts with the first question."""
        self.root = root
        self.counts = Counts(counts_file(root))
        self.prepared: dict[str, Prepared] = {}
        self.process: BaseProcess | None = None
        self.fatal_models: dict[str, str] = {}
        """Models that no process survives, by digest, and what to say of them."""
        self.later: _Later | None = None
        """An answer that somebody waits for while doing other things."""

    def devices(self, wanted: str) -> list[str]:
        """Return the devices that trials may use.

        Raises:
            DeviceError: the wanted kind is not on this machine.
        """
        found: list[str] = self._ask("devices", {"wanted": wanted})
        return found

    def hardware(self, device: str) -> str:
        """Return the name of a device's hardware."""
        found: str = self._ask("hardware", {"device": device})
        return found

    def prepare(
        self, config: TrialConfig, progress: Progress | None = None, say: Callable[[str], None] | None = None
    ) -> Prepared:
        """Return the data set of a configuration, its images decoded at the configured size.

        The first time, `say` is told what there is to read, and what was found in it.

        Raises:
            DataError: the images are missing, damaged or unusable.
        """
        key = config.digest("data", "image")
        if key not in self.prepared:
            question = {
                "config": config.to_dict(),
                "cache": str(image_cache(self.root)),
                "is_described": say is not None,
            }
            self.prepared[key] = Prepared.from_dict(self._ask("prepare", question, progress, say))
        return self.prepared[key]

    def has_fingerprint(self, config: TrialConfig, known: str) -> bool:
        """Tell whether the data set of a configuration has a recorded fingerprint, of whichever version that is.

        No image is decoded for it.

        Raises:
            DataError: the images are missing or unusable.
        """
        question = {"config": config.to_dict(), "cache": str(image_cache(self.root)), "known": known}
        found: bool = self._ask("has_fingerprint", question)
        return found

    def measure(self, config: TrialConfig, shape: InputShape) -> dict[str, float]:
        """Return the sizes that are known before training, see `imgcls_search.trial.SIZES`, without training.

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
        """Do what `measure` does, but yield as long as the answer is not there."""
        question = {"config": _what_counts(config), "shape": dataclasses.asdict(shape)}
        sizes: dict[str, float] | None = self.counts.get(question)
        if sizes is None:
            model = config.digest("model", "image")
            if model in self.fatal_models:
                raise BuildError("model", self.fatal_models[model])
            later = _Later()
            self._send("measure", {**question, "config": config.to_dict(), "root": str(self.root)})
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
        """True while somebody waits for an answer."""
        return self.later is not None

    def wait(self, seconds: float | None) -> None:
        """Return when an answer that somebody waits for is there, or after so many seconds."""
        if self.later is not None:
            self.connection.poll(seconds)

    def fetch_weights(self, config: TrialConfig, shape: InputShape) -> None:
        """Fetch or read the pretrained weights that a configuration starts from, if any, and see that they fit.

        Raises:
            CheckpointError: they cannot be fetched or read.
            BuildError: they do not fit the model.
        """
        if config.component("model").args.get("weights") is not None:
            self._ask("fetch_weights", {"config": config.to_dict(), "shape": dataclasses.asdict(shape)})

    def describe_weights(self, path: Path) -> Prepared:
        """Return the data set that saved weights were trained on; the weights themselves are read and built too.

        Raises:
            CheckpointError: the file is missing, damaged, or not a trained model of this program.
        """
        return Prepared.from_dict(self._ask("describe_weights", {"path": str(path)}))

    def versions(self) -> dict[str, str]:
        """Return the versions that a training's numbers depend on."""
        found: dict[str, str] = self._ask("versions", {})
        return found

    def close(self) -> None:
        """End the process now."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()

    def _ask(
        self,
        question: str,
        arguments: Mapping[str, Any],
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Any:
        self._send(question, arguments)
        return _value(self._receive(progress, say))

    def _send(self, question: str, arguments: Mapping[str, Any]) -> None:
        self._settle()
        self.asked, self.deaths = (question, dict(arguments)), 0
        self._deliver()

    def _deliver(self) -> None:
        if self.process is None:
            self.process, self.connection = processes.start(_answer_all, "helper")
        # A process that died just now is noticed when its answer is waited for.
        with contextlib.suppress(OSError):
            self.connection.send(self.asked)

    def _settle(self) -> None:
        """Take the answer that somebody waits for off the connection."""
        later, self.later = self.later, None
        if later is not None:
            try:
                later.found = self._receive()
            except HelperDiedError as error:
                later.death = str(error)

    def _receive(self, progress: Progress | None = None, say: Callable[[str], None] | None = None) -> tuple[str, Any]:
        while True:
            try:
                kind, answer = self.connection.recv()
            except (EOFError, OSError):
                self._ask_another()
                continue
            if kind == "said":
                if say is not None:
                    say(answer)
                continue
            if kind != "progress":
                return kind, answer
            if progress is not None:
                progress(*answer)

    def _ask_another(self) -> None:
        """Put the question to a new process in place of one that died."""
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
    """A place for an answer that is not there yet."""

    found: tuple[str, Any] | None = None
    death: str | None = None
    """Why there is none."""


def _value(found: tuple[str, Any] | None) -> Any:
    assert found is not None
    kind, answer = found
    if kind == "error":
        raise answer
    return answer


def _answer_all(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            question, arguments = connection.recv()
            try:
                connection.send(("answer", _ANSWERS[question](connection, **arguments)))
            except SearchError as error:
                connection.send(("error", error))
    # The run is gone; taking torch apart in good order would outlive it by seconds.
    os._exit(0)


def _devices(connection: Connection, wanted: str) -> list[str]:
    from imgcls_search.train.device import available_devices

    return available_devices(wanted)


def _hardware(connection: Connection, device: str) -> str:
    from imgcls_search.train.device import hardware

    return hardware(device)


def _prepare(connection: Connection, config: Mapping[str, Any], cache: str, is_described: bool) -> dict[str, Any]:
    from imgcls_search.worker.pipeline import prepare_data

    def progress(done: int, total: int) -> None:
        connection.send(("progress", (done, total)))

    def say(text: str) -> None:
        connection.send(("said", text))

    trial = TrialConfig.from_dict(config)
    return prepare_data(trial, Path(cache), progress, say if is_described else None, looks_at_test=True).to_dict()


def _has_fingerprint(connection: Connection, config: Mapping[str, Any], cache: str, known: str) -> bool:
    from imgcls_search.data import describe

    return describe(TrialConfig.from_dict(config).component("data"), Path(cache)).has_fingerprint(known)


def _measure(
    connection: Connection, config: Mapping[str, Any], shape: Mapping[str, Any], root: str
) -> dict[str, float]:
    from imgcls_search.models import pretrained
    from imgcls_search.models.cost import Cost
    from imgcls_search.worker import measuring, pipeline

    counts = _COUNTS.setdefault(root, Counts(counts_file(Path(root))))
    trial, input_shape = TrialConfig.from_dict(config), InputShape(**shape)
    model = trial.component("model")
    found = counts.ask(
        {"model": config["model"], "shape": dict(shape)},
        lambda: dataclasses.asdict(measuring.count(model, input_shape)),
    )
    if pretrained.is_file(model):
        pipeline.check_weights(model, input_shape)
    return measuring.measure(trial, input_shape, Cost(**found), deployed=_deployed(counts, trial, input_shape))


def _deployed(counts: Counts, trial: TrialConfig, shape: InputShape) -> Any:
    """Return the cost of the network that structured pruning leaves, None where there is none."""
    from imgcls_search.models.cost import Cost
    from imgcls_search.worker import measuring

    amount = measuring.structured_amount(trial)
    if not amount:
        return None
    model = trial.component("model")
    question = {"model": trial.to_dict()["model"], "shape": dataclasses.asdict(shape), "pruned": amount}
    return Cost(**counts.ask(question, lambda: dataclasses.asdict(measuring.count(model, shape, pruned=amount))))


def _fetch_weights(connection: Connection, config: Mapping[str, Any], shape: Mapping[str, Any]) -> None:
    from imgcls_search.worker.pipeline import check_weights

    check_weights(TrialConfig.from_dict(config).component("model"), InputShape(**shape))


def _describe_weights(connection: Connection, path: str) -> dict[str, Any]:
    from imgcls_search.train import checkpoint
    from imgcls_search.worker.pipeline import load_finished

    _, _, data = load_finished(checkpoint.load(Path(path)), path)
    return data.to_dict()


_COUNTS: dict[str, Counts] = {}
"""In the helper's process: what it counted, by folder."""


def _versions(connection: Connection) -> dict[str, str]:
    from imgcls_search.worker.pipeline import versions

    return versions()


_ANSWERS: Mapping[str, Callable[..., Any]] = {
    "devices": _devices,
    "hardware": _hardware,
    "prepare": _prepare,
    "has_fingerprint": _has_fingerprint,
    "measure": _measure,
    "fetch_weights": _fetch_weights,
    "describe_weights": _describe_weights,
    "versions": _versions,
}
