"""What interrupted, malformed and simultaneous writing leaves of a training's results."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.errors import CheckpointError
from imgcls_search.jobs.bundle import weights
from imgcls_search.jobs.evaluate import record_opening
from imgcls_search.jobs.export import read_origin
from imgcls_search.jobs.trainer import working_alone

from tests.conftest import Answer, is_one_line, linux_only
from tests.orchestrator.test_run import wait_for

TRAINED = """
data: {digits: {max_train: 200}}
model: {lenet5: {width: 0.5}}
training: {epochs: 400, batch_size: 50}
"""


def test_interrupted_training_is_not_taken_for_a_finished_one(
    tmp_path: Path, start: Callable[..., Any], imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    (tmp_path / "one.yaml").write_text(TRAINED)
    process = start("train", "one.yaml")
    partial = tmp_path / "trained/one/seed-1.partial.pt"
    wait_for(partial.exists)
    process.kill()
    process.communicate()
    assert not (tmp_path / "trained/one/seed-1.pt").exists()
    # Under the name that older versions gave it, it is refused too.
    shutil.copy(partial, tmp_path / "old.pt")
    for command in (("export", "old.pt", "--bundle", "model"), ("evaluate", partial)):
        answer = here(*command)
        assert is_one_line(answer)
        assert re.search(r"interrupted after \d+ of 400 epochs", answer.err)
    assert not (tmp_path / "model").exists()
    # A teacher is no half-trained network either.
    (tmp_path / "two.yaml").write_text(TRAINED + "distill: {file: {path: old.pt}}\n")
    answer = imgcls("train", "two.yaml")
    assert answer.code == 2
    assert "of 400 epochs" in answer.err.splitlines()[-1]


def test_interrupted_training_is_finished_by_the_same_command(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    (tmp_path / "one.yaml").write_text(TRAINED.replace("400", "3"))
    assert imgcls("train", "one.yaml", "--seeds", "2").code == 0
    out = tmp_path / "trained/one"
    assert {path.name for path in out.glob("*.pt")} == {"seed-1.pt", "seed-2.pt"}
    first = json.loads((out / "metrics.json").read_text())
    # As it stands where the process died after the last epoch of one seed, before that was noticed.
    (out / "seed-2.pt").rename(out / "seed-2.partial.pt")
    (out / "metrics.json").unlink()
    written = (out / "seed-1.pt").stat().st_mtime_ns, (out / "seed-2.partial.pt").stat().st_mtime_ns
    assert imgcls("train", "one.yaml", "--seeds", "2").code == 0
    assert json.loads((out / "metrics.json").read_text())["test"] == first["test"]
    assert written == tuple((out / f"seed-{seed}.pt").stat().st_mtime_ns for seed in (1, 2))
    for seed in (1, 2):
        assert here("evaluate", out / f"seed-{seed}.pt").code == 0


@pytest.mark.parametrize(
    "comment",
    [
        '{"study": 7, "trial": 1}',
        '{"study": "../x", "trial": 1}',
        '{"study": "x", "trial": "one"}',
        '{"study": "x"}',
        "[1]",
        "none",
        "{",
        "",
    ],
)
def test_malformed_origin_is_said(comment: str) -> None:
    origin, problem = read_origin(f"# one\n# origin: {comment}\nmodel: {{}}\n")
    assert origin is None
    assert problem is not None
    assert problem.startswith("2: the comment '# origin:")
    assert "\n" not in problem


def test_training_with_a_malformed_origin_keeps_its_metrics(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "one.yaml").write_text(
        '# origin: {"study": ["x"], "trial": {}}\n' + TRAINED.replace("epochs: 400", "epochs: 1")
    )
    answer = imgcls("train", "one.yaml")
    assert answer.code == 0
    assert "one.yaml:1: the comment" in answer.err
    assert json.loads((tmp_path / "trained/one/metrics.json").read_text())["origin"] is None


@pytest.mark.slow
def test_training_whose_study_is_damaged_keeps_its_metrics(tmp_path: Path, imgcls: Callable[..., Answer]) -> None:
    (tmp_path / "studies/x").mkdir(parents=True)
    (tmp_path / "studies/x/storage").write_bytes(b"\xff\xfe no address")
    (tmp_path / "one.yaml").write_text(
        '# origin: {"study": "x", "trial": 0}\n' + TRAINED.replace("epochs: 400", "epochs: 1")
    )
    answer = imgcls("train", "one.yaml")
    assert answer.code == 0, answer.err
    assert "noted in metrics.json and not in a study" in answer.err
    assert (tmp_path / "trained/one/metrics.json").is_file()
    bundle = imgcls("export", "trained/one/seed-1.pt", "--bundle", "model")
    assert bundle.code == 0, bundle.err


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"origin": 1}',
        '{"test": []}',
        '{"test": {"1": 3}}',
        '{"test": {"1": {"accuracy": "x", "macro_f1": 1}}}',
        '{"test": {"1": {"accuracy": NaN, "macro_f1": 1}}}',
        '{"test": {"1": {"accuracy": 5, "macro_f1": 1}}}',
        '{"summary": {"average_precision": {}}, "test": {"1": {"subset_accuracy": 1, "macro_f1": 1}}}',
        '{"seeds": 2}',
        '{"summary": {"accuracy": {"mean": "m", "ci95": 0.1}}}',
        '{"summary": {"accuracy": {"mean": null, "ci95": 0.1}}}',
        '{"summary": {"accuracy": {"mean": 0.5, "ci95": ""}}}',
        '{"summary": {"accuracy": {"mean": 0.5}}, "test": {"1": {"subset_accuracy": 0.5, "macro_f1": 0.5}}}',
        f'{{"test": {{"1": {{"accuracy": 1{"0" * 400}, "macro_f1": 0.5}}}}}}',
        '{"summary": []}',
        '{"trained_on": {}}',
        "\udcff",
    ],
)
def test_damaged_metrics_beside_weights_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"metrics\.json: damaged"):
        weights._report(tmp_path / "seed-1.pt")


def test_two_trainings_at_once_do_not_share_a_folder(tmp_path: Path, here: Callable[..., Answer]) -> None:
    (tmp_path / "one.yaml").write_text(TRAINED)
    out = tmp_path / "trained/one"
    out.mkdir(parents=True)
    with working_alone(out / ".lock", "busy"):
        answer = here("train", "one.yaml")
    assert is_one_line(answer), answer
    assert "trained/one: another process is training there" in answer.err
    assert not list(out.iterdir())


def test_a_spread_over_no_trainings_is_left_out() -> None:
    assert weights._spread({"summary": {"accuracy": {"mean": 0.5, "ci95": 0.1}}}) is None


@linux_only
def test_openings_noted_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "test-openings.jsonl"
    path.write_bytes(b'{"half a li\xff')
    with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(record_opening, [path] * 80, [{"number": number} for number in range(80)]))
    half, *lines = path.read_bytes().splitlines()
    assert half == b'{"half a li\xff'
    assert sorted(json.loads(line)["number"] for line in lines) == list(range(80))
