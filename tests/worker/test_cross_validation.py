"""A trial with folds: each network is trained and scored as if it were alone, wherever the work is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, load
from imgcls_search.errors import CheckpointError
from imgcls_search.protocol import EpochEnded, Event, Failed, Job, Started, Stopped
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, loop
from imgcls_search.training.evaluation import predict
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.metrics import Wanted
from imgcls_search.training.session import Session
from imgcls_search.worker import image_sets, job_runner, networks, pipeline
from imgcls_search.worker.cross_validation import out_of_fold, read_out_of_fold, seed_of
from sklearn.metrics import accuracy_score

from tests.data.test_folds import plant

EPOCHS, FOLDS, IMAGES = 3, 3, 94
CONFIG = parse(
    f"data: {{digits: {{max_train: {IMAGES}, folds: {FOLDS}}}}}\nmodel: {{lenet5: {{}}}}\n"
    "image: {size: 8, channels: 1}\n"
    "augment: {crop_padding: 1, noise: 0.05}\nloss: {cross_entropy: {class_weights: balanced}}\n"
    f"training: {{epochs: {EPOCHS}, batch_size: 20, ema: 0.9}}\n",
    catalog(),
    source="test",
).config()
NAMED = ("recall:3",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return pipeline.prepare_data(CONFIG, tmp_path_factory.mktemp("images"))


def job(data: Prepared, folder: Path, until: int = EPOCHS * FOLDS, done: int = 0, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "trial": 0,
        "config": CONFIG,
        "data": data.to_dict(),
        "seed": 1,
        "portion": "train",
        "until_epoch": until,
        "from_epoch": done,
        "checkpoint": str(folder / "trial.pt"),
        "log": str(folder / "trial.log"),
        "metrics": NAMED,
    }
    return Job(**{**values, **changes})


def work(todo: Job, stop: threading.Event | None = None) -> list[Event]:
    events = list(job_runner.JobRunner("cpu").work(todo, stop or threading.Event()))
    assert not any(isinstance(event, Failed) for event in events), events
    return events


def shown(events: list[Event]) -> list[dict[str, float]]:
    return [dict(event.metrics) for event in events if isinstance(event, EpochEnded)]


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


@pytest.fixture(scope="module")
def undisturbed(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return shown(work(job(data, folder))), folder / "trial.pt"


def alone(data: Prepared, fold: int) -> tuple[list[dict[str, float]], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Train the network of a fold on arrays of its own; return what it measured, said of its fold, and the labels."""
    train, val = load(data, "train"), load(data, "val")
    pixels, labels = (np.concatenate([getattr(part, name) for part in (train, val)]) for name in ("pixels", "labels"))
    first = sum(data.folds[:fold])
    held = np.arange(first, first + data.folds[fold])
    rest = np.delete(np.arange(len(labels)), held)
    sets = [
        image_sets.on_device(Images(pixels=pixels[part], labels=labels[part], names=()), data, "cpu")
        for part in (rest, held)
    ]
    counts = tuple(np.bincount(labels[rest], minlength=10).tolist())
    own = Prepared.from_dict({**data.to_dict(), "class_counts": counts, "counts": {"train": len(rest)}})
    session = pipeline.new_session(CONFIG, own, seed=seed_of(1, fold), device="cpu")
    wanted = Wanted(classes=data.classes, named=NAMED)
    history = list(fit(session, sets[0], sets[1], until_epoch=EPOCHS, wanted=wanted))
    return history, predict(session.deployed, sets[1]), labels[held]


def test_each_fold_is_a_training_of_its_own(data: Prepared, undisturbed: tuple[list[dict[str, float]], Path]) -> None:
    history, weights = undisturbed
    kept = out_of_fold(weights)
    said = np.split(kept.logits, np.cumsum(data.folds)[:-1])
    ends = []
    for fold in range(FOLDS):
        own, logits, labels = alone(data, fold)
        part = history[fold * EPOCHS : (fold + 1) * EPOCHS]
        for name in ("accuracy", "loss", "recall:3"):
            assert [epoch[f"fold_{name}"] for epoch in part] == [epoch[name] for epoch in own]
        assert [epoch["train_loss"] for epoch in part] == [epoch["train_loss"] for epoch in own]
        np.testing.assert_array_equal(said[fold], logits)
        assert accuracy_score(labels, logits.argmax(axis=1)) == own[-1]["accuracy"]
        ends.append(own[-1])
    last = history[-1]
    for name in ("accuracy", "macro_f1", "loss", "recall:3", "balanced_accuracy", "f1:7"):
        assert last[name] == pytest.approx(mean(end[name] for end in ends)), name
    assert last["accuracy_std"] == pytest.approx(stdev(end["accuracy"] for end in ends))
    assert last["support:3"] == sum(end["support:3"] for end in ends)
    assert len(set(data.folds)) > 1, "counts of classes differ from fold to fold"
    weighed = sum(end["accuracy"] * size for end, size in zip(ends, data.folds, strict=True)) / IMAGES
    assert accuracy_score(kept.labels, kept.probabilities.argmax(axis=1)) == pytest.approx(weighed)


def test_first_fold_is_seeded_as_a_trial_without_folds() -> None:
    assert seed_of(17, 0) == 17
    assert len({seed_of(17, fold) for fold in range(10)} | {seed_of(18, fold) for fold in range(10)}) == 20


def test_epochs_count_in_turn_and_show_finished_folds_with_a_share_of_the_current_one(
    undisturbed: tuple[list[dict[str, float]], Path],
) -> None:
    history, _ = undisturbed
    assert [epoch["epoch"] for epoch in history] == [*range(1, EPOCHS * FOLDS + 1)]
    assert [epoch["fold"] for epoch in history] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [epoch["accuracy"] for epoch in history[:3]] == [epoch["fold_accuracy"] for epoch in history[:3]]
    own = [epoch["fold_accuracy"] for epoch in history]
    assert history[3]["accuracy"] == pytest.approx((own[2] + own[3] / 3) / (1 + 1 / 3))
    assert history[5]["accuracy"] == pytest.approx((own[2] + own[5]) / 2)
    assert history[7]["accuracy"] == pytest.approx((own[2] + own[5] + own[7] * 2 / 3) / (2 + 2 / 3))


@pytest.mark.parametrize("parts", [range(1, 10), (2, 3, 5, 9), (7, 9)])
def test_another_worker_goes_on_bit_for_bit_in_the_middle_of_any_fold(
    parts: range | tuple[int, ...],
    data: Prepared,
    undisturbed: tuple[list[dict[str, float]], Path],
    tmp_path: Path,
) -> None:
    history: list[dict[str, float]] = []
    for until in parts:
        events = work(job(data, tmp_path, until, len(history)))
        (begun,) = [event for event in events if isinstance(event, Started)]
        assert not begun.dropped
        assert without_times([dict(epoch) for epoch in begun.history]) == without_times(history)
        history += shown(events)
    expected, weights = undisturbed
    assert without_times(history) == without_times(expected)
    ours, theirs = checkpoint.load(tmp_path / "trial.pt"), checkpoint.load(weights)
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    for mine, other in zip(ours["folds"]["logits"], theirs["folds"]["logits"], strict=True):
        assert torch.equal(mine, other)


def test_stopped_in_the_middle_of_an_epoch_it_goes_on_from_the_one_before(
    data: Prepared, undisturbed: tuple[list[dict[str, float]], Path], tmp_path: Path
) -> None:
    stop, runner = threading.Event(), job_runner.JobRunner("cpu")
    events = []
    for event in runner.work(job(data, tmp_path), stop):
        events.append(event)
        if isinstance(event, EpochEnded) and event.metrics["epoch"] == 4:
            stop.set()
    assert isinstance(events[-1], Stopped)
    history = shown(events)
    history += shown(work(job(data, tmp_path, done=len(history))))
    assert without_times(history) == without_times(undisturbed[0])


def test_images_that_are_decoded_in_each_epoch_give_the_same(
    undisturbed: tuple[list[dict[str, float]], Path], tmp_path: Path
) -> None:
    tree = CONFIG.to_dict()
    config = TrialConfig.from_dict({**tree, "image": {**tree["image"], "cache_gb": 1e-9}})
    streamed = pipeline.prepare_data(config, tmp_path / "images")
    assert streamed.streamed_from is not None
    history = shown(work(job(streamed, tmp_path, until=EPOCHS + 1, config=config)))
    assert without_times(history) == without_times(undisturbed[0][: EPOCHS + 1])


def test_out_of_fold_predictions_say_which_image_they_are_of(
    data: Prepared, undisturbed: tuple[list[dict[str, float]], Path]
) -> None:
    found = out_of_fold(undisturbed[1])
    train, val = load(data, "train"), load(data, "val")
    names, labels = [*train.names, *val.names], np.concatenate([train.labels, val.labels])
    assert sorted(found.images.tolist()) == [*range(IMAGES)]
    assert list(found.names) == [names[place] for place in found.images.tolist()]
    np.testing.assert_array_equal(found.labels, labels[found.images])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert found.probabilities.shape == (IMAGES, 10)


def test_unfinished_and_damaged_files_have_no_predictions(
    data: Prepared, undisturbed: tuple[list[dict[str, float]], Path], tmp_path: Path
) -> None:
    work(job(data, tmp_path, until=5))
    with pytest.raises(CheckpointError, match="needed: a finished trial with folds"):
        out_of_fold(tmp_path / "trial.pt")
    whole = bytearray(undisturbed[1].read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "damaged.pt").write_bytes(whole)
    with pytest.raises(CheckpointError, match="damaged"):
        out_of_fold(tmp_path / "damaged.pt")


SPOILED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "labels: one number": lambda kept: {"labels": torch.tensor(3)},
    "labels: too high": lambda kept: {"labels": kept["labels"] + 100},
    "labels: negative": lambda kept: {"labels": kept["labels"] - 100},
    "labels: fractions": lambda kept: {"labels": kept["labels"].double()},
    "labels: several": lambda kept: {"labels": torch.zeros(IMAGES, 10, dtype=torch.uint8)},
    "images: one number": lambda kept: {"images": torch.tensor(3)},
    "images: fractions": lambda kept: {"images": kept["images"].double()},
    "logits: three classes": lambda kept: {"logits": [part[:, :3] for part in kept["logits"]]},
    "logits: one class": lambda kept: {"logits": [part[:, 0] for part in kept["logits"]]},
    "logits: in depth": lambda kept: {"logits": [part[:, :, None] for part in kept["logits"]]},
    "logits: complex": lambda kept: {"logits": [part.to(torch.complex64) for part in kept["logits"]]},
    "names: numbers": lambda kept: {"names": [*range(IMAGES)]},
    "names: too few": lambda kept: {"names": kept["names"][1:]},
    "nothing": lambda kept: (
        {"labels": kept["labels"][:0], "images": kept["images"][:0], "names": []}
        | {"logits": [part[:0] for part in kept["logits"]]}
    ),
}
"""Changes to the out-of-fold predictions in a file that is saved again, as no program would write them."""


@pytest.mark.parametrize("case", SPOILED)
def test_predictions_that_no_program_writes_are_refused(
    case: str, undisturbed: tuple[list[dict[str, float]], Path]
) -> None:
    state = checkpoint.load(undisturbed[1])
    spoiled = {**state, "folds": {**state["folds"], **SPOILED[case](state["folds"])}}
    with pytest.raises(CheckpointError, match=r"^trial.pt: its out-of-fold predictions are damaged$"):
        read_out_of_fold(spoiled, "trial.pt")


def test_one_network_of_all_images_is_trained_once(data: Prepared, tmp_path: Path) -> None:
    history = shown(work(job(data, tmp_path, until=EPOCHS, portion="train+val")))
    assert [epoch.keys() for epoch in history] == [{"epoch", "train_loss", "seconds"}] * EPOCHS
    _, config, _ = networks.load_finished(checkpoint.load(tmp_path / "trial.pt"), "trial.pt")
    assert config == CONFIG


def test_interrupted_trial_is_no_finished_model(data: Prepared, tmp_path: Path) -> None:
    work(job(data, tmp_path, until=EPOCHS))
    with pytest.raises(CheckpointError, match="interrupted after 3 of 9 epochs"):
        networks.load_finished(checkpoint.load(tmp_path / "trial.pt"), "trial.pt")


def test_size_is_of_the_last_network_and_the_score_of_all_folds(
    data: Prepared, undisturbed: tuple[list[dict[str, float]], Path], tmp_path: Path
) -> None:
    artifact = tmp_path / "trial.onnx"
    events = work(job(data, tmp_path, is_scored=True, artifact=str(artifact)))
    (scored,) = [event for event in events if type(event).__name__ == "Scored"]
    assert scored.metrics.keys() == {"size_kb", "archive_kb", "seconds"}  # type: ignore[attr-defined]
    found, expected = out_of_fold(tmp_path / "trial.pt"), out_of_fold(undisturbed[1])
    np.testing.assert_array_equal(found.logits, expected.logits)
    # Another worker finds all of it done.
    again = work(job(data, tmp_path, is_scored=True, artifact=str(artifact)))
    assert [type(event).__name__ for event in again] == ["Started", "CheckpointSaved", "Scored", "MilestoneReached"]


def test_pictures_are_of_all_folds(
    data: Prepared, undisturbed: tuple[list[dict[str, float]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcls_search.worker import pictures

    seen: dict[str, Any] = {}
    monkeypatch.setattr(pictures, "draw", lambda *arguments, **named: seen.update(named) or {})
    todo = job(data, undisturbed[1].parent, kind="draw", pictures=str(tmp_path))
    assert [type(event).__name__ for event in work(todo)] == ["Drawn", "MilestoneReached"]
    found = out_of_fold(undisturbed[1])
    np.testing.assert_array_equal(seen["logits"], found.logits)
    pixels = np.concatenate([load(data, "train").pixels, load(data, "val").pixels])
    np.testing.assert_array_equal(seen["pixels"][np.arange(IMAGES)], pixels[found.images])


def test_balanced_draws_of_a_fold_take_its_classes_alike_and_none_of_the_groups_that_score_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "photos", {"a": 60, "b": 24, "c": 12}, patients=20)
    config = parse(
        f"data: {{folder: {{root: '{tmp_path / 'photos'}', folds: 3, test: 0.2, group: '/(p..)-'}}}}\n"
        "model: {lenet5: {}}\nimage: {size: 8}\ntraining: {epochs: 2, batch_size: 16, draw: balanced}\n",
        catalog(),
        source="test",
    ).config()
    data = pipeline.prepare_data(config, tmp_path / ".images")
    drawn: list[tuple[np.ndarray[Any, Any], list[bytes]]] = []
    real = loop.order_of

    def watched(session: Session, images: ImageSet) -> tuple[torch.Tensor, ...]:
        found = real(session, images)
        items = torch.cat(found).numpy()
        drawn.append((np.asarray(images.labels)[items], [pixels.tobytes() for pixels in images.pixels[items]]))
        return found

    monkeypatch.setattr(loop, "order_of", watched)
    work(job(data, tmp_path, 6, config=config, metrics=()))
    parts = [load(data, split) for split in ("train", "val")]
    number = {
        np.asarray(pixels).tobytes(): place for place, pixels in enumerate(p for part in parts for p in part.pixels)
    }
    patients = np.array([name.split("/")[1][:3] for part in parts for name in part.names])
    assert len(drawn) == 6
    for epoch, (labels, images) in enumerate(drawn):
        own, scored = image_sets.fold_places(data, epoch // 2)
        items = [number[pixels] for pixels in images]
        assert not set(patients[items]) & set(patients[scored])
        assert set(items) <= set(own.tolist())
        counts = np.bincount(labels, minlength=3)
        assert counts.sum() == len(own)
        assert np.ptp(counts) <= 1
