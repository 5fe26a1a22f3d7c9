"""The learner against plain PyTorch, the schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from context_encoder.optimization import Learner, step_decay, warmup_and_decay

CPU = torch.device("cpu")


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def sgd(network: nn.Module, lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=lr)


def test_gradients_add_up_until_the_update_which_clears_them() -> None:
    network = linear()
    learner = Learner({"model": network}, {"model": sgd(network)}, CPU)
    before = network.bias.detach().clone()
    x = torch.ones(4, 3)
    for factor in (1.0, 2.0):
        learner.backward(factor * learner.network("model")(x).sum())
    learner.update_weights("model")
    # d(sum over 4 samples) / d(bias) is 4; (1 + 2) * 4 * 0.5 = 6.
    torch.testing.assert_close(network.bias.detach(), before - 6)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_update_changes_one_network_alone() -> None:
    networks: dict[str, nn.Module] = {"model": linear(0), "discriminator": linear(1)}
    learner = Learner(networks, {name: sgd(n) for name, n in networks.items()}, CPU)
    before = {name: next(n.parameters()).detach().clone() for name, n in networks.items()}
    learner.backward(sum((n(torch.ones(1, 3)).sum() for n in networks.values()), torch.zeros(())))
    learner.update_weights("discriminator")
    assert next(networks["model"].parameters()).equal(before["model"])
    assert next(networks["model"].parameters()).grad is not None
    assert not next(networks["discriminator"].parameters()).equal(before["discriminator"])


def test_rates_keep_their_ratios() -> None:
    one, other = linear(0), linear(1)
    optimizers = {"model": sgd(one, 0.5), "discriminator": sgd(other, 0.05)}
    learner = Learner({"model": one, "discriminator": other}, optimizers, CPU)
    for factor in (0.5, 1.0, 0.25):  # of the initial rates, not of the last ones
        learner.set_learning_rates(factor)
        assert learner.learning_rate() == 0.5 * factor
        assert optimizers["discriminator"].param_groups[0]["lr"] == 0.05 * factor


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_the_gradient_is_clipped_to_its_norm_over_all_weights(amp: str, clip: float) -> None:
    """Also where the loss, and so the gradient, is scaled by 65536."""
    network = linear()
    before = [parameter.detach().double() for parameter in network.parameters()]
    learner = Learner({"model": network}, {"model": sgd(network, 1.0)}, CPU, amp=amp, clip=clip)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    learner.backward(network(x).sum())
    learner.update_weights("model")
    learner.adjust_loss_scale()
    gradient = [x.double().expand(2, 3), torch.ones(2).double()]
    norm = math.sqrt(2 * (1 + 4 + 9) + 2)
    for old, new, g in zip(before, network.parameters(), gradient, strict=True):
        moved = old - new.detach().double()
        torch.testing.assert_close(moved, g * min(1, clip / norm), atol=1e-6, rtol=1e-4)


def test_fp16_leaves_out_updates_that_are_not_finite_and_lowers_the_scale() -> None:
    networks: dict[str, nn.Module] = {"model": linear(0), "discriminator": linear(1)}
    learner = Learner(networks, {name: sgd(n) for name, n in networks.items()}, CPU, amp="fp16")
    before = {name: n.weight.detach().clone() for name, n in networks.items()}  # type: ignore[operator, union-attr]
    scale = learner.scaler.get_scale()
    learner.backward(networks["discriminator"](torch.ones(1, 3)).sum())
    learner.update_weights("discriminator")
    learner.backward(networks["model"](torch.ones(1, 3)).sum() * torch.inf)
    learner.update_weights("model")
    learner.adjust_loss_scale()
    assert networks["model"].weight.equal(before["model"])  # type: ignore[operator]
    assert not networks["discriminator"].weight.equal(before["discriminator"])  # type: ignore[operator]
    assert learner.scaler.get_scale() == scale / 2


@pytest.mark.parametrize(
    ("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_is_the_precision_asked_for(amp: str, dtype: torch.dtype) -> None:
    network = linear()
    learner = Learner({"model": network}, {"model": sgd(network)}, CPU, amp=amp)
    with learner.autocast():
        assert learner.network("model")(torch.ones(1, 3)).dtype == dtype


def test_warmup_rises_linearly_to_the_schedule() -> None:
    rise = [warmup_and_decay(step, 100, warmup_steps=3, cosine=False) for step in range(6)]
    assert rise == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warmup_and_decay(s, 100, warmup_steps=0, cosine=False) for s in (0, 99)] == [1, 1]


def test_cosine_decays_to_zero_over_the_run() -> None:
    factors = [warmup_and_decay(step, 60, warmup_steps=0, cosine=True) for step in (0, 20, 30, 60)]
    assert factors == pytest.approx([1, 0.75, 0.5, 0], abs=1e-12)
    assert warmup_and_decay(20, 60, warmup_steps=41, cosine=True) == pytest.approx(0.75 / 2)


def test_steps_decay_by_their_factor() -> None:
    assert [step_decay(step, 10, 0.5) for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]
    assert step_decay(10**6, None, 0.5) == 1
