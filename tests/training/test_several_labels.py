"""Losses, measures and thresholds for several labels of an image, held to trusted references."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from imgcls_search.compress.distill import Teaching
from imgcls_search.config import Component
from imgcls_search.data import mixing
from imgcls_search.measures import main_measure
from imgcls_search.training import custom_metrics
from imgcls_search.training.losses import SEVERAL, build_loss
from imgcls_search.training.metrics import Wanted, score
from imgcls_search.training.metrics_several import choose_thresholds
from sklearn import metrics as reference
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

CLASSES = ("cat", "dog", "car", "owl", "bee")


def drawn(count: int = 60, seed: int = 0, *, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(0, spread, (count, len(CLASSES))), dtype=torch.float32)
    targets = torch.tensor((random.random((count, len(CLASSES))) < [0.1, 0.3, 0.5, 0.7, 0.2]).astype(np.uint8))
    return logits, targets


def loss(name: str, **args: Any) -> Any:
    return build_loss(Component(path=f"loss.{name}", name=name, args=args), class_counts=(10, 20, 30, 40, 5), images=60)


def test_binary_cross_entropy_is_torchs_with_smoothing_and_weights() -> None:
    logits, targets = drawn()
    found = loss("binary_cross_entropy")(logits, targets)
    torch.testing.assert_close(found, functional.binary_cross_entropy_with_logits(logits, targets.float()))
    smoothed = loss("binary_cross_entropy", label_smoothing=0.2)(logits, targets)
    wanted = functional.binary_cross_entropy_with_logits(logits, torch.where(targets == 1, 0.9, 0.1))
    torch.testing.assert_close(smoothed, wanted)
    # A label with n of 60 images: those with it together weigh as much as the others.
    weights = torch.tensor([50 / 10, 40 / 20, 30 / 30, 20 / 40, 55 / 5])
    weighted = loss("binary_cross_entropy", pos_weight="balanced")(logits, targets)
    wanted = functional.binary_cross_entropy_with_logits(logits, targets.float(), pos_weight=weights)
    torch.testing.assert_close(weighted, wanted)


@pytest.mark.parametrize(
    ("negative", "positive", "margin"), [(4.0, 1.0, 0.05), (2.0, 0.0, 0.2), (0.0, 0.0, 0.0), (1.5, 0.5, 0.0)]
)
def test_the_asymmetric_loss_is_timms(negative: float, positive: float, margin: float) -> None:
    logits, targets = drawn()
    logits.requires_grad_()
    theirs = pytest.importorskip("timm.loss").AsymmetricLossMultiLabel(
        gamma_neg=negative, gamma_pos=positive, clip=margin, disable_torch_grad_focal_loss=False
    )
    # Of a single number: over several, some versions of theirs add all up, others the labels only.
    numbers = zip(logits.reshape(-1, 1, 1), targets.float().reshape(-1, 1, 1), strict=True)
    wanted = torch.stack([theirs(logit, target) for logit, target in numbers]).mean()
    found = loss("asymmetric", gamma_negative=negative, gamma_positive=positive, margin=margin)(logits, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.6), (1.5, None)])
def test_the_focal_loss_is_torchvisions(gamma: float, alpha: float | None) -> None:
    logits, targets = drawn()
    theirs = sigmoid_focal_loss(
        logits, targets.float(), alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean"
    )
    torch.testing.assert_close(loss("sigmoid_focal", gamma=gamma, alpha=alpha)(logits, targets), theirs)


@pytest.mark.parametrize("name", SEVERAL)
def test_shares_of_labels_cost_the_share_of_each(name: str) -> None:
    logits, targets = drawn()
    _, others = drawn(seed=1)
    of = loss(name)
    mixed = of(logits, 0.3 * targets.float() + 0.7 * others.float())
    torch.testing.assert_close(mixed, 0.3 * of(logits, targets) + 0.7 * of(logits, others))


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("exponent", [0.5, 2.0])
def test_losses_and_their_slopes_are_finite_however_sure_a_network_is(name: str, exponent: float) -> None:
    args = {
        "asymmetric": {"gamma_negative": exponent, "gamma_positive": exponent},
        "sigmoid_focal": {"gamma": exponent},
    }
    logits = torch.tensor([[-200.0, 200.0, 0.0, 90.0, -90.0]] * 2, requires_grad=True)
    found = loss(name, **args.get(name, {}))(logits, torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]))
    assert torch.isfinite(found)
    assert torch.isfinite(torch.autograd.grad(found, logits)[0]).all()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_keeps_a_label_whole_that_both_images_have(kind: str) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8).clone()
    mixed, shares = mixing(classes=3, **{kind: 1.0})(images, labels)
    kept = shares[1, 1].item()
    assert 0 < kept < 1
    wanted = labels.float() * kept + labels.float().roll(1, 0) * (1 - kept)
    torch.testing.assert_close(shares, wanted)
    assert shares[1, 0] == 1
    assert mixed[1].mean().item() == pytest.approx(kept * 1 + (1 - kept) * 0, abs=1e-6)


def test_measures_are_scikit_learns_at_the_thresholds() -> None:
    logits, targets = drawn(200, spread=1.0)
    truth = targets.numpy()
    logits = logits + 1.5 * targets
    probabilities = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    cuts = (0.3, 0.5, 0.6, 0.9, 0.2)
    said = (probabilities >= np.array(cuts)).astype(int)
    named = ("sensitivity@0.9:dog", "average_precision:owl")
    found = score(logits.numpy(), truth, Wanted(classes=CLASSES, named=named, is_full=True, thresholds=cuts))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, said, average="macro"))
    assert found["micro_f1"] == pytest.approx(reference.f1_score(truth, said, average="micro"))
    assert found["subset_accuracy"] == pytest.approx(reference.accuracy_score(truth, said))
    assert found["average_precision"] == pytest.approx(reference.average_precision_score(truth, probabilities))
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(truth, probabilities))
    each = [reference.log_loss(truth[:, number], probabilities[:, number]) for number in range(5)]
    assert found["loss"] == pytest.approx(np.mean(each))
    tables = reference.precision_recall_fscore_support(truth, said)
    for number, name in enumerate(CLASSES):
        own = [found[f"{measure}:{name}"] for measure in ("precision", "recall", "f1", "support")]
        assert own == pytest.approx([values[number] for values in tables])
        one = reference.average_precision_score(truth[:, number], probabilities[:, number])
        assert found[f"average_precision:{name}"] == pytest.approx(one)
        assert found[f"threshold:{name}"] == cuts[number]
    wrong, right, _ = reference.roc_curve(truth[:, 1], probabilities[:, 1], drop_intermediate=False)
    assert found["sensitivity@0.9:dog"] == pytest.approx(right[wrong <= 0.1 + 1e-9].max())
    # What is of one class alone is not measured.
    assert not {"accuracy", "balanced_accuracy", "mcc", "kappa", "ece", "top5_accuracy"} & found.keys()


def test_means_leave_out_labels_without_images() -> None:
    logits, targets = drawn(100, spread=1.0)
    truth = targets.numpy().copy()
    truth[:, 3] = 0
    truth[:, 2] = 1
    found = score(logits.numpy(), truth, Wanted(classes=CLASSES, is_full=True))
    probabilities = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    present = [0, 1, 2, 4]
    wanted = reference.average_precision_score(truth[:, present], probabilities[:, present])
    assert found["average_precision"] == pytest.approx(wanted)
    # Of a label that all images have, no other image could be ranked below.
    apart = [0, 1, 4]
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(truth[:, apart], probabilities[:, apart]))
    assert "recall:owl" not in found
    assert found["threshold:owl"] == 0.5
    nothing = score(logits.numpy(), np.zeros_like(truth), Wanted(classes=CLASSES, is_full=True))
    assert "average_precision" not in nothing
    assert nothing["macro_f1"] == nothing["micro_f1"] == 0


def test_a_threshold_has_the_largest_f1_and_of_those_the_nearest_to_one_half() -> None:
    random = np.random.default_rng(0)
    for seed in range(40):
        # Coarse, so that images share a probability.
        probabilities = random.integers(0, 12, (30, 3)) / 11 if seed % 2 else random.random((30, 3))
        truth = random.random((30, 3)) < probabilities
        cuts = choose_thresholds(probabilities, truth)
        for number in range(3):
            own, is_of = probabilities[:, number], truth[:, number]

            def f1(cut: float, own: Any = own, is_of: Any = is_of) -> float:
                return float(reference.f1_score(is_of, own >= cut, zero_division=0.0))

            edges = np.unique(np.concatenate([own, [0.0, 1.0]]))
            middles = [*((low + high) / 2 for low, high in pairwise(edges)), 0.5]
            best = max(map(f1, middles))
            assert f1(cuts[number]) == pytest.approx(best)
            near = min(abs(middle - 0.5) for middle in middles if f1(middle) == best)
            assert abs(cuts[number] - 0.5) <= near + 1e-12


def test_thresholds_of_a_perfect_network_are_one_half() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.uint8)
    assert choose_thresholds(np.where(truth, 0.9, 0.1), truth.astype(bool)).tolist() == [0.5, 0.5]
    found = score(np.where(truth, 5.0, -5.0), truth, Wanted(classes=("a", "b"), is_full=True))
    assert found["subset_accuracy"] == found["micro_f1"] == found["average_precision"] == 1


def test_a_metric_of_another_package_gets_probabilities_and_labels_of_each_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def metric(probabilities: Any, labels: Any) -> float:
        seen.append((probabilities, labels))
        return float((labels * probabilities).sum())

    class Entry:
        dist = None
        value = "hers:metric"

        def load(self) -> Any:
            return metric

    monkeypatch.setattr(custom_metrics, "installed", lambda: {"hers": Entry()})
    custom_metrics.load.cache_clear()
    logits, targets = drawn(10)
    found = score(logits.numpy(), targets.numpy(), Wanted(classes=CLASSES, named=("hers",)))
    custom_metrics.try_on(["hers"], 5, targets.numpy())
    custom_metrics.load.cache_clear()
    assert found["hers"] == pytest.approx(float((targets * logits.double().sigmoid()).sum()))
    for probabilities, labels in seen:
        assert probabilities.shape == labels.shape == (10, 5)
        assert labels.dtype == np.int64
        assert set(np.unique(labels)) == {0, 1}
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        # No shares of one: each label is a question of its own.
        assert not np.allclose(probabilities.sum(axis=1), 1)


def test_a_teacher_of_several_labels_pulls_towards_its_probability_of_each() -> None:
    logits, targets = drawn(8)
    taught = logits.roll(1, 0)
    student = logits.clone().requires_grad_()
    teacher = torch.nn.Identity()
    moments = ((0.0,), (1.0,))
    args: Any = {"temperature": 2.0, "alpha": 1.0, "seen_as": moments, "taught_as": moments, "device": "cpu"}
    teaching = Teaching(teacher, **args, several=True)
    inputs = taught.view(8, 1, 1, 5)
    teacher_says = torch.nn.Flatten()
    teaching.teacher = teacher_says
    found = teaching(torch.tensor(0.0), student, inputs)
    both = [torch.distributions.Bernoulli(logits=values / 2) for values in (taught, student)]
    torch.testing.assert_close(found, 4 * torch.distributions.kl_divergence(*both).mean())
    same = teaching(torch.tensor(0.0), taught.clone().requires_grad_(), inputs)
    assert same.item() == pytest.approx(0, abs=1e-6)
    assert targets.shape == logits.shape


def test_images_without_any_label_have_a_main_measure() -> None:
    logits, targets = (tensor.numpy() for tensor in drawn(8))
    found = score(logits, np.zeros_like(targets), Wanted(thresholds=(0.5,) * len(CLASSES)))
    assert "average_precision" not in found
    assert main_measure(found) == "subset_accuracy"
    assert main_measure(score(logits, targets)) == "average_precision"
