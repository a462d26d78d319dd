"""Random numbers of images, drawn for a batch at a time; of a batch that several devices share, each keeps its part.

Every device draws the numbers of the whole batch and takes those of its own images, so that what happens to an image
does not depend on the device that it goes to.
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
    """Which images of a batch are augmented here."""

    total: int
    """Images of the whole batch."""

    places: Tensor
    """Where the images are in the batch, int64 [N]."""


_SHARES: list[Share] = []
"""The share of the batch that is augmented now; empty where all of it is."""


@contextmanager
def of_share(share: Share) -> Iterator[None]:
    """Have what is drawn within it be the numbers of a share's images."""
    _SHARES.append(share)
    try:
        yield
    finally:
        _SHARES.pop()


def of_images(count: int, draw: Callable[[int], Tensor], axis: int = -1) -> Tensor:
    """Return random numbers for some images, `draw(count)`, which has one entry along an axis for each of them."""
    if not _SHARES:
        return draw(count)
    share = _SHARES[-1]
    assert count == len(share.places), "all images of a share are augmented together"
    return draw(share.total).index_select(axis, share.places)
