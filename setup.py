"""Build of the package with its kernel libraries (buildtools/native.py)."""

import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

sys.path.insert(0, str(Path(__file__).resolve().parent / "buildtools"))
import native


class BuildWithKernels(build):
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


setup(
    cmdclass={"build": BuildWithKernels, "build_kernels": BuildKernels, "bdist_wheel": Wheel},
    distclass=KernelDistribution,
)
