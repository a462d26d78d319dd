"""Losses and measures of learning without labels, against what their papers write, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from imgcls_search.errors import BuildError, DivergedError
from imgcls_search.measures import PROBE
from imgcls_search.training import health
from imgcls_search.training.learner import (
    ContrastiveLoss,
    ImitationLoss,
    Learner,
    num_features,
    projector,
    without_head,
)
from imgcls_search.training.pretraining import lars
from torch import nn


def written_out(projections: torch.Tensor, temperature: float) -> float:
    """Return NT-Xent as Chen et al. 2020 write it, one pair after the other."""
    rows = projections.double().numpy()
    count = len(rows)

    def near(i: int, k: int) -> float:
        return float(rows[i] @ rows[k] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[k])))

    losses = []
    for i in range(count):
        j = (i + count // 2) % count
        among = sum(math.exp(near(i, k) / temperature) for k in range(count) if k != i)
        losses.append(-math.log(math.exp(near(i, j) / temperature) / among))
    return sum(losses) / count


@pytest.mark.parametrize(("images", "temperature"), [(2, 0.5), (5, 0.2), (16, 0.1)])
def test_contrast_is_the_formula_of_the_paper(images: int, temperature: float) -> None:
    torch.manual_seed(images)
    projections = 3 * torch.randn(2 * images, 7)
    loss = ContrastiveLoss(temperature)(projections, torch.zeros(images))
    assert float(loss) == pytest.approx(written_out(projections, temperature), abs=1e-6)


def test_contrast_of_two_halves_is_not_that_of_the_batch() -> None:
    torch.manual_seed(0)
    projections = torch.randn(64, 8)
    first, second = projections.tensor_split(2)
    contrast = ContrastiveLoss(0.2)
    halves = [contrast(torch.cat([first[part], second[part]]), torch.zeros(16)) for part in (slice(16), slice(16, 32))]
    assert float(sum(halves) / 2) < float(contrast(projections, torch.zeros(32))) - 0.3


def test_contrast_is_exact_where_the_network_is_not() -> None:
    torch.manual_seed(0)
    projections = torch.randn(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ContrastiveLoss(0.1)(projections, torch.zeros(8))
    assert float(loss) == pytest.approx(written_out(projections, 0.1), abs=1e-6)


def test_imitation_is_the_cosine_distance_from_features_of_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    taught = torch.randn(50, 6) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0, 0.0]) + 5
    loss = ImitationLoss(taught.mean(dim=0), taught.std(dim=0, correction=0))
    wanted = np.zeros((50, 6))
    rows = taught.double().numpy()
    # The last of them is always the same, and says nothing.
    wanted[:, :5] = (rows[:, :5] - rows[:, :5].mean(axis=0)) / rows[:, :5].std(axis=0)
    own = torch.randn(50, 6)
    ours = own.double().numpy()
    cosines = (wanted * ours).sum(axis=1) / (np.linalg.norm(wanted, axis=1) * np.linalg.norm(ours, axis=1))
    assert float(loss(own, taught)) == pytest.approx(1 - cosines.mean(), abs=1e-5)
    assert float(loss(torch.from_numpy(wanted), taught)) == pytest.approx(0, abs=1e-5)


def test_spread_is_near_1_for_all_directions_and_0_for_one() -> None:
    torch.manual_seed(0)
    assert health.spread(torch.randn(4_000, 32)) == pytest.approx(1, abs=0.02)
    assert health.spread(torch.randn(1, 32).expand(100, 32) * torch.rand(100, 1)) == pytest.approx(0, abs=1e-6)
    # The definition, number by number.
    few = torch.randn(5, 3)
    rows = few.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert health.spread(few) == pytest.approx(rows.std(axis=0).mean() * math.sqrt(3))


def test_effective_rank_counts_directions() -> None:
    torch.manual_seed(0)
    base = torch.linalg.qr(torch.randn(200, 200)).Q
    base = base - base.mean(dim=0)
    for rank in (1, 3, 8):
        basis = torch.linalg.qr(base[:, :rank]).Q
        features = basis @ torch.linalg.qr(torch.randn(16, 16)).Q[:rank]
        assert health.effective_rank(features) == pytest.approx(rank, rel=0.02)


def epochs(*spreads: float) -> list[dict[str, float]]:
    return [{"epoch": number + 1, "spread": value} for number, value in enumerate(spreads)]


def test_projections_that_stay_together_for_three_epochs_stop_the_training() -> None:
    going_on = [(), (0.05, 0.05), (0.05, 0.05, 0.2), (0.05, 0.11, 0.05, 0.05)]
    # One that has just begun moves apart.
    for spreads in [*going_on, (0.05, 0.07, 0.09)]:
        health.refuse_collapsed(epochs(*spreads))
    with pytest.raises(DivergedError, match=r"collapsed: the spread .* under 0\.1 for 3 epochs \(last 0\.008\)"):
        health.refuse_collapsed(epochs(0.5, 0.002, 0.001, 0.008))


@pytest.mark.parametrize(("probe", "is_said"), [(0.31, False), (0.3, True), (0.25, True)])
def test_a_probe_no_better_than_a_random_networks_is_said(probe: float, is_said: bool) -> None:
    history = [
        {"epoch": 1, health.RANDOM: 0.3, PROBE: 0.5},
        {"epoch": 2},
        {"epoch": 3, PROBE: probe},
    ]
    line = health.remark(history)
    assert (line is not None) == is_said
    assert line is None or ("0.300" in line and f"{probe:.3f}" in line)
    assert health.remark([{"epoch": 1, "spread": 0.5}]) is None


def test_projections_have_the_widths_that_are_named() -> None:
    shapes = [tuple(layer.weight.shape) for layer in projector(10, [8, 6, 4]) if isinstance(layer, nn.Linear)]
    assert shapes == [(8, 10), (6, 8), (4, 6)]
    assert [type(layer) for layer in projector(10, [4])] == [nn.Linear]
    assert projector(10, [8, 4])(torch.randn(3, 10)).shape == (3, 4)


def test_a_network_without_its_head_gives_what_the_head_would_read() -> None:
    from imgcls_search.catalog import catalog
    from imgcls_search.models import build_model
    from imgcls_search.space import parse

    for text in ("{resnet: {depths: [1], width: 4}}", "{vit: {width: 16, depth: 1, heads: 2, dropout: 0.2}}", "lenet5"):
        component = parse(f"model: {text}", catalog(), source="x").config().component("model")
        whole = build_model(component, image_size=8, channels=1, classes=5).eval()
        read: list[torch.Tensor] = []
        head = whole.get_submodule(whole.anatomy.head)  # type: ignore[union-attr, arg-type]
        head.register_forward_hook(lambda _, given, __, read=read: read.append(given[0]))
        images = torch.rand(3, 1, 8, 8)
        with torch.no_grad():
            whole(images)
            bare = without_head(whole, "model")
            assert torch.equal(bare(images).flatten(1), read[0].flatten(1))
            assert num_features(bare, 1, 8, 8) == read[0].flatten(1).shape[1]
        assert not [name for name in Learner(bare, nn.Identity()).backbone() if name.startswith("network")]
    with pytest.raises(BuildError, match="does not say where its head is"):
        without_head(nn.Linear(2, 2), "model.other")


def test_lars_steps_as_timms_does_and_leaves_biases_alone() -> None:
    timm = pytest.importorskip("timm.optim.lars")
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    one = lars(model=ours, lr=0.5, momentum=0.8, weight_decay=0.01, trust=0.02)
    other = timm.Lars(
        [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=0.5,
        momentum=0.8,
        trust_coeff=0.02,
    )
    for _ in range(3):
        inputs = torch.randn(8, 4)
        for model, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
