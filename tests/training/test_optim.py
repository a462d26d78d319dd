"""Optimizers, schedules and losses against torch's and scikit-learn's own."""

from __future__ import annotations

import copy
import sys
from inspect import signature
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.errors import BuildError
from imgcls_search.space.reference import settings
from imgcls_search.training.losses import LOSSES
from imgcls_search.training.metrics import score
from imgcls_search.training.optimizers import OPTIMIZERS, SCHEDULES, groups
from imgcls_search.training.sharpness import statistics_kept
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, StepLR


def test_cosine_and_step_equal_torch() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = CosineAnnealingLR(optimizer, T_max=12)
    ours = SCHEDULES["cosine"](epochs=12)
    for epoch in range(12):
        assert ours(epoch) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    falling = StepLR(optimizer, step_size=3, gamma=0.1)
    ours = SCHEDULES["step"](epochs=9, steps=2, gamma=0.1)
    for epoch in range(9):
        assert ours(epoch) == pytest.approx(falling.get_last_lr()[0])
        optimizer.step()
        falling.step()


def test_linear_equals_torch() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    reference = LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=12)
    ours = SCHEDULES["linear"](epochs=12, final=0.1)
    for epoch in range(13):
        assert ours(epoch) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_scaled_sgd_takes_steps_and_decays_that_no_momentum_changes(momentum: float) -> None:
    """Along a constant gradient each step ends as long as the rate, and each decay takes its share."""
    lengths = []
    for gradient, decay in ((1.0, 0.0), (0.0, 0.001)):
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.fill_(100.0)
            model.bias.fill_(100.0)
        optimizer = OPTIMIZERS["scaled_sgd"](
            model=model, lr=0.02, momentum=momentum, weight_decay=decay, vector_lr_factor=8.0
        )
        for _ in range(200):
            before = model.weight.item(), model.bias.item()
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
        lengths.append((before[0] - model.weight.item(), before[1] - model.bias.item(), before[0]))
    assert lengths[0][0] == pytest.approx(0.02, rel=1e-2)
    assert lengths[0][1] == pytest.approx(8 * 0.02, rel=1e-2)
    assert lengths[1][0] / lengths[1][2] == pytest.approx(0.001, rel=0.02)
    assert lengths[1][1] == 0


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "step"])
def test_warmup_rises_to_the_peak_and_never_above(name: str) -> None:
    schedule = SCHEDULES[name](epochs=10, warmup_epochs=2)
    factors = [schedule(progress) for progress in np.linspace(0, 10, 101)]
    assert factors[0] == 0
    assert factors[10] == pytest.approx(0.5)
    assert max(factors) == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_vectors_do_not_decay(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    groups = OPTIMIZERS[name](model=model, weight_decay=0.3).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    # Torch's decay of one whose decay does not depend on its rate is that, divided by the rate: here 1.
    assert all(decays[id(p)] == (0.3 if p.ndim > 1 else 0.0) for p in model.parameters())


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(BuildError, match="nesterov: true needs momentum"):
        OPTIMIZERS["sgd"](model=nn.Linear(1, 1), momentum=0.0, nesterov=True)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 4, generator=generator), torch.randint(0, 4, (64,), generator=generator)


COUNTS = (10, 20, 30, 40)


def test_cross_entropy_equals_torch_with_scikit_learns_weights(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    labels = np.repeat(np.arange(4), COUNTS)
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(4), y=labels), dtype=torch.float32)
    ours = LOSSES["cross_entropy"](class_counts=COUNTS, label_smoothing=0.1, class_weights="balanced")
    assert torch.allclose(ours(*batch), functional.cross_entropy(*batch, weight=weight, label_smoothing=0.1))


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_focal_without_focus_is_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor], class_weights: str) -> None:
    focal = LOSSES["focal"](class_counts=COUNTS, gamma=0.0, class_weights=class_weights)
    plain = LOSSES["cross_entropy"](class_counts=COUNTS, class_weights=class_weights)
    assert torch.allclose(focal(*batch), plain(*batch))


CLASSES = ("cat", "dog", "owl", "yak")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_numbers_by_class_are_the_weights_of_torch(batch: tuple[torch.Tensor, torch.Tensor], smoothing: float) -> None:
    # Classes that are not named count as they are; the order of the names means nothing.
    known: dict[str, Any] = {"class_counts": COUNTS, "classes": CLASSES, "class_weights": {"owl": 3.0, "cat": 0.5}}
    theirs = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 3.0, 1.0]), label_smoothing=smoothing)
    ours = LOSSES["cross_entropy"](**known, label_smoothing=smoothing)
    assert torch.allclose(ours(*batch), theirs(*batch))
    assert not torch.allclose(ours(*batch), functional.cross_entropy(*batch, label_smoothing=smoothing))
    if not smoothing:
        logits, labels = batch
        assert torch.allclose(ours(logits, functional.one_hot(labels, 4).float()), theirs(*batch))
        assert torch.allclose(LOSSES["focal"](**known, gamma=0.0)(*batch), theirs(*batch))


@pytest.mark.parametrize("name", [name for name in LOSSES if "class_weights" in signature(LOSSES[name]).parameters])
def test_a_weight_of_a_class_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BuildError, match="class_weights: there is no class 'cow'"):
        LOSSES[name](class_counts=COUNTS, classes=CLASSES, class_weights={"cow": 2.0})


def test_focal_is_the_papers_formula(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    p = logits.softmax(1)[torch.arange(64), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    assert torch.allclose(LOSSES["focal"](class_counts=COUNTS, gamma=2.0)(logits, labels), expected)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize(
    ("name", "arguments"), [("cross_entropy", {"label_smoothing": 0.1}), ("focal", {"gamma": 2.0})], ids=["ce", "focal"]
)
def test_whole_classes_as_shares_cost_what_class_numbers_do(
    name: str, arguments: dict[str, float], class_weights: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, labels = batch
    loss = LOSSES[name](class_counts=COUNTS, class_weights=class_weights, **arguments)
    assert torch.allclose(loss(logits, functional.one_hot(labels, 4).float()), loss(logits, labels))


def test_cross_entropy_of_shares_equals_torch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    eye = functional.one_hot(labels, 4).float()
    shares = 0.3 * eye + 0.7 * eye.roll(1, 0)
    ours = LOSSES["cross_entropy"](class_counts=COUNTS, label_smoothing=0.1)
    assert torch.allclose(ours(logits, shares), functional.cross_entropy(logits, shares, label_smoothing=0.1))
    # Linear in the shares, and so a blend of the losses of both classes.
    plain = LOSSES["cross_entropy"](class_counts=COUNTS)
    blend = 0.3 * plain(logits, labels) + 0.7 * plain(logits, labels.roll(1, 0))
    assert torch.allclose(plain(logits, shares), blend)


def test_losses_of_shares_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]]).log()
    shares = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]])
    terms = [(0.75, 0.5, 0), (0.25, 0.25, 1), (1.0, 0.2, 2)]
    focal = LOSSES["focal"](class_counts=(1, 1, 1), gamma=2.0)
    assert focal(logits, shares).item() == pytest.approx(sum(-s * (1 - p) ** 2 * np.log(p) for s, p, _ in terms) / 2)
    # Images of classes 0, 1 and 2 weigh 4/3, 2/3 and 4/3.
    weights = [4 / 3, 2 / 3, 4 / 3]
    total = sum(s * weights[c] for s, _, c in terms)
    for name, gamma in (("cross_entropy", 0), ("focal", 2)):
        expected = sum(-s * weights[c] * (1 - p) ** gamma * np.log(p) for s, p, c in terms) / total
        loss = LOSSES[name](class_counts=(1, 2, 1), class_weights="balanced")
        assert loss(logits, shares).item() == pytest.approx(expected)


def test_metrics_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    found = score(logits, np.array([0, 1, 1, 2]))
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.6]).mean())
    assert "top5_accuracy" not in found
    eye = np.eye(10)
    assert score(eye, np.arange(10))["top5_accuracy"] == 1.0


# Optimizers of other packages, and two passes a step.


@pytest.fixture
def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


def loss_of(model: nn.Module, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(8, 1, 4, 4, generator=generator)
    return functional.cross_entropy(model(images), torch.arange(8) % 4)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    for number in range(steps):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_lion_takes_the_papers_step(small: nn.Sequential) -> None:
    ours = OPTIMIZERS["lion"](model=small, lr=0.01, weight_decay=0.5, beta1=0.8, beta2=0.9)
    means = [torch.zeros_like(p) for p in small.parameters()]
    for number in range(3):
        before = [p.detach().clone() for p in small.parameters()]
        ours.zero_grad()
        loss_of(small, number).backward()
        ours.step()
        for place, (p, was) in enumerate(zip(small.parameters(), before, strict=True)):
            assert p.grad is not None
            decay = 0.5 if p.ndim > 1 else 0.0
            expected = was * (1 - 0.01 * decay) - 0.01 * (0.8 * means[place] + 0.2 * p.grad).sign()
            torch.testing.assert_close(p.detach(), expected)
            means[place] = 0.9 * means[place] + 0.1 * p.grad


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon of its own before 2.9")
def test_muon_is_torchs_for_matrices_and_adamw_for_vectors() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(6, 4)
    twin = copy.deepcopy(layer)
    ours = OPTIMIZERS["muon"](model=layer, lr=0.02, momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.Muon(
        [twin.weight], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    images, change = torch.randn(5, 6), torch.randn(5, 4)
    for model, optimizer in ((layer, ours), (twin, theirs)):
        for _ in range(2):
            optimizer.zero_grad()
            model(images).backward(change)
            optimizer.step()
    # Both compute in half precision.
    torch.testing.assert_close(layer.weight, twin.weight, rtol=2e-2, atol=2e-3)
    assert not torch.equal(layer.bias, twin.bias)


def test_steps_of_muon_are_orthogonal_and_the_head_takes_adamws() -> None:
    from imgcls_search.config import Component
    from imgcls_search.models import build_model

    component = Component(path="model.resnet", name="resnet", args={"depths": (1,), "width": 8})
    spreads: dict[str, list[float]] = {"step": [], "gradient": []}
    for seed in range(5):
        torch.manual_seed(seed)
        model = build_model(component, channels=1, image_size=8, classes=4)
        optimizer = OPTIMIZERS["muon"](model=model, lr=0.01, weight_decay=0.0)
        head = model.get_submodule(model.anatomy.head).weight  # type: ignore[union-attr]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8) % 4).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            change = (parameter.detach() - before[name]).flatten(1) if parameter.ndim > 1 else None
            if parameter is head:
                # AdamW's first step is of one length for all weights.
                assert change is not None
                torch.testing.assert_close(change.abs(), change.abs().mean().expand_as(change), rtol=1e-2, atol=1e-5)
            elif change is not None and min(change.shape) > 1:
                assert parameter.grad is not None
                for kind, matrix in (("step", change), ("gradient", parameter.grad.flatten(1))):
                    values = torch.linalg.svdvals(matrix)
                    spreads[kind].append(float(values[0] / values.median()))
    assert len(spreads["step"]) == 15
    # A few steps of Newton and Schulz bring singular values towards 1, not all of them exactly there.
    assert fmean(spreads["step"]) < 0.6 * fmean(spreads["gradient"])


def test_schedule_free_is_the_librarys(small: nn.Sequential) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    twin = copy.deepcopy(small)
    ours: Any = OPTIMIZERS["schedule_free"](model=small, lr=0.01, weight_decay=0.1, beta1=0.8)
    theirs = schedulefree.AdamWScheduleFree(groups(twin, 0.1), lr=0.01, betas=(0.8, 0.999))
    for optimizer in (ours, theirs):
        optimizer.train()
    for a, b in zip(step(small, ours), step(twin, theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_sam_takes_the_step_of_the_papers_formula(base: str, small: nn.Sequential) -> None:
    twin = copy.deepcopy(small)
    given = {"momentum": 0.9} if base == "sgd" else {}
    ours: Any = OPTIMIZERS["sam"](model=small, base=base, rho=0.3, lr=0.02, weight_decay=0.1)
    theirs = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[base](groups(twin, 0.1), lr=0.02, **given)  # type: ignore[operator]
    for number in range(3):
        ours.zero_grad()
        loss_of(small, number).backward()
        with ours.climbed(), statistics_kept(small):
            loss_of(small, number).backward()
        ours.step()
        # By hand: at w + rho g / |g|, on a copy.
        loss_of(twin, number).backward()
        gradients = [p.grad for p in twin.parameters()]
        length = torch.cat([g.reshape(-1) for g in gradients if g is not None]).norm()
        worse = copy.deepcopy(twin)
        with torch.no_grad():
            for p, g in zip(worse.parameters(), gradients, strict=True):
                assert g is not None
                p.add_(0.3 * g / length)
        worse.zero_grad()
        loss_of(worse, number).backward()
        for p, q in zip(twin.parameters(), worse.parameters(), strict=True):
            p.grad = q.grad
        theirs.step()
        theirs.zero_grad()
        for a, b in zip(small.state_dict().values(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "package"), [("muon", "timm"), ("lion", "timm"), ("schedule_free", "schedulefree")])
def test_optimizer_without_its_package_says_how_to_get_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BuildError, match=f"needs {package}: pip install 'imgcls-search"):
        OPTIMIZERS[name](model=nn.Linear(2, 2))


def test_settings_of_sam_that_are_worth_searching_go_together() -> None:
    """The range of rates is that of SGD, a hundred times those of AdamW, and so no choice of the base is suggested."""
    known = {one["path"].rpartition(".")[2]: one["search"] for one in settings(catalog(), "optimizer.sam")}
    of_sgd = {one["path"].rpartition(".")[2]: one["search"] for one in settings(catalog(), "optimizer.sgd")}
    assert known["lr"] == of_sgd["lr"]
    assert known["base"] is None
