"""The order of a training step, compared with a plain PyTorch loop in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cekernels.ops import masked_loss
from context_encoder.pretexts import Inpainting, Samples
from context_encoder.training import Trainer
from tests.helpers.small_runs import make_trainer, save_photos

OPTIONS = {
    "lambda_rec": 0.9, "lambda_adv": 0.1, "overlap": 2, "overlap_weight": 10.0, "lr": 1e-3,
    "lr_discriminator_ratio": 0.3, "lr_schedule": "constant", "beta1": 0.5, "mask": "block",
    "channels_last": False,
}  # fmt: skip
STEPS = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    save_photos(root, 8)
    return root


def in_float64(photos: Path, **options: object) -> tuple[Trainer, Inpainting]:
    trainer = make_trainer(photos, steps=STEPS, **{**OPTIONS, **options})
    pretext = trainer.pretext
    assert isinstance(pretext, Inpainting)
    pretext.fill = pretext.fill.double()
    for part in pretext.parts().values():
        part.module.double().train()
    return trainer, pretext


def batches() -> list[Samples]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(STEPS):
        image = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
        epoch, index = torch.full((4,), step), torch.arange(4)
        found.append(Samples(image, epoch, index))
    return found


def by_hand(
    model: nn.Module, judge: nn.Module, masks: list[Tensor], fill: Tensor, *, model_first: bool
) -> list[dict[str, float]]:
    """The step of the released train.lua: discriminator, then model by the new discriminator."""
    betas = (0.5, 0.999)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=betas)
    optimizer_d = torch.optim.Adam(judge.parameters(), lr=0.3e-3, betas=betas)
    log = []
    for samples, mask in zip(batches(), masks, strict=True):
        image = samples.image
        hole = mask.double()
        weights = hole + 10 * (F.max_pool2d(hole, 5, stride=1, padding=2) - hole)
        shown = torch.where(mask, fill.view(1, 3, 1, 1), image)
        prediction = model(shown)

        def update_model() -> tuple[Tensor, Tensor, Tensor]:
            squared = (weights * (prediction - image) ** 2).sum() / (3 * weights.sum())  # noqa: B023
            fooled = -torch.log(torch.sigmoid(judge(prediction))).mean()  # noqa: B023
            loss = 0.9 * squared + 0.1 * fooled
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss, squared, fooled

        if model_first:
            losses = update_model()
        optimizer_d.zero_grad()
        real = -torch.log(torch.sigmoid(judge(image))).mean()
        fake = -torch.log(1 - torch.sigmoid(judge(prediction.detach()))).mean()
        (real + fake).backward()
        optimizer_d.step()
        if not model_first:
            losses = update_model()
        names = ("loss", "loss_rec", "loss_adv", "loss_d")
        values = (*losses, real + fake)
        log.append({name: value.item() for name, value in zip(names, values, strict=True)})
    return log


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def test_adversarial_inpainting_takes_the_steps_of_a_loop_by_hand(photos: Path) -> None:
    trainer, pretext = in_float64(photos)
    discriminator = pretext.discriminator
    assert discriminator is not None
    masks = [pretext.masks(samples.epoch, samples.index)[0] for samples in batches()]
    copies = {
        first: (copy.deepcopy(pretext.model), copy.deepcopy(discriminator))
        for first in (False, True)
    }
    log = []
    for samples in batches():
        trainer.learner.set_learning_rates(1.0)
        log.append(pretext.train_step(samples, trainer.learner))
        trainer.step += 1
    expected = by_hand(*copies[False], masks, pretext.fill, model_first=False)
    assert [list(losses) for losses in log] == [["loss", "loss_rec", "loss_d", "loss_adv"]] * STEPS
    for found, wanted in zip(log, expected, strict=True):
        assert not any(loss.requires_grad for loss in found.values())
        for name, value in wanted.items():
            assert found[name].item() == pytest.approx(value, rel=1e-9), name
    for network, wanted_network in zip((pretext.model, discriminator), copies[False], strict=True):
        assert distance(network, wanted_network) < 1e-9
    # The comparison detects the reverse order.
    by_hand(*copies[True], masks, pretext.fill, model_first=True)
    assert distance(pretext.model, copies[True][0]) > 1e-6


def test_each_network_is_updated_once_per_step_the_discriminator_first(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, pretext = in_float64(photos)
    assert pretext.discriminator is not None
    updates = []
    real = trainer.learner.update_weights

    def watched(name: str) -> None:
        parameters = pretext.parts()[name].module.parameters()
        assert all(parameter.grad is not None for parameter in parameters)
        updates.append(name)
        real(name)

    monkeypatch.setattr(trainer.learner, "update_weights", watched)
    for samples in batches():
        pretext.train_step(samples, trainer.learner)
    assert updates == ["discriminator", "model"] * STEPS
    # The model's loss leaves no gradient for the discriminator's next update.
    assert all(parameter.grad is None for parameter in pretext.discriminator.parameters())


def test_without_a_discriminator_the_model_alone_is_updated(photos: Path) -> None:
    trainer, pretext = in_float64(photos, lambda_adv=0.0, lr_discriminator_ratio=0.1)
    masks = [pretext.masks(samples.epoch, samples.index)[0] for samples in batches()]
    model = copy.deepcopy(pretext.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for samples, mask in zip(batches(), masks, strict=True):
        losses = pretext.train_step(samples, trainer.learner)
        hole = mask.double()
        weights = hole + 10 * (F.max_pool2d(hole, 5, stride=1, padding=2) - hole)
        prediction = model(torch.where(mask, pretext.fill.view(1, 3, 1, 1), samples.image))
        loss = (weights * (prediction - samples.image) ** 2).sum() / (3 * weights.sum())
        optimizer.zero_grad()
        (0.9 * loss).backward()
        optimizer.step()
        assert list(losses) == ["loss", "loss_rec"]
        assert losses["loss_rec"].item() == pytest.approx(loss.item(), rel=1e-9)
    assert distance(pretext.model, model) < 1e-9


class Calls(TorchDispatchMode):
    """Records the calls of cekernels, and copies of images into another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[str, tuple[Any, ...], Any]] = []
        self.copies: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "cekernels":
            self.kernels.append((func._opname, args, result))
        elif func._opname in ("clone", "copy_", "_to_copy") and len(args[0].shape) == 4:
            before, after = args[1 if func._opname == "copy_" else 0], result
            if before.shape[1] == 3 and before.stride() != after.stride():
                self.copies.append(f"{func} {tuple(before.shape)} {before.stride()}")
        return result


LAST = torch.channels_last
# Options of a run, and whether the sums of the weights are known without reading them.
AREAS = {
    "a fixed hole with a band": ({"preset": "inpaint-center", "size": 128, "lambda_adv": 0}, True),
    "holes anywhere": ({"mask": "region", "overlap": 0}, True),
    "holes anywhere, with a band": ({"mask": "region", "overlap": 2}, False),
    "the logarithm of the error": ({"mask": "block", "overlap": 0, "loss": "log-l2"}, True),
}


@pytest.mark.parametrize("case", AREAS)
def test_one_pass_over_operands_as_they_lie(
    photos: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: one kernel for loss and gradient, with the areas that are known, no copies."""
    options, known = AREAS[case]
    monkeypatch.setattr(masked_loss, "ONE_PASS_DEVICES", ("cpu",))
    trainer = make_trainer(photos, steps=1, **{"lambda_adv": 0.0, **options})
    pretext = trainer.pretext
    assert isinstance(pretext, Inpainting)
    size = pretext.config.size
    image = torch.rand(4, 3, size, size).to(memory_format=LAST)  # type: ignore[arg-type]
    samples = Samples(image, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with Calls() as calls:
        losses = pretext.train_step(samples, trainer.learner)
    found = {name: (args, result) for name, args, result in calls.kernels}
    assert found.keys() & {"masked_loss", "masked_loss_backward"} == set()
    assert len(calls.kernels) == len(found)
    (shown, *_), filled = found["fill_masked"]
    assert shown.is_contiguous(memory_format=LAST)
    assert filled.is_contiguous(memory_format=LAST)
    (prediction, target, mask, area, *_), (_, _, gradient) = found["masked_loss_and_gradient"]
    for operand in (prediction, target):  # colours of a pixel are adjacent: nothing made planes
        assert operand.stride(1) == 1
    assert gradient.is_contiguous(memory_format=LAST)
    assert calls.copies == []
    sums = mask.sum((1, 2, 3), dtype=torch.float64)
    if options.get("loss") != "log-l2":
        assert (area is not None) == known
        mean = (mask * (prediction - target) ** 2).sum() / (3 * sums.sum())
        assert losses["loss_rec"].item() == pytest.approx(mean.item(), rel=1e-5)
    if area is not None:
        assert torch.equal(area.double(), sums)
