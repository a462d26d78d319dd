"""The careful recipe tuned with Optuna in the usual way: one process, its defaults (TPE), MedianPruner.

    python scripts/bench/recipes/tuned.py photos/train --weights lite0.pt --minutes 10 --seed 0 --out run

Trials run until the minutes are over; the current trial then ends with its best epoch so far. `best.pt` is the best
epoch of the best complete trial; before the first one, it is the network with the fitted head that all trials start
from.
"""

from __future__ import annotations

import copy
import time

import careful
import optuna
from torch import nn

EPOCHS = (4, 20)


def main() -> None:
    """Tune for some minutes."""
    given = careful.arguments(__doc__)
    # A few trials of full length must fit, so images are smaller than for a single training.
    start = careful.start(given, epochs=3 * EPOCHS[1])
    best_so_far = start.accuracy

    def objective(trial: optuna.Trial) -> float:
        nonlocal best_so_far
        recipe = careful.Recipe(
            lr=trial.suggest_float("lr", 1e-4, 5e-3, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.3, log=True),
            layer_decay=trial.suggest_float("layer_decay", 0.7, 1.0),
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
            smoothing=trial.suggest_float("smoothing", 0.0, 0.2),
            strength=trial.suggest_float("strength", 0.0, 1.0),
        )
        epochs = trial.suggest_int("epochs", *EPOCHS)
        best, path = 0.0, given.out / "trial.pt"

        def on_epoch(epoch: int, accuracy: float, average: nn.Module) -> None:
            nonlocal best
            if accuracy >= best:
                best = accuracy
                careful.save(average, start.data, start.size, path)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        careful.fine_tune(copy.deepcopy(start.model), start.data, start.size, recipe, start.until, on_epoch, epochs)
        if best >= best_so_far and path.exists():
            best_so_far = best
            path.replace(given.out / "best.pt")
        return best

    sampler = optuna.samplers.TPESampler(seed=given.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, timeout=max(start.until - time.monotonic(), 0))
    states = [trial.state.name for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state.lower()}" for state in sorted(set(states)))
    print(f"trials: {counts or 'none'}; best {best_so_far:.4f}", flush=True)


if __name__ == "__main__":
    main()
