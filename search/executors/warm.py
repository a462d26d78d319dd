"""Imported once, before workers are forked: all that a first trial would otherwise wait for."""

import sklearn.metrics  # noqa: F401
import torch
import torchvision.models  # noqa: F401

import search.worker  # noqa: F401

# The first optimizer imports a second's worth of torch.
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
