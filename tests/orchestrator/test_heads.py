"""Searches over heads: fits that are complete at once, rungs at the end of the frozen epochs, kills in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import InputShape
from imgcls_search.space import parse
from imgcls_search.worker import networks

from tests.conftest import Answer, linux_only
from tests.orchestrator.test_run import epochs_recorded, is_alive, offspring_of, open_study, wait_for

SPACE = """
study: {trials: 9, pruner: {asha: {min_epochs: 2, eta: 2}}, pictures: false}
data: {digits: {max_train: 300}}
image: {mean: data, std: data}
model: {resnet: {depths: [1, 1], width: 8, weights: weights.pt}}
head: {logistic: {}, linear: {}, mlp: {hidden: 8}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}
finetune: {freeze: backbone, freeze_epochs: 2}
training: {epochs: 4, batch_size: 50}
start: [{head: logistic}]
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """Return a space whose weights are random, which is enough for a search."""
    config = parse("data: {digits: {}}\nmodel: {resnet: {depths: [1, 1], width: 8}}\n", catalog(), source="x").config()
    torch.manual_seed(3)
    model = networks.build_model(config, InputShape(image_size=8, channels=1, classes=10))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "heads.yaml").write_text(SPACE)
    return tmp_path / "heads.yaml"


def rows(studies: Path) -> list[tuple[Any, ...]]:
    def epochs(trial: Any) -> list[dict[str, float]]:
        shown = trial.user_attrs.get("epochs", [])
        return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in shown]

    return [(t.number, t.state.name, t.params, t.values, epochs(t)) for t in open_study(studies, "heads-digits").trials]


def test_fits_are_complete_and_the_best_heads_are_fine_tuned(space: Path, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("run", space, "--workers", "1")
    assert answer.code == 0, answer.err
    found = rows(space.parent / "studies")
    assert found[0][1:3] == ("COMPLETE", {**found[0][2], "head": "logistic"})
    assert [len(epochs) for *_, epochs in found].count(1) == 1
    lengths = {len(epochs) for *_, epochs in found[1:]}
    # Two epochs of the head, and of the best the two after them.
    assert lengths == {2, 4}
    assert "features of training images by resnet: 300 images, computed once for all trials" in answer.err + answer.out
    status = json.loads(imgcls("status", "heads-digits", "--json").out)
    assert status["epochs"] == sum(len(epochs) for *_, epochs in found)


@linux_only
@pytest.mark.slow
def test_killed_in_both_phases_and_resumed_equals_undisturbed(
    space: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    arguments = (space, "--workers", "1", "--set", "data.digits.max_train=1000", "--set", "study.trials=5")
    undisturbed, disturbed = space.parent / "a", space.parent / "b"
    assert imgcls("run", *arguments, "--studies", undisturbed).code == 0
    for epochs in (2, 6):
        process = start("run", *arguments, "--studies", disturbed)
        wait_for(
            lambda process=process, epochs=epochs: (
                process.poll() is not None or epochs_recorded(disturbed, "heads-digits") >= epochs
            )
        )
        offspring = offspring_of(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda offspring=offspring: not any(is_alive(child) for child in offspring))
    assert imgcls("run", *arguments, "--studies", disturbed).code == 0
    assert rows(disturbed) == rows(undisturbed)
