"""Connect to the Ray cluster of a search, check that it fits, and lay out its workers."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imgcls_search
from imgcls_search import own_code
from imgcls_search.errors import ClusterError, first_line
from imgcls_search.executors import processes
from imgcls_search.words import counted

ANSWER_SECONDS = 5.0
"""How long an address may take to answer."""

LOOK_SECONDS = 60.0
"""How long the nodes may take to report their version: each starts a process for it."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a cluster on this machine only, whose workers write their files themselves."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The workers of a search on a cluster."""

    count: int
    devices: Sequence[str]
    """The devices of each worker, as it names them."""

    resources: Mapping[str, float]
    """The resources that Ray reserves for each worker."""

    hardware: str
    """The cluster in words."""


def join(address: str) -> None:
    """Connect to the cluster at an address or to that of this machine (`auto`), or start one here (`local`).

    Raises:
        ClusterError: Ray is not installed, nobody answers, or the cluster refuses this process.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Skip Ray's pages of messages about dead workers and nodes: the run reports each in one line.
    os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."
    if address == "local":
        # As in Ray's desktop installations: all its ports are then open to this machine only.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # This cluster is only for trials; with Ray's own niceness they would give way to all other processes.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    try:
        import ray
    except ModuleNotFoundError:
        raise ClusterError("--cluster: Ray is not installed; pip install 'imgcls-search[ray]'") from None
    if address.startswith("ray://"):
        raise ClusterError(
            f"--cluster {address}: a search cannot be steered through Ray Client; run the command on a node of the "
            "cluster, with --cluster auto"
        )
    if address not in ("auto", "local"):
        _must_answer(address)
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        if (folder := processes.short_folder()) != tempfile.gettempdir():
            own["_temp_dir"] = str(Path(folder) / "ray")
    try:
        with processes.deaf_to_terminal(), _working_beside_package():
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except Exception as error:
        # Ray has no exception class for the errors that can happen here.
        raise ClusterError(f"--cluster {address}: {first_line(error)}") from error


@contextlib.contextmanager
def _working_beside_package() -> Iterator[None]:
    """Make Ray's processes look for modules where this package is, and not in the user's working folder.

    Ray prepends the folder in which `ray.init` is called, and that of the script, to the path of every worker.
    """
    before, path = Path.cwd(), list(sys.path)
    sys.path[:] = own_code.module_path()
    os.chdir(Path(imgcls_search.__file__).resolve().parent.parent)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


def leave() -> None:
    """Disconnect; this ends a cluster that `join` started."""
    import ray

    ray.shutdown()


def lay_out(wanted: str, workers: int | None, most: int, devices: int | Literal["auto"] = 1) -> Layout:
    """Return the workers that fit on the cluster, at most `most`: one per GPU or CPU, or more `workers` that share.

    With several `devices` per worker, each has that many of one node for itself: Ray places an actor, with all its
    resources, on one node.

    Raises:
        ClusterError: the cluster does not have the device of `training.device`, or too few of it.
    """
    nodes = _nodes()
    gpus, cpus = (int(sum(node["Resources"].get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    had = f"the cluster has {counted('node', len(nodes))} with {counted('CPU', cpus)} and {counted('GPU', gpus)}"
    if wanted not in ("auto", "cpu", "cuda") or (wanted == "cuda" and not gpus):
        raise ClusterError(f"training.device: {wanted} is not on the cluster; {had}")
    kind = "GPU" if gpus and wanted != "cpu" else "CPU"
    by_node = [int(node["Resources"].get(kind, 0)) for node in nodes]
    if not sum(by_node):
        raise ClusterError(f"--cluster: no CPU for a worker; {had}")
    each = _devices_each(devices, by_node, workers, kind)
    held = sum(count // each for count in by_node)
    count = workers or held
    # Ray counts in ten-thousandths, and in whole numbers above one.
    share = each if each > 1 else 10_000 // math.ceil(count / held) / 10_000
    if each > 1 and count > held:
        raise ClusterError(
            f"study.workers: {count} of training.devices: {each} do not fit; allowed: 1 to {held}; {had}"
        )
    return Layout(
        count=max(1, min(count, most)),
        devices=[f"cuda:{place}" for place in range(each)] if kind == "GPU" else ["cpu"] * each,
        resources={"num_gpus": share, "num_cpus": 0} if kind == "GPU" else {"num_cpus": share},
        hardware=f"Ray cluster: {had.removeprefix('the cluster has ')}",
    )


def _devices_each(wanted: int | Literal["auto"], by_node: Sequence[int], workers: int | None, kind: str) -> int:
    """Return how many devices a worker has, all on one node; `by_node` has the number of devices on each node."""
    most = max(by_node)
    if wanted != "auto":
        if wanted > most:
            raise ClusterError(f"training.devices: {wanted}: no node of the cluster has more than {most} {kind}(s)")
        return wanted
    # The largest number that still gives enough workers.
    fitting = [each for each in range(1, most + 1) if sum(count // each for count in by_node) >= (workers or 1)]
    return max(fitting, default=1)


def only_node(layout: Layout) -> str:
    """Return the one node that has the device of a layout's workers.

    Raises:
        ClusterError: there are several.
    """
    kind = "CPU" if layout.devices[0] == "cpu" else "GPU"
    having = [node["NodeID"] for node in _nodes() if node["Resources"].get(kind, 0)]
    if len(having) > 1:
        raise ClusterError(
            f"latency_ms: is timed while nothing else works, on one machine, and the cluster has {len(having)} nodes; "
            "use --cluster local, or leave it out of study.objectives and limits"
        )
    return str(having[0])


def refuse_strangers(nodes: Sequence[str] | None = None) -> None:
    """Refuse nodes that have another version of this package; check all nodes unless some are named.

    Raises:
        ClusterError: one has, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def told() -> tuple[str, str] | None:
        # Pickled by value, since the package may be missing there.
        import hashlib
        import pathlib

        try:
            import imgcls_search
        except ImportError:
            return None
        top = pathlib.Path(imgcls_search.__file__).parent
        content = b"".join(path.read_bytes() for path in sorted(top.rglob("*.py")))
        return imgcls_search.__version__, hashlib.sha256(content).hexdigest()[:8]

    ask = ray.remote(told)
    asked = {}
    for node in _nodes():
        if nodes is None or node["NodeID"] in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
            asked[node["NodeManagerAddress"], node["NodeID"]] = ask.options(**options).remote()
    ours = told()
    for (ip, _), answer in asked.items():
        try:
            theirs = ray.get(answer, timeout=LOOK_SECONDS)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"--cluster: node {ip} cannot start a process ({first_line(error)})") from error
        if theirs != ours:
            raise ClusterError(f"--cluster: node {ip} has {_named(theirs)}, this machine {_named(ours)}")


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _must_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--cluster {address}: not an address; allowed: auto, local, HOST:PORT")
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS)):
            pass
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--cluster {address}: nobody answers there ({error})") from error


def _named(version: tuple[str, str] | None) -> str:
    return f"imgcls-search {version[0]} (its files: {version[1]})" if version is not None else "no imgcls-search"
