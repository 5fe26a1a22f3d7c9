"""Contents and requirements of the wheels and sdists of both distributions, without kernels."""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

import cekernels
import context_encoder

pytest.importorskip("setuptools", "77")

ROOT = Path(__file__).parents[2]
(VERSION,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
KERNELS = "buildtools/cekernels-dist"
PHOTOGRAPHS = {path.name for path in (ROOT / "context_encoder/data/photos").iterdir()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with remains of older builds."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("buildtools", "cekernels", "context_encoder", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    for stale in ("build/lib/cekernels/stale.py", "build/lib/context_encoder/stale.py"):
        (folder / stale).parent.mkdir(parents=True, exist_ok=True)
        (folder / stale).touch()
    (folder / "context_encoder.egg-info").mkdir()
    (folder / "context_encoder.egg-info/SOURCES.txt").write_text("csrc/params.h\n")
    return folder


def hook(project: Path, name: str, target: Path) -> Path:
    """Call one hook of a project's build backend as pip does, but without isolation."""
    kernels = (project / "cekernels_backend.py").exists()
    backend, path = ("cekernels_backend", ".") if kernels else ("backend", "buildtools")
    target.mkdir(exist_ok=True)
    code = f"import sys, {backend} as b; print('result', b.{name}(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=project, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(project / path),
             "CEKERNELS_BUILD_CPP": "0", "CEKERNELS_BUILD_CUDA": "0"},
    )  # fmt: skip
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return target / run.stdout.rsplit("result ", 1)[1].strip()


Built = Callable[[str], Path]


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Function that returns a wheel or sdist, built on first use."""
    folder = tmp_path_factory.mktemp("dist")
    done: dict[str, Path] = {}

    def build(what: str) -> Path:
        distribution, kind = what.split()
        project = clone / KERNELS if distribution == "cekernels" else clone
        if what not in done:
            done[what] = hook(project, f"build_{kind}", folder / what.replace(" ", "-"))
        return done[what]

    return build


def names(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}


def metadata(wheel: Path) -> Message:
    (name,) = (n for n in names(wheel) if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


def requirements(wheel: Path) -> list[str]:
    required = metadata(wheel).get_all("Requires-Dist", [])
    return [requirement for requirement in required if "extra ==" not in requirement]


def modules(package: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}


def top(paths: set[str]) -> set[str]:
    return {path.partition("/")[0] for path in paths}


def test_the_wheel_of_context_encoder_leaves_the_kernels_to_cekernels(built: Built) -> None:
    wheel = built("context-encoder wheel")
    assert wheel.name == f"context_encoder-{VERSION}-py3-none-any.whl"
    found = names(wheel)
    assert top(found) == {"context_encoder", f"context_encoder-{VERSION}.dist-info"}
    assert {n for n in found if n.endswith(".py")} == modules("context_encoder")
    assert {n.rpartition("/")[2] for n in found} >= {*PHOTOGRAPHS, "py.typed"}
    assert f"cekernels=={VERSION}" in requirements(wheel)


def test_the_wheel_of_cekernels_requires_torch_and_nothing_else(built: Built) -> None:
    wheel = built("cekernels wheel")
    assert metadata(wheel)["Version"] == VERSION
    found = names(wheel)
    assert top(found) == {"cekernels", f"cekernels-{VERSION}.dist-info"}
    assert {n for n in found if n.endswith(".py")} == modules("cekernels")
    assert {"cekernels/py.typed", "cekernels/_build.json"} <= found
    assert requirements(wheel) == ["torch>=2.11"]


def test_an_editable_installation_brings_both_and_requires_neither(built: Built) -> None:
    wheel = built("context-encoder editable")
    assert not [r for r in requirements(wheel) if r.startswith("cekernels")]
    wheels = requirements(built("context-encoder wheel"))
    assert requirements(wheel) == [r for r in wheels if not r.startswith("cekernels")]
    archive = zipfile.ZipFile(wheel)
    described = email.message_from_bytes(archive.read(f"cekernels-{VERSION}.egg-info/PKG-INFO"))
    assert (described["Name"], described["Version"]) == ("cekernels", VERSION)
    (record,) = (n for n in names(wheel) if n.endswith("/RECORD"))
    rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    assert {row[0] for row in rows} == names(wheel)
    for name, digest, size in rows:
        if name != record:
            data = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert (f"sha256={found.decode()}", str(len(data))) == (digest, size)


def test_a_wheel_of_the_kernels_that_would_hide_the_sources_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would be imported instead of the sources of an editable installation."""
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    import backend

    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "context_encoder-0.1.0.dist-info").mkdir()
    (tmp_path / "cekernels-0.1.0.egg-info").mkdir()
    backend._refuse_second_kernels()
    (tmp_path / "cekernels-0.1.0.dist-info").mkdir()
    with pytest.raises(RuntimeError, match=r"would hide the sources in .*pip uninstall cekernels"):
        backend._refuse_second_kernels()


def test_the_kernels_alone_have_no_editable_installation(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pip install -e \. at the root of the repository"):
        hook(clone / KERNELS, "build_editable", tmp_path)


@pytest.mark.parametrize("distribution", ["cekernels", "context-encoder"])
def test_an_sdist_builds_the_same_wheel_without_the_repository(
    built: Built, tmp_path: Path, distribution: str
) -> None:
    sdist = built(f"{distribution} sdist")
    found = names(sdist)
    if distribution == "cekernels":
        assert top(found) >= {"cekernels", "csrc", "buildtools"}
        assert "context_encoder" not in top(found)
        sources = {p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu")}
        assert {str(p.relative_to(ROOT)) for p in sources} <= found
    else:
        assert not {"cekernels", "csrc"} & top(found)
    assert not [n for n in found if "stale" in n or n.endswith((".so", ".pyc"))]
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (project,) = tmp_path.iterdir()
    wheel = hook(project, "build_wheel", tmp_path / "wheels")
    direct = built(f"{distribution} wheel")
    assert (wheel.name, names(wheel)) == (direct.name, names(direct))
    assert requirements(wheel) == requirements(direct)


def test_versions_are_those_of_the_installed_distributions() -> None:
    assert cekernels.__version__ == importlib.metadata.version("cekernels")
    assert context_encoder.__version__ == importlib.metadata.version("context-encoder")
    assert cekernels.__version__ == context_encoder.__version__
