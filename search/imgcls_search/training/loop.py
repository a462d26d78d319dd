"""The train/evaluate loop that search and retraining share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls_search.data import mix_nothing
from imgcls_search.errors import DivergedError, StoppedError
from imgcls_search.training import corrupted
from imgcls_search.training.average import renew_statistics
from imgcls_search.training.batches import Part, augmented, order_of, parts_of
from imgcls_search.training.device import autocast
from imgcls_search.training.evaluation import corruptions, evaluate
from imgcls_search.training.finetune import head_of
from imgcls_search.training.images import FeatureSet, ImageSet, in_order
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.session import Session
from imgcls_search.training.sharpness import Climbing, statistics_kept

SETTLING_BATCHES = 16
"""Batches for the statistics of averaged weights."""


def fit(
    session: Session,
    train: ImageSet,
    validation: ImageSet | None,
    *,
    until_epoch: int,
    should_stop: Callable[[], bool] = lambda: False,
    wanted: Wanted | None = None,
) -> Iterator[dict[str, float]]:
    """Train up to and including an epoch; yield the metrics after each epoch.

    `wanted` names metrics beyond the usual ones; after the training's last epoch all metrics are computed.

    Raises:
        DivergedError: the loss became NaN or infinite.
        StoppedError: `should_stop` returned true in the middle of an epoch.
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
        measured |= _measure(session, asked_of, validation, asked)
        seconds = time.perf_counter() - started
        session.history.append(
            {"epoch": session.epoch + 1, "train_loss": train_loss, **measured, "seconds": round(seconds, 4)}
        )
        yield session.history[-1]


def _all_of(wanted: Wanted | None) -> Wanted | None:
    return replace(wanted, is_full=True) if wanted is not None else None


def _measure(
    session: Session, asked_of: ImageSet | None, validation: ImageSet | None, wanted: Wanted | None
) -> dict[str, float]:
    """Return the metrics after an epoch, on the validation images or on their features (`asked_of`)."""
    if session.observe is not None:
        return session.observe(session.deployed, session.epoch + 1, wanted)
    is_of_features = session.in_head_phase() is not None
    measured = {}
    if asked_of:
        deployed = head_of(session.deployed) if is_of_features else session.deployed
        measured = evaluate(deployed, asked_of, precision=session.precision, wanted=wanted, group=session.group)
    if validation and wanted is not None and is_of_features and corrupted.is_wanted(wanted.named):
        # Features exist for the original images only; corrupted ones go through the whole network.
        measured |= corrupted.mean(corruptions(session.deployed, validation, precision=session.precision))
    return measured


def train_epoch(session: Session, images: ImageSet, should_stop: Callable[[], bool]) -> float:
    """Train one epoch, on every image once or on a balanced draw; return the mean loss."""
    order = order_of(session, images)
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
        # Use the rate at the middle of the step: neither the first nor the last step is wasted on a rate of zero.
        session.set_rate(session.epoch + (step + 0.5) / steps)
        session.optimizer.zero_grad(set_to_none=True)
        for loss in compute_gradients(session, forward, parts_of(session, inputs, labels, step, len(order[step]))):
            total += loss * len(order[step])
        take_step(session)
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


def compute_gradients(session: Session, forward: Callable[[Tensor], Tensor], parts: Iterator[Part]) -> list[Tensor]:
    """Compute the gradients of a batch: at the current weights or, with SAM, where the loss is highest nearby."""
    if not isinstance(session.optimizer, Climbing):
        return add_gradients(session, forward, parts)
    several = list(parts)
    losses = add_gradients(session, forward, several)
    with session.optimizer.climbed(), statistics_kept(session.model):
        add_gradients(session, forward, several)
    return losses


def take_step(session: Session) -> None:
    """Update the weights by their gradients, and then their average over steps."""
    if session.recipe.clip > 0:
        session.scaler.unscale_(session.optimizer)
        nn.utils.clip_grad_norm_(session.model.parameters(), session.recipe.clip)
    session.scaler.step(session.optimizer)
    session.scaler.update()
    if session.average is not None and session.recipe.ema > 0:
        session.average.update(session.model)


def add_gradients(session: Session, forward: Callable[[Tensor], Tensor], parts: Iterable[Part]) -> list[Tensor]:
    """Run the parts of a batch forward and backward; the gradients and the returned losses add up to the batch's."""
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
    """Switch an optimizer that averages weights between trained and averaged weights; return whether it is one."""
    change = getattr(optimizer, "train" if is_training else "eval", None)
    if change is not None:
        change()
    return change is not None


@torch.no_grad()
def settle_statistics(session: Session, images: ImageSet, order: Sequence[Tensor]) -> None:
    """Compute batch normalisation statistics for the evaluated weights, which never saw a batch in training.

    The first batches of the epoch go through the network once more, without gradients.
    """
    layers = [each for each in session.model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    layers = [each for each in layers if each.training and each.running_mean is not None]
    if not layers or isinstance(images, FeatureSet):
        return
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # None: the mean over all batches.
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


def average_epoch(session: Session, images: ImageSet, should_stop: Callable[[], bool]) -> None:
    """Add the weights after an epoch to the average of the last epochs, and recompute its statistics.

    The images go through the average once more, augmented as in the epoch, but not mixed.

    Raises:
        StoppedError: `should_stop` returned true.
    """
    assert session.average is not None, "only where epochs are averaged"
    average = session.average.module
    session.average.update(session.model)
    forward = head_of(average) if isinstance(images, FeatureSet) else average

    def pass_through() -> Iterator[Tensor]:
        order = order_of(session, images)
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
    """Return the mean loss of a fitted head.

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
