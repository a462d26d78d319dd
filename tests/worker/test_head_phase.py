"""Training a head on features that are kept: the same numbers as behind the network, at a fraction of the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.data.features import folder_beside
from imgcls_search.deploy.artifact import Artifact
from imgcls_search.errors import BuildError
from imgcls_search.jobs import neighbours
from imgcls_search.jobs.bundle.deliver import deliver
from imgcls_search.jobs.bundle.weights import from_weights
from imgcls_search.protocol import EpochEnded, Event, Failed, Job, Notice, Stopped
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.probe import fit_linear, fit_several
from imgcls_search.training.session import Session
from imgcls_search.worker import (
    features,
    head_phase,
    head_plan,
    image_sets,
    job_runner,
    networks,
    pipeline,
    start_weights,
)
from torch import nn

from tests.orchestrator.test_named_metrics import colours
from tests.pairs import write_table

ROUNDING = 1e-4
"""Losses and weights of the two ways differ by the rounding of sums in batches of other sizes, and by no more."""

EPOCHS = 4

BASE = "data: {digits: {max_train: 120}}\nimage: {size: 32, channels: 3}\n"
SMALL = {
    "resnet": "{depths: [1, 1], width: 8}",
    "efficientnet": "{width_mult: 0.25}",
    "timm": "{name: test_efficientnet}",
}


def config(extra: str = "", family: str = "resnet", weights: Path | None = None, base: str = BASE) -> TrialConfig:
    text = f"{base}model: {{{family}: {SMALL[family]}}}\n{extra}"
    given = [] if weights is None else [(f"model.{family}.weights", str(weights))]
    return parse(text, catalog(), source="x", overrides=given).config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def data(folder: Path) -> Prepared:
    return pipeline.prepare_data(config(), folder / ".images")


@pytest.fixture(scope="module")
def weights(folder: Path, data: Prepared) -> dict[str, Path]:
    """Return files of weights, random but for their running statistics, which a few images gave them."""
    found = {}
    for family in SMALL:
        torch.manual_seed(7)
        model = networks.build_model(config(family=family), data.shape).train()
        with torch.no_grad():
            for part in torch.split(torch.from_numpy(np.array(load(data, "train").pixels[:64])), 16):
                model(part.float() / 255)
        found[family] = folder / f"{family}.pt"
        torch.save(model.state_dict(), found[family])
    return found


def frozen(weights: Mapping[str, Path], more: str = "", family: str = "resnet", base: str = BASE) -> TrialConfig:
    return config(f"training: {{epochs: {EPOCHS}, batch_size: 32}}\n{more}", family, weights[family], base)


def job(trial: TrialConfig, data: Prepared, folder: Path, until: int = EPOCHS, done: int = 0, **more: Any) -> Job:
    given: dict[str, Any] = {
        "trial": 0,
        "config": trial,
        "data": data.to_dict(),
        "seed": 5,
        "portion": "train",
        "until_epoch": until,
        "from_epoch": done,
        "checkpoint": str(folder / "trial.pt"),
        "log": str(folder / "trial.log"),
    }
    return Job(**{**given, **more})


def events(given: Job, runner: job_runner.JobRunner | None = None, stop: threading.Event | None = None) -> list[Event]:
    found = list((runner or job_runner.JobRunner("cpu")).work(given, stop or threading.Event()))
    assert not [event for event in found if isinstance(event, Failed)], found
    return found


def epochs(found: Sequence[Event]) -> list[dict[str, float]]:
    shown = [dict(event.metrics) for event in found if isinstance(event, EpochEnded)]
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in shown]


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / "trial.pt")


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes frozen epochs run their backbone, as trainings with random augmentation do."""

    def switch() -> None:
        real = head_plan.plan

        def plan(trial: TrialConfig) -> head_plan.HeadPlan | None:
            found = real(trial)
            return replace(found, epochs=0) if found is not None else None

        monkeypatch.setattr(head_plan, "plan", plan)

    return switch


WAYS = {
    "plain": "finetune: {freeze: backbone}\n",
    "thawing": "finetune: {freeze: backbone, freeze_epochs: 2, backbone_lr_factor: 0.1}\n",
    "average": "finetune: {freeze: backbone, freeze_epochs: 2}\n",
    "weighted": "finetune: {freeze: backbone}\nloss: {focal: {class_weights: balanced}}\n",
    "linear": "finetune: {freeze: backbone}\nhead: {linear: {dropout: 0.3}}\n",
    "mlp": "finetune: {freeze: backbone, freeze_epochs: 3}\nhead: {mlp: {hidden: 16, dropout: 0.2}}\n",
    "swa": "finetune: {freeze: backbone, freeze_epochs: 2}\n",
    "started": "finetune: {freeze: backbone, freeze_epochs: 2, start: logistic}\n",
}
TRAININGS = {"average": "ema: 0.9, ", "swa": "swa: 3, ", "plain": "draw: balanced, clip: 0.5, "}


@pytest.mark.parametrize(
    ("family", "way"), [*(("resnet", way) for way in WAYS), ("efficientnet", "plain"), ("timm", "plain")]
)
def test_kept_features_give_the_numbers_of_the_network(
    way: str, family: str, weights: Mapping[str, Path], data: Prepared, tmp_path: Path, uncached: Callable[[], None]
) -> None:
    more = f"training: {{{TRAININGS.get(way, '')}epochs: {EPOCHS}, batch_size: 32}}\n{WAYS[way]}"
    trial = config(more, family, weights[family])
    micro_batches = 2 if way == "linear" else 1
    cached = epochs(events(job(trial, data, tmp_path / "cached", micro_batches=micro_batches)))
    uncached()
    # The same fit, so that nothing but the way of the epochs differs.
    plain = epochs(events(job(trial, data, tmp_path / "uncached", micro_batches=micro_batches)))
    assert len(cached) == len(plain) == EPOCHS
    for one, other in zip(cached, plain, strict=True):
        # A network of random weights gives images nearly the same logits: rounding turns some of their ranks.
        names = [name for name in other if family == "resnet" or name in ("train_loss", "loss", "accuracy")]
        assert {name: one[name] for name in names} == pytest.approx({n: other[n] for n in names}, abs=ROUNDING)
    ours, theirs = state(tmp_path / "cached")["model"], state(tmp_path / "uncached")["model"]
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor.float(), atol=ROUNDING), name


def test_frozen_epochs_do_not_run_the_network(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = frozen(weights, "finetune: {freeze: backbone, freeze_epochs: 3}\n")
    events(job(trial, data, tmp_path / "first"))
    calls: list[int] = []
    real = pipeline.new_session

    def watched(*given: Any, **more: Any) -> Session:
        session = real(*given, **more)
        session.model.get_submodule("layer1").register_forward_hook(lambda *_: calls.append(session.epoch))
        return session

    monkeypatch.setattr(pipeline, "new_session", watched)
    found = events(job(trial, data, tmp_path / "second"))
    # One epoch of 120 images in batches of 32, and the images that it is measured by.
    assert set(calls) == {3}
    # What the first computed serves the second.
    assert not [event for event in found if isinstance(event, Notice)]


def test_the_first_trial_says_what_it_computes(weights: Mapping[str, Path], data: Prepared, tmp_path: Path) -> None:
    trial = frozen(weights, "finetune: {freeze: backbone, views: 2}\naugment: {flip: horizontal, brightness: 0.11}\n")
    told = [event.text for event in events(job(trial, data, tmp_path)) if isinstance(event, Notice)]
    assert told[0] == "features of training images by resnet, view 1 of 2: 120 images, computed once for all trials"
    assert told[2].startswith("features of training images by resnet, view 2 of 2: 120 images")
    assert told[1].startswith("features of training images by resnet, view 1 of 2: 7.7 kB after ")


def test_views_are_the_augmented_images_and_take_turns(weights: Mapping[str, Path], data: Prepared) -> None:
    trial = frozen(weights, "finetune: {freeze: backbone, views: 3}\naugment: {flip: horizontal, rotation: 10}\n")
    wanted = head_plan.plan(trial)
    assert wanted is not None
    assert (wanted.epochs, wanted.views) == (EPOCHS, 3)
    seen = start_weights.with_normalisation(trial, data)
    found = head_phase.HeadFeatures(trial, seen, "cpu")
    list(found.computing(wanted, "train"))
    shown = [np.array(found.sets(wanted, "train", None, epoch)[0].pixels) for epoch in range(4)]
    assert np.array_equal(shown[0], shown[3])
    assert not np.allclose(shown[0], shown[1])
    assert not np.allclose(shown[1], shown[2])
    # Half of the images are mirrored, and all of them turned: a network sees them so.
    backbone = features.frozen_network(trial, data, "cpu")
    augmentation, _ = pipeline.build_augmentation(trial, data.shape)
    pixels = torch.from_numpy(np.array(load(data, "train").pixels[:120]))
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(1 * 1_000_003)
        images = image_sets.on_device(load(data, "train"), backbone.data, "cpu")
        expected = backbone.network(images.normalise(augmentation(pixels)))
    assert np.allclose(shown[1], expected.numpy(), atol=ROUNDING)
    # The images that scores are of stay as they are.
    scored = found.sets(wanted, "train", None, 1)[1]
    assert scored is not None
    assert np.array_equal(scored.pixels, features.features_of(backbone, "val", folder_beside(data)))


@pytest.mark.parametrize(
    ("more", "epochs"),
    [
        ("finetune: {freeze: backbone}\n", EPOCHS),
        ("finetune: {freeze: backbone, freeze_epochs: 9}\n", EPOCHS),
        ("finetune: {freeze: backbone, freeze_epochs: 1}\n", 1),
        ("finetune: {freeze: backbone}\naugment: {flip: alternating}\n", None),
        ("finetune: {freeze: backbone}\naugment: {policy: trivial}\n", None),
        ("finetune: {freeze: backbone}\naugment: {jpeg: 50}\n", None),
        ("finetune: {freeze: backbone}\naugment: {mixup: 0.2}\n", None),
        ("finetune: {freeze: backbone, views: 2}\naugment: {policy: trivial}\n", EPOCHS),
        ("finetune: {freeze: 1}\n", None),
        ("finetune: {views: 2}\n", None),
        ("finetune: {start: logistic}\n", 0),
        ("head: logistic\n", 1),
        ("head: logistic\naugment: {mixup: 0.2, flip: horizontal}\n", 1),
    ],
)
def test_features_serve_where_batches_are_the_same_images(
    more: str, epochs: int | None, weights: Mapping[str, Path]
) -> None:
    found = head_plan.plan(frozen(weights, more))
    assert (found.epochs if found is not None else None) == epochs


def test_from_scratch_there_are_no_features() -> None:
    assert head_plan.plan(config("finetune: {freeze: backbone}\n")) is None


def read_until(trial: TrialConfig, data: Prepared, folder: Path, milestones: Sequence[int]) -> list[dict[str, float]]:
    """Train in several jobs, each by a worker of its own, and return all epochs."""
    found: list[dict[str, float]] = []
    for until in milestones:
        found += epochs(events(job(trial, data, folder, until, len(found))))
    return found


@pytest.mark.parametrize("way", ["thawing", "average", "mlp", "started"])
def test_resumed_anywhere_it_is_the_same_to_the_last_bit(
    way: str, weights: Mapping[str, Path], data: Prepared, tmp_path: Path
) -> None:
    trial = frozen(weights, WAYS[way].replace("freeze_epochs: 3", "freeze_epochs: 2"))
    whole = read_until(trial, data, tmp_path / "whole", [EPOCHS])
    # In the first phase, at its end, and in the second.
    assert read_until(trial, data, tmp_path / "parts", [1, 2, 3, EPOCHS]) == whole
    ours, theirs = state(tmp_path / "parts")["model"], state(tmp_path / "whole")["model"]
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_stop_while_features_are_computed_leaves_nothing_half(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH", 16)
    trial = frozen(weights, "finetune: {freeze: backbone, views: 1}\naugment: {brightness: 0.3}\n")
    stop = threading.Event()
    found = []
    for event in job_runner.JobRunner("cpu").work(job(trial, data, tmp_path), stop):
        found.append(event)
        if isinstance(event, Notice):
            stop.set()
    assert isinstance(found[-1], Stopped)
    assert not list(folder_beside(data).glob("*.partial"))
    again = events(job(trial, data, tmp_path))
    assert len([event for event in again if isinstance(event, Notice)]) >= 2
    assert len(epochs(again)) == EPOCHS


def test_what_another_process_computes_comes_last(
    weights: Mapping[str, Path], data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH", 16)
    trial = frozen(weights, "finetune: {freeze: backbone, views: 2}\naugment: {brightness: 0.31}\n")
    wanted = head_plan.plan(trial)
    assert wanted is not None
    here, there = (head_phase.HeadFeatures(trial, start_weights.with_normalisation(trial, data), "cpu") for _ in "ab")
    other = there.computing(wanted, "train")
    # It has begun with the first view, and holds it.
    assert "view 1 of 2: 120 images" in str(next(other))
    said: list[str] = []
    steps = here.computing(wanted, "train")
    for _ in range(50):
        said += [line for line in [next(steps)] if line is not None]
    assert here.kept.keys() == {("train", 1), ("val", None)}
    assert not [line for line in said if "view 1 of 2" in line]
    list(other)
    list(steps)
    assert here.kept.keys() == there.kept.keys() == {("train", 0), ("train", 1), ("val", None)}
    assert all(np.array_equal(here.kept[part], there.kept[part]) for part in here.kept)


def test_what_the_search_kept_is_read_again(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of networks whose head alone was trained a page and a bundle read features, and compute those of others."""

    def trained(more: str) -> tuple[nn.Module, TrialConfig, Prepared]:
        events(job(frozen(weights, more), data, tmp_path))
        return networks.load_finished(state(tmp_path), "trial.pt")

    model, trial, found = trained(WAYS["linear"])
    images = image_sets.on_device(load(found, "train"), found, "cpu")
    computed = neighbours.features(model, iter([images.normalise(torch.from_numpy(np.array(images.pixels)))]))
    kept = features.kept_of(model, trial, found, "train", "cpu")
    assert kept is not None
    np.testing.assert_allclose(neighbours.unit(kept), computed, atol=ROUNDING)
    assert features.kept_of(*trained(WAYS["mlp"]), "train", "cpu") is None
    missing = config(f"training: {{epochs: {EPOCHS}}}\n", "resnet", tmp_path / "gone.pt")
    assert features.kept_of(model, missing, found, "train", "cpu") is None
    assert features.kept_of(model, config(), found, "train", "cpu") is None
    monkeypatch.setattr(features, "folder_beside", lambda _: tmp_path / "empty")
    assert features.kept_of(model, trial, found, "train", "cpu") is None


def test_a_bundle_knows_the_training_s_pictures_by_what_was_kept(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events(job(frozen(weights, WAYS["plain"]), data, tmp_path))
    file = tmp_path / "trial.pt"
    pixels = np.array(load(data, "val").pixels)
    said = []
    for number in range(2):
        deliver(replace(from_weights(file), is_held_out=True), tmp_path / str(number), Path(data.folder).parent)
        said.append(Artifact.load(tmp_path / str(number) / "model.onnx").answers(pixels)[1])
        monkeypatch.setattr(features, "kept", lambda *_: None)
    np.testing.assert_allclose(said[0], said[1], rtol=1e-2)


def test_features_larger_than_allowed_are_one_line(weights: Mapping[str, Path], data: Prepared, tmp_path: Path) -> None:
    base = BASE.replace("channels: 3", "channels: 3, cache_gb: 1e-6")
    trial = frozen(weights, "finetune: {freeze: backbone, views: 1}\naugment: {contrast: 0.3}\n", base=base)
    last = list(job_runner.JobRunner("cpu").work(job(trial, data, tmp_path), threading.Event()))[-1]
    assert isinstance(last, Failed)
    assert "features need 7.7 kB, image.cache_gb allows 1.0 kB; set it higher" in last.reason


FOLDS = BASE.replace("max_train: 120", "max_train: 120, folds: 3")


@pytest.mark.parametrize("more", ["head: logistic\n", WAYS["thawing"]])
def test_folds_read_rows_of_the_same_features(
    more: str, weights: Mapping[str, Path], folder: Path, tmp_path: Path, uncached: Callable[[], None]
) -> None:
    trial = frozen(weights, more, base=FOLDS)
    data = pipeline.prepare_data(trial, folder / ".images")
    found = epochs(events(job(trial, data, tmp_path / "whole", trial.epochs)))
    assert len(found) == trial.epochs == 3 * trial.training_epochs
    assert read_until(trial, data, tmp_path / "parts", range(1, trial.epochs + 1)) == found
    if trial.is_fitted:
        return
    uncached()
    for one, other in zip(found, epochs(events(job(trial, data, tmp_path / "plain", trial.epochs))), strict=True):
        assert one == pytest.approx(other, abs=ROUNDING)


def test_all_images_train_where_nothing_is_measured(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path
) -> None:
    trial = frozen(weights, "head: logistic\n")
    wanted = head_plan.plan(trial)
    assert wanted is not None
    found = head_phase.HeadFeatures(trial, start_weights.with_normalisation(trial, data), "cpu")
    list(found.computing(wanted, "train+val"))
    train, scored = found.sets(wanted, "train+val", None, 0)
    assert len(train) == data.counts["train"] + data.counts["val"]
    assert scored is None
    (only,) = epochs(events(job(trial, data, tmp_path, 1, portion="train+val")))
    assert set(only) == {"epoch", "train_loss"}


def test_a_fit_is_scikit_learns_and_is_in_the_weights(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    trial = frozen(weights, "head: logistic\n")
    assert (trial.training_epochs, trial.epochs) == (1, 1)
    (only,) = epochs(events(job(trial, data, tmp_path, 1)))
    backbone = features.frozen_network(trial, data, "cpu")
    known, asked = (features.features_of(backbone, split, folder_beside(data)) for split in ("train", "val"))
    labels, truth = load(data, "train").labels, load(data, "val").labels
    model, config_of, trained_on = networks.load_finished(state(tmp_path), "x")
    assert config_of.is_fitted
    images = image_sets.on_device(load(data, "val"), trained_on, "cpu")
    with torch.inference_mode():
        logits = model.eval()(images.normalise(torch.from_numpy(np.array(images.pixels)))).numpy()
    assert float(np.mean(logits.argmax(1) == truth)) == only["accuracy"]
    # The penalty is chosen by folds; one of those that are compared gives these very predictions.
    scale = StandardScaler().fit(known)
    agreements = [
        np.mean(
            LogisticRegression(C=strength, max_iter=2000)
            .fit(scale.transform(known), labels)
            .predict(scale.transform(asked))
            == logits.argmax(1)
        )
        for strength in (0.001, 0.01, 0.1, 1.0)
    ]
    assert max(agreements) > 0.98


def test_what_fits_is_fitted_once_and_takes_no_numbers_of_the_trial(
    weights: Mapping[str, Path], data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = head_phase.fit_linear
    monkeypatch.setattr(head_phase, "fit_linear", lambda *given, **named: calls.append(1) or real(*given, **named))
    runner = job_runner.JobRunner("cpu")
    first = epochs(events(job(frozen(weights, "head: logistic\n"), data, tmp_path / "a", 1), runner))
    other = replace(job(frozen(weights, "head: logistic\n"), data, tmp_path / "b", 1, seed=9), trial=1)
    second = epochs(events(other, runner))
    assert first == second
    assert calls == [1]


def test_a_fit_weighs_classes_as_the_loss_does(weights: Mapping[str, Path], data: Prepared, tmp_path: Path) -> None:
    runner = job_runner.JobRunner("cpu")
    text = 'head: logistic\nloss: {cross_entropy: {class_weights: {"3": 20}}}\n'
    plain, weighed = frozen(weights, "head: logistic\n"), frozen(weights, text)
    assert plain.essence != weighed.essence
    found = []
    for number, trial in enumerate((plain, weighed)):
        plan = head_plan.plan(trial)
        assert plan is not None
        epochs(events(replace(job(trial, data, tmp_path / str(number), 1), trial=number), runner))
        assert runner.current.features is not None
        # The features of both are the same ones: what is weighed comes with the trial.
        found.append(runner.current.features[1].fitted(plan, "train", None))
    assert not np.allclose(found[0].weight, found[1].weight)
    labels = np.asarray(load(data, "train").labels)
    by_class = [20.0 if name == "3" else 1.0 for name in data.classes]
    known = np.array(runner.current.features[1].kept["train", None])
    again = fit_linear(known, labels, 10, head_phase.FOLD_SEED, found[1].strength, by_class)
    assert np.allclose(again.weight, found[1].weight)


@pytest.mark.parametrize("loss", ["", "loss: {cross_entropy: {class_weights: {green: 20}}}\n"])
def test_a_fit_counts_images_as_balanced_draws_do(loss: str, weights: Mapping[str, Path], tmp_path: Path) -> None:
    colours(tmp_path / "photos", "blue", each=30)
    colours(tmp_path / "photos", "green", "red", each=8)
    base = f"data: {{folder: {{root: '{tmp_path / 'photos'}'}}}}\nimage: {{size: 32}}\nhead: logistic\n{loss}"
    plain, even = (
        config(f"training: {{draw: {draw}}}\n", weights=weights["resnet"], base=base)
        for draw in ("shuffled", "balanced")
    )
    # A search does not take the second for one that it has tried.
    assert plain.essence != even.essence
    data = pipeline.prepare_data(plain, tmp_path / ".images")
    runner = job_runner.JobRunner("cpu")
    found = []
    for number, trial in enumerate((plain, even)):
        plan = head_plan.plan(trial)
        assert plan is not None
        events(replace(job(trial, data, tmp_path / str(number), 1), trial=number), runner)
        assert runner.current.features is not None
        found.append(runner.current.features[1].fitted(plan, "train", None))
    assert not np.allclose(found[0].weight, found[1].weight)
    labels = np.asarray(load(data, "train").labels)
    counts = np.bincount(labels)
    assert counts[0] > 2 * counts[1]
    by_class = [20.0 if loss and name == "green" else 1.0 for name in data.classes] * (len(labels) / (3 * counts))
    known = np.array(runner.current.features[1].kept["train", None])
    again = fit_linear(known, labels, 3, head_phase.FOLD_SEED, found[1].strength, by_class.tolist())
    assert np.allclose(again.weight, found[1].weight)


def test_fine_tuning_starts_where_the_fit_ends(weights: Mapping[str, Path], data: Prepared, tmp_path: Path) -> None:
    fitted = epochs(events(job(frozen(weights, "head: logistic\n"), data, tmp_path / "fit", 1)))[0]
    gentle = "optimizer: {adamw: {lr: 1e-6}}\nschedule: {constant: {}}\n"
    begun = frozen(weights, f"finetune: {{start: logistic, freeze: backbone}}\n{gentle}")
    cold = frozen(weights, f"finetune: {{freeze: backbone}}\n{gentle}")
    first, other = (
        epochs(events(job(trial, data, tmp_path / name, 1)))[0] for trial, name in ((begun, "begun"), (cold, "cold"))
    )
    assert first["loss"] == pytest.approx(fitted["loss"], rel=0.01)
    assert other["loss"] > fitted["loss"] * 1.1


def test_several_labels_are_one_regression_each(weights: Mapping[str, Path], data: Prepared) -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=(200, 5)).astype(np.float32)
    labels = np.stack(
        [values[:, 0] > 0, values[:, 1] + 0.5 * random.normal(size=200) > 0.5, np.ones(200), np.zeros(200)], axis=1
    ).astype(np.uint8)
    found = fit_several(values, labels, 0)
    said = found.logits(values)
    for label in (0, 1):
        alone = fit_linear(values, labels[:, label].astype(np.int64), 2, 0).logits(values)
        assert np.allclose(said[:, label], alone[:, 1] - alone[:, 0], atol=1e-3)
    assert (said[:, 2] > 5).all()
    assert (said[:, 3] < -5).all()


def test_a_rare_label_counts_as_much_as_its_absence() -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=(300, 4)).astype(np.float32)
    labels = (values[:, :1] + random.normal(size=(300, 1)) > 2).astype(np.uint8)
    count = int(labels.sum())
    weighed = fit_several(values, labels, 0, [(300 - count) / count])
    by_hand = fit_linear(values, labels[:, 0].astype(np.int64), 2, 0, class_weights=(1.0, (300 - count) / count))
    assert np.allclose(weighed.weight[0], by_hand.weight[1] - by_hand.weight[0])
    # A rare label is found more often than where each image counts once.
    plain = fit_several(values, labels, 0)
    has = labels[:, 0] == 1
    assert (weighed.logits(values)[has, 0] > 0).mean() > (plain.logits(values)[has, 0] > 0).mean()


REFUSED = {
    "head: logistic": ("", "head.logistic: is fitted to features of pretrained weights, and this model has none"),
    "head: logistic\ndistill: {file: {path: a.pt}}": ("w", "head.logistic: is fitted to labels and learns from no"),
    "head: mlp\nfinetune: {start: logistic}": ("w", "finetune.start: logistic gives weights to one linear layer"),
    "finetune: {freeze: backbone, views: 2}\naugment: {cutmix: 1}": ("w", "finetune.views: mixup and cutmix mix"),
    "finetune: {freeze: backbone, views: 2}\ndistill: {file: {path: a.pt}}": ("w", "finetune.views: a teacher looks"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_is_one_line(text: str) -> None:
    is_pretrained, said = REFUSED[text]
    trial = config(f"{text}\n", weights=Path("w.pt") if is_pretrained else None)
    with pytest.raises(BuildError) as refusal:
        head_plan.check(trial)
    assert str(refusal.value).startswith(said)
    assert "; allowed: " in str(refusal.value)


@pytest.mark.parametrize("more", ["head: logistic\n", "finetune: {freeze: backbone, start: logistic}\n"])
def test_images_with_several_labels_have_heads_too(
    more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncached: Callable[[], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "pairs", 160)
    text = (
        "data: {table: {file: pairs/labels.csv, label: tags, separator: ';'}}\nimage: {size: [16, 32], channels: 3}\n"
    )
    text += f"model: {{resnet: {{depths: [1, 1], width: 8}}}}\ntraining: {{epochs: 3, batch_size: 32}}\n{more}"
    plain = parse(text, catalog(), source="x", overrides=[("head", "own"), ("finetune", "{}")]).config()
    data = pipeline.prepare_data(plain, tmp_path / ".images")
    torch.manual_seed(1)
    torch.save(networks.build_model(plain, data.shape).state_dict(), tmp_path / "w.pt")
    trial = parse(text, catalog(), source="x", overrides=[("model.resnet.weights", "w.pt")]).config()
    found = epochs(events(job(trial, data, tmp_path / "a", trial.epochs)))
    # By chance it is the mean share of images that have a label, about 0.19.
    assert found[-1]["average_precision"] > 0.3
    _, _, trained_on = networks.load_finished(state(tmp_path / "a"), "x")
    assert trained_on.thresholds is not None
    if not trial.is_fitted:
        uncached()
        for one, other in zip(found, epochs(events(job(trial, data, tmp_path / "b", 3))), strict=True):
            assert one == pytest.approx(other, abs=1e-3)


def test_views_are_cut_from_the_margin(weights: Mapping[str, Path], folder: Path, tmp_path: Path) -> None:
    base = BASE.replace("channels: 3", "channels: 3, margin: 1.25")
    more = "finetune: {freeze: backbone, views: 1}\naugment: {resized_crop: 0.5}\n"
    trial = frozen(weights, more, base=base)
    data = pipeline.prepare_data(trial, folder / ".images")
    assert load(data, "train", whole=True).pixels.shape[2:] == (40, 40)
    assert len(epochs(events(job(trial, data, tmp_path)))) == EPOCHS
