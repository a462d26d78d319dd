"""Measure how long a report takes with 1,000 and 10,000 trials, and how long class activation maps take.

    python scripts/bench/report.py                  both, a minute or two
    python scripts/bench/report.py --trials 500     the first part with this many trials, and ten times as many

The first part measures the processor time of whole reports without the winner's weights, which is the part that grows
with the trials. The second part measures class activation maps of 24 images for several families, in units of the time
of classifying the same 24 images (passes). Writes report.json.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frame
import simulation
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study.files import StudyFiles
from imgcls_search.views.report import write_report

MOST_TIMES = 12.0
"""Upper bound of the time with ten times as many trials / the time with the trials."""


def main() -> None:
    """Run the benchmark."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="of the smaller study; default: 1,000")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turns; default: 3")
    parser.add_argument("--side", type=int, default=64, help="of the images of the maps, pixels; default: 64")
    options = parser.parse_args()
    with frame.results("report", options.out) as found:
        found |= reports(options.trials, options.rounds)
        found["maps"] = [maps_of(family, options.side, options.rounds) for family in FAMILIES]


def reports(trials: int, rounds: int) -> dict[str, Any]:
    """Write the reports of two studies alternately."""
    with tempfile.TemporaryDirectory() as top:
        folders = {count: filled(Path(top) / str(count), count) for count in (trials, 10 * trials)}
        # Warm up: imports and the search for fonts happen only once.
        write_report(StudyFiles(folders[trials], "s"), Path(top) / "first.html")
        seconds: dict[int, list[float]] = {count: [] for count in folders}
        for _ in range(rounds):
            for count, folder in folders.items():
                files, page = StudyFiles(folder, "s"), folder / "report.html"
                seconds[count].append(_processor_seconds(lambda files=files, page=page: write_report(files, page)))
        sizes = {count: (folder / "report.html").stat().st_size for count, folder in folders.items()}
    few, many = (statistics.median(taken) for taken in seconds.values())
    times = many / few
    print(
        f"{trials:,} trials: {few:.1f} s, {sizes[trials] / 1e6:.1f} MB; {10 * trials:,}: {many:.1f} s, "
        f"{sizes[10 * trials] / 1e6:.1f} MB; {times:.1f} times {frame.verdict(times, at_most=MOST_TIMES)}"
    )
    return {"seconds": {str(count): taken for count, taken in seconds.items()}, "times": times}


FAMILIES = ("resnet", "vit", "efficientnet", "convnext", "densenet")
"""Networks are the first configurations of the shipped spaces."""

MOST_PASSES, IMAGES = 10.0, 24


def maps_of(family: str, side: int, rounds: int) -> dict[str, Any]:
    """Time the class activation maps of some images, in passes: classifications of the same images."""
    import torch
    from imgcls_search.data import InputShape
    from imgcls_search.jobs.class_maps import class_maps
    from imgcls_search.worker import networks

    path = Path(__file__).parents[2] / "spaces" / f"{family}.yaml"
    space = parse(path.read_text(), catalog(), source=family)
    model = networks.build_model(space.first(), InputShape(image_size=side, channels=1, classes=10)).eval()
    images, targets = torch.randn(IMAGES, 1, side, side), [number % 10 for number in range(IMAGES)]

    def classify() -> None:
        with torch.inference_mode():
            model(images)

    classify()
    pairs = [
        (_processor_seconds(lambda: class_maps(model, images, targets)), _processor_seconds(classify))
        for _ in range(3 * rounds)
    ]
    passes = statistics.median(maps for maps, _ in pairs) / statistics.median(one for _, one in pairs)
    print(f"{family}: maps of {IMAGES} images take {passes:.1f} passes {frame.verdict(passes, at_most=MOST_PASSES)}")
    return {"family": family, "passes": passes}


def _processor_seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def filled(folder: Path, trials: int) -> Path:
    """Make a study of complete trials of ten parameters, and return its folder."""
    space = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="bench")
    record = simulation.new_record(folder, space, "s")
    like = simulation.attributes_like_the_record(folder, space)
    made = simulation.make_trials(space, trials)
    for trial in made:
        # The report shows importances only for scores that the settings explain.
        rate = float(trial.candidate.params["optimizer.adamw.lr"])
        trial.epochs = simulation.curve(0.9 - 0.2 * (math.log10(rate) + 3) ** 2)
    simulation.fill(record.rows, record.study, made, like)  # type: ignore[arg-type]
    facts: Any = {"images": {"train": 800, "val": 200}, "classes": ["cat", "dog"], "fingerprint": "0"}
    record.set_fact("data", facts)  # type: ignore[call-overload]
    record.rows.engine.dispose()  # type: ignore[attr-defined]
    return folder


if __name__ == "__main__":
    main()
