"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def photos_and_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photographs and with weights of a short training on them."""
    from tests.jobs.test_bundle import cut_photographs, train

    top = tmp_path_factory.mktemp("photos-and-weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        cut_photographs(top / "photos")
        train(top)
    return top
