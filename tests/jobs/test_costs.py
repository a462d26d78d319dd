"""Class weights, balanced draws and costs from the file to every place that shows or obeys them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from imgcls_search.deploy import bundle
from imgcls_search.errors import DeployError

from tests.conftest import Answer, is_one_line
from tests.orchestrator.test_named_metrics import colours

COSTS = {"green": {"blue": 6.0}, "red": {"blue": 0.25}}
SPACE = """\
study: {name: s, trials: 3, objectives: {cost: minimize}, sampler: random, pruner: none, workers: 1, seed: 1}
data: {folder: {root: photos, val: 0.4, test: 0.2}}
model: {lenet5: {}}
augment: {blur: 0.5, jpeg: {choice: [60, 100]}}
loss: {cross_entropy: {class_weights: {choice: [none, {blue: 1, green: 3}]}}}
training: {epochs: 2, draw: balanced}
predict: {costs: {green: {blue: 6}, red: {blue: 0.25}}}
limits: {decision_accuracy: {at_least: 0}}
start: [{loss.cross_entropy.class_weights: {green: 3, blue: 1}}, {loss.cross_entropy.class_weights: none}]
"""


def cost(true: str, predicted: str) -> float:
    return 0.0 if true == predicted else COSTS.get(true, {}).get(predicted, 1.0)


def decide(probabilities: dict[str, float]) -> str:
    """Return the decision, by hand."""
    return min(probabilities, key=lambda name: sum(p * cost(true, name) for true, p in probabilities.items()))


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = list(csv.DictReader(path.read_text().splitlines()))
    for row in rows:
        row["p"] = {key[2:-1]: float(value) for key, value in row.items() if key.startswith("p(")}
    return rows


@pytest.mark.slow
def test_costs_decide_from_the_search_to_the_bundle(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    colours(tmp_path / "photos", "blue", each=30)
    colours(tmp_path / "photos", "green", "red", each=12)
    (tmp_path / "s.yaml").write_text(SPACE)
    ran = imgcls("run", "s.yaml")
    assert ran.code == 0, ran.err
    assert "loss.cross_entropy.class_weights: classes without a weight get weight 1: red" in ran.out
    recorded = '{"blue": 1.0, "green": 3.0}'
    rows = json.loads(imgcls("trials", "s", "--json").out)
    assert [row["params"]["loss.cross_entropy.class_weights"] for row in rows][:2] == [recorded, "none"]
    assert recorded in imgcls("trials", "s").out
    # The same space resumes; another cost is another study.
    assert imgcls("run", "s.yaml").code == 0
    other = imgcls("run", "s.yaml", "--set", "predict.costs.green.blue=7")
    assert "predict.costs.green.blue: was 6.0, is now 7.0" in other.err
    # The exported file trains to what the search would: weights, draws and costs are in it.
    assert imgcls("export", "s", "--trial", "0", "-o", "zero.yaml").code == 0
    text = (tmp_path / "zero.yaml").read_text()
    assert re.search(r"class_weights:\n +blue: 1\.0\n +green: 3\.0\n", text)
    assert "draw: balanced" in text
    trained = imgcls("train", "zero.yaml", "--json")
    assert trained.code == 0, trained.err
    assert "classes without a weight get weight 1: red" in trained.err
    weights = "trained/zero/seed-1.pt"
    found = json.loads(imgcls("evaluate", weights, "--predictions", "p.csv", "--json").out)
    known = rows_of(tmp_path / "p.csv")
    assert [row["predicted"] for row in known] == [decide(row["p"]) for row in known]
    assert any(row["predicted"] != max(row["p"], key=row["p"].__getitem__) for row in known)
    assert found["metrics"]["cost"] == pytest.approx(np.mean([cost(row["label"], row["predicted"]) for row in known]))
    assert found["metrics"]["decision_accuracy"] == pytest.approx(
        np.mean([row["label"] == row["predicted"] for row in known])
    )
    assert found["metrics"]["accuracy"] == pytest.approx(
        np.mean([row["label"] == max(row["p"], key=row["p"].__getitem__) for row in known])
    )
    assert imgcls("export", weights, "--bundle", "model").code == 0
    assert json.loads((tmp_path / "model" / "bundle.json").read_text())["decision"] == {"costs": COSTS}
    score = json.loads((tmp_path / "model" / "metrics.json").read_text())["scores"][0]
    assert score["cost"] == pytest.approx(found["metrics"]["cost"], abs=0.05)
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text()
    assert "| `green` | `blue` | 6 |" in card
    assert "least expected cost" in card
    said = json.loads(imgcls("predict", "model", "photos", "--json").out)
    by_name = {prediction["image"]: prediction["classes"] for prediction in said["predictions"]}
    assert len(by_name) == 54
    for classes in by_name.values():
        p = {entry["label"]: entry["probability"] for entry in classes}
        assert classes[0]["label"] == decide(p)
        prices = [sum(p[true] * cost(true, entry["label"]) for true in p) for entry in classes]
        assert [entry["expected_cost"] for entry in classes] == pytest.approx(prices)
        assert prices == sorted(prices)
    for row in known:
        assert by_name[f"photos/{row['image']}"][0]["label"] == row["predicted"]
    shown = imgcls("predict", "model", "photos/red", "--top", "1").out
    assert re.fullmatch(r"(photos/red/\d+\.png: \w+ 0\.\d{4} \(cost [\d.]+\)\n)+", shown)
    assert imgcls("report", "s", "-o", "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "predicted by predict.costs: the class of least expected cost" in page
    assert "decision_accuracy" in page
    assert recorded.replace('"', "&#34;") in page or recorded in page
    # What else reads a study has no trouble with such values.
    for command in (["status", "s"], ["compare", "s:0", "s:1"], ["reproduce", "s", "--trial", "0"]):
        answer = imgcls(*command)
        assert answer.code == 0, answer.err
    assert "class_weights" in imgcls("compare", "s:0", "s:1").out


@pytest.mark.parametrize(
    ("line", "place", "problem"),
    [
        (
            "loss: {cross_entropy: {class_weights: {rad: 2}}}",
            "5:40: loss.cross_entropy.class_weights",
            "there is no class 'rad'; classes: blue, red (did you mean 'red'?)",
        ),
        (
            "loss: {focal: {class_weights: {choice: [none, {green: 2}]}}}",
            "5:16: loss.focal.class_weights",
            "there is no class 'green'; classes: blue, red",
        ),
        ("predict: {costs: {rad: {blue: 2}}}", "5:19: predict.costs", "there is no class 'rad'; classes: blue, red"),
        ("predict: {costs: {red: {bleu: 2}}}", "5:25: predict.costs", "there is no class 'bleu'; classes: blue, red"),
        (
            "predict: {costs: {red: {red: 2}}}",
            "5:25: predict.costs",
            "red.red: 2 is not allowed: the right class costs nothing; allowed: 0",
        ),
        ("study: {objectives: {cost: minimize}}", "5:22: study.objectives.cost", "needs predict.costs, as in predict:"),
        ("limits: {cost: {at_most: 1}}", "5:10: limits.cost", "needs predict.costs, as in predict:"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run", "train"])
def test_classes_that_are_not_there_are_one_line_before_anything_is_trained(
    command: str, line: str, place: str, problem: str, tmp_path: Path, here: Callable[..., Answer]
) -> None:
    if command == "train" and ("objectives" in line or "limits" in line or "choice" in line):
        pytest.skip("a configuration alone has no objectives, and nothing that is searched")
    colours(tmp_path / "photos", "red", "blue")
    searched = "0.1" if command == "train" else "{choice: [0.1, 0.2]}"
    (tmp_path / "s.yaml").write_text(
        f"data: {{folder: {{root: photos}}}}\nmodel: {{lenet5: {{}}}}\n"
        f"optimizer: {{adamw: {{lr: {searched}}}}}\ntraining: {{epochs: 1}}\n{line}\n"
    )
    answer = here(command, "s.yaml")
    assert answer.code == 2
    last = answer.err.splitlines()[-1]
    assert last.startswith(f"error: s.yaml:{place}: {problem}"), answer.err
    assert command == "train" or is_one_line(answer)
    assert not list((tmp_path / "studies").glob("*.db"))
    assert not list(tmp_path.glob("trained/*/*.pt"))


@pytest.fixture
def folder(tmp_path: Path, here: Callable[..., Answer]) -> Path:
    """A bundle with costs."""
    colours(tmp_path / "photos", "blue", "green", "red", each=12)
    (tmp_path / "c.yaml").write_text(
        "data: {folder: {root: photos}}\nmodel: {lenet5: {}}\ntraining: {epochs: 1}\n"
        f"predict: {{costs: {json.dumps(COSTS)}}}\n"
    )
    assert here("train", "c.yaml").code == 0
    assert here("export", "trained/c/seed-1.pt", "--bundle", "model").code == 0
    return tmp_path / "model"


def test_costs_of_a_bundle_are_taken_on_no_trust_and_need_nothing_but_the_runtime(folder: Path) -> None:
    path = folder / "bundle.json"
    about = json.loads(path.read_text())
    assert about["format"] == 3
    assert bundle.read(folder).costs == COSTS
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    pixels = np.zeros((1, *bundle.read(folder).frame.shape), dtype=np.uint8)
    assert session.run(["logits"], {"pixels": pixels})[0].shape == (1, 3)
    for costs, problem in (
        ({"grey": {"red": 1}}, "decision.costs: there is no class 'grey'"),
        ({"red": {"grey": 1}}, "decision.costs: there is no class 'grey'"),
        ({"red": {"red": 1}}, "decision.costs: red.red: 1 is not allowed"),
        ({"red": {"blue": -1}}, r"decision.costs: -1 is not allowed; allowed: a number >= 0"),
        ({"red": {"blue": "1"}}, "decision.costs: '1' is not allowed"),
        ({"red": {"blue": True}}, "decision.costs: True is not allowed"),
        ({"red": {"blue": float("nan")}}, "decision.costs: nan is not allowed"),
        ({"red": 1}, "decision.costs: damaged"),
        ({}, "decision.costs: damaged"),
        (None, "decision.costs: damaged"),
    ):
        path.write_text(json.dumps({**about, "decision": {"costs": costs}}))
        with pytest.raises(DeployError, match=problem) as caught:
            bundle.read(folder)
        assert len(str(caught.value).splitlines()) == 1
    # Costs may not get lost on the way, and a bundle that an earlier version would misread has another format.
    path.write_text(json.dumps({name: value for name, value in about.items() if name != "decision"}))
    with pytest.raises(DeployError, match="not a bundle of format 1"):
        bundle.read(folder)
    path.write_text(json.dumps({**about, "format": 1}))
    with pytest.raises(DeployError, match="not a bundle of format 3"):
        bundle.read(folder)
