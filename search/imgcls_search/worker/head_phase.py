"""Epochs that train only the head, on stored features."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from imgcls_search.config import TrialConfig, expand_path
from imgcls_search.data import Prepared, label_sets, load
from imgcls_search.data.features import Floats, folder_beside
from imgcls_search.models import heads, pretrained
from imgcls_search.protocol import Portion
from imgcls_search.rounding import size
from imgcls_search.space.problems import plain
from imgcls_search.training.images import FeatureSet
from imgcls_search.training.losses import weights_of_classes, weights_of_labels
from imgcls_search.training.probe import LinearHead, fit_linear, fit_several
from imgcls_search.training.recipe import Finetune
from imgcls_search.training.session import HeadPhase
from imgcls_search.worker import image_sets, pipeline
from imgcls_search.worker.features import AugmentedView, FrozenNetwork, features_in_steps, frozen_network
from imgcls_search.worker.head_plan import HeadPlan

FOLD_SEED = 0
"""Seed of the folds that choose the penalty of a fit."""

TELL_SECONDS = 15.0
"""Interval between progress messages."""


class HeadFeatures:
    """The features of a data set from a frozen network, as its head's trainings read them."""

    def __init__(self, config: TrialConfig, data: Prepared, device: str) -> None:
        """`data` is the whole data set, even if a training uses only part of it."""
        self.device = device
        self.config, self.data = config, data
        self.name = next(iter(config.to_dict()["model"].values())).get("name") or config.component("model").name
        self.kept: dict[tuple[str, int | None], Floats] = {}
        self.heads: dict[Any, LinearHead] = {}
        """Cached fits, by their inputs."""

    def computing(self, wanted: HeadPlan, portion: Portion) -> Generator[str | None, None, None]:
        """Load or compute all features of a training; yield between steps, occasionally with a progress line.

        Features that another process is computing come last, so that the processes share the work.

        Raises:
            DataError: the images are gone, or the features cannot be stored.
        """
        network: FrozenNetwork | None = None
        parts = deque(part for part in self._parts(wanted, portion) if part not in self.kept)
        while parts:
            split, view = parts.popleft()
            network = network or frozen_network(self.config, self.data, self.device)
            steps = features_in_steps(
                network,
                split,
                folder_beside(self.data),
                view=self._view(view),
                most_bytes=pipeline.cache_bytes(self.config),
            )
            found = yield from self._told(steps, split, view, wanted, waits=not parts)
            if found is None:
                parts.append((split, view))
            else:
                self.kept[split, view] = found

    def _parts(self, wanted: HeadPlan, portion: Portion) -> list[tuple[Literal["train", "val"], int | None]]:
        views: list[int | None] = [None] if wanted.views is None else list(range(wanted.views))
        splits: list[Literal["train", "val"]] = ["train", "val"]
        trained = splits if portion == "train+val" or self.data.folds else splits[:1]
        scored = splits if self.data.folds else splits[1:]
        parts = [(split, view) for view in views for split in trained]
        return list(dict.fromkeys([*parts, *((split, None) for split in scored if portion == "train")]))

    def _view(self, number: int | None) -> AugmentedView | None:
        if number is None:
            return None
        augmentation, _ = pipeline.build_augmentation(self.config, self.data.shape)
        settings = self.config.section("augment")
        shown = {name: value for name, value in settings.items() if name not in ("mixup", "cutmix")}
        return AugmentedView(number=number, augment=augmentation, settings=json.dumps(plain(shown), sort_keys=True))

    def _told(
        self,
        steps: Generator[tuple[int, int] | None, None, Floats],
        split: str,
        view: int | None,
        wanted: HeadPlan,
        *,
        waits: bool,
    ) -> Generator[str | None, None, Floats | None]:
        """Return the features; None if another process computes them, unless `waits`."""
        images = {"train": "training images", "val": "validation images"}[split]
        what = f"features of {images} by {self.name}" + ("" if view is None else f", view {view + 1} of {wanted.views}")
        began = said = time.monotonic()
        total = 0
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                found: Floats = end.value
                break
            if step is None and not waits:
                steps.close()
                yield None
                return None
            line = None
            if step is not None and not total:
                line = f"{what}: {step[1]:,} images, computed once for all trials"
            elif step is not None and time.monotonic() - said > TELL_SECONDS:
                line = f"{what}: {step[0]:,} of {step[1]:,}"
            if step is not None:
                total = step[1]
            said = said if line is None else time.monotonic()
            yield line
        if total:
            yield f"{what}: {size(found.nbytes)} after {time.monotonic() - began:.0f} s"
        return found

    def sets(
        self, wanted: HeadPlan, portion: Portion, fold: int | None, epoch: int
    ) -> tuple[FeatureSet, FeatureSet | None]:
        """Return the features to train on in an epoch, and those to evaluate on, if the portion leaves any."""
        view = wanted.view_in(epoch)
        if fold is not None:
            train, scored = image_sets.fold_places(self.data, fold)
            both = ("train", "val")
            return self._chosen(both, view, train), self._chosen(both, None, scored)
        if portion == "train":
            return self._chosen(("train",), view), self._chosen(("val",), None)
        return self._chosen(("train", "val"), view), None

    def fitted(self, wanted: HeadPlan, portion: Portion, fold: int | None) -> LinearHead:
        """Return a logistic regression fitted to all views of the training images.

        All trials with the same class weights and draws share it, because it does not use their random numbers.
        """
        key = (wanted.views, portion, fold, str(wanted.class_weights), wanted.draws_evenly)
        if key not in self.heads:
            shown = [self.sets(wanted, portion, fold, epoch)[0] for epoch in range(wanted.views or 1)]
            values = np.concatenate([_array(each.pixels) for each in shown])
            labels = np.concatenate([_array(each.labels) for each in shown])
            # BLAS would start a thread for each core, in competition with other workers.
            with threadpool_limits(torch.get_num_threads(), "blas"):
                self.heads[key] = self._fit(values, labels, wanted)
        return self.heads[key]

    def _fit(self, values: Any, labels: Any, wanted: HeadPlan) -> LinearHead:
        weighing = wanted.class_weights
        counts = label_sets.count(labels, len(self.data.classes)).tolist()
        if label_sets.are_several(labels):
            label_weights = weights_of_labels(counts, len(labels)) if weighing == "balanced" else None
            return fit_several(values, labels, FOLD_SEED, label_weights)
        class_weights = weights_of_classes(weighing, counts, self.data.classes)
        if wanted.draws_evenly:
            # A regression sees all images at once: weights replace repeated draws.
            even = weights_of_classes("balanced", counts, self.data.classes)
            assert even is not None
            class_weights = np.multiply(even, 1.0 if class_weights is None else class_weights).tolist()
        return fit_linear(values, labels, len(counts), FOLD_SEED, class_weights=class_weights)

    def _chosen(self, splits: Any, view: int | None, places: Any = None) -> FeatureSet:
        known = [self.kept[split, view] for split in splits]
        labels = np.concatenate([load(self.data, split).labels for split in splits])
        values: Any = known[0] if len(known) == 1 else np.concatenate(known)
        if places is not None:
            values, labels = values[places], labels[places]
        is_on_gpu = self.device.startswith("cuda")
        if is_on_gpu and values.nbytes < image_sets.GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return FeatureSet(
                pixels=torch.from_numpy(np.array(values)).to(self.device),
                labels=torch.from_numpy(np.array(labels)).to(self.device),
                device=self.device,
            )
        return FeatureSet(pixels=values, labels=labels, device=self.device)


def phase(wanted: HeadPlan, features: Callable[[], HeadFeatures], portion: Portion, fold: int | None) -> HeadPhase:
    """Return the head phase of a session; `features` is called when an epoch needs them."""

    def fit(model: nn.Module) -> None:
        head, layer = features().fitted(wanted, portion, fold), heads.linear_layer(model)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(head.weight))
            layer.bias.copy_(torch.from_numpy(head.bias))
        print(f"logistic regression: C {head.strength:g}", flush=True)  # noqa: T201 - the trial's log

    return HeadPhase(
        epochs=wanted.epochs,
        sets=lambda epoch: features().sets(wanted, portion, fold, epoch),
        fit=fit if wanted.is_fitted_first else None,
        is_fit_only=wanted.is_fit_only,
    )


def _array(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def key_of(config: TrialConfig, data: Prepared) -> tuple[Any, ...]:
    """Return everything that determines the features for trainings of a configuration."""
    model = config.component("model")
    changed = 0
    if pretrained.is_file(model):
        file = expand_path(str(model.args["weights"]), f"{model.path}.weights")
        changed = file.stat().st_mtime_ns if file.is_file() else 0
    recipe = Finetune(**config.section("finetune"))
    shown = config.section("augment") if recipe.views is not None else {}
    return config.digest("model"), changed, data, json.dumps(plain(shown), sort_keys=True)
