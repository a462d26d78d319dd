"""Pruning, distillation, and what a compressed trial is compared by; the exported file has tests of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.compress import prune
from imgcls_search.compress.attention import SlimAttention, slim_attentions
from imgcls_search.compress.distill import Teaching
from imgcls_search.config import Component, TrialConfig
from imgcls_search.data import InputShape, Prepared
from imgcls_search.errors import BuildError, CheckpointError, NoResultError, SpaceError, StudyError
from imgcls_search.executors.helper import Helper, image_cache
from imgcls_search.models import MODELS
from imgcls_search.orchestrator import teachers
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.pruners import halving
from imgcls_search.strategy.view import View
from imgcls_search.study import best, record
from imgcls_search.study.files import StudyFiles
from imgcls_search.training import checkpoint
from imgcls_search.training.loop import fit
from imgcls_search.trial import SIZES, Candidate, Trial
from imgcls_search.worker import image_sets, measuring, networks, pipeline, start_weights
from torch import nn
from torch.nn import functional
from torchvision.models.vision_transformer import EncoderBlock

SHAPE = InputShape(image_size=8, channels=1, classes=10)

FAMILIES = sorted(set(MODELS) - {"timm"})
"""Those with a space of their own."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def component(family: str) -> Component:
    space = Path(__file__).parents[2] / "spaces" / f"{family}.yaml"
    return parse(space.read_text(), catalog(), source=family).first().component("model")


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    tree = {"model": {family: component(family).args}}
    return networks.build_model(TrialConfig.from_dict(tree), SHAPE).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_structured_pruning_is_known_before_training_and_can_be_rebuilt(family: str) -> None:
    model, whole = build(family), build(family)
    shapes = prune.shrink(model, 0.5, channels=1, image_size=8)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params < 0.8 * sum(parameter.numel() for parameter in whole.parameters())
    known = measuring.count(component(family), SHAPE, pruned=0.5)
    assert known.params == params
    assert known.macs < measuring.count(component(family), SHAPE).macs
    # As from a file: another model of the same builder takes the shape and the weights.
    prune.rebuild(whole, shapes, model.state_dict())
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(whole.eval()(images), model(images))
    assert model(images).shape == (3, 10)


def test_slim_attention_computes_what_torchs_own_does_and_loses_single_heads() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(num_heads=4, hidden_dim=32, mlp_dim=64, dropout=0.0, attention_dropout=0.0).eval()
    tokens, whole = torch.randn(2, 5, 32), copy.deepcopy(block)
    slim_attentions(block)
    assert isinstance(block.self_attention, SlimAttention)
    assert torch.allclose(block(tokens), whole(tokens), atol=1e-6)
    # A head that is gone is one whose part of the output is nothing.
    with torch.no_grad():
        whole.self_attention.out_proj.weight[:, 8:16] = 0
    block.self_attention.drop_heads([1])
    assert block.self_attention.num_heads == 3
    assert torch.allclose(block(tokens), whole(tokens), atol=1e-6)


def test_the_weakest_heads_and_features_go_and_one_always_stays() -> None:
    model = build("vit")
    attention = next(module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    features, heads = attention.head_dim, attention.num_heads
    with torch.no_grad():
        attention.in_proj_weight.view(3, heads, features, -1)[:, -1] *= 0.001
        attention.out_proj.weight[:, -features:] *= 0.001
        first = attention.in_proj_weight[:features].clone()
    prune.shrink(model, 0.99, channels=1, image_size=8)
    slim = [module for module in model.modules() if isinstance(module, SlimAttention)]
    assert [module.num_heads for module in slim] == [1] * len(slim)
    assert all(min(parameter.shape) > 0 for parameter in model.parameters())
    model = build("vit")
    attention = next(module for module in model.modules() if isinstance(module, nn.MultiheadAttention))
    with torch.no_grad():
        attention.in_proj_weight.view(3, heads, features, -1)[:, -1] *= 0.001
        attention.out_proj.weight[:, -features:] *= 0.001
    prune.shrink(model, 1 / heads, channels=1, image_size=8)
    slim_one = next(module for module in model.modules() if isinstance(module, SlimAttention))
    assert slim_one.num_heads == heads - 1
    assert torch.equal(slim_one.inputs.weight[:features], first)


def test_model_that_cannot_lose_channels_is_refused_in_one_line() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 4)
            self.head = nn.Linear(64, 10)

    with pytest.raises(BuildError, match=r"^prune\.structured: channels cannot be taken out .*MultiheadAttention"):
        prune.shrink(Wide(), 0.5, channels=1, image_size=8)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_unstructured_pruning_zeroes_the_smallest_weights_of_all_layers(family: str) -> None:
    model, before = build(family), build(family)
    prune.zero_smallest(model, 0.7)
    assert prune.sparsity(model) == pytest.approx(0.7, abs=0.001)
    pairs = list(zip(prune._weights(model), prune._weights(before), strict=True))
    gone = torch.cat([getattr(*old)[getattr(*new) == 0].abs() for new, old in pairs])
    kept = torch.cat([getattr(*new)[getattr(*new) != 0].abs() for new, _ in pairs])
    assert gone.max() <= kept.min()
    # Made permanent: nothing but the model's own names is left in its state.
    assert model.state_dict().keys() == before.state_dict().keys()


def test_zeros_stay_while_training_goes_on() -> None:
    model = build("lenet5").train()
    prune.zero_smallest(model, 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    keep = prune.keep_zeros(model)
    optimizer.register_step_post_hook(lambda *_: keep())
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    assert prune.sparsity(model) == pytest.approx(0.5, abs=0.001)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_distillation_is_hintons_loss_on_the_teachers_own_normalisation() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    pixels, logits = torch.rand(5, 3, 2, 2), torch.randn(5, 4, requires_grad=True)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, -1, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, -1, 1, 1)
    seen, own = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    teach = Teaching(teacher, temperature=3.0, alpha=0.25, seen_as=seen, taught_as=own, device="cpu")
    labels = functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0]))
    wanted = functional.softmax(teacher((pixels - 0.4) / 0.2) / 3, dim=1)
    soft = -(wanted * functional.log_softmax(logits / 3, dim=1)).sum(1).mean() + (wanted * wanted.log()).sum(1).mean()
    found = teach(labels, logits, (pixels - mean) / std)
    assert found.item() == pytest.approx((0.75 * labels + 0.25 * 9 * soft).item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def space_of(text: str) -> Space:
    return parse(f"data: {{digits: {{}}}}\nmodel: {{lenet5: {{}}}}\n{text}", catalog(), source="s.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune: {structured: {amount: 1.0}}", "amount"),
        ("prune: {unstructured: {amount: -0.1}}", "amount"),
        ("prune: {unstructured: {amount: {float: [0.5, 1.5]}}}", "amount"),
        ("quantize: {int8: {mode: fast}}", "'auto', 'static', 'dynamic'"),
        ("distill: {file: {temperature: 2}}", "path: required"),
        ("distill: {file: {path: a.pt, temperature: 0}}", "temperature"),
        ("limits: {latency_ms: 0}", "latency_ms"),
        ("prune: {structure: {}}", "did you mean 'structured'"),
    ],
)
def test_wrong_values_are_named(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space_of(text)


def trial(number: int, space: Space, *accuracies: float, scores: dict[int, float] | None = None) -> Trial:
    candidate = draw_random(View(space, [], [], 0), number, 0)
    epochs = [{"epoch": float(n), "accuracy": value, "seconds": 1.0} for n, value in enumerate(accuracies, start=1)]
    return Trial(
        number=number,
        candidate=Candidate(params=candidate.params, distributions=candidate.distributions, config=candidate.config),
        seed=number,
        sizes=dict.fromkeys(SIZES, 1.0),
        metric="accuracy",
        state="pruned",
        judged=len(epochs),
        until=len(epochs),
        epochs=epochs,
        scores={epoch: {"accuracy": value} for epoch, value in (scores or {}).items()},
    )


def test_rungs_compare_what_would_be_deployed() -> None:
    plain, pruned = space_of(""), space_of("prune: {unstructured: {amount: 0.95}}")
    # Before it is pruned it looks best by far.
    heavy = trial(0, pruned, 0.9, 0.95, 0.99, scores={2: 0.2})
    others = [trial(number, plain, 0.5, 0.6) for number in (1, 2, 3)]
    pruner = halving(epochs=10, sign=1, min_epochs=2, eta=2)
    heavy.epochs.pop()
    assert heavy.value_at(2) == 0.2
    assert pruner.judge(heavy, [heavy, *others]) == "prune"
    assert pruner.judge(others[0], [heavy, *others]) == "continue"
    # Nor does the sampler see anything else.
    seen = View(pruned, [heavy], [], 0).study(optuna.samplers.RandomSampler()).trials
    assert seen[0].intermediate_values == {2: 0.2}
    # An epoch after its last rung shows nothing that compares.
    heavy.epochs.append({"epoch": 3.0, "accuracy": 0.99, "seconds": 1.0})
    assert not heavy.has_value_at(3)
    assert heavy.last_shown == 2


def test_trial_over_a_measured_limit_is_never_best(tmp_path: Path) -> None:
    space = space_of("optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}\nlimits: {size_kb: 10}")
    files = StudyFiles(tmp_path, "s")
    files.make()
    kept = record.create(files, space.objectives, {"space": record.to_json(space.document)})
    for number, (accuracy, size) in enumerate([(0.9, 12.0), (0.7, 9.0), (0.8, 10.0)]):
        made = trial(number, space, accuracy)
        made.state = "running"
        kept.add(made)
        kept.add_epoch(made, {"epoch": 2, "accuracy": accuracy, "seconds": 1.0})
        kept.add_score(made, 2, {"accuracy": accuracy, "size_kb": size}, {"quantized": "static"})
        if number == 0:
            kept.complete(made, [accuracy], {"limits.size_kb": size - 10})
            with pytest.raises(NoResultError, match=r"no finished trial within limits\.size_kb; 1 complete"):
                best.front(kept)
        else:
            kept.complete(made, [accuracy], {"limits.size_kb": size - 10})
    for read in (kept, record.load(files)):
        assert [each.number for each in best.ranked(read)] == [2, 1]
        assert best.over_limits(read.trials[0]) == ("limits.size_kb",)
        assert read.trials[1].scores == {2: {"accuracy": 0.7, "size_kb": 9.0}}
    known = kept.study.best_trial
    assert (known.number, known.constraints) == (2, {"limits.size_kb": 0.0})
    # The sampler's view says so too.
    seen = View(space, kept.trials, [], 0).study(optuna.samplers.RandomSampler())
    assert seen.best_trial.number == 2


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    asked = Helper(tmp_path_factory.mktemp("studies"))
    yield asked
    asked.close()


def write_teacher(path: Path, helper: Helper, **image: Any) -> Prepared:
    written = ", ".join(f"{name}: {value}" for name, value in {"size": 8, **image}.items())
    config = parse(
        f"data: {{digits: {{max_train: 50}}}}\nmodel: {{lenet5: {{}}}}\nimage: {{{written}}}\ntraining: {{epochs: 1}}",
        catalog(),
        source="t.yaml",
    ).config()
    data = start_weights.with_normalisation(config, pipeline.prepare_data(config, image_cache(helper.root)))
    session = pipeline.new_session(config, data, seed=0, device="cpu")
    list(fit(session, *image_sets.image_sets(data, "train", "cpu"), until_epoch=1))
    checkpoint.save({**session.state_dict(), **networks.describe_weights(config, data)}, path)
    return data


@pytest.mark.slow
def test_teachers_are_checked_before_any_trial_and_kept(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pt", StudyFiles(tmp_path, "s")
    data = write_teacher(path, helper)
    space = space_of(f"distill: {{none: {{}}, file: {{path: {path}}}}}")
    known = teachers.settle(space, files, data, helper, {})
    (entry,) = known.values()
    assert files.teacher(entry["sha256"]).read_bytes() == path.read_bytes()
    # The study's own copy is enough, and the same name may not become another teacher in the middle of a study.
    path.unlink()
    assert teachers.settle(space, files, data, helper, known) == known
    files.teacher(entry["sha256"]).unlink()
    with pytest.raises(CheckpointError, match=r"distill\.file\.path: .*no such weights file"):
        teachers.settle(space, files, data, helper, known)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="other weights than this study began with"):
        teachers.settle(space, files, data, helper, known)
    with pytest.raises(CheckpointError, match="damaged"):
        teachers.settle(space, files, data, helper, {})
    with pytest.raises(StudyError, match=r"distill\.study\.name: .*no such study"):
        teachers.settle(space_of("distill: {study: {name: nobody}}"), files, data, helper, {})
    with pytest.raises(StudyError, match=r"distill\.study\.name: study name '\.\./s': allowed: letters"):
        teachers.settle(space_of("distill: {study: {name: ../s}}"), files, data, helper, {})


@pytest.mark.parametrize(
    ("taught", "shown", "got"),
    [
        ({}, "fit: squash", "fit: squash, margin: 1; allowed: image: {fit: crop, margin: 1}"),
        ({"fit": "pad"}, "", "fit: crop, margin: 1; allowed: image: {fit: pad, fill: mean, margin: 1}"),
        (
            {"fit": "pad"},
            "fit: pad, fill: black",
            "fit: pad, fill: black, margin: 1; allowed: image: {fit: pad, fill: m",
        ),
        ({}, "margin: 1.25", "fit: crop, margin: 1.25; allowed: image: {fit: crop, margin: 1}"),
        (
            {"margin": 1.5},
            "margin: {choice: [1.5, 1]}",
            "fit: crop, margin: 1; allowed: image: {fit: crop, margin: 1.5}",
        ),
        ({}, "fit: {choice: [crop, pad]}", "fit: pad, fill: mean, margin: 1; allowed: image: {fit: crop, margin: 1}"),
    ],
)
def test_teacher_that_saw_images_otherwise_is_refused(
    taught: dict[str, Any], shown: str, got: str, tmp_path: Path, helper: Helper
) -> None:
    path, files = tmp_path / "teacher.pt", StudyFiles(tmp_path, "s")
    write_teacher(path, helper, **taught)
    text = f"image: {{{', '.join(filter(None, ['size: 8', shown]))}}}\ndistill: {{file: {{path: {path}}}}}"
    data = pipeline.prepare_data(space_of(text).first(), image_cache(helper.root))
    with pytest.raises(BuildError) as caught:
        teachers.settle(space_of(text), files, data, helper, {})
    assert got in str(caught.value)
    assert str(caught.value).startswith("distill.file.path: ")
    assert "this teacher was trained with fit: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_teacher_of_another_normalisation_sees_images_by_its_own(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pt", StudyFiles(tmp_path, "s")
    write_teacher(path, helper, mean=[0.25], std=[0.75], fill="white")
    # The colour of borders that there are not is no difference.
    space = space_of(f"image: {{size: 8, fill: black}}\ndistill: {{file: {{path: {path}, alpha: 1, temperature: 1}}}}")
    config = space.first()
    data = start_weights.with_normalisation(config, pipeline.prepare_data(config, image_cache(helper.root)))
    assert (data.mean, data.std) != ((0.25,), (0.75,))
    assert teachers.settle(space, files, data, helper, {})
    session = pipeline.new_session(config, data, seed=0, device="cpu", teacher=str(path))
    assert session.teach is not None
    images = image_sets.image_sets(data, "train", "cpu")[0]
    pixels = torch.from_numpy(np.array(images.pixels[:16]))
    network, _, _ = networks.load_weights(checkpoint.load(path), str(path))
    with torch.no_grad():
        told = network.eval()((pixels.float() / 255 - 0.25) / 0.75)
        unlike = network(images.normalise(pixels))
    # To a student that says what the teacher says, nothing is left to learn.
    right, wrong = (float(session.teach(torch.tensor(0.0), each, images.normalise(pixels))) for each in (told, unlike))
    assert abs(right) < 1e-7
    assert wrong > 100 * abs(right)
    assert wrong > 1e-6


@pytest.mark.slow
def test_teacher_of_other_classes_or_another_size_is_refused(tmp_path: Path, helper: Helper) -> None:
    path, files = tmp_path / "teacher.pt", StudyFiles(tmp_path, "s")
    write_teacher(path, helper, size=12)
    small = tmp_path / "small.pt"
    data = write_teacher(small, helper)
    choose = f"image: {{size: {{choice: [8, 12]}}}}\ndistill: {{file: {{path: {small}}}}}"
    for text in (f"distill: {{file: {{path: {path}}}}}", choose):
        with pytest.raises(BuildError, match=r"this teacher takes .* the images are (8x8|12x12) pixels"):
            teachers.settle(space_of(text), files, data, helper, {})
    state = checkpoint.load(small)
    state["about"] = state["about"].replace('"classes": ["0", ', '"classes": ["zero", ')
    checkpoint.save(state, small)
    with pytest.raises(
        BuildError, match=r"other classes: it knows 10 \(zero, 1, 2, 3, 4, \.\.\.\), the images have 10"
    ):
        teachers.settle(space_of(f"distill: {{file: {{path: {small}}}}}"), files, data, helper, {})
