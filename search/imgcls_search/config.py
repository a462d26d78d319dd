"""The narrow waist: one frozen configuration, the same object when sampled, replayed, exported and retrained."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from imgcls_search import digests
from imgcls_search.errors import UserError

PLACE = ("root", "file", "download")
"""Arguments of a data set that only say where its images are, not what they show."""

PRETRAINING = ("data", "image", "model", "unlabeled", "pretrain")
"""The sections that determine a pretrained network."""

LATER: Mapping[str, Any] = {
    "distill": {"none": {}},
    "prune": {"none": {}},
    "quantize": {"none": {}},
    "data.folder.skip_unreadable": False,
    "data.folder.group": None,
    "image.fit": "crop",
    "image.fill": "mean",
    "image.margin": 1.0,
    "image.mean": "auto",
    "image.std": "auto",
    "augment.zoom": 0.0,
    "augment.grey": 0.0,
    "augment.noise": 0.0,
    "augment.blur": 0.0,
    "augment.jpeg": 100,
    "training.draw": "shuffled",
    "training.batch_norm": "sync",
    "training.swa": 0,
    "training.resolution": {"full": {}},
    "predict.costs": None,
    "head": {"own": {}},
    "unlabeled": {"train": {}},
    "pretrain": {"none": {}},
    "model.lenet5.weights": None,
    "finetune.views": None,
    "finetune.start": "random",
    "finetune.layer_decay": 1.0,
    "data.folder.labels": "one",
    "data.table.separator": None,
    **{f"data.{name}.folds": None for name in ("digits", "cifar10", "folder", "table", "torchvision")},
}
"""Settings that earlier versions did not have, with the values that keep the behaviour of these versions.

A study without them continues as if it had these values. A configuration with these values has the same
digest as one without them, so trials and checkpoints of earlier versions can be resumed.
"""

IN_DIGESTS = ("distill", "prune", "quantize", "data.folder.skip_unreadable", "data.folder.group")
"""The oldest of them, which are in the digests of checkpoints."""

Scalar = None | bool | int | float | str
Value = Scalar | tuple["Value", ...] | Mapping[str, "Value"]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One chosen key of a registry, for example `vit` under `model`, with the arguments of its builder."""

    path: str
    """Its place in the configuration, for example `model.vit`; errors name it."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class TrialConfig:
    """Everything that determines a training except its seed: a space of fixed values, as a frozen nested mapping.

    A component is a mapping with one key, its name: `{"model": {"vit": {"depth": 4}}}`; a section is a mapping of
    values: `{"training": {"epochs": 15}}`. The catalog defines which components and sections exist.
    """

    tree: Mapping[str, Any]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> TrialConfig:
        """Freeze a nested mapping of JSON values (lists become tuples)."""
        return cls(_freeze(tree))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and lists, ready for JSON or for another process."""
        plain: dict[str, Any] = _thaw(self.tree)
        return plain

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], TrialConfig], tuple[dict[str, Any]]]:
        # Frozen mappings cannot be pickled: processes exchange configurations as plain values.
        return TrialConfig.from_dict, (self.to_dict(),)

    def section(self, path: str) -> dict[str, Any]:
        """Return the values under a dotted path as a plain dictionary."""
        node: Any = self.tree
        for key in path.split("."):
            node = node[key]
        return dict(node)

    def component(self, path: str) -> Component:
        """Return the component chosen under a dotted path such as `model` or `augment.policy`."""
        ((name, args),) = self.section(path).items()
        return Component(path=f"{path}.{name}", name=name, args=dict(args))

    @property
    def folds(self) -> int:
        """Number of networks that a trial trains one after the other, each scored on a fold; 1 without folds."""
        if "data" not in self.tree or self.is_pretraining:
            return 1
        return self.component("data").args.get("folds") or 1

    @property
    def is_pretraining(self) -> bool:
        """True if the configuration only pretrains a network, as the result of `pretraining` does."""
        return self._pretrains and "training" not in self.tree

    @property
    def needs_backbone(self) -> bool:
        """True if a training starts from a network that is pretrained first, see `pretraining`."""
        return self._pretrains and "training" in self.tree

    @property
    def _pretrains(self) -> bool:
        return "none" not in self.tree.get("pretrain", {"none": {}})

    def pretraining(self) -> TrialConfig:
        """Return the configuration of the pretraining that a training starts from: without labels, head or weights."""
        assert self._pretrains, "only for what is pretrained"
        ((family, args),) = self.tree["model"].items()
        model = {family: {name: value for name, value in args.items() if name != "weights"}}
        kept = {key: self.tree[key] for key in PRETRAINING if key in self.tree}
        return TrialConfig(_freeze({**kept, "model": model}))

    def starting_from(self, backbone: str) -> TrialConfig:
        """Return the configuration with the weights file of its pretrained network, as if the user had named it."""
        ((family, args),) = self.tree["model"].items()
        model = {family: {**args, "weights": backbone}}
        return TrialConfig(_freeze({**self.tree, "model": model, "pretrain": {"none": {}}}))

    @property
    def device(self) -> str:
        """The kind of device to train on; `auto` for a pretraining alone."""
        return str(self.tree.get("training", {"device": "auto"})["device"])

    @property
    def devices(self) -> int | Literal["auto"]:
        """Number of devices that train it together; 1 for a pretraining alone."""
        found: int | Literal["auto"] = self.tree.get("training", {}).get("devices", 1)
        return found

    @property
    def batch_size(self) -> int:
        """Images per step."""
        if self.is_pretraining:
            return int(self.component("pretrain").args["batch_size"])
        return int(self.tree["training"]["batch_size"])

    @property
    def needs_whole_batches(self) -> bool:
        """True if the loss compares the images of a batch, so that a batch cannot be trained in parts."""
        return self.is_pretraining and "simclr" in self.tree["pretrain"]

    @property
    def is_fitted(self) -> bool:
        """True if the head is fitted in one step and nothing is trained."""
        return "logistic" in self.tree.get("head", {})

    @property
    def essence(self) -> TrialConfig:
        """The configuration without settings that have no effect: a fit has no optimizer; equal fits are one trial."""
        if not self.is_fitted:
            return self
        views = self.tree.get("finetune", {}).get("views")
        idle = ("optimizer", "schedule", "loss", "training", *(("augment",) if views is None else ()))
        kept = {key: part for key, part in self.tree.items() if key not in idle}
        weights = self.class_weights
        weighing = {} if weights == "none" else {"loss": {"class_weights": weights}}
        drawing = {"training": {"draw": "balanced"}} if self.draws_evenly else {}
        return TrialConfig({**kept, "finetune": {"views": views}, **weighing, **drawing})

    @property
    def draws_evenly(self) -> bool:
        """True if an epoch has equally many images of every class; false for a pretraining alone."""
        return bool(self.tree.get("training", {}).get("draw") == "balanced")

    @property
    def class_weights(self) -> str | Mapping[str, float]:
        """The cost of a mistake in each class or label: `none` if all cost the same, `balanced`, or weights by name."""
        args = self.component("loss").args
        found: str | Mapping[str, float] = args.get("class_weights", args.get("pos_weight", "none"))
        return found

    @property
    def training_epochs(self) -> int:
        """Epochs of one training, the same for all folds; a fit counts as one."""
        if self.is_pretraining:
            return int(self.component("pretrain").args["epochs"])
        each: int = self.tree["training"]["epochs"]
        return 1 if self.is_fitted else each

    @property
    def epochs(self) -> int:
        """Epochs of a trial that trains to its end: those of a training, once for each fold."""
        return self.folds * self.training_epochs

    def digest(self, *sections: str) -> str:
        """Return a short hash of the named top-level sections (default: all), equal for equal contents."""
        asked = [key for key in (sections or sorted(self.tree)) if not _is_later(key, self.tree[key])]
        chosen = {key: _as_before(key, self.tree[key]) for key in asked}
        if "training" in chosen and "batch_norm" not in chosen["training"]:
            # The number of devices that share a batch has no effect, unless each has its own statistics.
            chosen["training"].pop("devices", None)
        # A section that is now empty did not exist in earlier versions.
        known = {key: kept for key, kept in chosen.items() if kept != {} or self.tree[key] == {}}
        text = json.dumps(_thaw(known), sort_keys=True)
        return digests.of_text(text)[:16]

    def moved(self, place: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration with its images in another place, such as `{"root": "/photos"}`.

        Only the arguments in `PLACE` are used, and only those that the data set has.
        """
        if "data" not in self.tree:
            return self
        data = self.component("data")
        args = {name: place[name] for name in PLACE if name in place and name in data.args}
        if all(data.args[name] == value for name, value in args.items()):
            return self
        return TrialConfig(_freeze({**self.tree, "data": {data.name: {**data.args, **args}}}))

    def pretraining_on(self, root: str) -> TrialConfig:
        """Return the configuration with the folder that it pretrains on in another place."""
        folder = self.tree.get("unlabeled", {}).get("folder")
        if folder is None or folder["root"] == root:
            return self
        return TrialConfig(_freeze({**self.tree, "unlabeled": {"folder": {**folder, "root": root}}}))

    def digest_anywhere(self) -> str:
        """Return a short hash that is equal wherever the images are."""
        moved = self.moved(dict.fromkeys(PLACE))
        if "folder" not in self.tree.get("unlabeled", {}):
            return moved.digest()
        folder = {**self.tree["unlabeled"]["folder"], "root": None}
        return TrialConfig(_freeze({**moved.tree, "unlabeled": {"folder": folder}})).digest()

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> str:
        # A search asks for the hash of every earlier trial with each new one.
        return self.digest()


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expand_path(text: str, key: str) -> Path:
    """Return the path that a space names, with `~` and every `${VARIABLE}` replaced; errors mention `key`.

    Raises:
        UserError: a variable is not set, or there is no such user.
    """

    def value(found: re.Match[str]) -> str:
        known = os.environ.get(found[1], "")
        if not known:
            raise UserError(f"{key}: {text}: the environment variable {found[1]} is not set")
        return known

    try:
        return Path(_VARIABLE.sub(value, text)).expanduser()
    except RuntimeError:
        raise UserError(f"{key}: {text}: this user has no home folder here") from None


def completed(tree: Mapping[str, Any], new: Mapping[str, Any], *, but: Collection[str] = ()) -> dict[str, Any]:
    """Return a space or a configuration, as plain values, with the settings of `LATER` that it lacks.

    A missing section is added if `new` has it. Settings of the paths in `but` stay as they are.
    """
    found = dict(tree)
    for path, value in LATER.items():
        section, *keys = path.split(".")
        if path in but:
            continue
        if section not in found and section in new:
            found[section] = {} if keys else value
        if keys and section in found:
            found[section] = _with(found[section], keys, value)
    return found


def _with(node: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a mapping with a value added if it is missing; if a mapping on the path is missing, change nothing."""
    key, *below = keys
    if not below:
        return {**node, key: node.get(key, value)}
    return {**node, key: _with(node[key], below, value)} if key in node else dict(node)


def _as_before(path: str, node: Any) -> Any:
    """Return the node at a path without the settings of `LATER` that have no effect."""
    if not isinstance(node, Mapping):
        return node
    below = {key: f"{path}.{key}" for key in node}
    return {key: _as_before(below[key], value) for key, value in node.items() if not _is_later(below[key], value)}


def _is_later(path: str, value: Any) -> bool:
    return path in LATER and path not in IN_DIGESTS and value == LATER[path]


def _freeze(node: Any) -> Any:
    match node:
        case Mapping():
            return MappingProxyType({key: _freeze(value) for key, value in node.items()})
        case list() | tuple():
            return tuple(_freeze(value) for value in node)
        case _:
            return node


def _thaw(node: Any) -> Any:
    match node:
        case Mapping():
            return {key: _thaw(value) for key, value in node.items()}
        case list() | tuple():
            return [_thaw(value) for value in node]
        case _:
            return node
