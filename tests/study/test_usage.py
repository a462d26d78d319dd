"""The cost of a study in words."""

from __future__ import annotations

import pytest
from imgcls_search.study.usage import summarise_usage, usage_lines


def test_shares_in_words() -> None:
    found = summarise_usage(
        {
            "devices": {"cuda:1": 60.0, "cuda:0": 3600.0},
            "workers": {"training": 80.0, "draw": 15.0, "start": 5.0, "odd": 0.1},
        }
    )
    assert usage_lines(found, "a GPU") == [
        "devices in use: cuda:0 1 h, cuda:1 1 min (a GPU)",
        "workers waited 20% of their time: no configuration ready 15%, start of a trial 5%",
    ]
    assert summarise_usage(None) is None
    assert summarise_usage({"devices": {}, "workers": {}}) is None
    assert usage_lines(None) == []


def test_reasons_are_told_the_largest_first_and_from_half_a_percent_on() -> None:
    workers = {"pretraining": 50.0, "training": 41.0, "start": 0.5, "idle": 8.01, "network": 0.49}
    found = summarise_usage({"devices": {}, "workers": workers})
    assert found is not None
    assert found["waiting"] == pytest.approx(0.09)
    assert list(found["waiting_for"]) == ["idle", "start", "network"]
    assert usage_lines(found) == ["workers waited 9% of their time: no trial left to start 8%, start of a trial 0%"]
    busy = summarise_usage({"devices": {"cpu": 2.0}, "workers": {"training": 2.0}})
    assert usage_lines(busy) == ["devices in use: cpu 2 s", "workers waited 0% of their time"]
