"""Measure the figures about the main job in docs/benchmarks, with the commands that a user types:

python scripts/bench/main_job.py                      about ten minutes on two cores
python scripts/bench/main_job.py --cifar10 PATH       also a search on an ImageFolder tree of CIFAR-10
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import frame
import optuna
from imgcls_search.confidence import share_interval

SPACES = Path(__file__).parents[2] / "spaces"


def main() -> None:
    """Run the measurements one after the other and print a line for each."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--cifar10", type=Path, help="an ImageFolder tree with train/ and test/")
    arguments = parser.parse_args()
    with frame.results("main_job", arguments.out) as results, tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        results["search"] = measure_search(studies)
        results["retraining"] = measure_retraining(studies, Path(folder))
        results["writer"] = measure_writer(studies)
        if arguments.cifar10 is not None:
            results["cifar10"] = measure_cifar10(studies, arguments.cifar10.resolve())


def measure_search(studies: Path) -> dict[str, Any]:
    """Compare the shipped search with random trials of the same space, all fully trained."""
    seconds = search(studies, "vit.yaml", "--name", "shipped")
    search(
        studies,
        "vit.yaml",
        "--name",
        "random",
        "--set",
        "study.sampler=random",
        "--set",
        "study.pruner=none",
        "--set",
        "study.trials=15",
        "--set",
        "start=[]",
    )
    shipped, random = open_study(studies, "shipped"), open_study(studies, "random")
    values = [trial.value for trial in random.trials if trial.value is not None]
    epochs = {
        name: sum(len(t.user_attrs["epochs"]) for t in study.trials)
        for name, study in (("shipped", shipped), ("random", random))
    }
    print(
        f"spaces/vit.yaml: {len(shipped.trials)} trials, {epochs['shipped']} epochs, {seconds:.0f} s; "
        f"best validation accuracy {shipped.best_value:.4f}"
    )
    print(
        f"random trials of the space, all trained to the end: {len(values)} trials, {epochs['random']} epochs; "
        f"mean {statistics.fmean(values):.4f} (std {statistics.stdev(values):.4f}), best {max(values):.4f}"
    )
    return {"seconds": round(seconds, 1), "epochs": epochs, "best": shipped.best_value, "random": frame.spread(values)}


def interval_of(share: float, images: int) -> str:
    """Return the 95 % interval of a share of images (Wilson 1927)."""
    low, high = share_interval(share, images)
    return f"[{low:.4f}, {high:.4f}]"


def measure_retraining(studies: Path, folder: Path) -> dict[str, Any]:
    """Retrain the best configuration with three new seeds and score it on the test split."""
    imgcls("export", "shipped", "--studies", studies, "-o", folder / "best.yaml")
    report = json.loads(
        imgcls(
            "train", folder / "best.yaml", "--seeds", "3", "--out", folder / "trained", "--studies", studies, "--json"
        )
    )
    found, images = report["summary"]["accuracy"], report["images"]
    searched = open_study(studies, "shipped").best_value
    validation = statistics.fmean(metrics["accuracy"] for metrics in report["validation"].values())
    print(
        f"searched: validation accuracy {searched:.4f}, 95 % {interval_of(searched, images['val'])} "
        f"({images['val']} images)"
    )
    print(
        f"retrained with three new seeds: validation accuracy {validation:.4f}; test accuracy {found['mean']:.4f}, "
        f"95 % over images {interval_of(found['mean'], images['test'])} ({images['test']} images), "
        f"over seeds +- {found['ci95']:.4f}"
    )
    return {"searched": searched, "validation": validation, "test": found, "images": images}


def measure_writer(studies: Path) -> dict[str, Any]:
    """Measure the share of the wall time in which the run process itself works, with trials of about five seconds."""
    fixed = {
        "model.vit.patch_size": 4,
        "model.vit.width": 128,
        "model.vit.depth": 2,
        "model.vit.mlp_ratio": 4,
        "training.batch_size": 64,
        "start": [],
        "study.trials": 16,
        "study.pruner": "none",
    }
    settings = [text for path, value in fixed.items() for text in ("--set", f"{path}={json.dumps(value)}")]
    search(studies, "vit.yaml", "--name", "writer", "--workers", "2", *settings)
    study = open_study(studies, "writer")
    (call,) = study.user_attrs["runs"]
    median = statistics.median(trial.user_attrs["seconds"] for trial in study.trials)
    print(
        f"the writer's own time: {100 * call['writer_seconds'] / call['seconds']:.1f} % of the wall time, "
        f"two workers, trials of {median:.1f} s (median)"
    )
    return {**call, "trial_seconds": round(median, 2)}


def measure_cifar10(studies: Path, root: Path) -> dict[str, Any]:
    """Search small networks on CIFAR-10 with the shipped space."""
    seconds = search(
        studies, "cifar10.yaml", "--data", f"folder:{root}", "--set", "data.folder.max_train=10000", "--name", "cifar10"
    )
    study = open_study(studies, "cifar10")
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    print(
        f"spaces/cifar10.yaml on CIFAR-10 (JPEG), 10,000 training images: {len(study.trials)} trials ({counts}), "
        f"{seconds:.0f} s; best validation accuracy {study.best_value:.4f}"
    )
    return {"seconds": round(seconds, 1), "trials": counts, "best": study.best_value}


def search(studies: Path, space: str, *arguments: str) -> float:
    """Run a search to its end; return its seconds."""
    started = time.perf_counter()
    imgcls("run", SPACES / space, "--studies", studies, *arguments)
    return time.perf_counter() - started


def imgcls(*arguments: str | Path) -> str:
    """Run the command line and return what it printed."""
    command = [sys.executable, "-m", "imgcls_search", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def open_study(studies: Path, name: str) -> optuna.Study:
    """Open a finished study with plain Optuna."""
    return optuna.load_study(storage=f"sqlite:///{studies / name}.db", study_name=name)


if __name__ == "__main__":
    main()
