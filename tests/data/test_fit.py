"""`image.fit`, `image.fill` and oblong sizes: what stays of a picture, and what earlier versions wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import Component
from imgcls_search.data import augment, describe, operations, prepare
from imgcls_search.data.decode import decode
from imgcls_search.data.image import Frame, InputShape
from imgcls_search.data.policies import none
from imgcls_search.data.store import Prepared, _key
from imgcls_search.errors import SpaceError
from imgcls_search.space import dump, parse
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

SIZES = [32, (24, 40), (40, 24)]


def half_white() -> Image.Image:
    """Return a black picture of 400x200 whose left 90 pixels are white."""
    pixels = np.zeros((200, 400, 3), dtype=np.uint8)
    pixels[:, :90] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", SIZES)
def test_pad_and_squash_keep_what_crop_cuts_off(size: Any) -> None:
    assert decode(half_white(), 32, 3).max() < 255
    squashed = decode(half_white(), size, 3, "squash")
    assert (squashed == 255).any()
    assert (squashed > 127).mean() == pytest.approx(90 / 400, abs=0.02)
    padded = decode(half_white(), size, 3, "pad", "black")
    assert (padded == 255).any()
    # A white border would hide it: there are as many black pixels as the picture has.
    assert decode(half_white(), size, 3, "pad", "white").min() == 0


@pytest.mark.parametrize("fill", ["mean", "black", "white"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(37, 61), (61, 37), (50, 50), (1, 300), (300, 1), (200, 400)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_is_pillow_s(shape: tuple[int, int], size: Any, fill: Any, channels: int) -> None:
    rng = np.random.default_rng(0)
    mode = "L" if channels == 1 else "RGB"
    image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).convert(mode)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height / shape[0], width / shape[1]) * min(shape) < 0.5:
        # Pillow fails where a side would have no pixel; one is left.
        assert decode(image.copy(), size, channels, "pad", fill).shape == (channels, height, width)
        return
    inside = np.asarray(ImageOps.contain(image, (width, height), Image.Resampling.BILINEAR)).reshape(-1, channels)
    mean = tuple(int(value) for value in np.floor(inside.astype(float).mean(axis=0) + 0.5))
    colour = {"mean": mean, "black": (0,) * channels, "white": (255,) * channels}[fill]
    expected = np.asarray(ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=colour))
    found = decode(image, size, channels, "pad", fill)
    assert np.array_equal(found, expected.reshape(height, width, channels).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_turned_jpegs_keep_twice_the_size_in_both_directions(tmp_path: Path, orientation: int, fit: Any) -> None:
    # Large enough that it is decoded at a fraction, by sides that its EXIF tag exchanges.
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200))
    exif = Image.Exif()
    exif[274] = orientation
    smooth.save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        found = decode(image, (20, 100), 3, fit)
    with Image.open(tmp_path / "a.jpg") as image:
        plain = ImageOps.exif_transpose(image).convert("RGB")
    expected = decode(plain, (20, 100), 3, fit)
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_a_square_is_one_number_however_it_is_written(tmp_path: Path) -> None:
    digits = describe(Component(path="data.digits", name="digits", args={"max_train": 20}))
    pair = prepare(digits, image_size=(8, 8), channels=1, cache=tmp_path)
    assert pair == prepare(digits, image_size=8, channels=1, cache=tmp_path)
    assert InputShape.of({"size": (8, 8), "channels": 1}, 10) == InputShape(image_size=8, channels=1, classes=10)


def test_stores_of_earlier_versions_keep_their_names_and_other_frames_have_others() -> None:
    digits = describe(Component(path="data.digits", name="digits", args={"max_train": 20}))
    # As written by the version before `image.fit`.
    assert _key(digits, Frame(size=8, channels=1)) == "6e14fd41ec887e0c"
    frames = [
        Frame(size=8, channels=1),
        Frame(size=(8, 12), channels=1),
        Frame(size=(12, 8), channels=1),
        Frame(size=8, channels=1, fit="squash"),
        Frame(size=8, channels=1, margin=1.5),
        *(Frame(size=8, channels=1, fit="pad", fill=fill) for fill in ("mean", "black", "white")),
    ]
    assert len({_key(digits, frame) for frame in frames}) == len(frames)
    # Where there is no border its colour is no part of the name.
    assert _key(digits, Frame(size=8, channels=1, fill="white")) == _key(digits, frames[0])


def test_data_sets_of_earlier_versions_are_read(tmp_path: Path) -> None:
    digits = describe(Component(path="data.digits", name="digits", args={"max_train": 20}))
    prepared = prepare(digits, image_size=(8, 12), channels=1, cache=tmp_path, fit="pad", fill="black")
    assert Prepared.from_dict(prepared.to_dict()) == prepared
    old = prepare(digits, image_size=8, channels=1, cache=tmp_path).to_dict()
    before = {key: value for key, value in old.items() if key not in ("fit", "fill", "margin")}
    assert Prepared.from_dict(before).to_dict() == old


def test_sizes_of_a_space_may_be_searched_beside_each_other() -> None:
    text = "image: {size: {choice: [64, [64, 96]]}, fit: {choice: [crop, pad, squash]}}\nmodel: {vit: {}}\n"
    space = parse(text, catalog(), source="some")
    configs = [space.config_of(params) for params in space.combinations()]
    sections = [config.section("image") for config in configs]
    assert {(each["size"], each["fit"]) for each in sections} == {
        (size, fit) for size in (64, (64, 96)) for fit in ("crop", "pad", "squash")
    }
    for config in configs:
        assert parse(dump(config), catalog(), source="again").config() == config


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("{size: [64]}", "[64] is not allowed"),
        ("{size: [64, 96, 3]}", "a list of 2 of int >= 4 and <= 1024"),
        ("{size: []}", "is not allowed"),
        ("{size: [64, 2]}", "[64, 2] is not allowed"),
        ("{size: [64, 96.5]}", "is not allowed"),
        ("{size: 64x96}", "'64x96'"),
        ("{fit: stretch}", "'crop', 'pad', 'squash'"),
        ("{margin: 0.9}", "float >= 1 and <= 2"),
        ("{margin: 3}", "float >= 1 and <= 2"),
        ("{fill: red}", "'mean', 'black', 'white'"),
        ("{size: {choice: [64, [64]]}}", "[64] is not allowed"),
    ],
)
def test_impossible_shapes_are_one_line(image: str, words: str) -> None:
    with pytest.raises(SpaceError) as error:
        parse(f"image: {image}\nmodel: {{vit: {{}}}}\n", catalog(), source="some.yaml")
    (line,) = str(error.value).splitlines()
    assert line.startswith("some.yaml:1:")
    assert words in line


def test_frames_are_values() -> None:
    assert dataclasses.replace(Frame(size=8, channels=3), fit="pad") == Frame(size=8, channels=3, fit="pad")


def test_resized_crops_are_cut_from_the_margin_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 30, 40), dtype=torch.uint8)
    windows: list[Any] = []
    cut = operations.cut

    def watched(images: Any, window: Any, degrees: Any, size: Any = None) -> Any:
        windows.append(window)
        return cut(images, window, degrees, size)

    monkeypatch.setattr(operations, "cut", watched)
    change = dataclasses.replace(augment(policy=none(), resized_crop=0.3), size=(24, 32))
    found = change(images)
    assert found.shape == (64, 3, 24, 32)
    (window,) = windows
    for image, result, *box in zip(images, found, *(side.int().tolist() for side in window), strict=True):
        expected = functional.resized_crop(image, *box, [24, 32], antialias=False)
        assert (result.int() - expected.int()).abs().max() <= 1
    # From beyond the middle, which evaluation sees.
    assert (window.top < 3).any()
    assert (window.top + window.height > 27).any()


def test_without_random_crops_training_sees_the_middle_of_the_margin() -> None:
    images = torch.randint(0, 256, (4, 3, 30, 40), dtype=torch.uint8)
    plain = dataclasses.replace(augment(policy=none()), size=(24, 32))
    rows, columns = Frame(size=(24, 32), channels=3, margin=1.25).middle
    assert torch.equal(plain(images), images[..., rows, columns])
    # A turn of nearly nothing leaves it where it is.
    turned = dataclasses.replace(augment(policy=none(), rotation=1e-6), size=(24, 32))
    assert torch.equal(turned(images), images[..., rows, columns])


def test_zoom_keeps_the_aspect_and_is_torchvision_s_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 30, 60), dtype=torch.uint8)
    windows: list[Any] = []
    cut = operations.cut

    def watched(images: Any, window: Any, degrees: Any, size: Any = None) -> Any:
        windows.append(window)
        return cut(images, window, degrees, size)

    monkeypatch.setattr(operations, "cut", watched)
    found = augment(policy=none(), zoom=0.5)(images)
    (window,) = windows
    for image, result, *box in zip(images, found, *(side.int().tolist() for side in window), strict=True):
        expected = functional.resized_crop(image, *box, [30, 60], antialias=False)
        assert (result.int() - expected.int()).abs().max() <= 1
    assert ((window.width - 2 * window.height).abs() <= 1).all()
    assert window.height.min() >= 15
    assert len(set(window.height.tolist())) > 5


def test_grey_is_torchvision_s_for_some_images_and_none_for_others() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 5, 5), dtype=torch.uint8)
    found = augment(policy=none(), grey=0.25)(images)
    grey = functional.rgb_to_grayscale(images, num_output_channels=3)
    is_grey = (found == grey).flatten(1).all(1)
    assert torch.equal(found[~is_grey], images[~is_grey])
    assert 30 <= is_grey.sum() <= 70
    one = images[:, :1]
    assert torch.equal(augment(policy=none(), grey=1.0)(one), one)


def test_noise_is_torchvision_s_with_a_deviation_for_each_image() -> None:
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    deviations = torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64)
    normal = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found = operations.noise(images, deviations, normal.clone())
    assert torch.equal(found[0], images[0])
    for number, deviation in enumerate(deviations.tolist()):
        torch.manual_seed(5)
        expected = functional.gaussian_noise(images[number] / 255, sigma=deviation)
        torch.manual_seed(5)
        drawn = torch.randn(images[number].shape)
        ours = operations.noise(images[number : number + 1], deviations[number : number + 1], drawn[None])[0]
        assert (ours / 255 - expected).abs().max() <= 0.51 / 255
    torch.manual_seed(0)
    plain = torch.full((64, 1, 8, 8), 128, dtype=torch.uint8)
    spread = augment(policy=none(), noise=0.2)(plain).float().flatten(1).std(dim=1)
    assert spread.min() < 10 < 35 < spread.max() < 70
