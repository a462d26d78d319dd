"""The stages of a trial: it trains to its milestone, is scored, timed and drawn there, and then decided on.

```
TRAIN ──> SCORE ──> TIME ──> DRAW ──> DECIDE ──> TRAIN (it continues, or is promoted later), or its end
```

A trial passes the stages that its study needs and skips the others. Its stage follows from its record, so that a
restart finds every trial where it was; `Stages.move` checks each step against the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Literal

from imgcls_search.trial import Trial


class Stage(Enum):
    """The next step that a trial needs."""

    TRAIN = "train"
    """Train up to its milestone."""

    SCORE = "score"
    """Compress, export and measure it as it would be deployed."""

    TIME = "time"
    """Measure its latency while no other trial computes."""

    DRAW = "draw"
    """Draw pictures, since it is about to end among the best."""

    DECIDE = "decide"
    """Let the pruner decide, or end it: everything needed is known."""


TRANSITIONS: Mapping[Stage, frozenset[Stage]] = {
    Stage.TRAIN: frozenset({Stage.SCORE, Stage.DRAW, Stage.DECIDE}),
    Stage.SCORE: frozenset({Stage.TIME, Stage.DRAW, Stage.DECIDE}),
    Stage.TIME: frozenset({Stage.DRAW, Stage.DECIDE}),
    # A better trial may end meanwhile.
    Stage.DRAW: frozenset({Stage.DECIDE}),
    Stage.DECIDE: frozenset({Stage.TRAIN}),
}
"""Which stages may follow a stage."""

WORK: Mapping[Stage, Literal["train", "time", "draw"]] = {
    Stage.TRAIN: "train",
    # The worker that trained it has it in memory; another one reads its checkpoint.
    Stage.SCORE: "train",
    Stage.TIME: "time",
    Stage.DRAW: "draw",
}
"""The kind of job for each stage."""


class Stages:
    """Tracks the stage of each trial of one study."""

    def __init__(
        self,
        *,
        epochs: int,
        is_measured: bool,
        is_timed: bool,
        deserves_pictures: Callable[[Trial], bool],
    ) -> None:
        """`epochs` are those of a full training; a fit has fewer.

        `is_measured` says whether the study asks for numbers of the exported network, `is_timed` whether latency is
        one of them. `deserves_pictures` is called once a trial is trained and measured.
        """
        self.epochs = epochs
        self.is_measured = is_measured
        self.is_timed = is_timed
        self.deserves_pictures = deserves_pictures
        self.stages: dict[int, Stage] = {}
        """The stage of each trial that has moved, by number."""

    def of(self, trial: Trial) -> Stage:
        """Return the stage that follows from the record of an open trial."""
        if trial.epoch < trial.until:
            return Stage.TRAIN
        if self.is_scored_at(trial, trial.epoch) and trial.epoch not in trial.scores:
            return Stage.SCORE
        is_trained = trial.epoch == trial.last_epoch(self.epochs)
        if self.is_timed and is_trained and "latency_ms" not in trial.scores[trial.epoch]:
            return Stage.TIME
        if is_trained and trial.pictures is None and self.deserves_pictures(trial):
            return Stage.DRAW
        return Stage.DECIDE

    def move(self, trial: Trial) -> Stage:
        """Move an open trial to the stage that follows from its record, and return it."""
        before, now = self.stages.get(trial.number), self.of(trial)
        assert before in (None, now) or now in TRANSITIONS[before], f"trial {trial.number}: {before} to {now}"
        self.stages[trial.number] = now
        return now

    def now(self, trial: Trial) -> Stage | None:
        """Return the stage that a trial was last moved to, or None before that."""
        return self.stages.get(trial.number)

    def exports(self, trial: Trial) -> bool:
        """Tell whether the final values of a trial come from its exported network."""
        return trial.compresses or self.is_measured

    def is_scored_at(self, trial: Trial, epoch: int) -> bool:
        """Tell whether a milestone asks for more than the epoch's own metrics."""
        return trial.compresses or (epoch == trial.last_epoch(self.epochs) and self.exports(trial))
