"""Fork command lines from a process that has already imported torch and Optuna; Linux only.

The server has two processes, and each command is forked from one of them: one has imported the libraries, the other
also the package. The child takes over the folder, environment, arguments and streams of the command and then runs like
`python -m imgcls_search`: it has its own process id, signals, exit code and shutdown. Its fork server, also forked
instead of started by a new interpreter, starts helper and workers as usual. Two things differ from a new interpreter:
modules are already imported (those of the package only if a command is not `fresh`), and all commands of one server
hash strings with the same seed.

Scripts are forked in the same way, and the commands, scripts and `python -c CODE` that a script starts with
`subprocess` are forked from the script.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import random
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, thread, wait
from multiprocessing import util
from pathlib import Path
from typing import IO, Any

LIBRARIES = (
    *(
        "torch",
        "torchvision.models",
        "torch.export._trace",
        "torch._functorch.aot_autograd",
        "torch.utils.serialization",
    ),
    *("torch.onnx._internal.exporter._core", "torch.onnx._internal.exporter._torchlib.ops", "torch_pruning", "timm"),
    *(
        "onnx.reference",
        "onnxruntime.quantization",
        "onnxscript.optimizer",
        "onnxscript.rewriter",
        "onnxscript.version_converter",
    ),
    *("sklearn.datasets", "sklearn.linear_model", "sklearn.metrics", "scipy.special", "scipy.stats", "networkx"),
    *(
        "optuna.storages",
        "optuna.artifacts",
        "optuna.importance",
        "sqlalchemy.dialects.sqlite",
        "sqlalchemy.ext.compiler",
    ),
    *("alembic.migration", "alembic.script", "alembic.runtime.environment", "mako.template", "mako.ext.pygmentplugin"),
    *(
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "PIL.features",
        "jinja2",
    ),
    *(
        "typer",
        "pydantic.type_adapter",
        "rich.live",
        "rich.table",
        "rich._emoji_codes",
        "yaml",
        "bottle",
        "filelock",
        "tqdm",
    ),
)
"""Third-party modules that commands, helpers and workers import, many of them late. They must not read environment
variables that tests set, except those in `READ_WHEN_IMPORTED`."""


ALONE = [[name] for name in ("best", "compare", "families", "front", "list", "schema", "status", "trials")]
"""Commands that start no other process."""


READ_WHEN_IMPORTED = {"HF_": ("huggingface_hub", "timm")}
"""Packages that read environment variables with this prefix when they are imported."""


SPAWN = util.spawnv_passfds
"""The function with which multiprocessing starts a new interpreter."""


class Warm:
    """A connection to the server that commands are forked from: a new one, or the one with these socket names."""

    def __init__(self, names: str | None = None) -> None:
        self.process = None
        if names is None:
            listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
            for listener in listeners:
                # The kernel chooses an abstract name, without a file.
                listener.bind("")
                listener.listen()
            names = " ".join(listener.getsockname()[1:].decode() for listener in listeners)
            fds = [listener.fileno() for listener in listeners]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", *map(str, fds)],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=fds,
            )
            for listener in listeners:
                listener.close()
        self.names = names
        self.with_package, self.with_libraries = map(_connect, names.split())

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        script: Path | None = None,
        *,
        fresh: bool = False,
        terminal: int | None = None,
    ) -> Command:
        """Start `imgcls-search`, or a script, with these arguments, on a terminal if one is given.

        A `fresh` command imports the package again.
        """
        request = {"argv": list(arguments), "cwd": str(cwd), "env": dict(env), "script": script and str(script)}
        return Command(self.with_libraries if fresh else self.with_package, request, terminal)

    def close(self) -> None:
        """Disconnect; the server ends when nobody else is connected, and running commands continue."""
        self.with_package.close()
        self.with_libraries.close()
        if self.process is not None:
            self.process.wait(timeout=30)


def _connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{name}")
    return connection


class Command:
    """A forked process, with the part of the interface of `subprocess.Popen` that tests use."""

    def __init__(self, requests: socket.socket, request: Mapping[str, Any], terminal: int | None = None) -> None:
        self.answers, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        with open(os.devnull) as nothing:  # noqa: PTH123 - a stream for the command
            streams = [nothing.fileno(), *(write for _, write in pipes)] if terminal is None else [terminal] * 3
            fds = [*streams, theirs.fileno()]
            socket.send_fds(requests, [json.dumps(request).encode()], fds)
        theirs.close()
        self.stdout, self.stderr = (self._reading(*pipe) for pipe in pipes)
        self.args = request["argv"]
        self.returncode: int | None = None
        self.output: tuple[str, str] | None = None
        self.pid = int(self._answer(None))

    @staticmethod
    def _reading(read: int, write: int) -> IO[str]:
        os.close(write)
        return os.fdopen(read, encoding="utf-8")

    def _answer(self, timeout: float | None) -> bytes:
        self.answers.settimeout(timeout)
        try:
            return self.answers.recv(100)
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(self.args, timeout or 0) from None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal."""
        if self.returncode is None:
            answer = self._answer(timeout)
            assert answer, "the process that commands are forked from has died"
            self.returncode = int(answer)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process lives."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return all output after the process has ended and every process that could write has closed the streams."""
        if self.output is None:
            with ThreadPoolExecutor(2) as pool:
                streams = (self.stdout, self.stderr)
                reading = [pool.submit(str if stream.closed else stream.read) for stream in streams]
                if wait(reading, timeout).not_done:
                    self.kill()
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.wait(timeout)
            self.output = reading[0].result(), reading[1].result()
            for stream in (self.stdout, self.stderr, self.answers):
                stream.close()
        return self.output

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def import_libraries() -> None:
    """Import the third-party modules."""
    for name in LIBRARIES:
        # Some modules are optional or have another name in other versions.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    use_libraries()


def keep_operators() -> None:
    """Cache the operator registry of torch's exporter, which takes half a second to build at each export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if hasattr(ONNXRegistry, "kept"):
        return
    ONNXRegistry.kept = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(cls: type[ONNXRegistry], *given: Any, **named: Any) -> ONNXRegistry:
        found = copy.copy(cls.kept(*given, **named))
        # Copy it, because an export may add operators.
        found.functions = {name: list(several) for name, several in found.functions.items()}
        return found

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)


def use_libraries() -> None:
    """Do once what is slow the first time: torch's exporter builds hundreds of functions, Optuna creates its tables."""
    import optuna
    import torch
    from matplotlib.figure import Figure
    from optuna.storages import RDBStorage
    from tqdm import tqdm

    keep_operators()
    # Progress bars of tqdm start a thread, which would not exist in forks.
    tqdm.monitor_interval, interval = 0, tqdm.monitor_interval
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    torch.optim.SGD(layers.parameters(), lr=1.0)
    pixels = torch.zeros(2, 1, 2, 2)
    traced = torch.export.export(layers.eval(), (pixels,), dynamic_shapes=({0: torch.export.Dim("N")},), strict=False)
    torch.onnx.export(traced, dynamo=True, verbose=False)
    tqdm.monitor_interval = interval
    figure = Figure(layout="constrained")
    figure.subplots().plot([1.0])
    for kind in ("svg", "png"):
        figure.savefig(io.BytesIO(), format=kind)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage("sqlite://")
    optuna.create_study(storage=storage).optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    storage.remove_session()
    storage.engine.dispose()
    optuna.logging.set_verbosity(optuna.logging.INFO)


def import_package() -> None:
    """Import all modules of the package."""
    import imgcls_search

    for module in pkgutil.walk_packages(imgcls_search.__path__, "imgcls_search."):
        # Ray reads its environment when it is imported; only commands that use a cluster import it.
        if module.name != "imgcls_search.__main__" and not module.name.startswith("imgcls_search.executors.ray."):
            importlib.import_module(module.name)
    from imgcls_search.study import database

    database._known_versions()
    build_commands_once()


def build_commands_once() -> None:
    """Cache the command line that Typer builds: it takes 30 ms, which tests would spend at each command."""
    import typer.main
    from imgcls_search.cli.app import app

    if not hasattr(typer.main.get_command, "cache_clear"):
        typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)


def settle() -> None:
    """Prepare this process for being forked."""
    assert threading.active_count() == 1, "a thread would not outlive a fork, but what it holds locked would"
    # Otherwise the garbage collector would traverse imported modules in each fork, and so copy their memory.
    gc.collect()
    gc.freeze()


def wait_for_request(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request and report the end of each fork; return the request, in the forked process only.

    Return None when all clients have disconnected.
    """
    answers: dict[int, tuple[int, socket.socket]] = {}
    """The process id and the connection of each running command, by its pidfd."""
    connections: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == listener.fileno():
                    connection, _ = listener.accept()
                    connections[connection.fileno()] = connection
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                if key.fd in answers:
                    selector.unregister(key.fd)
                    pid, connection = answers.pop(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    _tell(connection, os.waitstatus_to_exitcode(status))
                    continue
                message, fds, _, _ = socket.recv_fds(connections[key.fd], 1_000_000, 4)
                if not message:
                    selector.unregister(key.fd)
                    connections.pop(key.fd).close()
                    if not connections:
                        return None
                    continue
                pid = os.fork()
                if pid == 0:
                    return become(json.loads(message), fds)
                connection = socket.socket(fileno=fds.pop())
                connection.sendall(str(pid).encode())
                for fd in fds:
                    os.close(fd)
                told = os.pidfd_open(pid)
                answers[told] = pid, connection
                selector.register(told, selectors.EVENT_READ)


def _tell(connection: socket.socket, code: int) -> None:
    # The client may have disconnected.
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(str(code).encode())


def become(request: dict[str, Any], streams: Sequence[int]) -> dict[str, Any]:
    """Take over the streams, folder and environment of a command, in place of those of the parent process."""
    for target, fd in enumerate(streams[:3]):
        os.dup2(fd, target)
    close_all_but([])
    # The parent cleans up its own resources, temporary folders included; this process must not.
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    os.chdir(request["cwd"])
    before = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    for start, packages in READ_WHEN_IMPORTED.items():
        if having(start, os.environ) != having(start, request["env"]):
            forget(packages)
    os.environ.clear()
    os.environ.update(request["env"])
    # Look up the folder of temporary files again.
    tempfile.tempdir = None
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in before]
    script = request.get("script")
    sys.path[:1] = [str(Path(script).parent) if script else request["cwd"], *paths]
    sys.argv = [script or "imgcls-search", *request["argv"]]
    import numpy as np

    # A new process would seed these from the operating system.
    random.seed()
    np.random.seed()
    return request


def having(start: str, variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(start)}


def forget(packages: Container[str]) -> None:
    """Remove packages from `sys.modules`, so that they are imported again."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def close_all_but(kept: Sequence[int]) -> None:
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208
        if fd > 2 and fd not in kept:
            # The descriptor that listed the folder is closed already.
            with contextlib.suppress(OSError):
                os.close(fd)


def fork_server() -> None:
    """Start the process that helpers and workers are forked from, before other threads can hold locks."""
    from imgcls_search.executors import processes

    started, util.spawnv_passfds = SPAWN, fork_python
    processes.warm_up()
    util.spawnv_passfds = started


def fork_python(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Run `python -c CODE` in a fork; replaces `multiprocessing.util.spawnv_passfds`, which starts a new program."""
    start = arguments.index("-c")
    code, *argv = arguments[start + 1 :]
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        close_all_but(passed)
        forget_handlers()
        if IS_FRESH:
            # Like a new interpreter, import the package in this process's own order.
            forget(["imgcls_search"])
        sys.argv = ["-c", *argv]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(code, {"__name__": "__main__"})  # noqa: S102 - multiprocessing's own
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def forget_handlers() -> None:
    """Reset the signal handlers of the parent to those of a new program."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """A `Popen` that starts programs of this Python interpreter as forks of this process, all others as usual."""

    def __init__(self, args: Any, *more: Any, **settings: Any) -> None:
        words = [*map(str, args)] if not more and isinstance(args, list) else []
        is_command = words[1:3] == ["-m", "imgcls_search"]
        is_code = words[1:2] == ["-c"] and len(words) == 3
        if words[:1] == [sys.executable] and (is_command or is_code or words[1].endswith(".py")):
            # Popen calls it in the child before exec: streams, folder and session are set by then.
            settings["preexec_fn"] = functools.partial(be_python, words[1:], settings.get("env"))
            # Otherwise the child would write the buffered output again.
            sys.stdout.flush()
            sys.stderr.flush()
        super().__init__(args, *more, **settings)


def be_python(words: Sequence[str], env: Mapping[str, str] | None) -> None:
    """Run as `python -m imgcls_search ...`, `python SCRIPT ...` or `python -c CODE`, and never return."""
    status = 1
    try:
        gc.enable()
        # The threads of the parent's pools do not exist here, so nothing must wait for them at exit.
        thread._threads_queues.clear()
        script = None if words[0] in ("-m", "-c") else words[0]
        request = {
            "argv": list(words[1 if script else 2 :]),
            "cwd": os.getcwd(),  # noqa: PTH109
            "env": dict(os.environ if env is None else env),
            "script": script,
        }
        become(request, range(3))
        forget_handlers()
        # As Python does when it starts.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if words[0] == "-m":
            fork_server()
        status = run_program(script, words[1] if words[0] == "-c" else None)
    finally:
        end(status)


IS_FRESH = False
"""Whether this process was forked from the one that has imported only the libraries."""


def main() -> None:
    """Fork for each request; in a fork, run the command or the script."""
    global IS_FRESH
    with_package, with_libraries = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:])
    # `nohup` makes all child processes ignore SIGHUP.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    import_libraries()
    settle()
    other = os.fork()
    IS_FRESH = other != 0
    if not IS_FRESH:
        import_package()
        settle()
    unused, listener = (with_package, with_libraries) if IS_FRESH else (with_libraries, with_package)
    unused.close()
    request = wait_for_request(listener)
    if request is None:
        if IS_FRESH:
            os.waitpid(other, 0)
        os._exit(0)
    script = request.get("script")
    if IS_FRESH:
        # As Python does when it starts.
        warnings._processoptions(os.environ.get("PYTHONWARNINGS", "").split(","))  # type: ignore[attr-defined]
    if script:
        subprocess.Popen = ForkingPopen  # type: ignore[misc]
    if script or IS_FRESH:
        util.spawnv_passfds = fork_python
    elif request["argv"][:1] not in ALONE:
        fork_server()
    end(run_program(script))


def run_program(script: str | None, code: str | None = None) -> int:
    """Run as `python -m imgcls_search`, `python SCRIPT` or `python -c CODE`; return the exit code."""
    try:
        if script:
            runpy.run_path(script, run_name="__main__")
        elif code is not None:
            sys.argv[0] = "-c"
            exec(code, {"__name__": "__main__"})  # noqa: S102 - what would be executed anyway
        else:
            runpy.run_module("imgcls_search", run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(code: int) -> None:
    """Exit like the interpreter, but without tearing down modules, which would take a second for torch."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
