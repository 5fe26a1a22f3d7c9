"""Numerical self-test of a GPU implementation before "auto" selects it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import _auto, _backends, _selfcheck, info, reference
from cekernels._backends import ImplementationError
from cekernels._register import OPS, Op
from cekernels.ops.channelwise_linear import LINEAR
from tests.helpers.implementation_cases import Target, needs, targets

CPU = torch.device("cpu")
INPUT, WEIGHT = torch.ones(2, 3, 4), torch.ones(3, 5, 4)


OPS_WITH_RESULTS = [op for op in OPS if op != "scale_gradient_"]


class Triton:
    """The reference in place of Triton, with one op made wrong."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, spoilt: str = "", spoil: Any = None
    ) -> None:
        self.calls: list[str] = []
        self._spoilt, self._spoil = spoilt, spoil
        kernels = {op.name: self._kernel(op) for op in OPS.values()}
        known = _backends.kernel

        def kernel(op: Op, name: str) -> Any:
            return kernels[op.name] if name == "triton" else known(op, name)

        monkeypatch.setattr(_backends, "kernel", kernel)
        monkeypatch.setattr(_auto, "kernel", kernel)
        for module in (_backends, _auto):
            monkeypatch.setattr(module, "why_not", lambda *_: None)

    def _kernel(self, op: Op) -> Any:
        def run(*args: Any) -> Any:
            self.calls.append(op.name)
            result = op.reference(*args)
            if op.name != self._spoilt:
                return result
            results = self._spoil(*((result,) if isinstance(result, Tensor) else result))
            return results if len(results) > 1 else results[0]

        return run


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a GPU, and start without recorded outcomes."""
    monkeypatch.setattr(_selfcheck, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(_selfcheck, "_outcomes", {})
    monkeypatch.setitem(_auto.ORDER, "cpu", ("triton", "reference"))


def run_auto() -> Tensor:
    """Run the CUDA kernel of ``impl="auto"`` on CPU tensors."""
    output: Tensor = _auto.run(LINEAR, INPUT, WEIGHT, None, False)
    return output


def test_every_op_has_a_check() -> None:
    assert set(reference.__all__) == set(OPS)
    assert all(op.check for op in OPS.values())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", targets())
def test_real_implementations_pass(target: Target, op: str) -> None:
    needs(target, op)
    device = torch.device(target.device)
    arguments = tuple(_selfcheck._to(a, torch.float32, device) for a in OPS[op].check[0]())
    # otherwise the check would compare nothing
    assert _backends.why_not(OPS[op], target.impl, arguments) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _selfcheck.failure(OPS[op], target.impl, device) is None


def one_element(value: Tensor) -> Tensor:
    value = value.clone()
    flat = value.view(-1)
    flat[-1] = ~flat[-1] if value.dtype == torch.bool else flat[-1] + 1
    return value


@pytest.mark.parametrize("op", OPS_WITH_RESULTS)
def test_one_wrong_element_fails_it(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(_selfcheck._results(OPS[op].reference, list(OPS[op].check[0]())))
    for which in range(count):

        def spoil(*results: Tensor, which: int = which) -> tuple[Tensor, ...]:
            return tuple(one_element(r) if i == which else r for i, r in enumerate(results))

        _selfcheck._outcomes.clear()
        with monkeypatch.context() as patch:
            Triton(patch, op, spoil)
            with pytest.warns(RuntimeWarning, match=rf'impl="auto" does not use triton for {op}'):
                reason = _selfcheck.failure(OPS[op], "triton", CPU)
        assert reason == "it gives wrong results in float32"


def test_auto_goes_on_to_the_next_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(result: Tensor) -> tuple[Tensor]:
        raise RuntimeError("no C compiler was found")

    triton = Triton(monkeypatch, "channelwise_linear", spoil)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler was found"):
        result = run_auto()
    assert torch.equal(result, torch.full((2, 3, 5), 4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run_auto(), result)
    assert triton.calls == ["channelwise_linear"]


def test_auto_takes_what_passes_and_checks_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = Triton(monkeypatch)
    for _ in range(3):
        run_auto()
    assert triton.calls == ["channelwise_linear"] * (2 + 3)  # two dtypes, three calls


def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_the_first_use_while_a_graph_is_captured_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton, device = Triton(monkeypatch), torch.device("cuda", 0)
    captured(monkeypatch)
    message = r'fill_masked: .*graph is captured.*cekernels.warm_up\("cuda:0"\) before the capture'
    with pytest.raises(ImplementationError, match=message):
        _selfcheck.failure(OPS["fill_masked"], "triton", device)
    assert triton.calls == []
    assert _selfcheck._outcomes == {}  # to be checked later


def test_no_graph_takes_the_reference_for_what_is_not_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole path of a call: neither the kernel nor the reference becomes part of the graph."""
    triton, device = Triton(monkeypatch), torch.device("cuda", 0)
    captured(monkeypatch)
    monkeypatch.setattr(_auto, "device_of", lambda args: device)
    monkeypatch.setitem(_auto.ORDER, "cuda", ("triton", "reference"))
    monkeypatch.setattr(_auto, "MICROSECONDS", {}, raising=False)  # which else may order them
    with pytest.raises(ImplementationError, match="warm_up"):
        run_auto()
    assert triton.calls == []
    _selfcheck._outcomes["channelwise_linear", "triton", device] = None  # as a self-test leaves it
    assert torch.equal(run_auto(), torch.full((2, 3, 5), 4.0))
    assert triton.calls == ["channelwise_linear"]


def test_warm_up_tests_every_op_before_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = Triton(monkeypatch)
    monkeypatch.setattr(_backends, "unavailable", lambda name: None)
    cekernels.warm_up(CPU)
    tested = {name for name, op in OPS.items() if _backends.kernel(op, "triton") is not None}
    assert {op for op, impl, _ in _selfcheck._outcomes if impl == "triton"} == tested
    assert set(triton.calls) == tested
    assert set(_selfcheck._outcomes.values()) == {None}
    before = len(triton.calls)
    cekernels.warm_up(CPU)
    assert len(triton.calls) == before


def test_warm_up_does_nothing_without_self_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selfcheck, "DEVICES", ("cuda",))
    cekernels.warm_up("cpu")
    assert _selfcheck._outcomes == {}


def test_warm_up_says_when_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="finds no CUDA device"):
        cekernels.warm_up("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    captured(monkeypatch)
    with pytest.raises(RuntimeError, match="before a CUDA graph is captured"):
        cekernels.warm_up("cuda:0")


def test_a_forced_implementation_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = Triton(monkeypatch, "channelwise_linear", lambda result: (one_element(result),))
    _backends.run_triton(LINEAR, INPUT, WEIGHT, None, False)
    assert triton.calls == ["channelwise_linear"]


def test_the_report_lists_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    Triton(monkeypatch, "fill_masked", lambda result: (one_element(result),))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "device", lambda *_: CPU)
    lines = info._checks_on_devices("triton")
    count = len(OPS)
    assert lines == [
        f"cpu: {count - 1} of {count} ops pass their self-test",
        "  fill_masked: it gives wrong results in float32",
    ]


def test_a_lack_of_memory_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]

    def spoil(result: Tensor) -> tuple[Tensor]:
        if full:
            raise torch.OutOfMemoryError("out of memory")
        return (result,)

    triton = Triton(monkeypatch, "channelwise_linear", spoil)
    with pytest.raises(torch.OutOfMemoryError):
        run_auto()
    full.clear()
    triton.calls.clear()
    run_auto()
    assert len(triton.calls) == 2 + 1


def test_the_check_may_wait_where_the_program_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = [2]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with _selfcheck._waiting_allowed(torch.device("cuda", 0)):
        assert modes == [2, "default"]
    assert modes == [2, "default", 2]


def test_loads_of_one_element_and_of_16_bytes_are_checked() -> None:
    pytest.importorskip("triton")
    from tests.helpers.triton_compile import implementation, launches

    by_pixels = [op for op in OPS.values() if len(op.check) > 1]
    assert len(by_pixels) == 5
    for op in by_pixels:
        found = []
        for case in op.check:
            arguments = [_selfcheck._to(a, torch.float32, "meta") for a in case()]
            calls = launches(getattr(implementation, op.name), *arguments)
            found += [c for c in calls if "ALIGN" in c.arguments]
        odd, aligned = found
        assert aligned.arguments["ALIGN"] == 4
        assert odd.arguments["ALIGN"] < 4
        assert aligned.grid[0] > 2, "more than one block per sample"


def test_the_linear_check_splits_the_batch() -> None:
    """The kernel that sums the parts is thereby checked too."""
    pytest.importorskip("triton")
    from tests.helpers.triton_compile import implementation, launches

    case = OPS["channelwise_linear_backward"].check[0]
    arguments = [_selfcheck._to(a, torch.float32, "meta") for a in case()]
    assert len(launches(implementation.channelwise_linear_backward, *arguments)) == 3
