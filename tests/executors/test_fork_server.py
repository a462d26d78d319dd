"""The process on a node of a Ray cluster that worker processes are forked from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.test_warnings import is_plain, provoking
from tests.conftest import linux_only

START = """
import sys
from pathlib import Path
import provoke
from imgcls_search.executors.ray.fork_server import ForkServer

process, connection = ForkServer(Path(sys.argv[1]), "key").start(provoke.tell_and_provoke, "worker")
server, has_what_is_needed = connection.recv()
print(server, has_what_is_needed)
assert connection.recv() == "done"
process.join()
"""

TELL = """
def tell_and_provoke(connection):
    # Each takes a second or more to import, and few trainings need one.
    late = [name for name in ("sklearn", "scipy.stats", "pandas", "onnx_ir") if name in sys.modules]
    connection.send((os.getppid(), "torch" in sys.modules and not late))
    provoke(connection)
"""


@linux_only
def test_workers_have_torch_when_they_are_forked_nothing_rare_and_warn_in_plain_lines(tmp_path: Path) -> None:
    env = provoking(tmp_path)
    with (tmp_path / "provoke.py").open("a") as file:
        file.write(TELL)
    (tmp_path / "start.py").write_text(START)
    command = [sys.executable, str(tmp_path / "start.py"), str(tmp_path)]
    # The server holds the streams for as long as it lingers.
    with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
        subprocess.run(command, cwd=tmp_path, env=env, stdout=out, stderr=err, check=False, timeout=300)
        out.seek(0)
        err.seek(0)
        said, warned = out.read().split(), err.read()
    try:
        assert said[1:] == ["True"], warned
        assert is_plain(warned)
    finally:
        if said:
            os.kill(int(said[0]), signal.SIGKILL)
