"""Confirm, reproduce, list, trials and compare on a real search."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.ablation import steps
from imgcls_search.space import parse
from imgcls_search.study.files import StudyFiles

from scripts.bench import simulation
from tests.conftest import PATIENCE, TINY, Answer, begin_command, is_one_line
from tests.views.test_dashboard import study_with
from tests.warm import Warm


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[Path]:
    """Yield a folder in which `tiny.yaml` was searched to its end."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(TINY)
    process = begin_command(("run", "tiny.yaml", "--workers", "1"), folder, os.environ, warm)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(searched: Path, tmp_path: Path) -> str:
    shutil.copytree(searched / "studies", tmp_path / "studies")
    return "tiny-digits"


@pytest.mark.slow
def test_confirm_opens_the_test_split_once_and_best_says_so(study: str, imgcls: Callable[..., Answer]) -> None:
    assert "not confirmed" in imgcls("best", study).out
    answer = imgcls("confirm", study, "--top", "2", "--seeds", "2", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["confirmed"]["mean"] == pytest.approx(sum(found["scores"]) / 2)
    assert found["optimism"]["mean"] == pytest.approx(found["searched"] - found["confirmed"]["mean"])
    assert not set(found["seeds"]["choosing"]) & set(found["seeds"]["fresh"])
    means = [entry["mean"] for entry in found["ranking"]]
    assert means == sorted(means, reverse=True)
    assert found["ranking"][0]["trial"] == found["chosen"]
    (opening,) = json.loads(imgcls("status", study, "--json").out)["test_openings"]
    assert opening["by"] == "confirm"
    assert opening["trial"] == found["chosen"]
    # Asked again it trains nothing and opens nothing; asked otherwise it refuses.
    again = json.loads(imgcls("confirm", study, "--top", "2", "--seeds", "2", "--json").out)
    assert again == found
    assert "already confirmed with trials" in imgcls("confirm", study, "--top", "1").err
    assert len(json.loads(imgcls("status", study, "--json").out)["test_openings"]) == 1
    assert f"trial {found['chosen']}" in imgcls("best", study).out.splitlines()[-1]
    assert json.loads(imgcls("best", study, "--json").out)["confirmed"]["chosen"] == found["chosen"]
    assert f"trial {found['chosen']} confirmed" in imgcls("list").out


@pytest.mark.slow
def test_trial_is_reproduced_identically_on_a_cpu(study: str, imgcls: Callable[..., Answer]) -> None:
    answer = imgcls("reproduce", study, "--trial", "0", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert (found["verdict"], found["differs"]) == ("identical", [])


@pytest.mark.slow
def test_what_differs_is_told(study: str, tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    import optuna

    storage = f"sqlite:///{tmp_path}/studies/{study}.db"
    known = optuna.load_study(storage=storage, study_name=study)
    known.set_user_attr("versions", {**known.user_attrs["versions"], "torch": "1.0"})
    known.set_user_attr("hardware", "an abacus")
    epochs = known.trials[0].user_attrs["epochs"]
    epochs[-1]["accuracy"] += 5
    change_epochs(tmp_path / "studies" / f"{study}.db", epochs)
    answer = imgcls("reproduce", study, "--trial", "0", "--seeds", "2", "--json")
    assert answer.code == 1, answer.err
    found = json.loads(answer.out)
    assert found["verdict"] == "different"
    assert found["first_different_epoch"] == len(epochs)
    assert [line.split(",")[0] for line in found["differs"]] == ["torch: was 1.0", "hardware: was an abacus"]


def change_epochs(database: Path, epochs: list[dict[str, float]]) -> None:
    import sqlite3

    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'epochs' AND trial_id = "
            "(SELECT trial_id FROM trials WHERE number = 0)",
            (json.dumps(epochs),),
        )


def test_way_to_the_winner_is_made_of_single_changes_that_can_be_built() -> None:
    first = TrialConfig.from_dict(
        {"model": {"vit": {"width": 32, "heads": 4, "depth": 2}}, "optimizer": {"adamw": {"lr": 0.1}}, "seed": 1}
    )
    last = TrialConfig.from_dict(
        {"model": {"vit": {"width": 36, "heads": 6, "depth": 2}}, "optimizer": {"sgd": {"lr": 0.2}}, "seed": 1}
    )

    def heads_divide_width(config: TrialConfig) -> bool:
        vit = config.component("model").args
        return vit["width"] % vit["heads"] == 0

    way = list(steps(first, last, heads_divide_width))
    assert way[0].config == first
    assert way[-1].config == last
    assert [step.changes for step in way[1:]] == [
        ("model.vit.width: was 32, is now 36",),
        ("model.vit.heads: was 4, is now 6",),
        ('optimizer.adamw: was {"lr": 0.1}, is now not there', 'optimizer.sgd: was not there, is now {"lr": 0.2}'),
    ]
    # 30 is not divided by 4: both changes are made at once.
    together = TrialConfig.from_dict({**last.to_dict(), "model": {"vit": {"width": 30, "heads": 6, "depth": 2}}})
    counts = [len(step.changes) for step in steps(first, together, heads_divide_width)]
    assert counts == [0, 2, 2]


@pytest.mark.slow
def test_report_with_ablation_retrains_the_way_to_the_winner(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    import optuna

    space = f"""
{TINY.replace("trials: 4, pruner: {halving: {min_epochs: 2, eta: 2}}", "trials: 2, pruner: none")}
start:
  - {{optimizer.adamw.lr: 1e-4, model.lenet5.activation: tanh, model.lenet5.width: 1}}
  - {{optimizer.adamw.lr: 3e-3, model.lenet5.activation: relu, model.lenet5.width: 1}}
"""
    (tmp_path / "way.yaml").write_text(space)
    assert imgcls("run", "way.yaml", "--workers", "1").code == 0
    answer = imgcls("report", "way-digits", "-o", "report.html", "--ablation", "--seeds", "1")
    assert answer.code == 0, answer.err
    database = f"sqlite:///{tmp_path}/studies/way-digits.db"
    facts = optuna.load_study(storage=database, study_name="way-digits").user_attrs
    way = facts["ablation"]["steps"]
    assert (facts["ablation"]["first"], facts["ablation"]["winner"]) == (0, 1)
    assert [step["changes"] for step in way] == [
        [],
        ['model.lenet5.activation: was "tanh", is now "relu"'],
        ["optimizer.adamw.lr: was 0.0001, is now 0.003"],
    ]
    assert "test_openings" not in facts
    page = (tmp_path / "report.html").read_text()
    table = page[page.index('id="ablation"') :].split("</table>")[0]
    assert table.count("<tr>") == 1 + len(way)
    # On 216 validation images there is no fourth decimal.
    assert f">{way[-1]['mean']:.3f}<" in table


def test_ablation_of_a_trial_that_did_not_end_is_refused_before_anything_is_trained(
    tmp_path: Path, here: Callable[..., Answer]
) -> None:
    space = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")
    record = simulation.new_record(tmp_path / "studies", space, "s")
    for made in simulation.make_trials(space, 2):
        epochs, made.epochs, made.state, made.values = made.epochs, [], "running", None
        record.add(made)
        record.add_epoch(made, epochs[0])
    record.complete(record.trials[0], [0.5], {})
    record.prune(record.trials[1], "below the others at epoch 1")
    record.rows.engine.dispose()
    answer = here("report", "s", "-o", "report.html", "--ablation", "--trial", "1")
    assert is_one_line(answer), answer.err
    assert answer.err == "error: trial 1 of study 's' is pruned; allowed: a complete one\n"
    assert not (tmp_path / "studies" / "s" / "ablation").exists()


def test_winner_that_is_the_first_setting_has_no_way_to_retrain(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    study = "tiny-digits"
    assert imgcls("run", tiny, "--workers", "1", "--set", "study.trials=1").code == 0
    answer = imgcls("report", study, "-o", "report.html", "--ablation")
    assert answer.code == 2
    assert answer.err.splitlines() == [
        "error: --ablation: the winner is trial 0, the first configuration; there is no step to retrain"
    ]
    # Where the page cannot be written nothing is trained for it.
    answer = imgcls("report", study, "-o", "missing/report.html", "--ablation")
    assert answer.code == 2
    assert answer.err == "error: missing/report.html: cannot be written (No such file or directory)\n"


def test_trials_as_table_json_and_csv(study: str, imgcls: Callable[..., Answer]) -> None:
    rows = json.loads(imgcls("trials", study, "--json").out)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    (best,) = json.loads(imgcls("best", study, "--json").out)["best"]
    (first,) = json.loads(imgcls("trials", study, "--top", "1", "--json").out)
    assert first["trial"] == best["trial"]
    table = list(csv.DictReader(io.StringIO(imgcls("trials", study, "--csv").out)))
    assert [float(line["optimizer.adamw.lr"]) for line in table] == [
        row["params"]["optimizer.adamw.lr"] for row in rows
    ]
    assert "did you mean 'lenet5'?" in imgcls("trials", study, "--family", "lenet").err
    assert len(imgcls("trials", study, "--family", "lenet5").out.splitlines()) > 4


def test_compare_two_trials_and_two_studies(study: str, imgcls: Callable[..., Answer]) -> None:
    found = json.loads(imgcls("compare", f"{study}:0", f"{study}:1", "--json").out)
    rates = [row["params"]["optimizer.adamw.lr"] for row in json.loads(imgcls("trials", study, "--json").out)]
    assert f"optimizer.adamw.lr: {rates[0]} / {rates[1]}" in found["config"]
    entry = found["measured"]["accuracy"]
    assert entry["change"] == pytest.approx(entry["second"] - entry["first"])
    same = imgcls("compare", study, study)
    assert same.code == 0
    assert "the configurations are equal" in same.out
    assert "a trial and a study" in imgcls("compare", study, f"{study}:1").err
    for number in ("x", "9" * 5000):
        assert "is not a trial number" in imgcls("compare", f"{study}:{number}", f"{study}:1").err


@pytest.mark.parametrize(
    "arguments",
    [("confirm",), ("reproduce", "--trial", "0"), ("trials",), ("compare", "other")],
)
def test_study_that_is_not_there_is_one_line(
    arguments: tuple[str, ...], study: str, imgcls: Callable[..., Answer]
) -> None:
    answer = imgcls(arguments[0], "tiny-digit", *arguments[1:])
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert "did you mean 'tiny-digits'?" in answer.err


FRONT = """
study: {trials: 2, pruner: none, pictures: false, objectives: {accuracy: maximize, params: minimize, macs: maximize}}
data: {digits: {max_train: 100}}
model: {lenet5: {width: {choice: [0.5, 1]}}}
optimizer: {adamw: {}}
training: {epochs: 1, batch_size: 50}
start: [{model.lenet5.width: 0.5}, {model.lenet5.width: 1}]
"""
"""The larger network has more parameters and more MACs: neither trial beats the other, whatever they score."""


@pytest.mark.slow
def test_front_of_several_trials_leaves_the_choice_to_a_person(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    (tmp_path / "two.yaml").write_text(FRONT)
    ran = imgcls("run", "two.yaml", "--workers", "1")
    assert ran.code == 0, ran.err
    assert "2 trials are on the Pareto front; choose one of them: " in ran.out
    assert "export two-digits --trial N -o best.yaml" in ran.out
    assert ran.out.count("on the front: trial ") == here("status", "two-digits").out.count("on the front: trial ") == 2
    assert "confirm two-digits --trial N" in here("best", "two-digits").out
    for command in (
        ("export", "two-digits", "-o", "best.yaml"),
        ("export", "two-digits", "--bundle", "model"),
        ("confirm", "two-digits"),
        ("report", "two-digits", "-o", "report.html", "--ablation"),
    ):
        refused = here(*command)
        assert is_one_line(refused), refused
        assert "2 trials on its front" in refused.err
        assert "--trial" in refused.err
    assert here("export", "two-digits", "--trial", "1", "-o", "best.yaml").code == 0
    assert here("export", "two-digits", "--trial", "1", "--bundle", "model").code == 0
    confirmed = imgcls("confirm", "two-digits", "--trial", "0", "--seeds", "2", "--json")
    assert confirmed.code == 0, confirmed.err
    assert json.loads(confirmed.out)["chosen"] == 0
    page = here("report", "two-digits", "-o", "report.html", "--trial", "1")
    assert page.code == 0, page.err
    text = (tmp_path / "report.html").read_text()
    assert "This page is about trial 1" in text
    assert "2 are on the Pareto front (" in text
    taught = (tmp_path / "taught.yaml").write_text(
        FRONT.replace("training:", "distill: {study: {name: two-digits}}\ntraining:")
    )
    assert taught
    refused = imgcls("run", "taught.yaml", "--workers", "1")
    assert is_one_line(refused), refused
    assert "distill.study" in refused.err
    for command in (
        ("export", "two-digits", "-o", "x.yaml"),
        ("confirm", "two-digits"),
        ("report", "two-digits", "-o", "x.html"),
    ):
        assert is_one_line(here(*command, "--trial", "7")), command


ACCURATE, SMALL = ("accuracy", "maximize"), ("params", "minimize")


@pytest.mark.parametrize(
    ("objectives", "trials", "said"),
    [
        ([[ACCURATE, SMALL], [ACCURATE, SMALL]], [1, 2], "their best by one objective (maximize accuracy), "),
        # The first that both have, wherever it stands.
        ([[SMALL, ACCURATE], [ACCURATE]], [1, 2], "their best by one objective (maximize accuracy), trial 1 (of 3 "),
        ([[ACCURATE, SMALL], [SMALL, ("loss", "minimize")]], [0, 0], "(minimize params), trial 0 (of 3 on the front)"),
        ([[ACCURATE, SMALL], [("loss", "minimize")]], [1, 1], "trial 1 (of 3 on the front) by maximize accuracy and "),
        ([[ACCURATE], [ACCURATE]], [1, 2], "their best, trial 1 and trial 2:"),
    ],
)
def test_studies_of_several_objectives_say_by_which_they_are_compared(
    objectives: list[list[tuple[str, str]]],
    trials: list[int],
    said: str,
    tmp_path: Path,
    here: Callable[..., Answer],
) -> None:
    shown = [
        {"accuracy": [0.5, 0.9, 0.7], "params": [10, 30, 20], "loss": [3, 1, 2]},
        {"accuracy": [0.5, 0.6, 0.8], "params": [10, 20, 30], "loss": [2, 1, 3]},
    ]
    for name, own, values in zip("ab", objectives, shown, strict=True):
        ends = [([values[metric][number] for metric, _ in own], 0.0) for number in range(3)]
        record = study_with(StudyFiles(tmp_path / "studies", name), own, ends)
        record.set_fact("data", {"images": {"val": 100}, "classes": ["a", "b"], "fingerprint": "2-0"})
    answer = here("compare", "a", "b")
    assert answer.code == 0, answer.err
    assert said in answer.out
    found = json.loads(here("compare", "a", "b", "--json").out)
    assert found["best"]["trials"] == trials
    assert len(found["chosen"]["by"]) == 2
