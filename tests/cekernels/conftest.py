from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.helpers.ptx.cuda import Build


@pytest.fixture(scope="session")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """csrc/cuda as compiled by nvcc; skips without nvcc, or fails where CI requires it."""
    from tests.helpers.ptx.cuda import build

    return build(tmp_path_factory.mktemp("cuda_build"))
