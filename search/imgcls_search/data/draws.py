"""Random numbers for the images of a batch, also when several devices share the batch.

Every device draws the numbers of the whole batch and keeps those of its own images, so that the augmentation of an
image does not depend on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Share:
    """The images of a batch that are augmented on this device."""

    total: int
    """Number of images in the whole batch."""

    places: Tensor
    """Indices of the images in the batch, int64 [N]."""


_SHARES: list[Share] = []
"""The share of the batch that is being augmented; empty for the whole batch."""


@contextmanager
def of_share(share: Share) -> Iterator[None]:
    """Draw only the numbers of a share's images inside the context."""
    _SHARES.append(share)
    try:
        yield
    finally:
        _SHARES.pop()


def of_images(count: int, draw: Callable[[int], Tensor], axis: int = -1) -> Tensor:
    """Return random numbers for some images: `draw(count)`, with one entry per image along an axis."""
    if not _SHARES:
        return draw(count)
    share = _SHARES[-1]
    assert count == len(share.places), "all images of a share are augmented together"
    return draw(share.total).index_select(axis, share.places)
