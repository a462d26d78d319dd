"""Tests of `imgcls_search.executors.packing`; what a GPU says of itself is in `test_gpu`."""

from __future__ import annotations

import pytest
from imgcls_search.errors import DeviceError
from imgcls_search.executors.packing import PROCESS_BYTES, advise, free_memory


def test_workers_that_share_nothing_ask_nothing() -> None:
    assert free_memory(["cpu", "cpu"]) == {}
    assert free_memory(["cuda:0", "cuda:1"]) == {}
    assert advise(["cuda:0"], {}, []) == []


def test_shares_and_needs_are_told() -> None:
    (line,) = advise(["cuda:0"] * 4, {"cuda:0": 40e9 + 4 * PROCESS_BYTES}, [0.5e9, 10e9])
    assert "4 workers share" in line
    assert "10.0 GB each" in line
    assert "0.5 to 10 GB (2 drawn)" in line
    assert "may not fit" not in line


def test_too_many_workers_are_said_with_the_number_that_fits() -> None:
    free = {"cuda:0": 40e9}
    (line,) = advise(["cuda:0"] * 8, free, [0.5e9, 10e9, 12e9])
    assert "2 of them may not fit, --workers 3 holds them all" in line
    (line,) = advise(["cuda:0"] * 3, free, [0.5e9, 10e9, 12e9])
    assert "may not fit" not in line


def test_workers_among_which_nothing_fits_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"study.workers: cuda:1: 8 workers share 8.0 GB.*allowed: 3$"):
        advise(["cuda:1"] * 8, {"cuda:1": 8e9}, [2e9, 3e9])
