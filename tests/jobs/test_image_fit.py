"""Images that are no squares: every part of the program sees the same pixels, for each fit and for oblong sizes."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.cli import app as cli
from imgcls_search.config import TrialConfig
from imgcls_search.data import load, open_test
from imgcls_search.data.stream import Streamed
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.jobs import evaluate
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, evaluation, loop
from imgcls_search.worker import image_sets, networks, pipeline
from PIL import Image, ImageOps

from tests.jobs.test_bundle import cut_photographs

# Large enough that no JPEG is decoded at a fraction, which Pillow does in its own way.
FRAMES = {
    "crop": "{size: 24}",
    "pad": "{size: 24, fit: pad}",
    "squash": "{size: 24, fit: squash}",
    "margin": "{size: 24, margin: 1.25}",
    "oblong margin": "{size: [20, 24], fit: pad, fill: black, margin: 1.25}",
    "oblong crop": "{size: [24, 32]}",
    "oblong pad": "{size: [32, 24], fit: pad, fill: white}",
    "oblong squash": "{size: [24, 32], fit: squash}",
}
TEXT = """
data: {{folder: {{root: photos, val: 0.3, test: 0.2}}}}
image: {image}
model: {{{model}: {{}}}}
training: {{epochs: 1, batch_size: 24}}
"""


@dataclass
class Made:
    top: Path
    config: TrialConfig
    data: Any
    trained_on: np.ndarray
    """What the training saw, [N, C, H, W], before it was augmented."""


def said(*arguments: str) -> str:
    """Run a command in this process, in the working folder, and return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["imgcls-search", *arguments])
        cli.app(standalone_mode=False)
    return out.getvalue()


@pytest.fixture(scope="module", params=FRAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A folder with photographs, weights trained on them as `image` says, and a bundle of these."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        cut_photographs(top / "photos")
        config = parse(TEXT.format(image=FRAMES[request.param], model="lenet5"), catalog(), source="config").config()
        data = pipeline.prepare_data(config, top / "studies" / ".images")
        session = pipeline.new_session(config, data, seed=1, device="cpu")
        train, validation = image_sets.image_sets(data, "train", "cpu")
        list(loop.fit(session, train, validation, until_epoch=1))
        state = {**session.state_dict(), **networks.describe_weights(config, data)}
        checkpoint.save(state, top / "trained" / "best" / "seed-1.pt")
        said("export", "trained/best/seed-1.pt", "--bundle", "model")
        yield Made(top=top, config=config, data=data, trained_on=np.asarray(train.pixels))


def reference(path: Path, section: Mapping[str, Any]) -> np.ndarray:
    """Return what Pillow makes of a file, channels first."""
    size = section["size"]
    sides = (size, size) if isinstance(size, int) else size
    height, width = (round(side * section["margin"]) for side in sides)
    top, left = ((whole - side) // 2 for whole, side in zip((height, width), sides, strict=True))
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    match section["fit"]:
        case "crop":
            found = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        case "squash":
            found = image.resize((width, height), Image.Resampling.BILINEAR)
        case "pad":
            inside = np.asarray(ImageOps.contain(image, (width, height), Image.Resampling.BILINEAR))
            mean = tuple(int(np.floor(value + 0.5)) for value in inside.reshape(-1, 3).mean(axis=0))
            colour = {"mean": mean, "white": (255,) * 3, "black": (0,) * 3}[section["fill"]]
            found = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=colour)
    return np.asarray(found).transpose(2, 0, 1)[:, top : top + sides[0], left : left + sides[1]]


def test_training_evaluation_and_store_see_the_pixels_that_pillow_makes(made: Made) -> None:
    section = made.config.section("image")
    for split in ("train", "val"):
        images = load(made.data, split)
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert np.array_equal(pixels, reference(made.top / "photos" / name, section)), name
    # What crops are cut from has the margin, and the same middle.
    rows, columns = made.data.frame.middle
    assert made.trained_on.shape[2:] == made.data.frame.kept
    assert np.array_equal(made.trained_on[..., rows, columns], load(made.data, "train").pixels)


def test_evaluation_sees_them_too(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.top)
    seen: dict[str, np.ndarray] = {}
    measure = evaluate.measure

    def watched(network: Any, config: Any, data: Any, parts: Any, *more: Any) -> Any:
        for part in parts:
            seen.update(zip(part.names, np.asarray(part.pixels), strict=True))
        return measure(network, config, data, parts, *more)

    monkeypatch.setattr(evaluate, "measure", watched)
    said("evaluate", "trained/best/seed-1.pt", "--split", "all")
    assert len(seen) == 120
    for name, pixels in seen.items():
        assert np.array_equal(pixels, reference(made.top / "photos" / name, made.config.section("image")))


def test_bundle_and_predict_see_the_same_pixels_image_by_image(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.top)
    test = open_test(pipeline.describe(made.config.component("data"), made.top / "cache"), made.data)
    files = [made.top / "photos" / name for name in test.names]
    expected = np.stack([reference(file, made.config.section("image")) for file in files])
    seen: list[np.ndarray] = []
    run = Artifact.answers

    def watched(self: Artifact, pixels: Any) -> Any:
        seen.append(pixels)
        return run(self, pixels)

    monkeypatch.setattr(Artifact, "answers", watched)
    said("predict", "model", *map(str, files))
    assert np.array_equal(np.concatenate(seen), expected)
    assert np.array_equal(np.asarray(test.pixels), expected)
    # Without a line of this program between the pixels and the file.
    session = onnxruntime.InferenceSession(made.top / "model" / "model.onnx")
    (logits,) = session.run(["logits"], {"pixels": expected})
    _, _, trained_on = evaluate.read_network(made.top / "trained" / "best" / "seed-1.pt")
    assert trained_on.frame == made.data.frame
    network = evaluate.read_network(made.top / "trained" / "best" / "seed-1.pt")[0]
    images = replace(test, pixels=expected)
    assert np.allclose(evaluation.predict(network, image_sets.on_device(images, made.data, "cpu")), logits, atol=1e-4)


def test_images_that_are_decoded_in_each_epoch_are_the_same(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.top)
    tree = made.config.to_dict()
    streaming = TrialConfig.from_dict({**tree, "image": {**tree["image"], "cache_gb": 0.0}})
    data = pipeline.prepare_data(streaming, made.top / "elsewhere")
    streamed = load(data, "val")
    assert isinstance(streamed.pixels, Streamed)
    index = np.arange(len(streamed.labels))
    assert np.array_equal(streamed.pixels[index], load(made.data, "val").pixels)
    whole = load(data, "train", whole=True).pixels
    assert np.array_equal(whole[np.arange(len(whole))], made.trained_on)


def test_bundle_says_how_its_images_are_made(made: Made) -> None:
    about = json.loads((made.top / "model" / "bundle.json").read_text())
    section = made.config.section("image")
    is_old = section["margin"] == 1 and section["fit"] == "crop" and isinstance(section["size"], int)
    assert about["format"] == (1 if is_old else 2)
    assert about["input"]["fit"] == section["fit"]
    size = section["size"]
    assert about["input"]["size"] == (size if isinstance(size, int) else list(size))
    assert ("borders" in about["preprocessing"]["crop"]) == (section["fit"] == "pad")
    assert ("whatever the aspect" in about["preprocessing"]["resize"]) == (section["fit"] == "squash")
    height, width = (size, size) if isinstance(size, int) else size
    assert f"[N, 3, {height}, {width}]" in (made.top / "model" / "MODEL_CARD.md").read_text()
