"""A trial as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imgcls_search.api.frames import card, table
from imgcls_search.rounding import pairs, without_long_numbers
from imgcls_search.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from imgcls_search.study.record import Record
    from imgcls_search.trial import Trial as Recorded


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial as it was when it was read from the study."""

    study: str
    number: int
    state: str
    """`complete`, `running`, `interrupted`, `paused`, `pruned` or `fail`."""

    values: Mapping[str, float]
    """The value of each objective; empty until the trial is complete."""

    params: Mapping[str, Any]
    """The values of the searched settings, by path."""

    config: Mapping[str, Any] = field(repr=False)
    """Its whole configuration, for `train`."""

    sizes: Mapping[str, float] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    """Metrics of the last epoch."""

    classes: Mapping[str, Mapping[str, float]] = field(repr=False)
    """Precision, recall, F1 and support of each class, once it is complete."""

    history: tuple[Mapping[str, float], ...] = field(repr=False)
    """The metrics of each epoch."""

    seed: int = 0
    reason: str | None = None
    """Why it was pruned or failed."""

    val_images: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, trial: Recorded, record: Record) -> Trial:
        """Return a trial of a record."""
        from imgcls_search.study.summary import describe

        found = describe(trial, record)
        return cls(
            # Trials of an earlier state belong to the study.
            study=record.study.study_name if record.files is None else record.files.name,
            number=trial.number,
            state=found["state"],
            values=found["values"],
            params=found["params"],
            config=trial.candidate.config.to_dict(),
            sizes=found["sizes"],
            metrics={**found["metrics"], **found["deployed"]},
            classes=found["classes"],
            history=tuple(dict(epoch) for epoch in trial.epochs),
            seed=found["seed"],
            reason=found["reason"],
            val_images=record.val_images,
        )

    @property
    def epochs(self) -> int:
        """Number of epochs it was trained."""
        return len(self.history)

    @property
    def value(self) -> float | None:
        """The value of the first objective; None until the trial is complete."""
        return next(iter(self.values.values()), None)

    def curve(self) -> pd.DataFrame:
        """Return the metrics of each epoch as a pandas frame.

        Raises:
            UserError: pandas is not installed.
        """
        from imgcls_search.api.frames import frame_of

        columns = dict.fromkeys(name for epoch in self.history for name in epoch if ":" not in name)
        return frame_of(self.history, list(columns), "curve()")

    def _repr_html_(self) -> str:
        shown = pairs(self.values, self.val_images)
        lines = [f"{self.state} after {counted('epoch', self.epochs)}{f', {shown}' if shown else ''}"]
        if "params" in self.sizes:
            lines.append(f"{self.sizes['params']:,.0f} parameters")
        if self.reason:
            lines.append(self.reason)
        rows = [(path, without_long_numbers(str(value))) for path, value in self.params.items()]
        return card(f"Trial {self.number} of {self.study}", lines, table(("setting", "value"), rows))
