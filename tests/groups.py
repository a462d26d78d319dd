"""Two processes that train together, in which tests call functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.executors import processes
from imgcls_search.protocol import GroupMember

ROOT = Path(__file__).parent.parent


class Together:
    """The processes of a group, controlled by the test."""

    def __init__(self, folder: Path, size: int) -> None:
        members = [GroupMember(rank=rank, size=size, file=str(folder / "meeting")) for rank in range(size)]
        with pytest.MonkeyPatch.context() as patch:
            # Our processes import from the working folder only if PYTHONPATH names it.
            patch.setenv("PYTHONPATH", str(ROOT))
            self.members = [processes.start(_serve, f"member-{member.rank}", member) for member in members]

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a module-level function in each process, with the group as first argument; return all results."""
        for _, connection in self.members:
            connection.send((function, arguments))
        found = [connection.recv() for _, connection in self.members]
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    def close(self) -> None:
        """End the processes."""
        for process, connection in self.members:
            process.kill()
            process.join()
            connection.close()


@contextmanager
def together(folder: Path, size: int = 2) -> Iterator[Together]:
    """Yield some processes of a group."""
    made = Together(folder, size)
    try:
        yield made
    finally:
        made.close()


def _serve(connection: Connection, member: GroupMember) -> None:
    from imgcls_search.training.device import settle_in
    from imgcls_search.training.group import Group

    settle_in("cpu")
    group = Group(member, "cpu")
    while True:
        function, arguments = connection.recv()
        try:
            answer = function(group, *arguments)
        except Exception as error:
            answer = error
        connection.send(answer)
