"""What tools/release.py refuses; what it builds is checked by itself, in every Python."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool in a repository of its own, version 1.2.3, everything committed."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.3] - 2030-01-01\n")
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=b commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_a_release_is_final_committed_and_described(release: ModuleType) -> None:
    assert release.declared_version() == "1.2.3"
    assert release.not_final("1.2.3") == []
    assert release.not_final("1.2.3rc1") == ["CHANGELOG.md has no section [1.2.3rc1]"]
    (release.ROOT / "pyproject.toml").write_text('[project]\nversion = "1.3.0.dev0"\n')
    problems = release.not_final(release.declared_version())
    assert [problem.split(" ")[0] for problem in problems] == ["version", "CHANGELOG.md", "the"]


def test_nothing_is_built_for_what_is_refused(
    release: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "wheels"
    assert release.main(["--out", str(out), "--python", "3.99"]) == 2
    assert "no Python 3.99 on the path" in capsys.readouterr().err
    (tmp_path / "new.txt").write_text("")
    assert release.main(["--out", str(out), "--final"]) == 2
    assert "changes that are not committed" in capsys.readouterr().err
    assert not out.exists()


def test_an_environment_in_which_the_wheels_do_not_work_is_reported(
    release: ModuleType, tmp_path: Path
) -> None:
    wheels = [tmp_path / "cekernels-1.2.3-py3-none-any.whl", tmp_path / "context_encoder.whl"]
    for wheel in wheels:
        wheel.write_text("no wheel")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("")
    said = release.check(sys.executable, wheels, constraints)
    assert said is not None
    assert "pip" in said.splitlines()[0]
