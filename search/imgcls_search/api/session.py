"""The context of a call: show its progress, and leave the program's state unchanged."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls_search.views.screens import Screens

# A library prints nothing by itself: the program decides what to show.
logging.getLogger("imgcls_search").addHandler(logging.NullHandler())


@contextlib.contextmanager
def session(
    progress: bool | None, weights_dir: str | PathLike[str] | None = None, *, uses_torch: bool = False
) -> Iterator[Screens]:
    """Yield the progress screens; the weights folder and changes to torch's state last for the call only.

    With `progress` None, they show on a terminal and in a notebook only.
    """
    with _environment(weights_dir), _state_of_torch() if uses_torch else contextlib.nullcontext():
        yield screens_for(progress)


def screens_for(progress: bool | None) -> Screens:
    """Return the progress screens."""
    from imgcls_search.views.screens import ConsoleScreens, SilentScreens

    notebook = _is_notebook()
    if progress is False or (progress is None and not notebook and not _is_terminal()):
        return SilentScreens()
    if notebook:
        from imgcls_search.views.notebook import NotebookConsole

        return ConsoleScreens(NotebookConsole)
    from rich.console import Console

    return ConsoleScreens(lambda: Console(soft_wrap=True, highlight=False, stderr=True))


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from imgcls_search.views.notebook import is_notebook

    return is_notebook()


def _is_terminal() -> bool:
    stream = sys.stderr
    with contextlib.suppress(ValueError, AttributeError):
        return stream.isatty()
    return False


@contextlib.contextmanager
def _environment(weights_dir: str | PathLike[str] | None) -> Iterator[None]:
    """Search a folder for weights first, in this process and those of this call."""
    from imgcls_search.models.weights_files import VARIABLE, add_folder

    before = os.environ.get(VARIABLE)
    if weights_dir is not None:
        add_folder(Path(weights_dir))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


@contextlib.contextmanager
def _state_of_torch() -> Iterator[None]:
    """Restore the random states, threads and switches of torch, NumPy and Python afterwards."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if _has_begun(torch.cuda) else None
    is_grad_enabled, threads = torch.is_grad_enabled(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn: Any = torch.backends.cudnn
    flags, precision, dtype = (
        (cudnn.benchmark, cudnn.deterministic),
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
    )
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
        torch.set_grad_enabled(is_grad_enabled)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = flags
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)


def _has_begun(cuda: Any) -> bool:
    return bool(cuda.is_initialized())
