"""What a bundle says of its own answers: calibrated in the file, refused where unsure, unlike pictures, views."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search import digests
from imgcls_search.catalog import catalog
from imgcls_search.cli import app as cli
from imgcls_search.data import Images, Prepared, load
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.deploy.unlike import fit
from imgcls_search.probabilities import softmax
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, evaluation, loop
from imgcls_search.training.calibration import confidences, fit_temperature
from imgcls_search.training.images import ImageSet
from imgcls_search.training.refusing import lower_bound
from imgcls_search.worker import finish, image_sets, networks, pipeline
from PIL import Image

from tests.conftest import Answer

# Smoothed labels make a network less sure than it is right: its temperature is below 1.
CONFIG = """
data: {digits: {}}
model: {lenet5: {}}
optimizer: {adamw: {lr: 5e-3}}
loss: {cross_entropy: {label_smoothing: 0.2}}
training: {epochs: 5, batch_size: 32}
"""

Run = Callable[..., Answer]


def train(top: Path) -> None:
    config = parse(CONFIG, catalog(), source="config").config()
    data = pipeline.prepare_data(config, top / "studies" / ".images")
    session = pipeline.new_session(config, data, seed=1, device="cpu")
    list(loop.fit(session, *image_sets.image_sets(data, "train", "cpu"), until_epoch=5))
    state = {**session.state_dict(), **networks.describe_weights(config, data)}
    checkpoint.save(state, top / "trained" / "best" / "seed-1.pt")
    report = {"trained_on": "train", "origin": None, "seeds": [1], "test": {}, "summary": {}}
    (top / "trained" / "best" / "metrics.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and bundles: a plain one, one that promises 0.95, one that looks at mirrored images too."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        train(top)
        export = ["imgcls-search", "export", "trained/best/seed-1.pt", "--bundle"]
        for more in (["model"], ["promise", "--target-precision", "0.95"], ["views", "--tta", "mirror"]):
            patch.setattr(sys, "argv", [*export, *more])
            cli.app(standalone_mode=False)
    return top


@pytest.fixture
def here(here: Run, made: Path, tmp_path: Path) -> Run:
    """Run the command line in this process, in a folder with all that was made and some scans."""
    for name in ("model", "promise", "views", "trained"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "studies", tmp_path / "studies")
    (tmp_path / "scans").mkdir()
    images, *_ = validation(made)
    for number in range(40):
        Image.fromarray(np.asarray(images.pixels[np.array([number])])[0, 0]).save(
            tmp_path / "scans" / f"{number:02}.png"
        )
    return here


def validation(top: Path) -> tuple[Images, np.ndarray[Any, Any], Any, Prepared]:
    """The validation images, torch's logits of them, the network, and the data set."""
    config = parse(CONFIG, catalog(), source="config").config()
    data = pipeline.prepare_data(config, top / "studies" / ".images")
    images = load(data, "val")
    model, _, known = networks.load_weights(checkpoint.load(top / "trained" / "best" / "seed-1.pt"), "")
    return images, evaluation.predict(model, image_sets.on_device(images, known, "cpu")), model, known


def facts(top: Path, name: str) -> Any:
    return json.loads((top / name / "metrics.json").read_text())


def test_the_file_itself_gives_calibrated_probabilities(made: Path) -> None:
    images, logits, *_ = validation(made)
    found = facts(made, "model")["sureness"]["calibration"]
    temperature = found["temperature"]
    assert found["is_calibrated"]
    assert temperature < 0.9
    assert temperature == pytest.approx(fit_temperature(logits, images.labels), rel=1e-3)
    served = Artifact.load(made / "model" / "model.onnx").logits(images.pixels)
    np.testing.assert_allclose(served, logits / temperature, atol=1e-3)
    assert (served.argmax(1) == logits.argmax(1)).all()
    # What is stated is of images that the temperature was not fitted on; on the others the file is a bit better.
    (score, *_) = facts(made, "model")["scores"]
    assert score["loss"] < found["held_out"]["loss"] < found["before"]["loss"]
    assert json.loads((made / "model" / "bundle.json").read_text())["format"] == 1
    card = (made / "model" / "MODEL_CARD.md").read_text()
    assert f"a temperature of {temperature:.4g}" in card
    for figure in (found["before"]["error"], found["held_out"]["error"]):
        assert f"(15 bins of equally many images) {figure:.4f}" in card


def test_below_a_confidence_predict_is_unsure(here: Run) -> None:
    plain = json.loads(here("predict", "model", "scans", "--json", "--top", "1").out)["predictions"]
    shares = [entry["classes"][0]["probability"] for entry in plain]
    assert all("unsure" not in entry for entry in plain)
    level = sorted(shares)[7]
    answer = here("predict", "model", "scans", "--json", "--min-confidence", str(level))
    assert answer.err == ""
    said = [entry["unsure"] for entry in json.loads(answer.out)["predictions"]]
    assert said == [share < level for share in shares]
    assert sum(said) == 7
    lines = here("predict", "model", "scans", "--min-confidence", str(level)).out.splitlines()
    assert [": unsure (" in line for line in lines] == said


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan"])
def test_a_confidence_that_is_none_is_one_line(here: Run, value: str) -> None:
    answer = here("predict", "model", "scans", f"--min-confidence={value}")
    assert answer.code == 2
    assert answer.err.startswith("error: --min-confidence")
    assert len(answer.err.splitlines()) == 1


def test_a_promise_is_kept_by_the_smallest_threshold(made: Path, here: Run) -> None:
    images, logits, *_ = validation(made)
    found = facts(made, "promise")["sureness"]
    shares = softmax(logits / found["calibration"]["temperature"])
    confidence, right = confidences(shares, images.labels)
    kept = [
        level
        for level in confidence
        if lower_bound(int(right[confidence >= level].sum()), int((confidence >= level).sum())) >= 0.95
    ]
    assert found["refusal"]["min_confidence"] == pytest.approx(min(kept), abs=1e-4)
    assert found["refusal"]["answered"] == (confidence >= min(kept)).sum()
    assert found["refusal"]["lower_bound_95"] >= 0.95
    about = json.loads((made / "promise" / "bundle.json").read_text())
    # Earlier versions would answer.
    assert about["format"] == 5
    said = json.loads(here("predict", "promise", "scans", "--json").out)["predictions"]
    level = about["refusal"]["min_confidence"]
    assert [entry["unsure"] for entry in said] == [entry["classes"][0]["probability"] < level for entry in said]
    card = (made / "promise" / "MODEL_CARD.md").read_text()
    assert "For a precision of 0.95 `predict` says 'unsure' below a confidence of" in card
    assert "| confidence | answered | right of these | lower 95 % bound |" in card


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0.99", "needs at least 299 validation images, all of them right; there are 216"),
        ("1", "not allowed; allowed: a number above 0 and below 1"),
        ("nan", "not allowed"),
        ("0.985", "no threshold reaches it on 216 validation images; the highest lower 95 % bound is"),
    ],
)
def test_a_promise_that_cannot_be_made_is_one_line(here: Run, tmp_path: Path, value: str, said: str) -> None:
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "other", "--target-precision", value)
    assert answer.code == 2, answer
    assert answer.err.splitlines()[-1].startswith("error: --target-precision")
    assert said in answer.err
    assert not list(tmp_path.glob("*other*"))


def test_images_that_were_trained_on_calibrate_nothing(here: Run, tmp_path: Path) -> None:
    report = tmp_path / "trained" / "best" / "metrics.json"
    report.write_text(report.read_text().replace('"train"', '"train+val"'))
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "other", "--target-precision", "0.9")
    assert answer.code == 2
    assert "may have been trained on" in answer.err.splitlines()[-1]
    assert here("export", "trained/best/seed-1.pt", "--bundle", "other").code == 0
    found = facts(tmp_path, "other")["sureness"]
    assert found["calibration"]["temperature"] == 1
    assert found["unlike"] is None
    assert "Probabilities are not calibrated" in (tmp_path / "other" / "MODEL_CARD.md").read_text()


def test_options_of_a_bundle_go_with_a_bundle(here: Run) -> None:
    for option in (("--target-precision", "0.9"), ("--tta", "mirror")):
        answer = here("export", "study", "-o", "best.yaml", *option)
        assert answer.code == 2
        assert answer.err == f"error: {option[0]}: has no effect without --bundle\n"


def test_one_validation_image_in_twenty_is_called_unlike(made: Path, here: Run) -> None:
    images, _, model, data = validation(made)
    found = facts(made, "model")["sureness"]["unlike"]
    assert found["score"] == "feature_distance"
    # Of torch's features of the same images.
    seen: list[torch.Tensor] = []
    head = model.get_submodule(model.anatomy.head)
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1)))
    sets = [load(data, "train"), images]
    features = []
    for part in sets:
        seen.clear()
        evaluation.predict(model, image_sets.on_device(part, data, "cpu"))
        features.append(torch.cat(seen).double().numpy())
    hook.remove()
    scores = fit(features[0]).distance(features[1])  # type: ignore[union-attr]
    limit = found["threshold"]
    assert 0.03 < (scores > limit * (1 + 1e-4)).mean() <= 0.05
    said = json.loads(here("predict", "model", "scans", "--json").out)["predictions"]
    assert [entry["unlikeness"] for entry in said] == pytest.approx(scores[:40], rel=1e-3)
    assert [entry["unlike"] for entry in said] == [entry["unlikeness"] > limit for entry in said]
    lines = here("predict", "model", "scans").out.splitlines()
    assert ["unlike the training images" in line for line in lines] == [entry["unlike"] for entry in said]


def test_pictures_of_something_else_are_called_unlike(made: Path, here: Run, tmp_path: Path) -> None:
    (tmp_path / "inverted").mkdir()
    for path in (tmp_path / "scans").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(tmp_path / "inverted" / path.name)
    for name in ("model", "views"):
        shares = []
        for folder in ("scans", "inverted"):
            said = json.loads(here("predict", name, folder, "--json").out)["predictions"]
            shares.append(np.mean([entry["unlike"] for entry in said]))
        assert shares[1] > max(0.3, 3 * shares[0]), name


def test_views_are_averaged_inside_of_the_file_and_by_predict(made: Path, here: Run) -> None:
    images, logits, model, data = validation(made)
    flipped = image_sets.on_device(images, data, "cpu")
    mirrored = ImageSet(
        pixels=np.ascontiguousarray(np.asarray(images.pixels)[..., ::-1]),
        labels=flipped.labels,
        mean=data.mean,
        std=data.std,
        device="cpu",
    )
    mean = (logits + evaluation.predict(model, mirrored)) / 2
    found = facts(made, "views")
    temperature = found["sureness"]["calibration"]["temperature"]
    served = Artifact.load(made / "views" / "model.onnx").logits(images.pixels)
    np.testing.assert_allclose(served, mean / temperature, atol=1e-3)
    assert found["tta"]["count"] == 2
    assert found["tta"]["median_ms_without"] > 0
    assert "test-time augmentation (mirror)" in (made / "views" / "MODEL_CARD.md").read_text()
    answer = here("predict", "model", "scans", "--tta", "mirror", "--json", "--top", "1")
    said = [entry["classes"][0]["probability"] for entry in json.loads(answer.out)["predictions"]]
    plain = facts(made, "model")["sureness"]["calibration"]["temperature"]
    assert said == pytest.approx(softmax(mean / plain).max(axis=1)[:40], abs=1e-4)
    assert "test-time augmentation (mirror): 2 views, about" in answer.err


def test_a_bundle_of_an_earlier_version_goes_on(here: Run, tmp_path: Path) -> None:
    about = json.loads((tmp_path / "model" / "bundle.json").read_text())
    for name in ("calibration", "unlike"):
        del about[name]
    (tmp_path / "model" / "bundle.json").write_text(json.dumps(about))
    answer = here("predict", "model", "scans", "--json")
    assert answer.code == 0
    assert answer.err == ""
    assert json.loads(answer.out)["predictions"][0].keys() == {"image", "classes"}
    asked = here("predict", "model", "scans", "--min-confidence", "0.9")
    assert asked.code == 0
    assert asked.err.splitlines()[0] == "model: its probabilities are not calibrated"


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": []},
        {"calibration": {"temperatures": [-1242]}},
        {"calibration": {"temperatures": [1, 2]}},
        {"calibration": {"temperatures": ["1"]}},
        {"refusal": {"min_confidence": 2}},
        {"refusal": {"min_confidence": 0.5}},
        {"refusal": 3},
        {"unlike": {"score": "magic", "threshold": 1}},
        {"unlike": {"score": "feature_distance", "threshold": None}},
    ],
)
def test_spoiled_statements_are_one_line(here: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "model" / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    answer = here("predict", "model", "scans")
    assert answer.code == 2, answer
    assert len(answer.err.splitlines()) == 1
    assert "bundle.json" in answer.err


def test_evaluate_measures_worse_pictures_and_views(here: Run, made: Path) -> None:
    answer = here("evaluate", "trained/best/seed-1.pt", "--json", "--tta", "shift", "--corruptions")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    table = found["corruptions"]
    names = ("gaussian_noise", "gaussian_blur", "jpeg_compression", "brightness", "contrast")
    assert {name: list(row) for name, row in table.items()} == {name: ["1", "3", "5"] for name in names}
    values = [value for row in table.values() for value in row.values()]
    assert found["metrics"]["corruption_accuracy"] == pytest.approx(np.mean(values))
    assert found["metrics"]["corruption_accuracy"] < found["tta"]["metrics_without"]["accuracy"]
    assert found["tta"]["count"] == 5
    assert found["tta"]["image_ms"] > found["tta"]["image_ms_without"] > 0
    without = here("evaluate", "trained/best/seed-1.pt")
    assert "corruption" not in without.out
    # The same numbers again.
    again = here("evaluate", "trained/best/seed-1.pt", "--json", "--corruptions")
    assert json.loads(again.out)["corruptions"] == table


def test_an_exported_network_is_measured_on_worse_pictures_too(made: Path) -> None:
    images, _, model, data = validation(made)
    of_torch = evaluation.corruptions(model, image_sets.on_device(images, data, "cpu"))
    of_file = finish.corruptions(Artifact.load(made / "model" / "model.onnx"), images)
    assert of_file == pytest.approx(of_torch, abs=1.01 / len(images.labels))


def test_digests_are_of_the_finished_file(made: Path) -> None:
    about = json.loads((made / "views" / "bundle.json").read_text())
    assert about["files"]["model"]["sha256"] == digests.of_file(made / "views" / "model.onnx")
