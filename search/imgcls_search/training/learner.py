"""A network that is pretrained without its head, with projection layers that are dropped afterwards; its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgcls_search.errors import BuildError
from imgcls_search.models.anatomy import Anatomy
from imgcls_search.models.heads import dropout_before, replace_head


class Learner(nn.Module):
    """A network and a projection from its features to the loss."""

    def __init__(self, network: nn.Module, projection: nn.Module) -> None:
        """Take a `network` without head: see `without_head`."""
        super().__init__()
        self.network, self.projection = network, projection

    def features(self, inputs: Tensor) -> Tensor:
        """Return features [B, F] of inputs [B, C, H, W]."""
        found: Tensor = self.network(inputs).flatten(1)
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return projections [B, D] of inputs [B, C, H, W]."""
        found: Tensor = self.projection(self.features(inputs))
        return found

    def backbone(self) -> Mapping[str, Tensor]:
        """Return the weights of the network without head, under the names of its family."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}


def without_head(model: nn.Module, path: str) -> nn.Module:
    """Remove the last layer of a model, and the dropout before it, and return the model.

    Raises:
        BuildError: the model does not declare its last layer.
    """
    anatomy = getattr(model, "anatomy", None)
    if not isinstance(anatomy, Anatomy):
        raise BuildError(path, "this family does not say where its head is, so it cannot be pretrained")
    if (dropout := dropout_before(model)) is not None:
        dropout.p = 0.0
    replace_head(model, nn.Identity())
    return model


@torch.no_grad()
def num_features(network: nn.Module, channels: int, height: int, width: int) -> int:
    """Return the number of features of a network without head."""
    is_training = network.training
    found: Tensor = network.eval()(torch.zeros(1, channels, height, width)).flatten(1)
    network.train(is_training)
    return found.shape[1]


def projector(features: int, widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of the given widths with batch normalisation and ReLU between them (Chen et al. 2020)."""
    layers: list[nn.Module] = []
    for before, width in zip([features, *widths], widths[:-1], strict=False):
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    before = widths[-2] if len(widths) > 1 else features
    return nn.Sequential(*layers, nn.Linear(before, widths[-1]))


class ContrastiveLoss(nn.Module):
    """NT-Xent (Chen et al. 2020): find the other view of an image among all views in a batch."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, projections: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of projections [2B, D]: the first views of all images, then the second ones.

        -log(exp(s(i, j) / T) / sum over k != i of exp(s(i, k) / T)), with s the cosine and j the other view of i.
        """
        # Similarities need more digits than half precision has.
        with torch.autocast(projections.device.type, enabled=False):
            directions = functional.normalize(projections.float(), dim=1)
            count = len(directions)
            near = directions @ directions.T / self.temperature
            near = near.masked_fill(torch.eye(count, dtype=torch.bool, device=near.device), float("-inf"))
            others = torch.arange(count, device=near.device).roll(count // 2)
            return functional.cross_entropy(near, others)


class ImitationLoss(nn.Module):
    """The cosine distance between projections and a teacher's features, standardised to mean 0 and deviation 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """`mean` and `std` of the teacher's features over all images, [D]."""
        super().__init__()
        # A constant feature carries no information.
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(std > 1e-6 * std.max().clamp(min=1e-12), 1 / std, 0))

    def forward(self, projections: Tensor, targets: Tensor) -> Tensor:
        """Return the mean distance of projections [B, D] from the teacher's features [B, D]: 0 to 2."""
        with torch.autocast(projections.device.type, enabled=False):
            wanted = (targets.float() - self.mean) * self.scale
            return 1 - functional.cosine_similarity(projections.float(), wanted, dim=1).mean()
