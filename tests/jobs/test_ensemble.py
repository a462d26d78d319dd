"""Several kept networks of a study as one: picked on validation images, saved, exported, tested, distilled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.data import describe, load, open_test
from imgcls_search.deploy import bundle
from imgcls_search.errors import UserError
from imgcls_search.jobs.ensemble.picking import pick
from imgcls_search.jobs.ensemble.student import distil
from imgcls_search.study.files import StudyFiles
from imgcls_search.training import checkpoint
from imgcls_search.training.evaluation import predict
from imgcls_search.worker import image_sets, networks, pipeline
from PIL import Image
from scipy.special import expit, softmax
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from tests.conftest import PATIENCE, Answer, begin_command, is_one_line
from tests.orchestrator.test_run import open_study
from tests.pairs import SPACE as PAIRS
from tests.pairs import write_table
from tests.warm import Warm

SPACE = """
study: {name: several, trials: 5, keep: 4, pruner: none, pictures: false, sampler: random, seed: 3}
data: {digits: {max_train: 200}}
model:
  lenet5: {}
  vit: {width: 16, depth: 1, heads: 2, patch_size: 2}
optimizer: {adamw: {lr: {float: [3e-3, 1e-2], log: true}}}
training: {epochs: 4, batch_size: 25}
"""

Run = Callable[..., Answer]


def searched(space: str, name: str, folder: Path, warm: Warm | None) -> None:
    (folder / "s.yaml").write_text(space)
    process = begin_command(("run", "s.yaml", "--workers", "1"), folder, os.environ, warm)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert (folder / "studies" / f"{name}.db").is_file()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder with a finished study whose best four networks are kept."""
    folder = tmp_path_factory.mktemp("made")
    searched(SPACE, "several", folder, warm)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(made: Path, tmp_path: Path) -> str:
    shutil.copytree(made / "studies", tmp_path / "studies")
    return "several"


def kept(folder: Path, name: str = "several") -> list[int]:
    return sorted(int(path.stem[6:]) for path in (folder / "studies" / name / "checkpoints").glob("trial-*.pt"))


def best(folder: Path, name: str = "several") -> int:
    return int(open_study(folder / "studies", name).best_trial.number)


def answers(folder: Path, trial: int, split: str = "val") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return logits and labels of a kept trial, by torch."""
    path = StudyFiles(folder / "studies", "several").checkpoint(trial)
    model, config, known = networks.load_finished(checkpoint.load(path), str(path))
    data = pipeline.prepare_data(config, folder / "studies" / ".images")
    images = load(data, "val") if split == "val" else open_test(describe(config.component("data"), Path()), data)
    return predict(model, image_sets.on_device(images, known, "cpu")), images.labels


# Picking.


def test_picks_are_greedy_with_replacement_and_begin_with_the_first() -> None:
    """Against a search of all ensembles of so many picks by hand: each step takes the best single addition."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    each = [softmax(random.normal(size=(300, 4)) + strength * np.eye(4)[labels], axis=1) for strength in (1.0, 0.8, 2)]

    def worth(shares: np.ndarray[Any, Any]) -> tuple[float, ...]:
        return (-float(log_loss(labels, shares / shares.sum(axis=1, keepdims=True))),)

    found = pick(each, picks=6, first=1, worth=worth)
    order, total = [1], each[1]
    while len(order) < len(found.order):
        values = [worth((total + shares) / (len(order) + 1))[0] for shares in each]
        order.append(int(np.argmax(values)))
        total = total + each[order[-1]]
    assert list(found.order) == order
    assert found.order[0] == 1
    assert found.counts == {place: order.count(place) for place in found.counts}
    assert list(found.counts.values()) == sorted(found.counts.values(), reverse=True)
    assert max(found.counts.values()) > 1, "the strong one is picked again"
    assert found.worth[0] == pytest.approx(worth(total / len(order))[0])


def test_a_pick_that_only_harms_is_left_out() -> None:
    right = np.tile([0.9, 0.1], (20, 1))
    wrong = right[:, ::-1]

    def accuracy(shares: np.ndarray[Any, Any]) -> tuple[float, ...]:
        return float((shares.argmax(axis=1) == 0).mean()), -float(-np.log(shares[:, 0]).mean())

    assert pick([right, wrong], picks=5, first=0, worth=accuracy).order == (0,)
    # From a bad start it comes to the better one.
    assert pick([right, wrong], picks=5, first=1, worth=accuracy).counts[0] > 1


# The network.


@pytest.mark.parametrize("several", [False, True])
def test_network_gives_the_mean_of_calibrated_probabilities(several: bool) -> None:
    from imgcls_search.models.ensemble import Ensemble, Part

    torch.manual_seed(0)
    parts, shares = [], (0.4, 0.6)
    settings = [((1.5,), (0.2,), (0.5,)), ((0.7, 1.0, 2.0) if several else (0.7,), (0.3,), (0.25,))]
    for share, (temperatures, mean, std) in zip(shares, settings, strict=True):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        parts.append(Part(network=network, share=share, temperatures=temperatures, mean=mean, std=std))
    together = Ensemble(parts, mean=(0.2,), std=(0.5,), several=several).eval()
    pixels = torch.rand(7, 1, 4, 4)
    with torch.no_grad():
        logits = together((pixels - 0.2) / 0.5).double().numpy()
        wanted = 0.0
        for part, (temperatures, mean, std) in zip(parts, settings, strict=True):
            own = part.network((pixels - mean[0]) / std[0]).double().numpy() / np.array(temperatures)
            wanted = wanted + part.share * (expit(own) if several else softmax(own, axis=1))
    found = expit(logits) if several else softmax(logits, axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# The command.


def test_ensemble_is_saved_and_its_figures_are_those_of_its_file(study: str, here: Run, tmp_path: Path) -> None:
    answer = here("ensemble", study, "--picks", "4", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    numbers = [member["trial"] for member in found["members"]]
    assert set(numbers) <= set(kept(tmp_path))
    assert found["winner"] == best(tmp_path)
    assert found["winner"] in numbers
    assert sum(member["count"] for member in found["members"]) == found["picks"] <= 4
    assert len(numbers) > 1, "another seed of the study if torch comes to other networks"
    assert found["validation"]["ensemble"] >= found["validation"]["winner"]
    assert found["validation"]["winner"] == pytest.approx(open_study(tmp_path / "studies", study).best_value)
    assert found["sizes"]["ensemble"]["params"] == sum(member["params"] for member in found["members"])
    assert found["sizes"]["ensemble"]["macs"] > found["sizes"]["winner"]["macs"]
    assert found["sizes"]["ensemble"]["latency_ms"] > 0
    assert found["test"] is None
    assert "test_openings" not in open_study(tmp_path / "studies", study).user_attrs
    # The mean of each network's own calibrated answers, by hand.
    state = checkpoint.load(tmp_path / found["weights"])
    members, _ = networks.read_ensemble(state, "ensemble.pt")
    total = 0.0
    for member in members:
        logits, labels = answers(tmp_path, member.trial)
        total = total + member.count * softmax(logits.astype(np.float64) / member.temperatures[0], axis=1)
    assert accuracy_score(labels, np.argmax(total, axis=1)) == pytest.approx(found["validation"]["ensemble"])
    evaluated = here("evaluate", found["weights"], "--json")
    assert json.loads(evaluated.out)["metrics"]["accuracy"] == pytest.approx(found["validation"]["ensemble"])


def test_table_says_members_sizes_and_the_winner(study: str, here: Run, tmp_path: Path) -> None:
    answer = here("ensemble", study, "-o", "mine.pt", "--trial", str(kept(tmp_path)[0]))
    assert answer.code == 0, answer.err
    head, *_ = answer.out.splitlines()
    assert [
        word for word in ("trial", "picks", "validation accuracy", "parameters", "MACs", "KB") if word not in head
    ] == []
    assert f"best: trial {kept(tmp_path)[0]}" in answer.out
    assert "next: imgcls-search export mine.pt --bundle DIR" in answer.out
    assert (tmp_path / "mine.pt").is_file()
    assert not (tmp_path / "studies" / study / "ensemble.pt").exists()


def test_a_weights_file_of_any_name_is_exported(study: str, here: Run, tmp_path: Path) -> None:
    answer = here("ensemble", study, "-o", "my ensemble")
    assert answer.out.endswith("next: imgcls-search export 'my ensemble' --bundle DIR\n"), answer
    answer = here("export", "my ensemble", "--bundle", "model")
    assert answer.code == 0, answer.err
    assert (tmp_path / "model" / "model.onnx").is_file()


def test_a_bundle_that_cannot_be_written_opens_no_test_split(study: str, here: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = here("ensemble", study, "--bundle", "file/model", "--test")
    assert is_one_line(answer), answer
    assert "file/model: cannot be written" in answer.err
    answer = here("ensemble", study, "--bundle", "one", "--distill", "one", "--test")
    assert is_one_line(answer), answer
    assert "--distill one: is the folder of --bundle, too" in answer.err
    assert "test_openings" not in open_study(tmp_path / "studies", study).user_attrs


def test_one_file_serves_the_ensemble(study: str, here: Run, tmp_path: Path) -> None:
    answer = here("ensemble", study, "--bundle", "model", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert sorted(path.suffix for path in (tmp_path / "model").iterdir()).count(".onnx") == 1
    parity = found["bundle"]["parity"]
    assert parity["equal_top1"] == parity["images"] > 100
    assert found["bundle"]["scores"][0]["accuracy"] == pytest.approx(found["validation"]["ensemble"])
    assert [each["trial"] for each in found["bundle"]["model"]["members"]] == [
        member["trial"] for member in found["members"]
    ]
    assert found["bundle"]["model"]["macs"] == found["sizes"]["ensemble"]["macs"]
    assert "an ensemble of" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    digits = load_digits()
    Image.fromarray((digits.images[0] * 255 / 16).round().astype(np.uint8)).save(tmp_path / "zero.png")
    (predicted,) = json.loads(here("predict", "model", "zero.png", "--json").out)["predictions"]
    served = bundle.read(tmp_path / "model")
    pixels = (digits.images[:1, None] * 255 / 16).round().astype(np.uint8)
    wanted = softmax(served.artifact.logits(pixels)[0].astype(np.float64))
    assert predicted["classes"][0]["probability"] == pytest.approx(wanted.max(), abs=1e-6)
    # The file that was saved becomes the same bundle.
    assert here("export", found["weights"], "--bundle", "again").code == 0
    again = bundle.read(tmp_path / "again")
    np.testing.assert_allclose(again.artifact.logits(pixels), served.artifact.logits(pixels), atol=1e-5)


def test_studies_of_another_folder_and_weights_from_a_folder(study: str, here: Run, tmp_path: Path) -> None:
    (tmp_path / "studies").rename(tmp_path / "elsewhere")
    (tmp_path / "downloads").mkdir()
    answer = here("ensemble", study, "--studies", "elsewhere", "--weights-dir", "downloads", "--picks", "2")
    assert answer.code == 0, answer.err
    assert (tmp_path / "elsewhere" / study / "ensemble.pt").is_file()
    assert not (tmp_path / "studies").exists()


def test_test_split_is_opened_when_asked_and_that_is_noted(study: str, here: Run, tmp_path: Path) -> None:
    answer = here("ensemble", study, "--test", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    (opening,) = open_study(tmp_path / "studies", study).user_attrs["test_openings"]
    assert (opening["by"], opening["trial"]) == ("ensemble", found["winner"])
    logits, labels = answers(tmp_path, found["winner"], "test")
    winner = logits.argmax(axis=1) == labels
    members, _ = networks.read_ensemble(checkpoint.load(tmp_path / found["weights"]), "")
    total = sum(
        member.count * softmax(answers(tmp_path, member.trial, "test")[0] / member.temperatures[0], axis=1)
        for member in members
    )
    ensemble = np.asarray(total).argmax(axis=1) == labels
    tested = found["test"]
    assert tested["images"] == len(labels)
    assert (tested["winner"], tested["ensemble"]) == (pytest.approx(winner.mean()), pytest.approx(ensemble.mean()))
    # Paired, and so narrower than of two sets of images; near the interval of a mean of differences.
    gaps = ensemble.astype(float) - winner
    half = 1.96 * gaps.std() / np.sqrt(len(gaps))
    low, high = tested["ensemble_minus_winner_95"]
    assert low <= gaps.mean() <= high
    assert high - low == pytest.approx(2 * half, rel=0.35, abs=0.003)
    shown = here("ensemble", study, "--test")
    assert "test accuracy: ensemble" in shown.out
    assert len(open_study(tmp_path / "studies", study).user_attrs["test_openings"]) == 2


@pytest.mark.slow
def test_student_learns_from_the_ensemble(study: str, imgcls: Run, here: Run, tmp_path: Path) -> None:
    number = next(trial for trial in kept(tmp_path) if trial != best(tmp_path))
    answer = imgcls("ensemble", study, "--distill", "student", "--student", str(number), "--test", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    weights = Path(found["student"]["weights"])
    _, config, _ = networks.load_finished(checkpoint.load(tmp_path / weights), "student")
    plan = config.component("distill")
    assert plan.name == "file"
    # The teacher is the ensemble: the very file, kept beside the student.
    assert (tmp_path / plan.args["path"]).read_bytes() == (tmp_path / found["weights"]).read_bytes()
    assert found["student"]["params"] < found["sizes"]["ensemble"]["params"]
    evaluated = json.loads(here("evaluate", weights, "--json").out)["metrics"]["accuracy"]
    assert evaluated == pytest.approx(found["student"]["validation"])
    low, high = found["test"]["student_minus_winner_95"]
    assert low <= found["test"]["student"] - found["test"]["winner"] <= high
    assert json.loads(here("export", weights, "--bundle", "small", "--json").out)["parity"]["equal_top1"] > 0
    again = here("ensemble", study, "--distill", "student")
    assert is_one_line(again)
    assert "holds the results of a training already" in again.err


# What it refuses.


def lines(answer: Answer) -> str:
    assert is_one_line(answer), answer
    return answer.err


def test_mistakes_are_one_line(study: str, here: Run, tmp_path: Path) -> None:
    assert "--picks" in lines(here("ensemble", study, "--picks", "1"))
    assert "no such study" in lines(here("ensemble", "nowhere"))
    assert not (tmp_path / "studies" / "nowhere").exists()
    assert "has no trial 99" in lines(here("ensemble", study, "--trial", "99"))
    assert "has no effect without --distill" in lines(here("ensemble", study, "--student", "1"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "exists already" in lines(here("ensemble", study, "--bundle", "taken"))
    assert "images of another kind" in lines(here("ensemble", study, "--data", "folder:taken"))
    assert not (tmp_path / "studies" / study / "ensemble.pt").exists()


def test_deleted_or_damaged_weights_are_one_line(study: str, here: Run, tmp_path: Path) -> None:
    files = StudyFiles(tmp_path / "studies", study)
    others = [trial for trial in kept(tmp_path) if trial != best(tmp_path)]
    files.checkpoint(others[0]).write_bytes(b"not weights")
    assert f"trial-{others[0]:05d}.pt" in lines(here("ensemble", study))
    for trial in others:
        files.checkpoint(trial).unlink()
    assert f"keeps the weights of one finished trial, {best(tmp_path)}" in lines(here("ensemble", study))
    files.checkpoint(best(tmp_path)).unlink()
    assert "are not kept" in lines(here("ensemble", study))
    assert not (files.folder / "ensemble.pt").exists()


def test_a_study_that_is_searched_is_refused(study: str, here: Run, tmp_path: Path) -> None:
    with StudyFiles(tmp_path / "studies", study).taken():
        assert "another run is working on this study" in lines(here("ensemble", study))


def test_a_damaged_ensemble_is_no_weights_file(study: str, here: Run, tmp_path: Path) -> None:
    assert here("ensemble", study).code == 0
    path = tmp_path / "studies" / study / "ensemble.pt"
    state = checkpoint.load(path)
    about = json.loads(state["about"])
    spoiled: dict[str, Any] = {
        "none": {**about, "members": []},
        "nothing": {**about, "members": [{**about["members"][0], "count": 0}]},
        "fewer": {**about, "members": about["members"][:1]},
        "text": {**about, "members": "many"},
    }
    for name, found in spoiled.items():
        checkpoint.save({**state, "about": json.dumps(found)}, tmp_path / f"{name}.pt")
        assert "not a trained model of this program" in lines(here("evaluate", f"{name}.pt"))


# Other kinds of studies.


@pytest.mark.slow
def test_networks_of_other_sizes_are_left_out_or_refused(tmp_path: Path, warm: Warm | None, here: Run) -> None:
    space = (
        SPACE.replace("name: several", "name: sizes")
        .replace("trials: 5", "trials: 3")
        .replace("epochs: 4", "epochs: 1")
    )
    searched(f"{space}image: {{size: {{choice: [8, 12]}}}}\n", "sizes", tmp_path, warm)
    trials = {trial.number: trial.params["image.size"] for trial in open_study(tmp_path / "studies", "sizes").trials}
    assert len(set(trials.values())) == 2, "another seed if the sampler draws one size only"
    alone = next(number for number, size in trials.items() if list(trials.values()).count(size) == 1)
    line = lines(here("ensemble", "sizes", "--trial", str(alone)))
    assert f"no network can join that of trial {alone}" in line
    assert "pixels of 1 channel" in line
    pair = [number for number in trials if number != alone]
    answer = here("ensemble", "sizes", "--trial", str(pair[0]), "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert list(found["left_out"]) == [str(alone)]
    assert {member["trial"] for member in found["members"]} <= set(pair)


@pytest.mark.slow
def test_several_labels_with_moved_images(tmp_path: Path, warm: Warm | None, here: Run) -> None:
    write_table(tmp_path / "pairs", 120)
    searched(PAIRS.replace("epochs: 3", "epochs: 2").replace("trials: 2", "trials: 3"), "pairs", tmp_path, warm)
    (tmp_path / "pairs").rename(tmp_path / "moved")
    assert "if they have moved" in lines(here("ensemble", "pairs"))
    answer = here("ensemble", "pairs", "--data", "table:moved/labels.csv", "--bundle", "model", "--json", "--test")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["validation"]["ensemble"] >= found["validation"]["winner"] - 1e-9
    parity = found["bundle"]["parity"]
    assert parity["equal_labels"] == parity["images"]
    assert found["test"]["images"] > 0
    # Where they were found is remembered; thresholds are those of the ensemble.
    evaluated = json.loads(here("evaluate", found["weights"], "--data", "table:moved/labels.csv", "--json").out)
    assert len(evaluated["thresholds"]) == len(evaluated["classes"])
    assert here("ensemble", "pairs", "-o", "other.pt").code == 0


@pytest.mark.slow
def test_student_of_a_trial_with_folds_is_trained_by_shown_commands(tmp_path: Path) -> None:
    trial = SimpleNamespace(number=4, candidate=SimpleNamespace(config=SimpleNamespace(folds=3)))
    files = StudyFiles(tmp_path, "several")
    made: Any = SimpleNamespace(library=SimpleNamespace(winner=trial, files=files), weights=Path("my studies/e.pt"))
    unused: Any = None
    with pytest.raises(UserError) as refused:
        distil(made, None, tmp_path / "student", unused)
    assert f"imgcls-search export several --studies {tmp_path} --trial 4 -o FILE" in str(refused.value)
    assert "--set distill=file --set 'distill.file.path=my studies/e.pt'" in str(refused.value)


def test_folds_are_picked_on_out_of_fold_answers(tmp_path: Path, warm: Warm | None, here: Run) -> None:
    space = SPACE.replace("name: several", "name: folded").replace("max_train: 200", "max_train: 90, folds: 3")
    searched(space.replace("trials: 5", "trials: 3").replace("epochs: 4", "epochs: 2"), "folded", tmp_path, warm)
    answer = here("ensemble", "folded", "--json", "--bundle", "model")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["validation"]["images"] == 90, "all images outside the test split, each by the network without it"
    assert found["validation"]["winner"] == pytest.approx(open_study(tmp_path / "studies", "folded").best_value)
    numbers = ", ".join(str(member["trial"]) for member in found["members"])
    assert f"with folds: {numbers}; only the network of the last fold is in the ensemble" in answer.err
    assert "the last of 3 folds" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
