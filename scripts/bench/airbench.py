"""Compare the start configuration of `spaces/airbench.yaml` with the ResNets of `spaces/cifar10.yaml`, by test accuracy
for equal processor time.

All train on the same images with the same seeds, on one thread. Each trains for as many epochs as fit into the seconds,
evaluations included, and its whole schedule spans these epochs. airbench flips images alternately, the ResNets at
random; all shift them.

python scripts/bench/airbench.py --images cifar10-images                       about 40 minutes on one core
python scripts/bench/airbench.py --images cifar10-images --starts 1 --seeds 5 --set optimizer.scaled_sgd.lr=2
python scripts/bench/airbench.py --seeds 2 --seconds 1 --train 100             digits: only a test run

Writes airbench.json after each training; the same command resumes.
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
from imgcls_search.space import read_space
from imgcls_search.strategy.draws import draw_start
from imgcls_search.strategy.view import View

SPACES = Path(__file__).resolve().parents[2] / "spaces"

OF_AIRBENCH = (("augment.flip", "alternating"), ("augment.crop_padding", "2"))
"""Settings for photographs that its start configuration does not have."""


def main() -> None:
    """Compare, print and write."""
    arguments = _arguments()
    changes = [(path, value) for path, _, value in (change.partition("=") for change in arguments.set)]
    arms = [Arm(name=f"resnet-{n}", config=partial(_config, arguments, "cifar10", n, ())) for n in arguments.starts]
    arms.append(Arm(name="airbench", config=partial(_config, arguments, "airbench", 0, changes)))
    # The path of the images is private and does not affect the results.
    settings = {name: value for name, value in vars(arguments).items() if name not in ("images", "out", "seeds")}
    with frame.results("airbench", arguments.out) as results, tempfile.TemporaryDirectory() as cache:
        bench = Bench(Path(cache), arguments.seconds, arguments.rounds)
        results |= compare(arguments.out / "airbench.part.json", bench, arms, arguments.seeds, settings)
        show("airbench", results["arms"])


def _config(
    arguments: argparse.Namespace, name: str, start: int, changes: tuple[tuple[str, str], ...], epochs: int
) -> TrialConfig:
    """Return a start configuration of a shipped space, for other images."""
    on_photos = arguments.images is not None
    own = (*(OF_AIRBENCH if name == "airbench" and on_photos else ()), *changes)
    given = [
        *(("training.epochs", str(epochs)), ("training.device", "cpu")),
        (f"data.{'folder' if on_photos else 'digits'}.max_train", str(arguments.train)),
        *own,
    ]
    if on_photos:
        given.append(("data.folder.val", str(arguments.val)))
    data = f"folder:{arguments.images}" if on_photos else "digits"
    file = SPACES / f"{name}.yaml"
    fixed = {path for path, _ in own}
    starts = [dict(told) for told in read_space(file, catalog()).start]
    # A start configuration must not contain settings that are fixed.
    told = {path: value for path, value in starts[start].items() if path not in fixed}
    space = read_space(file, catalog(), overrides=[*given, ("start", "[]")], data=data)
    return draw_start(View(space, [], [], 0), told, 0).config


def _arguments() -> argparse.Namespace:
    parser = frame.make_parser(__doc__)
    parser.add_argument(
        "--images", type=Path, help="CIFAR-10 as a tree of images, with train/ and test/; default: digits"
    )
    parser.add_argument("--starts", type=int, nargs="+", default=[1, 0], help="of spaces/cifar10.yaml; default: 1 0")
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each; default: 10")
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, of each training; default: 60")
    parser.add_argument("--rounds", type=int, default=5, help="timings of an epoch before all trainings; default: 5")
    parser.add_argument("--train", type=int, default=5000, help="training images; default: 5000")
    parser.add_argument("--val", type=float, default=0.02, help="share held out for validation; default: 0.02")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="a change of airbench's configuration"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
