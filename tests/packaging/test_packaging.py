"""Contents of an installation, and direction of dependence between the two packages."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import cekernels

ROOT = Path(__file__).parents[2]
PACKAGES = ("cekernels", "context_encoder")


def imports(package: str) -> list[tuple[str, str, str]]:
    """File, module and name of every absolute import in a package."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found += [(str(path), alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found += [(str(path), node.module, alias.name) for alias in node.names]
    return found


def test_the_kernels_know_nothing_of_the_models() -> None:
    assert imports("cekernels")
    assert not [i for i in imports("cekernels") if i[1].partition(".")[0] == "context_encoder"]


def test_the_models_use_the_kernels_by_their_public_names() -> None:
    used = [i for i in imports("context_encoder") if i[1].partition(".")[0] == "cekernels"]
    assert used
    for path, module, name in used:
        assert module == "cekernels", f"{path} imports {module}"
        if module == "cekernels":
            assert name in cekernels.__all__, f"{path} imports {name}"


def test_public_names_exist_once_and_in_order() -> None:
    assert sorted(set(cekernels.__all__)) == cekernels.__all__
    for name in cekernels.__all__:
        assert getattr(cekernels, name).__doc__ or name == "Impl"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_modules_is_a_package_and_types_ship(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path} would not be installed"
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
@pytest.mark.parametrize(
    "project", [ROOT, ROOT / "buildtools/cekernels-dist"], ids=["root", "dist"]
)
def test_package_data_is_there(project: Path) -> None:
    import tomllib

    settings = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert list((ROOT / package).glob(pattern)), f"{package}: no file matches {pattern}"


@pytest.mark.parametrize(
    ("package", "repository"),
    [("ruff", "ruff-pre-commit"), ("clang-format", "mirrors-clang-format")],
)
def test_pre_commit_runs_the_versions_of_the_constraints(package: str, repository: str) -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    (revision,) = re.findall(rf"/{repository}\n +rev: v(\S+)", hooks)
    assert f"{package}=={revision}" in (ROOT / "constraints.txt").read_text().split()
