"""Paths in run folders, after the run, its photographs or the command have moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from context_encoder.config import TrainConfig
from context_encoder.evaluation.crops import held_out_crops
from context_encoder.runs import RunFolder, read_config
from context_encoder.train import main, parse
from tests.helpers.small_runs import save_photos, save_untrained


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs and a run that was begun in it, by relative paths."""
    folder = tmp_path / "project"
    save_photos(folder / "photos", 4)
    save_photos(folder / "masks", 2)
    monkeypatch.chdir(folder)
    save_untrained(
        Path("runs/A"), 0, out=Path("runs/A"), data=Path("photos"), mask="folder",
        mask_folder=Path("masks"),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_run_begun_with_relative_paths_resumes_anywhere(project: Path) -> None:
    config, _ = parse(["--resume", "project/runs/A"])
    assert config.data == project / "photos"
    assert config.options(type(config).group_of("mask", "folder")).mask_folder == project / "masks"  # type: ignore[attr-defined]


def test_a_project_that_was_moved_as_a_whole_is_found_again(project: Path, tmp_path: Path) -> None:
    shutil.move(project, tmp_path / "elsewhere")
    config, _ = parse(["--resume", "elsewhere/runs/A"])
    assert config.data == tmp_path / "elsewhere/photos"
    assert read_config(tmp_path / "elsewhere/runs/A/checkpoints/last").data == config.data


def test_a_run_of_an_earlier_version_has_relative_paths(project: Path, tmp_path: Path) -> None:
    for file in project.glob("runs/A/**/config.json"):
        values = json.loads(file.read_text())
        values |= {"data": "photos", "out": "runs/A", "mask_folder": "masks"}
        file.write_text(json.dumps(values))
        (file.parent / "manifest.json").unlink(missing_ok=True)
    config, _ = parse(["--resume", "project/runs/A"])
    assert config.data == tmp_path / "project/photos"


def test_what_is_gone_is_named_with_the_option_for_its_new_place(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "photos").rename(tmp_path / "pictures")
    assert main(["--resume", "project/runs/A"]) == 2
    assert f"{project}/photos, which the run uses, does not exist" in (
        said := capsys.readouterr().err
    )
    assert "--data" in said
    config, _ = parse(["--resume", "project/runs/A", "--data", "pictures"])
    assert config.data == Path("pictures")
    with pytest.raises(FileNotFoundError, match="new place, or other photographs, with `data`"):
        held_out_crops(read_config(project / "runs/A/checkpoints/last"), None)


@pytest.mark.parametrize(
    "data", ["memory://bucket/shard-{0..3}.tar", Path("photos/shard-{0..3}.tar")]
)
def test_urls_and_patterns(project: Path, data: str | Path) -> None:
    RunFolder(project / "runs/B").start(TrainConfig(data=data, out=project / "runs/B"))
    found = read_config(project / "runs/B").data
    assert found == (data if isinstance(data, str) else Path.cwd() / data)
