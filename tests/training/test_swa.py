"""Stochastic weight averaging: the last epochs' weights, held to torch's own; what a checkpoint carries of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared
from imgcls_search.errors import BuildError
from imgcls_search.models.cost import Cost
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.batches import augmented, order_of
from imgcls_search.training.evaluation import evaluate
from imgcls_search.training.images import ImageSet
from imgcls_search.training.loop import fit
from imgcls_search.training.session import Session
from imgcls_search.worker import measuring, pipeline
from torch.optim.swa_utils import AveragedModel, update_bn

from tests.conftest import Answer, is_one_line

TEXT = """
data: {digits: {max_train: 201}}
augment: {crop_padding: 1, noise: 0.05, mixup: 0.2}
model: {resnet: {depths: [1, 1], width: 4}}
optimizer: {sgd: {lr: 0.05, nesterov: true}}
training: {epochs: 5, batch_size: 40, swa: 3}
"""


def config_of(text: str) -> TrialConfig:
    return parse(text, catalog(), source="test.yaml").config()


def new_session(text: str, digits: Prepared, seed: int = 5) -> Session:
    return pipeline.new_session(config_of(text), digits, seed=seed, device="cpu")


def test_average_is_torch_s_with_its_statistics(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    """The same training without averaging, whose last epochs torch's own tools average."""
    ours = new_session(TEXT, digits)
    history = list(fit(ours, *images, until_epoch=5))
    plain = new_session(TEXT.replace(", swa: 3", ""), digits)
    theirs = AveragedModel(plain.model)
    for epoch, _ in enumerate(fit(plain, *images, until_epoch=5)):
        if epoch >= 2:
            theirs.update_parameters(plain.model)
    # Averaging changes nothing of the training itself.
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name
    # The images of the last epoch once more, as they were.
    plain.history.pop()
    batches = [inputs for inputs, _ in augmented(plain, images[0], order_of(plain, images[0]))]
    update_bn(batches, theirs)
    for name, tensor in theirs.module.state_dict().items():
        assert torch.allclose(tensor.float(), ours.deployed.state_dict()[name].float(), atol=1e-6), name
    wanted = evaluate(theirs.module, images[1])
    assert history[-1]["loss"] == pytest.approx(wanted["loss"], abs=1e-6)
    assert history[-1]["accuracy"] == wanted["accuracy"]
    assert history[-1]["loss"] != pytest.approx(evaluate(plain.model, images[1])["loss"], abs=1e-4)


def test_before_the_last_epochs_the_weights_are_those_of_the_training(
    digits: Prepared, images: tuple[ImageSet, ImageSet]
) -> None:
    ours, plain = new_session(TEXT, digits), new_session(TEXT.replace(", swa: 3", ""), digits)
    shown = [list(fit(session, *images, until_epoch=3)) for session in (ours, plain)]
    for one, other in zip(*shown, strict=True):
        assert one["train_loss"] == other["train_loss"]
    assert [epoch["loss"] for epoch in shown[0][:2]] == [epoch["loss"] for epoch in shown[1][:2]]
    # The first averaged epoch has the weights of the training, and statistics of all its batches alike.
    for (name, one), two in zip(ours.deployed.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert shown[0][2]["loss"] != shown[1][2]["loss"]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_resumed_training_equals_undisturbed_bit_for_bit(
    stop: int, digits: Prepared, images: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    whole = new_session(TEXT, digits)
    list(fit(whole, *images, until_epoch=5))
    first = new_session(TEXT, digits)
    list(fit(first, *images, until_epoch=stop))
    checkpoint.save(first.state_dict(), tmp_path / "part.pt")
    second = new_session(TEXT, digits, seed=99)
    second.load_state_dict(checkpoint.load(tmp_path / "part.pt"))
    torch.rand(17)
    list(fit(second, *images, until_epoch=5))
    for name, tensor in whole.deployed.state_dict().items():
        assert torch.equal(tensor, second.deployed.state_dict()[name]), name
    for epoch, other in zip(whole.history, second.history, strict=True):
        assert {**epoch, "seconds": 0} == {**other, "seconds": 0}


def test_transformers_need_no_second_pass(digits: Prepared, images: tuple[ImageSet, ImageSet]) -> None:
    text = TEXT.replace("resnet: {depths: [1, 1], width: 4}", "vit: {width: 16, depth: 1, heads: 2}")
    session = new_session(text, digits)
    calls: list[int] = []
    assert session.average is not None
    session.average.module.register_forward_hook(lambda *_: calls.append(session.epoch))
    list(fit(session, images[0], None, until_epoch=5))
    assert not calls
    assert session.average.steps == 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("epochs: 4, swa: 2, ema: 0.9", "the weights have one average; allowed: one of them"),
        ("epochs: 4, swa: 5", "5 epochs of 4 cannot be averaged; allowed: 0 to 4"),
        ("epochs: 4, swa: -1", "training.swa"),
        ("epochs: 4, swa: many", "training.swa"),
    ],
)
def test_other_averages_are_refused_in_one_line(
    section: str, said: str, here: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(f"model: {{lenet5: {{}}}}\ntraining: {{{section}}}\n")
    for command in (("check", "s.yaml"), ("run", "s.yaml")):
        answer = here(*command)
        assert is_one_line(answer), answer
        assert said in answer.err
        assert "s.yaml:2" in answer.err
    assert not (tmp_path / "studies").exists() or not list((tmp_path / "studies").glob("*.db"))


def test_of_a_search_only_the_trials_with_both_are_refused(digits: Prepared) -> None:
    space = "model: {lenet5: {}}\ntraining: {epochs: 4, swa: {choice: [0, 2]}, ema: {choice: [0.0, 0.9]}}\n"
    parse(space, catalog(), source="test.yaml")
    found = Cost(params=1, macs=1, largest_activation=1, saved_bytes=1, buffer_bytes=1, num_stages=None)
    both = config_of("model: {lenet5: {}}\ntraining: {epochs: 4, swa: 2, ema: 0.9}\n")
    with pytest.raises(BuildError, match=r"training\.swa: 2 beside training\.ema 0\.9"):
        measuring.measure(both, digits.shape, found)
    averages = config_of("model: {lenet5: {}}\ntraining: {epochs: 4, swa: 2}\n")
    none = config_of("model: {lenet5: {}}\ntraining: {epochs: 4}\n")
    sizes = [measuring.measure(each, digits.shape, found)["memory"] for each in (averages, none)]
    assert sizes[0] > sizes[1], "an average is a second set of weights"
