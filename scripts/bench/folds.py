"""How far a searched score is from the truth with few images: one validation split against folds, at equal epochs.

    python scripts/bench/folds.py                      some twenty minutes on one busy core
    python scripts/bench/folds.py --repetitions 2 --epochs 2 --trials 5

Each repetition takes other digits as its images outside the test split, searches among random settings of LeNet-5 and
compares the best trial's score with the accuracy on the sealed test split of that setting, trained once on all images
outside it, as `train` does. `split` scores `--trials` trials on one validation split; `folds` scores a part of them by
cross-validation for as many epochs in all. Both have the same number of images: `--images`. With `--more`, there is one
split again, with `max_train: IMAGES` and the usual share of all other digits to validate by: more than twice as many
labels. Writes folds.json.
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
from imgcls_search.data import describe, load, open_test
from imgcls_search.data.digits import digits
from imgcls_search.protocol import EpochEnded, Failed, Job
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import draw_random
from imgcls_search.strategy.view import View
from imgcls_search.train import checkpoint
from imgcls_search.train.loop import evaluate
from imgcls_search.worker import pipeline
from imgcls_search.worker.job_runner import JobRunner

BOUND = 0.7
"""Deviation of the error with folds over that of one split."""

SPACE = """
model: {lenet5: {}}
data: {digits: DATA}
optimizer: {adamw: {lr: {float: [0.0005, 0.01], log: true}, weight_decay: {float: [0.0001, 0.1], log: true}}}
training: {epochs: EPOCHS, batch_size: 16, device: cpu}
study: {name: folds}
"""


def main() -> None:
    """Search in turn with one split and with folds, again and again."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="outside the test split; default: 200")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10, help="of a search with one split; default: 10")
    parser.add_argument("--epochs", type=int, default=15, help="of one network; default: 15")
    parser.add_argument("--more", action="store_true", help="one split with more images too")
    given = parser.parse_args()
    if given.trials % given.folds:
        raise SystemExit("--trials: needs a multiple of --folds, so that the epochs are equal")
    torch.set_num_threads(1)
    with frame.results("folds", given.out) as results, tempfile.TemporaryDirectory() as folder:
        results["asked"] = {name: value for name, value in vars(given).items() if name != "out"}
        searches: dict[str, list[dict[str, float]]] = {"split": [], "folds": []}
        if given.more:
            searches["more"] = []
        for repetition in range(given.repetitions):
            for name, found in searches.items():
                found.append(search(name, repetition, Path(folder), given))
            print(
                f"repetition {repetition}: {', '.join(f'{name} {shown(f[-1])}' for name, f in searches.items())}",
                flush=True,
            )
        results["searches"] = searches
        results["errors"] = {name: summarise(found) for name, found in searches.items()}
        ratio = results["errors"]["folds"]["std"] / results["errors"]["split"]["std"]
        results["ratio_of_deviations"] = round(ratio, 4)
        for name, error in results["errors"].items():
            print(f"score - test accuracy, {name:5}: mean {error['mean']:+.4f}, deviation {error['std']:.4f}")
        print(f"deviation with folds over that of one split: {ratio:.3f} ({frame.verdict(ratio, at_most=BOUND)})")


def search(name: str, repetition: int, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Return the best score of a search, and the test accuracy of its setting trained on all other images."""
    space = space_of(name, repetition, given)
    view = View(space, [], [], repetition)
    count = given.trials // given.folds if name == "folds" else given.trials
    configs = [draw_random(view, number, 0).config for number in range(count)]
    data = pipeline.prepare_data(configs[0], folder / "images")
    configs = [settled(config, data.image_size, data.channels) for config in configs]
    weights = folder / "weights.pt"
    scores = []
    for number, config in enumerate(configs):
        scores.append(train(config, data.to_dict(), 1000 * repetition + number, "train", weights)["accuracy"])
    best = scores.index(max(scores))
    train(configs[best], data.to_dict(), 1000 * repetition + 500, "train+val", weights)
    model, config, known = pipeline.load_finished(checkpoint.load(weights), str(weights))
    test = open_test(describe(config.component("data")), known)
    tested = evaluate(model, pipeline.on_device(test, known, "cpu"))["accuracy"]
    epochs = sum(config.epochs for config in configs)
    outside = len(load(data, "train").labels) + len(load(data, "val").labels)
    return {"score": scores[best], "test": tested, "epochs": epochs, "images": outside, "scored_by": data.scored}


def space_of(name: str, repetition: int, given: argparse.Namespace) -> Space:
    """Return the space of a search, with its own images outside the test split."""
    pool = num_outside()
    held = round(0.15 * given.images)
    data: Mapping[str, Any] = {
        "folds": {"max_train": given.images, "folds": given.folds},
        "split": {"max_train": given.images - held, "val": held / pool},
        "more": {"max_train": given.images},
    }[name]
    pairs = ", ".join(f"{key}: {value}" for key, value in {**data, "split_seed": repetition}.items())
    text = SPACE.replace("DATA", f"{{{pairs}}}").replace("EPOCHS", str(given.epochs))
    return parse(text, catalog(), source="folds.py")


def num_outside() -> int:
    """Return how many digits there are outside the test split."""
    source = digits()
    return len(source.names["train"]) + len(source.names["val"])


def settled(config: TrialConfig, size: Any, channels: int) -> TrialConfig:
    """Return a configuration that names the shape of its images."""
    tree = config.to_dict()
    return TrialConfig.from_dict({**tree, "image": {**tree["image"], "size": size, "channels": channels}})


def train(config: TrialConfig, data: Mapping[str, Any], seed: int, portion: Any, weights: Path) -> dict[str, float]:
    """Train to the end as a worker does, and return what the last epoch measured."""
    weights.unlink(missing_ok=True)
    job = Job(
        trial=seed,
        config=config,
        data=data,
        seed=seed,
        portion=portion,
        until_epoch=config.epochs if portion == "train" else config.epochs // config.folds,
        from_epoch=0,
        checkpoint=str(weights),
        log=str(weights.with_suffix(".log")),
    )
    last: dict[str, float] = {}
    # What a worker prints goes to the log of its trial.
    with contextlib.redirect_stdout(io.StringIO()):
        for event in JobRunner("cpu").work(job, threading.Event()):
            if isinstance(event, Failed):
                raise SystemExit(f"a training failed: {event.reason}")
            if isinstance(event, EpochEnded):
                last = dict(event.metrics)
    return last


def shown(found: Mapping[str, float]) -> str:
    """Return a score and the truth in a few letters."""
    return f"{found['score']:.3f} ({found['test']:.3f})"


def summarise(found: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean and the deviation of the error."""
    errors = [each["score"] - each["test"] for each in found]
    return {"mean": round(mean(errors), 5), "std": round(stdev(errors), 5)}


if __name__ == "__main__":
    main()
