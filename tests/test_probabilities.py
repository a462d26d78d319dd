"""Probabilities against torch's, for logits of any size."""

from __future__ import annotations

import numpy as np
import torch
from imgcls_search.probabilities import probabilities_of


def test_probabilities_are_those_of_torch_in_double_precision() -> None:
    logits = (np.random.default_rng(0).normal(size=(50, 6)) * 300).astype(np.float32)
    exact = torch.from_numpy(logits).double()
    for several, expected in ((False, exact.softmax(dim=1)), (True, exact.sigmoid())):
        found = probabilities_of(logits, several=several)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-300)
