"""The careful recipe tuned with Ray Tune as in its documentation: random search, ASHA, one core for each trial.

    python scripts/bench/recipes/raytune.py photos/train --weights lite0.pt --minutes 10 --seed 0 --out run

`best.pt` is the best checkpoint of all trials; until the search ends, it is the network with the fitted head that all
trials start from.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import careful
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from torch import nn

EPOCHS = 12


def train(config: dict[str, Any], start: careful.Start) -> None:
    """Train one configuration; report each epoch with a checkpoint of its network."""

    def on_epoch(epoch: int, accuracy: float, average: nn.Module) -> None:
        with tempfile.TemporaryDirectory() as folder:
            careful.save(average, start.data, start.size, Path(folder) / "best.pt")
            tune.report({"accuracy": accuracy}, checkpoint=tune.Checkpoint.from_directory(folder))

    recipe = careful.Recipe(**config)
    careful.fine_tune(copy.deepcopy(start.model), start.data, start.size, recipe, start.until, on_epoch, EPOCHS)


def main() -> None:
    """Tune for some minutes."""
    given = careful.arguments(__doc__)
    # As many epochs as in tuned.py, so that images have the same size.
    start = careful.start(given, epochs=5 * EPOCHS)
    # A trial that starts just before the end has no epoch to report, which Ray Tune would end with an error.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_parameters(train, start=start),
        param_space={
            "lr": tune.loguniform(1e-4, 5e-3),
            "weight_decay": tune.loguniform(1e-4, 0.3),
            "layer_decay": tune.uniform(0.7, 1.0),
            "dropout": tune.uniform(0.0, 0.5),
            "smoothing": tune.uniform(0.0, 0.2),
            "strength": tune.uniform(0.0, 1.0),
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=2),
            num_samples=-1,
            time_budget_s=max(start.until - time.monotonic(), 1),
        ),
        run_config=tune.RunConfig(
            storage_path=str(given.out.resolve() / "tune"),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="accuracy"),
            verbose=1,
        ),
    )
    results = tuner.fit()
    # Ray Tune draws many more trials in advance than it starts.
    num_trained = sum("accuracy" in (result.metrics or {}) for result in results)
    best = start.accuracy
    if num_trained:
        trial = results.get_best_result(scope="all")
        found, accuracy = max(trial.best_checkpoints, key=lambda each: each[1]["accuracy"])
        if accuracy["accuracy"] >= start.accuracy:
            best = accuracy["accuracy"]
            with found.as_directory() as folder:
                shutil.copyfile(Path(folder) / "best.pt", given.out / "best.pt")
    print(f"trials: {num_trained}; best {best:.4f}", flush=True)


if __name__ == "__main__":
    main()
