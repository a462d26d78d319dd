"""Searches that compress: what is recorded is what the exported file shows, whatever happens meanwhile."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared, load
from imgcls_search.executors.helper import image_cache
from imgcls_search.executors.local import LocalExecutor
from imgcls_search.protocol import EpochEnded, Event, Job, MilestoneReached, Scored, Stopped
from imgcls_search.space import parse
from imgcls_search.worker import networks, pipeline

from tests.conftest import PATIENCE, Answer, linux_only
from tests.orchestrator.test_run import open_study, without_times

SPACE = """
study: {trials: 2, sampler: grid, pruner: {halving: {min_epochs: 2, eta: 2}}, pictures: false}
data: {digits: {max_train: 200}}
model: {resnet: {depths: [1, 1], width: 8}}
optimizer: {adamw: {lr: 5e-3}}
training: {epochs: 4, batch_size: 50}
prune:
  none: {}
  structured: {amount: 0.5, finetune_epochs: 1}
quantize: {int8: {calibration_images: 16}}
limits: {size_kb: 19.5}
"""


LATER = ("distill", "prune", "quantize")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SPACE)
    return path


@pytest.mark.slow
def test_recorded_values_are_those_of_the_file(space: Path, imgcls: Callable[..., Answer]) -> None:
    studies, pruner = space.parent / "studies", ("--set", "study.pruner=none")
    answer = imgcls("run", space, *pruner)
    assert answer.code == 0, answer.err
    known = open_study(studies, "small-digits")
    data = prepared(space, studies)
    images = load(data, "val")
    for trial in known.trials:
        weights = studies / f"small-digits/checkpoints/trial-{trial.number:05d}.pt"
        (score,) = trial.user_attrs["scores"]
        assert trial.constraints == {"limits.size_kb": score["metrics"]["size_kb"] - 19.5}
        assert trial.value == score["metrics"]["accuracy"]
        if not weights.exists():
            assert trial.constraints["limits.size_kb"] > 0
            continue
        # The runtime alone, as somebody else would use the file.
        session = onnxruntime.InferenceSession(weights.with_suffix(".onnx").read_bytes())
        logits = session.run(None, {"pixels": np.asarray(images.pixels)})[0]
        assert (logits.argmax(1) == images.labels).mean() == trial.value
        assert weights.with_suffix(".onnx").stat().st_size / 1024 == score["metrics"]["size_kb"]
    # Structured pruning keeps the limit, the whole network does not; everybody agrees on the best.
    over = [trial.number for trial in known.trials if any(excess > 0 for excess in trial.constraints.values())]
    assert len(over) == 1
    (best,) = json.loads(imgcls("best", "small-digits", "--json").out)["best"]
    assert best["trial"] == known.best_trial.number
    assert json.loads(imgcls("status", "small-digits", "--json").out)["over_limits"] == {"limits.size_kb": len(over)}
    weights = studies / f"small-digits/checkpoints/trial-{best['trial']:05d}.pt"
    again = json.loads(imgcls("evaluate", weights, "--json").out)
    assert again["metrics"]["accuracy"] == best["values"]["accuracy"]
    assert best["sizes"]["params"] == count_parameters(studies / "small-digits", best["trial"])
    assert imgcls("export", "small-digits", "-o", "best.yaml").code == 0
    trained = imgcls("train", "best.yaml", "--json")
    assert trained.code == 0, trained.err
    report = json.loads(trained.out)
    assert report["validation"]["1"]["size_kb"] <= 19.5
    measured = json.loads(imgcls("evaluate", "trained/best/seed-1.pt", "--split", "test", "--json").out)
    assert measured["metrics"] == report["test"]["1"]
    (space.parent / "trained/best/seed-1.onnx").unlink()
    missing = imgcls("evaluate", "trained/best/seed-1.pt")
    assert (missing.code, len(missing.err.splitlines())) == (2, 1)
    assert "its compressed network is missing" in missing.err


@pytest.mark.slow
def test_study_that_is_older_than_these_sections_goes_on(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    finite = ("--set", "optimizer.adamw.lr=1e-3", "--set", "training.epochs=1", "--set", "study.sampler=grid")
    assert imgcls("run", tiny, *finite, "--set", "study.trials=2").code == 0
    database = sqlite3.connect(tiny.parent / "studies/tiny-digits.db")
    for table, key in (("study_user_attributes", "space"), ("trial_user_attributes", "config")):
        for row, text in database.execute(f"SELECT rowid, value_json FROM {table} WHERE key = ?", (key,)).fetchall():  # noqa: S608
            kept = {name: value for name, value in json.loads(text).items() if name not in LATER}
            assert len(kept) == len(json.loads(text)) - len(LATER)
            database.execute(f"UPDATE {table} SET value_json = ? WHERE rowid = ?", (json.dumps(kept), row))  # noqa: S608
    database.commit()
    database.close()
    answer = imgcls("run", tiny, *finite, "--set", "study.trials=50")
    assert answer.code == 0, answer.err
    # None of the four combinations is taken for a new one.
    assert "exhausted: 4 trials" in answer.out


def count_parameters(folder: Path, number: int) -> int:
    from imgcls_search.training import checkpoint

    path = folder / f"checkpoints/trial-{number:05d}.pt"
    model, _, _ = networks.load_weights(checkpoint.load(path), str(path))
    return sum(parameter.numel() for parameter in model.parameters())


def prepared(space: Path, studies: Path) -> Prepared:
    config = parse(space.read_text(), catalog(), source="small.yaml").first()
    return pipeline.prepare_data(config, image_cache(studies))


@pytest.mark.slow
@linux_only
def test_killed_while_compressing_and_resumed_equals_undisturbed(
    space: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    space.write_text(SPACE.replace("  none: {}\n", "  unstructured: {amount: 0.5, finetune_epochs: 1}\n"))
    arguments = (space, "--workers", "1", "--set", "quantize=none")
    undisturbed, disturbed = space.parent / "a", space.parent / "b"
    assert imgcls("run", *arguments, "--studies", undisturbed).code == 0
    log = disturbed / "small-digits/logs"
    for number in range(2):
        # In the middle of what follows a rung, and the last epoch.
        process = start("run", *arguments, "--studies", disturbed)
        wait_for_text(log, "after pruning at epoch" if number == 0 else "as deployed after epoch 4", process)
        process.kill()
        process.communicate()
    assert imgcls("run", *arguments, "--studies", disturbed).code == 0
    assert table(disturbed) == table(undisturbed)


def table(folder: Path) -> list[Any]:
    def shown(trial: optuna.trial.FrozenTrial) -> list[Any]:
        scores = [
            {name: value for name, value in entry["metrics"].items() if name != "seconds"}
            for entry in trial.user_attrs.get("scores", [])
        ]
        return [trial.state, trial.values, trial.intermediate_values, trial.constraints, scores, without_times(trial)]

    return [shown(trial) for trial in open_study(folder, "small-digits").trials]


def wait_for_text(folder: Path, text: str, process: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if any(text in path.read_text() for path in folder.glob("*.log")):
            return
        assert process.poll() is None
        time.sleep(0.01)
    raise AssertionError(f"no {text!r} in time")


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor(["cpu", "cpu"])
    yield made
    made.close()


@pytest.mark.slow
def test_latency_is_taken_while_the_other_worker_rests(space: Path, tmp_path: Path, executor: LocalExecutor) -> None:
    text = SPACE.replace("epochs: 4", "epochs: 3000").replace("size_kb: 19.5", "size_kb: 900")
    config = parse(text, catalog(), source="small.yaml").first()
    data = prepared(space, tmp_path)
    long = job(1, config, data, tmp_path, until_epoch=3000)
    from imgcls_search.deploy.onnx import export_onnx

    artifact = tmp_path / "model.onnx"
    model = networks.build_model(config, data.shape)
    export_onnx(model, artifact, shape=data.shape, mean=data.mean, std=data.std)
    timed = job(2, config, data, tmp_path, until_epoch=3000, kind="time", artifact=str(artifact))
    executor.start(long)
    until(executor, lambda event: isinstance(event, EpochEnded))
    executor.start(timed)
    assert executor.free_slots() == 0
    (busy,) = (worker for worker in executor.workers if worker.job is long)
    for _ in range(12_000):
        if executor.alone_worker is None:
            executor.next_event(0.05)
    assert busy.is_paused
    scored = until(executor, lambda event: isinstance(event, Scored))
    # Nothing of the other trial came in between.
    assert all(event.trial == 2 for event in scored)
    assert scored[-1].metrics["latency_ms"] > 0  # type: ignore[attr-defined]
    until(executor, lambda event: isinstance(event, MilestoneReached))
    executor.next_event(0.05)
    assert executor.free_slots() == 1
    assert not busy.is_paused
    until(executor, lambda event: isinstance(event, EpochEnded) and event.trial == 1)
    # Asked to stop before all others rest, it never begins.
    executor.start(timed)
    executor.stop(2)
    assert isinstance(until(executor, lambda event: event.trial == 2)[-1], Stopped)
    until(executor, lambda event: isinstance(event, EpochEnded) and event.trial == 1)


def job(trial: int, config: Any, data: Prepared, folder: Path, **more: Any) -> Job:
    return Job(
        trial=trial,
        config=config,
        data=data.to_dict(),
        seed=0,
        portion="train",
        from_epoch=0,
        checkpoint=str(folder / f"{trial}.pt"),
        log=str(folder / f"{trial}.log"),
        **more,
    )


def until(executor: LocalExecutor, is_it: Callable[[Event], bool]) -> list[Event]:
    """Return the events up to the one that is looked for."""
    events: list[Event] = []
    for _ in range(6000):
        event = executor.next_event(0.1)
        if event is not None:
            events.append(event)
            if is_it(event):
                return events
    raise AssertionError(f"it did not come: {events[-3:]}")
