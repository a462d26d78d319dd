"""Command lines that start from a process in which torch and Optuna are imported already; Linux only.

A server of two processes is forked for each command: one has the libraries in memory, the other the package too. The
child takes the folder, environment, arguments and streams of the command, and then runs as `python -m imgcls_search`
would: it has a process id, signals, an exit code and a way to its end of its own, and its fork server, forked too
instead of imported again, starts helper and workers as ever. What is not as in a new interpreter: modules are imported
already (of the package only where a command is not `fresh`), and all commands of one server hash strings with one seed.

A script starts from it too; the commands, scripts and `python -c CODE` that it starts with `subprocess` are forked
from the script.
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
"""What commands, helpers and workers import of others, much of it late; it knows no environment variable of a test."""


ALONE = [[name] for name in ("best", "compare", "families", "front", "list", "schema", "status", "trials")]
"""Commands that start no other process."""


READ_WHEN_IMPORTED = {"HF_": ("huggingface_hub", "timm")}
"""Packages that read variables of the environment, of which the beginning is given, when they are imported."""


SPAWN = util.spawnv_passfds
"""How multiprocessing starts a new interpreter."""


class Warm:
    """A server that is forked for each command: a new one, or the one of these names."""

    def __init__(self, names: str | None = None) -> None:
        self.process = None
        if names is None:
            listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
            for listener in listeners:
                # The kernel finds a name, which is no file's.
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
        """Begin `imgcls-search`, or a script, with these arguments, on a terminal if one is given.

        A fresh one imports the package again.
        """
        request = {"argv": list(arguments), "cwd": str(cwd), "env": dict(env), "script": script and str(script)}
        return Command(self.with_libraries if fresh else self.with_package, request, terminal)

    def close(self) -> None:
        """Let it end, once nobody else uses it; commands under way go on."""
        self.with_package.close()
        self.with_libraries.close()
        if self.process is not None:
            self.process.wait(timeout=30)


def _connect(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{name}")
    return connection


class Command:
    """A process, with what tests use of `subprocess.Popen`."""

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
        """Return all output once every process that could write has closed it, and the process has ended."""
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
        """End it now."""
        self.send_signal(signal.SIGKILL)


def import_libraries() -> None:
    """Import what others wrote."""
    for name in LIBRARIES:
        # What is optional, and what another version has under another name.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    use_libraries()


def keep_operators() -> None:
    """Keep what torch's exporter knows of its operators: half a second, which a program spends at each export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if hasattr(ONNXRegistry, "kept"):
        return
    ONNXRegistry.kept = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(cls: type[ONNXRegistry], *given: Any, **named: Any) -> ONNXRegistry:
        found = copy.copy(cls.kept(*given, **named))
        # Of its own, as an export may add operators.
        found.functions = {name: list(several) for name, several in found.functions.items()}
        return found

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)


def use_libraries() -> None:
    """Do once what takes long the first time: torch's exporter builds hundreds of functions, Optuna its tables."""
    import optuna
    import torch
    from matplotlib.figure import Figure
    from optuna.storages import RDBStorage
    from tqdm import tqdm

    keep_operators()
    # Its bars start a thread, which no fork would have.
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
    """Import what is ours."""
    import imgcls_search

    for module in pkgutil.walk_packages(imgcls_search.__path__, "imgcls_search."):
        # Ray reads its environment when it is imported; only who asks for a cluster imports it.
        if module.name != "imgcls_search.__main__" and not module.name.startswith("imgcls_search.executors.ray."):
            importlib.import_module(module.name)
    from imgcls_search.study import database

    database._known_versions()
    build_commands_once()


def build_commands_once() -> None:
    """Keep what Typer makes of the command line: 30 ms, which a program spends once and tests would at each command."""
    import typer.main
    from imgcls_search.cli.app import app

    if not hasattr(typer.main.get_command, "cache_clear"):
        typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(app)


def settle() -> None:
    """Make ready to be forked."""
    assert threading.active_count() == 1, "a thread would not outlive a fork, but what it holds locked would"
    # What was imported is nothing for a garbage collector to look through, and to copy, in each fork.
    gc.collect()
    gc.freeze()


def wait_for_request(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request and report each end; return, in the forked process only, the request.

    Return None when all who were connected have left.
    """
    answers: dict[int, tuple[int, socket.socket]] = {}
    """The process id and the connection of each command under way, by what tells its end."""
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
    # Nobody may be left to be told.
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(str(code).encode())


def become(request: dict[str, Any], streams: Sequence[int]) -> dict[str, Any]:
    """Take the streams, folder and environment of a command; forget those of the process forked from."""
    for target, fd in enumerate(streams[:3]):
        os.dup2(fd, target)
    close_all_but([])
    # What the process forked from has to clean up, temporary folders too, is not this one's.
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    os.chdir(request["cwd"])
    before = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    for start, packages in READ_WHEN_IMPORTED.items():
        if having(start, os.environ) != having(start, request["env"]):
            forget(packages)
    os.environ.clear()
    os.environ.update(request["env"])
    # Where temporary files are is asked for again.
    tempfile.tempdir = None
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in before]
    script = request.get("script")
    sys.path[:1] = [str(Path(script).parent) if script else request["cwd"], *paths]
    sys.argv = [script or "imgcls-search", *request["argv"]]
    import numpy as np

    # What a new process would take from the operating system; Python's own generator sees to itself.
    random.seed()
    np.random.seed()
    return request


def having(start: str, variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(start)}


def forget(packages: Container[str]) -> None:
    """Have packages imported again."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def close_all_but(kept: Sequence[int]) -> None:
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208
        if fd > 2 and fd not in kept:
            # One of them is gone: it listed them.
            with contextlib.suppress(OSError):
                os.close(fd)


def fork_server() -> None:
    """Start the process that helpers and workers are forked from, now: later there may be locks that a fork breaks."""
    from imgcls_search.executors import processes

    started, util.spawnv_passfds = SPAWN, fork_python
    processes.warm_up()
    util.spawnv_passfds = started


def fork_python(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Run `python -c CODE` in a fork; stands in for `multiprocessing.util.spawnv_passfds`, which starts a program."""
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
            # A new interpreter would import it in an order of its own.
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
    """Answer signals as a new program, which knows none of its parent's handlers."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts other programs of this Python as forks of this process, and everything else as ever."""

    def __init__(self, args: Any, *more: Any, **settings: Any) -> None:
        words = [*map(str, args)] if not more and isinstance(args, list) else []
        is_command = words[1:3] == ["-m", "imgcls_search"]
        is_code = words[1:2] == ["-c"] and len(words) == 3
        if words[:1] == [sys.executable] and (is_command or is_code or words[1].endswith(".py")):
            # It is called where the program would be executed: streams, folder and session are the child's by then.
            settings["preexec_fn"] = functools.partial(be_python, words[1:], settings.get("env"))
            # What is still to be written is not the child's to write.
            sys.stdout.flush()
            sys.stderr.flush()
        super().__init__(args, *more, **settings)


def be_python(words: Sequence[str], env: Mapping[str, str] | None) -> None:
    """Be `python -m imgcls_search ...`, `python SCRIPT ...` or `python -c CODE`, and never return."""
    status = 1
    try:
        gc.enable()
        # A thread that started it waits, in the process forked from, for no one here.
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
"""Whether this process was forked from the one that has only libraries in memory."""


def main() -> None:
    """Fork for each request; in a fork, be the command or the script."""
    global IS_FRESH
    with_package, with_libraries = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:])
    # Whoever starts the tests with `nohup` has all their processes ignore it.
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
    """Be `python -m imgcls_search`, `python SCRIPT` or `python -c CODE`; return the exit code."""
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
    """End as the interpreter does, but leave the modules standing: to take torch apart would cost a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
