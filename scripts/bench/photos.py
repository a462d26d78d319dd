"""From a folder of photos to a model in some minutes: compare `imgcls-search auto` with other tools.

    python scripts/bench/photos.py --images photos --environments environments   five hours on two cores
    python scripts/bench/photos.py --images photos --environments environments --minutes 5 --seeds 1
    python scripts/bench/photos.py --images photos --minutes 30 --seeds 1 --only auto careful
    python scripts/bench/photos.py --images photos --cores 2 --lanes 8           on 16 cores, eight runs at a time

All tools get the same cores and minutes, counted from the start of their process, and nothing is downloaded: tools that
accept local weights get ImageNet weights of EfficientNet-Lite0 from a pip package. First, the images are split once,
with a fixed seed, into train/ and test/. The tools get only train/ and choose their own validation images:

    auto         imgcls-search auto
    careful      a fixed recipe in timm and torch: head, then fine-tuning (recipes/careful.py)
    tuned        Optuna and that recipe, one process, TPE and MedianPruner (recipes/tuned.py)
    raytune      Ray Tune and that recipe, random search and ASHA, a core for each trial (recipes/raytune.py)
    neps         NePS and that recipe, whose values are its priors (recipes/priors.py)
    autogluon    AutoGluon MultiModal with its time_limit (recipes/gluon.py)
    lightly      LightlyTrain's fine-tuning (recipes/lightlytrain.py)
    kerastuner   KerasTuner's Hyperband, a network from scratch (recipes/keras_hyperband.py)
    ultralytics  Ultralytics classify, a network from scratch (recipes/yolo.py)

From raytune on, each tool has a separate environment, which is created below the folder of --environments with uv or
pip; without that option these tools are left out. A tool that cannot be installed is also left out, with the reason.

Each run becomes a line of photos.jsonl and is never repeated: run the same command again to resume. If a tool writes
its best model before it ends, its models at several moments are kept. When all runs are done, one scorer evaluates all
models on the test split: accuracy and macro F1 with 95 % intervals, and differences on the same images (intervals.py).
Writes photos.json, photos.md, photos.svg.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import frame
import numpy as np
from environments import LeftOutError
from intervals import METRICS, Interval, difference, interval, score
from rivals import END, ENTRIES, RIVALS, Bench, Rival, Run

MOMENTS = (0.5, 1, 2, 5, 10, 15, 20, 30, 45)
"""Minutes at which the current models are kept."""

PINNED = """import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""A program that binds itself to some cores and then executes the command that follows."""

SPLIT_SEED = 21
KILLED_AFTER = 2
"""A run that takes this many times the minutes plus ten minutes is killed."""


def main() -> None:
    """Run the missing runs, then score and compare all."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder with a subfolder for each class")
    parser.add_argument("--minutes", type=float, default=10, help="of each run; default: 10")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each; default: 3")
    parser.add_argument("--only", nargs="+", choices=list(RIVALS), default=list(RIVALS), help="default: all")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="make the environments of other tools below it (20 GB)"
    )
    parser.add_argument("--test-share", type=float, default=0.3, help="of the images; default: 0.3")
    parser.add_argument("--cores", type=int, help="of each run; default: all")
    parser.add_argument("--lanes", type=int, default=1, help="runs at a time, each on cores of its own; default: 1")
    parser.add_argument("--work", type=Path, help="a folder for images, models, logs; default: OUT/photos")
    given = parser.parse_args()
    lanes = cut_cores(given.lanes, given.cores)
    given.out.mkdir(parents=True, exist_ok=True)
    work = (given.work or given.out / "photos").resolve()
    digest = cut(given.images.resolve(), work / "photos", given.test_share)
    bench = Bench(work=work, environments=given.environments and given.environments.resolve())
    bench.make_weights()
    lines = Lines(given.out / "photos.jsonl")
    with frame.results("photos", given.out) as found:
        asked = {"minutes": given.minutes, "split": digest, "cores": len(lanes[0])}
        found |= {"asked": asked, "left_out": prepare(bench, given.only), "lanes": len(lanes)}
        cells = [
            {**asked, "rival": name, "seed": seed}
            for seed in range(given.seeds)
            for name in given.only
            if name not in found["left_out"]
        ]
        run_all(bench, cells, lines, lanes)
        names = [name for name in given.only if name not in found["left_out"]]
        runs = [line for line in lines.read() if asked.items() <= line.items() and line["seed"] < given.seeds]
        runs = [line for name in names for line in runs if line["rival"] == name]
        failed = [f"{line['rival']}, seed {line['seed']}: {line['failed']}" for line in runs if "failed" in line]
        found["runs"] = runs
        found["failed"] = failed
        compare(bench, [line for line in runs if "failed" not in line], found, given.out)
        print("\n".join(f"FAILED {line}" for line in failed))


class Lines:
    """A file with a line of JSON for each run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return all lines; only the last one of a run that failed and was repeated."""
        if not self.path.exists():
            return []
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return list({json.dumps(self.cell(line), sort_keys=True): line for line in lines}.values())

    def find(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """Return the line of a run, None if there is none."""
        return next((line for line in self.read() if self.cell(line) == cell), None)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and flush it to disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def cell(line: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that identify a run."""
        return {name: line[name] for name in ("rival", "minutes", "seed", "split", "cores")}


def cut(images: Path, folder: Path, test_share: float) -> str:
    """Copy images once into train/ and test/, stratified by class; return a digest of the split."""
    from imgcls_search import digests

    if not (folder / "split.txt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        random = np.random.default_rng(SPLIT_SEED)
        for group in sorted(path for path in images.iterdir() if path.is_dir()):
            files = sorted(path for path in group.iterdir() if path.is_file())
            order = random.permutation(len(files))
            num_test = max(1, round(test_share * len(files)))
            for place, number in enumerate(order):
                target = folder / ("test" if place < num_test else "train") / group.name / files[number].name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files[number], target)
        # Written last: without it the copy is incomplete.
        (folder / "split.txt").write_text(f"{images.name} {test_share:g}\n")
    if (folder / "split.txt").read_text() != f"{images.name} {test_share:g}\n":
        raise SystemExit(f"{folder}: holds another split; choose another --work, or delete it")
    files = sorted(path for path in folder.glob("*/*/*") if path.is_file())
    listed = "".join(f"{path.relative_to(folder)} {digests.of_file(path)}\n" for path in files)
    (folder / "files.txt").write_text(listed)
    return str(digests.of_file(folder / "files.txt"))[:12]


def cut_cores(lanes: int, cores: int | None) -> list[list[int]]:
    """Return the cores of each lane."""
    ours = sorted(os.sched_getaffinity(0))
    each = cores or len(ours) // lanes
    if not 0 < each * lanes <= len(ours):
        raise SystemExit(f"--lanes {lanes} of {each} core(s): there are {len(ours)}")
    return [ours[lane * each : (lane + 1) * each] for lane in range(lanes)]


def prepare(bench: Bench, names: Sequence[str]) -> dict[str, str]:
    """Create the environments of the tools; return the tools that cannot take part, with the reasons."""
    reasons = {name: why_left_out(bench, name) for name in names}
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name}: left out: {reason}", flush=True)
    return {name: reason for name, reason in reasons.items() if reason is not None}


def why_left_out(bench: Bench, name: str) -> str | None:
    """Return why a tool cannot take part, None if it can."""
    try:
        bench.prepare(RIVALS[name])
    except LeftOutError as reason:
        return str(reason)
    return None


def run_all(bench: Bench, cells: Sequence[dict[str, Any]], lines: Lines, lanes: Sequence[list[int]]) -> None:
    """Run all cells in order, as many at a time as there are lanes."""
    free: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def run(cell: dict[str, Any]) -> None:
        lane = free.get()
        try:
            run_once(bench, cell["rival"], cell, lines, lane)
        finally:
            free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(run, cells))


def run_once(bench: Bench, name: str, cell: dict[str, Any], lines: Lines, cores: Sequence[int]) -> None:
    """Run a cell on some cores and add its line, unless there is one already."""
    known = lines.find(cell)
    if known is not None and "failed" not in known:
        print(f"{name}, {cell['minutes']:g} minutes, seed {cell['seed']}: was run", flush=True)
        return
    rival = RIVALS[name]
    folder = bench.folder(cell)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = Run(folder=folder, minutes=cell["minutes"], seed=cell["seed"], started_at=time.time())
    line = {**cell, **watch(bench, rival, run, cores)}
    if "failed" not in line:
        line |= {"facts": rival.facts(bench, run), "moments": rival.keep(bench, run, moments(run.minutes))}
    lines.add(line)
    what = line.get("failed") or f"first model after {line['first_model_seconds']:.0f} s, {line['facts']}"
    times = f"{line['seconds']:.0f} s, of processors {line['processor_seconds']:.0f} s"
    print(f"{name}, {run.minutes:g} minutes, seed {run.seed}: {times}, load {line['load']}; {what}", flush=True)


def moments(minutes: float) -> list[float]:
    """Return the moments before the end at which models are kept."""
    return [moment for moment in MOMENTS if moment < minutes]


def watch(bench: Bench, rival: Rival, run: Run, cores: Sequence[int]) -> dict[str, Any]:
    """Run a command to its end, and hard-link its models' files at each moment, which does not slow it down."""
    command = rival.command(bench, run)
    waiting, first = moments(run.minutes), None
    load_before = frame.load()
    with process(command, run.folder, cores) as running:
        begun = time.monotonic()
        while (ended := os.wait4(running.pid, os.WNOHANG))[0] == 0:
            passed = time.monotonic() - begun
            if first is None and any(run.folder.glob(rival.ready)):
                first = passed
            if waiting and passed >= 60 * waiting[0]:
                link(run, rival, waiting.pop(0))
            if passed > 60 * KILLED_AFTER * run.minutes + 600:
                return {"failed": f"did not end within {passed:.0f} s", **used(passed, None, load_before)}
            time.sleep(0.1)
        running.returncode = os.waitstatus_to_exitcode(ended[1])
        line = used(time.monotonic() - begun, ended[2], load_before)
    if running.returncode != 0:
        last = (run.folder / "log.txt").read_text().strip().splitlines()[-1:]
        return {"failed": f"exit code {running.returncode}: {last}".replace(str(bench.work), "WORK"), **line}
    return {**line, "first_model_seconds": round(line["seconds"] if first is None else first, 1)}


@contextmanager
def process(command: Sequence[str], folder: Path, cores: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command on some cores with a log; kill it and all its child processes at the end."""
    pinned = [sys.executable, "-c", PINNED, ",".join(map(str, cores)), *command]
    with (folder / "log.txt").open("wb") as log:
        running = subprocess.Popen(
            pinned, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield running
        finally:
            # Also kill workers that outlived the command, so that the next run has the cores.
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


def link(run: Run, rival: Rival, moment: float) -> None:
    """Hard-link the current files of the models; a process that replaces a file does not change the link."""
    for pattern in rival.kept:
        for path in run.folder.glob(pattern):
            target = run.at(moment) / path.relative_to(run.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except FileNotFoundError:  # Deleted since it was listed.
                continue


def used(seconds: float, taken: resource.struct_rusage | None, load: Any) -> dict[str, Any]:
    """Return the time and load of a run; processor time excludes Ray's workers, which are not our child processes."""
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(taken.ru_utime + taken.ru_stime, 1) if taken is not None else 0.0,
        "load": [load and load[0], (now := frame.load()) and now[0]],
    }


def compare(bench: Bench, runs: Sequence[dict[str, Any]], found: dict[str, Any], out: Path) -> None:
    """Score all models on the test split, print the table, draw the curve."""
    names = list(dict.fromkeys(run["rival"] for run in runs))
    if not names:
        print("nothing to compare")
        return
    images = sorted(bench.test.glob("*/*"))
    classes = sorted({image.parent.name for image in images})
    truth = np.array([classes.index(image.parent.name) for image in images])
    keys = [f"{image.parent.name}/{image.name}" for image in images]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for run in runs:
        said = predictions(bench, run)
        answers[run["rival"]].append(
            {moment: np.array([classes.index(each[key]) for key in keys]) for moment, each in said.items()}
        )
    found["test"] = {"images": len(images), "classes": len(classes)}
    ends = {name: np.stack([answer[END] for answer in each]) for name, each in answers.items()}
    found["scores"] = {
        name: {metric: described(interval(metric, truth, rows)) for metric in METRICS} for name, rows in ends.items()
    }
    for name, rows in ends.items():
        for metric in METRICS:
            found["scores"][name][metric]["seeds"] = [round(score(metric, truth, row), 4) for row in rows]
    first = names[0]
    found["differences"] = {
        f"{first} - {name}": {metric: described(difference(metric, truth, ends[first], rows)) for metric in METRICS}
        for name, rows in ends.items()
        if name != first
    }
    found["curves"] = {
        name: [
            {
                moment: {"minutes": minutes_of(moment, run), "accuracy": round(score("accuracy", truth, row), 4)}
                for moment, row in answer.items()
            }
            for run, answer in zip([run for run in runs if run["rival"] == name], each, strict=True)
        ]
        for name, each in answers.items()
    }
    text = table(found)
    print(text)
    (out / "photos.md").write_text(text)
    draw(found, out / "photos.svg")


def predictions(bench: Bench, run: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the predictions of a run's models for the test images; they are computed once."""
    folder = bench.folder(run)
    known = folder / "predictions.json"
    if not known.exists():
        said = RIVALS[run["rival"]].predict(bench, folder, run["moments"])
        draft = known.with_suffix(".new")
        draft.write_text(json.dumps(said))
        draft.replace(known)
    found: dict[str, dict[str, str]] = json.loads(known.read_text())
    return found


def minutes_of(moment: str, run: dict[str, Any]) -> float:
    """Return the minutes of a moment; the last moment is the end of the run."""
    return round(run["seconds"] / 60, 2) if moment == END else float(moment)


def described(found: Interval) -> dict[str, Any]:
    """Return an interval as JSON."""
    parts = {"value": found.value, "low": found.low, "high": found.high}
    return {**{name: round(value, 4) for name, value in parts.items()}, "over_seeds": found.is_over_seeds}


def table(found: dict[str, Any]) -> str:
    """Return the results as a Markdown table with notes."""
    first, *_ = found["scores"]
    asked, test, conditions = found["asked"], found["test"], found["conditions"]
    runs = {name: [run for run in found["runs"] if run["rival"] == name] for name in found["scores"]}
    rows = []
    for name, scores in found["scores"].items():
        against = found["differences"].get(f"{first} - {name}")
        first_model = "-".join(f"{value:.0f}" for value in sorted({*extremes(runs[name], "first_model_seconds")}))
        took = max(run["seconds"] for run in runs[name]) / 60
        cells = [
            ENTRIES[name].label,
            ENTRIES[name].network,
            *(shown(scores[metric]) for metric in METRICS),
            ", ".join(f"{value:.3f}" for value in scores["accuracy"]["seeds"]),
            f"{first_model} s",
            f"{took:.1f}",
            "" if against is None else f"{shown(against['accuracy'], '+')}: {verdict(against['accuracy'])}",
            "" if against is None else f"{shown(against['macro_f1'], '+')}: {verdict(against['macro_f1'])}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    heads = [
        f"{asked['minutes']:g} minutes, {asked['cores']} cores",
        "network, its weights",
        "test accuracy",
        "macro F1",
        "accuracy of each seed",
        "first model after",
        "longest run, minutes",
        f"{first} - this, accuracy",
        f"{first} - this, macro F1",
    ]
    load = max(value for run in found["runs"] for value in run["load"] or [0])
    notes = [
        f"{test['images']} sealed test images of {test['classes']} classes, cut before any run; brackets are 95 % "
        "intervals over test images and seeds; a difference is of the same images, and 'equal' means that its interval "
        "contains 0.",
        f"{conditions['processor']}; {found['lanes']} run(s) at a time, each on its own cores; highest load in "
        f"or beside a run: {load:g}.",
        "Versions: " + "; ".join(f"{ENTRIES[name].label} {listed(runs[name])}" for name in runs) + ".",
        *(f"Failed: {line}." for line in found["failed"]),
        *(f"Left out, {ENTRIES[name].label}: {reason}." for name, reason in found["left_out"].items()),
    ]
    if not all(scores["accuracy"]["over_seeds"] for scores in found["scores"].values()):
        notes.append(
            "Where there is one seed, intervals tell of the choice of test images alone, not of chance in training."
        )
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows, "", *notes]
    return "\n".join(lines) + "\n"


def listed(runs: Sequence[dict[str, Any]]) -> str:
    """Return the package versions of runs as text."""
    pairs = {f"{name} {version}": None for run in runs for name, version in run["facts"]["versions"].items()}
    return f"({', '.join(pairs)})"


def extremes(runs: Sequence[dict[str, Any]], key: str) -> tuple[float, float]:
    """Return the smallest and the largest value, rounded to integers."""
    values = [round(run[key]) for run in runs]
    return min(values), max(values)


def shown(found: dict[str, Any], sign: str = "") -> str:
    """Return a value with its interval as text."""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def verdict(found: dict[str, Any]) -> str:
    """Return whether the first tool is ahead, behind or equal, by the interval of the difference."""
    return "ahead" if found["low"] > 0 else "behind" if found["high"] < 0 else "equal"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw test accuracy over minutes: each run as a thin line, their mean as a thick one."""
    import matplotlib

    matplotlib.use("agg")
    # Make the file reproducible.
    matplotlib.rcParams["svg.hashsalt"] = "photos"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4))
    for number, (name, curves) in enumerate(found["curves"].items()):
        colour = f"C{number}"
        points = [[(point["minutes"], point["accuracy"]) for point in curve.values()] for curve in curves]
        for line in points:
            axis.plot(*zip(*line, strict=True), color=colour, alpha=0.3, linewidth=0.8)
        in_all = [moment for moment in curves[0] if all(moment in curve for curve in curves)]
        mean = [
            [float(np.mean([curve[moment][what] for curve in curves])) for moment in in_all]
            for what in ("minutes", "accuracy")
        ]
        axis.plot(*mean, color=colour, marker="o", markersize=4, label=ENTRIES[name].label.replace("`", ""))
    axis.set_xlabel("minutes since the start of the process")
    axis.set_ylabel(f"accuracy on {found['test']['images']} test images")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
