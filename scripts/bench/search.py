"""Compare real searches on images at equal epochs: the default strategy against Optuna's TPE with MedianPruner.

    python scripts/bench/search.py --images cifar10-images              about two hours on two idle cores
    python scripts/bench/search.py --images cifar10-images --max-train 1000 --max-epochs 24 --seeds 1

The script runs spaces/cifar10.yaml, like `imgcls-search run`, with each strategy and seed until `--max-epochs` epochs
are trained. It records the best complete trial's validation accuracy over the epochs of all trials. Both strategies
begin with the space's start settings (except with `--without-start`), and use the same training loop and the same
number of workers. Writes search.json and search.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import frame
from imgcls_search.catalog import catalog
from imgcls_search.jobs.replay import Steps
from imgcls_search.orchestrator.begin import run
from imgcls_search.space import read_space
from imgcls_search.study.record import Record

SPACE = Path(__file__).parents[2] / "spaces" / "cifar10.yaml"
STRATEGIES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "tpe+median": {"study.sampler": "tpe", "study.pruner": "median"},
}


def main() -> None:
    """Run the searches one after the other."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="an ImageFolder tree with train/ and test/")
    parser.add_argument("--max-train", type=int, default=4000, help="training images; default: 4000")
    parser.add_argument("--max-epochs", type=int, default=96, help="of one search; default: 96, 12 full trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--without-start", action="store_true", help="leave out the space's start configurations")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    given = parser.parse_args()
    with frame.results("search", given.out) as results:
        results["asked"] = {"max_train": given.max_train, "start": not given.without_start}
        found: dict[str, list[list[tuple[int, float]]]] = {name: [] for name in given.strategies}
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(given.seeds):
                for name in given.strategies:
                    record, bests = search(Path(folder), name, seed, given)
                    found[name].append(bests)
                    states = [trial.state for trial in record.trials]
                    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
                    print(f"{name}, seed {seed}: {counts}; best {bests[-1:]}", flush=True)
        results["bests"] = dict(found)
        for share in (0.25, 0.5, 0.75, 1.0):
            epochs = round(share * given.max_epochs)
            for name, several in found.items():
                values = [value_after(curve, epochs) for curve in several]
                shown = ", ".join("none" if value is None else f"{value:.4f}" for value in values)
                known = [value for value in values if value is not None]
                ends = f"mean {mean(known):.4f}" if len(known) == len(values) else "no mean"
                print(f"after {epochs:4d} epochs, {name:10}: {ends} ({shown})")
    draw(found, given.max_epochs, given.out / "search.png")


def search(folder: Path, name: str, seed: int, given: argparse.Namespace) -> tuple[Record, list[tuple[int, float]]]:
    """Run one search; return its record, and the best value by the epochs of all trials."""
    settings = {
        "study.name": f"{name.replace('+', '-')}-{seed}",
        "study.seed": str(seed),
        "study.trials": "1000",
        "study.max_epochs": str(given.max_epochs),
        "study.pictures": "false",
        # All searches are in one folder, and no search may learn from an earlier one.
        "study.learn_from": "none",
        "data.folder.max_train": str(given.max_train),
        **STRATEGIES[name],
        **({"start": "[]"} if given.without_start else {}),
    }
    data = f"folder:{given.images.resolve()}"
    space = read_space(SPACE, catalog(), overrides=list(settings.items()), data=data)
    steps = Steps()
    outcome = run(space, folder, steps)
    if outcome.ending in ("interrupted", "terminated"):
        raise SystemExit("stopped: no search is compared that did not train all its epochs")
    return outcome.record, steps.bests


def value_after(curve: Sequence[tuple[int, float]], epochs: int) -> float | None:
    """Return the best value after these epochs, None before the first."""
    return max((value for spent, value in curve if spent <= epochs), default=None)


def draw(found: dict[str, list[list[tuple[int, float]]]], budget: int, path: Path) -> None:
    """Draw each search as a thin line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    for (name, several), colour in zip(found.items(), ("tab:blue", "tab:orange"), strict=False):
        # A search may end without a complete trial.
        for index, curve in enumerate(curve for curve in several if curve):
            xs, ys = zip(*curve, (budget, curve[-1][1]), strict=True)
            axis.step(xs, ys, where="post", color=colour, alpha=0.7, label=name if index == 0 else None)
    axis.set_xlabel("epochs of all trials together")
    axis.set_ylabel("best validation accuracy of a complete trial")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
