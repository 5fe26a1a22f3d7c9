"""ONNX export of the ops by torch.onnx.export alone, against results in onnxruntime."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cekernels import ChannelwiseLinear, fill_masked, masked_l1_loss, masked_l2_loss

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def in_onnxruntime(exported: Any, *arguments: Tensor) -> list[Tensor]:
    """The outputs of a model, or program, exported for these arguments or other sizes."""
    file = io.BytesIO()
    exported.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]


def export(model: Any, *arguments: Tensor, **options: Any) -> Any:
    return torch.onnx.export(model, arguments, dynamo=True, verbose=False, **options)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_the_layer_for_any_batch(impl: Any) -> None:
    layer = ChannelwiseLinear(4, (2, 3), (3, 3), activation="relu", impl=impl).eval()
    batch = torch.export.Dim("batch")
    model = export(layer, random(2, 4, 2, 3), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        x = random(size, 4, 2, 3, seed=size)
        torch.testing.assert_close(in_onnxruntime(model, x)[0], layer(x).detach())


def test_a_program_that_is_exported_already() -> None:
    layer, x = ChannelwiseLinear(4, 6, bias=False), random(2, 4, 6)
    program = torch.export.export(layer, (x,))
    assert "cekernels.channelwise_linear" in str(program.graph)
    torch.testing.assert_close(in_onnxruntime(export(program), x)[0], layer(x).detach())


def test_losses_and_fill() -> None:
    class Step(nn.Module):
        def forward(self, image: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            filled = fill_masked(image, mask, [0.1, 0.2, 0.3])
            l2: Callable[..., Tensor] = masked_l2_loss
            return (
                filled,
                l2(filled, target, mask),
                masked_l1_loss(filled, target, mask, normalize="none"),
            )

    arguments = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1), random(2, 1, 4, 5) > 0
    found = in_onnxruntime(export(Step(), *arguments), *arguments)
    for a, b in zip(found, Step()(*arguments), strict=True):
        torch.testing.assert_close(a, b)
