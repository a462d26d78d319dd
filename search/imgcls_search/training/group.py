"""Several devices that train one network: each has a part of every batch, and all take the same steps.

Gradients are added here and not by torch's DistributedDataParallel: each device weighs its loss by its share of the
batch, so that the sum is the gradient that one device would compute for the batch. This also holds for micro-batches,
class weights, the first epochs of a frozen network and losses that compare all images of a batch.

All devices are on one machine. They find each other through a file, and communicate over the loopback interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls_search.errors import BuildError, DeviceError
from imgcls_search.protocol import FEWEST_IMAGES, GroupMember
from imgcls_search.training.batch_norm import Normalised
from imgcls_search.training.loopback import interface

PATIENCE = timedelta(hours=2)
"""How long a device waits for the others before it gives up. A process that ends is noticed at once."""

BUCKET_BYTES = 2**25
"""Bytes of gradients that are sent together."""

P = ParamSpec("P")
T = TypeVar("T")


class GroupLostError(BaseException):
    """Another device of the group is gone. The training has not failed: it continues with other processes."""


def _together(exchange: Callable[P, T]) -> Callable[P, T]:
    """Raise `GroupLostError` if another device is lost during an exchange."""

    @wraps(exchange)
    def run(*args: P.args, **given: P.kwargs) -> T:
        try:
            return exchange(*args, **given)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise GroupLostError(str(error)) from error

    return run


class Group:
    """This process's membership in the group that trains one network."""

    def __init__(self, member: GroupMember, device: str) -> None:
        """Wait until all processes of the group have joined.

        Raises:
            DeviceError: there is no loopback interface to communicate over.
            GroupLostError: a process did not join.
        """
        self.rank, self.size, self.device = member.rank, member.size, device
        self._join(Path(member.file))

    @_together
    def _join(self, file: Path) -> None:
        # By default gloo listens on the address of the host name, which other machines may reach.
        loopback = interface()
        if loopback is None:
            raise DeviceError(
                "training.devices: this machine has no network interface for its own processes (loopback)"
            )
        os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
        on_cuda = self.device.startswith("cuda")
        if on_cuda:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            init_method=file.absolute().as_uri(),
            rank=self.rank,
            world_size=self.size,
            timeout=PATIENCE,
        )
        # NCCL connects at the first exchange.
        dist.all_reduce(torch.zeros(1, device=self.device))
        self.wait()
        if self.is_leader:
            file.unlink(missing_ok=True)

    @property
    def is_leader(self) -> bool:
        """Whether this process acts for the group: it writes files and reports events."""
        return self.rank == 0

    # The split of a batch over devices.

    def parts(self, count: int, micro_batches: int) -> list[list[Tensor]]:
        """Return the image indices of each micro-batch of a batch: by micro-batch, by device, int64.

        Micro-batches have the same images as on one device, but every device gets at least one.
        """
        most = max(1, min(micro_batches, count // max(FEWEST_IMAGES, self.size)))
        return [list(part.tensor_split(self.size)) for part in torch.arange(count).tensor_split(most)]

    def own(self, count: int, micro_batches: int) -> Tensor:
        """Return the indices of this device's images in a batch, int64, micro-batch by micro-batch."""
        return torch.cat([part[self.rank] for part in self.parts(count, micro_batches)])

    def check_batches(self, images: int, steps: int) -> None:
        """Refuse batches that leave a device without an image.

        Raises:
            BuildError: a batch has fewer images than there are devices.
        """
        if images // steps < self.size:
            least = f"{images} training images in batches of {images // steps}"
            raise BuildError("training.devices", f"{self.size} devices share each batch, and there are {least}")

    # Exchanges between devices.

    @_together
    def agree(self, said: bool) -> bool:
        """Return the leader's value on all devices."""
        told = torch.tensor([said])
        dist.broadcast(told, src=0)
        return bool(told)

    @_together
    def wait(self) -> None:
        """Return when all devices have called this."""
        dist.all_reduce(torch.zeros(1))

    @_together
    def add(self, values: Tensor) -> Tensor:
        """Replace values in place by their sum over all devices, and return them."""
        dist.all_reduce(values)
        return values

    @_together
    def gather(self, own: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return the rows of every device; device i has `counts[i]` of them."""
        most = max(counts)
        padded = own if len(own) == most else torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
        found = [torch.empty_like(padded, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(found, padded.contiguous())
        return [rows[:count] for rows, count in zip(found, counts, strict=True)]

    def whole(self, own: Tensor, parts: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the rows of a whole batch in order, from the rows that each device has according to `parts`."""
        places = [torch.cat([part[rank] for part in parts]) for rank in range(self.size)]
        rows = torch.cat(self.gather(own, [len(place) for place in places]))
        order = torch.cat(places).argsort()
        return rows[order.to(rows.device)]

    def blocks(self, own: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Return the rows of all blocks in order; this device has every `size`th block from its rank on."""
        numbers = [list(range(rank, len(counts), self.size)) for rank in range(self.size)]
        sums = [sum(counts[number] for number in each) for each in numbers]
        # A device without a block does not know the width of a row.
        width = int(self.add(torch.tensor([own[0].shape[1] if own and self.is_leader else 0]))[0])
        rows = torch.cat(list(own)) if own else torch.empty((0, width), device=self.device)
        found = [
            torch.split(values, [counts[number] for number in each])
            for each, values in zip(numbers, self.gather(rows, sums), strict=True)
        ]
        return torch.cat([found[number % self.size][number // self.size] for number in range(len(counts))])

    def add_gradients(self, optimizer: Optimizer) -> None:
        """Replace each gradient by its sum over all devices."""
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for bucket in _buckets(gradients):
            flat = self.add(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, values in zip(bucket, torch.split(flat, sizes), strict=True):
                gradient.copy_(values.view_as(gradient))

    def even_out(self, *models: nn.Module) -> None:
        """Average running statistics over all devices, so that each evaluates the same network."""
        for model in models:
            for values in model.buffers():
                if values.is_floating_point():
                    self.add(values).div_(self.size)

    # Differences from training on one device.

    @contextmanager
    def own_numbers(self, *moment: int) -> Iterator[None]:
        """Draw random numbers (dropout) that differ between devices inside the context; outside, all draw the same."""
        with torch.random.fork_rng(devices=[]):
            seed = np.random.SeedSequence([*moment, self.rank]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed) >> 1)
            yield

    def normalising(self, kind: str, own: int, whole: int) -> AbstractContextManager[object]:
        """Return a context in which batch normalisation uses the statistics of all devices, if `kind` is `sync`.

        This device has `own` of a micro-batch's `whole` images.
        """
        return Normalised(self.add, own, whole) if kind == "sync" else nullcontext()


class WholeBatchLoss(nn.Module):
    """A loss over all images of a batch, computed from the outputs of all devices."""

    def __init__(self, loss: nn.Module, group: Group, views: int) -> None:
        """Outputs hold `views` of each image, the first views of all images before the second ones."""
        super().__init__()
        self.loss, self.group, self.views = loss, group, views

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the whole batch; its gradient is that of this device's part, divided by its share."""
        counts = self._counts(len(targets))
        seen = [_Gathered.apply(view, self.group, counts) for view in outputs.chunk(self.views)]
        found: Tensor = self.loss(torch.cat(seen), targets)
        return found

    def _counts(self, own: int) -> list[int]:
        found = torch.zeros(self.group.size, dtype=torch.int64)
        found[self.group.rank] = own
        return [int(count) for count in self.group.add(found)]


class _Gathered(torch.autograd.Function):
    """The rows of all devices. Each device computes the same loss, and gets gradients for its own rows only."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group, counts: Sequence[int]) -> Tensor:
        ctx.first, ctx.count = sum(counts[: group.rank]), len(own)
        # The caller multiplies the loss by this device's share of the batch.
        ctx.factor = sum(counts) / len(own)
        return torch.cat(group.gather(own, counts))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        own = gradients[0][ctx.first : ctx.first + ctx.count]
        return own * ctx.factor, None, None


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if bucket and (held + size > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += size
    if bucket:
        yield bucket
