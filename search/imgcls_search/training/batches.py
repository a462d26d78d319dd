"""The inputs of each training step: the images of each batch in order, augmented, mixed, and split into parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from imgcls_search.data import Mix, Moment, draws, mix_nothing
from imgcls_search.protocol import FEWEST_IMAGES
from imgcls_search.training.group import Group
from imgcls_search.training.images import FeatureSet, ImageSet
from imgcls_search.training.losses import mass_of
from imgcls_search.training.session import Session

AUGMENTED_BYTES = 2**23
"""Pixels that a GPU augments at a time, one byte each."""


def order_of(session: Session, images: ImageSet) -> tuple[Tensor, ...]:
    """Return the image numbers of each step of the next epoch, and seed the random state for that epoch."""
    # All randomness of an epoch (order, augmentation, dropout) comes from (seed, epoch): a resumed training draws the
    # same numbers without saving any generator state.
    torch.manual_seed(session.seed * 1_000_003 + session.epoch)
    # Batches of nearly equal size, none larger than `batch_size`: a last batch of one image would break batch
    # normalisation.
    steps = math.ceil(len(images) / session.recipe.batch_size)
    return (images.balanced() if session.recipe.draw == "balanced" else images.shuffled()).tensor_split(steps)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a batch that goes through the network at once."""

    inputs: Tensor
    targets: Tensor
    share: Tensor | float
    """The weight of its mean loss in the loss of the batch."""

    of_images: float
    """Its images / images of the batch."""

    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """For the forward pass."""


def parts_of(
    session: Session, inputs: Tensor, labels: Tensor, step: int, count: int, mix: Mix | None = None
) -> Iterator[Part]:
    """Mix a batch of `count` images and yield it in parts; with several devices, only the parts of this device."""
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
        # An image is mixed with its neighbour in the batch, which may be on another device.
        own = group.own(count, session.micro_batches).to(inputs.device)
        inputs, targets = mix(group.whole(inputs, parts), group.whole(labels, parts))
        inputs, targets = inputs[own], targets[own]
    sizes = [len(part[group.rank]) for part in parts]
    mass = mass_of(session.loss, targets)
    whole = group.add(mass) if isinstance(mass, Tensor) else float(count)
    # All views of an image stay together: a batch with several views is one part.
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
    """Use own random numbers for dropout in a forward pass, and normalise over the whole micro-batch."""
    kind = session.recipe.batch_norm
    with group.own_numbers(session.seed, session.epoch, *moment), group.normalising(kind, own, whole):
        yield


def micro_batches(inputs: Tensor, targets: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a batch into parts of nearly equal size, each with at least `FEWEST_IMAGES` images."""
    parts = max(1, min(count, len(inputs) // FEWEST_IMAGES))
    yield from zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)


def augmented(session: Session, images: ImageSet, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each part the inputs, augmented and normalised on the device, float [B, C, H, W], and class numbers
    [B]."""
    group, of_batch = session.group, [len(part) for part in parts]
    own = [part if group is None else part[_own(session, group, part)] for part in parts]
    if isinstance(images, FeatureSet):
        yield from ((images.normalise(features), labels) for _, features, labels in images.batches(own))
        return
    # Many small images take a GPU no longer than a few: augment several parts together.
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
    """Return which images of a batch belong to this device, on the device of `part`."""
    return group.own(len(part), session.micro_batches).to(part.device)


def _drawing(session: Session, parts: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Return a context for augmenting the images of several batches, or this device's share of each."""
    if session.group is None:
        return nullcontext()
    places, total = [], 0
    for part in parts:
        places.append(total + session.group.own(len(part), session.micro_batches))
        total += len(part)
    return draws.of_share(draws.Share(total=total, places=torch.cat(places)))
