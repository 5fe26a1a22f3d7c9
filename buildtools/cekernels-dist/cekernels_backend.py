"""Build backend of ``cekernels``, whose sources are at the root of the repository.

In the repository every hook builds in a temporary folder with the layout of an sdist: the files of
this folder, the sources, and the version filled in. An unpacked sdist is built in place.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
_IN_SDIST = (HERE / "cekernels").is_dir()
ROOT = HERE if _IN_SDIST else HERE.parents[1]
if not (ROOT / "cekernels").is_dir():
    raise RuntimeError(
        f"the sources of cekernels are not in {ROOT}; build from a clone of the whole repository "
        "or from an sdist"
    )
sys.path.insert(0, str(ROOT / "buildtools"))
import commands  # noqa: E402
import native  # noqa: E402
from setuptools import build_meta  # noqa: E402

SOURCES = ("buildtools", "cekernels", "csrc", "constraints.txt", "LICENSE", "NOTICE")


def lay_out(folder: Path) -> None:
    """Copy the contents of an sdist into ``folder``."""
    ignored = shutil.ignore_patterns("*.so", native.RECORD, "__pycache__", HERE.name)
    shutil.copytree(HERE, folder, ignore=ignored, dirs_exist_ok=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder)
    project = (folder / "pyproject.toml").read_text()
    version = f'version = "{commands.version()}"'
    (folder / "pyproject.toml").write_text(project.replace('dynamic = ["version"]', version))


@contextmanager
def _sdist() -> Iterator[None]:
    """Run in an unpacked sdist, or change into a temporary folder with its layout."""
    if _IN_SDIST:
        yield
        return
    previous = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(previous)


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    with _sdist():
        return build_meta.get_requires_for_build_sdist(config_settings)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    target = Path(sdist_directory).absolute()
    with _sdist():
        return build_meta.build_sdist(str(target), config_settings)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    with _sdist():
        return build_meta.get_requires_for_build_wheel(config_settings) + native.requirements()


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    target = Path(metadata_directory).absolute()
    with _sdist():
        return build_meta.prepare_metadata_for_build_wheel(str(target), config_settings)


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    target = Path(wheel_directory).absolute()
    metadata = None if metadata_directory is None else str(Path(metadata_directory).absolute())
    with _sdist():
        return build_meta.build_wheel(str(target), config_settings, metadata)


def build_editable(*arguments: Any, **settings: Any) -> NoReturn:
    raise RuntimeError(
        "cekernels has no editable installation of its own: pip install -e . at the root of the "
        "repository installs cekernels and context_encoder; add --no-deps to leave out the "
        "dependencies of the latter"
    )
