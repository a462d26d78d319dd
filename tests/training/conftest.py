"""Digits for the tests of training, prepared as the `TEXT` of the test's module configures them."""

from __future__ import annotations

import pytest
import torch
from imgcls_search.catalog import catalog
from imgcls_search.data import Prepared
from imgcls_search.space import parse
from imgcls_search.training.images import ImageSet
from imgcls_search.worker import image_sets, pipeline


@pytest.fixture(scope="module")
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    config = parse(request.module.TEXT, catalog(), source="test.yaml").config()
    return pipeline.prepare_data(config, tmp_path_factory.mktemp("images"))


@pytest.fixture
def images(digits: Prepared) -> tuple[ImageSet, ImageSet]:
    train, validation = image_sets.image_sets(digits, "train", "cpu")
    assert validation is not None
    return train, validation
