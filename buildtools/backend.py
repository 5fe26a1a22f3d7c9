"""Build backend: setuptools, plus a build requirement on torch where torch is not installed.

The kernels are compiled against torch's headers. An isolated build cannot import the installed
packages, but it can find their folder; only if torch is not installed does the build request one,
the version pinned in constraints.txt.
"""

from __future__ import annotations

from typing import Any

import native
import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that pip calls)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# The minimum of pyproject.toml, which pip does not check without build isolation.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise RuntimeError(
        f"the build needs setuptools 77 or newer, found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or install without --no-build-isolation"
    )


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + native.requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + native.requirements()
