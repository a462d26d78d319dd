"""A small network of each family, for tests that loop over all families."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 8, "width": 16, "depth": 2, "heads": 2},
    "resnet": {"depths": (1, 1), "width": 8},
    "lenet5": {},
    "alexnet": {"width": 0.1, "hidden": 16},
    "vgg": {"depth": 11, "width": 4, "hidden": 8},
    "densenet": {"growth_rate": 4, "depths": (1, 2)},
    "efficientnet": {"width_mult": 0.25, "depth_mult": 0.25},
    "mobilenetv3": {"width_mult": 0.25},
    "convnext": {"depths": (1, 1), "width": 8},
    "airbench": {"widths": (8, 16)},
    "timm": {"name": "vit_tiny_patch16_224", "depth": 1},
}
"""Arguments of the builders; add a line here for a new family."""
