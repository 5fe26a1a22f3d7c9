"""Build code shared by the two distributions: version and setuptools commands."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import native
import setuptools
from setuptools import Command, Distribution
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

# The minimum of the pyproject.toml files, which pip does not check without build isolation.
if int(setuptools.__version__.partition(".")[0]) < 77:
    raise RuntimeError(
        f"the build needs setuptools 77 or newer, found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or install without --no-build-isolation"
    )

# True while building an editable installation; set by buildtools/backend.py.
editable = False
# False in an sdist of context-encoder, which does not contain the kernels.
KERNELS_ARE_HERE = (native.ROOT / "cekernels").is_dir()


def version() -> str:
    """The version of both distributions, from pyproject.toml at the root of the repository."""
    text = (native.ROOT / "pyproject.toml").read_text()
    (found,) = re.findall(r'^version = "([^"]+)"$', text, re.MULTILINE)
    return str(found)


class Build(build):
    """Build in a temporary folder: setuptools would also package old files of build/."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="build-")
        weakref.finalize(self, shutil.rmtree, self.build_base, ignore_errors=True)


class BuildWithKernels(Build):
    sub_commands = [*build.sub_commands, ("build_kernels", None)]  # noqa: RUF012


class BuildKernels(Command):
    """Build the kernels into the package folder: for an editable install, the source tree's."""

    description = "compile the kernel libraries"
    user_options: list = []  # noqa: RUF012
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        root = native.ROOT if self.editable_mode else Path(self.build_lib)
        native.build(root / "cekernels")

    def get_source_files(self) -> list[str]:
        sources = [p for p in native.CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
        return [str(p.relative_to(native.ROOT)) for p in sources]

    def get_outputs(self) -> list[str]:
        built = [f"{library.name}.so" for library in native.plan() if not library.skipped]
        return [str(Path(self.build_lib) / "cekernels" / n) for n in (*built, native.RECORD)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class KernelDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return any(not library.skipped for library in native.plan())


class Wheel(bdist_wheel):
    """Wheel for any Python on this platform: the libraries use LibTorch's stable ABI alone."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


WITH_KERNELS: dict[str, Any] = {
    "cmdclass": {
        "build": BuildWithKernels,
        "build_kernels": BuildKernels,
        "bdist_wheel": Wheel,
    },
    "distclass": KernelDistribution,
}
WITHOUT_KERNELS: dict[str, Any] = {"cmdclass": {"build": Build}}
