"""Imported once, before workers are forked: all that a first trial would otherwise wait for."""

from imgcls_search import terminal

# isort: split
# Before all that may warn; the processes that are forked inherit it.
terminal.show_plain_warnings()

import torch  # noqa: E402
import torchvision.models  # noqa: E402, F401

import imgcls_search.worker.main  # noqa: E402, F401

terminal.lock_bars_by_thread()

# The first optimizer imports a second's worth of torch.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
