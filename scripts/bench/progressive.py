"""Compare `training.resolution: progressive` with `full` for equal processor time, by accuracy on test images.

Both train the same network on the same images with the same seeds, on one thread. Each trains for as many epochs as fit
into the seconds, evaluations included, and its whole schedule spans these epochs.

python scripts/bench/progressive.py --images cifar10-images --val 0.02                   about 25 minutes on one core
python scripts/bench/progressive.py --images photos --size 64 --train 2000 --flip        photographs in one tree
python scripts/bench/progressive.py --seeds 2 --seconds 2 --train 100                    digits: only a test run

Writes progressive.json after each training; the same command resumes.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import frame
from equal_seconds import Arm, Bench, compare, show
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.space import parse
from imgcls_search.training.resolution import progressive


def main() -> None:
    """Compare, print and write."""
    arguments = _arguments()
    sizes = progressive(start=arguments.start, until=arguments.until)

    def stages(epochs: int) -> list[int]:
        return [hash(sizes.size(arguments.size, epoch, epochs)) for epoch in range(epochs)]

    config = partial(_config, arguments)
    arms = [
        Arm(name="full", config=partial(config, "full")),
        Arm(
            name="progressive",
            config=partial(config, f"{{progressive: {{start: {arguments.start}, until: {arguments.until}}}}}"),
            stages=stages,
        ),
    ]
    # The path of the images is private and does not affect the results.
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("images", "out", "name", "seeds")
    }
    with frame.results(arguments.name, arguments.out) as results, tempfile.TemporaryDirectory() as cache:
        results["settings"] = settings
        bench = Bench(Path(cache), arguments.seconds, arguments.rounds)
        results |= compare(arguments.out / f"{arguments.name}.part.json", bench, arms, arguments.seeds, settings)
        show(arguments.name, results["arms"])


def _config(arguments: argparse.Namespace, resolution: str, epochs: int) -> TrialConfig:
    data = f"folder: {{root: {arguments.images}, max_train: {arguments.train}, val: {arguments.val}}}"
    if arguments.images is None:
        data = f"digits: {{max_train: {arguments.train}}}"
    text = f"""
        data: {{{data}}}
        image: {{size: {arguments.size if arguments.images else 8}}}
        augment: {{flip: {"horizontal" if arguments.images else "none"}, crop_padding: {arguments.size // 8}}}
        model: {{resnet: {{depths: [1, 1, 1], width: {arguments.width}}}}}
        optimizer: {{sgd: {{lr: {arguments.lr}, nesterov: true}}}}
        schedule: {{cosine: {{warmup_epochs: 1}}}}
        training: {{epochs: {epochs}, batch_size: {arguments.batch_size}, device: cpu, resolution: {resolution}}}
    """
    return parse(text, catalog(), source=__file__).config()


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, help="a tree of images, with train/ and test/ or without; default: digits"
    )
    parser.add_argument("--name", default="progressive", help="of the file that is written; default: progressive")
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each; default: 10")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, of each training; default: 60")
    parser.add_argument("--rounds", type=int, default=5, help="timings of an epoch before all trainings; default: 5")
    parser.add_argument("--train", type=int, default=5000, help="training images; default: 5000")
    parser.add_argument("--val", type=float, default=0.15, help="share held out for validation; default: 0.15")
    parser.add_argument("--size", type=int, default=32, help="of the images; default: 32")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-8; default: 16")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step; default: 64")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate at its peak; default: 0.1")
    parser.add_argument("--start", type=float, default=0.5, help="first side / full side; default: 0.5")
    parser.add_argument("--until", type=float, default=0.7, help="share of the epochs that grow; default: 0.7")
    return parser.parse_args()


if __name__ == "__main__":
    main()
