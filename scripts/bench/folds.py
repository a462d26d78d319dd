"""Measure the error of a searched score with few images: one validation split against folds, at equal epochs.

    python scripts/bench/folds.py                      some minutes on one core
    python scripts/bench/folds.py --repetitions 2 --epochs 2 --trials 5

Each repetition draws different digits as its images; the test split has all other digits. It searches among random
configurations of LeNet-5, and compares the best trial's score with the test accuracy of the networks that were scored.
`split` scores `--trials` trials on one validation split; `folds` scores fewer trials by cross-validation, for the same
number of epochs in all. Both have the same number of images, and the default share of them for validation.
`test_of_all` is the test accuracy of the configuration trained once on all images outside the test split, as `train`
does. Writes folds.json after each repetition.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import frame
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Images, Prepared, describe, load, open_test
from imgcls_search.protocol import EpochEnded, Failed, Job
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.training import checkpoint
from imgcls_search.training.evaluation import evaluate
from imgcls_search.worker import image_sets, networks, pipeline
from imgcls_search.worker.job_runner import JobRunner

NUM_DIGITS = 1797
State = Mapping[str, Any]
BOUND = 0.7
"""Upper bound of the error's deviation with folds / with one split."""

SPACE = """
model: {lenet5: {}}
data: {digits: DATA}
optimizer: {adamw: {lr: {float: [0.0005, 0.01], log: true}, weight_decay: {float: [0.0001, 0.1], log: true}}}
training: {epochs: EPOCHS, batch_size: 16, device: cpu}
study: {name: folds}
"""


def main() -> None:
    """Search alternately with one split and with folds."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first, which decides its draws; default: 0")
    parser.add_argument("--images", type=int, default=200, help="outside the test split; default: 200")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10, help="of a search with one split; default: 10")
    parser.add_argument("--epochs", type=int, default=8, help="of one network; default: 8")
    given = parser.parse_args()
    if given.trials % given.folds:
        raise SystemExit("--trials: needs a multiple of --folds, so that the epochs are equal")
    torch.set_num_threads(1)
    with frame.results("folds", given.out) as results, tempfile.TemporaryDirectory() as folder:
        results["asked"] = {name: value for name, value in vars(given).items() if name != "out"}
        searches: dict[str, list[dict[str, float]]] = {"split": [], "folds": []}
        for repetition in range(given.first, given.first + given.repetitions):
            for name, found in searches.items():
                found.append(search(name, repetition, Path(folder), given))
            print(
                f"repetition {repetition}: {', '.join(f'{name} {shown(f[-1])}' for name, f in searches.items())}",
                flush=True,
            )
            results["searches"] = searches
            frame.write(results, given.out, "folds")
        for of in ("test", "test_of_all"):
            results[f"score - {of}"] = errors = {name: summarise(found, of) for name, found in searches.items()}
            errors["ratio of deviations"] = ratio = errors["folds"]["std"] / errors["split"]["std"]
            for name in searches:
                print(f"score - {of}, {name}: mean {errors[name]['mean']:+.4f}, deviation {errors[name]['std']:.4f}")
            bound = f" ({frame.verdict(ratio, at_most=BOUND)})" if of == "test" else ""
            print(f"score - {of}: deviation with folds over that of one split: {ratio:.3f}{bound}")


def search(name: str, repetition: int, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Run a search; return its best score and the test accuracies of the networks behind it."""
    space = space_of(name, repetition, given)
    view = View(space, [], [], repetition)
    count = given.trials // given.folds if name == "folds" else given.trials
    configs = [draw_random(view, number, 0).config for number in range(count)]
    data = pipeline.prepare_data(configs[0], folder / "images")
    configs = [settled(config, data.image_size, data.channels) for config in configs]
    weights = folder / "weights.pt"
    trials = [train(config, data, 1000 * repetition + n, "train", weights) for n, config in enumerate(configs)]
    scores = [score for score, _ in trials]
    best = scores.index(max(scores))
    _, (whole,) = train(configs[best], data, 1000 * repetition + 500, "train+val", weights)
    test = open_test(describe(configs[best].component("data")), data)
    return {
        "score": scores[best],
        "test": mean(tested(state, test, weights) for state in trials[best][1]),
        "test_of_all": tested(whole, test, weights),
        "epochs": sum(config.epochs for config in configs),
        "images": len(load(data, "train").labels) + len(load(data, "val").labels),
        "scored_by": data.scored,
    }


def tested(state: State, test: Images, weights: Path) -> float:
    """Return the accuracy of a saved network on the test split."""
    model, _, known = networks.load_weights(state, str(weights))
    return evaluate(model, image_sets.on_device(test, known, "cpu"))["accuracy"]


def space_of(name: str, repetition: int, given: argparse.Namespace) -> Space:
    """Return the space of a search; the repetition decides which images are outside the test split."""
    data = {"test": 1 - given.images / NUM_DIGITS, "split_seed": repetition}
    if name == "folds":
        data["folds"] = given.folds
    pairs = ", ".join(f"{key}: {value}" for key, value in data.items())
    text = SPACE.replace("DATA", f"{{{pairs}}}").replace("EPOCHS", str(given.epochs))
    return parse(text, catalog(), source="folds.py")


def settled(config: TrialConfig, size: Any, channels: int) -> TrialConfig:
    """Return the configuration with the shape of its images filled in."""
    tree = config.to_dict()
    return TrialConfig.from_dict({**tree, "image": {**tree["image"], "size": size, "channels": channels}})


def train(config: TrialConfig, data: Prepared, seed: int, portion: Any, weights: Path) -> tuple[float, list[State]]:
    """Train to the end like a worker; return the score (0 without validation images) and each network's state."""
    weights.unlink(missing_ok=True)
    each = config.section("training")["epochs"]
    runner, score, networks = JobRunner("cpu"), 0.0, []
    for fold in range(config.folds if portion == "train" else 1):
        job = Job(
            trial=seed,
            config=config,
            data=data.to_dict(),
            seed=seed,
            portion=portion,
            until_epoch=(fold + 1) * each,
            from_epoch=fold * each,
            checkpoint=str(weights),
            log=str(weights.with_suffix(".log")),
        )
        # In a search, the output of a worker goes to the log of its trial.
        with contextlib.redirect_stdout(io.StringIO()):
            for event in runner.work(job, threading.Event()):
                if isinstance(event, Failed):
                    raise SystemExit(f"a training failed: {event.reason}")
                if isinstance(event, EpochEnded):
                    score = event.metrics.get("accuracy", 0.0)
        networks.append(checkpoint.load(weights))
    return score, networks


def shown(found: Mapping[str, float]) -> str:
    """Return a score, with the test accuracy in parentheses, as text."""
    return f"{found['score']:.3f} ({found['test']:.3f})"


def summarise(found: list[dict[str, float]], of: str) -> dict[str, float]:
    """Return the mean and the deviation of the error."""
    errors = [each["score"] - each[of] for each in found]
    return {"mean": round(mean(errors), 5), "std": round(stdev(errors), 5)}


if __name__ == "__main__":
    main()
