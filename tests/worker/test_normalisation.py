"""`image.mean` and `image.std`: given, of the images, or of the weights; the same wherever an image goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import InputShape, load
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.onnx import export_onnx
from imgcls_search.errors import BuildError, SpaceError
from imgcls_search.executors.helper import Helper
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, loop
from imgcls_search.worker import image_sets, networks, pipeline, start_weights

TEXT = """
data: {{digits: {{max_train: 50}}}}
image: {{{image}}}
model: {{lenet5: {{}}}}
training: {{epochs: 1}}
"""


def config_of(image: str) -> TrialConfig:
    return parse(TEXT.format(image=image), catalog(), source="some.yaml").config()


@pytest.mark.slow
def test_given_numbers_are_those_of_training_weights_and_file(tmp_path: Path) -> None:
    config = config_of("mean: [0.25], std: [0.5]")
    prepared = pipeline.prepare_data(config, tmp_path)
    data = start_weights.with_normalisation(config, prepared)
    assert (data.mean, data.std) == ((0.25,), (0.5,))
    session = pipeline.new_session(config, data, seed=1, device="cpu")
    train, validation = image_sets.image_sets(data, "train", "cpu")
    pixels = torch.from_numpy(np.array(load(data, "train").pixels[:8]))
    assert torch.allclose(train.normalise(pixels), (pixels / 255 - 0.25) / 0.5, atol=1e-6)
    list(loop.fit(session, train, validation, until_epoch=1))
    checkpoint.save({**session.state_dict(), **networks.describe_weights(config, data)}, tmp_path / "a.pt")
    model, _, known = networks.load_weights(checkpoint.load(tmp_path / "a.pt"), "a.pt")
    assert (known.mean, known.std) == ((0.25,), (0.5,))
    export_onnx(model, tmp_path / "a.onnx", shape=known.shape, mean=known.mean, std=known.std)
    with torch.inference_mode():
        expected = model.eval()((pixels / 255 - 0.25) / 0.5)
    assert np.allclose(Artifact.load(tmp_path / "a.onnx").logits(pixels.numpy()), expected, atol=1e-4)


def test_by_default_and_with_data_they_are_those_of_the_training_images(tmp_path: Path) -> None:
    plain = config_of("")
    prepared = pipeline.prepare_data(plain, tmp_path)
    share = np.asarray(load(prepared, "train").pixels) / 255
    for image in ("", "mean: data, std: data", "mean: data, std: auto"):
        found = start_weights.with_normalisation(config_of(image), prepared)
        assert found.mean == pytest.approx([share.mean()])
        assert found.std == pytest.approx([share.std()])
    mixed = start_weights.with_normalisation(config_of("mean: [0.5]"), prepared)
    assert (mixed.mean, mixed.std) == ((0.5,), prepared.std)


def test_one_number_is_for_all_channels(tmp_path: Path) -> None:
    config = config_of("channels: 3, mean: [0.5], std: [0.1, 0.2, 0.3]")
    data = start_weights.with_normalisation(config, pipeline.prepare_data(config, tmp_path))
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("image", "mean", "std"),
    [
        ("", "theirs", "theirs"),
        ("mean: weights, std: weights", "theirs", "theirs"),
        ("mean: data, std: data", "ours", "ours"),
        ("mean: data", "ours", "theirs"),
        ("mean: [0.125], std: weights", "given", "theirs"),
    ],
)
def test_weights_bring_theirs_unless_told_otherwise(tmp_path: Path, image: str, mean: str, std: str) -> None:
    first = config_of("mean: [0.75], std: [0.25]")
    tree = {**first.to_dict(), "model": {"vit": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}}}
    trained = TrialConfig.from_dict(tree)
    data = start_weights.with_normalisation(trained, pipeline.prepare_data(trained, tmp_path))
    session = pipeline.new_session(trained, data, seed=1, device="cpu")
    checkpoint.save({**session.state_dict(), **networks.describe_weights(trained, data)}, tmp_path / "a.pt")
    arguments = {**tree["model"]["vit"], "weights": str(tmp_path / "a.pt")}
    config = TrialConfig.from_dict({**config_of(image).to_dict(), "model": {"vit": arguments}})
    prepared = pipeline.prepare_data(config, tmp_path)
    found = start_weights.with_normalisation(config, prepared)
    assert found.mean == {"theirs": (0.75,), "ours": prepared.mean, "given": (0.125,)}[mean]
    assert found.std == {"theirs": (0.25,), "ours": prepared.std}[std]


def test_grey_images_take_the_average_of_weights_that_do_not_say_theirs(tmp_path: Path) -> None:
    tree = {**config_of("").to_dict(), "model": {"vit": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}}}
    plain = TrialConfig.from_dict(tree)
    data = pipeline.prepare_data(plain, tmp_path)
    torch.save(pipeline.new_session(plain, data, seed=1, device="cpu").model.state_dict(), tmp_path / "plain.pt")
    arguments = {**tree["model"]["vit"], "weights": str(tmp_path / "plain.pt")}
    config = TrialConfig.from_dict({**tree, "model": {"vit": arguments}})
    found = start_weights.with_normalisation(config, data)
    assert found.mean == pytest.approx((np.mean([0.485, 0.456, 0.406]),))
    assert found.std == pytest.approx((np.mean([0.229, 0.224, 0.225]),))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            "mean: [0.5, 0.5]",
            "[0.5, 0.5] has 2 numbers, but the images have 1 channel; allowed: 1 number",
        ),
        ("std: [0.5, 0.5, 0.5]", "image.std: [0.5, 0.5, 0.5] has 3 numbers"),
        ("mean: weights", "image.mean: 'weights' needs pretrained weights, but the model starts from none"),
    ],
)
def test_numbers_that_are_not_there_are_refused_before_any_training(tmp_path: Path, image: str, words: str) -> None:
    shape = InputShape(image_size=8, channels=1, classes=10)
    helper = Helper(tmp_path)
    try:
        with pytest.raises(BuildError) as error:
            helper.measure(config_of(image), shape)
        # An answer that was refused is no answer to others.
        assert helper.measure(config_of(""), shape)["params"] > 0
    finally:
        helper.close()
    assert words in str(error.value)


@pytest.mark.parametrize("image", ["mean: [124, 116, 104]", "std: [0]", "mean: imagenet", "mean: 0.5", "mean: []"])
def test_other_words_are_one_line(image: str) -> None:
    with pytest.raises(SpaceError) as error:
        config_of(image)
    (line,) = str(error.value).splitlines()
    assert line.startswith("some.yaml:3:")
