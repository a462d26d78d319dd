"""The careful recipe tuned with NePS: its values are the priors, epochs the fidelity; NePS chooses the algorithm.

    python scripts/bench/recipes/priors.py photos/train --weights lite0.pt --minutes 10 --seed 0 --out run

A configuration that gets more epochs is trained from the start. `best.pt` is the best epoch of the best evaluation;
before the first evaluation, it is the network with the fitted head that all evaluations start from.
"""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path

import careful
import neps
from torch import nn

EPOCHS = 12


class Space(neps.PipelineSpace):
    """The recipe's settings."""

    epochs = neps.IntegerFidelity(2, EPOCHS)
    lr = neps.Float(1e-4, 5e-3, log=True, prior=1e-3, prior_confidence="medium")
    weight_decay = neps.Float(1e-4, 0.3, log=True, prior=0.05, prior_confidence="medium")
    layer_decay = neps.Float(0.7, 1.0, prior=0.85, prior_confidence="medium")
    dropout = neps.Float(0.0, 0.5, prior=0.2, prior_confidence="medium")
    smoothing = neps.Float(0.0, 0.2, prior=0.1, prior_confidence="medium")
    strength = neps.Float(0.0, 1.0, prior=0.5, prior_confidence="medium")


def main() -> None:
    """Tune for some minutes."""
    given = careful.arguments(__doc__)
    # As many epochs as in tuned.py, so that images have the same size.
    start = careful.start(given, epochs=5 * EPOCHS)
    best_so_far, num_evaluated, ended = start.accuracy, 0, time.monotonic()

    def evaluate_pipeline(pipeline_directory: Path, epochs: int, **settings: float) -> dict[str, float]:
        nonlocal best_so_far, num_evaluated, ended
        best, path = 0.0, pipeline_directory / "best.pt"

        def on_epoch(epoch: int, accuracy: float, average: nn.Module) -> None:
            nonlocal best
            if accuracy >= best:
                best = accuracy
                careful.save(average, start.data, start.size, path)

        recipe = careful.Recipe(**settings)
        careful.fine_tune(copy.deepcopy(start.model), start.data, start.size, recipe, start.until, on_epoch, epochs)
        if best >= best_so_far and path.exists():
            best_so_far = best
            path.replace(given.out / "best.pt")
        num_evaluated += 1
        # Include the time that NePS itself took since the last evaluation, so that the budget is a time.
        begun, ended = ended, time.monotonic()
        return {"objective_to_minimize": 1 - best, "cost": ended - begun}

    logging.basicConfig(level=logging.INFO)
    neps.run(evaluate_pipeline, Space(), root_directory=given.out / "neps", worker_cost_to_spend=start.until - ended)
    print(f"evaluations: {num_evaluated}; best {best_so_far:.4f}", flush=True)


if __name__ == "__main__":
    main()
