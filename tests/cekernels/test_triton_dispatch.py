"""Conditions for the Triton implementation, and the reasons given where it is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import cekernels
from tests.helpers.implementation_cases import INTERPRETED


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_triton() -> None:
    seen = run(
        "import sys, torch; before = 'triton' in sys.modules; import cekernels;"
        "print(before or 'triton' not in sys.modules)"
    )
    assert seen.strip() == "True"


def test_without_triton_everything_else_works() -> None:
    seen = run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, cekernels\n"
        "from cekernels import _backends\n"
        "print(cekernels.channelwise_linear(torch.ones(1, 1, 2), torch.ones(1, 1, 2)).item())\n"
        "print(_backends.unavailable('triton'))\n"
    )
    assert seen.startswith("2.0\ncannot be imported")


def test_a_triton_of_another_version_is_a_reason_not_a_crash() -> None:
    pytest.importorskip("triton")
    seen = run(
        "import triton; del triton.knobs\n"
        "from cekernels import _backends\n"
        "print(_backends.unavailable('triton'))\n"
    )
    assert seen.startswith("cannot be imported: module 'triton' has no attribute 'knobs'")


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton can run here")
def test_forcing_it_without_a_gpu_says_why() -> None:
    pytest.importorskip("triton")
    with pytest.raises(cekernels.ImplementationError, match="no CUDA device"):
        cekernels.channelwise_linear(torch.ones(1, 1, 2), torch.ones(1, 1, 2), impl="triton")


def test_refusals_name_the_reason() -> None:
    pytest.importorskip("triton")
    from cekernels.triton import _runtime, channelwise_linear

    x = torch.ones(1, 1, 2)
    if not INTERPRETED:
        assert "runs on CUDA tensors" in str(_runtime.unsupported_device(x.device))
    wide = x.double()
    assert "float64" in str(channelwise_linear.unsupported("channelwise_linear", wide, wide, None))
