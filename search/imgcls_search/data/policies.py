"""Policies: operations drawn for each image separately, applied to the whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

from imgcls_search.data import draws
from imgcls_search.signature import Arg

if TYPE_CHECKING:
    from torch import Tensor

Policy = Callable[["Tensor"], "Tensor"]
"""Images [N, C, H, W], uint8 -> the same shape, type and device."""


def none() -> Policy:
    """Build the policy that changes nothing."""
    return lambda images: images


def rand(
    *,
    num_ops: Annotated[
        int, Arg("operations applied to an image, one after the other", ge=1, search="{int: [1, 3]}")
    ] = 2,
    magnitude: Annotated[int, Arg("strength of every operation", ge=0, le=30, search="{int: [3, 12]}")] = 9,
) -> Policy:
    """Build RandAugment (Cubuk et al. 2019), for uint8 images."""
    from imgcls_search.data import policy_space as space

    def policy(images: Tensor) -> Tensor:
        strengths = space.rand_strengths(images.shape[2], images.shape[3])[:, magnitude]
        for _ in range(num_ops):
            operation = space.draw_operations(len(images))
            images = space.apply(images, operation, space.draw_signs(operation, strengths[operation]))
        return images

    return policy


def trivial() -> Policy:
    """Build TrivialAugment, one random operation of random strength (Müller and Hutter 2021), for uint8 images."""
    import torch

    from imgcls_search.data import policy_space as space

    def policy(images: Tensor) -> Tensor:
        operation = space.draw_operations(len(images))
        place = draws.of_images(len(images), lambda total: torch.randint(space.BINS, (total,)))
        strength = space.trivial_strengths()[operation, place]
        return space.apply(images, operation, space.draw_signs(operation, strength))

    return policy


POLICIES: Mapping[str, Callable[..., Policy]] = {"none": none, "rand": rand, "trivial": trivial}
