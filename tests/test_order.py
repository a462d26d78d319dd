"""Long tests begin early on every worker."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.order import SECONDS, longest_first

ROOT = Path(__file__).parent.parent


def file_of(test: str) -> str:
    return test.partition("::")[0]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_every_worker_begins_with_long_files_and_no_test_is_lost(workers: int) -> None:
    files = sorted([*SECONDS, *(f"tests/test_{letter}.py" for letter in "abcdefghijklmnopqrstuvwxyz")])
    tests = [f"{file}::test_{number}" for file in files for number in range(12)]
    ordered = longest_first(tests, workers, file_of)
    assert sorted(ordered) == sorted(tests)
    first = sorted(SECONDS, key=lambda file: (-SECONDS[file], file))[:workers]
    starts = [worker * len(tests) // workers for worker in range(workers + 1)]
    assert [file_of(ordered[start]) for start in starts[:-1]] == first
    # What is set up once for a file is not set up again.
    order = [file_of(test) for test in ordered if file_of(test) in SECONDS]
    assert all(order[order.index(file) :][:12] == [file] * 12 for file in SECONDS)
    # The parts are of one length, as they are handed out.
    for start, end in pairwise(starts):
        kinds = [file_of(test) in SECONDS for test in ordered[start:end]]
        assert kinds == sorted(kinds, reverse=True)


def test_files_that_take_long_are_there() -> None:
    assert [file for file in SECONDS if not (ROOT / file).is_file()] == []
