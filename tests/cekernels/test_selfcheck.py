"""The check that a GPU implementation has to pass on its device before "auto" takes it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import _dispatch, _selfcheck, info, reference
from tests.helpers.implementation_cases import Target, targets

CPU = torch.device("cpu")
INPUT, WEIGHT = torch.ones(2, 3, 4), torch.ones(3, 5, 4)


class Wrapper(ModuleType):
    """The reference under another name, with one op spoilt."""

    def __init__(self, op: str = "", spoil: Any = None) -> None:
        super().__init__("cekernels.triton")
        self.calls: list[str] = []
        self.reason: str | None = None
        for name in _selfcheck.OPS:
            setattr(self, name, self.serve(name, spoil if name == op else None))

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, op: str, *args: Any) -> str | None:
        return self.reason

    def serve(self, op: str, spoil: Any) -> Any:
        def run(*args: Any) -> Any:
            self.calls.append(op)
            if op == "scale_gradient_":
                return reference.scale_gradient_(*args)
            results = _selfcheck._results(reference, op, list(args))
            if spoil is not None:
                results = spoil(*results)
            return results if len(results) > 1 else results[0]

        return run


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU is treated as a GPU is, and nothing is remembered from before."""
    monkeypatch.delenv(_dispatch.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(_selfcheck, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(_selfcheck, "_outcomes", {})
    monkeypatch.setitem(_dispatch.AUTO_ORDER, "cpu", ("triton", "reference"))
    yield
    _dispatch.load.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "cekernels.triton", module)
    _dispatch.load.cache_clear()


def test_every_op_of_the_reference_has_a_check() -> None:
    assert set(reference.__all__) <= set(_selfcheck.OPS)


@pytest.mark.parametrize("op", _selfcheck.OPS)
@pytest.mark.parametrize("target", targets())
def test_real_implementations_pass(target: Target, op: str) -> None:
    module, _ = _dispatch.load(target.impl)
    assert module is not None
    if not hasattr(module, op):
        pytest.skip(f"{target.impl} has no {op}")
    device = torch.device(target.device)
    arguments = [_selfcheck._to(a, torch.float32, device) for a in _selfcheck._CASES[op]()]
    assert module.unsupported(op, *arguments) is None  # else the check would look at nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _selfcheck.failure(op, target.impl, module, device) is None


def one_element(value: Tensor) -> Tensor:
    value = value.clone()
    flat = value.view(-1)
    flat[-1] = ~flat[-1] if value.dtype == torch.bool else flat[-1] + 1
    return value


@pytest.mark.parametrize("op", [op for op in _selfcheck.OPS if op != "scale_gradient_"])
def test_one_wrong_element_fails_it(op: str) -> None:
    count = len(_selfcheck._results(reference, op, list(_selfcheck._CASES[op]())))
    for which in range(count):

        def spoil(*results: Tensor, which: int = which) -> tuple[Tensor, ...]:
            return tuple(one_element(r) if i == which else r for i, r in enumerate(results))

        _selfcheck._outcomes.clear()
        with pytest.warns(RuntimeWarning, match=rf'impl="auto" does without triton for {op} on'):
            reason = _selfcheck.failure(op, "triton", Wrapper(op, spoil), CPU)
        assert reason == "it gives wrong results in float32"


def test_auto_goes_on_to_the_next_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(result: Tensor) -> tuple[Tensor]:
        raise RuntimeError("no C compiler was found")

    module = Wrapper("channelwise_linear", spoil)
    install(monkeypatch, module)
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler was found"):
        result = cekernels.channelwise_linear(INPUT, WEIGHT)
    assert torch.equal(result, torch.full((2, 3, 5), 4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cekernels.channelwise_linear(INPUT, WEIGHT), result)
    assert module.calls == ["channelwise_linear"]


def test_auto_takes_what_passes_and_checks_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Wrapper()
    install(monkeypatch, module)
    for _ in range(3):
        cekernels.channelwise_linear(INPUT, WEIGHT)
    assert module.calls == ["channelwise_linear"] * (2 + 3)  # two dtypes, three calls


def test_nothing_is_checked_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    module, device = Wrapper(), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    reason = _selfcheck.failure("fill_masked", "triton", module, device)
    assert reason is not None
    assert "graph is captured" in reason
    assert module.calls == []
    assert _selfcheck._outcomes == {}  # asked again afterwards


def test_a_forced_implementation_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Wrapper("channelwise_linear", lambda result: (one_element(result),))
    install(monkeypatch, module)
    cekernels.channelwise_linear(INPUT, WEIGHT, impl="triton")
    assert module.calls == ["channelwise_linear"]


def test_the_report_lists_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Wrapper("fill_masked", lambda result: (one_element(result),)))
    monkeypatch.setitem(_dispatch.AUTO_ORDER, "cuda", ("triton", "reference"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "device", lambda *_: CPU)
    lines = info._checks_on_devices("triton")
    count = len(_selfcheck.OPS)
    assert lines == [
        f"cpu: {count - 1} of {count} ops pass their check",
        "  fill_masked: it gives wrong results in float32",
    ]


def test_a_lack_of_memory_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True]

    def spoil(result: Tensor) -> tuple[Tensor]:
        if full:
            raise torch.OutOfMemoryError("out of memory")
        return (result,)

    module = Wrapper("channelwise_linear", spoil)
    install(monkeypatch, module)
    with pytest.raises(torch.OutOfMemoryError):
        cekernels.channelwise_linear(INPUT, WEIGHT)
    full.clear()
    module.calls.clear()
    cekernels.channelwise_linear(INPUT, WEIGHT)
    assert len(module.calls) == 2 + 1


def test_the_check_may_wait_where_the_program_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[object] = [2]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with _selfcheck._waiting_allowed(torch.device("cuda", 0)):
        assert modes == [2, "default"]
    assert modes == [2, "default", 2]


def test_loads_of_one_element_and_of_16_bytes_are_checked() -> None:
    pytest.importorskip("triton")
    from cekernels import triton
    from tests.helpers.triton_compile import launches

    for op, more in _selfcheck._MORE_CASES.items():
        found = []
        for case in (_selfcheck._CASES[op], *more):
            arguments = [_selfcheck._to(a, torch.float32, "meta") for a in case()]
            calls = launches(getattr(triton, op), *arguments)
            found += [c for c in calls if "ALIGN" in c.arguments]
        odd, aligned = found
        assert aligned.arguments["ALIGN"] == 4
        assert odd.arguments["ALIGN"] < 4
        assert aligned.grid[0] > 2, "more than one block a sample"


def test_the_linear_check_splits_the_batch() -> None:
    """So that the kernel that adds up the parts is looked at too."""
    pytest.importorskip("triton")
    from cekernels import triton
    from tests.helpers.triton_compile import launches

    arguments = [_selfcheck._to(a, torch.float32, "meta") for a in _selfcheck._linear_backward()]
    assert len(launches(triton.channelwise_linear_backward, *arguments)) == 3
