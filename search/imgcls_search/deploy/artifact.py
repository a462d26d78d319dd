"""An exported file loaded into its runtime: logits, latency, size. Never imports torch."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from imgcls_search.deploy import openvino_ir
from imgcls_search.errors import DeployError, UserError
from imgcls_search.external_data import must_be_alone
from imgcls_search.processor import processor_name

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from imgcls_search.deploy import executorch_runtime

    Session: TypeAlias = InferenceSession | openvino_ir.Session | executorch_runtime.Session

RUNTIMES = {openvino_ir.SUFFIX: "openvino", ".pte": "executorch"}
"""The package that runs a file, by file extension; ONNX Runtime runs all others."""

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch"}

INPUT = "pixels"
OUTPUT = "logits"

UNLIKE = "unlike"
"""The second output of some files, float32 [N]: how unlike the training images each image is."""

FEATURES = "features"
"""The second output of a temporary copy, float32 [N, D]: the input of the last layer."""

QUANTIZED = "quantized"
"""The key in a file's metadata for the quantization mode."""

BATCH = 64
"""Number of images computed together; always the same, because the batch size affects the rounding of sums."""

WARM_UP_SECONDS = 0.2
LEAST_RUNS = 50
MOST_RUNS = 1000
SECONDS = 1.0


class Pixels(Protocol):
    """Images, uint8 [N, C, H, W]: an array, or an object that decodes them on indexing."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, index: npt.NDArray[np.int64], /) -> npt.NDArray[np.uint8]:
        """Return the images at some indices [B]."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall-clock time for one image, ms."""

    median_ms: float
    low_ms: float
    """10 % of the runs were faster."""

    high_ms: float
    """10 % of the runs were slower."""

    runs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A loaded file with input `pixels`, uint8 [N, C, H, W], and output `logits`, float32 [N, classes]."""

    path: Path
    session: Session

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Load a file into the runtime of its extension, by default ONNX Runtime, on one CPU thread.

        Raises:
            UserError: the runtime is not installed.
            DeployError: the file is missing, damaged, not exported by this program, or has tensors in other files.
        """
        if not path.is_file():
            raise DeployError(f"{path}: no such file")
        if path.suffix in RUNTIMES:
            return cls._load_other(path)
        import onnxruntime

        try:
            content = path.read_bytes()
            # Loaded from memory, ONNX Runtime would still read other tensor files from the working folder.
            must_be_alone(path, content)
            session = onnxruntime.InferenceSession(content, _options(), providers=["CPUExecutionProvider"])
        except DeployError:
            raise
        # The runtime raises half a dozen own exceptions without a common base class.
        except Exception as error:
            raise DeployError(f"{path}: not an ONNX model, or damaged ({type(error).__name__})") from error
        artifact = cls(path=path, session=session)
        artifact._check()
        return artifact

    @classmethod
    def _load_other(cls, path: Path) -> Artifact:
        session: Session
        try:
            if path.suffix == openvino_ir.SUFFIX:
                session = openvino_ir.Session(path)
            else:
                from imgcls_search.deploy import executorch_runtime

                session = executorch_runtime.Session(path, takes=INPUT, gives=(OUTPUT, UNLIKE))
        except (UserError, DeployError):
            raise
        # The runtimes raise plain RuntimeErrors with pages of their own source.
        except Exception as error:
            name = TITLES[RUNTIMES[path.suffix]]
            raise DeployError(f"{path}: not a model of {name}, or damaged ({type(error).__name__})") from error
        artifact = cls(path=path, session=session)
        artifact._check()
        return artifact

    @property
    def runtime(self) -> str:
        """The package that runs the model."""
        return RUNTIMES.get(self.path.suffix, "onnxruntime")

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        is_openvino = self.path.suffix == openvino_ir.SUFFIX
        return (self.path, self.path.with_suffix(openvino_ir.WEIGHTS)) if is_openvino else (self.path,)

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The (channels, height, width) of an image."""
        _, channels, height, width = self.session.get_inputs()[0].shape
        return int(channels), int(height), int(width)

    @property
    def classes(self) -> int:
        """The number of classes in the logits."""
        return int(self.session.get_outputs()[0].shape[1])

    @property
    def quantized(self) -> str:
        """How the file was quantized: `static`, `dynamic`, or `none`."""
        return str(self.session.get_modelmeta().custom_metadata_map.get(QUANTIZED, "none"))

    def logits(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [N, classes] for uint8 [N, C, H, W], in order; images do not affect each other's logits."""
        return self._each(pixels, OUTPUT, (0, self.classes))

    def answers(self, pixels: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Return logits as `logits` does, and how unlike the training images each image is, float32 [N].

        The latter is None if the file does not output it. Both come from one pass.
        """
        if not self.gives_unlike:
            return self.logits(pixels), None
        parts = [self._run_all(part) for part in self._batches(pixels)]
        logits = [np.zeros((0, self.classes), dtype=np.float32), *(part[OUTPUT] for part in parts)]
        unlike = [np.zeros(0, dtype=np.float32), *(part[UNLIKE] for part in parts)]
        return np.concatenate(logits), np.concatenate(unlike)

    @property
    def gives_unlike(self) -> bool:
        """Whether the file outputs how unlike the training images an image is."""
        return UNLIKE in [output.name for output in self.session.get_outputs()]

    def features(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Return the input of the last layer for each image, float32 [N, D], if the file outputs it."""
        return self._each(pixels, FEATURES, (0, 1))

    def _each(self, pixels: Pixels, output: str, empty: tuple[int, ...]) -> npt.NDArray[np.float32]:
        parts = [self._run(part, output) for part in self._batches(pixels)]
        return np.concatenate(parts) if parts else np.zeros(empty, dtype=np.float32)

    def _batches(self, pixels: Pixels) -> Iterator[npt.NDArray[np.uint8]]:
        # Dynamic quantization uses one range for all images of a batch.
        batch = 1 if self.quantized == "dynamic" else BATCH
        for start in range(0, len(pixels), batch):
            yield pixels[np.arange(start, min(start + batch, len(pixels)))]

    def _run_all(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        logits, unlike = self.session.run([OUTPUT, UNLIKE], {INPUT: pixels})
        return {OUTPUT: np.asarray(logits), UNLIKE: np.asarray(unlike)}

    def _run(self, pixels: npt.NDArray[np.uint8], output: str = OUTPUT) -> npt.NDArray[np.float32]:
        (found,) = self.session.run([output], {INPUT: pixels})
        values: npt.NDArray[np.float32] = np.asarray(found)
        return values

    def _check(self) -> None:
        ports = (*self.session.get_inputs(), *self.session.get_outputs())
        signature = [(port.name, port.type, len(port.shape)) for port in ports]
        plain = [(INPUT, "tensor(uint8)", 4), (OUTPUT, "tensor(float)", 2)]
        seconds = [(UNLIKE, "tensor(float)", 1), (FEATURES, "tensor(float)", 2)]
        is_ours = signature == plain or signature in [[*plain, second] for second in seconds]
        # Only the number of images is open.
        sides = [side for port in ports[:2] for side in port.shape[1:]]
        if not is_ours or not all(isinstance(side, int) and side > 0 for side in sides):
            raise DeployError(f"{self.path}: not a model that this program exported; it takes and gives {signature}")


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # Errors are raised; the runtime would print them too.
    options.log_severity_level = 4
    return options


def conditions(artifact: Artifact) -> dict[str, str | int]:
    """Return the conditions of a latency measurement."""
    runtime = f"{artifact.runtime} {metadata.version(artifact.runtime)}"
    return {"processor": processor_name(), "runtime": runtime, "threads": 1, "batch": 1}


def measure_latency(artifact: Artifact, pixels: npt.NDArray[np.uint8]) -> Latency:
    """Time single images, uint8 [N, C, H, W] in turns, on one thread after a warm-up."""
    images = [np.ascontiguousarray(pixels[place : place + 1]) for place in range(len(pixels))]
    _time(artifact, images, seconds=WARM_UP_SECONDS, least=3)
    times = 1000 * np.array(_time(artifact, images, seconds=SECONDS, least=LEAST_RUNS))
    low, median, high = (float(value) for value in np.quantile(times, (0.1, 0.5, 0.9)))
    return Latency(median_ms=median, low_ms=low, high_ms=high, runs=len(times))


def _time(artifact: Artifact, images: list[npt.NDArray[np.uint8]], *, seconds: float, least: int) -> list[float]:
    times: list[float] = []
    ending = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < ending and len(times) < MOST_RUNS):
        started = time.perf_counter()
        artifact._run(images[len(times) % len(images)])
        times.append(time.perf_counter() - started)
    return times


def size_kb(path: Path) -> float:
    """Return the size of a file in KB of 1024 bytes."""
    return path.stat().st_size / 1024


def archive_kb(path: Path) -> float:
    """Return the size of a file in a compressed archive (deflate, as in zip and gzip), in KB of 1024 bytes.

    Zeros from unstructured pruning take space in a file and almost none in an archive; they do not make a model faster.
    """
    packer = zlib.compressobj()
    with path.open("rb") as file:
        size = sum(len(packer.compress(part)) for part in iter(lambda: file.read(2**20), b""))
    return (size + len(packer.flush())) / 1024
