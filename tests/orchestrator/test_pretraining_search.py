"""A search over the pretraining itself: what its trials are, how it resumes, what follows it and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog, refuse_of_pretraining
from imgcls_search.errors import UserError
from imgcls_search.space import parse
from imgcls_search.strategy.pruners import late_rung, make_pruner
from imgcls_search.strategy.rungs import Promoting
from imgcls_search.study.files import find_study
from imgcls_search.study.record import load

from tests.conftest import Answer, is_one_line

SPACE = """
data: {digits: {max_train: 100}}
model: {lenet5: {}}
pretrain:
  {simclr: {epochs: 3, batch_size: 64, flip: none, temperature: {float: [0.2, 0.6]}, crop: {choice: [0.2, 0.6]}}}
training: {device: cpu}
study: {objectives: {probe_accuracy: maximize}, trials: 3, sampler: random, workers: 1, name: few}
"""


def test_it_is_run_reported_exported_and_its_best_is_pretrained(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    (tmp_path / "s.yaml").write_text(SPACE)
    answer = imgcls("run", "s.yaml")
    assert answer.code == 0, answer.err
    assert "pretrains on 1,222 images" in answer.out
    assert "imgcls-search export few -o best.yaml && imgcls-search pretrain best.yaml -o backbone.pt" in answer.out
    record = load(find_study(tmp_path / "studies", "few", None))
    assert len(record.trials) == 3
    for trial in record.trials:
        assert set(trial.candidate.config.tree) == {"data", "image", "model", "unlabeled", "pretrain"}
        assert all({"probe_accuracy", "knn_accuracy", "spread"} <= epoch.keys() for epoch in trial.epochs)
    complete = [trial for trial in record.trials if trial.state == "complete"]
    assert complete
    (shown,) = json.loads(here("best", "few", "--json").out)["best"]
    assert shown["values"]["probe_accuracy"] == max(trial.epochs[-1]["probe_accuracy"] for trial in complete)
    # Run again, it has nothing left to do.
    assert here("run", "s.yaml").code == 0
    assert here("report", "few", "-o", "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "Health of the pretraining" in page
    assert "imgcls-search pretrain best.yaml -o backbone.pt" in page
    exported = here("export", "few", "-o", "best.yaml")
    assert "imgcls-search pretrain best.yaml -o backbone.pt" in exported.out
    assert here("pretrain", "best.yaml", "-o", "b.pt").code == 0
    # The weights of a trial are those of a network too, and no classifier.
    weights = f"studies/few/checkpoints/trial-{shown['trial']:05}.pt"
    for command in (
        ("evaluate", weights),
        ("confirm", "few"),
        ("export", "few", "--bundle", "m"),
        ("ensemble", "few", "-o", "e.pt"),
        ("report", "few", "--ablation", "-o", "a.html"),
        ("inspect", "--study", "few"),
        ("augment-preview", "s.yaml", "-o", "p.png"),
    ):
        refused = here(*command)
        assert refused.code == 2, command
        assert is_one_line(refused), refused.err
        assert command[0] == "evaluate" or "over the pretraining" in refused.err
    assert "confirm" not in here("best", "few").out.replace("not confirmed", "")
    assert "imgcls-search confirm" not in page
    start = [
        "--set",
        "study.objectives=null",
        "--set",
        "pretrain=none",
        "--set",
        f"model.lenet5.weights={weights}",
        "--set",
        "training.epochs=1",
    ]
    assert here("train", "s.yaml", *start).code == 0


def test_a_trial_is_reproduced(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "s.yaml").write_text(SPACE.replace("trials: 3", "trials: 1"))
    assert imgcls("run", "s.yaml").code == 0
    answer = imgcls("reproduce", "few", "--trial", "0")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("identical: trial 0, 3 epochs, probe_accuracy was ")
    assert "differs" not in answer.out + answer.err


def test_a_configuration_that_only_pretrains_names_its_command(tmp_path: Path, here: Callable[..., Answer]) -> None:
    fixed = SPACE.replace("{float: [0.2, 0.6]}", "0.3").replace("{choice: [0.2, 0.6]}", "0.2")
    (tmp_path / "my config.yaml").write_text(fixed)
    command = "pretrain it with: imgcls-search pretrain 'my config.yaml' -o backbone.pt"
    for name in ("run", "train", "plan"):
        refused = here(name, "my config.yaml")
        assert refused.code == 2
        assert is_one_line(refused)
        assert command in refused.err
    assert command in here("check", "my config.yaml").out
    assert here("pretrain", "my config.yaml", "-o", "b.pt").code == 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "{probe_accuracy: maximize}",
            "{probe_accuracy: maximize, accuracy: maximize}",
            "accuracy: not in a search",
        ),
        ("{probe_accuracy: maximize}", "{knn_accuracy: maximize, latency_ms: minimize}", "latency_ms: not in a search"),
        ("{simclr", "{none: {}, simclr", "pretrain: none: not in a search over the pretraining"),
        ("{simclr", "{imitate: {}, simclr", "pretrain.simclr.epochs: 3, pretrain.imitate.epochs: 20: all trials"),
        ("max_train: 100", "max_train: 100, folds: 3", "folds: not in a search over the pretraining"),
        ("training:", "optimizer: {adamw: {lr: {float: [0.1, 0.2]}}}\ntraining:", "optimizer.adamw.lr: is searched"),
    ],
)
def test_what_is_no_part_of_it_is_refused(
    before: str, after: str, said: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    assert before in SPACE
    (tmp_path / "s.yaml").write_text(SPACE.replace(before, after))
    answer = here("check", "s.yaml")
    assert answer.code == 2
    assert is_one_line(answer)
    assert said in answer.err


def test_features_have_no_accuracy_where_an_image_has_several_labels() -> None:
    from imgcls_search.catalog import refuse_other_labels

    text = SPACE.replace("{digits: {max_train: 100}}", "{folder: {root: photos, labels: several}}")
    space = parse(text, catalog(), source="x")
    refuse_of_pretraining(space)
    with pytest.raises(UserError, match="probe_accuracy"):
        refuse_other_labels(space)


def test_first_rungs_are_late() -> None:
    space = parse(SPACE.replace("epochs: 3", "epochs: 90"), catalog(), source="x")
    pruner = make_pruner(space.pruner, space.first(), 1)
    assert isinstance(pruner, Promoting)
    assert pruner.rungs == (30,)
    assert late_rung(90) == 30
    # A person may say otherwise, and trainings on labels are judged as before.
    given = parse(SPACE.replace("sampler: random", "pruner: {asha: {min_epochs: 5}}"), catalog(), source="x")
    chosen = make_pruner(given.pruner, given.first(), 1)
    assert isinstance(chosen, Promoting)
    assert chosen.rungs == ()
    plain = parse(SPACE.replace("probe_accuracy", "accuracy"), catalog(), source="x")
    usual = make_pruner(plain.pruner, plain.first(), 1)
    assert isinstance(usual, Promoting)
    assert usual.rungs[0] < plain.first().epochs / 3
