"""Measure training throughput (images per second) of the whole machine in four ways, alternating within one run:

ours    worker processes with one thread each, training as in a search
habit   what most people write, the reference: ImageFolder, PIL transforms image by image, a DataLoader of two
        processes, torch's defaults
each    the same code, packed: one process per worker, with one thread and one loader each
bare    the same model and optimizer on ready tensors in memory and nothing else, as many processes as ours: upper limit

python scripts/bench/throughput.py --images cifar10-images            about eight minutes on two cores
python scripts/bench/throughput.py --images cifar10-images --models resnet8 --policy none rand trivial
python scripts/bench/throughput.py --images cifar10-images --accuracy --memory --rounds 0
python scripts/bench/throughput.py --models lenet5 --rounds 2 --seconds 1    without images: random ones

Writes throughput.json and throughput.png.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, load
from imgcls_search.errors import StoppedError
from imgcls_search.space import parse
from imgcls_search.training.device import settle_in
from imgcls_search.training.loop import fit, train_epoch
from imgcls_search.worker import image_sets, networks, pipeline
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

BATCH = 128
BARE_IMAGES = 10_000
"""Images that the bare loop keeps in memory as floats, 12 KB each."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure."""

    model: str
    optimizer: str
    memory_format: torch.memory_format
    """Memory format of the bare loop's tensors: the faster one on a CPU."""

    over_habit: float
    """Lower bound of ours / habit."""

    over_bare: Mapping[str, float]
    """Lower bounds of ours / bare, without and with an augmentation policy."""


MODELS = {
    "resnet8": Model(
        model="resnet: {depths: [1, 1, 1], width: 16}",
        optimizer="sgd: {lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0}",
        memory_format=torch.channels_last,
        over_habit=2.5,
        over_bare={"none": 0.95, "any": 0.85},
    ),
    "vit": Model(
        model="vit: {patch_size: 4, width: 96, depth: 6, heads: 4}",
        optimizer="adamw: {lr: 1e-3, weight_decay: 0}",
        memory_format=torch.contiguous_format,
        over_habit=1.5,
        over_bare={"none": 0.95, "any": 0.85},
    ),
    "lenet5": Model(
        model="lenet5: {}",
        optimizer="adamw: {lr: 1e-3, weight_decay: 0}",
        memory_format=torch.channels_last,
        over_habit=3.0,
        over_bare={},
    ),
}
"""No weight decay: ours and habit apply it to different parameters, which should not affect the accuracies."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that a process needs to train in any of the ways."""

    config: dict[str, Any]
    data: dict[str, Any]
    root: str
    """The ImageFolder tree."""

    policy: str
    device: str
    memory_format: torch.memory_format

    @property
    def prepared(self) -> Prepared:
        """The decoded images."""
        return Prepared.from_dict(self.data)

    @property
    def trial(self) -> TrialConfig:
        """The configuration in the form in which a search samples it."""
        return TrialConfig.from_dict(self.config)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the configuration's optimizer as a plain script would build it."""
        component = self.trial.component("optimizer")
        if component.name == "sgd":
            return torch.optim.SGD(model.parameters(), lr=component.args["lr"], momentum=0.9, nesterov=True)
        return torch.optim.AdamW(model.parameters(), lr=component.args["lr"], weight_decay=0.0)


def main() -> None:
    """Measure what the arguments name, print it and write it."""
    arguments = _arguments()
    with frame.results("throughput", arguments.out) as results:
        results["settings"] = _settings(arguments)
        with tempfile.TemporaryDirectory() as folder:
            root = arguments.images.resolve() if arguments.images else make_images(Path(folder) / "images")
            results["images"] = "an ImageFolder tree" if arguments.images else "random ones: speeds only, no accuracy"
            print(f"conditions: {results['conditions']}\nimages: {results['images']}")
            if arguments.rounds:
                results["cases"] = [
                    measure_case(make_case(arguments, name, policy, root, Path(folder)), name, arguments)
                    for name in arguments.models
                    for policy in arguments.policy
                ]
            if arguments.memory:
                case = make_case(arguments, arguments.models[0], "none", root, Path(folder))
                results["memory"] = [measure_memory(case, workers) for workers in (1, 2, 4)]
            if arguments.accuracy:
                results["accuracy"] = [
                    compare_accuracy(
                        make_case(arguments, name, "none", root, Path(folder), small=True), name, arguments
                    )
                    for name in arguments.models
                ]
    if arguments.rounds:
        plot(results["cases"], arguments.out / "throughput.png")


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", type=Path, help="an ImageFolder tree of 32x32 images; default: random ones")
    parser.add_argument("--workers", type=int, default=2, help="processes of ours and of the bare loop; default: 2")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each; 0: none; default: 5")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, after a warm-up; default: 5")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--policy", nargs="+", choices=["none", "rand", "trivial"], default=["none"])
    parser.add_argument("--max-train", type=int, default=20_000, help="training images of ours; default: 20000")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")
    parser.add_argument("--memory", action="store_true", help="also what the data set takes with 1, 2, 4 workers")
    parser.add_argument("--accuracy", action="store_true", help="also whether ours learns as habit does")
    parser.add_argument("--seeds", type=int, default=5, help="trainings a side for --accuracy; default: 5")
    parser.add_argument("--accuracy-images", type=int, default=5000, help="they train on; default: 5000")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    # The path of the images is private and does not affect the results.
    hidden = ("images", "out")
    return {name: value for name, value in vars(arguments).items() if name not in hidden} | {"batch": BATCH}


def make_images(root: Path, each: int = 150) -> Path:
    """Write random JPEG files of 10 classes that are as smooth as photographs and so have a similar file size."""
    print("no --images given: training on random ones in a temporary folder")
    random = np.random.default_rng(0)
    for split, count in (("train", each), ("test", 2)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{index:04}.jpg")
    return root


def make_case(
    arguments: argparse.Namespace, name: str, policy: str, root: Path, folder: Path, *, small: bool = False
) -> Case:
    """Return a case with its images decoded."""
    count = arguments.accuracy_images if small else arguments.max_train
    text = f"""
        data: {{folder: {{root: {root}, max_train: {count}}}}}
        image: {{size: 32, channels: 3}}
        augment: {{flip: horizontal, crop_padding: 4, policy: {{{policy}: {{}}}}}}
        model: {{{MODELS[name].model}}}
        optimizer: {{{MODELS[name].optimizer}}}
        schedule: {{constant: {{}}}}
        training: {{epochs: 3, batch_size: {BATCH}, precision: fp32, device: {arguments.device}}}
    """
    config = parse(text, catalog(), source=__file__).config()
    return Case(
        config=config.to_dict(),
        data=pipeline.prepare_data(config, folder / "decoded").to_dict(),
        root=str(root / "train" if (root / "train").is_dir() else root),
        policy=policy,
        device=arguments.device,
        memory_format=MODELS[name].memory_format,
    )


class Window:
    """Counts images in a period that starts in all processes at the same time, after each has warmed up."""

    def __init__(self, barrier: Barrier, seconds: float, device: str) -> None:
        self.barrier, self.seconds, self.device = barrier, seconds, device
        self.opened = time.perf_counter()
        self.steps = self.images = 0
        self.started: float | None = None
        self.rate = 0.0

    def step(self, images: int) -> bool:
        """Record a finished step; return True when the time is over."""
        if self.started is None:
            self.steps += 1
            # Six batches are more than two loaders can have prefetched when the window opens.
            if self.steps >= 6 and time.perf_counter() - self.opened > min(1.5, self.seconds):
                self._wait_for_device()
                self.barrier.wait(timeout=300)
                self.started = time.perf_counter()
            return False
        self.images += images
        if time.perf_counter() - self.started < self.seconds:
            return False
        self._wait_for_device()
        self.rate = self.images / (time.perf_counter() - self.started)
        return True

    def _wait_for_device(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


Work = Callable[[Window], None]


def ours(case: Case) -> Work:
    """Train like a worker of a search."""
    settle_in(case.device)
    session = pipeline.new_session(case.trial, case.prepared, seed=0, device=case.device)
    images, _ = image_sets.image_sets(case.prepared, "train", case.device)
    each = len(images) / -(-len(images) // BATCH)

    def work(window: Window) -> None:
        while True:
            begun = False

            def after_step() -> bool:
                # Called before every step: all calls but the first follow a step.
                nonlocal begun
                before, begun = begun, True
                return before and window.step(each)  # type: ignore[arg-type]

            try:
                train_epoch(session, images, after_step)
            except StoppedError:
                return
            if window.step(each):  # type: ignore[arg-type]
                return

    return work


def habit(case: Case) -> Work:
    """Train with a typical script, everything at its defaults, two loaders."""
    return _habit(case, loaders=2)


def habit_each(case: Case) -> Work:
    """Train with a typical script in each of several processes, with one thread and one loader each."""
    torch.set_num_threads(1)
    return _habit(case, loaders=1)


def _habit(case: Case, loaders: int) -> Work:
    # In a script, a DataLoader forks on Linux; here it would inherit the start method of this process.
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)
    images = ImageFolder(case.root, habit_transform(case))
    loader = DataLoader(
        images, batch_size=BATCH, shuffle=True, num_workers=loaders, pin_memory=case.device != "cpu", drop_last=True
    )
    model = networks.build_model(case.trial, case.prepared.shape).to(case.device)
    optimizer = case.optimizer(model)
    criterion = nn.CrossEntropyLoss()

    def work(window: Window) -> None:
        model.train()
        while True:
            for pixels, labels in loader:
                loss = criterion(model(pixels.to(case.device)), labels.to(case.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if window.step(len(labels)):
                    return

    return work


def habit_transform(case: Case) -> Callable[[Image.Image], torch.Tensor]:
    """Return the transforms of one image that are equivalent to the configuration's augmentation."""
    policies = {"none": [], "rand": [transforms.RandAugment()], "trivial": [transforms.TrivialAugmentWide()]}
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            *policies[case.policy],
            transforms.ToTensor(),
            transforms.Normalize(case.prepared.mean, case.prepared.std),
        ]
    )
    return composed


def bare(case: Case) -> Work:
    """Train on ready batches: no shuffling, decoding, augmentation or normalisation."""
    if case.device == "cpu":
        torch.set_num_threads(1)
    session = pipeline.new_session(case.trial, case.prepared, seed=0, device=case.device)
    model, optimizer = session.model.to(memory_format=case.memory_format), session.optimizer
    split = load(case.prepared, "train")
    pixels = torch.from_numpy(np.array(split.pixels[:BARE_IMAGES])).to(case.device).float() / 255
    mean, std = (torch.tensor(numbers, device=case.device).view(1, -1, 1, 1) for numbers in normalisation(case))
    pixels = ((pixels - mean) / std).contiguous(memory_format=case.memory_format)
    labels = torch.from_numpy(np.array(split.labels[:BARE_IMAGES])).to(case.device)
    batches = [
        (batch, numbers)
        for batch, numbers in zip(pixels.split(BATCH), labels.split(BATCH), strict=True)
        if len(batch) == BATCH
    ]
    del session

    def work(window: Window) -> None:
        model.train()
        while True:
            for inputs, numbers in batches:
                loss = nn.functional.cross_entropy(model(inputs), numbers)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if window.step(BATCH):
                    return

    return work


def normalisation(case: Case) -> tuple[Sequence[float], Sequence[float]]:
    """Return the normalisation of a case."""
    return case.prepared.mean, case.prepared.std


CONTENDERS: Mapping[str, Callable[[Case], Work]] = {
    "ours": ours,
    "habit": habit,
    "each": habit_each,
    "bare": bare,
}


class Group:
    """The processes that train at the same time in one of the ways."""

    def __init__(self, contender: str, case: Case, count: int) -> None:
        # Like a search's workers: one process imports torch, and the others are forked from it.
        context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            context.set_forkserver_preload(["imgcls_search.executors.warm"])
        barrier = context.Barrier(count)
        self.connections, self.processes = [], []
        for _ in range(count):
            mine, its = context.Pipe()
            # Not a daemon, because daemons cannot start the processes of a DataLoader.
            process = context.Process(target=_serve, args=(its, barrier, contender, case))
            process.start()
            its.close()
            self.connections.append(mine)
            self.processes.append(process)
        self.answers()

    def measure(self, seconds: float) -> float:
        """Return images per second of all processes together."""
        return sum(self.ask(seconds))

    def ask(self, question: Any) -> list[Any]:
        """Send a question to all processes and return their answers."""
        for connection in self.connections:
            connection.send(question)
        return self.answers()

    def answers(self) -> list[Any]:
        """Wait for an answer from each process."""
        return [connection.recv() for connection in self.connections]

    def close(self) -> None:
        """End the processes."""
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            process.join()


def _serve(connection: Connection, barrier: Barrier, contender: str, case: Case) -> None:
    work = CONTENDERS[contender](case)
    connection.send("ready")
    try:
        while True:
            question = connection.recv()
            if question == "read":
                images, _ = image_sets.image_sets(case.prepared, "train", case.device)
                for _ in images.batches(torch.arange(len(images)).split(512)):
                    pass
                connection.send("read")
                continue
            if question == "memory":
                connection.send(_memory(case))
                continue
            window = Window(barrier, question, case.device)
            work(window)
            connection.send(window.rate)
    except EOFError:
        return


def measure_case(case: Case, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the ways alternately and compare them."""
    counts = {"ours": arguments.workers, "habit": 1, "each": arguments.workers, "bare": arguments.workers}
    groups = {contender: Group(contender, case, count) for contender, count in counts.items()}
    rates: dict[str, list[float]] = {contender: [] for contender in groups}
    for turn in range(arguments.rounds):
        # Rotate the order of the ways, so that a different one begins each round.
        order = [*groups][turn % len(groups) :] + [*groups][: turn % len(groups)]
        for contender in order:
            rates[contender].append(groups[contender].measure(arguments.seconds))
    for group in groups.values():
        group.close()
    asked, policy = MODELS[name], case.policy
    result = {
        "model": name,
        "policy": policy,
        "images_per_second": {
            way: {**frame.spread(found, 1), "rounds": [round(rate, 1) for rate in found]}
            for way, found in rates.items()
        },
        "ours_over_habit": _ratio(rates["ours"], rates["habit"]),
        "ours_over_each": _ratio(rates["ours"], rates["each"]),
        "ours_over_bare": _ratio(rates["ours"], rates["bare"]),
    }
    print(f"{name}, policy {policy}, images/s: " + ", ".join(f"{way} {_show(found)}" for way, found in rates.items()))
    bars = {
        "ours_over_habit": asked.over_habit if policy == "none" else None,
        "ours_over_each": None,
        "ours_over_bare": asked.over_bare.get("none" if policy == "none" else "any"),
    }
    for which, least in bars.items():
        ratio = result[which]
        result[which]["asked_at_least"] = least
        print(
            f"    {which.replace('_', ' ')}: {ratio['of_medians']:.2f} (rounds {ratio['min']:.2f} to "
            f"{ratio['max']:.2f}) {frame.verdict(ratio['of_medians'], at_least=least)}"
        )
    return result


def _ratio(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of the medians, and the spread of the ratios within the rounds."""
    of_medians = statistics.median(ours) / statistics.median(other)
    return {
        "of_medians": round(of_medians, 4),
        **frame.spread([a / b for a, b in zip(ours, other, strict=True)]),
    }


def _show(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def measure_memory(case: Case, workers: int) -> dict[str, Any]:
    """Measure the memory of the mapped images in all workers together, after each has read every image."""
    group = Group("ours", case, workers)
    # A page that two processes map counts half for each, so all must have read it before the measurement.
    group.ask("read")
    found = group.ask("memory")
    group.close()
    files = sum(path.stat().st_size for path in Path(case.prepared.folder).glob("train.images.*"))
    result = {
        "workers": workers,
        "file_bytes": files,
        "mapped_bytes_of_all": sum(entry["mapped"] for entry in found),
        "process_bytes_each": [entry["process"] for entry in found],
    }
    print(
        f"memory, {workers} worker(s): images {files / 1e6:.1f} MB on disk, mapped by all together (PSS) "
        f"{result['mapped_bytes_of_all'] / 1e6:.1f} MB, once is {result['mapped_bytes_of_all'] / max(files, 1):.2f}; "
        f"a process in all {statistics.fmean(result['process_bytes_each']) / 1e6:.0f} MB"
    )
    return result


def _memory(case: Case) -> dict[str, int]:
    """Return this process's proportional set size (PSS), bytes, of the images and of everything."""
    mapped = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = case.prepared.folder in line and "train.images" in line
        elif inside and line.startswith("Pss:"):
            mapped += 1024 * int(line.split()[1])
    rollup = re.search(r"^Pss:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return {"mapped": mapped, "process": 1024 * int(rollup.group(1)) if rollup else 0}


def compare_accuracy(case: Case, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train ours and habit with several seeds on the same images with the same settings, and compare accuracies."""
    trainings = {"ours": accuracy_of_ours, "habit": accuracy_of_habit}
    found: dict[str, list[float]] = {way: [] for way in trainings}
    for seed in range(arguments.seeds):
        for way, training in trainings.items():
            found[way].append(training(case, seed))
    means = {way: statistics.fmean(values) for way, values in found.items()}
    stds = {way: statistics.stdev(values) if len(values) > 1 else 0.0 for way, values in found.items()}
    difference = means["ours"] - means["habit"]
    result = {
        "model": name,
        "epochs": 3,
        "images": arguments.accuracy_images,
        "accuracy": {way: [round(value, 4) for value in values] for way, values in found.items()},
        "mean": {way: round(value, 4) for way, value in means.items()},
        "std": {way: round(value, 4) for way, value in stds.items()},
        "difference": round(difference, 4),
        "within_one_std_of_habit": abs(difference) <= stds["habit"],
        "within_range_of_habit": min(found["habit"]) <= means["ours"] <= max(found["habit"]),
    }
    print(
        f"{name}, accuracy after 3 epochs of {arguments.accuracy_images} images, {arguments.seeds} seeds: ours "
        f"{means['ours']:.4f} (std {stds['ours']:.4f}), habit {means['habit']:.4f} (std {stds['habit']:.4f}), "
        f"difference {difference:+.4f}: {'within' if result['within_one_std_of_habit'] else 'NOT within'} one std"
    )
    return result


def accuracy_of_ours(case: Case, seed: int) -> float:
    """Return the validation accuracy after the last epoch."""
    session = pipeline.new_session(case.trial, case.prepared, seed=seed, device=case.device)
    train, validation = image_sets.image_sets(case.prepared, "train", case.device)
    *_, last = fit(session, train, validation, until_epoch=3)
    return last["accuracy"]


def accuracy_of_habit(case: Case, seed: int) -> float:
    """Return the validation accuracy of the plain loop after the last epoch, on the same images."""
    torch.manual_seed(seed)
    train = DataLoader(_subset(case, "train", habit_transform(case)), batch_size=BATCH, shuffle=True, num_workers=2)
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(case.prepared.mean, case.prepared.std)])
    validation = DataLoader(_subset(case, "val", plain), batch_size=512, num_workers=2)
    model = networks.build_model(case.trial, case.prepared.shape).to(case.device)
    optimizer = case.optimizer(model)
    criterion = nn.CrossEntropyLoss()
    for _ in range(3):
        model.train()
        for pixels, labels in train:
            loss = criterion(model(pixels.to(case.device)), labels.to(case.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = total = 0
    with torch.no_grad():
        for pixels, labels in validation:
            right += int((model(pixels.to(case.device)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return right / total


def _subset(case: Case, split: Any, transform: Callable[[Image.Image], torch.Tensor]) -> Dataset[Any]:
    """Return the images of our split, read with ImageFolder."""
    images = ImageFolder(case.root, transform)
    # The last two parts of a path are class and file, whether the tree has splits or not.
    number = {"/".join(Path(path).parts[-2:]): index for index, (path, _) in enumerate(images.samples)}
    return Subset(images, [number["/".join(name.split("/")[-2:])] for name in load(case.prepared, split).names])


def plot(cases: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the medians as bars, with whiskers from the slowest round to the fastest."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(cases), figsize=(3.4 * len(cases), 3.6), squeeze=False)
    for panel, case in zip(panels[0], cases, strict=True):
        bars = dict(_bars(case))
        for place, (label, found) in enumerate(bars.items()):
            whiskers = [[found["median"] - found["min"]], [found["max"] - found["median"]]]
            colour = "C0" if label == "ours" else "0.7"
            panel.bar(place, found["median"], yerr=whiskers, capsize=4, color=colour)
        panel.set_xticks(range(len(bars)), list(bars))
        policy = "" if case["policy"] == "none" else f", {case['policy']}"
        panel.set_title(
            f"{case['model']}{policy}\n{case['ours_over_habit']['of_medians']:.2f} x habit, "
            f"{case['ours_over_bare']['of_medians']:.2f} x bare",
            fontsize=10,
        )
    panels[0][0].set_ylabel("images per second, whole machine")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"written: {path}")


def _bars(case: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    rates = case["images_per_second"]
    yield from ((way, rates[way]) for way in ("habit", "each", "ours", "bare"))


if __name__ == "__main__":
    main()
