"""Masks and models of another package by entry points, and errors of such packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from context_encoder.utils.registry import Registry, RegistryError
from tests.helpers.small_runs import TINY, save_photos

ROOT = Path(__file__).parents[2]

BARS = """
from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from context_encoder.masks import MaskSampler, OptionGroup, register_mask
from context_encoder.models import ContextEncoder, Preset, register_model
from context_encoder.models.base import stage


class BarsOptions(OptionGroup):
    bars_width: Annotated[int, Field(ge=1)] = Field(3, description="Pixels of a bar.")


@register_mask("bars", summary="vertical bars", options=BarsOptions)
class Bars(MaskSampler):
    def __init__(self, size, seed, bars_width):
        super().__init__(size, seed)
        self.width = bars_width

    def draw(self, epoch, index):
        shift = self.words(epoch, index, 1) % (2 * self.width)
        column = torch.arange(self.size, device=index.device)
        missing = (column + shift) // self.width % 2 == 0
        mask = missing[:, None, None, :].expand(-1, 1, self.size, -1).contiguous()
        return mask, mask.sum((1, 2, 3))


class TinyOptions(OptionGroup):
    tiny_channels: Annotated[int, Field(ge=1)] = Field(4, description="Channels of its code.")


@register_model(
    "tiny",
    summary="two layers",
    image_size=32,
    options=TinyOptions,
    presets={"tiny-bars": Preset({"model": "tiny", "mask": "bars", "lr": 1e-3}, "nowhere")},
)
class Tiny(ContextEncoder):
    def __init__(self, image_size=32, *, tiny_channels=4):
        conv = nn.Conv2d(3, tiny_channels, 4, 2, 1)
        mix = nn.Conv2d(tiny_channels, tiny_channels, 1)
        up = nn.ConvTranspose2d(tiny_channels, 3, 4, 2, 1)
        super().__init__(
            image_size,
            nn.Sequential(OrderedDict(conv1=stage(conv, activation=nn.ReLU()))),
            nn.Sequential(OrderedDict(mix=stage(mix))),
            nn.Sequential(OrderedDict(up1=stage(up))),
        )
"""

# One module for two groups, which imports modules that depend on the configuration.
CLONES = """
from typing import Literal

from pydantic import Field

from context_encoder.masks import OptionGroup
from context_encoder.pretexts import Autoencoder, register_pretext
from context_encoder.transfer.backbone import BackboneConfig
from context_encoder.transfer.registry import register_transfer


class CloneOptions(OptionGroup):
    clone_count: Literal[1, 2] = Field(1, description="Copies.")


@register_pretext("cloning", takes="it", gives="it", options=CloneOptions, uses=("loss",))
class Cloning(Autoencoder):
    pass


class CountConfig(BackboneConfig):
    limit: int = Field(3, description="Largest count.")


@register_transfer("count", config=CountConfig, summary="counts", data="none", reports="a count")
def count(config):
    print("counted to", config.limit)
    return 0
"""


def install(site: Path, package: str, source: str, **groups: str) -> None:
    """The result of ``pip install --target``: a module, and metadata with its entry points."""
    (site / f"{package}.py").parent.mkdir(parents=True, exist_ok=True)
    (site / f"{package}.py").write_text(source)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(f"[{group.replace('__', '.')}]\n{point}\n" for group, point in groups.items())
    )


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(site), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=site,
        capture_output=True,
        text=True,
    )


def test_a_package_s_mask_and_model_train_resume_and_inpaint(tmp_path: Path) -> None:
    site, out, photos = tmp_path / "site", tmp_path / "run", tmp_path / "photos"
    install(
        site,
        "bars",
        BARS,
        context_encoder__masks="bars = bars",
        context_encoder__models="tiny = bars:Tiny",
    )
    save_photos(photos, 8)
    train = ["context_encoder.train", "--preset", "tiny-bars", *TINY, "--data", photos]
    train += ["--bars-width", 5, "--tiny-channels", 6, "--steps", 2, "--overlap", 0]
    trained = run(site, *train, "--lr-schedule", "constant", "--out", out)
    assert trained.returncode == 0, trained.stderr
    config = json.loads((out / "config.json").read_text())
    chosen = {name: config[name] for name in ("mask", "model", "bars_width", "tiny_channels")}
    assert chosen == {"mask": "bars", "model": "tiny", "bars_width": 5, "tiny_channels": 6}

    resumed = run(site, "context_encoder.train", "--resume", out, "--steps", 4)
    assert resumed.returncode == 0, resumed.stderr
    config = json.loads((out / "config.json").read_text())
    assert (config["bars_width"], config["tiny_channels"], config["steps"]) == (5, 6, 4)
    changed = run(site, "context_encoder.train", "--resume", out, "--steps", 6, "--bars-width", 4)
    assert changed.returncode == 2
    assert "--bars-width would change it" in changed.stderr

    picture = photos / "0.png"
    fill = ["context_encoder.inpaint", picture, "--box", 10, 10, 20, 20, "--checkpoint", out]
    filled = run(site, *fill, "--out", tmp_path / "filled.png")
    assert filled.returncode == 0, filled.stderr
    before, after = Image.open(picture), Image.open(tmp_path / "filled.png")
    assert before.getpixel((5, 5)) == after.getpixel((5, 5))
    assert before.crop((10, 10, 20, 20)).tobytes() != after.crop((10, 10, 20, 20)).tobytes()

    without = run(tmp_path, *fill, "--out", tmp_path / "again.png")
    assert without.returncode == 2
    assert "there is no mask 'bars'; there are " in without.stderr


def test_the_mask_of_the_documentation_trains(tmp_path: Path) -> None:
    """The example of docs/extending.md, unchanged."""
    page = (ROOT / "docs/extending.md").read_text()
    example = next(
        b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "register_mask" in b
    )
    install(tmp_path, "example", example, context_encoder__masks="stripes = example")
    save_photos(tmp_path / "photos", 8)
    train = ["context_encoder.train", "--mask", "stripes", *TINY, "--data", tmp_path / "photos"]
    train += ["--steps", 2, "--out"]
    trained = run(tmp_path, *train, tmp_path / "run", "--stripes-width", 5)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run/config.json").read_text())["stripes_width"] == 5
    too_wide = run(tmp_path, *train, tmp_path / "other", "--stripes-width", 500)
    assert too_wide.returncode == 2
    assert "--stripes-width" in too_wide.stderr.splitlines()[-1], too_wide.stderr


def test_a_package_s_pretext_and_transfer_are_offered(tmp_path: Path) -> None:
    groups = {"context_encoder__pretexts": "c = clones", "context_encoder__transfers": "t = clones"}
    install(tmp_path, "clones", CLONES, **groups)
    counted = run(tmp_path, "context_encoder.transfer", "count", "--limit", 7)
    assert (counted.returncode, counted.stdout) == (0, "counted to 7\n"), counted.stderr
    code = (
        "from context_encoder.train import parse; "
        "config, _ = parse(['--pretext', 'cloning', '--clone-count', '2']); "
        "print(config.clone_count, config.pretext); "
        "parse(['--clone-count', '2'])"
    )
    parsed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
    )
    assert parsed.stdout == "2 cloning\n", parsed.stderr
    assert "`clone_count` would do nothing: it needs `pretext` cloning, this run" in parsed.stderr


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A package ``own_NUMBER`` with the registry REGISTRY and one entry."""
    own = f"own_{abs(hash(request.node.name))}"
    folder = tmp_path / own
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "registry.py").write_text(
        "from context_encoder.utils.registry import Registry\n"
        f"REGISTRY = Registry('thing', {own!r}, 'own.things')\n"
    )
    (folder / "first.py").write_text(adding(own, "first"))
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def adding(own: str, name: str, **options: object) -> str:
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return (
        f"from {own}.registry import REGISTRY\n\n\ndef make(): ...\n\n\n"
        f"REGISTRY.add({name!r}, 1, definition=make{given})\n"
    )


def registry_of(folder: Path) -> Registry[int]:
    module = __import__(f"{folder.name}.registry", fromlist=["REGISTRY"])
    registry: Registry[int] = module.REGISTRY
    return registry


def test_own_modules_and_packages_register(things: Path) -> None:
    (things / "alpha.py").write_text(adding(things.name, "last", aliases=("former",)))
    install(things.parent, "another", adding(things.name, "a"), own__things="a = another")
    registry = registry_of(things)
    assert list(registry) == ["a", "first", "last"]
    assert registry.canonical("former") == "last"
    assert registry.source("a") == "another.make"


def test_a_package_that_does_not_load_is_named_and_passed_over(
    things: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(things.parent, "broken", "import no_such_module\n", own__things="b = broken")
    registry = registry_of(things)
    assert list(registry) == ["first"]
    (record,) = caplog.records
    told = record.getMessage()
    assert "the package broken offers a thing (entry point b = broken)" in told
    assert "No module named 'no_such_module'" in told
    with pytest.raises(ValueError, match=r"no thing 'b'; there are first; the package broken is"):
        registry.canonical("b")


@pytest.mark.parametrize("alias", [False, True])
def test_two_things_of_one_name_are_refused_and_both_named(things: Path, alias: bool) -> None:
    name, options = ("z", {"aliases": ("first",)}) if alias else ("first", {})
    package = f"second_{alias}"
    source = adding(things.name, name, **options)
    install(things.parent, package, source, own__things=f"s = {package}")
    registry = registry_of(things)
    for _ in range(2):  # the error is raised again
        with pytest.raises(
            RegistryError,
            match=rf"thing 'first' is registered twice, by {things.name}\.first\.make and by "
            rf"{package}\.make",
        ):
            list(registry)
