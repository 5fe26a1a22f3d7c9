"""Behaviour that needs a GPU: streams, devices, graphs, huge tensors, memory checking."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cekernels
from tests.helpers import implementation_cases as cases
from tests.helpers.implementation_cases import Target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
every_target = pytest.mark.parametrize("target", cases.gpu_targets())


def training_inputs(device: str = "cuda") -> list[Tensor]:
    """Features, weights, bias and a target image of (8, 4, 6, 6) maps, and polygons."""
    r = cases.generator()
    x, target = (torch.randn(8, 4, 6, 6, generator=r) for _ in range(2))
    w, b = torch.randn(4, 36, 36, generator=r) / 6, torch.randn(4, 36, generator=r)
    vertices = torch.cat([cases.star((3, 3), 3, 7, seed) for seed in range(8)])
    contours, samples = torch.arange(9) * 7, torch.arange(9)
    return [t.to(device) for t in (x, w, b, target, vertices, contours, samples)]


def step(impl: str, inputs: list[Tensor]) -> list[Tensor]:
    """Every op once, forward and backward, chained as in a training step."""
    x, w, b, target, *shapes = inputs
    w, b = w.detach().requires_grad_(), b.detach().requires_grad_()
    holed, mask, area = cekernels.fill_polygons(x, 0.0, *shapes, impl=impl)
    y = cekernels.channelwise_linear(holed, w, b, activation="relu", impl=impl)
    loss = cekernels.masked_l2_loss(y, target, mask, area=area, impl=impl)
    return [loss.detach(), *torch.autograd.grad(loss, (w, b))]


@every_target
def test_step_agrees_with_float64(target: Target) -> None:
    inputs = training_inputs()
    wide = [t.double() if t.is_floating_point() else t for t in inputs]
    truth, plain = step("reference", wide), step("reference", inputs)
    for ours, peer, exact in zip(step(target.impl, inputs), plain, truth, strict=True):
        cases.assert_close(ours, peer, exact, factor=3, roundings=8)


@every_target
def test_step_repeats_bit_for_bit(target: Target) -> None:
    inputs = training_inputs()
    first = step(target.impl, inputs)
    for _ in range(100):
        assert all(map(torch.equal, step(target.impl, inputs), first))


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_sums_of_a_split_batch_repeat_bit_for_bit(
    target: Target, dtype: torch.dtype, precision: str
) -> None:
    """The batch is large enough for many blocks to share the sums of one channel."""
    before = torch.get_float32_matmul_precision()
    r = cases.generator()
    x, w, g = (torch.randn(s, generator=r).to("cuda", dtype)
               for s in ((1024, 64, 36), (64, 36, 36), (1024, 64, 36)))  # fmt: skip
    b = torch.zeros(64, 36, dtype=dtype, device="cuda")

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        y = cekernels.channelwise_linear(*leaves, activation="relu", impl=target.impl)
        return torch.autograd.grad(y, leaves, g)

    try:
        torch.set_float32_matmul_precision(precision)
        first = gradients()
        for _ in range(100):
            assert all(map(torch.equal, gradients(), first))
    finally:
        torch.set_float32_matmul_precision(before)


@every_target
def test_tf32_is_used_where_the_precision_allows_it(target: Target) -> None:
    """The only loss is that rounding: results match float64 on operands rounded to TF32."""
    before = torch.get_float32_matmul_precision()
    r = cases.generator()
    x, w = (torch.randn(s, generator=r).cuda() for s in ((64, 8, 36), (8, 36, 36)))
    nearest = [((t.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32) for t in (x, w)]
    exact, rounded = (
        cekernels.channelwise_linear(*(t.double() for t in pair), impl="reference")
        for pair in ((x, w), nearest)
    )
    found = {}
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            found[precision] = cekernels.channelwise_linear(x, w, impl=target.impl)
    finally:
        torch.set_float32_matmul_precision(before)
    assert cases.error(found["highest"], exact.cpu()) < 1e-6
    assert cases.error(found["high"], exact.cpu()) < 1e-6
    assert cases.error(found["medium"], exact.cpu()) > 1e-5
    assert cases.error(found["medium"], rounded.cpu()) < 1e-6


@every_target
def test_runs_on_the_current_stream(target: Target) -> None:
    """Inputs become valid only after a long wait on a side stream: a kernel on another stream
    reads stale ones."""
    inputs = training_inputs()
    truth = step(target.impl, inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(t) for t in inputs]
        torch.cuda._sleep(100_000_000)
        for old, new in zip(late, inputs, strict=True):
            old.copy_(new)
        ours = step(target.impl, late)
    stream.synchronize()
    assert all(map(torch.equal, ours, truth))


@every_target
def test_runs_on_the_device_of_its_tensors(target: Target) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    truth = step(target.impl, training_inputs("cuda:0"))
    with torch.cuda.device(0):
        ours = step(target.impl, training_inputs("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in ours)
    assert all(torch.equal(o.cpu(), t.cpu()) for o, t in zip(ours, truth, strict=True))


@every_target
def test_replays_from_a_cuda_graph(target: Target) -> None:
    """Captured with one set of inputs and replayed with another, mask generation included."""
    static = training_inputs()
    others = training_inputs()
    others[0] = others[0].flip(0)
    others[4] = others[4].flip(0)
    truth = step(target.impl, others)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(target.impl, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step(target.impl, static)
    for old, new in zip(static, others, strict=True):
        old.copy_(new)
    for _ in range(2):
        graph.replay()
    assert all(map(torch.equal, outputs, truth))


@every_target
def test_does_not_wait_for_the_gpu(target: Target) -> None:
    inputs = training_inputs()
    step(target.impl, inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(target.impl, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_target
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(target: Target, dynamic: bool) -> None:
    inputs = training_inputs()

    def forward(
        x: Tensor, w: Tensor, b: Tensor, image: Tensor, v: Tensor, c: Tensor, s: Tensor
    ) -> Tensor:
        holed, mask, area = cekernels.fill_polygons(x, 0.0, v, c, s, impl=target.impl)
        y = cekernels.channelwise_linear(holed, w, b, activation="relu", impl=target.impl)
        return cekernels.masked_l2_loss(y, image, mask, area=area, impl=target.impl)

    compiled: Callable[..., Tensor] = torch.compile(forward, fullgraph=True, dynamic=dynamic)
    results = []
    for run in (forward, compiled):
        leaves = [t.detach().requires_grad_() for t in inputs[1:3]]
        loss = run(inputs[0], *leaves, *inputs[3:])
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_gradcheck_on_the_device() -> None:
    """float64, hence the reference: checks the formulas through ``impl="auto"`` on a GPU."""
    r = cases.generator()
    x, w, b = (torch.rand(s, generator=r, dtype=torch.float64).cuda().requires_grad_()
               for s in ((2, 3, 4), (3, 5, 4), (3, 5)))  # fmt: skip
    p, t = (torch.rand(2, 2, 3, 3, generator=r, dtype=torch.float64).cuda().requires_grad_()
            for _ in range(2))  # fmt: skip
    m = torch.rand(2, 1, 3, 3, generator=r).cuda() < 0.5
    area = m.sum((1, 2, 3))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *a: cekernels.channelwise_linear(*a, activation="relu"), (x, w, b))
        assert check(lambda *a: cekernels.masked_l2_loss(*a, m), (p, t))
        assert check(lambda *a: cekernels.masked_l2_loss(*a, m, area=area), (p, t))


@every_target
def test_more_than_2_to_the_31_elements(target: Target) -> None:
    """The last samples of a tensor whose offsets exceed int32."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free memory")
    n = 36
    batch = 2**31 // (64 * n) + 70
    x = torch.zeros(batch, 64, n, dtype=torch.bfloat16, device="cuda")
    x[-3:] = cases.integers(3, 64, n, dtype=torch.bfloat16, seed=0, limit=1).cuda()
    w = cases.integers(64, n, n, dtype=torch.bfloat16, seed=1, limit=1).cuda()
    y = cekernels.channelwise_linear(x, w, impl=target.impl)
    truth = cekernels.channelwise_linear(x[-3:].clone(), w, impl="reference")
    assert torch.equal(y[-3:], truth)
    assert not y[:-3].any()
    del y
    image = x.view(-1, 1, 8, 8)
    mask = torch.zeros(image.shape, dtype=torch.bool, device="cuda")
    mask[-5:] = True
    loss = cekernels.masked_l2_loss(image, image + 1, mask, normalize="sum", impl=target.impl)
    assert loss.item() == 5 * 64


@every_target
@pytest.mark.parametrize("check", ["memcheck", "racecheck", "initcheck"])
def test_compute_sanitizer_finds_nothing(target: Target, check: str) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    file = Path(__file__).parent / "test_implementations.py"
    chosen = "int64 or integers or boxes or polygons or offsets or nothing or one_pass"
    done = subprocess.run(
        [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all",
         sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file),
         "-k", f"{target.impl}-cuda and ({chosen})"],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        cwd=file.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
