"""The network of cifar10-airbench: its layers, its whitened first layer, and when that is fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import BuildError
from imgcls_search.models import MODELS
from imgcls_search.models.airbench_layers import Whitening, whitenings_of
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, pipeline
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from tests.models.test_models import check_anatomy, check_shape, count

TEXT = """
data: {digits: {max_train: 120}}
model: {airbench: {widths: [4, 8]}}
optimizer: {scaled_sgd: {}}
training: {epochs: 3, batch_size: 40, ema: 0.9}
"""


def build(size: Any = 32, channels: int = 3, **arguments: Any) -> nn.Module:
    return MODELS["airbench"](image_size=size, channels=channels, classes=10, **arguments)


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    return pipeline.prepare_data(config_of(TEXT), tmp_path_factory.mktemp("images"))


@pytest.fixture
def images(digits: Prepared) -> tuple[ImageSet, ImageSet]:
    train, validation = image_sets.image_sets(digits, "train", "cpu")
    assert validation is not None
    return train, validation


def begin(digits: Prepared, text: str = TEXT) -> Session:
    return pipeline.new_session(config_of(text), digits, seed=5, device="cpu")


def test_default_has_the_layers_of_the_original() -> None:
    """Counted by hand: kernels of the three blocks, scale and shift of six normalisations, a head without a bias."""
    kernels = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    model = build()
    assert count(model) == kernels + 2 * (2 * 64 + 4 * 256) + 256 * 10
    # 32 - 1, halved three times as the original does: 15, 7 and 3 pixels, of which the largest is taken.
    sides = []
    for name, module in model.named_children():
        if name.startswith("block"):
            module.register_forward_hook(lambda _, __, made: sides.append(made.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert sides == [15, 7, 3]


@pytest.mark.parametrize("size", [2, 3, 8, 33, (8, 20)])
@pytest.mark.parametrize("first", ["whitened", "learned"])
def test_any_size_is_trained_on(size: Any, first: str) -> None:
    model = build(size, 1, widths=(4, 8, 8), first=first)
    sides = (size, size) if isinstance(size, int) else size
    assert model(torch.zeros(2, 1, *sides)).shape == (2, 10)
    check_anatomy(model, "head")
    if isinstance(size, int):
        check_shape("airbench", {"widths": (4, 8, 8), "first": first}, size, 1)


def test_a_pixel_and_imagenet_are_refused() -> None:
    with pytest.raises(BuildError, match="at least 2 pixels, got 1"):
        build(1)
    with pytest.raises(BuildError, match="weights: there are no published weights"):
        build(weights="imagenet")


def test_blocks_start_as_the_identity_of_their_inputs() -> None:
    model = build(8, 1, widths=(12,))
    (convolution, *_) = model.get_submodule("block1")
    images = torch.randn(2, 8, 7, 7)
    assert torch.allclose(convolution(images)[:, :8], images, atol=1e-6)


def test_whitened_patches_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    images = functional.avg_pool2d(torch.randn(50, 3, 24, 24), 3, stride=1)
    # The layer takes means to be 0, as those of normalised images are.
    patches = functional.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
    patches = torch.cat([patches, -patches])
    layer = Whitening(3, 24, 2)
    layer.fit([images[:20], images[20:]])
    ours = functional.conv2d(images, layer.weight).flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(ours[:, :12], -ours[:, 12:], atol=1e-5)
    theirs = PCA(whiten=True, svd_solver="full").fit(patches.numpy()).transform(patches[: len(ours)].numpy())
    scales = torch.from_numpy(theirs).std(0) / ours[:, :12].double().std(0)
    for place in range(12):
        cosine = functional.cosine_similarity(ours[:, place].double(), torch.from_numpy(theirs[:, place]), dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-4)
    # Variances of little more than the small number that is added are whitened less.
    assert scales[0] == pytest.approx(1, abs=0.01)
    assert (scales >= 0.99).all()
    assert (layer.weight.abs().max() < 1e3).all()


def test_layer_is_fitted_once_to_the_training_images(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    session = begin(digits)
    assert session.average is not None
    (layer,), (copy,) = whitenings_of(session.model), whitenings_of(session.average.module)
    fitted = Whitening(1, 8, 2)
    train = images[0]
    fitted.fit([train.normalise(pixels) for _, pixels, _ in train.batches([torch.arange(len(train))])])
    list(fit(session, *images, until_epoch=3))
    assert torch.allclose(layer.weight, fitted.weight, atol=1e-4)
    assert torch.allclose(copy.weight, fitted.weight, atol=1e-4)
    assert not whitenings_of(session.model)
    # It takes part in no step, decay or average.
    assert all(layer.weight is not each for group in session.optimizer.param_groups for each in group["params"])


def test_resumed_training_equals_an_undisturbed_one(
    digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    whole, session = begin(digits), begin(digits)
    list(fit(whole, *images, until_epoch=3))
    list(fit(session, *images, until_epoch=1))
    checkpoint.save(session.state_dict(), tmp_path / "state.pt")
    resumed = begin(digits)
    resumed.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    list(fit(resumed, *images, until_epoch=3))
    theirs = whole.deployed.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.deployed.state_dict().items())


def test_weights_of_a_file_bring_their_layer(
    digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    session = begin(digits)
    list(fit(session, *images, until_epoch=1))
    path = tmp_path / "weights.pt"
    torch.save(session.model.state_dict(), path)
    (layer,) = [each for each in session.model.modules() if isinstance(each, Whitening)]
    darker = [replace(each, pixels=each.pixels // 3) for each in images]
    tuned = begin(digits, TEXT.replace("widths: [4, 8]", f"widths: [4, 8], weights: {path}"))
    list(fit(tuned, *darker, until_epoch=1))
    (found,) = [each for each in tuned.model.modules() if isinstance(each, Whitening)]
    assert torch.equal(found.weight, layer.weight)
