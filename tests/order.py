"""Order of the tests: those that take minutes start early, so that no worker is still busy with one at the end.

pytest-xdist gives each worker a part of the list, all of equal length; a worker that has finished takes tests from the
end of another worker's part. In alphabetical order, a test that takes minutes could be the last one of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import TypeVar

Item = TypeVar("Item")

SECONDS = {
    "tests/automatic/test_auto.py": 200,
    "tests/docs/test_pages.py": 120,
    "tests/test_benchmarks.py": 130,
    "tests/executors/test_ray.py": 120,
    "tests/test_chaos.py": 110,
    "tests/study/test_damage.py": 80,
    "tests/orchestrator/test_run.py": 80,
    "tests/orchestrator/test_compressed_run.py": 70,
    "tests/views/test_pages.py": 70,
    "tests/cli/test_working_folder.py": 60,
    "tests/executors/test_groups.py": 60,
    "tests/cli/test_surroundings.py": 50,
    "tests/models/test_cost.py": 50,
    "tests/test_spaces.py": 50,
    "tests/cli/test_wheel.py": 40,
}
"""Files with slow tests, and about how many seconds they take; tests of other files are short."""


def longest_first(items: Sequence[Item], workers: int, file_of: Callable[[Item], str]) -> list[Item]:
    """Return the tests in an order in which each worker's part begins with slow files; a file's tests stay together."""
    long: dict[str, list[Item]] = {}
    for item in items:
        if file_of(item) in SECONDS:
            long.setdefault(file_of(item), []).append(item)
    parts: list[list[Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for file in sorted(long, key=lambda file: (-SECONDS[file], file)):
        least = seconds.index(min(seconds))
        parts[least] += long[file]
        seconds[least] += SECONDS[file]
    others = iter([item for item in items if file_of(item) not in SECONDS])
    left = len(items)
    for place, part in enumerate(parts):
        # The number of tests that pytest-xdist gives this worker.
        size = left // (workers - place)
        left -= size
        part += islice(others, max(0, size - len(part)))
    return [*chain(*parts), *others]
