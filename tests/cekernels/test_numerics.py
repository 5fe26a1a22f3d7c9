"""Agreement of docs/numerics.md with the code."""

from __future__ import annotations

import json

import pytest

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
