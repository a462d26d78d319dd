"""Draw a contact sheet: images of the training split beside their augmented versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from imgcls_search import atomic, fonts
from imgcls_search.config import TrialConfig
from imgcls_search.data import Moment, Prepared, load
from imgcls_search.errors import UserError, writing
from imgcls_search.space import Space
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.terminal import shown
from imgcls_search.words import some
from imgcls_search.worker import pipeline

EPOCHS = 9
"""Number of columns after the first; each shows the images in another epoch."""

TILE = 96
"""Smallest width of an image in pixels; smaller ones are enlarged by an integer factor."""

GAP, LINE, LETTERS = 6, 18, 14
"""Pixels between tiles, height of a line of text, and size of its letters."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The contents of a contact sheet."""

    settings: tuple[str, ...]
    """The augmentation that was drawn, one setting per line, without those that are off."""

    rows: int


def draw_config(space: Space, seed: int) -> TrialConfig:
    """Draw one configuration of a space; the same seed gives the same configuration."""
    return draw_random(View(space, [], [], seed), 0, 0).config


def write_preview(
    config: TrialConfig,
    cache: Path,
    output: Path,
    *,
    rows: int,
    seed: int,
    say: Callable[[str], None] | None = None,
) -> Preview:
    """Write a contact sheet of a configuration's augmentation as a PNG file.

    Raises:
        UserError: the file cannot be written, or its name does not end in .png.
        DataError: the images are missing, damaged or unusable.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"{output}: not a PNG file; allowed: a name that ends in .png")
    data = pipeline.prepare_data(config, cache, say=say)
    settings = _settings(config.section("augment"))
    images = load(data, "train")
    index = _several_classes(np.asarray(images.labels), rows)
    before = torch.from_numpy(np.array(images.pixels[index]))
    whole = torch.from_numpy(np.array(load(data, "train", whole=True).pixels[index]))
    given = np.asarray(images.labels)[index]
    labels = torch.from_numpy(given)
    augment, mix = pipeline.build_augmentation(config, data.shape)
    columns = []
    for epoch in range(EPOCHS):
        torch.manual_seed(seed * 1_000_003 + epoch)
        after = augment(whole, Moment(index=torch.from_numpy(index), epoch=epoch, seed=seed))
        # Mixing is a weighted mean, so it gives the same image before normalisation as after.
        mixed, targets = mix(after.float(), labels)
        columns.append(
            (mixed.round().to(torch.uint8), _captions(targets, data) if targets.is_floating_point() else None)
        )
    _save(_sheet(before, [_written(label, data) for label in given], columns, settings), output)
    return Preview(settings=settings, rows=len(index))


def _settings(section: Mapping[str, Any]) -> tuple[str, ...]:
    ((policy, arguments),) = section["policy"].items()
    idle = {"resized_crop": 1.0}
    lines = [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in section.items()
        if name != "policy" and value not in ("none", idle.get(name, 0))
    ]
    if policy != "none":
        words = ", ".join(f"{name}: {value}" for name, value in arguments.items())
        lines.append(f"policy: {policy}" + (f" ({words})" if words else ""))
    return tuple(lines)


def _several_classes(labels: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Return the indices of images: the first of each class, then the second ones, and so on.

    With several labels per image, 0 or 1 [N, labels], each combination of labels counts as a class.
    """
    if labels.ndim == 2:
        labels = np.unique(labels, axis=0, return_inverse=True)[1].ravel()
    turns = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turns[labels == label] = np.arange((labels == label).sum())
    return np.lexsort((labels, turns))[:rows]


def _written(label: np.ndarray[Any, Any], data: Prepared) -> str:
    """Return the class of an image, or its labels, 0 or 1 [labels], as text."""
    numbers = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
    return shown(some([data.classes[number] for number in numbers]) or "no label")


def _captions(targets: torch.Tensor, data: Prepared) -> list[str]:
    """Return the shares of up to two classes in each image, in percent, largest first."""
    captions = []
    for shares in targets:
        greatest = shares.topk(min(2, len(shares)))
        parts = zip(greatest.values.tolist(), greatest.indices.tolist(), strict=True)
        captions.append("\n".join(f"{share:.0%} {shown(data.classes[number])}" for share, number in parts if share > 0))
    return captions


def _sheet(
    before: torch.Tensor,
    names: list[str],
    columns: list[tuple[torch.Tensor, list[str] | None]],
    settings: tuple[str, ...],
) -> Image.Image:
    factor = max(1, -(-TILE // before.shape[-1]))
    high, side = before.shape[-2] * factor, before.shape[-1] * factor
    below = 2 * LINE if any(captions is not None for _, captions in columns) else 0
    lines = ["augment:", *(f"  {line}" for line in settings)] if settings else ["augment: nothing is on"]
    top = GAP + LINE * (len(lines) + 1)
    across, down = side + GAP, high + LINE + below + GAP
    sheet = Image.new("RGB", (GAP + across * (1 + len(columns)), top + down * len(before) + GAP), "white")
    drawing = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, width: int) -> None:
        for number, part in enumerate(text.split("\n")):
            line, file = fonts.file_for(part)
            font = ImageFont.truetype(file, LETTERS)
            while line and drawing.textlength(line, font=font) > width:
                line = line[:-1]
            drawing.text((x, y + number * LINE), line, fill="black", font=font)

    for number, line in enumerate(lines):
        write(GAP, GAP + number * LINE, line, sheet.width - GAP)
    for column, (images, captions) in enumerate([(before, None), *columns]):
        x = GAP + column * across
        write(x, top - LINE, f"epoch {column}" if column else "original", side)
        for row, image in enumerate(images):
            y = top + row * down
            if not column:
                write(x, y, names[row], side)
            sheet.paste(_tile(image).resize((side, high), Image.Resampling.NEAREST), (x, y + LINE))
            if captions is not None:
                write(x, y + LINE + high, captions[row], side)
    return sheet


def _tile(image: torch.Tensor) -> Image.Image:
    channels_last = image.permute(1, 2, 0).numpy()
    return Image.fromarray(channels_last[:, :, 0] if channels_last.shape[2] == 1 else channels_last).convert("RGB")


def _save(sheet: Image.Image, output: Path) -> None:
    with writing(output), atomic.replacing(output) as draft:
        sheet.save(draft, format="PNG")
