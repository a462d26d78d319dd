"""A trained network as a folder that serves alone: exported, described, and used on image files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
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
from imgcls_search.compress.quantize import quantize
from imgcls_search.data import load
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.jobs.bundle import deliver
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, evaluation, loop
from imgcls_search.worker import image_sets, networks, pipeline
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.conftest import Answer

CONFIG = """
data: {folder: {root: photos}}
image: {size: 16, channels: 3}
model: {lenet5: {}}
optimizer: {adamw: {lr: 3e-3}}
training: {epochs: 3, batch_size: 16}
"""

Run = Callable[..., Answer]


def cut_photographs(folder: Path) -> None:
    """Cut two photographs into small ones, none of them square, one turned by its EXIF tag only."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            x, y = rng.integers(0, 500), rng.integers(0, 300)
            part = Image.fromarray(photo).crop((x, y, x + 50 + number, y + 80))
            exif = Image.Exif()
            exif[274] = 6 if number == 0 else 1
            part.save(folder / name / f"{number:02d}.jpg", exif=exif)


def train(top: Path) -> None:
    """Train for a moment and save the weights as `train` does."""
    config = parse(CONFIG, catalog(), source="config").config()
    data = pipeline.prepare_data(config, top / "studies" / ".images")
    session = pipeline.new_session(config, data, seed=1, device="cpu")
    images = image_sets.image_sets(data, "train", "cpu")
    list(loop.fit(session, *images, until_epoch=3))
    state = {**session.state_dict(), **networks.describe_weights(config, data)}
    checkpoint.save(state, top / "trained" / "best" / "seed-1.pt")
    report = {
        "trained_on": "train",
        "origin": None,
        "seeds": [1],
        "test": {"1": {"accuracy": 0.75, "macro_f1": 0.7}},
        "summary": {},
    }
    (top / "trained" / "best" / "metrics.json").write_text(json.dumps(report))


def noise() -> np.ndarray[Any, Any]:
    """Return images of the shape that the network takes."""
    return np.random.default_rng(0).integers(0, 256, (70, 3, 16, 16)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(photos_and_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, weights trained on them, and a bundle of these."""
    top = shutil.copytree(photos_and_weights, tmp_path_factory.mktemp("made"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        patch.setattr(sys, "argv", ["imgcls-search", "export", "trained/best/seed-1.pt", "--bundle", "model"])
        cli.app(standalone_mode=False)
    return top


@pytest.fixture
def here(here: Run, made: Path, tmp_path: Path) -> Run:
    """Run the command line in this process, in a folder with all that was made, to be spoiled at will."""
    for name in ("photos", "model", "trained"):
        shutil.copytree(made / name, tmp_path / name)
    return here


def is_one_line(answer: Answer) -> bool:
    return answer.code == 2 and len(answer.err.splitlines()) == 1 and answer.err.startswith("error: ")


def test_bundle_says_what_it_is(made: Path) -> None:
    folder = made / "model"
    names = ["MODEL_CARD.md", "bundle.json", "config.yaml", "labels.json", "metrics.json", "model.onnx"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert not [path.name for path in made.iterdir() if "tmp" in path.name]
    assert json.loads((folder / "labels.json").read_text()) == ["china", "flower"]
    config = parse((folder / "config.yaml").read_text(), catalog(), source="config.yaml")
    assert config.config() == parse(CONFIG, catalog(), source="config").config()
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["parity"]["equal_top1"] == facts["parity"]["images"] == facts["data"]["counts"]["val"] > 10
    assert 0 <= facts["parity"]["max_difference"] < 1e-3
    card = (folder / "MODEL_CARD.md").read_text()
    for said in (
        "lenet5 network of",
        "`folder: photos`",
        "`china`, `flower`",
        "| this file | validation |",
        "| the same weights, by train | test |",
        "95 % interval",
        "logits differ by at most",
        "onnxruntime",
        "one thread, batch of 1",
        "imgcls-search predict",
        "not calibrated",
    ):
        assert said in card
    # Nothing of the folders of this machine.
    assert str(made) not in "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".onnx")


LEAN = """
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from re import match

wanted, installed = sys.argv[1].split(), set()
while wanted:
    name = wanted.pop().lower().replace("_", "-")
    if name not in installed:
        installed.add(name)
        try:
            needs = [need for need in requires(name) or () if "extra ==" not in need]
        except PackageNotFoundError:  # of another platform
            needs = []
        wanted += [match(r"[\\w.-]+", need)[0] for need in needs]
owners = packages_distributions()

class Lean(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        of = {owner.lower().replace("_", "-") for owner in owners.get(name, ())}
        if of and not of & (installed | {"imgcls-search"}):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lean())
sys.argv[:2] = ["imgcls-search"]
from imgcls_search.cli.app import main
main()
"""
"""Runs a command as in an environment that has only the given packages, those that they need, and this one."""


def lean(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment that the how-to page describes."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "predict-without-pytorch.md").read_text()
    (packages,) = re.findall(r"^pip install ([a-z ]+)$", page, re.MULTILINE)
    return subprocess.run([sys.executable, "-c", LEAN, packages, *arguments], capture_output=True, text=True, cwd=cwd)


def test_recorded_accuracy_is_a_fresh_process_s_to_the_last_image(made: Path, here: Run) -> None:
    """Image files given to `predict`, in a process without torch, against what the training's arrays gave."""
    config = parse(CONFIG, catalog(), source="config").config()
    images = load(pipeline.prepare_data(config, made / "studies" / ".images"), "val")
    paths = [f"photos/{name}" for name in images.names]
    done = lean("predict", "model", *paths, "--json", cwd=made)
    assert done.stderr == ""
    found = json.loads(done.stdout)["predictions"]
    assert [entry["image"] for entry in found] == paths
    labels = [["china", "flower"].index(entry["classes"][0]["label"]) for entry in found]
    right = int((np.array(labels) == images.labels).sum())
    (score, _) = json.loads((made / "model" / "metrics.json").read_text())["scores"]
    assert right == round(score["accuracy"] * score["images"])
    assert right < len(labels) or score["accuracy"] == 1
    # Probabilities are torch's, on images decoded by the data layer.
    model, _, data = networks.load_weights(checkpoint.load(made / "trained" / "best" / "seed-1.pt"), "")
    logits = torch.from_numpy(evaluation.predict(model, image_sets.on_device(images, data, "cpu")))
    for entry, row in zip(found, logits.softmax(1), strict=True):
        assert entry["classes"][0]["probability"] == pytest.approx(float(row.max()), abs=1e-5)
        assert sum(each["probability"] for each in entry["classes"]) == pytest.approx(1)


def test_commands_that_need_more_packages_say_so_in_one_line(made: Path) -> None:
    for command in (("evaluate", "trained/best/seed-1.pt"), ("run", "vit"), ("auto", "photos"), ("list",)):
        done = lean(*command, cwd=made)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        expected = r"error: this command needs the Python package \w+, which is not installed; .*\n"
        assert re.fullmatch(expected, done.stderr), done.stderr


def test_predict_takes_folders_and_skips_what_is_no_image(here: Run, tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    shutil.copy(tmp_path / "photos" / "china" / "03.jpg", tmp_path / "more" / "deep" / "b.jpg")
    Image.new("RGBA", (5, 900), (9, 9, 9, 0)).save(tmp_path / "more" / "a.png")
    Image.new("F", (30, 30)).save(tmp_path / "more" / "float.tiff")
    (tmp_path / "more" / "c.jpg").write_bytes((tmp_path / "photos" / "china" / "03.jpg").read_bytes()[:300])
    (tmp_path / "more" / "d.png").write_text("no image")
    (tmp_path / "more" / "notes.txt").write_text("not looked at")
    (tmp_path / "empty").mkdir()
    answer = here("predict", "model", "more", "empty", "missing.jpg", "model/model.onnx", "--top", "1")
    assert answer.code == 0
    assert [line.split(": ")[0] for line in answer.out.splitlines()] == ["more/a.png", "more/deep/b.jpg"]
    assert all(len(line.split(": ")[1].split(", ")) == 1 for line in answer.out.splitlines())
    header, told, *skipped, summary = answer.err.splitlines()
    assert header == "model: 2 classes, colour images of 16x16 pixels"
    assert summary.startswith("2 images: ")
    assert summary.endswith("; 6 skipped")
    assert told == "more: not counted: 1 x file ending in .txt (notes.txt)"
    reasons = dict(line.split(": ")[1:3] for line in skipped)
    assert reasons.keys() == {"more/c.jpg", "more/d.png", "more/float.tiff", "empty", "missing.jpg", "model/model.onnx"}
    assert reasons["more/d.png"] == reasons["model/model.onnx"] == "not an image"
    assert reasons["missing.jpg"] == "No such file or directory"
    assert "no image in this folder" in reasons["empty"]
    assert "floats" in reasons["more/float.tiff"]


def test_predict_with_nothing_readable_exits_1(here: Run) -> None:
    answer = here("predict", "model", "missing.jpg", "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["skipped"] == [{"image": "missing.jpg", "reason": "No such file or directory"}]
    assert answer.err.splitlines()[-1] == "error: model: no image could be read (1 file tried)"


def test_printed_lines_hold_no_control_characters(here: Run, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "photos" / "china" / "03.jpg", tmp_path / "a\x1b[31m\n.jpg")
    answer = here("predict", "model", "a\x1b[31m\n.jpg")
    assert answer.code == 0
    assert answer.out.isprintable() or answer.out[:-1].isprintable()


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def named(role: str, name: Any) -> Callable[[Path], None]:
    def change(about: Any) -> Any:
        about["files"][role]["name"] = name
        return about

    return lambda folder: edit(folder / "bundle.json", change)


def sized(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "bundle.json", lambda about: about | {"input": about["input"] | values})


def relabelled(folder: Path) -> None:
    """Exchange the labels and mend the checksum, as somebody would who means it."""

    (folder / "labels.json").write_text('["a", "b", "c"]')
    about = json.loads((folder / "bundle.json").read_text())
    about["files"]["labels"]["sha256"] = digests.of_file(folder / "labels.json")
    (folder / "bundle.json").write_text(json.dumps(about))


def linked(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "outside.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "outside.onnx")


def described_elsewhere(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "outside.json")
    (folder / "bundle.json").symlink_to(folder.parent / "outside.json")


def circled(folder: Path) -> None:
    (folder / "labels.json").unlink()
    (folder / "labels.json").symlink_to("labels.json")


def split_up(folder: Path) -> None:
    """Move a tensor to a file in the working folder, named without a folder, and mend the checksum."""
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    tensor = model.graph.initializer[0]
    (folder.parent / "secret.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "secret.bin")
    tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    about = json.loads((folder / "bundle.json").read_text())
    about["files"]["model"]["sha256"] = digests.of_file(folder / "model.onnx")
    (folder / "bundle.json").write_text(json.dumps(about))


def without(section: str, name: str) -> Callable[[Any], Any]:
    return lambda about: {**about, section: {key: value for key, value in about[section].items() if key != name}}


def within(section: str, name: str, value: Any) -> Callable[[Any], Any]:
    """Return a change of a value, or of some values of a section."""

    def change(about: Any) -> Any:
        before = about[section][name]
        is_section = section == "config" and name in ("training", "image")
        return {**about, section: {**about[section], name: {**before, **value} if is_section else value}}

    return change


def without_setting(section: str, name: str) -> Callable[[Any], Any]:
    return lambda about: {**about, "config": without(section, name)(about["config"])}


def deep() -> Any:
    value: list[Any] = []
    for _ in range(900):
        value = [value]
    return value


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, "no such folder"),
    "no description": (lambda folder: (folder / "bundle.json").unlink(), "bundle.json: missing"),
    "no JSON": (lambda folder: (folder / "bundle.json").write_bytes(b"\xff{"), "damaged, not JSON"),
    "deep JSON": (lambda folder: (folder / "bundle.json").write_text("[" * 200_000), "damaged, not JSON"),
    "huge JSON": (lambda folder: (folder / "bundle.json").write_bytes(b" " * (2**24 + 1)), "bytes are too many"),
    "a list": (lambda folder: (folder / "bundle.json").write_text("[]"), "not a bundle of format 1"),
    "next format": (
        lambda folder: edit(folder / "bundle.json", lambda a: a | {"format": 2}),
        "not a bundle of format 1",
    ),
    "no files": (lambda folder: edit(folder / "bundle.json", lambda a: a | {"files": 3}), "files.model: names no file"),
    "above": (named("model", "../model/model.onnx"), "is not the name of a file in the bundle"),
    "absolute": (named("labels", "/etc/passwd"), "is not the name of a file in the bundle"),
    "windows": (named("labels", "..\\labels.json"), "is not the name of a file in the bundle"),
    "dots": (named("labels", ".."), "is not the name of a file in the bundle"),
    "number": (named("labels", 7), "files.labels: names no file"),
    "no text": (named("labels", "\ud800"), "is a link that leads out of the bundle"),
    "link": (linked, "is a link that leads out of the bundle"),
    "description is a link": (described_elsewhere, "bundle.json is a link that leads out of the bundle"),
    "link to itself": (circled, "is a link that leads out of the bundle"),
    "tensor in another file": (split_up, "is in another file (external data)"),
    "no model": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx: missing"),
    "no card": (lambda folder: (folder / "MODEL_CARD.md").unlink(), "MODEL_CARD.md: missing"),
    "cut model": (
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-9]),
        "model.onnx: damaged",
    ),
    "other labels": (lambda folder: (folder / "labels.json").write_text("[]"), "labels.json: damaged, or changed"),
    "more labels": (relabelled, "the model has 2 classes, but 3 labels"),
    "other size": (sized(size=8), "bundle.json says (3, 8, 8)"),
    "huge size": (sized(size=10**9), "input.size: 1000000000 is not allowed; allowed: 1 to 4096"),
    "two channels": (sized(channels=2), "input.channels: 2 is not allowed; allowed: 1, 3"),
    "true size": (sized(size=True), "input.size: True is not allowed"),
    "true format": (
        lambda folder: edit(folder / "bundle.json", lambda a: a | {"format": True}),
        "not a bundle of format 1",
    ),
    "other layout": (sized(layout="NHWC"), "input.layout: 'NHWC' is not allowed; allowed: \"NCHW\""),
    "other range": (sized(range=[0, 1]), "input.range: [0, 1] is not allowed; allowed: [0, 255]"),
    "normalised": (
        lambda folder: edit(folder / "bundle.json", lambda a: a | {"normalisation": {"in_model": 1}}),
        "normalisation.in_model: 1 is not allowed; allowed: true",
    ),
    "huge temperature": (
        lambda folder: edit(folder / "bundle.json", lambda a: a | {"calibration": {"temperatures": [10**400]}}),
        "calibration.temperatures: [1000",
    ),
    "other output": (
        lambda folder: edit(folder / "bundle.json", lambda a: a | {"output": [1]}),
        "bundle.json: output: damaged",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_bundle_is_one_line(case: str, here: Run, tmp_path: Path) -> None:
    spoil, said = SPOILED[case]
    spoil(tmp_path / "model")
    answer = here("predict", "model", "photos/china/03.jpg")
    assert is_one_line(answer), answer
    assert said in answer.err
    assert answer.out == ""


DESCRIBED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a list": (lambda about: [], "(TypeError)"),
    "deep": (lambda about: {**about, "shapes": deep()}, "not a trained model of this program ("),
    "no data": (without("config", "data"), "data: is missing"),
    "two data sets": (within("config", "data", {"folder": {}, "digits": {}}), "data: "),
    "data of nothing": (within("config", "data", {}), "data: "),
    "epochs": (within("config", "training", {"epochs": "many"}), "("),
    "cache": (within("config", "image", {"cache_gb": "x"}), "image.cache_gb: "),
    "digits": (within("config", "data", {"digits": {"val": {}}}), "data.digits.val: "),
    "loss": (within("config", "loss", {"cross_entropy": {"label_smoothing": 10**400}}), "loss.cross_entropy"),
    "section of nothing": (within("config", "predict", None), "predict: None is not as a training saves it"),
    "short form": (within("config", "data", "digits"), "data: 'digits' is not as a training saves it"),
    "short form within": (within("config", "loss", {"cross_entropy": None}), "loss.cross_entropy: None is not as"),
    "choice": (within("config", "image", {"margin": {"choice": [1.0, 1.2]}}), "image.margin: "),
    "choice of one": (within("config", "image", {"margin": {"choice": [1.0]}}), "image.margin: "),
    "no device": (without_setting("training", "device"), "training.device: is missing"),
    "no size": (without_setting("image", "size"), "image.size: is missing"),
    "no channels": (without_setting("image", "channels"), "image.channels: is missing"),
    "no deviation": (within("data", "std", [0.0, 0.1, 0.1]), "(ValueError)"),
    "mean": (within("data", "mean", ["x", 0.1, 0.1]), "(ValueError)"),
    "size": (within("data", "image_size", 16.0), "("),
    "classes": (within("data", "classes", "ab"), "(ValueError)"),
    "counts": (within("data", "counts", {"train": -1}), "(ValueError)"),
    "fit": (within("data", "fit", "stretch"), "(ValueError)"),
    "thresholds": (within("data", "thresholds", [0.5]), "(ValueError)"),
    "stream": (within("data", "streamed_from", {"name": 3}), "(ValueError)"),
}
"""Changes to the description in a weights file that is saved again, and what is said."""


@pytest.mark.parametrize("case", DESCRIBED)
def test_weights_with_a_damaged_description_are_one_line(case: str, here: Run, tmp_path: Path) -> None:
    change, said = DESCRIBED[case]
    file = tmp_path / "trained/best/seed-1.pt"
    state = torch.load(file, weights_only=True)
    # Without the digest that this program adds.
    torch.save({**state, "about": json.dumps(change(json.loads(state["about"])))}, file)
    for command in (("evaluate", file), ("export", file, "--bundle", "another")):
        answer = here(*command)
        assert is_one_line(answer), answer
        assert "seed-1.pt: not a trained model of this program" in answer.err
        assert said in answer.err
    assert not (tmp_path / "another").exists()


def test_card_may_be_edited(here: Run, tmp_path: Path) -> None:
    (tmp_path / "model" / "MODEL_CARD.md").write_text("mine")
    assert here("predict", "model", "photos/china/03.jpg").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trained/best/seed-1.pt",), "needs either -o FILE"),
        (("trained/best/seed-1.pt", "--bundle", "model", "-o", "x.yaml"), "needs either -o FILE"),
        (("trained/best/seed-1.pt", "--bundle", "model"), "model: exists already"),
        (("trained/best/seed-1.pt", "--bundle", "trained/best/seed-1.pt/x"), "cannot be written"),
        (("trained/best/seed-1.pt", "--bundle", "new", "--trial", "3"), "--trial needs the name of a study"),
        (("trained/best/seed-2.pt", "--bundle", "new"), "no such weights file"),
        (("nothing", "--bundle", "new"), "no such study"),
    ],
)
def test_export_that_cannot_be_is_one_line(arguments: tuple[str, ...], said: str, here: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    answer = here("export", *arguments)
    assert is_one_line(answer), answer
    assert said in answer.err
    assert sorted(tmp_path.iterdir()) == before


def rescore(top: Path, change: Callable[[Any], Any] = lambda state: None) -> None:
    """Let the weights have been scored by their exported file, as those of a compressed trial are."""
    weights = top / "trained" / "best" / "seed-1.pt"
    shutil.copy(top / "model" / "model.onnx", weights.with_suffix(".onnx"))
    state = checkpoint.load(weights) | {"artifact": digests.of_file(weights.with_suffix(".onnx"))}
    change(state)
    checkpoint.save(state, weights)


def test_file_that_was_scored_is_the_one_in_the_bundle(here: Run, tmp_path: Path) -> None:
    rescore(tmp_path)
    scored = tmp_path / "trained" / "best" / "seed-1.onnx"
    quantize(tmp_path / "model" / "model.onnx", scored, mode="static", calibration=np.zeros((2, 3, 16, 16), np.uint8))
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "new")
    assert is_one_line(answer), answer
    assert "changed or damaged" in answer.err
    state = checkpoint.load(tmp_path / "trained" / "best" / "seed-1.pt") | {"artifact": digests.of_file(scored)}
    checkpoint.save(state, tmp_path / "trained" / "best" / "seed-1.pt")
    assert here("export", "trained/best/seed-1.pt", "--bundle", "new").code == 0
    assert (tmp_path / "new" / "model.onnx").read_bytes() == scored.read_bytes()
    card = (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert "before they were quantized, in torch" in card
    assert "8-bit integers, ranges fixed by training images" in card
    scored.unlink()
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "newer")
    assert is_one_line(answer), answer
    assert "its compressed network is missing" in answer.err


def test_file_that_differs_from_torch_is_refused_and_leaves_nothing(here: Run, tmp_path: Path) -> None:
    rescore(tmp_path, lambda state: state["model"]["fc3.bias"].add_(0.5))
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "new")
    assert is_one_line(answer), answer
    assert "does not agree with torch: logits differ by 0.5" in answer.err
    assert not [path.name for path in tmp_path.iterdir() if "new" in path.name]


def test_images_that_changed_since_the_training_are_said(here: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "china" / "03.jpg").unlink()
    rescore(tmp_path)
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "new")
    assert answer.code == 0, answer
    assert "The images have changed since the training" in answer.out
    assert "The images have changed since the training" in (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert Artifact.load(tmp_path / "new" / "model.onnx").classes == 2
    shutil.rmtree(tmp_path / "photos")
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "newer")
    assert is_one_line(answer), answer
    assert not (tmp_path / "newer").exists()


def test_a_bundle_is_not_written_among_the_images(here: Run) -> None:
    answer = here("export", "trained/best/seed-1.pt", "--bundle", "photos/model")
    assert is_one_line(answer), answer
    assert "--bundle photos/model: is in the folder of the images" in answer.err
    assert not Path("photos/model").exists()


@pytest.mark.slow
def test_bundle_is_compared_on_the_first_of_many_validation_images(
    tmp_path: Path, imgcls: Run, here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 70 % of the digits that are not sealed: more than are compared with torch.
    (tmp_path / "many.yaml").write_text(
        "data: {digits: {val: 0.7}}\nmodel: {lenet5: {width: 0.5}}\noptimizer: {adamw: {lr: 0.01}}\n"
        "training: {epochs: 1, batch_size: 50}\n"
    )
    assert imgcls("train", "many.yaml").code == 0
    answer = imgcls("export", "trained/many/seed-1.pt", "--bundle", "many", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["parity"]["images"] == 1000
    assert found["scores"][0]["images"] == 1007
    # A network that takes long is compared on fewer.
    monkeypatch.setattr(deliver, "MOST_PARITY_MACS", 1.0)
    answer = here("export", "trained/many/seed-1.pt", "--bundle", "slow", "--json")
    assert json.loads(answer.out)["parity"]["images"] == deliver.LEAST_PARITY_IMAGES
