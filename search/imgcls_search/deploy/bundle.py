"""A folder with everything needed to serve a model: its contents, and a reader that verifies everything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from imgcls_search import digests
from imgcls_search.costs import Costs, problem
from imgcls_search.data.decode import FILLED, FITTED, steps
from imgcls_search.data.image import Frame
from imgcls_search.deploy.artifact import INPUT, OUTPUT, Artifact
from imgcls_search.deploy.unlike import SCORES, Score
from imgcls_search.errors import DeployError
from imgcls_search.image_size import ImageSize, normal
from imgcls_search.measures import is_number
from imgcls_search.terminal import shown

FORMAT = 1
FRAMED = 2
"""The format of bundles with non-square or uncropped images, which earlier versions would decode wrongly."""

COSTED = 3
"""The format of bundles with costs of decisions, which earlier versions would ignore."""

LABELLED = 4
"""The format of bundles for several labels per image, whose outputs earlier versions would misread."""

REFUSING = 5
"""The format of bundles that refuse uncertain images, which earlier versions would answer."""

FORMATS = (FORMAT, FRAMED, COSTED, LABELLED, REFUSING)

DESCRIPTION = "bundle.json"
FILES: Mapping[str, str] = {
    "model": "model.onnx",
    "labels": "labels.json",
    "config": "config.yaml",
    "metrics": "metrics.json",
    "card": "MODEL_CARD.md",
}
OPENVINO: Mapping[str, str] = {**FILES, "model": "model.xml", "weights": "model.bin"}
"""The files of an OpenVINO bundle, whose weights are in a separate file."""

EXECUTORCH: Mapping[str, str] = {**FILES, "model": "model.pte"}
"""The files of an ExecuTorch bundle."""

EDITABLE = ("card",)
"""Files that users may edit; all others have a checksum."""

CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    "input": {"name": INPUT, "type": "uint8", "layout": "NCHW", "range": [0, 255]},
    "output": {"name": OUTPUT, "type": "float32"},
    "normalisation": {"in_model": True},
    "calibration": {"in_model": True},
}
"""Values that are the same in every bundle and only checked: with others, images would be read wrongly."""

MOST_BYTES = 2**24
"""Larger descriptions or label lists are refused without reading them."""

LARGEST_SIZE = 4096
LARGEST_MARGIN = 2


@dataclass(frozen=True, kw_only=True)
class Sureness:
    """How far the probabilities of a bundle can be trusted."""

    temperatures: tuple[float, ...] = (1.0,)
    """Divisors of the logits in the file: one number, or one per label."""

    is_calibrated: bool = False
    min_confidence: float | None = None
    """Below this probability of the chosen class, there is no answer."""

    unlike: float | None = None
    """Images with a higher score are unlike the training images; None if unknown."""

    score: Score = "feature_distance"
    """The kind of score: the file's second output, or 1 minus the largest probability."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A model that is ready to classify images."""

    artifact: Artifact
    labels: tuple[str, ...]
    frame: Frame
    """How images are brought to the input shape."""

    costs: Costs | None = None
    """Costs of decisions; None if the likeliest class is chosen."""

    thresholds: tuple[float, ...] | None = None
    """Thresholds of several labels; None with one class per image."""

    sureness: Sureness = field(default_factory=Sureness)


def describe(
    folder: Path,
    *,
    frame: Frame,
    mean: Sequence[float],
    std: Sequence[float],
    quantized: str,
    costs: Costs | None,
    thresholds: Sequence[float] | None = None,
    sureness: Sureness | None = None,
    files: Mapping[str, str] = FILES,
) -> dict[str, Any]:
    """Return the contents of `bundle.json` for the files in a folder; `files` are file names by role."""
    output: dict[str, Any] = {**CONSTANTS["output"], "probabilities": "softmax"}
    if thresholds is not None:
        # In the order of the labels.
        output |= {"probabilities": "sigmoid", "thresholds": list(thresholds)}
    return {
        "format": _format(frame, costs, thresholds, sureness),
        "files": {
            role: {"name": name} | ({} if role in EDITABLE else {"sha256": digests.of_file(folder / name)})
            for role, name in files.items()
        },
        "input": {
            **CONSTANTS["input"],
            "channels": frame.channels,
            "size": frame.size,
            "fit": frame.fit,
            "fill": frame.fill,
            "margin": frame.margin,
        },
        "output": output,
        "preprocessing": steps(frame),
        "normalisation": {**CONSTANTS["normalisation"], "mean": list(mean), "std": list(std)},
        "quantized": quantized,
        **({"decision": {"costs": costs}} if costs is not None else {}),
        **(_sureness_in_words(sureness) if sureness is not None else {}),
    }


def _sureness_in_words(sureness: Sureness) -> dict[str, Any]:
    found: dict[str, Any] = {
        "calibration": {
            **CONSTANTS["calibration"],
            "is_calibrated": sureness.is_calibrated,
            "temperatures": list(sureness.temperatures),
        }
    }
    if sureness.min_confidence is not None:
        found["refusal"] = {"min_confidence": sureness.min_confidence}
    if sureness.unlike is not None:
        found["unlike"] = {"score": sureness.score, "threshold": sureness.unlike}
    return found


def read(folder: Path) -> Bundle:
    """Read a bundle from any source: check that its files are inside, intact and fit together.

    Raises:
        DeployError: it is not a bundle, or a file is missing, damaged, from another bundle or outside.
    """
    if not folder.is_dir():
        raise DeployError(f"{folder}: no such folder; allowed: one that `imgcls-search export --bundle` wrote")
    about = _json(folder, DESCRIPTION)
    if not isinstance(about, dict) or type(about.get("format")) is not int or about["format"] not in FORMATS:
        raise DeployError(
            f"{folder / DESCRIPTION}: not a bundle of format {', '.join(map(str, FORMATS))} of this program"
        )
    _check_constants(folder, about)
    names = {role: _file(folder, about, role) for role in FILES}
    if names["model"] == OPENVINO["model"] and _file(folder, about, "weights") != OPENVINO["weights"]:
        raise DeployError(f"{folder / DESCRIPTION}: files.weights: allowed: {OPENVINO['weights']}")
    labels = _labels(folder, names["labels"])
    bundle = Bundle(
        artifact=Artifact.load(folder / names["model"]),
        labels=labels,
        costs=_decision_costs(folder, about, labels),
        frame=Frame(
            size=_size(folder, about),
            channels=_number(folder, about, "channels", (1, 3)),
            fit=_word(folder, about, "fit", FITTED, "crop"),
            fill=_word(folder, about, "fill", FILLED, "mean"),
            margin=_margin(folder, about),
        ),
        thresholds=_thresholds(folder, about),
        sureness=_sureness(folder, about, labels),
    )
    expected = _format(bundle.frame, bundle.costs, bundle.thresholds, bundle.sureness)
    if about["format"] != expected:
        raise DeployError(f"{folder / DESCRIPTION}: not a bundle of format {expected} of this program")
    _check_fit(folder, bundle)
    return bundle


def _check_constants(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse a bundle with other constants than this program's; missing ones are allowed."""
    for section, key, value in ((name, *stated) for name, part in CONSTANTS.items() for stated in part.items()):
        found, allowed = (_part(folder, about, section) or {}).get(key, value), json.dumps(value)
        if json.dumps(found) != allowed:
            said = f"{section}.{key}: {found!r:.50}"
            raise DeployError(f"{folder / DESCRIPTION}: {said} is not allowed; allowed: {allowed}")


def _format(frame: Frame, costs: Costs | None, thresholds: Sequence[float] | None, sureness: Sureness | None) -> int:
    if sureness is not None and sureness.min_confidence is not None:
        return REFUSING
    if thresholds is not None:
        return LABELLED
    if costs is not None:
        return COSTED
    is_plain = frame.fit == "crop" and frame.margin == 1 and isinstance(frame.size, int)
    return FORMAT if is_plain else FRAMED


def _json(folder: Path, name: str) -> Any:
    path = folder / name
    _must_be_inside(folder, name, str(path))
    if not path.is_file():
        raise DeployError(f"{path}: missing; the bundle is not whole")
    if path.stat().st_size > MOST_BYTES:
        raise DeployError(f"{path}: {path.stat().st_size:,} bytes are too many; allowed: at most {MOST_BYTES:,}")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DeployError(f"{path}: damaged, not JSON ({type(error).__name__})") from error


def _file(folder: Path, about: Mapping[str, Any], role: str) -> str:
    """Return the file name for a role, after checking that the file is in the folder and intact."""
    place = f"{folder / DESCRIPTION}: files.{role}"
    entry = about.get("files", {}).get(role) if isinstance(about.get("files"), dict) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(entry, dict):
        raise DeployError(f"{place}: names no file; the bundle is damaged")
    # Both kinds of slashes: a bundle may have been made for another system.
    if not name or name != Path(name).name or name in (".", "..") or "\\" in name or ":" in name or "\0" in name:
        raise DeployError(f"{place}: {name!r} is not the name of a file in the bundle; allowed: no folders, no '..'")
    path = folder / name
    _must_be_inside(folder, name, f"{place}: {name!r}")
    if not path.is_file():
        raise DeployError(f"{path}: missing; the bundle is not whole")
    if role not in EDITABLE and entry.get("sha256") != digests.of_file(path):
        raise DeployError(f"{path}: damaged, or changed since the bundle was written")
    return name


def _must_be_inside(folder: Path, name: str, shown: str) -> None:
    # Links may form a cycle, for which `resolve` raises its own error.
    try:
        is_inside = (folder / name).resolve().parent == folder.resolve()
    # Names that no file can have raise a ValueError.
    except (OSError, RuntimeError, ValueError):
        is_inside = False
    if not is_inside:
        raise DeployError(f"{shown} is a link that leads out of the bundle")


def _labels(folder: Path, name: str) -> tuple[str, ...]:
    labels = _json(folder, name)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DeployError(f"{folder / name}: not a list of names")
    return tuple(labels)


def _number(folder: Path, about: Mapping[str, Any], key: str, allowed: Sequence[int]) -> int:
    given = about.get("input")
    value = given.get(key) if isinstance(given, dict) else None
    if type(value) is not int or value not in allowed:
        known = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else "1, 3"
        raise DeployError(f"{folder / DESCRIPTION}: input.{key}: {value!r:.50} is not allowed; allowed: {known}")
    return value


def _size(folder: Path, about: Mapping[str, Any]) -> ImageSize:
    """Return the size of the images: a number, or height and width."""
    given = about.get("input")
    size = given.get("size") if isinstance(given, dict) else None
    allowed = range(1, LARGEST_SIZE + 1)
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side in allowed for side in size):
        return normal(size)
    return _number(folder, about, "size", allowed)


_Word = TypeVar("_Word", bound=str)


def _word(folder: Path, about: Mapping[str, Any], key: str, allowed: Iterable[_Word], default: _Word) -> _Word:
    """Return an image setting, by default that of earlier versions."""
    value = about["input"].get(key, default)
    known = next((word for word in allowed if word == value), None)
    if known is None:
        words = ", ".join(allowed)
        raise DeployError(f"{folder / DESCRIPTION}: input.{key}: {value!r:.50} is not allowed; allowed: {words}")
    return known


def _margin(folder: Path, about: Mapping[str, Any]) -> float:
    """Return the factor by which images are decoded larger; 1 in bundles of earlier versions."""
    value = about["input"].get("margin", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= LARGEST_MARGIN:
        raise DeployError(
            f"{folder / DESCRIPTION}: input.margin: {value!r:.50} is not allowed; allowed: 1 to {LARGEST_MARGIN}"
        )
    return float(value)


def _thresholds(folder: Path, about: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the thresholds of several labels per image, None with one class per image."""
    output = about.get("output")
    output = output if isinstance(output, dict) else {}
    if (about["format"] == LABELLED) != (output.get("probabilities") == "sigmoid"):
        raise DeployError(f"{folder / DESCRIPTION}: not a bundle of format {about['format']} of this program")
    if about["format"] != LABELLED:
        return None
    values = output.get("thresholds")
    if not isinstance(values, list) or not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
        raise DeployError(
            f"{folder / DESCRIPTION}: output.thresholds: {values!r:.50} is not allowed; allowed: a number from 0 to 1 "
            "for each label"
        )
    return tuple(map(float, values))


def _sureness(folder: Path, about: Mapping[str, Any], labels: Sequence[str]) -> Sureness:
    """Return how far the probabilities can be trusted; bundles of earlier versions have no information."""
    made = _part(folder, about, "calibration")
    if made is None:
        return Sureness()
    values, several = made.get("temperatures"), about["format"] == LABELLED
    allowed = f"{len(labels)} numbers above 0" if several else "one number above 0"
    if (
        not isinstance(values, list)
        or len(values) != (len(labels) if several else 1)
        or not all(is_number(value) and value > 0 for value in values)
    ):
        raise DeployError(
            f"{folder / DESCRIPTION}: calibration.temperatures: {values!r:.50} is not allowed; allowed: {allowed}"
        )
    refusal, strange = _part(folder, about, "refusal"), _part(folder, about, "unlike")
    least: Any = refusal.get("min_confidence") if refusal is not None else None
    if refusal is not None and not (is_number(least) and 0 <= least <= 1):
        place = f"{folder / DESCRIPTION}: refusal.min_confidence"
        raise DeployError(f"{place}: {least!r:.50} is not allowed; allowed: a number from 0 to 1")
    limit = strange.get("threshold") if strange is not None else None
    if strange is not None and (strange.get("score") not in SCORES or not is_number(limit)):
        raise DeployError(
            f"{folder / DESCRIPTION}: unlike: {strange!r:.50} is not allowed; allowed: a score of "
            f"{', '.join(SCORES)}, and a number as threshold"
        )
    return Sureness(
        temperatures=tuple(map(float, values)),
        is_calibrated=made.get("is_calibrated") is True,
        min_confidence=least,
        unlike=limit,
        score=strange["score"] if strange is not None else SCORES[0],
    )


def _part(folder: Path, about: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    part = about.get(name)
    if part is not None and not isinstance(part, dict):
        raise DeployError(f"{folder / DESCRIPTION}: {name}: damaged")
    return part


def _decision_costs(folder: Path, about: Mapping[str, Any], labels: Sequence[str]) -> Costs | None:
    """Return the costs of decisions; None if a bundle has none, as in earlier versions."""
    if "decision" not in about:
        return None
    place, decision = f"{folder / DESCRIPTION}: decision.costs", about["decision"]
    stated = decision.get("costs") if isinstance(decision, dict) else None
    if not isinstance(stated, dict) or not stated or not all(isinstance(row, dict) for row in stated.values()):
        raise DeployError(f"{place}: damaged; allowed: costs by true and by predicted class")
    for value in (value for row in stated.values() for value in row.values()):
        if not is_number(value) or value < 0:
            raise DeployError(f"{place}: {value!r:.50} is not allowed; allowed: a number >= 0")
    if (found := problem(stated, labels)) is not None:
        raise DeployError(shown(f"{place}: {found[1]}"))
    return stated


def _check_fit(folder: Path, bundle: Bundle) -> None:
    expected = bundle.frame.shape
    if bundle.artifact.pixel_shape != expected:
        raise DeployError(f"{folder}: the model takes {bundle.artifact.pixel_shape}, {DESCRIPTION} says {expected}")
    if bundle.artifact.classes != len(bundle.labels):
        raise DeployError(f"{folder}: the model has {bundle.artifact.classes} classes, but {len(bundle.labels)} labels")
    needs = bundle.sureness.unlike is not None and bundle.sureness.score == "feature_distance"
    if needs and not bundle.artifact.gives_unlike:
        raise DeployError(f"{folder}: {DESCRIPTION} has a threshold of feature distances, but the model gives none")
    if bundle.thresholds is not None and len(bundle.thresholds) != len(bundle.labels):
        raise DeployError(f"{folder}: {len(bundle.thresholds)} thresholds, but {len(bundle.labels)} labels")
