"""Augmentation against what torchvision does to single images."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search import signature
from imgcls_search.data import POLICIES, Moment, Policy, augment, mixing, operations
from imgcls_search.data import policy_space as space
from imgcls_search.data.policies import none, rand, trivial
from PIL import Image
from scipy.stats import ks_2samp
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from tests.conftest import Answer

DTYPES = [torch.uint8, torch.float32]


def batch(count: int, *, channels: int = 3, side: int = 8, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8).to(dtype)


def seeded(transform: Policy, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(images)


def test_nothing_is_done_by_default() -> None:
    images = batch(16)
    assert torch.equal(seeded(augment(policy=none()), images), images)
    assert {name: leaf.default for name, leaf in signature.read(augment).fields.items()} == {
        **dict.fromkeys(
            ["rotation", "brightness", "contrast", "saturation", "hue", "erasing", "zoom", "grey", "noise", "blur"], 0.0
        ),
        "flip": "none",
        "crop_padding": 0,
        "resized_crop": 1.0,
        "jpeg": 100,
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_horizontal_flip_mirrors_each_image_or_leaves_it(dtype: torch.dtype) -> None:
    images = batch(2000, dtype=dtype)
    flipped = seeded(augment(policy=none(), flip="horizontal"), images)
    mirrored = (flipped == vision.hflip(images)).flatten(1).all(dim=1)
    kept = (flipped == images).flatten(1).all(dim=1)
    assert bool((mirrored ^ kept).all())
    # A fair coin: within 4 standard deviations.
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / 2000**0.5
    # Independent: neighbours agree half of the time.
    assert abs((mirrored[1:] == mirrored[:-1]).float().mean().item() - 0.5) < 4 * 0.5 / 1999**0.5


def test_flips_along_both_axes_are_independent() -> None:
    image = batch(1)[0]
    outcomes = {
        name: tensor.numpy().tobytes()
        for name, tensor in {
            "same": image,
            "left to right": vision.hflip(image),
            "upside down": vision.vflip(image),
            "both": vision.hflip(vision.vflip(image)),
        }.items()
    }
    flipped = seeded(augment(policy=none(), flip="horizontal_vertical"), image.expand(2000, -1, -1, -1))
    counts = Counter(after.numpy().tobytes() for after in flipped)
    assert set(counts) == set(outcomes.values())
    assert all(abs(count / 2000 - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5 for count in counts.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [1, 2, 9])
def test_crops_are_windows_of_the_padded_image(padding: int, dtype: torch.dtype) -> None:
    image = batch(1, dtype=dtype)[0]
    padded = vision.pad(image, [padding])
    offsets = range(2 * padding + 1)
    windows = {vision.crop(padded, top, left, 8, 8).numpy().tobytes() for top in offsets for left in offsets}
    repeats = 12 * len(offsets) ** 2
    cropped = seeded(augment(policy=none(), crop_padding=padding), image.expand(repeats, -1, -1, -1))
    assert {after.numpy().tobytes() for after in cropped} == windows


def test_crop_offsets_are_uniform_and_independent() -> None:
    # Pixels that know their place: the offset can be read off the result.
    count, padding, side = 5000, 2, 8
    image = (torch.arange(side * side, dtype=torch.float32) + 1).reshape(1, 1, side, side)
    cropped = seeded(augment(policy=none(), crop_padding=padding), image.expand(count, -1, -1, -1))
    centre = cropped[:, 0, side // 2, side // 2].long() - 1
    tops, lefts = centre // side - side // 2, centre % side - side // 2
    counts = Counter(zip(tops.tolist(), lefts.tolist(), strict=True))
    assert set(counts) == {(top, left) for top in range(-2, 3) for left in range(-2, 3)}
    share = 1 / 25
    assert all(abs(n / count - share) < 4.5 * (share * (1 - share) / count) ** 0.5 for n in counts.values())


def test_crop_keeps_every_image_in_its_place_and_whole() -> None:
    images = batch(50, channels=3, side=6)
    cropped = seeded(augment(policy=none(), crop_padding=2), images)
    padded = functional.pad(images, (2, 2, 2, 2))
    for after, source in zip(cropped, padded, strict=True):
        windows = [source[:, top : top + 6, left : left + 6] for top in range(5) for left in range(5)]
        assert any(torch.equal(after, window) for window in windows)


def test_images_need_not_be_square() -> None:
    images = batch(10)[:, :, :5]
    result = seeded(augment(policy=none(), flip="horizontal_vertical", crop_padding=3), images)
    assert result.shape == images.shape


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_keep_shape_and_type_and_the_batch_given(policy: str, channels: int) -> None:
    images = batch(64, channels=channels, side=16)
    before = images.clone()
    result = seeded(augment(policy=POLICIES[policy](), flip="horizontal", crop_padding=2), images)
    assert (result.shape, result.dtype) == (images.shape, images.dtype)
    assert torch.equal(images, before)


NAMES = (
    "Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize "
    "AutoContrast Equalize"
)
THEIRS = dict(zip(space.OPERATIONS, NAMES.split(), strict=True))
"""Our operations by torchvision's names."""


def photos(count: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Return smooth images, as photographs are, with an edge in each."""
    generator = torch.Generator().manual_seed(count)
    rough = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = functional.interpolate(rough, size=(side, side), mode="bicubic").clamp(0, 1)
    smooth[:, :, side // 2 :, side // 3 :] *= 0.5
    return (smooth * 255).to(torch.uint8)


def reference(operation: str, image: torch.Tensor, strength: float) -> torch.Tensor:
    """Return what torchvision's own policy does to one image."""
    nearest = v2.InterpolationMode.NEAREST
    return v2.RandAugment()._apply_image_or_video_transform(
        image, THEIRS[operation], strength, interpolation=nearest, fill={}
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", space.OPERATIONS)
def test_every_operation_is_torchvisions_at_every_strength(operation: str, channels: int) -> None:
    number = space.OPERATIONS.index(operation)
    signs = (1, -1) if space.FIRST_SHIFT <= number < space.FIRST_UNSIGNED else (1,)
    tables = (space.rand_strengths(32, 32), space.trivial_strengths())
    strengths = [
        sign * table[number, level].item() for table in tables for level in (0, 3, 9, 17, 30) for sign in signs
    ]
    images = photos(len(strengths), channels)
    ours = space.apply(images, torch.full((len(images),), number), torch.tensor(strengths, dtype=torch.float64))
    for image, after, strength in zip(images, ours, strengths, strict=True):
        theirs = reference(operation, image, strength)
        differences = (after.int() - theirs.int()).abs()
        if number in range(space.FIRST_SHIFT, space.FIRST_CHANGE):
            # If a place is exactly between two pixels, either is the nearest.
            assert (differences > 1).float().mean() < 0.01, strength
        else:
            assert differences.max() <= 1, strength
            assert (differences > 0).float().mean() < 0.01, strength


@pytest.mark.parametrize(
    ("policy", "theirs", "num_ops"),
    [
        (rand(num_ops=1, magnitude=7), v2.RandAugment(num_ops=1, magnitude=7), 1),
        (trivial(), v2.TrivialAugmentWide(), 1),
        (rand(), v2.RandAugment(num_ops=2, magnitude=9), 2),
    ],
)
def test_policies_draw_as_often_as_torchvisions(policy: Policy, theirs: Policy, num_ops: int) -> None:
    # By what is left of one image: how bright it is on average, over many draws.
    image = photos(1)
    count = 2500
    ours = seeded(policy, image.expand(count, -1, -1, -1)).float().mean(dim=(1, 2, 3))
    torch.manual_seed(1)
    others = torch.stack([theirs(image[0]).float().mean() for _ in range(count)])
    # Kolmogorov and Smirnov's distance; by chance it is above 0.05 once in a thousand.
    assert ks_2samp(ours.numpy(), others.numpy()).statistic < 0.05
    unchanged = [(after == image[0]).all().item() for after in seeded(policy, image.expand(count, -1, -1, -1))]
    assert sum(unchanged) / count < 0.5 / num_ops


def test_policy_of_strength_nought_keeps_what_it_may() -> None:
    images = photos(300)
    changed = (seeded(rand(num_ops=1, magnitude=0), images) != images).flatten(1).any(dim=1)
    # Solarize at full brightness, autocontrast and equalize are what changes; the other eleven do not.
    assert 0.05 < changed.float().mean() < 0.35


@pytest.mark.parametrize(
    ("name", "strength", "theirs"),
    [
        ("brightness", 0.6, vision.adjust_brightness),
        ("contrast", 0.6, vision.adjust_contrast),
        ("saturation", 0.6, vision.adjust_saturation),
        ("hue", 0.3, vision.adjust_hue),
    ],
)
def test_colour_changes_are_torchvisions_with_a_factor_an_image(
    name: str, strength: float, theirs: Callable[..., torch.Tensor]
) -> None:
    images = photos(24, side=16)
    changed = seeded(augment(policy=none(), **{name: strength}), images)
    middle = 0 if name == "hue" else 1
    candidates = torch.linspace(middle - strength, middle + strength, 161)
    factors = []
    for image, after in zip(images, changed, strict=True):
        errors = [(theirs(image, factor.item()).int() - after.int()).abs().float().mean() for factor in candidates]
        best = int(torch.tensor(errors).argmin())
        assert errors[best] < 1
        factors.append(candidates[best].item())
    assert len({round(factor, 2) for factor in factors}) > 15
    assert min(factors) < middle - strength / 3
    assert max(factors) > middle + strength / 3


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colour_of_grey_images_stays(name: str) -> None:
    images = photos(10, channels=1)
    assert torch.equal(seeded(augment(policy=none(), **{name: 0.4}), images), images)


def test_resized_crop_is_torchvisions_of_some_window() -> None:
    images = photos(20, side=16)
    cropped = seeded(augment(policy=none(), resized_crop=0.3), images)
    areas = []
    for image, after in zip(images, cropped, strict=True):
        windows = [
            (top, left, tall, wide)
            for tall in range(7, 17)
            for wide in range(max(7, int(tall * 0.7)), min(17, int(tall * 1.4) + 1))
            for top in range(17 - tall)
            for left in range(17 - wide)
        ]
        errors = {
            window: (vision.resized_crop(image, *window, [16, 16], antialias=False).int() - after.int())
            .abs()
            .float()
            .mean()
            for window in windows
        }
        best = min(errors, key=lambda window: errors[window].item())
        assert errors[best] < 1.5
        areas.append(best[2] * best[3] / 256)
    assert min(areas) < 0.6
    assert max(areas) > 0.7


def test_rotation_turns_each_image_by_an_angle_of_its_own() -> None:
    images = photos(1).expand(40, -1, -1, -1)
    turned = seeded(augment(policy=none(), rotation=30), images)
    bilinear = v2.InterpolationMode.BILINEAR
    angles = torch.linspace(-30, 30, 121)
    theirs = torch.stack([vision.rotate(images[0], angle.item(), bilinear, fill=[0.0]) for angle in angles])
    found = []
    for after in turned:
        errors = (theirs.int() - after.int()).abs().float().mean(dim=(1, 2, 3))
        assert errors.min() < 4
        found.append(angles[errors.argmin()].item())
    assert min(found) < -15
    assert max(found) > 15
    assert len(set(found)) > 20


def test_erasing_blackens_one_window_in_the_share_of_images_asked_for() -> None:
    images = torch.full((1000, 3, 16, 16), 200, dtype=torch.uint8)
    erased = seeded(augment(policy=none(), erasing=0.3), images) == 0
    is_erased = erased.flatten(1).any(dim=1)
    assert abs(is_erased.float().mean().item() - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5
    for window in erased[is_erased]:
        assert torch.equal(window[0], window[1])
        rows, columns = window[0].any(dim=1), window[0].any(dim=0)
        assert window[0].sum() == rows.sum() * columns.sum()
        assert 0.01 < window[0].float().mean() < 0.4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 20, 12), (3, 2, 40)])
def test_blur_is_torchvisions_with_a_deviation_an_image(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (16, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    deviation = torch.linspace(0, 2, 16, dtype=torch.float64)
    ours = operations.blur(images, deviation, 2.0)
    assert torch.equal(ours[0], images[0])
    for image, blurred, sigma in zip(images[1:], ours[1:], deviation[1:].tolist(), strict=True):
        # Torchvision takes the width first; the weights end three deviations away, or where the image does.
        kernel = [2 * min(6, side - 1) + 1 for side in (shape[2], shape[1])]
        theirs = v2.GaussianBlur(kernel, sigma=(sigma, sigma))(image)
        difference = (blurred.int() - theirs.int()).abs()
        # They sum in another order: a value in the middle between two may be rounded the other way.
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


def test_blur_draws_a_deviation_for_each_image_up_to_the_largest() -> None:
    images = batch(1, side=16).expand(400, -1, -1, -1)
    blurred = seeded(augment(policy=none(), blur=1.5), images)
    assert len({image.numpy().tobytes() for image in blurred}) > 100
    # What an image loses of its contrast says how far it was blurred: evenly over the deviations.
    table = operations.blur(images[:151], torch.linspace(0, 1.5, 151, dtype=torch.float64), 1.5).float()
    contrasts = table.flatten(1).std(dim=1)
    found = (blurred.float().flatten(1).std(dim=1)[:, None] - contrasts).abs().argmin(dim=1) / 100
    # Below a fifth of a pixel nothing changes.
    seen = found[found > 0.4]
    assert len(seen) == pytest.approx(400 * 1.1 / 1.5, abs=4 * 10)
    assert ks_2samp(seen.numpy(), torch.linspace(0.4, 1.5, 400).numpy()).pvalue > 0.01


def as_jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Return what Pillow makes of one image, written and read."""
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels if len(image) == 3 else pixels[..., 0]).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return torch.from_numpy(np.asarray(read).copy()).view(*pixels.shape).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_jpeg_is_what_pillow_and_torchvision_write_and_read(channels: int) -> None:
    images = photos(24, channels, side=36)[..., :28]
    quality = torch.tensor([1, 5, 30, 50, 75, 90, 99, 100] * 3)
    ours = operations.jpeg(images, quality)
    assert ours.is_contiguous()
    for image, lossy, number in zip(images, ours, quality.tolist(), strict=True):
        if number == 100:
            assert torch.equal(lossy, image)
            continue
        assert torch.equal(lossy, as_jpeg(image, number))
        assert torch.equal(lossy, vision.jpeg(image, number))


def test_jpeg_draws_a_quality_for_each_image_from_the_lowest_on() -> None:
    images = photos(1).expand(300, -1, -1, -1)
    known = {operations.jpeg(images[:1], torch.tensor([q])).numpy().tobytes(): q for q in range(40, 101)}
    found = [known[image[None].numpy().tobytes()] for image in seeded(augment(policy=none(), jpeg=40), images)]
    assert min(found) < 43
    assert max(found) > 97
    assert ks_2samp(found, list(range(40, 101)) * 5).pvalue > 0.01


def test_alternating_flip_mirrors_every_image_in_every_other_epoch() -> None:
    images = batch(500)
    transform = augment(policy=none(), flip="alternating")
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0))

    def mirrored(epoch: int, seed: int = 3, order: torch.Tensor = index) -> torch.Tensor:
        after = transform(images[order], Moment(index=order, epoch=epoch, seed=seed))
        flipped = (after != images[order]).flatten(1).any(dim=1)
        assert torch.equal(after[flipped], vision.hflip(images[order][flipped]))
        return flipped[order.argsort()]

    first = mirrored(0)
    assert 200 < first.sum() < 300
    assert torch.equal(mirrored(1), ~first)
    assert torch.equal(mirrored(2), first)
    # By the image, not by its place in the epoch's order.
    assert torch.equal(mirrored(0, order=index.flip(0)), first)
    assert not torch.equal(mirrored(0, seed=4), first)


def test_mixup_blends_images_and_classes_by_one_share() -> None:
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    torch.manual_seed(2)
    mixed, targets = mixing(classes=4, mixup=0.8)(images.clone(), labels)
    assert torch.allclose(targets.sum(dim=1), torch.ones(12))
    share = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0))).median().item()
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-5)
    whole = functional.one_hot(labels, 4).float()
    assert torch.allclose(targets, share * whole + (1 - share) * whole.roll(1, 0), atol=1e-4)


def test_cutmix_pastes_a_window_and_weighs_by_its_area() -> None:
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 4
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        mixed, targets = mixing(classes=4, cutmix=1.0)(images.clone(), labels)
        pasted = (mixed != images).any(dim=1)
        assert torch.equal(mixed[pasted[:, None].expand_as(mixed)], images.roll(1, 0)[pasted[:, None].expand_as(mixed)])
        area = pasted[0].float().mean().item()
        assert torch.equal(pasted[0], pasted[5])
        assert targets[0, 0].item() == pytest.approx(1 - area, abs=1e-6)
        seen.add(round(area, 2))
    assert len(seen) > 15


def test_both_mixtures_take_turns_and_none_changes_nothing() -> None:
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    kinds = Counter()
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, _ = mixing(classes=2, mixup=1.0, cutmix=1.0)(images.clone(), labels)
        kinds[bool((mixed == images).any())] += 1
    assert min(kinds.values()) > 12
    same, untouched = mixing(classes=2)(images, labels)
    assert same is images
    assert untouched is labels


def test_preview_shows_the_training_images_and_says_what_was_drawn(
    tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    space_file = tmp_path / "space.yaml"
    space_file.write_text(
        "data: {digits: {max_train: 100}}\nmodel: {lenet5: {}}\n"
        "augment: {flip: horizontal, rotation: {float: [1, 30]}, mixup: 0.4, policy: {rand: {num_ops: 1}}}\n"
    )
    answer = imgcls("augment-preview", space_file, "-o", "sheet.png", "--rows", "4")
    assert answer.code == 0, answer.err
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 900
        assert len(sheet.convert("L").getcolors(256) or []) > 30
    again = (tmp_path / "sheet.png").read_bytes()
    assert imgcls("augment-preview", space_file, "-o", "sheet.png", "--rows", "4").code == 0
    assert (tmp_path / "sheet.png").read_bytes() == again
    assert imgcls("augment-preview", space_file, "-o", "sheet.png", "--rows", "4", "--seed", "9").code == 0
    assert (tmp_path / "sheet.png").read_bytes() != again
    for name in ("sheet.jpg", "missing/sheet.png"):
        refused = imgcls("augment-preview", space_file, "-o", name)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("policy", ["rand", "trivial"])
def test_policies_treat_every_image_differently(policy: str) -> None:
    images = batch(1, side=16).expand(100, -1, -1, -1)
    assert len({after.numpy().tobytes() for after in seeded(POLICIES[policy](), images)}) > 20


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_batch_other_seed_another(policy: str) -> None:
    images = batch(64, side=16)
    transform = augment(policy=POLICIES[policy](), flip="horizontal_vertical", crop_padding=2)
    assert torch.equal(seeded(transform, images, 5), seeded(transform, images, 5))
    assert not torch.equal(seeded(transform, images, 5), seeded(transform, images, 6))


def test_random_numbers_do_not_depend_on_the_type_of_pixels() -> None:
    transform = augment(policy=none(), flip="horizontal_vertical", crop_padding=2)
    images = batch(64)
    assert torch.equal(seeded(transform, images).float(), seeded(transform, images.float()))


def test_channels_last_batches_are_welcome() -> None:
    transform = augment(policy=none(), flip="horizontal", crop_padding=1)
    images = batch(64)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(seeded(transform, images), seeded(transform, last))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_the_same_batch(dtype: torch.dtype) -> None:
    transform = augment(policy=none(), flip="horizontal_vertical", crop_padding=2)
    images = batch(64, dtype=dtype)
    on_gpu = seeded(transform, images.cuda())
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), seeded(transform, images))
