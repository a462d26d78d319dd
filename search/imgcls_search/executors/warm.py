"""Import everything that a first trial would otherwise wait for, before workers are forked."""

from imgcls_search import terminal

# isort: split
# Before any import that may warn; forked processes inherit this.
terminal.show_plain_warnings()

import torch  # noqa: E402
import torchvision.models  # noqa: E402, F401

import imgcls_search.worker.main  # noqa: E402, F401

terminal.lock_bars_by_thread()

# The first optimizer imports parts of torch, which takes a second.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
