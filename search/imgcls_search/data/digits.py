"""Handwritten digits that come with scikit-learn: nothing to download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_search.data import fingerprint
from imgcls_search.data.source import Folds, MaxTrain, Source, SplitSeed, Test, Val, assemble, from_arrays


def digits(
    *, val: Val = 0.15, test: Test = 0.2, split_seed: SplitSeed = 0, max_train: MaxTrain = None, folds: Folds = None
) -> Source:
    """Read scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels in gray."""
    table = _table()
    # Levels are 0 to 16.
    pixels = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    classes = tuple(map(str, range(10)))
    return assemble(
        name="digits",
        place="data.digits",
        classes=classes,
        names=[f"digits/{number}" for number in range(len(labels))],
        labels=labels,
        given={"train": np.arange(len(labels))},
        read=from_arrays(pixels),
        make_prints=lambda: fingerprint.of_arrays(classes, (pixels, labels)),
        val=val,
        test=test,
        split_seed=split_seed,
        max_train=max_train,
        folds=folds,
    )


def _table() -> np.ndarray[Any, Any]:
    """Return 64 levels and the class of each scan."""
    found = find_spec("sklearn")
    for folder in found.submodule_search_locations or () if found else ():
        # Importing scikit-learn, with SciPy and pandas, takes two seconds.
        if (file := Path(folder) / "datasets/data/digits.csv.gz").is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
