"""Decisions and messages of the build with and without compilers, CUDA and torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cekernels import _backends, info

ROOT = Path(__file__).parents[2]
VARIABLES = ("CEKERNELS_BUILD_CPP", "CEKERNELS_BUILD_CUDA", "CXX", "NVCC", "CUDA_HOME", "CUDA_PATH",
             "TORCH_CUDA_ARCH_LIST", "CEKERNELS_NVCC_FLAGS")  # fmt: skip


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """buildtools/native.py without build variables, on a machine without compilers and torch."""
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    import native

    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for find in ("find_cxx", "find_nvcc", "find_torch"):
        monkeypatch.setattr(native, find, lambda: None)
    monkeypatch.setattr(native, "_version", lambda compiler: f"{compiler}, release 13.0")
    return native


@pytest.fixture
def has(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulate a C++ compiler, nvcc, or a torch for the CPU or for CUDA on the machine."""

    def give(*things: str) -> None:
        folder = Path("/nowhere/torch")
        for thing in things:
            if thing.startswith("torch"):
                found = native.Torch(folder, "2.13.0", "13.0" if thing == "torch+cuda" else None)
                monkeypatch.setattr(native, "find_torch", lambda found=found: found)
            else:
                monkeypatch.setattr(native, f"find_{thing}", lambda thing=thing: thing)

    return give


def skipped(native: ModuleType) -> dict[str, str]:
    return {library.name: library.skipped for library in native.plan()}


def test_a_machine_without_compilers_installs_and_says_so(
    native: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = native.build(tmp_path)
    assert json.loads((tmp_path / native.RECORD).read_text()) == record
    assert [library["built"] for library in record.values()] == [False, False]
    said = capsys.readouterr().out
    assert "_C is not built: there is no C++ compiler; install g++" in said
    assert "_C_cuda is not built: there is no nvcc" in said
    assert native.requirements() == [], "no torch is fetched where nothing is built"


def test_an_old_library_does_not_outlive_its_record(native: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "_C.so").touch()
    native.build(tmp_path)
    assert not (tmp_path / "_C.so").exists()


@pytest.mark.parametrize(
    ("variable", "machine", "message"),
    [
        ("CEKERNELS_BUILD_CPP", (), "CEKERNELS_BUILD_CPP=1, but there is no C.. compiler; install"),
        ("CEKERNELS_BUILD_CPP", ("cxx",), "no torch with stable-ABI headers .*; install torch"),
        ("CEKERNELS_BUILD_CUDA", ("cxx", "torch+cuda"), "no nvcc; install the CUDA toolkit or set"),
        ("CEKERNELS_BUILD_CUDA", ("nvcc", "torch+cuda"), "no C.. compiler; install g.."),
        ("CEKERNELS_BUILD_CUDA", ("nvcc", "cxx"), "no torch with stable-ABI headers"),
    ],
)
def test_what_is_asked_for_and_cannot_be_had_is_an_error(
    native: ModuleType,
    has: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    machine: tuple[str, ...],
    message: str,
) -> None:
    has(*machine)
    skipped(native)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(native.BuildError, match=message):
        native.plan()


def test_what_is_not_wanted_is_not_built(
    native: ModuleType, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    has("cxx", "nvcc", "torch+cuda")
    assert skipped(native) == {"_C": "", "_C_cuda": ""}
    monkeypatch.setenv("CEKERNELS_BUILD_CPP", "0")
    assert skipped(native)["_C"].startswith("CEKERNELS_BUILD_CPP=0 when it was installed")
    monkeypatch.setenv("CEKERNELS_BUILD_CUDA", "0")
    assert skipped(native)["_C_cuda"].startswith("CEKERNELS_BUILD_CUDA=0 when it was installed")
    monkeypatch.setenv("CEKERNELS_BUILD_CUDA", "yes")
    with pytest.raises(native.BuildError, match="CEKERNELS_BUILD_CUDA must be 0, 1 or unset"):
        native.plan()


def test_cuda_without_a_cuda_torch_only_where_it_is_asked_for(
    native: ModuleType, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    has("cxx", "nvcc", "torch")
    assert "has no CUDA; install a CUDA build of torch, or set" in skipped(native)["_C_cuda"]
    monkeypatch.setenv("CEKERNELS_BUILD_CUDA", "1")
    library = native.plan()[1]
    assert not library.skipped
    assert library.stub_cuda


def test_every_source_is_compiled(native: ModuleType, has: Callable[..., None]) -> None:
    has("cxx", "nvcc", "torch+cuda")
    compiled = {source for library in native.plan() for source, *_ in library.objects}
    assert compiled == {*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.cu")}


def test_torch_is_fetched_only_where_kernels_can_be_built(
    native: ModuleType, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    has("cxx")
    (pin,) = native.requirements()
    assert pin.startswith("torch==")
    monkeypatch.setenv("CEKERNELS_BUILD_CPP", "0")
    monkeypatch.setenv("CEKERNELS_BUILD_CUDA", "0")
    assert native.requirements() == []
    monkeypatch.delenv("CEKERNELS_BUILD_CPP")
    has("torch")
    assert native.requirements() == []


def test_architectures(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "-gencode=arch=compute_{0},code={1}_{0}".format
    assert native.cuda_architectures("release 13.0") == [
        flag("80", "sm"), flag("90", "sm"), flag("100", "sm"), flag("100", "compute")
    ]  # fmt: skip
    assert native.cuda_architectures("release 12.4")[-1] == flag("90", "compute")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    assert native.cuda_architectures("release 13.0") == [flag("90a", "sm")]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 8.0 12.0a")
    assert native.cuda_architectures("release 13.0") == [flag("80", "sm"), flag("120a", "sm")]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;7.5+PTX")
    with pytest.raises(native.BuildError, match=r"need 8.0 or newer, not 7.0, 7.5\+PTX"):
        native.cuda_architectures("release 13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(native.BuildError, match="cannot read 'Hopper'; write"):
        native.cuda_architectures("release 13.0")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compilation_that_fails_shows_the_command_and_the_way_out(
    native: ModuleType, has: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has("torch")
    monkeypatch.setattr(native, "find_cxx", lambda: "g++")
    monkeypatch.setattr(native, "CXX_FLAGS", ["-DCEK_X86", "--no-such-flag"])
    with pytest.raises(native.BuildError, match="CEKERNELS_BUILD_CPP=0 installs without it") as e:
        native.build(tmp_path)
    assert "--no-such-flag" in str(e.value)
    assert not (tmp_path / "_C.so").exists()


def test_installing_again_compiles_only_what_would_change(
    native: ModuleType, has: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has("cxx", "torch")
    compiled: list[str] = []

    def compile_(library: Any, target: Path, temporary: Path) -> None:
        compiled.append(library.name)
        target.write_bytes(b"a library")

    monkeypatch.setattr(native, "_compile", compile_)

    def times(**options: bool) -> int:
        compiled.clear()
        record = native.build(tmp_path, **options)
        assert record == json.loads((tmp_path / "_build.json").read_text())
        return len(compiled)

    assert (times(), times(), times(keep=False), times()) == (1, 0, 1, 0)
    (tmp_path / "_C.so").write_bytes(b"damaged")
    assert (times(), times()) == (1, 0)
    (tmp_path / "_C.so").unlink()
    assert (times(), times()) == (1, 0)
    (tmp_path / "_build.json").write_text("no record")
    assert (times(), times()) == (1, 0)
    monkeypatch.setattr(native, "CXX_FLAGS", [*native.CXX_FLAGS, "-DOTHER"])
    assert (times(), times()) == (1, 0)
    monkeypatch.setattr(native, "AVX2", ["-mavx2"])
    assert times() == (1 if platform.machine() == "x86_64" else 0)
    monkeypatch.setattr(native, "source_digest", lambda name: "other sources")
    assert (times(), times()) == (1, 0)


def test_setup_leaves_an_import_where_nothing_is_built(tmp_path: Path) -> None:
    """setup.py of cekernels itself, run in a copy without a compiler on the PATH."""
    pytest.importorskip("setuptools", "77")
    lay_out = "import sys, cekernels_backend as b, pathlib; b.lay_out(pathlib.Path(sys.argv[1]))"
    backend = {**os.environ, "PYTHONPATH": str(ROOT / "buildtools/cekernels-dist")}
    subprocess.run([sys.executable, "-c", lay_out, str(tmp_path)], env=backend, check=True)
    built = tmp_path / "built"
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    environment |= {"PATH": str(tmp_path), "CEKERNELS_BUILD_CUDA": "0"}
    run = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", str(built)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "cekernels._C is not built: there is no C++ compiler" in run.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "cekernels.info"],
        cwd=built, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "not built: there is no C++ compiler; install g++, then install again" in shown.stdout
    assert "not built: CEKERNELS_BUILD_CUDA=0 when it was installed" in shown.stdout


def test_info_tells_not_built_from_cannot_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_C.so").write_bytes(b"no library")
    built = {"built": True, "torch": "2.13.0", "flags": ["-O3"]}
    (tmp_path / "_build.json").write_text(
        json.dumps({"_C": built, "_C_cuda": built, "_C_new": {"built": False, "reason": "no luck"}})
    )
    monkeypatch.setattr(_backends, "_FOLDER", tmp_path)
    for cached in (_backends.build_record, _backends.load_library):
        cached.cache_clear()
    try:
        broken, gone, absent = (
            _backends.load_library(name) for name in ("_C", "_C_cuda", "_C_new")
        )
        report = info.report()
    finally:
        monkeypatch.undo()
        for cached in (_backends.build_record, _backends.load_library):
            cached.cache_clear()
    assert broken is not None
    assert broken.startswith("built with torch 2.13.0 but cannot be loaded: ")
    assert broken.endswith("install again")
    assert gone == "not built: _C_cuda.so is missing; install again"
    assert absent == "not built: no luck"
    assert "_C.so flags: -O3" in report
