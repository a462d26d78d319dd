"""torchvision's vision transformer with stochastic depth and a choice of pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops import StochasticDepth

from imgcls_search.image_size import ImageSize, shorter, sides


class DropPathEncoderBlock(EncoderBlock):  # type: ignore[misc]
    """torchvision's block, with both branches dropped at random for single images of a batch."""

    def __init__(self, *args: Any, drop_path: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # It has no parameters, so that state dict names stay torchvision's.
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens [N, tokens, width] for tokens of the same shape."""
        x = self.ln_1(tokens)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = self.drop_path(self.dropout(x)) + tokens
        return x + self.drop_path(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class PoolingVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """torchvision's transformer for images of any shape, with a head on the class token or on the patches' mean."""

    def __init__(
        self,
        *,
        image_size: ImageSize,
        patch_size: int,
        num_layers: int,
        num_heads: int,
        drop_path: float,
        pooling: str,
        **kwargs: Any,
    ) -> None:
        # With zero layers, torchvision creates no blocks that would be initialised and then replaced.
        super().__init__(
            image_size=shorter(image_size),
            patch_size=patch_size,
            num_layers=0 if drop_path else num_layers,
            num_heads=num_heads,
            **kwargs,
        )
        self.grid = tuple(side // patch_size for side in sides(image_size))
        if not isinstance(image_size, int):
            # torchvision supports squares only: one token per patch plus the class token, initialised as in
            # torchvision.
            self.seq_length = self.grid[0] * self.grid[1] + 1
            self.encoder.pos_embedding = nn.Parameter(
                torch.empty(1, self.seq_length, self.hidden_dim).normal_(std=0.02)
            )
        self.pooling = pooling
        if drop_path:
            self.encoder.layers = nn.Sequential(
                OrderedDict(
                    (
                        f"encoder_layer_{index}",
                        DropPathEncoderBlock(
                            num_heads,
                            self.hidden_dim,
                            self.mlp_dim,
                            self.dropout,
                            self.attention_dropout,
                            drop_path=drop_path * (index + 1) / num_layers,
                        ),
                    )
                    for index in range(num_layers)
                )
            )

    def _process_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens [N, patches, width], row by row, for images [N, channels, height, width]."""
        tokens = self.conv_proj(x)
        torch._assert(tuple(tokens.shape[2:]) == self.grid, "wrong image size")
        return tokens.flatten(2).permute(0, 2, 1)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, classes] for images [N, channels, height, width]."""
        if self.pooling == "cls":
            return super().forward(x)  # type: ignore[no-any-return]
        x = self._process_input(x)
        # The class token stays, so that names and shapes do; the head does not read it.
        x = self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1))
        return self.heads(x[:, 1:].mean(dim=1))  # type: ignore[no-any-return]
