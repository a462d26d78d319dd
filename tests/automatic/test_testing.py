"""What a score is compared with where nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from imgcls_search.automatic.testing import largest_class
from imgcls_search.config import Component
from imgcls_search.data import describe


@pytest.mark.parametrize("args", [{"max_train": 100}, {"max_train": 100, "folds": 5}], ids=["split", "folds"])
def test_largest_class_is_scored_on_all_images_that_scores_are_from(args: dict[str, int], tmp_path: Path) -> None:
    component = Component(path="data.digits", name="digits", args=args)
    source = describe(component, tmp_path)
    scored = np.concatenate(source.fold_labels())
    assert ("folds" in args) == (len(scored) > len(source.labels["val"]))
    known = scored if "folds" in args else source.labels["train"]
    largest = int(np.bincount(known, minlength=10).argmax())
    found = largest_class(component, tmp_path, "accuracy", "val")
    assert (found.name, found.images) == (source.classes[largest], len(scored))
    assert found.scores == {"accuracy": pytest.approx((scored == largest).mean())}
    tested = largest_class(component, tmp_path, "accuracy", "test")
    assert tested.images == len(source.labels["test"])
    assert tested.name == found.name
