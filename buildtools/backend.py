"""Build backend: setuptools, and torch's headers for the kernels where they are not to be had yet.

An isolated build sees none of the installed packages, but it knows where they are. Only where torch
is not installed does the build ask for one, the pinned one, for its headers.
"""

from __future__ import annotations

from typing import Any

import native
import setuptools
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that pip looks for)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

# As pyproject.toml asks for; without build isolation nobody else looks.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise RuntimeError(
        f"the build needs setuptools 77 or newer, found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or install without --no-build-isolation"
    )


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + native.requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + native.requirements()
