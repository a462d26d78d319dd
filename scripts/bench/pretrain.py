"""Measure the benefit of pretraining without labels: probes with few labels of random, SimCLR and imitation networks.

    python scripts/bench/pretrain.py --images cifar10-images                 an hour or more on one core
    python scripts/bench/pretrain.py --images digits --size 8 --unlabeled 500 --labels 50 --epochs simclr=2,imitate=2
    python scripts/bench/pretrain.py --images cifar10-images --epochs simclr=100 --size 32 --finetune
    python scripts/bench/pretrain.py --images photos --size 48 --labels 250 --finetune --teacher

`--images` is a folder of classes, or `digits`. A network is pretrained on `--unlabeled` images by each way of
`--epochs`, then a linear layer is fitted to its features of a few labelled training images, drawn by three label seeds,
and scored on the validation images. With `--finetune` the whole network is also trained on the same labels, from
scratch and from each pretraining; with `--teacher`, the network that is imitated is probed, too. `throughput` compares
the pretraining loop with a bare loop over two ready views of each image, alternating. Run the same command again to
resume. Writes pretrain.json after each step.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import frame
import numpy as np
import torch
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.data import Prepared, Split, load
from imgcls_search.executors.helper import Helper
from imgcls_search.orchestrator import teachers
from imgcls_search.protocol import EpochEnded, Failed, Job, Notice
from imgcls_search.space import parse
from imgcls_search.training import checkpoint
from imgcls_search.training.images import ImageSet
from imgcls_search.training.learner import without_head
from imgcls_search.training.loop import fit, train_epoch
from imgcls_search.training.probe import fit_linear
from imgcls_search.training.session import Session
from imgcls_search.worker import features, image_sets, networks, pipeline, pretraining
from imgcls_search.worker.job_runner import JobRunner

GAIN, IMITATED, SPEED = 0.08, 0.45, 0.9
"""Lower bounds: SimCLR's probe minus a random network's; imitation's probe with the fewest labels; our speed / bare."""

LABEL_SEEDS = (0, 1, 2)
FINETUNED_EPOCHS = 60
Way = str


def main() -> None:
    """Pretrain, probe, train on the labels, and measure the speed."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--images", required=True, help="a folder of classes, or digits")
    parser.add_argument("--size", type=int, default=16, help="pixels; default: 16")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-8; default: 16")
    parser.add_argument("--unlabeled", type=int, default=10_000, help="training images; default: 10,000")
    parser.add_argument("--labels", type=int, nargs="+", default=[250, 500, 1_000])
    parser.add_argument("--epochs", default="simclr=19,imitate=20", help="of each way; default: simclr=19,imitate=20")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="below pretrain; repeatable")
    parser.add_argument("--finetune", action="store_true", help="train the whole network on the labels too")
    parser.add_argument("--teacher", action="store_true", help="also probe the network that is imitated")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round of the throughput; 0: none; default: 4")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:0; default: cpu")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.teacher and "imitate=" not in given.epochs:
        parser.error("--teacher: needs imitate=N in --epochs")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    with frame.results("pretrain", given.out) as results:
        settings = {name: value for name, value in vars(given).items() if name != "out"}
        results["asked"] = {**settings, "images": Path(given.images).name}
        asked = (part.partition("=") for part in given.epochs.split(","))
        ways: dict[Way, int] = {way: int(count) for way, _, count in asked}
        configs = {way: config_of(given, way, count) for way, count in ways.items()}
        data = pipeline.prepare_data(config_of(given, "none", 1), given.out / ".images")
        made: dict[Way, Path | None] = {"random": None}
        for way, config in configs.items():
            made[way], results[f"pretrained by {way}"] = pretrained(way, config, data, given)
            frame.write(results, given.out, "pretrain")
        plain = config_of(given, "none", 1)
        results["probes"] = {way: probes(own(plain, file, data, given), given) for way, file in made.items()}
        if given.teacher:
            teacher = teacher_of(configs["imitate"], plain)
            seen = pipeline.prepare_data(teacher, given.out / ".images")
            results["probes"]["teacher"] = probes(features.frozen_network(teacher, seen, given.device), given)
        frame.write(results, given.out, "pretrain")
        judge(results["probes"])
        if given.finetune:
            results["trained"] = {}
            for way, file in made.items():
                results["trained"][way] = trained(way, file, data, given)
                frame.write(results, given.out, "pretrain")
        if given.seconds and "simclr" in configs:
            results["throughput"] = throughput(configs["simclr"], data, given)


def config_of(given: argparse.Namespace, way: Way, epochs: int) -> TrialConfig:
    """Return the configuration of a pretraining, or of a training from scratch."""
    data = (
        {"digits": {"max_train": given.unlabeled}}
        if given.images == "digits"
        else {"folder": {"root": str(given.images), "max_train": given.unlabeled}}
    )
    text = (
        f"data: {data}\nimage: {{size: {given.size}}}\nmodel: {{resnet: {{depths: [1, 1, 1], width: {given.width}}}}}\n"
        "training: {compile: false}\n"
    )
    images = Path(given.images) / "train"
    folder = {"root": str(images if images.is_dir() else given.images), "max": given.unlabeled}
    many = "train" if given.images == "digits" else str({"folder": folder})
    changes = [tuple(change.split("=", 1)) for change in given.set if change.startswith(f"{way}.")]
    overrides = [(f"pretrain.{path}", value) for path, value in changes]
    if way != "none":
        overrides = [("pretrain", f"{{{way}: {{epochs: {epochs}}}}}"), ("unlabeled", many), *overrides]
    found = parse(text, catalog(), source="pretrain", overrides=overrides).config()
    tree = found.to_dict()
    channels = 1 if given.images == "digits" else 3
    return TrialConfig.from_dict({**tree, "image": {**tree["image"], "channels": channels}})


def pretrained(way: Way, config: TrialConfig, data: Prepared, given: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Return the weights file of a pretraining, and the metrics of its epochs."""
    alone, out = config.pretraining(), given.out
    named = alone.digest()
    helper = Helper(out)
    try:
        taught = teachers.settle_one(alone, out, None, None, data, helper)
    finally:
        helper.close()
    job = Job(
        trial=0,
        config=alone,
        data=data.to_dict(),
        seed=0,
        portion="train",
        until_epoch=alone.epochs,
        from_epoch=0,
        checkpoint=str(out / f"{way}-{named}.part"),
        log=str(out / f"{way}.log"),
        artifact=str(out / f"{way}-{named}.pt"),
        teacher=taught[0] if taught is not None else None,
    )
    history: list[Mapping[str, float]] = []
    for event in JobRunner(given.device).work(job, threading.Event()):
        if isinstance(event, Failed):
            raise SystemExit(f"{way}: {event.reason}")
        if isinstance(event, Notice):
            print(event.text, flush=True)
        if isinstance(event, EpochEnded):
            history.append(event.metrics)
    history = checkpoint.load(Path(job.checkpoint))["history"]
    seconds = sum(epoch["seconds"] for epoch in history)
    print(f"{way}: {len(history)} epochs in {seconds:.0f} s", flush=True)
    return Path(job.artifact), {"seconds": round(seconds, 1), "history": [dict(epoch) for epoch in history]}


def teacher_of(config: TrialConfig, plain: TrialConfig) -> TrialConfig:
    """Return the configuration of the network that a pretraining imitates, at the image size that it sees."""
    tree, asked = plain.to_dict(), config.to_dict()["pretrain"]["imitate"]
    return TrialConfig.from_dict({**tree, "model": asked["teacher"], "image": {**tree["image"], "size": asked["size"]}})


def own(config: TrialConfig, file: Path | None, data: Prepared, given: argparse.Namespace) -> features.FrozenNetwork:
    """Return a network without its head, with random weights or those of a file."""
    torch.manual_seed(0)
    network = without_head(networks.build_own_model(config, data.shape), "model").eval()
    if file is not None:
        network.load_state_dict(checkpoint.load(file)["model"], strict=True)
    return features.FrozenNetwork(network=network.to(given.device), data=data, digest="", device=given.device)


def probes(seen: features.FrozenNetwork, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the accuracy of linear layers on a network's features, by the number of labels."""
    data, made = seen.data, {}
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        images = image_sets.on_device(load(data, split), data, given.device)
        made[split] = features.compute(seen, images), np.asarray(load(data, split).labels)
    found = {}
    for count in given.labels:
        scores = [probed(made, count, seed, len(data.classes)) for seed in LABEL_SEEDS]
        found[str(count)] = summarised(scores)
    return found


def probed(made: Mapping[str, tuple[Any, Any]], count: int, seed: int, classes: int) -> float:
    """Return the accuracy of one linear layer on the validation images."""
    (known, labels), (asked, wanted) = made["train"], made["val"]
    places = drawn(labels, count, seed)
    head = fit_linear(known[places], labels[places], classes, seed)
    return float((head.logits(asked).argmax(axis=1) == wanted).mean())


def drawn(labels: Any, count: int, seed: int) -> Any:
    """Return the positions of `count` labelled images, drawn as evenly over the classes as possible."""
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        ranks[mine] = np.arange(len(mine))
    return order[np.argsort(ranks[order], kind="stable")][:count]


def trained(way: Way, file: Path | None, data: Prepared, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the accuracy of the whole network trained on the labels, from pretrained weights or from scratch."""
    config = config_of(given, "none", 1)
    tree = config.to_dict()
    tree["training"] |= {"epochs": FINETUNED_EPOCHS, "batch_size": 64}
    tree["augment"] |= {"flip": "horizontal" if given.images != "digits" else "none", "crop_padding": 2}
    config = TrialConfig.from_dict(tree)
    config = config if file is None else config.starting_from(str(file))
    found = {}
    for count in given.labels:
        scores = []
        for seed in LABEL_SEEDS:
            train, validation = image_sets.image_sets(data, "train", given.device)
            few = some(train, drawn(array(train.labels), count, seed))
            session = pipeline.new_session(config, data, seed=seed, device=given.device)
            *_, last = fit(session, few, validation, until_epoch=FINETUNED_EPOCHS)
            scores.append(last["accuracy"])
        found[str(count)] = summarised(scores)
        print(f"trained from {way} with {count} labels: {found[str(count)]['mean']:.3f}", flush=True)
    return found


def summarised(scores: Sequence[float]) -> dict[str, Any]:
    """Return the mean and the deviation over label seeds."""
    return {"mean": round(mean(scores), 4), "std": round(stdev(scores), 4), "scores": [round(s, 4) for s in scores]}


def judge(found: Mapping[Way, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print the probes with their bounds."""
    for way, by_labels in found.items():
        shown = ", ".join(f"{count}: {each['mean']:.3f} ± {each['std']:.3f}" for count, each in by_labels.items())
        print(f"probe of {way}: {shown}")
    if "simclr" in found:
        gain = min(found["simclr"][count]["mean"] - found["random"][count]["mean"] for count in found["random"])
        print(f"SimCLR over random, least: {gain:+.3f} ({frame.verdict(gain, at_least=GAIN)})")
    if "imitate" in found:
        first = next(iter(found["imitate"].values()))["mean"]
        print(f"imitation with the fewest labels: {first:.3f} ({frame.verdict(first, at_least=IMITATED)})")


def throughput(config: TrialConfig, data: Prepared, given: argparse.Namespace) -> dict[str, Any]:
    """Return images per second of the pretraining loop and of a bare one, and the ratio of each round."""
    job = Job(
        trial=0, config=config.pretraining(), data=data.to_dict(), seed=0, portion="train", until_epoch=1, from_epoch=0,
        checkpoint="", log="",
    )  # fmt: skip
    *_, shown = exhausted(pretraining.preparing(job, data, given.device, threading.Event(), lambda: None))
    ours, other = (pretraining.new_session(job, data, shown.images, given.device) for _ in range(2))
    bare = Bare(other, shown.images)
    # An epoch has only a part of the images, so that a round can be as short as requested.
    few = some(shown.images, np.arange(bare.count))
    loops: dict[str, Callable[[], Any]] = {"ours": lambda: train_epoch(ours, few, lambda: False), "bare": bare.epoch}
    rounds: list[dict[str, float]] = []
    for number in range(given.rounds + 1):
        speeds = {name: speed(loop, bare.count, given.seconds) for name, loop in loops.items()}
        # The first one warms up.
        rounds += [speeds] if number else []
    ratios = [each["ours"] / each["bare"] for each in rounds]
    found = {name: frame.spread([each[name] for each in rounds], 1) for name in loops}
    ratio = frame.spread(ratios)
    medians = ", ".join(f"{name} {each['median']:.0f}" for name, each in found.items())
    rule = frame.verdict(ratio["median"], at_least=SPEED)
    print(f"images per second: {medians}; ratio {ratio['median']}, {ratio['min']} to {ratio['max']} ({rule})")
    return {**found, "ratio": ratio}


def some(images: ImageSet, places: Any) -> ImageSet:
    """Return some of the images, on the same device."""
    pixels, labels = torch.from_numpy(array(images.pixels)[places]), torch.from_numpy(array(images.labels)[places])
    return dataclasses.replace(images, pixels=pixels.to(images.device), labels=labels.to(images.device))


def array(values: Any) -> Any:
    """Return a tensor, or an array that is read when indexed, as a NumPy array."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.array(values[np.arange(len(values))])


def exhausted(steps: Any) -> list[Any]:
    """Return all values that a generator yields, followed by its return value."""
    last = []

    def whole() -> Any:
        last.append((yield from steps))

    return [*whole(), *last]


def speed(loop: Callable[[], Any], images: int, seconds: float) -> float:
    """Return images per second of a loop that processes `images` images per call."""
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or not calls:
        loop()
        calls += 1
    return images * calls / (time.perf_counter() - started)


class Bare:
    """A loop over two ready views of each image: forward, loss, backward, step, and nothing else."""

    def __init__(self, session: Session, images: ImageSet) -> None:
        self.session = session
        size = session.recipe.batch_size
        self.count = 4 * size
        pixels = some(images, np.arange(self.count)).pixels
        assert isinstance(pixels, torch.Tensor)  # noqa: S101 - for the type checker
        self.batches = [
            torch.cat([images.normalise(session.augment(part)) for _ in range(2)]) for part in pixels.split(size)
        ]

    def epoch(self) -> None:
        """Train on each batch once."""
        model, optimizer = self.session.model.train(), self.session.optimizer
        for inputs in self.batches:
            optimizer.zero_grad(set_to_none=True)
            loss = self.session.loss(model(inputs), inputs)
            loss.backward()
            optimizer.step()
        # Reading a number waits until the GPU is done.
        float(loss.detach())


if __name__ == "__main__":
    main()
