"""One client per tracker, using the tracker's own package; each keeps several trials open at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from imgcls_search.trackers.messages import EpochMeasured, TrackedStudy, TrialBegan, TrialEnded

Settings = Mapping[str, Any]


class Client(Protocol):
    """One tracker. Trackers call a trial a run; later calls identify it by its name."""

    def begin(self, trial: TrialBegan, known: str | None) -> str:
        """Open the run of a trial, a new one unless its name is `known`; return its name."""

    def measure(self, run: str, epoch: EpochMeasured) -> None:
        """Add an epoch to a run."""

    def end(self, run: str, trial: TrialEnded) -> None:
        """Add how the trial ended, and close its run."""

    def close(self) -> None:
        """Write everything that is not written yet."""


class TensorBoardClient:
    """A folder of event files for each trial: `<folder>/<study>/trial-00007`."""

    def __init__(self, settings: Settings, study: TrackedStudy) -> None:
        self.folder = Path(settings["folder"]) / study.name
        self.writers: dict[str, Any] = {}

    def begin(self, trial: TrialBegan, known: str | None) -> str:
        """Open the event file of a trial."""
        run = known or f"trial-{trial.trial:05d}"
        writer = self._writer(run)
        if known is None:
            writer.add_text("config", f"```yaml\n{trial.config}```")
            writer.add_text("parameters", "\n".join(f"- {name}: {value}" for name, value in trial.params.items()))
        return run

    def measure(self, run: str, epoch: EpochMeasured) -> None:
        """Add an epoch."""
        for name, value in epoch.metrics.items():
            self._writer(run).add_scalar(name, value, epoch.epoch)
        self._writer(run).flush()

    def end(self, run: str, trial: TrialEnded) -> None:
        """Add the end of a trial."""
        writer = self._writer(run)
        writer.add_text("state", f"{trial.state} {trial.reason}".strip())
        for name, value in trial.values.items():
            writer.add_scalar(f"result/{name}", value)
        for name, file in trial.pictures.items():
            writer.add_image(name, _pixels(file), dataformats="HWC")
        writer.close()
        del self.writers[run]

    def close(self) -> None:
        """Close all event files."""
        for writer in self.writers.values():
            writer.close()

    def _writer(self, run: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if run not in self.writers:
            self.writers[run] = SummaryWriter(str(self.folder / run))
        return self.writers[run]


class MLflowClient:
    """Runs nested below the run of the study, as MLflow's page shows them."""

    def __init__(self, settings: Settings, study: TrackedStudy) -> None:
        # Do not wait long for a server that is away; a failed call is repeated later.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=settings["uri"])
        self.study = study
        name = settings["experiment"] or study.name
        found = self.client.get_experiment_by_name(name)
        self.experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        self.parent = self._study_run()

    def begin(self, trial: TrialBegan, known: str | None) -> str:
        """Open the run of a trial."""
        if known is not None:
            self.client.set_terminated(known, "RUNNING")
            return known
        tags = {"mlflow.parentRunId": self.parent, "imgcls_search.trial": str(trial.trial)}
        run = self.client.create_run(self.experiment, tags=tags, run_name=f"trial {trial.trial}").info.run_id
        self._log(run, params=dict(trial.params))
        self.client.log_text(run, trial.config, "config.yaml")
        return str(run)

    def measure(self, run: str, epoch: EpochMeasured) -> None:
        """Add an epoch."""
        self._log(run, metrics=epoch.metrics, step=epoch.epoch)

    def end(self, run: str, trial: TrialEnded) -> None:
        """Add the end of a trial, and end its run."""
        self._log(run, metrics={f"result/{name}": value for name, value in trial.values.items()})
        self.client.set_tag(run, "imgcls_search.state", trial.state)
        if trial.reason:
            self.client.set_tag(run, "imgcls_search.reason", trial.reason[:4_000])
        for name, file in trial.pictures.items():
            from PIL import Image

            with Image.open(file) as image:
                self.client.log_image(run, image.convert("RGB"), artifact_file=_plain(f"{Path(name).stem}.png"))
        self.client.set_terminated(run, {"complete": "FINISHED", "fail": "FAILED"}.get(trial.state, "KILLED"))

    def close(self) -> None:
        """Mark the run of the study as finished."""
        self.client.set_terminated(self.parent, "FINISHED")

    def _study_run(self) -> str:
        tag = "imgcls_search.study"
        known = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{self.study.identity}'", max_results=1)
        if known:
            self.client.set_terminated(known[0].info.run_id, "RUNNING")
            return str(known[0].info.run_id)
        tags = {tag: self.study.identity, **{f"imgcls_search.{key}": text for key, text in self.study.notes.items()}}
        return str(self.client.create_run(self.experiment, tags=tags, run_name=self.study.name).info.run_id)

    def _log(self, run: str, *, params: Settings | None = None, metrics: Settings | None = None, step: int = 0) -> None:
        from mlflow.entities import Metric, Param

        now = int(1000 * time.time())
        # A call takes at most 100 of each.
        given = [Param(_plain(name), str(value)[:6_000]) for name, value in (params or {}).items()]
        measured = [Metric(_plain(name), float(value), now, step) for name, value in (metrics or {}).items()]
        for start in range(0, max(len(given), len(measured)), 100):
            self.client.log_batch(run, metrics=measured[start : start + 100], params=given[start : start + 100])


class WandbClient:
    """Runs in a group with the study's name."""

    def __init__(self, settings: Settings, study: TrackedStudy) -> None:
        self.settings, self.study = settings, study
        self.runs: dict[str, Any] = {}
        Path(settings["folder"]).mkdir(parents=True, exist_ok=True)

    def begin(self, trial: TrialBegan, known: str | None) -> str:
        """Open the run of a trial."""
        run = known or f"{self.study.identity}-{trial.trial}"
        self._open(run, f"trial {trial.trial}", {**trial.params, "config": trial.config})
        return run

    def measure(self, run: str, epoch: EpochMeasured) -> None:
        """Add an epoch."""
        self.runs[run].log({"epoch": epoch.epoch, **epoch.metrics}, step=epoch.epoch)

    def end(self, run: str, trial: TrialEnded) -> None:
        """Add the end of a trial, and end its run."""
        import wandb

        opened = self.runs.pop(run)
        opened.summary.update({"state": trial.state, "reason": trial.reason})
        opened.summary.update({f"result/{name}": value for name, value in trial.values.items()})
        if trial.pictures:
            opened.log({_plain(name): wandb.Image(str(file)) for name, file in trial.pictures.items()})
        opened.finish(exit_code=1 if trial.state == "fail" else 0)

    def close(self) -> None:
        """Close all runs; those of trials that resume later are opened again."""
        for opened in self.runs.values():
            opened.finish()

    def _open(self, run: str, name: str, config: Settings) -> None:
        import wandb

        settings = wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=30)
        self.runs[run] = wandb.init(
            id=run,
            name=name,
            group=self.study.name,
            project=self.settings["project"],
            entity=self.settings["entity"],
            dir=self.settings["folder"],
            mode=self.settings["mode"],
            config=dict(config),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )


CLIENTS: Mapping[str, Callable[[Settings, TrackedStudy], Client]] = {
    "tensorboard": TensorBoardClient,
    "mlflow": MLflowClient,
    "wandb": WandbClient,
}
"""By the name of their section in `study.log`."""


def _plain(name: str) -> str:
    """Return a name of at most 250 letters, digits and `_-./`, which every tracker accepts."""
    kept = (letter if letter.isascii() and (letter.isalnum() or letter in "_-./") else "_" for letter in name)
    return "".join(kept)[:250]


def _pixels(file: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
