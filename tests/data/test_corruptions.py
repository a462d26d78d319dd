"""Corruptions of whole batches against the definitions of Hendrycks and Dietterich, image by image."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from imgcls_search.data.corruptions import CORRUPTIONS, corrupt, strength
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images


def photographs(height: int, width: int) -> np.ndarray[Any, Any]:
    """Parts of two photographs, one of them with black, grey and white, [N, H, W, 3]."""
    found = np.stack([photo[100 : 100 + height, 200 : 200 + width] for photo in load_sample_images().images])
    found[1, :4, :4], found[1, 4:8, :4], found[1, 8:12, :4] = 0, 128, 255
    return found


def published(image: np.ndarray[Any, Any], name: str, value: float) -> np.ndarray[Any, Any]:
    """The published definition for one image [H, W, 3], with scipy, matplotlib and Pillow."""
    x = image / 255.0
    match name:
        case "gaussian_blur":
            # What skimage.filters.gaussian is.
            x = gaussian_filter(x, sigma=(value, value, 0), mode="nearest", truncate=4.0)
        case "jpeg_compression":
            with io.BytesIO() as file:
                Image.fromarray(image).save(file, "JPEG", quality=int(value))
                return np.asarray(Image.open(file))
        case "brightness":
            x = matplotlib.colors.rgb_to_hsv(x)
            x[:, :, 2] = np.clip(x[:, :, 2] + value, 0, 1)
            x = matplotlib.colors.hsv_to_rgb(x)
        case "contrast":
            means = np.mean(x, axis=(0, 1), keepdims=True)
            x = (x - means) * value + means
    return np.uint8(np.clip(x, 0, 1) * 255)


@pytest.mark.parametrize("sides", [(224, 224), (64, 80), (32, 32)])
@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "gaussian_noise"])
def test_corruptions_are_the_published_ones(name: str, severity: int, sides: tuple[int, int]) -> None:
    images = photographs(*sides)
    found = corrupt(torch.from_numpy(images).movedim(-1, 1), name, severity, torch.arange(2)).movedim(1, -1).numpy()
    expected = np.stack([published(image, name, strength(name, severity, sides)) for image in images])
    # Both round down: sums in another order may end on the other side of a whole number.
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
    assert np.abs(found.astype(int) - images.astype(int)).mean() > 0.5


def test_strengths_are_the_published_ones() -> None:
    assert strength("gaussian_noise", 5, (224, 224)) == 0.38
    assert strength("gaussian_noise", 5, (64, 64)) == 0.18
    assert strength("gaussian_noise", 5, (32, 48)) == 0.10
    assert [strength("gaussian_blur", severity, (300, 224)) for severity in range(1, 6)] == [1, 2, 3, 4, 6]
    assert [strength("jpeg_compression", severity, (224, 224)) for severity in range(1, 6)] == [25, 18, 15, 10, 7]


def test_noise_is_normal_and_that_of_the_image_s_number() -> None:
    images = torch.full((64, 3, 64, 64), 128, dtype=torch.uint8)
    noisy = corrupt(images, "gaussian_noise", 3, torch.arange(64))
    added = noisy.double() - 127.5
    assert float(added.std()) == pytest.approx(255 * 0.12, rel=0.01)
    assert abs(float(added.mean())) < 0.2
    # Alike in whatever batch an image is, and unlike that of the others.
    alone = corrupt(images[:1], "gaussian_noise", 3, torch.tensor([5]))
    assert torch.equal(alone[0], noisy[5])
    assert not torch.equal(noisy[4], noisy[5])


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_grey_images_are_corrupted_as_colour_ones_are(name: str) -> None:
    grey = torch.from_numpy(photographs(32, 32)[..., 0])[:, None].contiguous()
    found = corrupt(grey, name, 5, torch.arange(2))
    assert found.shape == grey.shape
    assert found.dtype == torch.uint8
    if name not in ("gaussian_noise", "jpeg_compression"):
        colour = corrupt(grey.expand(-1, 3, -1, -1), name, 5, torch.arange(2))
        assert torch.equal(found, colour[:, :1])
