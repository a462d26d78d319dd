"""A fixed recipe that a careful person would write with timm and torch: no search, nothing from imgcls-search.

    python scripts/bench/recipes/careful.py photos/train --weights lite0.pt --minutes 10 --seed 0 --out run
    python scripts/bench/recipes/careful.py photos/test --predict run/best.pt

First it fits the head: logistic regression on the frozen network's features. Then it trains the whole network: AdamW
with smaller learning rates for lower layers, a cosine schedule over the remaining minutes, label smoothing, crops and
flips, and a weight average; it keeps the epoch with the best validation accuracy. Images are as large as the minutes
allow. `best.pt` is always a complete file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import STARTED, arguments

# isort: split
# The imports below are part of the minutes, which `shared` counts from when it is imported.
import numpy as np
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as t

NETWORK, MEAN, STD = "tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3
LONGER_SIDES = (224, 192, 160, 128)
BATCH, VAL_SHARE = 32, 0.15
SAVING_SECONDS = 2.0


@dataclass(frozen=True)
class Recipe:
    """Settings that a person would tune."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 0.85
    dropout: float = 0.2
    smoothing: float = 0.1
    strength: float = 0.5
    """Strength of the augmentation, 0 to 1."""


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """Pictures in memory, transformed when they are read."""

    def __init__(self, pictures: list[Image.Image], labels: Any, change: Callable[[Image.Image], torch.Tensor]) -> None:
        self.pictures, self.labels, self.change = pictures, labels, change

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return pixels and class number."""
        return self.change(self.pictures[index]), int(self.labels[index])


@dataclass
class Data:
    """The images of one training."""

    classes: list[str]
    train: tuple[list[Image.Image], Any]
    val: tuple[list[Image.Image], Any]

    def size(self, longer: int) -> tuple[int, int]:
        """Return a height and width with the median aspect ratio of the photos."""
        shape = np.median([picture.size for picture in self.train[0]], axis=0)
        width, height = (max(32, round(side * longer / shape.max() / 8) * 8) for side in shape)
        return height, width


def read(folder: Path) -> tuple[list[Path], list[Image.Image]]:
    """Return the images below a folder of classes."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    return files, [Image.open(file).convert("RGB") for file in files]


def cut(folder: Path, seed: int) -> Data:
    """Read a folder of classes and split off validation images."""
    files, pictures = read(folder)
    classes = sorted({file.parent.name for file in files})
    labels = np.array([classes.index(file.parent.name) for file in files])
    train, val = train_test_split(np.arange(len(files)), test_size=VAL_SHARE, stratify=labels, random_state=seed)
    return Data(classes, *(([pictures[k] for k in part], labels[part]) for part in (train, val)))


def build(weights: Path, classes: int) -> nn.Module:
    """Return the pretrained network with a new head."""
    model: nn.Module = timm.create_model(NETWORK, num_classes=classes)
    state = torch.load(weights, weights_only=True)
    missing = model.load_state_dict({k: v for k, v in state.items() if "classifier" not in k}, strict=False)
    assert {name.split(".")[0] for name in missing.missing_keys} == {"classifier"}, missing  # noqa: S101
    return model.to(memory_format=torch.channels_last)


def plain(size: tuple[int, int]) -> Any:
    """Return the transforms of images for evaluation."""
    resize = t.Resize(size, interpolation=t.InterpolationMode.BICUBIC)
    return t.Compose([resize, t.ToTensor(), t.Normalize(MEAN, STD)])


def changed(size: tuple[int, int], strength: float) -> Any:
    """Return the transforms of images for training."""
    ratio, s = size[1] / size[0], strength
    crop = t.RandomResizedCrop(
        size, (1 - 0.8 * s, 1.0), (ratio * 0.75**s, ratio / 0.75**s), interpolation=t.InterpolationMode.BICUBIC
    )
    jitter = t.ColorJitter(0.4 * s, 0.4 * s, 0.4 * s)
    return t.Compose([crop, t.RandomHorizontalFlip(), jitter, t.ToTensor(), t.Normalize(MEAN, STD)])


@torch.inference_mode()
def run(model: Callable[[torch.Tensor], torch.Tensor], images: Photos) -> torch.Tensor:
    """Return the outputs of a network in evaluation mode for images, in order."""
    return torch.cat([model(pixels) for pixels, _ in DataLoader(images, batch_size=64)])


def fitting_size(data: Data, model: nn.Module, seconds: float, epochs: int) -> tuple[int, int]:
    """Return the largest size at which the epochs fit into the seconds."""
    if seconds <= 0:
        return data.size(LONGER_SIDES[-1])
    trial = copy.deepcopy(model).train()
    batches = len(data.train[0]) / BATCH
    for longer in LONGER_SIDES:
        pixels = torch.stack([changed(data.size(longer), 0.5)(picture) for picture in data.train[0][:BATCH]])
        times = []
        for _ in range(3):
            begun = time.monotonic()
            trial(pixels).logsumexp(1).sum().backward()
            times.append(time.monotonic() - begun)
        # Validation, saving and the loader take about a tenth of the time each.
        if 1.3 * min(times) * batches * epochs < seconds:
            break
    return data.size(longer)


def fit_head(model: nn.Module, data: Data, size: tuple[int, int]) -> float:
    """Fit the last layer to frozen features; return the validation accuracy."""
    model.eval()
    train, val = (
        run(lambda x: model.forward_head(model.forward_features(x), pre_logits=True), Photos(*part, plain(size)))
        for part in (data.train, data.val)
    )
    mean, std = train.mean(0), train.std(0) + 1e-6
    scores = []
    for c in (1e-4, 1e-3, 1e-2, 1e-1):
        head = LogisticRegression(C=c, max_iter=300).fit(((train - mean) / std).numpy(), data.train[1])
        scores.append((float(head.score(((val - mean) / std).numpy(), data.val[1])), -c, head))
    accuracy, _, head = max(scores, key=lambda found: found[:2])
    layer = model.get_classifier()
    coefficients, intercepts = head.coef_, head.intercept_
    if len(data.classes) == 2:  # scikit-learn keeps one row for two classes.
        coefficients, intercepts = (np.concatenate([-x / 2, x / 2]) for x in (coefficients, intercepts))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(coefficients) / std)
        layer.bias.copy_(torch.as_tensor(intercepts) - layer.weight.double() @ mean.double())
    return accuracy


def fine_tune(
    model: nn.Module,
    data: Data,
    size: tuple[int, int],
    recipe: Recipe,
    until: float,
    on_epoch: Callable[[int, float, nn.Module], None],
    epochs: int | None = None,
) -> None:
    """Train all layers for `epochs`, or as long as there is time if that is None; always end at `until`."""
    model.drop_rate = recipe.dropout
    groups = param_groups_layer_decay(model, recipe.weight_decay, layer_decay=recipe.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    smooth = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    average = ModelEmaV3(model, decay=0.995, use_warmup=True)
    train, val = Photos(*data.train, changed(size, recipe.strength)), Photos(*data.val, plain(size))
    batches = DataLoader(
        train, BATCH, shuffle=True, drop_last=len(train) > BATCH, num_workers=1, persistent_workers=True
    )
    begun, step, epoch, validating = time.monotonic(), 0, 0, 0.0
    while epochs is None or epoch < epochs:
        model.train()
        for pixels, labels in batches:
            passed = (time.monotonic() + validating - begun) / max(until - begun, 1e-6)
            if passed >= 1 and (epochs is not None or step == 0):
                return  # A search uses the epochs so far; without a step there is nothing to evaluate.
            share = min(passed if epochs is None else step / (epochs * len(batches)), 1.0)
            factor = min(1.0, share / 0.05 + 0.02) * 0.5 * (1 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor * group.get("lr_scale", 1.0)
            loss = smooth(model(pixels.to(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            average.update(model, step=step)
            if passed >= 1:
                break
        epoch, paused = epoch + 1, time.monotonic()
        logits = run(average.module.eval(), val)
        accuracy = float((logits.argmax(1).numpy() == data.val[1]).mean())
        on_epoch(epoch, accuracy, average.module)
        validating = time.monotonic() - paused
        if passed >= 1:
            return


def save(model: nn.Module, data: Data, size: tuple[int, int], path: Path) -> None:
    """Write a model atomically."""
    torch.save({"state": model.state_dict(), "classes": data.classes, "size": list(size)}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)  # noqa: PTH105


def predict(folder: Path, paths: list[Path]) -> dict[str, dict[str, str]]:
    """Return the class of each image by each saved model."""
    files, pictures = read(folder)
    found = {}
    for path in paths:
        saved = torch.load(path, weights_only=True)
        model = timm.create_model(NETWORK, num_classes=len(saved["classes"]))
        model.load_state_dict(saved["state"])
        logits = run(model.eval(), Photos(pictures, [0] * len(pictures), plain(tuple(saved["size"]))))
        names = [saved["classes"][number] for number in logits.argmax(1).tolist()]
        found[str(path)] = {f"{file.parent.name}/{file.name}": name for file, name in zip(files, names, strict=True)}
    return found


@dataclass(frozen=True)
class Start:
    """The state that fine-tuning starts from."""

    data: Data
    model: nn.Module
    """The pretrained network with a fitted head."""

    size: tuple[int, int]
    accuracy: float
    """Accuracy of the head on the validation images."""

    until: float
    """The time at which the minutes are over, by `time.monotonic`."""


def start(given: argparse.Namespace, epochs: int) -> Start:
    """Fit the head and save it as the first model; images are as large as the minutes allow with `epochs` epochs."""
    until = STARTED + 60 * given.minutes - SAVING_SECONDS
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    data = cut(given.images, given.seed)
    model = build(given.weights, len(data.classes))
    size = fitting_size(data, model, until - time.monotonic(), epochs)
    accuracy = fit_head(model, data, size)
    save(model, data, size, given.out / "best.pt")
    print(f"{time.monotonic() - STARTED:.0f} s: {size} pixels, the head has {accuracy:.4f}", flush=True)
    return Start(data, model, size, accuracy, until)


def main() -> None:
    """Train for some minutes, or predict."""
    given = arguments(__doc__)
    if given.predict:
        print(json.dumps(predict(given.images, given.predict)))
        return
    begun = start(given, epochs=15)
    best = begun.accuracy

    def on_epoch(epoch: int, accuracy: float, average: nn.Module) -> None:
        nonlocal best
        if accuracy >= best:
            best = accuracy
            save(average, begun.data, begun.size, given.out / "best.pt")
        print(f"{time.monotonic() - STARTED:.0f} s: epoch {epoch} has {accuracy:.4f}", flush=True)

    fine_tune(begun.model, begun.data, begun.size, Recipe(), begun.until, on_epoch)


if __name__ == "__main__":
    main()
