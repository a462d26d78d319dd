"""Every benchmark runs at a tiny size and writes its JSON; how fast it went is not looked at."""

from __future__ import annotations

import ast
import json
import lzma
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy import stats
from sklearn.metrics import f1_score

from tests.conftest import Answer
from tests.views.test_service import write_bundle

SCRIPTS = Path(__file__).parent.parent / "scripts" / "bench"

pytestmark = pytest.mark.slow


Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(run_script: Callable[..., Answer]) -> Bench:
    """Run a benchmark and return what it wrote."""

    def run(name: str, out: Path, *arguments: str, cold: bool = False) -> dict[str, Any]:
        done = run_script(SCRIPTS / f"{name}.py", "--out", out, *arguments, cwd=out, cold=cold)
        assert done.code == 0, done.err
        found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
        assert found["conditions"]["cores"] >= 1
        assert str(out) not in (out / f"{name}.json").read_text(), "a benchmark's results name no path of a machine"
        return found

    return run


BENCHMARKS = sorted(
    path.stem
    for path in SCRIPTS.glob("*.py")
    if path.stem
    not in ("frame", "simulation", "intervals", "rivals", "environments", "cell", "curve_tables", "equal_seconds")
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_teaches_by_example(name: str, run_script: Callable[..., Answer], tmp_path: Path) -> None:
    done = run_script(SCRIPTS / f"{name}.py", "--help", cwd=tmp_path)
    assert done.code == 0, done.err
    assert f"python scripts/bench/{name}.py" in done.out


def test_throughput_compares_four_ways_holds_the_images_once_and_compares_accuracies(
    bench: Bench, tmp_path: Path
) -> None:
    found = bench(
        "throughput",
        tmp_path,
        *("--models", "lenet5", "--policy", "trivial", "--rounds", "2", "--seconds", "0.01", "--memory"),
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


def test_sizes_of_images_are_compared_at_equal_seconds_and_comparing_resumes(bench: Bench, tmp_path: Path) -> None:
    small = ("--seconds", "0.1", "--train", "60", "--width", "4", "--size", "8", "--rounds", "1")
    found = bench("progressive", tmp_path, *small, "--seeds", "1")
    again = bench("progressive", tmp_path, *small, "--seeds", "2")
    assert again["trainings"][:2] == found["trainings"]
    assert [(one["arm"], one["seed"]) for one in again["trainings"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("full", "progressive")
    ]
    assert all(len(one["validation"]) == one["epochs"] for one in again["trainings"])
    difference = again["arms"]["progressive"]
    low, high = difference["interval"]
    assert low <= difference["difference"] <= high
    # Other settings begin from the start.
    assert bench("progressive", tmp_path, *small, "--seeds", "1", "--until", "0.5")["arms"]["full"]["n"] == 1


def test_interval_of_paired_differences_is_scipy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import equal_seconds

    differences = np.random.default_rng(0).normal(0.01, 0.02, 10).tolist()
    found = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert equal_seconds.interval(differences) == pytest.approx((found.low, found.high))


def test_airbench_is_compared_with_the_start_settings_of_the_shipped_space(bench: Bench, tmp_path: Path) -> None:
    found = bench(
        "airbench", tmp_path, "--seconds", "0.1", "--train", "60", "--seeds", "1", "--starts", "1", "--rounds", "1"
    )
    assert [one["arm"] for one in found["trainings"]] == ["resnet-1", "airbench"]


def test_speeds_of_a_gpu_are_measured_by_cases(bench: Bench, tmp_path: Path) -> None:
    found = bench("gpu", tmp_path, "--device", "cpu", "--tiny")
    assert [case["policy"] for case in found["images"]] == ["none", "rand"]
    assert all(case["ours"]["median"] > 0 and case["bare"]["median"] > 0 for case in found["images"])
    assert found["workers"]["1 workers"]["trials_per_hour"]["median"] > 0


def test_batched_members_are_trained_as_alone_and_compared(bench: Bench, tmp_path: Path) -> None:
    found = bench(
        "batched",
        tmp_path,
        *("--cases", "vit-8-4-16", "resnet-8-8", "--members", "2", "--batches", "128", "--rounds", "2"),
        *("--seconds", "0", "--epochs", "--spaces", "vit"),
    )
    assert [case["case"] for case in found["cases"]] == ["vit-8-4-16", "resnet-8-8"]
    for case in found["cases"]:
        # On some processors they are the same to the last bit; of no gradients at all it would be no number.
        assert 0 <= case["gradients_differ_by"] < 1e-5
        assert set(case["steps_per_second"]) == {"alone", "batched", "bound"}
        assert case["batched_over_alone"]["min"] > 0
        assert 0 < case["share_of_epoch"] <= 1
    (alike,) = found["spaces"]
    assert 1 <= alike["most_alike"] < 2


def test_overhead_compares_with_plain_optuna(bench: Bench, tmp_path: Path) -> None:
    found = bench(
        "overhead",
        tmp_path,
        *("--trials", "3", "12", "--repeat", "2", "--coordination", "--coordination-trials", "2"),
    )
    assert [(entry["trials_in_study"], entry["sampler"]) for entry in found["writer"]] == [
        (held, sampler) for held in (3, 12) for sampler in ("random", "tpe")
    ]
    assert all(entry["ours_over_plain"] > 0 for entry in found["writer"])
    assert [entry["trial_seconds"] for entry in found["coordination"]] == [5, 60]


def test_start_is_measured_to_the_first_epoch(bench: Bench, tiny: Path, tmp_path: Path) -> None:
    found = bench("start", tmp_path, "--rounds", "1", "--space", str(tiny))
    assert found["ratio"] > 0
    assert found["command_to_first_epoch_seconds"]["median"] > found["epoch_seconds"]["median"]


def test_compression_measures_sizes_speeds_and_accuracy(bench: Bench, tmp_path: Path) -> None:
    trained = bench("compress", tmp_path, "--only", "trained", "--epochs", "1", "--turns", "3")["trained"]
    assert all(trained[name]["right"] == trained[name]["right_in_a_new_process"] for name in ("fp32", "static", "auto"))
    # The exported file is the trained network.
    assert trained["fp32"]["right"] == round(trained["torch"] * trained["images"]["val"])
    assert trained["auto"]["size_ratio"] < 0.5
    assert trained["auto"]["times_as_fast"] > 0


def test_large_study_goes_on_and_is_shown(bench: Bench, tmp_path: Path) -> None:
    (found,) = bench("load", tmp_path, "--trials", "1000", "--tiny-trials", "0")["commands"]
    assert found["best"] >= found["best_that_was_filled_in"]
    assert found["exported"]
    assert found["top"] == 5
    assert found["dashboard"] == {"page": True, "study": "load", "trials": 1_002}


def test_workers_are_compared(bench: Bench, tmp_path: Path) -> None:
    few = ("--trials", "2", "--epochs", "1", "--max-train", "100", "--rounds", "1")
    found = bench("workers", tmp_path, "--device", "cpu", "--workers", "1", "2", *few)
    assert all(found[f"{count} workers"]["trials_per_hour"]["median"] > 0 for count in (1, 2))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A tree of 32x32 pictures of two colours, with train/ and test/."""
    root = tmp_path / "images"
    for split, count in (("train", 30), ("test", 6)):
        for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                shade = tuple(min(255, part + number) for part in colour)
                Image.new("RGB", (32, 32), shade).save(root / split / label / f"{number}.png")
    return root


def test_searches_are_compared_on_images(bench: Bench, images: Path, tmp_path: Path) -> None:
    small = ("--max-train", "40", "--max-epochs", "20", "--seeds", "1", "--without-start")
    found = bench("search", tmp_path, "--images", str(images), *small)
    assert len(found["bests"]) == 2
    # Two full trainings have 16 epochs; which of two workers is faster may cost some more.
    assert all(len(curve) >= 1 for curves in found["bests"].values() for curve in curves)
    assert (tmp_path / "search.png").stat().st_size > 1000


def test_strategies_are_compared_on_a_surrogate(bench: Bench, tmp_path: Path) -> None:
    # In place of LCBench's: an accuracy that rises with the epochs and falls with the batch size.
    weights = np.zeros((8, 2), np.float32)
    weights[0, 1], weights[1, 1] = 0.5, -0.05
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x_cont", "weights"], ["y"])],
        "surrogate",
        [
            helper.make_tensor_value_info("x_cat", TensorProto.INT32, ["n", 1]),
            helper.make_tensor_value_info("x_cont", TensorProto.FLOAT, ["n", 8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "encoding.json").write_text('{"OpenML_task_id": {"7": 0, "3945": 1, "34539": 2}}')
    methods = ("tpe+median", "default", "after 4", "after 4, half misleading")
    small = ("--seeds", "1", "--trainings", "3", "--methods", *methods, "--processes", "1")
    found = bench("strategies", tmp_path, "--lcbench", str(tmp_path), "--tasks", "7", *small)
    assert found["tasks"] == ["7"]
    assert {"random", *methods} <= set(found["methods"])
    # Studies of the same curves tell at once where the best is; those that are turned around do not spoil the end.
    assert found["methods"]["after 4"]["7"]["mean"] > found["methods"]["default"]["7"]["mean"] - 1e-3
    misled = found["methods"]["after 4, half misleading"]["7"]["mean"]
    assert misled > found["methods"]["tpe+median"]["7"]["mean"] - 0.01


def test_curves_are_recorded_and_recording_goes_on(bench: Bench, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(100):
            pixels = random.integers(0, 128, (8, 8, 3)) + (100 if name == "dog" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{number}.png")
    asked = ("--cifar", str(tmp_path / "images"), "--spaces", "cells", "--tables", str(tmp_path / "tables"))
    assert bench("record_curves", tmp_path, *asked, "--trainings", "2")["trainings"] == {"cells": 2}
    before = table(tmp_path / "tables" / "cells.jsonl.xz")
    # What is there is not trained again.
    assert bench("record_curves", tmp_path, *asked, "--trainings", "3")["trainings"] == {"cells": 3}
    after = table(tmp_path / "tables" / "cells.jsonl.xz")
    assert after[:2] == before
    assert [(each["number"], each["seed"], len(each["curve"]["accuracy"])) for each in after] == [
        (number, 0, 12) for number in range(3)
    ]
    over = bench("record_curves", tmp_path, *asked, "--trainings", "9", "--until", "2020-01-01T00:00")
    assert over["trainings"] == {"cells": 3}
    found = bench("replays", tmp_path, "--recorded", str(tmp_path / "tables"), "--pools", "2", "--share", "1.0",
                  "--trainings", "2", "--processes", "1", "--strategies", "default", "random")  # fmt: skip
    assert found["tables"]["cells"]["configurations"] == 3


def table(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def test_committed_tables_hold_whole_trainings_of_their_spaces() -> None:
    tables = SCRIPTS / "tables"
    assert sum(path.stat().st_size for path in tables.iterdir()) < 2_000_000
    for path in tables.glob("*.jsonl.xz"):
        trainings = table(path)
        numbers = [(each["number"], each["seed"]) for each in trainings]
        assert numbers == sorted(set(numbers))
        epochs = max(len(each["curve"]["accuracy"]) for each in trainings)
        for each in trainings:
            assert len({len(values) for values in each["curve"].values()}) == 1
            assert each["failed"] or len(each["curve"]["accuracy"]) == epochs


def test_strategies_are_compared_on_pools_of_real_trainings(bench: Bench, tmp_path: Path) -> None:
    # As opda-alexnet has them; every fourth diverges.
    random = np.random.default_rng(0)
    lines = []
    for number in range(40):
        lr, epochs = float(np.exp(random.uniform(np.log(0.005), np.log(50)))), int(random.integers(20, 101))
        top = 0.5 - 0.05 * abs(np.log(lr))
        shown = epochs // 3 if number % 4 == 0 else epochs
        curve = [{"top_1": top * (1 - 0.9 ** (epoch + 1)), "epoch": epoch} for epoch in range(shown)]
        drawn = {"momentum": 0.9, "weight_decay": 1e-5, "label_smoothing": 0.1, "lr_peak_epoch": 3, "batch_size": 128}
        lines.append({"iteration": number, "epochs": epochs, "lr": lr, "learning_curve": curve, **drawn})
    (tmp_path / "alexnet_tuning.results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ("--opda", str(tmp_path), "--tables", "opda-20", "--pools", "3", "--trainings", "8", "--processes", "1")
    found = bench("replays", tmp_path, *asked, "--strategies", "default", "tpe+median")["tables"]["opda-20"]
    assert found["configurations"] == 40
    low, high = found["default"]["over tpe+median"][1:]
    assert low <= found["default"]["over tpe+median"][0] <= high
    # A search that is there is not run again.
    assert bench("replays", tmp_path, *asked, "--strategies", "default", "tpe+median")["tables"]["opda-20"] == found


def test_losses_on_a_cluster_are_timed(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    small = ("--rounds", "1", "--trials", "2", "--epochs", "1", "--train", "40", "--losses", "0")
    assert bench("cluster", tmp_path, *small)["throughput"]["ray_over_local"]["median"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_scale_counts_what_workers_wait_for(bench: Bench, tmp_path: Path) -> None:
    arguments = ("--trials", "30", "--workers", "2", "12", "--seconds", "10", "--strategies", "default")
    few, many = bench("scale", tmp_path, *arguments)["searches"]
    assert few["trials"] == many["trials"] == 30
    assert all(0 < found["idle_share"] < 1 for found in (few, many))
    # Epochs that take 10 s of a clock on which little else goes by.
    assert few["events_a_second"] < many["events_a_second"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_run_process_grows_by_what_it_keeps_of_a_trial_and_no_more(bench: Bench, tmp_path: Path) -> None:
    # A fork also holds what it touches of the memory that it was forked with.
    found = bench("load", tmp_path, "--trials", "--tiny-trials", "200", cold=True)["memory"]
    assert found["trials"] == 200
    # 15 KB over 2,000 trials, 20 over few; a second copy of each trial, or Optuna's own, exceeds this.
    assert found["kb_per_trial"] < found["asked_at_most"] == 30


def test_folds_compares_the_errors_of_both_at_equal_epochs(bench: Bench, tmp_path: Path) -> None:
    found = bench("folds", tmp_path, "--repetitions", "2", "--trials", "3", "--folds", "3", "--epochs", "1")
    split, folds = (found["searches"][name] for name in ("split", "folds"))
    assert [each["images"] for each in (*split, *folds)] == [200] * 4
    assert [each["epochs"] for each in (*split, *folds)] == [3] * 4
    assert [each["scored_by"] for each in (split[0], folds[0])] == [30, 200]
    assert found["score - test"]["ratio of deviations"] > 0


def test_wrong_labels_that_were_swapped_are_counted_among_the_first_suspects(
    bench: Bench, images: Path, tmp_path: Path
) -> None:
    root = images / "train"
    found = bench("suspects", tmp_path, "--images", str(root), "--seeds", "1", "--epochs", "1", "--share", "0.1")
    (run,) = found["runs"]
    assert run["swapped"] == 6
    assert run["looked_at"] == min(6, run["suspects"])
    assert run["precision"] == pytest.approx(run["found"] / run["looked_at"], abs=1e-4)
    # Two colours are easy to distinguish.
    assert run["precision"] >= 0.8


def test_rivals_train_on_the_same_photos_and_are_scored_by_one_scorer_once(
    bench: Bench, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    # The time is over when the head is fitted.
    small = ("--images", str(images / "train"), "--minutes", "0.01", "--seeds", "1", "--cores", "1")
    small += ("--only", "careful", "neps", "autogluon")
    found = bench("photos", tmp_path, *small)
    # No folder for their environments is named.
    assert list(found["left_out"]) == ["neps", "autogluon"]
    assert all("--environments" in reason for reason in found["left_out"].values())
    (run,) = found["runs"]
    assert "failed" not in run
    # 9 of 30 images of each class are sealed; two colours are easy to distinguish.
    assert found["test"] == {"images": 18, "classes": 2}
    assert found["scores"]["careful"]["accuracy"]["value"] >= 0.9
    shown = (tmp_path / "photos.md").read_text()
    assert "| a careful recipe in timm | EfficientNet-Lite0, ImageNet | " in shown
    assert f"a careful recipe in timm (timm {metadata.version('timm')}, torch {metadata.version('torch')})" in shown
    assert "Left out, NePS and that recipe: --environments" in shown
    assert (tmp_path / "photos.svg").read_text().startswith("<?xml")
    lines = (tmp_path / "photos.jsonl").read_text()
    assert str(tmp_path) not in lines
    # A run that is done is not done again, and the models are not asked again.
    best = next(tmp_path.glob("photos/runs/*/best.pt"))
    best.unlink()
    assert bench("photos", tmp_path, *small)["scores"] == found["scores"]
    assert (tmp_path / "photos.jsonl").read_text() == lines


@pytest.mark.parametrize("name", ["raytune", "neps", "autogluon", "lightly", "kerastuner", "ultralytics"])
def test_tools_with_an_environment_of_their_own_train_and_are_scored(
    name: str, bench: Bench, images: Path, tmp_path: Path
) -> None:
    if (folder := os.environ.get("IMGCLS_SEARCH_BENCH_ENVIRONMENTS")) is None:
        pytest.skip("installs 20 GB: name a folder for it in IMGCLS_SEARCH_BENCH_ENVIRONMENTS")
    small = ("--images", str(images / "train"), "--minutes", "1", "--seeds", "1", "--environments", folder)
    found = bench("photos", tmp_path, *small, "--only", name)
    assert found["left_out"] == {}
    assert found["failed"] == []
    (run,) = found["runs"]
    assert len(run["facts"]["versions"]) >= 2
    assert 0 <= found["scores"][name]["accuracy"]["value"] <= 1


def test_the_careful_recipe_trains_all_layers_after_the_head(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(SCRIPTS / "recipes"))
    import careful

    monkeypatch.setattr(careful, "BATCH", 8)
    torch.manual_seed(0)
    data = careful.cut(images / "test", seed=0)
    weights = tmp_path / "weights.pt"
    torch.save(timm.create_model(careful.NETWORK).state_dict(), weights)
    model = careful.build(weights, len(data.classes))
    assert careful.fitting_size(data, model, 600.0, epochs=1) == (224, 224)
    assert careful.fit_head(model, data, (32, 32)) >= 0.5
    before = {name: values.clone() for name, values in model.named_parameters()}
    seen = []

    def on_epoch(epoch: int, accuracy: float, average: Any) -> None:
        seen.append((epoch, accuracy))
        careful.save(average, data, (32, 32), tmp_path / "best.pt")

    careful.fine_tune(model, data, (32, 32), careful.Recipe(), time.monotonic() + 600, on_epoch, epochs=2)
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert all(0 <= accuracy <= 1 for _, accuracy in seen)
    # Lower layers learn at a smaller rate, but all do.
    assert all(not torch.equal(values, before[name]) for name, values in model.named_parameters())
    # Of no number of epochs it is told one after the other, as long as there is time.
    with pytest.raises(ZeroDivisionError):
        careful.fine_tune(
            model, data, (32, 32), careful.Recipe(), time.monotonic() + 600, lambda epoch, *_: 1 / (3 - epoch)
        )
    # There is none.
    careful.fine_tune(model, data, (32, 32), careful.Recipe(), time.monotonic(), on_epoch)
    assert len(seen) == 2
    (said,) = careful.predict(images / "test", [tmp_path / "best.pt"]).values()
    assert set(said) == {f"{path.parent.name}/{path.name}" for path in (images / "test").glob("*/*")}


def wheel(folder: Path, version: str, code: str) -> None:
    about = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.mark.parametrize("with_uv", [True, False])
def test_environments_of_tools_are_made_once_and_checked(
    with_uv: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import environments

    if with_uv and shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    if not with_uv:
        monkeypatch.setenv("PATH", "/nowhere")
    # Nothing is looked up in an index.
    for name in ("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(tmp_path))
    wheel(tmp_path, "1.0", "place = __file__\n")
    wheel(tmp_path, "2.0", "raise OSError('no such library')\n")
    below = tmp_path / "below"
    tiny = environments.Environment("tiny==1.0", "import tiny")
    python = tiny.python(below)
    assert python.is_relative_to(below / tiny.folder)
    assert tiny.folder.startswith("tiny-1.0-python3.")
    assert tiny.versions(below) == {"tiny": "1.0"}
    # What is there is used, unless something else is to be in it or it is not complete.
    mark = below / tiny.folder / "mark"
    mark.touch()
    assert tiny.python(below) == python
    assert mark.exists()
    (below / tiny.folder / environments.WHOLE).unlink()
    assert tiny.python(below) == python
    assert not mark.exists()
    with pytest.raises(environments.LeftOutError, match=r"tiny==2.0 cannot be imported: OSError: no such library"):
        environments.Environment("tiny==2.0", "import tiny").python(below)
    with pytest.raises(environments.LeftOutError, match=r"tiny==3.0 cannot be installed: .+"):
        environments.Environment("tiny==3.0", "import tiny").python(below)
    with pytest.raises(environments.LeftOutError, match="--environments"):
        tiny.python(None)


def test_every_recipe_is_there_and_says_how_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import rivals

    used = {path for rival in rivals.RIVALS.values() if rival is not rivals.RIVALS["auto"]
            for path in (rival.script, rival.asked)}  # fmt: skip
    assert {path.name for path in used} == {
        path.name for path in (SCRIPTS / "recipes").glob("*.py") if path.name != "shared.py"
    }
    for path in used:
        assert f"python scripts/bench/recipes/{path.name} photos/train" in (
            ast.get_docstring(ast.parse(path.read_text())) or ""
        )


def test_photos_of_recipes_are_as_large_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS / "recipes"))
    import shared

    for size, side in (((84, 112), 128), ((64, 20), 64), ((500, 300), 224)):
        folder = tmp_path / str(side)
        (folder / "cat").mkdir(parents=True)
        Image.new("RGB", size).save(folder / "cat" / "1.png")
        assert shared.side(folder) == side


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import intervals

    monkeypatch.setattr(intervals, "DRAWS", 300)
    random = np.random.default_rng(0)
    truth = np.ones(300, np.int64)
    # An image is right where its ease, the side, the seed and chance add up to more than 0.
    side = {"one": 1.8, "other": 1.6}
    for deviation in (0.0, 0.2):
        spread = np.sqrt(1.5**2 + deviation**2 + 0.5**2)
        expected = [float(stats.norm.cdf(mean / spread)) for mean in side.values()]
        held = 0
        for repetition in range(100):
            ease = random.normal(size=300) * 1.5
            one, other = (
                (ease + mean + random.normal(size=(3, 1)) * deviation + random.normal(size=(3, 300)) * 0.5 > 0)
                for mean in side.values()
            )
            found = intervals.difference("accuracy", truth, one.astype(int), other.astype(int), seed=repetition)
            held += found.low <= expected[0] - expected[1] <= found.high
        assert held >= 90


def test_macro_f1_of_an_interval_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import intervals

    random = np.random.default_rng(0)
    truth, predicted = random.integers(4, size=(2, 200))
    expected = f1_score(truth, predicted, average="macro")
    assert intervals.score("macro_f1", truth, predicted) == pytest.approx(expected, abs=1e-6)
    assert intervals.difference("accuracy", truth, predicted[None], predicted[None]).value == 0


def test_head_trials_on_kept_features_are_counted_against_those_behind_the_network(
    bench: Bench, images: Path, tmp_path: Path
) -> None:
    model = "{timm: {name: tf_efficientnet_lite0, weights: imagenet}}"
    found = bench(
        "heads", tmp_path, "--images", str(images / "train"), "--model", model,
        "--size", "32", "32", "--trials", "2", "--seconds", "600", "--epochs", "2",
    )  # fmt: skip
    for name in ("cached", "uncached"):
        assert found[name]["epochs"] > 0
        expected = 60 * found[name]["epochs"] / 2 / found[name]["seconds"]
        assert found[name]["trials_a_minute"] == pytest.approx(expected, rel=0.02)
    assert found["times_uncached"] > 0


def test_pretraining_is_probed_trained_on_and_timed(bench: Bench, tmp_path: Path) -> None:
    given = ("--images", "digits", "--size", "8", "--width", "4", "--unlabeled", "200", "--labels", "50", "100")
    tiny = ("--epochs", "simclr=1", "--set", "simclr.batch_size=64", "--seconds", "0.01", "--rounds", "2")
    found = bench("pretrain", tmp_path, *given, *tiny)
    assert found["probes"].keys() == {"random", "simclr"}
    for by_labels in found["probes"].values():
        assert by_labels.keys() == {"50", "100"}
        assert all(0.1 < each["mean"] <= 1 and len(each["scores"]) == 3 for each in by_labels.values())
    assert [epoch["epoch"] for epoch in found["pretrained by simclr"]["history"]] == [1]
    assert found["throughput"]["ratio"]["median"] > 0
    # The same command resumes from what is there.
    written = [path.stat().st_mtime_ns for path in tmp_path.glob("simclr-*.pt")]
    again = bench("pretrain", tmp_path, *given, *tiny)
    assert again["probes"] == found["probes"]
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("simclr-*.pt")] == written


def test_teacher_is_probed_beside_the_network_that_imitates_it(bench: Bench, images: Path, tmp_path: Path) -> None:
    given = ("--images", str(images), "--size", "8", "--width", "4", "--labels", "10", "--seconds", "0")
    tiny = ("--epochs", "imitate=1", "--set", "imitate.batch_size=8", "--set", "imitate.size=32")
    found = bench("pretrain", tmp_path, *given, *tiny, "--teacher")
    assert found["probes"].keys() == {"random", "imitate", "teacher"}
    assert len(found["probes"]["teacher"]["10"]["scores"]) == 3


def test_answers_of_a_served_model_are_timed(bench: Bench, images: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "model")
    photos = str(images / "train")
    found = bench("serve", tmp_path, str(tmp_path / "model"), photos, "--clients", "1", "3", "--seconds", "0.5")
    assert [entry["clients"] for entry in found["served"]] == [1, 3]
    assert all(entry["answers"] >= entry["clients"] for entry in found["served"])
    assert len(found["alone"]) == 2


def test_report_times_ten_times_as_many_trials_and_maps(bench: Bench, tmp_path: Path) -> None:
    found = bench("report", tmp_path, "--trials", "4", "--rounds", "1", "--side", "32")
    assert set(found["seconds"]) == {"4", "40"}
    assert found["times"] > 0
    assert [each["family"] for each in found["maps"]] == ["resnet", "vit", "efficientnet", "convnext", "densenet"]
    assert all(each["passes"] > 0 for each in found["maps"])


def test_ensembles_and_students_are_compared_with_winners(bench: Bench, tmp_path: Path) -> None:
    few = ("--seeds", "2", "--trials", "2", "--epochs", "2", "--picks", "3", "--size", "8", "--train-images", "200")
    found = bench("ensemble", tmp_path, *few)
    seeds = found["seeds"]
    assert [entry["seed"] for entry in seeds] == [0, 1]
    assert {entry["images"] for entry in seeds} == {359}
    assert all(entry["validation"]["ensemble"] >= entry["validation"]["winner"] for entry in seeds)
    gains = [entry["ensemble"] - entry["winner"] for entry in seeds]
    summary = found["summary"]
    low, high = stats.t.interval(0.95, 1, np.mean(gains), stats.sem(gains)) if gains[0] != gains[1] else (gains[0],) * 2
    assert summary["ensemble_minus_winner"]["mean"] == pytest.approx(np.mean(gains))
    assert 2 * summary["ensemble_minus_winner"]["ci95"] == pytest.approx(high - low, abs=1e-9)
    beyond = [entry["student"] - entry["winner"] - gain / 2 for entry, gain in zip(seeds, gains, strict=True)]
    assert summary["student_gain_less_half_of_the_ensemble_s"]["mean"] == pytest.approx(np.mean(beyond))
