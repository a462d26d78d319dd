"""Self-attention whose number of heads is independent of the width of its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class SlimAttention(nn.Module):
    """Self-attention like torch's `nn.MultiheadAttention`, with support for removing single heads.

    torch's module requires that the width is the number of heads times the features of a head, which no longer holds
    once a head is removed.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        """Take over the weights of an attention with one width for queries, keys and values."""
        super().__init__()
        assert whole.in_proj_weight is not None
        assert whole.batch_first
        self.num_heads = whole.num_heads
        self.head_features: int = whole.head_dim
        self.dropout = whole.dropout
        self.inputs = _linear(whole.in_proj_weight, whole.in_proj_bias)
        self.outputs = _linear(whole.out_proj.weight, whole.out_proj.bias)

    def forward(self, query: Tensor, *others: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """Return tokens [N, T, width] for tokens [N, T, width]; keys and values are the queries."""
        parts = self.inputs(query).unflatten(-1, (3, self.num_heads, self.head_features))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.outputs(mixed.transpose(1, 2).flatten(2)), None

    def head_norms(self) -> Tensor:
        """Return the L1 norm of all weights of each head, [heads]."""
        rows = self.inputs.weight.detach().abs().sum(1).view(3, self.num_heads, -1).sum((0, 2))
        columns = self.outputs.weight.detach().abs().sum(0).view(self.num_heads, -1).sum(1)
        return rows + columns

    def drop_heads(self, places: list[int]) -> None:
        """Remove the heads with these indices."""
        from torch_pruning import prune_linear_in_channels, prune_linear_out_channels

        features = [head * self.head_features + each for head in places for each in range(self.head_features)]
        width = self.num_heads * self.head_features
        prune_linear_out_channels(self.inputs, [part * width + each for part in range(3) for each in features])
        prune_linear_in_channels(self.outputs, features)
        self.num_heads -= len(places)


def slim_attentions(model: nn.Module) -> None:
    """Replace each self-attention in torchvision's transformer blocks by `SlimAttention`."""
    from torchvision.models.vision_transformer import EncoderBlock

    for block in list(model.modules()):
        if isinstance(block, EncoderBlock) and isinstance(block.self_attention, nn.MultiheadAttention):
            block.self_attention = SlimAttention(block.self_attention)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias=bias is not None)
    # Reuse the original parameters, so that nothing is initialised or copied.
    given: dict[str, Any] = {"weight": weight} | ({"bias": bias} if bias is not None else {})
    for name, tensor in given.items():
        setattr(layer, name, nn.Parameter(tensor.detach()))
    return layer
