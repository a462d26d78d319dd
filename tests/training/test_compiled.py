"""Compiled networks, on a CPU: in every way they train as the plain one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.training.loop import fit
from imgcls_search.worker import image_sets, pipeline

TEXT = """
data: {digits: {max_train: 64}}
model: {lenet5: {}}
optimizer: {sgd: {lr: 0.05}}
training: {epochs: 2, batch_size: 32, device: cpu, compile: WANTED}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_way_of_compiling_trains_as_the_plain_network(tmp_path: Path) -> None:
    found = {}
    for wanted in ("false", "auto", "reduce_overhead"):
        config = parse(TEXT.replace("WANTED", wanted), catalog(), source="test.yaml").config()
        data = pipeline.prepare_data(config, tmp_path)
        session = pipeline.new_session(config, data, seed=5, device="cpu")
        assert session.is_compiled is (wanted == "reduce_overhead")
        assert isinstance(session.forward, torch._dynamo.OptimizedModule) is session.is_compiled
        train, validation = image_sets.image_sets(data, "train", "cpu")
        found[wanted] = list(fit(session, train, validation, until_epoch=2))[-1]["train_loss"]
    assert found["auto"] == found["false"]
    assert found["reduce_overhead"] == pytest.approx(found["false"], rel=1e-4)
