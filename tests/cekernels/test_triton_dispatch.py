"""Conditions for the Triton implementation, and the reasons given where it is refused."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

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


def test_counters_are_shared_by_launches_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One per device for its default stream; a launch on any other stream has its own."""
    pytest.importorskip("triton")
    from cekernels.triton import _runtime

    now = SimpleNamespace(stream=0)
    monkeypatch.setattr(_runtime, "_counters", {})
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: object())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=now.stream)
    )
    one, other = torch.device("cuda:0"), torch.device("cuda:1")
    first = _runtime.zero_counter(one)
    assert _runtime.zero_counter(one) is first
    assert _runtime.zero_counter(other) is not first
    for now.stream in (2, 7):  # 2 stands for another stream in every thread
        others = [_runtime.zero_counter(one) for _ in range(2)]
        assert first not in others
        assert others[0] is not others[1]
    now.stream = 0
    assert _runtime.zero_counter(one) is first
