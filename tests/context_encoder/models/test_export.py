"""Every registered network in torch.onnx.export, checked in onnxruntime, and in torch.fx."""

from __future__ import annotations

import pytest
import torch

from context_encoder.models import build_model
from context_encoder.models.base import ContextEncoder, InpaintingNetwork
from context_encoder.models.registry import MODELS

NETWORKS = MODELS.names(lambda spec: True)
# Smaller than the released ones, which have 70 million parameters.
OPTIONS = {"dcgan-center": {"bottleneck_units": 50}, "dcgan-whole": {"bottleneck_units": 50}}


def network(name: str) -> InpaintingNetwork:
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS.get(name, {})).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


def inputs(model: InpaintingNetwork, batch: int) -> tuple[torch.Tensor, ...]:
    """What the network takes: an image, or an image and a mask."""
    generator = torch.Generator().manual_seed(batch)
    size = model.image_size
    image = torch.randn(batch, 3, size, size, generator=generator)
    mask = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    mask[..., size // 4 : size // 2, size // 3 : size // 2] = True
    return model.inputs(image, mask, torch.zeros(3))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_exported_to_onnx(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.cekernels.test_onnx import export, in_onnxruntime

    model = network(name)
    example = inputs(model, 2)
    batch = tuple({0: torch.export.Dim("batch")} for _ in example)
    exported = export(model, *example, dynamic_shapes=batch)
    others = inputs(model, 3)
    expected = model(*others).detach()
    (found,) = in_onnxruntime(exported, *others)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_by_torch_fx(name: str) -> None:
    model = network(name)
    if not isinstance(model, ContextEncoder):
        pytest.skip("the levels of the membrane depend on sizes, which this trace does not know")
    (x,) = inputs(model, 2)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
