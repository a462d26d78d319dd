"""Entry point of `python -m imgcls_search` and `imgcls-search`: settle what must be in order before large imports."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line, with modules, signals and streams that nothing outside of this program can break."""
    _leave_quietly_on_interrupt()
    _forget_working_folder()
    _collect_garbage_rarely()
    from imgcls_search import terminal

    terminal.settle_streams()
    terminal.show_plain_warnings()
    from imgcls_search.cli.app import main as run

    try:
        run()
    finally:
        # Nothing is left to save while the interpreter shuts down.
        _leave_quietly_on_interrupt()


def _collect_garbage_rarely() -> None:
    """Collect cyclic garbage after 50,000 new objects instead of 700: reading a large study creates very many."""
    gc.set_threshold(50_000, 20, 50)


def _leave_quietly_on_interrupt() -> None:
    """Let Ctrl-C end the program without a traceback, even during an import, unless the shell ignores it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    # The fork server ignores Ctrl-C, and would otherwise continue its imports for seconds.
    try:
        abandon = getattr(sys.modules.get("imgcls_search.executors.processes"), "abandon", None)
        if abandon is not None:
            abandon()
    finally:
        # Modules may be half imported at any moment; whatever that breaks, there is no traceback.
        os._exit(130)


def _forget_working_folder() -> None:
    """Keep files in the user's working folder from being imported, here and in processes started later."""
    # Python 3.10 does not support this variable; `executors.processes` handles that.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        folder = os.path.realpath(os.getcwd())  # noqa: PTH109 - pathlib is not imported yet
    except OSError:
        folder = ""
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    # `python -m` and `python -c` put this folder first. A PYTHONPATH that names it is the user's choice.
    if sys.path and not getattr(sys.flags, "safe_path", False) and folder != package:
        first = sys.path[0]
        if not first or os.path.realpath(first) == folder:
            del sys.path[0]


if __name__ == "__main__":
    main()
