"""A trial with folds: one network per fold in turn, trained on the other folds and scored on its own.

Epochs are counted through all networks: first those of the first network, then of the second, and so on. After each
epoch, the trial reports the mean over the finished folds and the current one, which is weighted by the share of its
finished epochs, so that trials at the same epoch are comparable. The checkpoint keeps the predictions of finished
networks for their folds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imgcls_search.data import Images, Prepared
from imgcls_search.data.folds import places
from imgcls_search.data.label_sets import Labels, are_several
from imgcls_search.errors import UNWRITTEN, CheckpointError
from imgcls_search.measures import ALWAYS, SUPPORT, THRESHOLD
from imgcls_search.probabilities import probabilities_of, sigmoid
from imgcls_search.training import checkpoint
from imgcls_search.training.evaluation import predict
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.metrics_several import choose_thresholds
from imgcls_search.training.session import Session
from imgcls_search.worker.file_contents import CrossValidationState, FoldsState

KEY: Final = "folds"
"""The key of the folds in a saved training."""

ImageSets = Callable[[int], tuple[ImageSet, ImageSet]]
"""Returns the images to train on and those to score, for the number of a fold."""

NewSession = Callable[[int, bool], Session]
"""Returns an untrained session for a fold; the second argument tells whether to load pretrained weights."""


def seed_of(seed: int, fold: int) -> int:
    """Return the seed of a fold's network: the trial's seed for the first, derived seeds for the others."""
    if fold == 0:
        return seed
    return int(np.random.SeedSequence([seed, fold, 5]).generate_state(1)[0] // 2)


@dataclass(kw_only=True)
class CrossValidation:
    """A trial's networks, one of them in training; it is trained and saved like a single `Session`."""

    folds: int
    epochs: int
    """Of one network."""

    session: Session
    images: ImageSets
    renew: NewSession
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the trial after each epoch."""

    ends: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each finished network on its fold after its last epoch."""

    logits: list[Tensor] = field(default_factory=list)
    """The logits of each finished network for its fold, [n, classes]."""

    @property
    def epoch(self) -> int:
        """Epochs finished, over all networks."""
        return len(self.history)

    @property
    def fold(self) -> int:
        """The fold of the current network, or of the last one that finished."""
        return len(self.ends) - (self.session.epoch == self.epochs)

    @property
    def deployed(self) -> nn.Module:
        """The weights of the current network."""
        return self.session.deployed

    def fit(self, *, until_epoch: int, should_stop: Callable[[], bool], wanted: Wanted) -> Iterator[dict[str, float]]:
        """Train up to and including an epoch, counted over all networks; yield the trial's metrics after each.

        Raises:
            DivergedError: a loss became NaN or infinite.
            StoppedError: `should_stop` returned true in the middle of an epoch.
        """
        while self.epoch < until_epoch:
            if self.session.epoch == self.epochs:
                self.session = self.renew(len(self.ends), True)
            train, validation = self.images(self.fold)
            end = min(self.epochs, until_epoch - self.fold * self.epochs)
            for metrics in fit(
                self.session, train, validation, until_epoch=end, should_stop=should_stop, wanted=wanted
            ):
                if self.session.epoch == self.epochs:
                    self.ends.append(metrics)
                    said = predict(self.session.deployed, validation, precision=self.session.precision)
                    self.logits.append(torch.from_numpy(said))
                named = [name for name in metrics if name in ALWAYS or name in wanted.named]
                self.history.append(self._shown(metrics, named))
                yield self.history[-1]

    def _shown(self, metrics: Mapping[str, float], named: Sequence[str]) -> dict[str, float]:
        """Return the trial's metrics after an epoch: means, those of the current network, and the spread over folds."""
        is_end = self.session.epoch == self.epochs
        parts = [(end, 1.0) for end in self.ends]
        if not is_end:
            parts.append((dict(metrics), self.session.epoch / self.epochs))
        names = dict.fromkeys(name for part, _ in parts for name in part) if is_end else metrics
        own = ("epoch", "train_loss", "seconds")
        means = {name: _mean(name, parts) for name in names if name not in own}
        if len(self.ends) == self.folds:
            means |= self._thresholds([name for name in means if name.startswith(f"{THRESHOLD}:")])
        ends = {name: [end[name] for end in self.ends if name in end] for name in named}
        return {
            "epoch": len(self.history) + 1,
            "train_loss": metrics["train_loss"],
            **means,
            "fold": (len(self.ends) if is_end else len(self.ends) + 1),
            **{f"fold_{name}": metrics[name] for name in named},
            **({f"{name}_std": stdev(values) for name, values in ends.items() if len(values) > 1} if is_end else {}),
            "seconds": metrics["seconds"],
        }

    def _thresholds(self, names: Sequence[str]) -> dict[str, float]:
        """Return the thresholds of several labels, chosen on the out-of-fold predictions of all images."""
        if not names:
            return {}
        truth = np.concatenate([_as_array(self.images(fold)[1].labels) for fold in range(self.folds)])
        cuts = choose_thresholds(sigmoid(torch.cat(self.logits).numpy()), truth.astype(bool))
        return dict(zip(names, cuts.tolist(), strict=True))

    def state_dict(self) -> CrossValidationState:
        """Return everything that the next epoch depends on; `model` is the current network."""
        folds: FoldsState = {"history": self.session.history, "ends": self.ends, "logits": self.logits}
        return {**self.session.state_dict(), "history": self.history, KEY: folds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        folds = state[KEY]
        self.history, self.ends = list(state["history"]), list(folds["ends"])
        self.logits = list(folds["logits"])
        self.session.load_state_dict({**state, "history": folds["history"]})


def fold_in(state: Mapping[str, Any], epochs: int) -> int:
    """Return the fold of the network in a saved state; each network is trained for `epochs` epochs."""
    return len(state[KEY]["ends"]) - (len(state[KEY]["history"]) == epochs)


def _as_array(labels: Any) -> npt.NDArray[Any]:
    return labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)


def _mean(name: str, parts: Sequence[tuple[Mapping[str, float], float]]) -> float:
    known = [(part[name], weight) for part, weight in parts if name in part]
    if name.partition(":")[0] == SUPPORT:
        # Numbers of images add up.
        return sum(value for value, _ in known)
    if len(known) == 1:
        return known[0][0]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """The predictions of a finished trial's networks for images they were not trained on, in the order of the folds."""

    probabilities: npt.NDArray[np.float64]
    """[N, classes]; independent per label with several labels."""

    labels: Labels
    """Class numbers [N], or labels [N, classes]."""

    images: npt.NDArray[np.int64]
    """Indices of the images [N] in the training split followed by the validation split, as in `data.load`."""

    names: tuple[str, ...]
    logits: npt.NDArray[np.float32]


def what_is_kept(data: Prepared, train: Images, validation: Images) -> FoldsState:
    """Return what a finished trial stores with the logits to identify their images."""
    order = np.concatenate(places(data.folds, data.counts["train"]))
    labels = np.concatenate([train.labels, validation.labels])[order]
    names = [*train.names, *validation.names]
    return {
        "images": torch.from_numpy(order),
        "labels": torch.from_numpy(labels),
        "names": [names[place] for place in order.tolist()],
    }


def out_of_fold(weights: Path) -> OutOfFold:
    """Return the out-of-fold predictions in the weights file of a finished trial with folds.

    Raises:
        CheckpointError: the file is missing or damaged, or is not of a finished trial with folds.
    """
    return read_out_of_fold(checkpoint.load(weights), str(weights))


def read_out_of_fold(state: Mapping[str, Any], source: str) -> OutOfFold:
    """Return the out-of-fold predictions in a loaded state.

    Raises:
        CheckpointError: the state is not of a finished trial with folds.
    """
    try:
        kept, data = state[KEY], Prepared.from_dict(json.loads(state["about"])["data"])
        logits = torch.cat(list(kept["logits"])).numpy()
        labels, images, names = kept["labels"].numpy(), kept["images"].numpy(), tuple(kept["names"])
    except (*UNWRITTEN, RuntimeError):
        raise CheckpointError(f"{source}: no out-of-fold predictions; needed: a finished trial with folds") from None
    shape, last = (len(names), len(data.classes)), 1 if data.has_several_labels else len(data.classes) - 1
    if not (
        all(isinstance(name, str) for name in names)
        and (logits.shape, logits.dtype.kind) == (shape, "f")
        and (labels.shape, labels.dtype.kind in "iu") == (shape if data.has_several_labels else shape[:1], True)
        and (images.shape, images.dtype.kind) == (shape[:1], "i")
        and labels.size > 0
        and 0 <= labels.min() <= labels.max() <= last
    ):
        raise CheckpointError(f"{source}: its out-of-fold predictions are damaged")
    probabilities = probabilities_of(logits, several=are_several(labels))
    return OutOfFold(probabilities=probabilities, labels=labels, images=images, names=names, logits=logits)
