"""Build backend of ``context-encoder``: setuptools, plus ``cekernels`` in an editable installation.

The kernels are compiled against torch's headers. An isolated build cannot import the installed
packages, but it can find their folder; only if torch is not installed does the build request one,
the version pinned in constraints.txt.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import native
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (the hooks that pip calls)
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel,
)


@contextmanager
def _editable() -> Iterator[None]:
    commands.editable = True
    try:
        yield
    finally:
        commands.editable = False


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    with _editable():
        required = build_meta.get_requires_for_build_editable(config_settings)
    return required + (native.requirements() if commands.KERNELS_ARE_HERE else [])


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Any = None
) -> str:
    with _editable():
        return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    if commands.KERNELS_ARE_HERE:
        _refuse_second_kernels()
    with _editable():
        name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    if commands.KERNELS_ARE_HERE:
        _add_kernels_metadata(Path(wheel_directory) / name)
    return name


def _refuse_second_kernels() -> None:
    """Raise RuntimeError if a wheel of ``cekernels`` is installed: it would hide this folder."""
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if list(Path(folder).glob("cekernels-*.dist-info")):
            raise RuntimeError(
                f"a wheel of cekernels is installed in {folder} and would hide the sources in "
                f"{native.ROOT}; pip uninstall cekernels first"
            )


def _add_kernels_metadata(wheel: Path) -> None:
    """Let pip and importlib.metadata find ``cekernels`` in an editable installation.

    A wheel can hold only one .dist-info folder, so the metadata are added as an .egg-info folder.
    """
    sys.path.insert(0, str(native.ROOT / "buildtools/cekernels-dist"))
    import cekernels_backend

    with tempfile.TemporaryDirectory() as folder:
        info = cekernels_backend.prepare_metadata_for_build_wheel(folder)
        metadata = (Path(folder) / info / "METADATA").read_bytes()
    added = {
        f"cekernels-{commands.version()}.egg-info/PKG-INFO": metadata,
        f"cekernels-{commands.version()}.egg-info/top_level.txt": b"cekernels\n",
    }
    with zipfile.ZipFile(wheel) as old:
        content = {entry.filename: old.read(entry) for entry in old.infolist()}
    record = next(name for name in content if name.endswith(".dist-info/RECORD"))
    for name, data in added.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        content[record] += f"{name},sha256={digest},{len(data)}\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in {**added, **content}.items():
            new.writestr(name, data)
