"""The documentation's settings of images and augmentation: each is there as written, trains, and does something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Moment, Prepared
from imgcls_search.space import parse
from imgcls_search.training.loop import fit
from imgcls_search.worker import image_sets, pipeline, start_weights

from tests.jobs.test_bundle import cut_photographs

HOW_TO = Path(__file__).parents[2] / "docs/how-to"
PAGES = "".join((HOW_TO / name).read_text() for name in ("choose-the-image-size.md", "preview-augmentation.md"))

PLAIN = (
    "data: {folder: {root: photos, val: 0.3, test: 0.2}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1, batch_size: 24}\n"
)
"""Without an `image` and an `augment` section."""

IMAGE = {
    "`image: {fit: pad}`": "image: {size: 24, fit: pad}",
    "`fill: mean | black | white`": "image: {size: 24, fit: pad, fill: white}",
    "`fit: squash`": "image: {size: 24, fit: squash}",
    "`image: {size:\n[96, 128]}`": "image: {size: [24, 32]}",
    "`size: {choice: [64, [64, 96]]}`": "image: {size: [64, 96]}",
    "`image: {margin: 1.15}`": "image: {size: 24, margin: 1.15}\naugment: {resized_crop: 0.5}",
    "`image: {mean: data}`": "image: {size: 24, mean: data}",
    "`mean: [0.5], std: [0.25, 0.25, 0.25]`": "image: {size: 24, mean: [0.5], std: [0.25, 0.25, 0.25]}",
}
AUGMENT = {"zoom": "0.2", "grey": "0.1", "blur": "1.0", "noise": "0.05", "jpeg": "40"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("photos")
    cut_photographs(top / "photos")
    return top


def trained(text: str, top: Path) -> tuple[TrialConfig, Prepared, float]:
    """Train an epoch as a worker does, and return the loss."""
    written = PLAIN.replace("photos", str(top / "photos")) + text
    config = parse(written, catalog(), source="some").config()
    data = start_weights.with_normalisation(config, pipeline.prepare_data(config, top / "images"))
    session = pipeline.new_session(config, data, seed=1, device="cpu")
    (epoch,) = fit(session, *image_sets.image_sets(data, "train", "cpu"), until_epoch=1)
    assert np.isfinite(epoch["loss"])
    return config, data, epoch["train_loss"]


@pytest.mark.parametrize("written", IMAGE)
def test_settings_of_images_train(written: str, photos: Path) -> None:
    assert " ".join(written.split()) in " ".join(PAGES.split())
    _, _, plain = trained("image: {size: 24}", photos)
    config, data, loss = trained(IMAGE[written], photos)
    section = config.section("image")
    assert (data.frame.fit, data.frame.margin) == (section["fit"], section["margin"])
    is_same = written == "`image: {mean: data}`"  # as it is anyway without pretrained weights
    assert (loss == plain) == is_same


@pytest.mark.parametrize("name", AUGMENT)
def test_settings_of_augmentation_train(name: str, photos: Path) -> None:
    all_of_them = "augment: {" + ", ".join(f"{key}: {value}" for key, value in AUGMENT.items()) + "}"
    assert f"`{all_of_them}`" in PAGES
    text = f"image: {{size: 24}}\naugment: {{{name}: {AUGMENT[name]}}}"
    config, data, loss = trained(text, photos)
    assert loss != trained("image: {size: 24}", photos)[2]
    augment, _ = pipeline.build_augmentation(config, data.shape)
    pixels = torch.from_numpy(np.array(image_sets.image_sets(data, "train", "cpu")[0].pixels[:64]))
    torch.manual_seed(0)
    found = augment(pixels, Moment(index=torch.arange(64), epoch=0, seed=0))
    assert found.shape == pixels.shape
    assert found.dtype == torch.uint8
    changed = (found != pixels).flatten(1).any(dim=1).float().mean()
    # A weak blur is lost in rounding.
    assert (changed > 0.5) == (name != "grey")
    assert changed > 0
