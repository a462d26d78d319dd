"""Searches on real Ray clusters of one machine, whose workers and nodes are killed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, linux_only
from tests.test_run import is_alive, open_study, table, wait_for, wait_for_epochs

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
    return {one: names[one] for one in found - {pid}}


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


@linux_only
def test_local_cluster_is_this_machines_alone_and_goes_on_after_a_kill(
    tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    here, there = tiny.parent / "here", tiny.parent / "there"
    arguments = ("run", tiny, "--workers", "1", "--set", "training.epochs=6", "--set", "study.trials=2")
    process = start(*arguments, "--cluster", "local", "--studies", there)
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
    wait_for(lambda: not any(is_alive(pid) for pid in others), seconds=10)
    answer = imgcls(*arguments, "--cluster", "local", "--studies", there)
    assert answer.code == 0, answer.err
    assert imgcls(*arguments, "--studies", here).code == 0
    assert table(there) == table(here)
    assert [trial.user_attrs["worker"].partition("@")[0] for trial in open_study(there).trials] == ["worker-0"] * 2
