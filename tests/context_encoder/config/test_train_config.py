"""TrainConfig: command line, file and checkpoint."""

import dataclasses
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from context_encoder.config import (
    PRESETS,
    TrainConfig,
    default_preset,
    idle_options,
    preset,
)
from context_encoder.masks import MASKS, OptionGroup
from context_encoder.models import MODELS
from context_encoder.pretexts.inpainting import InpaintingOptions
from context_encoder.runs import read_config
from context_encoder.train import parse
from context_encoder.transfer.probe import ProbeConfig
from context_encoder.utils.cli import parse_config
from context_encoder.utils.options import explain
from context_encoder.utils.registry import RegistryError


def test_every_preset_is_valid_and_survives_json() -> None:
    for name in PRESETS:
        config = preset(name)
        assert config.preset == name
        assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_every_model_has_a_recipe() -> None:
    recipes = {name: default_preset(name) for name in MODELS}
    assert recipes == {
        "alexnet": "features-region",
        "alexnet-poolfree": "features-region",
        "dcgan-center": "inpaint-center",
        "dcgan-whole": "inpaint-region",
        "membrane-unet": "membrane-unet",
        "small": "laptop",
    }
    assert set(recipes.values()) <= set(PRESETS)


def test_presets_carry_the_published_numbers() -> None:
    center = preset("inpaint-center")
    assert (center.lambda_rec, center.lambda_adv) == (0.999, 0.001)
    assert (center.lr, center.lr_discriminator_ratio, center.beta1) == (2e-3, 0.1, 0.5)
    assert (center.batch_size, center.overlap, center.overlap_weight) == (64, 4, 10)
    features = preset("features-region")
    assert (features.lambda_adv, features.lr, features.dropout) == (0, 1e-4, 0.5)
    assert features.steps == 100_000
    assert preset("features-central").lr == 1e-3


@pytest.mark.parametrize(
    ("name", "rgb"),
    [("imagenet-mean", (123, 117, 104)), ("released-order", (117, 104, 123))],
)
def test_fill_color(name: str, rgb: tuple[int, ...]) -> None:
    color = TrainConfig(preset="laptop", fill=name).fill_color()  # type: ignore[arg-type]
    assert color == pytest.approx([2 * c / 255 - 1 for c in rgb])


def test_model_alone_picks_its_recipe_and_options_change_one_value() -> None:
    config, resume = parse(["--model", "alexnet", "--lr", "3e-4"])
    assert resume is None
    assert config == preset("features-region").model_copy(update={"lr": 3e-4})


def test_the_run_without_options() -> None:
    """From the command line and from Python; a network or a pretext changes the preset."""
    assert parse([])[0] == TrainConfig() == preset("membrane-unet")
    assert TrainConfig().model == "membrane-unet"
    assert (TrainConfig().loss, TrainConfig().overlap, TrainConfig().ema) == ("log-l2", 0, 0.99)
    assert PRESETS.default() == "membrane-unet"
    assert default_preset(None, "inpainting") == "membrane-unet"
    assert TrainConfig(size=32, mask="central") == preset("membrane-unet").model_copy(
        update={"size": 32, "mask": "central"}
    )
    # The fields' defaults are the small network's: files that name a network keep their meaning.
    assert TrainConfig(pretext="denoising").model == TrainConfig(preset="laptop").model == "small"
    assert TrainConfig(model="alexnet").preset == "laptop"
    assert TrainConfig(model="alexnet").ema == 0


def test_a_named_preset_beats_the_model_s() -> None:
    config, _ = parse(["--preset", "features-block", "--model", "alexnet-poolfree"])
    assert config == preset("features-block").model_copy(update={"model": "alexnet-poolfree"})


def test_a_file_gives_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model": "center", "mask": "central", "lr": 0.5}))
    config, _ = parse(["--config", str(file), "--steps", "7"])
    assert (config.model, config.lr, config.steps) == ("dcgan-center", 0.5, 7)


@pytest.mark.parametrize(
    "values",
    [
        {"crop_scale": (0.5, 1.5)},
        {"crop_scale": (0.9, 0.5)},
        {"mask": "folder"},
        {"mask": "voc"},
        {"lambda_rec": 0, "lambda_adv": 0},
        {"steps": 0},
        {"lr": float("nan")},
        {"unknown": 1},
        {"model": "resnet"},
    ],
)
def test_wrong_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"steps": 10**20}, "`steps` must be at most 9007199254740991, got 100000000000000000000"),
        ({"lr": -1}, "`lr` must be above 0, got -1"),
        ({"dropout": 1, "model": "alexnet"}, "`dropout` must be below 1, got 1"),
        ({"lr": float("inf")}, "`lr` must be a finite number, got inf"),
        ({"loss": "l3"}, "`loss` must be 'l2', 'l1' or 'log-l2', got 'l3'"),
        ({"stpes": 1}, "there is no option `stpes`"),
        ({"crop_scale": (0.9, 0.5)}, "`crop_scale` must be 0 < from <= to <= 1, got 0.9 0.5"),
        (
            {"dropout": 0.5},
            "`dropout` would do nothing: it needs `model` alexnet or alexnet-poolfree, this run "
            "has `model` membrane-unet; leave it out",
        ),
        ({"steps": "many"}, "`steps`: input should be a valid integer, unable to parse string as "
         "an integer, got 'many'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainConfig(**values)  # type: ignore[arg-type]
    assert explain(refused.value) == [sentence]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--dropout 0.1", "--dropout"),
        ("--norm batch", "--norm"),
        ("--pretext autoencoder --mask region", "--mask"),  # the default too, if it is given
        ("--pretext autoencoder --overlap=3", "--overlap"),
        ("--pretext denoising --noise salt-pepper --fill released-order", "--fill"),
        ("--pretext relative-patch --loss l1", "--loss"),
        ("--pretext relative-patch --model alexnet --dropout 0.5", "--dropout"),
        ("--noise-amount 0.5", "--noise-amount"),
        ("--patch-size 16", "--patch-size"),
        ("--mask-folder x", "--mask-folder"),
        ("--overlap 0 --overlap-weight 3", "--overlap-weight"),
        ("--fill released-order", "--fill"),
        ("--normalize all", "--normalize"),  # of the default run's loss
        ("--model small --no-skips", "--skips"),
        ("--lr-discriminator-ratio 0.5", "--lr-discriminator-ratio"),
        ("--val-data x --val-fraction 0.5", "--val-fraction"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: str, name: str) -> None:
    parameter = name.removeprefix("--").replace("-", "_")
    with pytest.raises(ValueError, match=f"^`{parameter}` would do nothing"):
        parse(options.split())


def test_a_recipe_s_values_that_would_do_nothing_are_dropped() -> None:
    config, _ = parse(["--preset", "inpaint-region", "--pretext", "denoising"])
    assert (config.lr, config.batch_size, config.crop_scale) == (2e-3, 64, (128 / 350, 128 / 350))
    assert (config.lambda_adv, config.overlap, config.overlap_weight) == (0, 7, 1)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert parse(["--preset", "features-region", "--model", "small"])[0].dropout == 0


def test_rivals_have_recipes() -> None:
    assert default_preset("alexnet", "autoencoder") == "features-autoencoder"
    assert default_preset("alexnet", None) == "features-region"
    assert default_preset(None, "denoising") == "laptop"
    for name in PRESETS:
        config = preset(name)
        idle = idle_options(config.model_dump())
        assert not idle.keys() & PRESETS[name].values.keys(), name
    config, _ = parse(["--pretext", "relative-patch", "--model", "alexnet"])
    assert config == preset("features-relative-patch")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in (*TrainConfig.all_fields(), "resume"):
        assert "--" + name.replace("_", "-") in shown, name


def test_other_commands_use_the_same_words() -> None:
    with pytest.raises(ValueError, match=r"^`holdout` must be below 1, got 3\.0$"):
        parse_config(ProbeConfig, "probe", ["--data", "x", "--holdout", "3"])
    config = parse_config(ProbeConfig, "probe", ["--data", "x", "--seeds", "4", "5"])
    assert config == ProbeConfig(data=Path("x"), seeds=(4, 5))
    older = ProbeConfig(data=Path("y"), max_dims=7)
    assert parse_config(ProbeConfig, "probe", ["--holdout", "0.5"], older) == older.model_copy(
        update={"holdout": 0.5}
    )


EARLIER = json.loads(Path(__file__).with_name("earlier_configs.json").read_text())
#: Options that came later, with the values that leave a run as it was.
LATER = {
    "start": "membrane", "skips": True, "channelwise": True, "mask_channel": True,
}  # fmt: skip
FORMER_NAMES = {"center": "dcgan-center", "random": "dcgan-whole"}


@pytest.mark.parametrize("name", EARLIER)
def test_configurations_from_before_the_registries_load_unchanged(
    name: str, tmp_path: Path
) -> None:
    """Files as training wrote them then: all options flat, networks under their former names."""
    values = EARLIER[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    now = json.loads(read_config(tmp_path).model_dump_json())
    fields = {name: field.default for name, field in TrainConfig.model_fields.items()}
    added = {name: fields.get(name, LATER.get(name)) for name in now.keys() - values.keys()}
    assert now == {**added, **values, "model": FORMER_NAMES.get(values["model"], values["model"])}


def test_former_names_are_accepted_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for former, name in FORMER_NAMES.items():
        config, _ = parse(["--model", former])
        assert config == parse(["--model", name])[0]
        assert config.model == name
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = "".join(capsys.readouterr().out.replace("│", "").split())  # without line breaks
    assert "--model{alexnet,alexnet-poolfree,dcgan-center,dcgan-whole,membrane-unet,small}" in shown


def test_options_of_a_group_are_typed_and_whole() -> None:
    config = TrainConfig(mask="folder", mask_folder="masks", overlap=3)
    assert config.options(InpaintingOptions) == InpaintingOptions(overlap=3)
    assert config.options(MASKS["folder"].options).model_dump() == {"mask_folder": Path("masks")}


def test_an_option_that_two_define_differently_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Rival(OptionGroup):
        overlap: int = 3

    class Taken(OptionGroup):
        steps: int = 3

    for group, told in (
        (
            Rival,
            r"option 'overlap' is defined by pretext 'inpainting' .* and, differently, by mask ",
        ),
        (Taken, r"option 'steps' of mask 'block' .* is one of TrainConfig already; rename it"),
    ):
        spec = dataclasses.replace(MASKS["block"], options=group)
        monkeypatch.setitem(MASKS._entries, "block", spec)
        with pytest.raises(RegistryError, match=told):
            TrainConfig.all_fields()


def test_every_field_refuses_values_of_other_types_in_words() -> None:
    for name in preset("laptop").model_dump():
        for value in ({}, [], {"a": 1}, [[1]], "é" * 3000, -1e300, True, None):
            sentences: list[str] = []
            try:
                TrainConfig.model_validate_json(json.dumps({name: value}))
            except ValidationError as error:
                sentences = explain(error)
            assert all(len(sentence) < 700 for sentence in sentences), name
