"""Metrics of another package, named by its entry points, in a search and everywhere that shows scores."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer, is_one_line

PAGE = (Path(__file__).parents[2] / "docs/how-to/add-a-metric.md").read_text()

SPACE = """\
study: {name: s, trials: 2, objectives: {%s: minimize}, sampler: random, workers: 1, pictures: false}
data: {digits: {max_train: 100}}
model: {resnet: {depths: [1], width: 8}}
optimizer: {adamw: {lr: {float: [1e-3, 1e-2], log: true}}}
training: {epochs: 1}
limits: {%s: {at_most: 1000}}
"""

BROKEN = """\
def raises(probabilities, labels):
    raise ValueError("no such\\nthing")


def text(probabilities, labels):
    return "much"


def nothing(probabilities, labels):
    return float("nan")


def picky(probabilities, labels):
    # Random probabilities, which it is tried on first, have a mean of 0.29; networks begin at 0.1.
    return 1.0 if probabilities.max(axis=1).mean() > 0.25 else None


number = 3
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Install a module with metrics as a package next to the test; return the environment that finds it."""

    def make(module: str, code: str, *entries: str) -> dict[str, str]:
        site = tmp_path / "site"
        about = site / f"{module}-1.0.dist-info"
        about.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[imgcls_search.metrics]\n" + "".join(f"{line}\n" for line in entries))
        return {"PYTHONPATH": str(site)}

    return make


@pytest.mark.slow
def test_metric_of_another_package_is_an_objective_a_limit_and_shown(
    install: Callable[..., dict[str, str]], tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    (code,) = re.findall(r"```python\n(# far\.py\n.*?)```", PAGE, re.DOTALL)
    ((entry),) = re.findall(r'\[project\.entry-points\."imgcls_search\.metrics"\]\n(.*?)\n```', PAGE)
    env = install("far", code, entry.replace('"', ""))
    (tmp_path / "s.yaml").write_text(SPACE % ("distance", "distance"))
    assert "unknown metric" in imgcls("check", "s.yaml").err
    assert imgcls("check", "s.yaml", "--samples", "0", env=env).code == 0
    ran = imgcls("run", "s.yaml", env=env)
    assert ran.code == 0, ran.err
    best = json.loads(imgcls("best", "s", "--json", env=env).out)["best"][0]
    assert imgcls("export", "s", "--bundle", "model", env=env).code == 0
    weights = tmp_path / "studies" / "s" / "checkpoints" / f"trial-{best['trial']:05d}.pt"
    found = json.loads(imgcls("evaluate", weights, "--predictions", "p.csv", "--json", env=env).out)
    # By hand, from the predictions: as the documentation's function says it.
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    distance = sum(abs(int(row["label"]) - int(row["predicted"])) for row in rows) / len(rows)
    assert found["metrics"]["distance"] == pytest.approx(distance)
    assert best["values"]["distance"] == pytest.approx(distance)
    assert best["limited"]["distance"] == pytest.approx(distance)
    score = json.loads((tmp_path / "model" / "metrics.json").read_text())["scores"][0]
    assert score["distance"] == pytest.approx(distance, abs=0.05)
    confirmed = json.loads(imgcls("confirm", "s", "--top", "1", "--seeds", "2", "--json", env=env).out)
    assert (confirmed["metric"], len(confirmed["test"]["scores"])) == ("distance", 2)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("raises", "the metric 'bad' of the package broken failed (ValueError: no such)"),
        (
            "text",
            "the metric 'bad' of the package broken failed (ValueError: could not convert string to float: 'mu",
        ),
        ("nothing", "the metric 'bad' of the package broken gave nan; allowed: a finite number"),
        (
            "number",
            "the metric 'bad' of the package broken is not a function; allowed: (probabilities, labels) -> float",
        ),
        ("missing", "the metric 'bad' of the package broken cannot be loaded (AttributeError: module 'broken' has no"),
    ],
)
def test_mistake_in_a_metric_is_one_line_that_names_it_before_a_training(
    entry: str, said: str, install: Callable[..., dict[str, str]], tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    env = install("broken", BROKEN, f"bad = broken:{entry}")
    (tmp_path / "s.yaml").write_text(SPACE % ("accuracy", "bad"))
    answer = imgcls("run", "s.yaml", env=env)
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(f"error: {said}")
    assert not list((tmp_path / "studies").glob("*.db"))
    if entry in ("number", "missing"):
        assert is_one_line(imgcls("check", "s.yaml", "--samples", "0", env=env))
    # Whoever does not name it is not stopped by it.
    (tmp_path / "t.yaml").write_text(SPACE.replace("name: s", "name: t") % ("loss", "loss"))
    assert imgcls("check", "t.yaml", "--samples", "0", env=env).code == 0


def test_mistake_that_shows_in_a_training_ends_the_search_in_one_line(
    install: Callable[..., dict[str, str]], tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    env = install("broken", BROKEN, "bad = broken:picky")
    (tmp_path / "s.yaml").write_text(SPACE % ("bad", "bad"))
    answer = imgcls("run", "s.yaml", env=env)
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("error: trial 0: the metric 'bad' of the package broken failed")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("accuracy = broken:raises", "the package broken adds a metric 'accuracy', but there is one of that name"),
        ("latency_ms = broken:raises", "the package broken adds a metric 'latency_ms', but there is one of that name"),
        ("recall:x = broken:raises", "the package broken adds a metric 'recall:x'; allowed: a letter, then letters"),
    ],
)
def test_name_that_is_taken_or_cannot_be_one_is_one_line(
    entry: str, said: str, install: Callable[..., dict[str, str]], tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    answer = imgcls("check", tiny, "--samples", "0", env=install("broken", BROKEN, entry))
    assert is_one_line(answer), answer.err
    assert said in answer.err
