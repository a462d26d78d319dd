"""Where the trials of a search run: workers on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from imgcls_search.executors import packing
from imgcls_search.executors.helper import Helper
from imgcls_search.executors.local import LocalExecutor, usable_groups
from imgcls_search.orchestrator import code_used
from imgcls_search.orchestrator.context import study_settings
from imgcls_search.orchestrator.search import Watcher
from imgcls_search.protocol import Executor
from imgcls_search.space import Space
from imgcls_search.study.files import StudyFiles
from imgcls_search.words import counted


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where the trials of a search run."""

    executor: Executor
    workers: int
    devices_of: Callable[[str], Sequence[str]]
    """Returns the devices of a worker by its name."""

    devices: Sequence[str]
    """Devices of the workers on this machine."""

    free_memory: Mapping[str, float]
    """Free memory in bytes of GPUs that several workers share, before the workers use any."""

    devices_each: int
    """Devices that train a trial together."""

    hardware: str | None = None
    """Description of the hardware, if it is not this machine's."""


def local_engine(space: Space, helper: Helper, most: int) -> Engine:
    """Return workers on the devices of this machine, at most one per trial to run (`most`)."""
    training = space.document["training"]
    devices = helper.devices(training["device"])
    groups = usable_groups(devices, training["devices"], study_settings(space).workers, most)
    slots = [device for group in groups for device in group]
    free = packing.free_memory(slots)
    return Engine(
        executor=LocalExecutor(groups),
        workers=len(groups),
        devices_of=lambda worker: groups[int(worker.rpartition("-")[2])],
        devices=slots,
        free_memory=free,
        devices_each=len(groups[0]),
    )


def cluster_engine(
    address: str,
    space: Space,
    files: StudyFiles,
    watcher: Watcher,
    most: int,
    stack: ExitStack,
) -> Engine:
    """Return workers on the Ray cluster at an address; `stack` leaves the cluster at the end."""
    from imgcls_search.executors.ray import cluster

    cluster.join(address)
    stack.callback(cluster.leave)
    if address != "local":
        cluster.refuse_strangers()
    training = space.document["training"]
    layout = cluster.lay_out(training["device"], study_settings(space).workers, most, training["devices"])
    metrics = space.named_metrics
    node = cluster.only_node(layout) if "latency_ms" in metrics else None
    watcher.say(f"{layout.hardware}; {counted('worker', layout.count)}")
    # It imports Ray, which is available only now.
    from imgcls_search.executors.ray.executor import RayExecutor

    executor = RayExecutor(layout, files.folder, watcher.say, node=node, code=code_used.sources(space))
    kind = layout.devices[0].partition(":")[0]
    return Engine(
        executor=executor,
        workers=layout.count,
        devices_of=lambda worker: [f"{kind}@{worker.partition('@')[2]}"] * len(layout.devices),
        devices=[],
        free_memory={},
        devices_each=len(layout.devices),
        hardware=layout.hardware,
    )
