"""The version, which pyproject.toml at the root of the repository defines."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cekernels")
except PackageNotFoundError:
    __version__ = "0+not.installed"
