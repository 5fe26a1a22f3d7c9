"""Shared fixtures."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.helpers.known_networks import noise
from tests.helpers.small_runs import save_untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained network, as training writes it."""
    return save_untrained(tmp_path_factory.mktemp("runs") / "first", seed=0)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(60, 80, 3)).save(path)
    return path
