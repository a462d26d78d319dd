"""Searches on real Ray clusters of one machine, whose workers and nodes are killed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imgcls_search
import pytest
from imgcls_search.errors import ClusterError
from imgcls_search.executors.ray import cluster
from imgcls_search.worker.cross_validation import out_of_fold

from tests.automatic.test_auto import with_space
from tests.conftest import PATIENCE, TINY, Answer, linux_only
from tests.gate import LIMITS, Gate, slow_epochs
from tests.orchestrator.test_run import (
    children,
    epochs_recorded,
    is_alive,
    noted,
    open_study,
    table,
    wait_for,
    wait_for_epochs,
    youngest,
)

pytest.importorskip("ray")


def offspring(pid: int) -> dict[int, str]:
    """Return all processes that come from one, by their ids, with their names."""
    parents, names = {}, {}
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().rpartition(")")
            parents[int(entry.name)] = int(rest.split()[1])
            names[int(entry.name)] = name.partition("(")[2]
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    for raylet in [one for one in found if names.get(one) == "raylet"]:
        found |= forked_for(raylet)
    return {one: names[one] for one in found - {pid} if one in names}


def forked_for(raylet: int) -> set[int]:
    """Return the process that workers on a node are forked from, which has no parent of ours, and the workers."""
    found = set()
    for entry in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            if f"fork_server import main; main({raylet}, " in (entry / "cmdline").read_text():
                found.add(int(entry.name))
    return found


def listening(pids: set[int]) -> set[str]:
    """Return the addresses, as the kernel writes them, on which processes listen."""
    sockets = set()
    for link in (link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(OSError):
            sockets.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [line for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    found = [line.split() for line in lines]
    return {fields[1].partition(":")[0] for fields in found if fields[3] == "0A" and fields[9] in sockets}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
@linux_only
def test_local_cluster_is_this_machines_alone_and_goes_on_after_a_kill(
    tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    here, there = tiny.parent / "here", tiny.parent / "there"
    gate = Gate(tiny.parent / "gate", epochs=3)
    arguments = ("run", tiny, "--workers", "1", "--set", "study.trials=2", "--set", "study.pruner=none", *gate.options)
    process = start(*arguments, "--cluster", "local", "--studies", there, env=gate.env)
    wait_for_epochs(process, 3, there)
    family = offspring(process.pid)
    assert "raylet" in family.values()
    open_to = listening(set(family))
    assert open_to
    assert open_to <= LOOPBACK
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Ray's two agents look only once in a while whether their raylet lives; they train nothing.
    others = [pid for pid, name in family.items() if not name.startswith(("ray::Dashboard", "ray::RuntimeEnv"))]
    wait_for(lambda: not any(is_alive(pid) for pid in others))
    gate.open()
    answer = imgcls(*arguments, "--cluster", "local", "--studies", there, env=gate.env)
    assert answer.code == 0, answer.err
    assert imgcls(*arguments, "--studies", here, env=gate.env).code == 0
    assert table(there) == table(here)
    assert [trial.user_attrs["worker"].partition("@")[0] for trial in open_study(there).trials] == ["worker-0"] * 2


@contextlib.contextmanager
def rays_files_left_open() -> Iterator[None]:
    """Let no test of ours be blamed for the files that Ray leaves open when it starts a node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


class Nodes:
    """A cluster on this machine, of a head and any nodes that are added; a head without CPUs trains nothing."""

    def __init__(self, num_cpus: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": num_cpus, "no_monitor": True, **SMALL}
        with rays_files_left_open():
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.apart: list[subprocess.Popen[bytes]] = []

    def add(self, **resources: Any) -> Any:
        with rays_files_left_open():
            return self.cluster.add_node(**{"num_cpus": 1, **SMALL, **resources})

    def add_apart(self, mount: str) -> int:
        """Add a node that sees other files than this process, by a shell's `mount`; return the id of its raylet."""
        start = f"{sys.executable} -m ray.scripts.scripts start --address={self.address} --num-cpus=1 --block"
        command = f"{mount} && exec {start} --object-store-memory={SMALL['object_store_memory']}"
        before = self.count()
        process = subprocess.Popen([*APART, command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.apart.append(process)
        wait_for(lambda: self.count() > before)
        return next(one for one, name in offspring(process.pid).items() if name == "raylet")

    def count(self) -> int:
        return len(self.cluster.global_state._live_node_ids())

    def clear(self) -> None:
        """Leave nothing but the head: a node too many would have workers where the next test expects none."""
        self.close_apart()
        for node in list(self.cluster.worker_nodes):
            self.cluster.remove_node(node)
        wait_for(lambda: self.count() == 1)

    def close_apart(self) -> None:
        """End all such nodes."""
        while self.apart:
            process = self.apart.pop()
            process.terminate()
            process.wait()

    def close(self) -> None:
        self.close_apart()
        self.cluster.shutdown()


SMALL = {"object_store_memory": 100 * 2**20, "include_log_monitor": False, "include_dashboard": False}

APART = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"]), "sh", "-c"]
"""Runs a shell's command where it may mount what it likes, seen by nobody else."""


def can_mount() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*APART, "mount -t tmpfs none /tmp"]).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="nodes that see other files need a mount namespace")


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def stations(raylet: int) -> list[int]:
    """Return the actors on a node."""
    return [pid for pid, name in offspring(raylet).items() if name.startswith("ray::Station")]


def worker_on(raylet: int) -> int:
    """Return the worker process on a node."""
    return youngest(workers_on(raylet))


def workers_on(raylet: int) -> list[int]:
    return [pid for server in forked_for(raylet) for pid in children(server)]


def trainer_of(run: int) -> int:
    """Return a worker process on the run's own node, which is forked from one of the run's."""
    return youngest([pid for server in children(run) for forked in children(server) for pid in children(forked)])


@contextlib.contextmanager
def running(num_cpus: int) -> Iterator[Nodes]:
    """Run a cluster with a head of so many CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        # A dead node is known as such after 3 s, not after 14.
        hasty = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **hasty}.items():
            patch.setenv(name, value)
        made = Nodes(num_cpus)
        yield made
        made.close()


@pytest.fixture(scope="module")
def alone() -> Iterator[Nodes]:
    """A cluster of one node, where a run's workers are forked from what its other processes are forked from."""
    with running(2) as made:
        yield made


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with running(0) as made:
        yield made


@pytest.fixture
def nodes(head: Nodes) -> Iterator[Nodes]:
    yield head
    head.clear()


@pytest.mark.slow
@linux_only
def test_auto_searches_on_a_cluster(alone: Nodes, tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    with_space(tmp_path)
    done = imgcls("auto", "digits", "--time", "20m", "--cluster", alone.address, "--workers", "1", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["chosen"]["trials"] == 4
    assert (tmp_path / "auto-digits/model/model.onnx").is_file()


@pytest.mark.slow
@linux_only
def test_trial_of_two_devices_trains_on_a_cluster_as_here(
    alone: Nodes, tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    here, there = tiny.parent / "here", tiny.parent / "there"
    gate = Gate(tiny.parent / "gate", epochs=3)
    arguments = ("run", tiny, "--set", "training.devices=2", "--set", "study.trials=2", *gate.options)
    process = start(*arguments, "--cluster", alone.address, "--studies", there, env=gate.env)
    wait_for_epochs(process, 3, there)
    # One of the two processes of the worker: the other ends with it, and the trial goes on.
    os.kill(trainer_of(process.pid), signal.SIGKILL)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "of 2, died (killed by SIGKILL); it resumes from its last checkpoint" in out + err
    assert imgcls(*arguments, "--studies", here, env=gate.env).code == 0
    assert table(there) == table(here)


@pytest.mark.slow
def test_workers_of_a_cluster_look_into_the_runs_folders_of_weights(
    alone: Nodes, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    """The cluster was there before the run named a folder, and nothing else holds these weights."""
    import torch
    from torchvision.models import resnet18

    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(resnet18().state_dict(), folder / "resnet18.pth")
    (tmp_path / "net.yaml").write_text(
        "study: {name: net, trials: 1, pictures: false}\ndata: {digits: {max_train: 40}}\n"
        "image: {size: 32, channels: 3}\nmodel: {resnet: {depth: 18, stem: large, weights: imagenet}}\n"
        "optimizer: {adamw: {lr: {float: [1e-4, 1e-3]}}}\ntraining: {epochs: 1, batch_size: 20}\n"
    )
    ran = imgcls("run", "net.yaml", "--cluster", alone.address, "--weights-dir", folder)
    assert ran.code == 0, ran.err
    assert [trial.state.name for trial in open_study(tmp_path / "studies", "net").trials] == ["COMPLETE"]


@pytest.mark.slow
@linux_only
def test_folds_go_on_after_a_kill_on_a_cluster_as_here(
    alone: Nodes, tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    here, there = tiny.parent / "here", tiny.parent / "there"
    tiny.write_text(TINY.replace("max_train: 200", "max_train: 90, folds: 3"))
    # In the second network, of which the next worker gets the first one's predictions.
    gate = Gate(tiny.parent / "gate", epochs=7)
    single = ("--workers", "1", "--set", "study.trials=1", "--set", "study.pruner=none")
    arguments = ("run", tiny, *single, *gate.options)
    process = start(*arguments, "--cluster", alone.address, "--studies", there, env=gate.env)
    wait_for_epochs(process, 7, there)
    os.kill(trainer_of(process.pid), signal.SIGKILL)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "resumes from its last checkpoint" in out + err
    assert imgcls(*arguments, "--studies", here, env=gate.env).code == 0
    assert table(there) == table(here)
    kept = [out_of_fold(folder / "tiny-digits/checkpoints/trial-00000.pt").logits for folder in (here, there)]
    assert (kept[0] == kept[1]).all()


PRETRAINED = (
    *("--set", "pretrain={simclr: {epochs: 2, batch_size: 256, health_every: 2}}"),
    *("--set", "study.trials=2", "--set", "training.epochs=2", "--set", "study.pruner=none"),
    # Two studies in one folder shall draw alike.
    *("--set", "study.learn_from=none"),
)


@pytest.mark.slow
@linux_only
def test_pretrained_networks_are_made_on_a_cluster_as_here(
    alone: Nodes, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    here, there = tiny.parent / "here", tiny.parent / "there"
    arguments = ("run", tiny, "--workers", "1", *PRETRAINED)
    answer = imgcls(*arguments, "--cluster", alone.address, "--studies", there)
    assert answer.code == 0, answer.err
    assert "): done, its epochs took" in answer.out
    assert imgcls(*arguments, "--studies", here).code == 0
    assert table(there) == table(here)


@pytest.mark.slow
@needs_mounts
def test_nodes_that_see_nothing_of_the_run_get_the_networks_and_pretrain_none(
    nodes: Nodes, tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    studies = tiny.parent / "studies"
    studies.mkdir()
    nodes.add_apart(f"mount -t tmpfs none {studies}")
    alone = ("run", tiny, "--workers", "1", *PRETRAINED, "--cluster", nodes.address)
    refused = imgcls(*alone)
    assert refused.code == 1, refused.err
    assert f"its pretraining failed: no node of the cluster sees {studies}" in refused.out + refused.err
    # What is there already travels.
    assert imgcls("run", tiny, *PRETRAINED, "--name", "here", "--workers", "1").code == 0
    done = imgcls(*alone, "--name", "there")
    assert done.code == 0, done.err
    trials = open_study(studies, "there").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert [trial.values for trial in trials] == [trial.values for trial in open_study(studies, "here").trials]


def with_long_epochs(tiny: Path) -> dict[str, str]:
    """Have two trials with epochs of a second, each of which is worth a checkpoint, in which hardly anything is done.

    Return the environment that says where the function is that waits.
    """
    text = TINY.replace("trials: 4, pruner: {halving: {min_epochs: 2, eta: 2}}", "trials: 2, pruner: none")
    tiny.write_text(f"{text.replace('epochs: 5', 'epochs: 1000')}limits: {LIMITS}\n")
    return slow_epochs(tiny.parent / "gate", 1)


@pytest.mark.slow
@needs_mounts
def test_trials_go_on_when_workers_actors_and_nodes_die(nodes: Nodes, tiny: Path, start: Callable[..., Any]) -> None:
    studies = tiny.parent / "studies"
    studies.mkdir()
    # A worker each: two would both find room on one node of two CPUs.
    seeing, blind = raylet_of(nodes.add()), nodes.add_apart(f"mount -t tmpfs none {studies}")
    arguments = ("run", tiny, "--cluster", nodes.address, "--studies", studies)
    process = start(*arguments, env=with_long_epochs(tiny))

    def recorded(what: str) -> list[list[Any]]:
        time.sleep(0.3)
        assert process.poll() is None, process.communicate()
        return [found or [] for found in noted(studies, what)]

    def wait_until_both_train(*, troubles: int) -> None:
        wait_for(lambda: sum(map(len, recorded("troubles"))) == troubles)
        before = [len(epochs) for epochs in recorded("epochs")] or [0, 0]

        def have_trained() -> bool:
            now = recorded("epochs")
            return len(now) == 2 and all(len(epochs) > count for epochs, count in zip(now, before, strict=True))

        wait_for(have_trained)

    wait_until_both_train(troubles=0)
    os.kill(worker_on(seeing), signal.SIGKILL)
    wait_until_both_train(troubles=1)
    before = forked_for(blind)
    os.kill(stations(blind)[0], signal.SIGKILL)
    wait_until_both_train(troubles=2)
    # The new worker is forked from the process that forked the old one.
    assert len(before & forked_for(blind)) == 1
    nodes.add_apart(f"mount -t tmpfs none {studies}")
    for pid in (seeing, *offspring(seeing)):
        os.kill(pid, signal.SIGKILL)
    wait_until_both_train(troubles=3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "(raylet)" not in out + err
    trials = open_study(studies).trials
    for trial in trials:
        counted = [epoch["epoch"] for epoch in trial.user_attrs["epochs"]]
        assert counted == list(range(1, len(counted) + 1))
        log = (studies / trial.user_attrs["log"]).read_text()
        assert "training again from the start" not in log
        assert f"epoch {len(counted)}:" in log
    troubles = [reason.partition("(")[2] for trial in trials for reason in trial.user_attrs["troubles"]]
    troubles.remove("killed by SIGKILL)")
    troubles.remove("its process was killed, or crashed)")
    # Ray may notice the loss of a node or first that of the process on it, or the run may notice the silence.
    lost = {"its node was lost)", "its process was killed, or crashed)", "nothing was heard of it for 15 s)"}
    assert troubles[0] in lost


@pytest.fixture
def working() -> Iterator[Nodes]:
    """A cluster whose head has one worker."""
    with running(1) as made:
        yield made


@pytest.mark.slow
def test_node_whose_network_heals_counts_nothing_twice(working: Nodes, tiny: Path, start: Callable[..., Any]) -> None:
    nodes, studies = working, tiny.parent / "studies"
    # A worker on the head, and one there.
    silent = raylet_of(nodes.add())
    arguments, env = ("run", tiny, "--cluster", nodes.address, "--studies", studies), with_long_epochs(tiny)
    process = start(*arguments, env=env)

    def epochs() -> list[int]:
        time.sleep(0.3)
        assert process.poll() is None, process.communicate()
        return [len(found or []) for found in noted(studies, "epochs")]

    def wait_until_both_train() -> None:
        before = epochs() or [0, 0]
        wait_for(lambda: len(now := epochs()) == 2 and all(n > b + 1 for n, b in zip(now, before, strict=True)))

    wait_until_both_train()
    trainer = worker_on(silent)
    nodes.add()
    asleep = {silent: "raylet", **offspring(silent)}
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    wait_until_both_train()
    # What is of a node that was given up wakes, with epochs to tell and checkpoints to write.
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    wait_until_both_train()
    # Ray's own processes may stay for another search; what trains a trial that trains elsewhere by now does not.
    ours = [pid for pid, name in asleep.items() if name.startswith("ray::Station")]
    ours.append(trainer)
    wait_for(lambda: not any(is_alive(pid) for pid in ours))
    wait_until_both_train()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    trials = open_study(studies).trials
    assert sorted(len(trial.user_attrs.get("troubles", [])) for trial in trials) == [0, 1]
    for trial in trials:
        counted = [epoch["epoch"] for epoch in trial.user_attrs["epochs"]]
        assert counted == list(range(1, len(counted) + 1))
        log = (studies / trial.user_attrs["log"]).read_text()
        assert "training again from the start" not in log
    # Where does not matter to what is in the study and in its checkpoints.
    again = start("run", tiny, "--studies", studies, env=env)
    wait_for_epochs(again, epochs_recorded(studies) + 2, studies)
    again.send_signal(signal.SIGINT)
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 130, err
    assert "in no checkpoint" not in out


@pytest.fixture
def joined(nodes: Nodes) -> Iterator[Nodes]:
    """A cluster that this process is connected to."""
    cluster.join(nodes.address)
    yield nodes
    cluster.leave()


@pytest.mark.slow
def test_shares_of_gpus_are_packed_and_latency_is_refused_on_several_machines(joined: Nodes) -> None:
    import ray

    with pytest.raises(ClusterError, match=r"training.device: cuda is not on the cluster; the cluster has \d node"):
        cluster.lay_out("cuda", None, 99)
    added = [joined.add(num_gpus=2), joined.add(num_gpus=1)]
    layout = cluster.lay_out("auto", 6, 99)
    assert (layout.count, layout.devices) == (6, ["cuda:0"])
    assert cluster.lay_out("auto", None, 99).count == 3
    # Two GPUs of one node: the other node has one only.
    pair = cluster.lay_out("auto", None, 99, 2)
    assert (pair.count, pair.devices, pair.resources["num_gpus"]) == (1, ["cuda:0", "cuda:1"], 2)
    assert cluster.lay_out("auto", None, 99, "auto").devices == ["cuda:0", "cuda:1"]
    assert cluster.lay_out("auto", 3, 99, "auto").devices == ["cuda:0"]
    with pytest.raises(ClusterError, match=r"training.devices: 3: no node of the cluster has more than 2 GPU"):
        cluster.lay_out("auto", None, 99, 3)
    with pytest.raises(ClusterError, match=r"study.workers: 2 of training.devices: 2 do not fit; allowed: 1 to 1"):
        cluster.lay_out("auto", 2, 99, 2)
    for device in ("auto", "cpu"):
        with pytest.raises(ClusterError, match="latency_ms: is timed while nothing else works, on one machine"):
            cluster.only_node(cluster.lay_out(device, None, 99))

    class Worker:
        def gpu(self) -> tuple[str, str]:
            return ray.get_runtime_context().get_node_id(), os.environ["CUDA_VISIBLE_DEVICES"]

    workers = [ray.remote(Worker).options(**layout.resources).remote() for _ in range(layout.count)]
    found = ray.get([worker.gpu.remote() for worker in workers], timeout=PATIENCE)
    first, second = (node.node_id for node in added)
    assert sorted(found) == sorted([(first, "0"), (first, "1"), (second, "0")] * 2)


@needs_mounts
def test_node_with_other_files_of_the_package_is_refused(joined: Nodes, tmp_path: Path) -> None:
    cluster.refuse_strangers()
    package = Path(imgcls_search.__file__).parent
    shutil.copytree(package, tmp_path / "imgcls_search", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "imgcls_search/__init__.py").write_text('__version__ = "0.0.7"')
    joined.add_apart(f"mount --bind {tmp_path / 'imgcls_search'} {package}")
    with pytest.raises(
        ClusterError, match=rf"node \S+ has imgcls-search 0.0.7 .* imgcls-search {imgcls_search.__version__}"
    ):
        cluster.refuse_strangers()


def test_clusters_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, told in (
        ("127.0.0.1:1", r"^--cluster 127.0.0.1:1: nobody answers there \(.*\)$"),
        ("nowhere", r"^--cluster nowhere: not an address; allowed: auto, local, HOST:PORT$"),
        ("ray://127.0.0.1:1", r"^--cluster ray://127.0.0.1:1: a search cannot be steered through Ray Client"),
    ):
        with pytest.raises(ClusterError, match=told):
            cluster.join(address)
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"^--cluster: Ray is not installed; pip install 'imgcls-search\[ray\]'$"):
        cluster.join("local")
