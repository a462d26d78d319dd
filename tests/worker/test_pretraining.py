"""Pretraining in a worker: the one loop, what it leaves on disk, and what starts from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
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
from imgcls_search.data.unlabeled import open_unlabeled
from imgcls_search.measures import NEIGHBOURS, PROBE
from imgcls_search.protocol import EpochEnded, Event, Failed, Job, MilestoneReached, Notice, Started, Stopped
from imgcls_search.space import parse
from imgcls_search.training import checkpoint, health
from imgcls_search.worker import features, job_runner, networks, pipeline, start_weights

from tests.training_job import training_job

EPOCHS = 3
BASE = "data: {digits: {max_train: 150}}\nimage: {size: 8, channels: 1}\n"
MODEL = "model: {resnet: {depths: [1, 1], width: 8}}\n"
SIMCLR = f"pretrain: {{simclr: {{epochs: {EPOCHS}, batch_size: 64, flip: none, projection: [16, 8]}}}}\n"
IMITATE = f"pretrain: {{imitate: {{epochs: {EPOCHS}, batch_size: 64, size: 16}}}}\n"


def config(text: str) -> TrialConfig:
    return parse(BASE + text, catalog(), source="x").config()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    return pipeline.prepare_data(config(MODEL), tmp_path_factory.mktemp("studies") / ".images")


@pytest.fixture(scope="module")
def teacher(data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network of this program for images of 16 pixels."""
    torch.manual_seed(1)
    wanted = config("model: {resnet: {depths: [1, 1, 1], width: 6}}\n")
    known = replace(data, image_size=16)
    state = {"model": networks.build_model(wanted, known.shape).state_dict(), "history": [{}] * 15}
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    checkpoint.save({**state, **networks.describe_weights(wanted, known)}, path)
    return path


def job(text: str, data: Prepared, folder: Path, **changes: Any) -> Job:
    wanted = config(text).pretraining()
    return training_job(wanted, data, folder, artifact=str(folder / "backbone.pt"), **changes)


def work(one: Job, stop: threading.Event | None = None) -> list[Event]:
    return list(job_runner.JobRunner("cpu").work(one, stop or threading.Event()))


def learned(events: Iterable[Event]) -> list[dict[str, float]]:
    """Return what the epochs measured, but for the time that they took."""
    ended = [event.metrics for event in events if isinstance(event, EpochEnded)]
    return [{name: value for name, value in metrics.items() if name != "seconds"} for metrics in ended]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("text", [SIMCLR, IMITATE, SIMCLR.replace("flip: none", "optimizer: {sgd: {lr: 0.05}}")])
def test_a_training_in_pieces_is_the_one_without_a_break(
    text: str, data: Prepared, teacher: Path, tmp_path: Path
) -> None:
    taught = {"teacher": str(teacher)} if text == IMITATE else {}
    whole = work(job(MODEL + text, data, tmp_path / "whole", **taught))
    assert isinstance(whole[-1], MilestoneReached), whole[-1]
    pieces: list[dict[str, float]] = []
    for until in range(1, EPOCHS + 1):
        # Each in a worker of its own, as after a kill.
        step = job(MODEL + text, data, tmp_path / "pieces", until_epoch=until, from_epoch=until - 1, **taught)
        pieces += learned(work(step))
    assert pieces == learned(whole)
    assert [epoch["epoch"] for epoch in pieces] == [1, 2, 3]
    assert equal(weights_of(tmp_path / "pieces/backbone.pt"), weights_of(tmp_path / "whole/backbone.pt"))
    assert pieces[-1]["train_loss"] < pieces[0]["train_loss"]


def test_a_stop_in_the_middle_loses_nothing(data: Prepared, tmp_path: Path) -> None:
    whole = work(job(MODEL + SIMCLR, data, tmp_path / "whole"))
    stop, seen = threading.Event(), []
    one = job(MODEL + SIMCLR, data, tmp_path / "stopped")
    for event in job_runner.JobRunner("cpu").work(one, stop):
        seen.append(event)
        if isinstance(event, EpochEnded):
            stop.set()
    assert isinstance(seen[-1], Stopped)
    assert len(learned(seen)) < EPOCHS
    later = work(replace(one, from_epoch=len(learned(seen))))
    assert learned(seen) + learned(later) == learned(whole)


def test_what_is_measured_is_recorded_with_each_epoch(data: Prepared, tmp_path: Path) -> None:
    rare = SIMCLR.replace("epochs: 3", "epochs: 4, health_every: 2")
    found = learned(work(job(MODEL + rare, data, tmp_path)))
    measures = {PROBE, NEIGHBOURS, health.RANK}
    assert all(health.SPREAD in epoch for epoch in found)
    assert [measures <= epoch.keys() for epoch in found] == [False, True, False, True]
    assert [health.RANDOM in epoch for epoch in found] == [True, False, False, False]
    # An objective is measured after each epoch.
    for measure in (NEIGHBOURS, PROBE):
        named = learned(work(job(MODEL + rare, data, tmp_path / "named" / measure, metrics=(measure,))))
        assert all(measures <= epoch.keys() for epoch in named)
    assert [epoch["train_loss"] for epoch in named] == [epoch["train_loss"] for epoch in found]
    # What a probe shows is that of the features, fitted by another hand.
    from sklearn.neighbors import KNeighborsClassifier

    state = torch.load(tmp_path / "named" / PROBE / "backbone.pt", weights_only=True)
    model = networks.build_own_model(config(MODEL), data.shape)
    model.load_state_dict(state["model"], strict=False)
    model.fc = torch.nn.Identity()
    known = start_weights.with_normalisation(config(MODEL), data)
    from imgcls_search.worker import image_sets

    train, scored = image_sets.image_sets(known, "train", "cpu")
    assert scored is not None
    with torch.no_grad():
        made = [
            model.eval()(each.normalise(torch.from_numpy(np.array(each.pixels)))).flatten(1).numpy()
            for each in (train, scored)
        ]
    nearest = KNeighborsClassifier(10, metric="cosine", weights="distance").fit(made[0], train.labels)
    assert named[-1][NEIGHBOURS] == pytest.approx((nearest.predict(made[1]) == scored.labels).mean(), abs=0.02)


def test_the_file_loads_strictly_into_torchvisions_network(data: Prepared, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    same = "model: {resnet: {depths: [2, 2, 2, 2], width: 64, block: basic, stem: small}}\n"
    text = SIMCLR.replace(f"epochs: {EPOCHS}", "epochs: 1")
    assert isinstance(work(job(same + text, data, tmp_path))[-1], MilestoneReached)
    state = weights_of(tmp_path / "backbone.pt")
    theirs = resnet18(num_classes=10)
    theirs.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    head = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith("fc.")}
    theirs.load_state_dict({**state, **head}, strict=True)
    # And by `weights:`, into each family's own.
    given = same.replace("block", f"weights: {tmp_path / 'backbone.pt'}, block")
    started = pipeline.new_session(
        config(given), start_weights.with_normalisation(config(given), data), seed=5, device="cpu"
    )
    own = started.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    about = json.loads(torch.load(tmp_path / "backbone.pt", weights_only=True)["about"])
    assert about["pretrained"]["images"] == 1222
    assert about["pretrained"]["epochs"] == 1
    assert about["config"]["pretrain"]["simclr"]["temperature"] == 0.2
    assert set(about["config"]) == {"data", "image", "model", "unlabeled", "pretrain"}


@pytest.mark.parametrize(
    "model",
    [
        "lenet5: {}",
        "vit: {patch_size: 4, width: 16, depth: 1, heads: 2}",
        "mobilenetv3: {width_mult: 0.25}",
        "timm: {name: test_resnet}",
    ],
)
def test_any_family_is_pretrained_and_starts_from_its_file(model: str, data: Prepared, tmp_path: Path) -> None:
    if model.startswith("timm"):
        pytest.importorskip("timm")
    text = f"model: {{{model}}}\n"
    events = work(job(text + SIMCLR.replace(f"epochs: {EPOCHS}", "epochs: 1"), data, tmp_path))
    assert isinstance(events[-1], MilestoneReached), events[-1]
    name, file = model.partition(":")[0], str(tmp_path / "backbone.pt")
    given = parse(BASE + text, catalog(), source="x", overrides=[(f"model.{name}.weights", file)]).config()
    known = start_weights.with_normalisation(given, data)
    assert (known.mean, known.std) == (data.mean, data.std)
    own = pipeline.new_session(given, known, seed=5, device="cpu").model.state_dict()
    state = weights_of(tmp_path / "backbone.pt")
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert len(own) - len(state) in (1, 2)
    # The whole configuration starts from it too, as a search has it.
    whole = config(text + SIMCLR)
    started = pipeline.new_session(whole, data, seed=5, device="cpu", backbone=file).model.state_dict()
    assert equal(started, own)
    if name == "timm":
        theirs = pytest.importorskip("timm").create_model("test_resnet", in_chans=1, num_classes=10)
        head = {key: tensor for key, tensor in theirs.state_dict().items() if key.startswith("fc.")}
        theirs.load_state_dict({**state, **head}, strict=True)


def test_batches_are_never_trained_in_parts_where_the_loss_compares_their_images(
    data: Prepared, teacher: Path, tmp_path: Path
) -> None:
    failed = work(job(MODEL + SIMCLR, data, tmp_path, micro_batches=2))[-1]
    assert isinstance(failed, Failed)
    assert failed.reason == (
        "pretrain.simclr.batch_size: its loss compares all images of a batch, which cannot go through the network in "
        "parts; allowed: a smaller batch_size"
    )
    assert config(MODEL + SIMCLR).pretraining().needs_whole_batches
    assert not config(MODEL + IMITATE).pretraining().needs_whole_batches
    parts = work(job(MODEL + IMITATE, data, tmp_path, micro_batches=2, teacher=str(teacher)))
    assert isinstance(parts[-1], MilestoneReached)


def test_a_teachers_features_are_computed_once_for_all(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pipeline.prepare_data(config(MODEL), tmp_path / "studies/.images")
    events = work(job(MODEL + IMITATE, data, tmp_path / "one", teacher=str(teacher)))
    assert isinstance(events[-1], MilestoneReached)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert told[0] == "features of 1,222 images by the teacher, at 16 pixels: 128 done; computed once, and kept"
    kept = {path.name for path in folder_beside(data).iterdir()}

    def never(*_: Any) -> Any:
        raise AssertionError("they are there")

    monkeypatch.setattr(features, "compute_in_steps", never)
    # Another student, seed and learning rate learn from the same.
    other = "model: {vit: {patch_size: 4, width: 16, depth: 1, heads: 2}}\n" + IMITATE
    again = work(job(other, data, tmp_path / "other", teacher=str(teacher), seed=9))
    assert isinstance(again[-1], MilestoneReached), again[-1]
    assert {path.name for path in folder_beside(data).iterdir()} == kept
    # No projection is left in the file, and none of the teacher.
    assert set(weights_of(tmp_path / "one/backbone.pt")) == {
        name for name in networks.build_own_model(config(MODEL), data.shape).state_dict() if not name.startswith("fc.")
    }


def test_teachers_see_the_images_at_their_own_size(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    compute = features.compute_in_steps

    def watched(found: Any, images: Any, view: Any = None) -> Any:
        seen.append(images.pixels[np.arange(3)])
        return compute(found, images, view)

    monkeypatch.setattr(features, "compute_in_steps", watched)
    data = pipeline.prepare_data(config(MODEL), tmp_path / ".images")
    found = work(job(MODEL + IMITATE, data, tmp_path, teacher=str(teacher)))
    assert isinstance(found[-1], MilestoneReached), found[-1]
    # From the files, in the order of the student's images.
    larger = parse(BASE.replace("size: 8", "size: 16") + MODEL, catalog(), source="x").config()
    own = load(pipeline.prepare_data(larger, tmp_path / ".images"), "train").pixels
    names = load(data, "train").names
    assert names[:3] == open_unlabeled(config(MODEL), data, tmp_path / ".images").names[:3]
    assert (seen[0] == own[:3]).all()


def test_a_finished_one_is_known_and_another_folder_of_images_is_not_taken_for_it(
    data: Prepared, tmp_path: Path
) -> None:
    one = job(MODEL + SIMCLR, data, tmp_path)
    first = work(one)
    written = (tmp_path / "backbone.pt").stat().st_mtime_ns
    again = work(one)
    assert learned(again) == []
    assert isinstance(again[0], Started)
    assert len(again[0].history) == EPOCHS
    assert (tmp_path / "backbone.pt").stat().st_mtime_ns == written
    # A checkpoint on the way, of other images.
    (tmp_path / "backbone.pt").unlink()
    work(replace(one, until_epoch=1))
    state = checkpoint.load(tmp_path / "trial.pt")
    about = json.loads(state["about"])
    about["pretrained"]["prints"] = "others"
    checkpoint.save({**state, "about": json.dumps(about)}, tmp_path / "trial.pt")
    events = work(replace(one, from_epoch=1))
    started = next(event for event in events if isinstance(event, Started))
    assert started.dropped == "its checkpoint was trained on other images"
    assert learned(events) == learned(first)


def test_a_checkpoint_that_imitated_another_teacher_is_not_taken(data: Prepared, teacher: Path, tmp_path: Path) -> None:
    begun = job(MODEL + IMITATE, data, tmp_path, until_epoch=1, teacher=str(teacher), teacher_digest="one")
    assert len(learned(work(begun))) == 1
    for digest, dropped in (("one", ""), ("other", "its checkpoint imitated another teacher")):
        events = work(replace(begun, teacher_digest=digest))
        started = next(event for event in events if isinstance(event, Started))
        assert started.dropped == dropped
        assert len(learned(events)) == (1 if dropped else 0)
    assert isinstance(work(replace(begun, until_epoch=EPOCHS, teacher_digest="other"))[-1], MilestoneReached)
    about = json.loads(torch.load(tmp_path / "backbone.pt", weights_only=True)["about"])
    assert about["pretrained"]["teacher"] == "other"


def test_a_training_from_a_pretrained_network_may_learn_from_a_teacher_too(data: Prepared, tmp_path: Path) -> None:
    work(job(MODEL + SIMCLR, data, tmp_path))
    backbone, answers = str(tmp_path / "backbone.pt"), str(tmp_path / "answers.pt")
    torch.manual_seed(1)
    state = {"model": networks.build_model(config(MODEL), data.shape).state_dict(), "history": [{}] * 15}
    checkpoint.save({**state, **networks.describe_weights(config(MODEL), data)}, Path(answers))
    whole = config(MODEL + SIMCLR + f"distill: {{file: {{path: {answers}}}}}\ntraining: {{epochs: 1}}\n")
    session = pipeline.new_session(whole, data, seed=5, device="cpu", backbone=backbone, teacher=answers)
    assert session.teach is not None
    own = session.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights_of(Path(backbone)).items())
    one = job(MODEL + SIMCLR, data, tmp_path / "whole", config=whole, until_epoch=1, backbones=(backbone,))
    assert isinstance(work(replace(one, artifact="", teacher=answers))[-1], MilestoneReached)


def test_a_probe_no_better_than_at_random_is_told(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is learned at such a rate.
    idle = SIMCLR.replace("flip: none", "optimizer: {sgd: {lr: 1e-12, weight_decay: 0}}, temperature: 1e+3")
    events = work(job(MODEL + idle, data, tmp_path))
    told = [event.text for event in events if isinstance(event, Notice)]
    probes = [epoch[PROBE] for epoch in learned(events)]
    random = learned(events)[0][health.RANDOM]
    assert any("no better than a random network's" in text for text in told) == (probes[-1] <= random)
    monkeypatch.setattr(health.Health, "_of_random", lambda self, learner: {health.RANDOM: 0.999})
    told = [event.text for event in work(job(MODEL + SIMCLR, data, tmp_path / "x")) if isinstance(event, Notice)]
    assert [text for text in told if "no better than a random network's, 0.999" in text]


def test_a_collapse_stops_the_training_and_says_why(data: Prepared, tmp_path: Path) -> None:
    # A huge decay pulls all weights to zero.
    text = "pretrain: {simclr: {epochs: 30, batch_size: 64, warmup: 0, optimizer: {sgd: {lr: 1, weight_decay: 0.9}}}}\n"
    events = work(job("model: {lenet5: {}}\n" + text, data, tmp_path))
    failed = events[-1]
    assert isinstance(failed, Failed), learned(events)
    assert failed.kind == "diverged"
    assert failed.reason.startswith("collapsed: the spread of the projections was under 0.1 for 3 epochs")
    assert len(learned(events)) < 30
    assert all(epoch["spread"] < 0.1 for epoch in learned(events)[-3:])
    # A later call with the checkpoint of that epoch does not finish it either.
    last = job("model: {lenet5: {}}\n" + text, data, tmp_path / "again", until_epoch=len(learned(events)))
    assert len(learned(work(last))) == len(learned(events))
    later = work(last)
    assert learned(later) == []
    assert isinstance(later[-1], Failed), later[-1]
    assert later[-1].reason == failed.reason


def test_images_with_several_labels_have_no_accuracy_and_are_pretrained(tmp_path: Path) -> None:
    from tests.pairs import write_table

    write_table(tmp_path / "photos")
    text = (
        f"data: {{table: {{file: {tmp_path / 'photos/labels.csv'}, label: tags, separator: ';'}}}}\n"
        "image: {size: 8, channels: 3}\n" + MODEL + SIMCLR.replace("batch_size: 64", "batch_size: 16")
    )
    whole = parse(text, catalog(), source="x").config()
    wanted = whole.pretraining()
    images = pipeline.prepare_data(wanted, tmp_path / ".images")
    events = work(job(MODEL + SIMCLR, images, tmp_path / "out", config=wanted))
    assert isinstance(events[-1], MilestoneReached), events[-1]
    assert all(health.SPREAD in epoch and PROBE not in epoch for epoch in learned(events))


def test_each_fold_starts_from_its_own_backbone(data: Prepared, tmp_path: Path) -> None:
    text = "data: {digits: {max_train: 150, folds: 2}}\nimage: {size: 8, channels: 1}\n" + MODEL + SIMCLR
    whole = parse(text + "training: {epochs: 1}\n", catalog(), source="x").config()
    images = pipeline.prepare_data(whole, tmp_path / ".images")
    made = []
    for fold in range(2):
        one = job(MODEL + SIMCLR, images, tmp_path / str(fold), config=whole.pretraining(), fold=fold)
        events = work(one)
        assert isinstance(events[-1], MilestoneReached), events[-1]
        made.append(str(tmp_path / str(fold) / "backbone.pt"))
    assert not equal(weights_of(Path(made[0])), weights_of(Path(made[1])))
    seen: list[Any] = []
    original = pipeline.new_session

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(settings["backbone"])
        return original(*arguments, **settings)

    pipeline.new_session = watched  # type: ignore[assignment]
    try:
        full = replace(
            job(MODEL + SIMCLR, images, tmp_path / "full", config=whole, until_epoch=whole.epochs),
            artifact="",
            backbones=tuple(made),
        )
        events = work(full)
    finally:
        pipeline.new_session = original
    assert isinstance(events[-1], MilestoneReached), events[-1]
    assert seen == made


def test_a_head_on_kept_features_reads_those_of_the_pretrained_network(data: Prepared, tmp_path: Path) -> None:
    work(job(MODEL + SIMCLR, data, tmp_path))
    backbone = str(tmp_path / "backbone.pt")
    frozen = "head: {logistic: {}}\n"
    whole = config(MODEL + SIMCLR + frozen)
    by_hand = parse(
        BASE + MODEL + frozen, catalog(), source="x", overrides=[("model.resnet.weights", backbone)]
    ).config()
    scores = []
    for number, (wanted, backbones) in enumerate([(whole, (backbone,)), (by_hand, ())]):
        one = job(MODEL + SIMCLR, data, tmp_path / str(number), config=wanted, until_epoch=1, backbones=backbones)
        events = work(replace(one, artifact=""))
        assert isinstance(events[-1], MilestoneReached), events[-1]
        scores.append(learned(events)[-1])
    assert scores[0] == scores[1]


def test_digests_know_nothing_of_where_unlabeled_images_are() -> None:
    one, other = (
        config(MODEL + SIMCLR + f"unlabeled: {{folder: {{root: {root}}}}}\n").pretraining() for root in ("a", "b")
    )
    assert one.digest_anywhere() == other.digest_anywhere()
    assert one.digest() != other.digest()
