"""Agreement of docs/numerics.md with the code."""

from __future__ import annotations

import json

import pytest
import torch

from cekernels import _backends, channelwise_linear
from tools import numerics


def recorded() -> dict[str, dict[str, list[float]]]:
    return json.loads(numerics.RESULTS.read_text())


def test_page_shows_the_recorded_results() -> None:
    assert numerics.PAGE.read_text() == numerics.page_with(recorded()), "run tools/numerics.py"


@pytest.mark.parametrize("name", numerics.IMPLEMENTATIONS)
def test_errors_are_those_of_the_page(name: str) -> None:
    """Matrix libraries of other machines sum in another order: up to twice the stated error."""
    if not numerics.can_measure(name):
        pytest.skip("cannot be measured here")
    if name not in recorded():
        pytest.skip("the page says: not measured")
    now = numerics.measure(name)
    assert now == numerics.measure(name), "the page says that results repeat bit for bit"
    assert now.keys() == recorded()[name].keys()
    for case, errors in now.items():
        for error, stated in zip(errors, recorded()[name][case], strict=True):
            assert error <= 2 * max(stated, 2**-24), f"{name}, {case}: {error:.1e}"


def test_limits_are_those_of_the_page() -> None:
    pytest.importorskip("triton")
    from cekernels.triton.channelwise_linear import LARGEST_BACKWARD, LARGEST_FORWARD

    assert LARGEST_BACKWARD == 64
    assert LARGEST_FORWARD == {"ieee": 64, "tf32x3": 64, "tf32": 64, "16 bit": 128}


@pytest.mark.parametrize("n_out", [1, 15, 16, 36, 49, 65])
@pytest.mark.parametrize("n_in", [1, 2, 9, 36, 65, 131])
@pytest.mark.parametrize("batch", [1, 3, 33, 300])
def test_cpp_rounds_bfloat16_once(batch: int, n_in: int, n_out: int) -> None:
    if _backends.unavailable("cpp") is not None:
        pytest.skip("C++ kernels are not built")
    generator = torch.Generator().manual_seed(batch + n_in + n_out)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16()

    # Odd strides: rows of pairs do not begin at multiples of four bytes.
    x = random(batch, 3, n_in + 1)[..., 1:]
    weight, bias = random(3, n_out, n_in + 1)[..., :-1], random(3, n_out)
    found = channelwise_linear(x, weight, bias, impl="cpp").double()
    exact = torch.einsum("bci,coi->bco", x.double(), weight.double()) + bias.double()
    terms = torch.einsum("bci,coi->bco", x.double().abs(), weight.double().abs())
    # Half a unit in the last place of 8 bits, and the error of float32 sums.
    assert ((found - exact).abs() <= exact.abs() * 2**-8 + terms * 2**-20).all()
