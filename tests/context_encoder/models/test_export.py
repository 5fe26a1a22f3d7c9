"""Every registered network in torch.onnx.export, checked in onnxruntime, and in torch.fx."""

from __future__ import annotations

import pytest
import torch

from context_encoder.models import build_model
from context_encoder.models.base import ContextEncoder
from context_encoder.models.registry import MODELS

NETWORKS = MODELS.names(lambda spec: True)
# Smaller than the released ones, which have 70 million parameters.
OPTIONS = {"dcgan-center": {"bottleneck_units": 50}, "dcgan-whole": {"bottleneck_units": 50}}


def network(name: str) -> ContextEncoder:
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS.get(name, {})).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


def images(model: ContextEncoder, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, model.image_size, model.image_size, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_exported_to_onnx(name: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from tests.cekernels.test_onnx import export, in_onnxruntime

    model = network(name)
    batch = {"x": {0: torch.export.Dim("batch")}}
    exported = export(model, images(model, 2), dynamic_shapes=batch)
    x = images(model, 3)
    expected = model(x).detach()
    (found,) = in_onnxruntime(exported, x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_by_torch_fx(name: str) -> None:
    model = network(name)
    x = images(model, 2)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
