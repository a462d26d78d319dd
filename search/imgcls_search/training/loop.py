"""The one train/evaluate loop, shared by search and retraining."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls_search.data import Augment, Mix, Moment, draws, mix_nothing
from imgcls_search.errors import DivergedError, StoppedError
from imgcls_search.protocol import FEWEST_IMAGES
from imgcls_search.training import corrupted
from imgcls_search.training.average import Average, equal, exponential, renew_statistics
from imgcls_search.training.device import autocast, compiled
from imgcls_search.training.finetune import Hold, head_of, hold_nothing
from imgcls_search.training.group import Group
from imgcls_search.training.images import FeatureSet, ImageSet, in_order
from imgcls_search.training.losses import Loss, mass_of
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.training.optimizers import Schedule
from imgcls_search.training.recipe import Training
from imgcls_search.training.resolution import Shrinking
from imgcls_search.training.sharpness import Climbing, statistics_kept
from imgcls_search.training.whitening import whiten

AUGMENTED_BYTES = 2**23
"""Pixels that a GPU augments at a time, a byte each."""


SETTLING_BATCHES = 16
"""Batches from which statistics of averaged weights are taken."""

Observe = Callable[[nn.Module, int, Wanted | None], dict[str, float]]
"""Measures a model after an epoch, counted from 1, and before the first one, 0."""

Teach = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns a loss with a teacher's part in it, from the loss, the logits [B, classes] and the inputs they are for."""


@dataclass(frozen=True, kw_only=True)
class HeadPhase:
    """The first epochs of a training, in which only the head learns, from features that are kept."""

    epochs: int
    """How many there are; 0 where the features only serve `fit`."""

    sets: Callable[[int], tuple[FeatureSet, FeatureSet | None]]
    """Returns the features to train on, and those to measure by, in an epoch counted from 0."""

    fit: Callable[[nn.Module], None] | None = None
    """Gives a model its head before the first epoch."""

    is_fit_only: bool = False
    """Whether the head is fitted and nothing trained: the fit is the one epoch."""


@dataclass(kw_only=True)
class Session:
    """A training under way: everything that changes from step to step, and what each step needs."""

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    augment: Augment | Shrinking
    recipe: Training
    device: str
    precision: str
    seed: int
    is_compiled: bool = False
    mix: Mix = mix_nothing
    micro_batches: int = 1
    """Parts that a batch goes through the model in, one after the other, to need less memory; one step follows."""

    hold: Hold = hold_nothing
    """Freezes what is to be frozen in an epoch."""
    teach: Teach | None = None
    head_phase: HeadPhase | None = None
    views: int = 1
    """How many times each image of a batch is augmented; the first views of all stand before the second ones."""

    group: Group | None = None
    """The devices that train the network together, None where it is one."""

    observe: Observe | None = None
    """What an epoch is measured by in place of scores on validation images."""

    history: list[dict[str, float]] = field(default_factory=list)
    """What each finished epoch measured, the first epoch first."""

    def __post_init__(self) -> None:
        blend = exponential(self.recipe.ema) if self.recipe.ema > 0 else equal() if self.recipe.swa > 0 else None
        self.average = Average(self.model, blend) if blend is not None else None
        self.scaler = torch.amp.GradScaler(enabled=self.precision == "fp16")
        self.forward = compiled(self.model, self.recipe.compile) if self.is_compiled else self.model
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def deployed(self) -> nn.Module:
        """The weights that are evaluated and saved: the average, once there is one."""
        return self.average.module if self.average is not None and self.average.steps else self.model

    def in_head_phase(self) -> HeadPhase | None:
        """Return the phase of the next epoch if only the head learns in it, from features."""
        return self.head_phase if self.head_phase is not None and self.epoch < self.head_phase.epochs else None

    def whiten(self, images: ImageSet) -> None:
        """Fit first layers to the training images that are to be."""
        whiten(images, self.model, *([self.average.module] if self.average is not None else []))

    def fit_head(self) -> None:
        """Give the head the weights that it is to start with."""
        if self.head_phase is None or self.head_phase.fit is None:
            return
        self.head_phase.fit(self.model)
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())

    def set_rate(self, progress: float) -> None:
        """Set the learning rates for a moment of the training, in epochs done."""
        factor = self.schedule(progress)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next epoch depends on, as tensors and plain values; `model` is what is deployed."""
        return {
            "model": self.deployed.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "raw": self.model.state_dict() if self.average is not None else None,
            "steps_averaged": self.average.steps if self.average is not None else 0,
            "scaler": self.scaler.state_dict(),
            "seed": self.seed,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state; one without an `optimizer` is finished and can be measured, not trained on."""
        if self.average is not None:
            self.model.load_state_dict(state["raw"])
            self.average.steps = state["steps_averaged"]
            self.average.module.load_state_dict(state["model"])
        else:
            self.model.load_state_dict(state["model"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.seed = state["seed"]
        self.history = list(state["history"])


def fit(
    session: Session,
    train: ImageSet,
    validation: ImageSet | None,
    *,
    until_epoch: int,
    should_stop: Callable[[], bool] = lambda: False,
    wanted: Wanted | None = None,
) -> Iterator[dict[str, float]]:
    """Train up to and including an epoch; after each, yield what it measured.

    `wanted` says what is measured beside the usual; after the training's last epoch all of it is.

    Raises:
        DivergedError: the loss became NaN or infinite.
        StoppedError: `should_stop` said so in the middle of an epoch.
    """
    while session.epoch < until_epoch:
        started = time.perf_counter()
        phase = session.in_head_phase()
        shown, asked_of = (train, validation) if phase is None else phase.sets(session.epoch)
        measured = {}
        if session.epoch == 0:
            session.whiten(shown)
            session.fit_head()
            measured = session.observe(session.deployed, 0, wanted) if session.observe is not None else {}
        is_fit_only = phase is not None and phase.is_fit_only
        train_loss = mean_loss(session, shown) if is_fit_only else train_epoch(session, shown, should_stop)
        if not is_fit_only and session.recipe.swa and session.epoch >= session.recipe.epochs - session.recipe.swa:
            average_epoch(session, shown, should_stop)
        asked = _all_of(wanted) if session.epoch + 1 == session.recipe.epochs else wanted
        if session.observe is not None:
            measured |= session.observe(session.deployed, session.epoch + 1, asked)
        elif asked_of:
            deployed = session.deployed if phase is None else head_of(session.deployed)
            measured = evaluate(deployed, asked_of, precision=session.precision, wanted=asked, group=session.group)
        if validation and asked is not None and phase is not None and corrupted.is_wanted(asked.named):
            # Features are of the images as they are; worse ones go through the whole network.
            measured |= corrupted.mean(corruptions(session.deployed, validation, precision=session.precision))
        seconds = time.perf_counter() - started
        session.history.append(
            {"epoch": session.epoch + 1, "train_loss": train_loss, **measured, "seconds": round(seconds, 4)}
        )
        yield session.history[-1]


def _all_of(wanted: Wanted | None) -> Wanted | None:
    return replace(wanted, is_full=True) if wanted is not None else None


def train_epoch(session: Session, images: ImageSet, should_stop: Callable[[], bool]) -> float:
    """Show the model every image once, or as many in balance; return the mean loss."""
    order = _order(session, images)
    steps = len(order)
    if session.group is not None:
        session.group.check_batches(len(images), steps)
    total = torch.zeros((), device=session.device)
    set_training(session.optimizer, True)
    session.model.train()
    session.hold(session.model, session.epoch)
    forward = head_of(session.model) if isinstance(images, FeatureSet) else session.forward
    for step, (inputs, labels) in enumerate(augmented(session, images, order)):
        if should_stop():
            raise StoppedError(f"stopped in epoch {session.epoch + 1}")
        # The rate of the middle of the step: neither the first nor the last is wasted on a rate of zero.
        session.set_rate(session.epoch + (step + 0.5) / steps)
        session.optimizer.zero_grad(set_to_none=True)
        parts = parts_of(session, inputs, labels, step, len(order[step]))
        if isinstance(session.optimizer, Climbing):
            several = list(parts)
            losses = add_gradients(session, forward, several)
            with session.optimizer.climbed(), statistics_kept(session.model):
                add_gradients(session, forward, several)
        else:
            losses = add_gradients(session, forward, parts)
        for loss in losses:
            total += loss * len(order[step])
        # Step.
        if session.recipe.clip > 0:
            session.scaler.unscale_(session.optimizer)
            nn.utils.clip_grad_norm_(session.model.parameters(), session.recipe.clip)
        session.scaler.step(session.optimizer)
        session.scaler.update()
        if session.average is not None and session.recipe.ema > 0:
            session.average.update(session.model)
    if session.group is not None:
        session.group.add(total)
        if session.recipe.batch_norm == "local":
            averages = [session.average.module] if session.average is not None else []
            session.group.even_out(session.model, *averages)
    mean = float(total) / len(images)
    if not math.isfinite(mean):
        raise DivergedError(f"the training loss became {mean} in epoch {session.epoch + 1}")
    if set_training(session.optimizer, False):
        settle_statistics(session, images, order)
    return mean


def add_gradients(session: Session, forward: Callable[[Tensor], Tensor], parts: Iterable[Part]) -> list[Tensor]:
    """Go forward and backward through the parts of a batch; gradients, and the losses returned, add up to its own."""
    losses = []
    for part in parts:
        with part.context(), autocast(session.device, session.precision):
            logits = forward(part.inputs)
            loss = session.loss(logits, part.targets)
            if session.teach is None:
                loss = loss * part.share
            else:
                loss = session.teach(loss * (part.share / part.of_images), logits, part.inputs) * part.of_images
        session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    if session.group is not None:
        session.group.add_gradients(session.optimizer)
    return losses


def set_training(optimizer: Optimizer, is_training: bool) -> bool:
    """Have an optimizer that averages weights put those in place that learn, or the average; tell whether it is one."""
    change = getattr(optimizer, "train" if is_training else "eval", None)
    if change is not None:
        change()
    return change is not None


@torch.no_grad()
def settle_statistics(session: Session, images: ImageSet, order: Sequence[Tensor]) -> None:
    """Give batch normalisation the statistics of the weights that are evaluated, which never saw a batch in training.

    The first batches of the epoch go through the network once more, without gradients.
    """
    layers = [each for each in session.model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    layers = [each for each in layers if each.training and each.running_mean is not None]
    if not layers or isinstance(images, FeatureSet):
        return
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # The mean over all batches.
        layer.momentum = None
    some = order[:SETTLING_BATCHES]
    for step, (inputs, labels) in enumerate(augmented(session, images, some)):
        for part in parts_of(session, inputs, labels, step, len(some[step])):
            with part.context(), autocast(session.device, session.precision):
                session.forward(part.inputs)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    if session.group is not None and session.recipe.batch_norm == "local":
        session.group.even_out(session.model)


def _order(session: Session, images: ImageSet) -> tuple[Tensor, ...]:
    """Return the images of each step of the next epoch, and set the random state that the epoch begins with."""
    # All randomness of an epoch (order, augmentation, dropout) comes from (seed, epoch): a resumed training draws the
    # same without carrying generators from process to process.
    torch.manual_seed(session.seed * 1_000_003 + session.epoch)
    # Parts of nearly equal size, none larger than a batch: a rest of one image would break batch normalisation.
    steps = math.ceil(len(images) / session.recipe.batch_size)
    return (images.balanced() if session.recipe.draw == "balanced" else images.shuffled()).tensor_split(steps)


def average_epoch(session: Session, images: ImageSet, should_stop: Callable[[], bool]) -> None:
    """Take the weights after an epoch into the average of the last ones, and let its statistics fit it.

    The images of the epoch go through it once more, augmented as they were, but not mixed with each other.

    Raises:
        StoppedError: `should_stop` said so.
    """
    assert session.average is not None, "only where epochs are averaged"
    average = session.average.module
    session.average.update(session.model)
    forward = head_of(average) if isinstance(images, FeatureSet) else average

    def pass_through() -> Iterator[Tensor]:
        order = _order(session, images)
        for step, (inputs, labels) in enumerate(augmented(session, images, order)):
            if should_stop():
                raise StoppedError(f"stopped in epoch {session.epoch + 1}")
            for part in parts_of(session, inputs, labels, step, len(order[step]), mix=mix_nothing):
                with part.context(), autocast(session.device, session.precision):
                    yield forward(part.inputs)

    renew_statistics(average, session.model, pass_through)
    if session.group is not None and session.recipe.batch_norm == "local":
        session.group.even_out(average)


@torch.inference_mode()
def mean_loss(session: Session, images: FeatureSet | ImageSet) -> float:
    """Return the mean loss of a head that was fitted.

    Raises:
        DivergedError: it is NaN or infinite.
    """
    head, total = head_of(session.model).eval(), 0.0
    for _, features, labels in images.batches(in_order(images)):
        total += float(session.loss(head(images.normalise(features)), labels)) * len(labels)
    mean = total / len(images)
    if not math.isfinite(mean):
        raise DivergedError(f"the loss of the fitted head is {mean}")
    return mean


@dataclass(frozen=True, kw_only=True)
class Part:
    """What goes through a network in one piece."""

    inputs: Tensor
    targets: Tensor
    share: Tensor | float
    """What its mean loss counts in that of the batch."""

    of_images: float
    """Its images / those of the batch."""

    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """For the forward pass."""


def parts_of(
    session: Session, inputs: Tensor, labels: Tensor, step: int, count: int, mix: Mix | None = None
) -> Iterator[Part]:
    """Mix a batch of `count` images and yield it in parts; with several devices, those of this one's share of it."""
    mix = session.mix if mix is None else mix
    if session.group is not None:
        yield from _parts_in_group(session, session.group, inputs, labels, step, count, mix)
        return
    inputs, targets = mix(inputs, labels)
    parts = list(micro_batches(inputs, targets, session.micro_batches))
    if len(parts) == 1:
        yield Part(inputs=inputs, targets=targets, share=1.0, of_images=1.0)
        return
    whole = mass_of(session.loss, targets)
    for part, wanted in parts:
        share = mass_of(session.loss, wanted) / whole
        yield Part(inputs=part, targets=wanted, share=share, of_images=len(part) / len(inputs))


def _parts_in_group(
    session: Session, group: Group, inputs: Tensor, labels: Tensor, step: int, count: int, mix: Mix
) -> Iterator[Part]:
    parts = group.parts(count, session.micro_batches)
    targets = labels
    if mix is not mix_nothing:
        # An image is mixed with its neighbour in the batch, which another device may have.
        own = group.own(count, session.micro_batches).to(inputs.device)
        inputs, targets = mix(group.whole(inputs, parts), group.whole(labels, parts))
        inputs, targets = inputs[own], targets[own]
    sizes = [len(part[group.rank]) for part in parts]
    mass = mass_of(session.loss, targets)
    whole = group.add(mass) if isinstance(mass, Tensor) else float(count)
    # Views of an image go together: a batch that has several is one part.
    several = torch.split(inputs, sizes) if len(sizes) > 1 else [inputs]
    for number, (part, wanted) in enumerate(zip(several, torch.split(targets, sizes), strict=True)):
        yield Part(
            inputs=part,
            targets=wanted,
            share=mass_of(session.loss, wanted) / whole,
            of_images=len(wanted) / count,
            context=partial(_in_group, session, group, (step, number), len(wanted), sum(map(len, parts[number]))),
        )


@contextmanager
def _in_group(session: Session, group: Group, moment: tuple[int, int], own: int, whole: int) -> Iterator[None]:
    """Have a forward pass draw its own numbers for dropout, and normalise by the whole micro-batch."""
    kind = session.recipe.batch_norm
    with group.own_numbers(session.seed, session.epoch, *moment), group.normalising(kind, own, whole):
        yield


def micro_batches(inputs: Tensor, targets: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch in parts of nearly equal size, none of fewer than `FEWEST_IMAGES` images."""
    parts = max(1, min(count, len(inputs) // FEWEST_IMAGES))
    yield from zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)


def augmented(session: Session, images: ImageSet, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs, augmented and normalised on the device, float [B, C, H, W], and class numbers [B] of each part."""
    group, of_batch = session.group, [len(part) for part in parts]
    own = [part if group is None else part[_own(session, group, part)] for part in parts]
    if isinstance(images, FeatureSet):
        yield from ((images.normalise(features), labels) for _, features, labels in images.batches(own))
        return
    # A GPU spends no more time on many small images than on a few: several parts go through it together.
    pixels_each = math.prod(images.pixels.shape[1:]) * of_batch[0]
    together = max(1, AUGMENTED_BYTES // pixels_each) if session.device != "cpu" else 1
    firsts = range(0, len(parts), together)
    several = [torch.cat(list(own[first : first + together])) for first in firsts]
    for first, (index, pixels, labels) in zip(firsts, images.batches(several), strict=True):
        moment = Moment(index=index, epoch=session.epoch, seed=session.seed)
        split = [len(part) for part in own[first : first + together]]
        with _drawing(session, parts[first : first + together]):
            seen_all = [images.normalise(session.augment(pixels, moment)) for _ in range(session.views)]
        views = [torch.split(seen, split) for seen in seen_all]
        for *seen, targets in zip(*views, torch.split(labels, split), strict=True):
            yield seen[0] if len(seen) == 1 else torch.cat(seen), targets


def _own(session: Session, group: Group, part: Tensor) -> Tensor:
    """Return which images of a batch this device has, where the numbers of the images are."""
    return group.own(len(part), session.micro_batches).to(part.device)


def _drawing(session: Session, parts: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Return a context in which images of several batches are augmented, or this device's share of each."""
    if session.group is None:
        return nullcontext()
    places, total = [], 0
    for part in parts:
        places.append(total + session.group.own(len(part), session.micro_batches))
        total += len(part)
    return draws.of_share(draws.Share(total=total, places=torch.cat(places)))


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    precision: str = "fp32",
    wanted: Wanted | None = None,
    group: Group | None = None,
) -> dict[str, float]:
    """Return the metrics of a model on a set of images; the devices of a group share the work.

    Raises:
        DivergedError: the model gives NaN or infinite logits.
    """
    logits = predict(model, images, precision=precision, group=group)
    if not np.isfinite(logits).all():
        raise DivergedError("the model gives NaN or infinite logits")
    labels = images.labels.cpu().numpy() if isinstance(images.labels, Tensor) else np.asarray(images.labels)
    found = score(logits, labels, wanted)
    if wanted is not None and corrupted.is_wanted(wanted.named) and not isinstance(images, FeatureSet):
        found |= corrupted.mean(corruptions(model, images, precision=precision))
    return found


@torch.inference_mode()
def corruptions(model: nn.Module, images: ImageSet, *, precision: str = "fp32") -> corrupted.Table:
    """Return the accuracy of a model on worse versions of a set of images."""
    model.eval()

    def logits(pixels: Tensor) -> np.ndarray[Any, Any]:
        with autocast(images.device, precision):
            found: np.ndarray[Any, Any] = model(images.normalise(pixels)).float().cpu().numpy()
        return found

    return corrupted.accuracies(images.batches(in_order(images)), logits)


@torch.inference_mode()
def predict(
    model: nn.Module, images: ImageSet, *, precision: str = "fp32", group: Group | None = None
) -> np.ndarray[Any, Any]:
    """Return logits, float32 [N, classes], of every image in order; the devices of a group share the work."""
    model.eval()
    blocks = in_order(images)
    own = blocks if group is None else blocks[group.rank :: group.size]
    found = []
    for _, pixels, _ in images.batches(own):
        with autocast(images.device, precision):
            found.append(model(images.normalise(pixels)).float())
    if group is not None:
        return group.blocks(found, [len(block) for block in blocks]).cpu().numpy()
    logits: np.ndarray[Any, Any] = torch.cat(found).cpu().numpy()
    return logits
