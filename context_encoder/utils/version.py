"""The package version, defined in pyproject.toml."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("context-encoder")
except PackageNotFoundError:
    __version__ = "0+not.installed"
