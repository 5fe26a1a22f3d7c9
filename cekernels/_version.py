"""Version of the package, as defined in pyproject.toml at the root of the repository."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cekernels")
except PackageNotFoundError:
    __version__ = "0+not.installed"
