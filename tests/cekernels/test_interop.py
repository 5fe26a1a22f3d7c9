"""The ops in tools of torch: FLOP counting, DTensor, torch.fx, torch.export and its files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cekernels
from cekernels import (
    ChannelwiseLinear,
    _interop,
    channelwise_linear,
    fill_masked,
    masked_l1_loss,
    masked_l2_loss,
    to_fixed_point,
)
from cekernels._register import OPS


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def python(program: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# --- FLOPs ----------------------------------------------------------------------------------------


def flops(call: Callable[[], Tensor], backward: bool = False) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = call()
        if backward:
            output.sum().backward()
    total: int = counter.get_total_flops()
    return total


def test_flops_are_those_of_the_batched_product() -> None:
    B, C, n_in, n_out = 3, 4, 6, 5
    x, w = random(B, C, n_in), random(C, n_out, n_in)
    bias = random(C, n_out).requires_grad_()

    def product(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), w.mT).transpose(0, 1)

    for of_x, of_w in ((False, False), (True, False), (False, True), (True, True)):
        x, w = (t.detach().requires_grad_(need) for t, need in ((x, of_x), (w, of_w)))
        for back in (False, True):
            if back and not (of_x or of_w):
                continue
            expected = flops(lambda x=x, w=w: product(x, w), back)  # type: ignore[misc]
            assert expected == 2 * B * C * n_in * n_out * (1 + back * (of_x + of_w))
            for impl in ("auto", "reference"):
                given = x, w, bias
                found = flops(
                    lambda given=given, impl=impl: channelwise_linear(*given, impl=impl),  # type: ignore[misc]
                    back,
                )
                assert found == expected


def test_a_registration_that_fails_is_a_warning() -> None:
    def fail() -> None:
        raise AttributeError("gone")

    message = "does not take the registration of the ops with torch.utils.flop_counter: Attrib"
    with pytest.warns(RuntimeWarning, match=message):
        _interop._attempt("torch.utils.flop_counter", fail)


# --- DTensor --------------------------------------------------------------------------------------

DTENSOR = """
import os, sys
import torch
import torch.distributed as dist
if sys.argv[1] == "0":  # in one process before this package, in the other after it
    import torch.distributed.tensor
    import torch.utils.flop_counter
import cekernels
from torch.distributed.tensor import (
    Replicate, Shard, distribute_tensor, distribute_module, init_device_mesh
)
from torch.distributed.tensor.debug import CommDebugMode

torch.set_num_threads(1)
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[1]), world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole, of_batch, of_channels = Replicate(), Shard(0), Shard(1)

def leaf(tensor, placement=None):
    tensor = tensor if placement is None else distribute_tensor(tensor, mesh, [placement])
    return tensor.clone().requires_grad_()

def same(found, expected):
    torch.testing.assert_close(found.full_tensor(), expected)

x, w, b, g = (torch.randn(s) for s in ((6, 4, 2, 3), (4, 6, 6), (4, 6), (6, 4, 2, 3)))
for activation in (None, "relu"):
    for placements in ((of_batch, whole, whole), (of_channels, of_batch, of_batch)):
        tensors = [leaf(*pair) for pair in zip((x, w, b), placements)]
        plain = list(map(leaf, (x, w, b)))
        with CommDebugMode() as communication:
            output = cekernels.channelwise_linear(*tensors, activation=activation)
        assert communication.get_total_counts() == 0
        output.backward(distribute_tensor(g, mesh, output.placements))
        assert output.placements == placements[:1], output.placements
        expected = cekernels.channelwise_linear(*plain, activation=activation)
        expected.backward(g)
        same(output, expected)
        for a, c in zip(tensors, plain):
            same(a.grad, c.grad)
layer = distribute_module(cekernels.ChannelwiseLinear(4, (2, 3)), mesh)
assert layer(distribute_tensor(x, mesh, [of_batch])).placements == (of_batch,)

p, t, m = torch.randn(4, 2, 5, 6), torch.randn(4, 2, 5, 6), torch.rand(4, 1, 5, 6) > 0.5
value = [1.0, 2.0]
for placements in ((of_batch,) * 3, (of_channels, of_channels, whole)):
    for normalize in ("mask", "all", "sum", "none"):
        prediction, plain = leaf(p, placements[0]), leaf(p)
        target = distribute_tensor(t, mesh, [placements[1]])
        mask = distribute_tensor(m, mesh, [placements[2]])
        with CommDebugMode() as communication:
            loss = cekernels.masked_l2_loss(prediction, target, mask, normalize=normalize)
        assert (communication.get_total_counts() == 0) == (normalize in ("sum", "none"))
        expected = cekernels.masked_l2_loss(plain, t, m, normalize=normalize)
        same(loss, expected)
        loss.sum().backward()
        expected.sum().backward()
        same(prediction.grad, plain.grad)
    filled = cekernels.fill_masked(prediction, mask, value)
    assert filled.placements == placements[:1]
    same(filled, cekernels.fill_masked(p, m, value))
    boxes = cekernels.pack_boxes([[[0, 0, 3, 3]], [], [[1, 1, 9, 9]], []])
    whole_boxes = [distribute_tensor(t, mesh, [whole]) for t in boxes]
    found = cekernels.fill_boxes(prediction, 0.5, *whole_boxes)
    for a, c in zip(found, cekernels.fill_boxes(p, 0.5, *boxes)):
        same(a, c)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    cekernels.channelwise_linear(x.flatten(2), w)
assert counter.get_total_flops() == 2 * 6 * 4 * 6 * 6
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_sharding_by_batch_and_channel_gives_the_results_of_whole_tensors(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DTENSOR, str(rank), str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert not any("cekernels:" in error for error in errors), "a registration failed"


# --- torch.fx -------------------------------------------------------------------------------------


def test_symbolic_trace_records_the_calls() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 4, 1)
            self.layer = ChannelwiseLinear(4, (2, 3), (3, 3), activation="relu")

        def forward(self, image: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            output = self.layer(self.encoder(fill_masked(image, mask, [0.1, 0.2, 0.3])))
            target = channelwise_linear(target, self.layer.weight).reshape(output.shape)
            ones = to_fixed_point(output) != -1
            l1 = masked_l1_loss(output, target, ones)
            return output, l1, masked_l2_loss(output, target, ones, normalize="sum")

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    arguments = random(2, 3, 2, 3), random(2, 1, 2, 3) > 0, random(2, 4, 2, 3)
    for found, expected in zip(graph(*arguments), model(*arguments), strict=True):
        assert torch.equal(found, expected)
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert {
        fill_masked,
        channelwise_linear,
        masked_l1_loss,
        masked_l2_loss,
        to_fixed_point,
    } <= called
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got int 3"):
        channelwise_linear(3, model.layer.weight)  # type: ignore[arg-type]


def test_symbolic_trace_records_masks_and_fills() -> None:
    boxes = cekernels.pack_boxes([[[0, 0, 2, 2]], [[1, 1, 4, 3]]])
    polygons = cekernels.pack_polygons([[[[0, 0], [3, 0], [3, 3]]], []])

    def draw(image: Tensor, boxes: Any, polygons: Any) -> tuple[Tensor, ...]:
        flat, offsets = boxes
        first, second, third = polygons
        mask, area = cekernels.rasterize_boxes(flat, offsets, 4, 5)
        other = cekernels.rasterize_polygons(first, second, third, 4, 5, fill_rule="evenodd")
        filled, _, _ = cekernels.fill_boxes(image, 0.5, flat, offsets)
        last = cekernels.fill_polygons(filled, [1.0, 2.0], first, second, third)
        return mask, area, other[0], last[0], cekernels.remove_seam(last[0], mask)

    arguments = random(2, 2, 4, 5), boxes, polygons
    graph = torch.fx.symbolic_trace(draw)
    for found, expected in zip(graph(*arguments), draw(*arguments), strict=True):
        assert torch.equal(found, expected)


# --- torch.export and its files -------------------------------------------------------------------

LOAD = """
import sys, torch
x, expected = torch.load(sys.argv[1] + "/values.pt")
def outcome(name):
    try:
        output = torch.export.load(f"{sys.argv[1]}/{name}.pt2").module()(x)
    except Exception as error:
        return type(error).__name__
    return torch.allclose(output, expected, atol=1e-5)
alone = [outcome("plain"), outcome("layer")]
import cekernels
print(*alone, outcome("layer"))
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_saved_program_needs_the_import_unless_it_was_decomposed(tmp_path: Path) -> None:
    layer, x = ChannelwiseLinear(4, (2, 3), activation="relu"), random(2, 4, 2, 3)
    program = torch.export.export(layer, (x,))
    table = torch.export.default_decompositions() | cekernels.decompositions()
    plain = program.run_decompositions(table)
    assert "cekernels" not in str(plain.graph)
    torch.testing.assert_close(plain.module()(x), layer(x))
    torch.save((x, plain.module()(x).detach()), tmp_path / "values.pt")
    torch.export.save(program, tmp_path / "layer.pt2")
    torch.export.save(plain, tmp_path / "plain.pt2")
    assert python(LOAD, str(tmp_path)).split() == ["True", "RuntimeError", "True"]


@pytest.mark.skipif(
    os.environ.get("CEKERNELS_EXPORT_ALL") != "1", reason="takes minutes: CEKERNELS_EXPORT_ALL=1"
)
def test_a_package_of_the_inductor_needs_the_import(tmp_path: Path) -> None:
    layer, x = ChannelwiseLinear(4, (2, 3), activation="relu").eval(), random(2, 4, 2, 3)
    path = str(tmp_path / "layer.pt2")
    program = torch.export.export(layer, (x,))
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    torch.save((x, layer(x).detach()), tmp_path / "values.pt")
    load = LOAD.replace("torch.export.load(", "torch._inductor.aoti_load_package(")
    load = load.replace(").module()(x)", ")(x)").replace('outcome("plain"), ', "")
    assert python(load, str(tmp_path)).split() == ["RuntimeError", "True"]


def test_decompositions_compute_what_the_ops_do() -> None:
    table = cekernels.decompositions()
    for op in OPS.values():
        if op.decomposition is None:
            continue
        assert set(op.overloads()) <= table.keys()
        arguments = op.example()
        found, expected = op.decomposition(*arguments), op.reference(*arguments)
        as_tuple: Any = lambda r: (r,) if isinstance(r, Tensor) else r  # noqa: E731
        for a, b in zip(as_tuple(found), as_tuple(expected), strict=True):
            assert torch.equal(a, b)
