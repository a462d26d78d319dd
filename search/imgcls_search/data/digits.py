"""Handwritten digits that come with scikit-learn: nothing to download."""

from __future__ import annotations

import numpy as np

from imgcls_search.data import fingerprint
from imgcls_search.data.source import Folds, MaxTrain, Source, SplitSeed, Test, Val, assemble, from_arrays


def digits(
    *, val: Val = 0.15, test: Test = 0.2, split_seed: SplitSeed = 0, max_train: MaxTrain = None, folds: Folds = None
) -> Source:
    """Read scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels in gray."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels, 0 to 16.
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
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
