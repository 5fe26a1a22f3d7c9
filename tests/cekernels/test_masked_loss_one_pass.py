"""The masked loss with its gradient computed in the forward pass, as on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import _backends
from cekernels._register import OPS
from cekernels.ops import masked_loss

SHAPE = (2, 3, 4, 5)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_loss, "ONE_PASS_DEVICES", ("cpu",))


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    r = torch.Generator().manual_seed(0)
    p, t = (torch.randn(SHAPE, generator=r, dtype=torch.float64).to(dtype) for _ in range(2))
    mask = torch.rand(2, 1, 4, 5, generator=r) < 0.5
    return p.requires_grad_(), t.requires_grad_(), mask


def in_one_pass(loss: Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "masked_loss_and_gradientBackward"


losses = pytest.mark.parametrize("loss", [cekernels.masked_l2_loss, cekernels.masked_l1_loss])
options = pytest.mark.parametrize(
    "options",
    [{"normalize": "all"}, {"normalize": "sum"}, {"normalize": "none"}, {"area": True}, {}],
    ids=str,
)


def arguments(mask: Tensor, options: dict[str, object]) -> dict[str, object]:
    return {"area": mask.sum((1, 2, 3))} if "area" in options else options


@losses
@options
def test_gradients_of_any_order(loss: Callable[..., Tensor], options: dict[str, object]) -> None:
    p, t, mask = inputs()

    def run(p: Tensor, t: Tensor) -> Tensor:
        return loss(p, t, mask, **arguments(mask, options))

    assert in_one_pass(run(p, t))
    assert torch.autograd.gradcheck(run, (p, t))
    assert torch.autograd.gradgradcheck(run, (p, t))


@losses
@options
def test_the_gradient_is_handed_over_once(
    loss: Callable[..., Tensor], options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retained graph gives the same gradient again and leaves the earlier one unchanged."""
    p, t, mask = inputs()
    value = loss(p, t, mask, **arguments(mask, options))
    grad = torch.full_like(value, 3.0)
    given = [torch.autograd.grad(value, (p, t), grad, retain_graph=True) for _ in range(3)]
    kept = [g.clone() for g in given[0]]
    monkeypatch.setattr(masked_loss, "ONE_PASS_DEVICES", ())
    truth = torch.autograd.grad(loss(p, t, mask, **arguments(mask, options)), (p, t), grad)
    for ours in (*given, kept):
        torch.testing.assert_close(tuple(ours), truth)


def test_infinite_scale_leaves_the_rest_at_zero() -> None:
    p, t, mask = inputs(torch.float32)
    (cekernels.masked_l2_loss(p, t, mask, normalize="sum") * float("inf")).backward()
    assert p.grad is not None
    assert not p.grad[~mask.expand(SHAPE)].any()
    assert p.grad[mask.expand(SHAPE)].isinf().all()


def test_only_where_it_pays() -> None:
    p, t, mask = inputs(torch.float32)
    loss = cekernels.masked_l2_loss
    assert in_one_pass(loss(p, t, mask, normalize="sum"))
    assert in_one_pass(loss(p, t, mask)), "the kernel sums the mask"
    assert not in_one_pass(loss(p.half(), t.half(), mask, normalize="sum")), "it would underflow"
    with torch.no_grad():
        assert loss(p, t, mask, normalize="sum").grad_fn is None
    value = torch.func.grad(lambda p: loss(p, t.detach(), mask, normalize="sum"))(p.detach())
    assert value.shape == SHAPE
    compiled = torch.compile(
        lambda p, t: loss(p, t, mask, normalize="sum"), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(loss(p, t, mask, normalize="sum"), p)
    torch.testing.assert_close(torch.autograd.grad(compiled(p, t), p), expected)


@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.parametrize("op", ["masked_loss_and_gradient", "scale_gradient_"])
def test_what_runs_on_a_gpu_has_it(name: str, op: str) -> None:
    """Its absence would go unnoticed: the reference would run instead."""
    if name == "triton":
        pytest.importorskip("triton")
    assert _backends.kernel(OPS[op], name) is not None


def test_opcheck() -> None:
    p, t, mask = inputs(torch.float32)
    area = mask.sum((1, 2, 3))
    # without the comparison of compiled and eager gradients: it reads the gradient that the
    # backward pass scales in place
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    op = torch.ops.cekernels.masked_loss_and_gradient.default
    torch.library.opcheck(op, (p, t, mask, area, 2, "mask"), test_utils=tests)
    gradient = torch.rand(SHAPE) * mask
    scale = torch.ops.cekernels.scale_gradient_.default
    torch.library.opcheck(scale, (gradient, torch.tensor(0.5), mask))
