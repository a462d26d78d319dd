"""Estimate the duration of a search: plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search import durations
from imgcls_search.api.options import (
    Duration,
    PathLikeText,
    SpaceLike,
    as_data,
    changes_of,
    name_of,
    read_space_of,
    unlabeled_of,
    with_settings,
)
from imgcls_search.api.session import session
from imgcls_search.words import counted

if TYPE_CHECKING:
    from imgcls_search.views.screens import Screens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The expected duration of a search."""

    workers: int
    """Trials at a time."""

    measured_trials: int
    measured_epochs: int
    epoch_seconds: float
    """Mean over the measured trials."""

    fastest_seconds: float
    slowest_seconds: float
    pruner: str
    epochs_of_full_trial: int
    epochs_of_trial: float
    """Expected with the pruner."""

    trials: int
    seconds: float
    """For all trials, including the pretraining they need."""

    timeout: float | None
    trials_in_timeout: int | None
    pretrained_networks: int
    pretraining_epochs: int
    pretraining_seconds: float

    def lines(self) -> list[str]:
        """Return the plan as sentences."""
        found = [
            f"{counted('epoch', self.measured_epochs)} of {counted('random trial', self.measured_trials)}: "
            f"{durations.show(self.epoch_seconds)} an epoch ({durations.show(self.fastest_seconds)} to "
            f"{durations.show(self.slowest_seconds)}), {counted('trial', self.workers)} at a time",
            f"a full trial has {counted('epoch', self.epochs_of_full_trial)}; with pruner {self.pruner} one gets about "
            f"{self.epochs_of_trial:.1f}",
        ]
        if self.pretrained_networks:
            found.append(
                f"{counted('distinct pretrained network', self.pretrained_networks)}, {self.pretraining_epochs:,} "
                f"epochs in all, take about {durations.show(self.pretraining_seconds)}"
            )
        with_these = " with these" if self.pretrained_networks else ""
        found.append(f"study.trials: {self.trials} take about {durations.show(self.seconds)}{with_these}")
        if self.timeout is not None:
            shown = durations.show(self.timeout, exact=True)
            found.append(f"study.timeout: {shown} is enough for about {self.trials_in_timeout} trials")
        return found

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card

        return card(f"{counted('trial', self.trials)}: about {durations.show(self.seconds)}", self.lines())


def plan(
    space: SpaceLike,
    data: PathLikeText | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    unlabeled: PathLikeText | None = None,
    skip_unreadable: bool = False,
    workers: int | None = None,
    timeout: Duration | None = None,
    epochs: int = 6,
    studies: PathLikeText = Path("studies"),
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> Plan:
    """Estimate how long a search takes and how many trials fit into a timeout, by training random trials briefly.

    Args:
        space: The path of a YAML file, or the same as nested dictionaries.
        data: Other images: a folder, a table, or a data set such as `digits`.
        changes: Values of the space to set, by path, such as `{"study.trials": 20}`.
        unlabeled: Images to pretrain on, whose labels are not used.
        skip_unreadable: Leave out images that cannot be read.
        workers: Trials at a time; default: one per core or GPU.
        timeout: How many trials fit into this time: seconds, or a text such as `1h30m`.
        epochs: Epochs to spend on the estimate, over all trials.
        studies: The folder of the studies, where decoded images are kept.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the space or the images are not usable.
        NoResultError: No epoch could be completed.
    """
    from imgcls_search.api.options import refuse_below

    refuse_below("epochs", epochs, 1)
    with session(progress, weights_dir) as screens:
        return make_plan(
            space,
            with_settings(changes_of(changes), workers=workers, timeout=timeout),
            None if data is None else as_data(data),
            unlabeled_of(unlabeled),
            skip_unreadable=skip_unreadable,
            epochs=epochs,
            studies=Path(studies),
            screens=screens,
        )


def make_plan(
    space: SpaceLike,
    changes: Sequence[tuple[str, str]],
    data: str | None,
    unlabeled: str | None,
    *,
    skip_unreadable: bool,
    epochs: int,
    studies: Path,
    screens: Screens,
) -> Plan:
    """Train a few random trials for a few epochs, and extrapolate.

    Raises:
        UserError: the space, the images or the device is not usable.
        NoResultError: no epoch could be completed.
    """
    from imgcls_search.data import must_be_apart
    from imgcls_search.jobs.plan import plan as plan_search
    from imgcls_search.jobs.plan import timed_as

    def read(changes: Sequence[tuple[str, str]]) -> Any:
        return read_space_of(space, changes, data, skip_unreadable=skip_unreadable, unlabeled=unlabeled)

    planned = read(changes)
    planned.refuse_config(Path(name_of(space)))
    must_be_apart(planned.first().component("data"), studies, "--studies")
    timed = {**timed_as(planned), "study.max_epochs": str(epochs)}
    calibration = read([*changes, *timed.items()])
    with screens.planning(epochs) as screen:
        found = plan_search(planned, calibration, studies, screen)
    return Plan(**asdict(found), pruner=planned.pruner.name)
