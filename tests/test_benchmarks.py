"""Every benchmark runs at a tiny size and writes its JSON; times are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"

pytestmark = pytest.mark.slow


def bench(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark and return what it wrote."""
    command = [sys.executable, str(SCRIPTS / f"bench_{name}.py"), "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=out)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert found["conditions"]["cores"] >= 1
    assert str(out) not in (out / f"{name}.json").read_text(), "a benchmark's results name no path of a machine"
    return found


@pytest.mark.parametrize("name", ["throughput", "overhead", "start", "compression", "load", "scale"])
def test_help_teaches_by_example(name: str) -> None:
    command = [sys.executable, str(SCRIPTS / f"bench_{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"python scripts/bench_{name}.py" in done.stdout


def test_throughput_compares_four_ways_holds_the_images_once_and_compares_accuracies(tmp_path: Path) -> None:
    found = bench(
        "throughput",
        tmp_path,
        *("--models", "lenet5", "--policy", "trivial", "--rounds", "2", "--seconds", "0.3", "--memory"),
        *("--accuracy", "--seeds", "2", "--accuracy-images", "256"),
    )
    (case,) = found["cases"]
    assert case["policy"] == "trivial"
    rates = case["images_per_second"]
    assert set(rates) == {"ours", "habit", "each", "bare"}
    assert all(len(rate["rounds"]) == 2 and rate["min"] > 0 for rate in rates.values())
    assert case["ours_over_bare"]["of_medians"] > 0
    assert [entry["workers"] for entry in found["memory"]] == [1, 2, 4]
    if sys.platform == "linux":
        for entry in found["memory"]:
            assert 0.9 < entry["mapped_bytes_of_all"] / entry["file_bytes"] < 1.2
    (accuracy,) = found["accuracy"]
    assert {len(accuracy["accuracy"][way]) for way in ("ours", "habit")} == {2}


def test_overhead_compares_with_plain_optuna(tmp_path: Path) -> None:
    found = bench(
        "overhead",
        tmp_path,
        *("--trials", "3", "12", "--repeat", "2", "--coordination", "--coordination-trials", "4"),
    )
    assert [(entry["trials_in_study"], entry["sampler"]) for entry in found["writer"]] == [
        (held, sampler) for held in (3, 12) for sampler in ("random", "tpe")
    ]
    assert all(entry["ours_over_plain"] > 0 for entry in found["writer"])
    assert [entry["trial_seconds"] for entry in found["coordination"]] == [5, 60]


def test_start_is_measured_to_the_first_epoch(tmp_path: Path) -> None:
    found = bench("start", tmp_path, "--rounds", "1")
    assert found["ratio"] > 0
    assert found["command_to_first_epoch_seconds"]["median"] > found["epoch_seconds"]["median"]


def test_compression_measures_sizes_speeds_and_accuracy(tmp_path: Path) -> None:
    trained = bench("compression", tmp_path, "--only", "trained", "--epochs", "1", "--turns", "3")["trained"]
    assert all(trained[name]["right"] == trained[name]["right_in_a_new_process"] for name in ("fp32", "static", "auto"))
    # The exported file is the trained network.
    assert trained["fp32"]["right"] == round(trained["torch"] * trained["images"]["val"])
    assert trained["auto"]["size_ratio"] < 0.5
    assert trained["auto"]["times_as_fast"] > 0


def test_large_study_goes_on_and_is_shown(tmp_path: Path) -> None:
    (found,) = bench("load", tmp_path, "--trials", "10000", "--tiny-trials", "0")["commands"]
    assert found["best"] >= found["best_that_was_filled_in"]
    assert found["exported"]
    assert found["top"] == 5
    assert found["dashboard"] == {"page": True, "study": "load", "trials": 10_002}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_scale_counts_what_workers_wait_for(tmp_path: Path) -> None:
    arguments = ("--trials", "30", "--workers", "2", "12", "--seconds", "10", "--strategies", "default")
    few, many = bench("scale", tmp_path, *arguments)["searches"]
    assert few["trials"] == many["trials"] == 30
    assert all(0 < found["idle_share"] < 1 for found in (few, many))
    # Epochs that take 10 s of a clock on which little else goes by.
    assert few["events_a_second"] < many["events_a_second"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_run_process_grows_by_what_it_keeps_of_a_trial_and_no_more(tmp_path: Path) -> None:
    found = bench("load", tmp_path, "--trials", "--tiny-trials", "400")["memory"]
    assert found["trials"] == 400
    # 15 KB over 2,000 trials, 20 over few; whoever keeps each trial once more, or Optuna's own of it, comes over this.
    assert found["kb_per_trial"] < found["asked_at_most"] == 30
