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
from cekernels._selfcheck import CHANNELS_LAST, OTHER, Kind
from cekernels.ops import channelwise_linear as _linear
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


def plain(op: str) -> Kind:
    """The first kind of an op."""
    return next(iter(OPS[op].check.usual((torch.float32,), ((36, 36),))))


def kinds(op: str) -> list[Kind]:
    """Those of a warm-up."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return list(OPS[op].check.usual(dtypes, ((16, 16), (36, 36), (64, 64), (7, 20), (132, 16))))


def run_auto() -> Tensor:
    """Run the CUDA kernel of ``impl="auto"`` on CPU tensors."""
    output: Tensor = _auto.run(LINEAR, INPUT, WEIGHT, None, False)
    return output


def test_every_op_has_a_check() -> None:
    assert set(reference.__all__) == set(OPS)
    assert all(op.check.cases(plain(name)) for name, op in OPS.items())


@pytest.mark.parametrize("op", OPS)
def test_the_calls_that_test_a_kind_are_of_that_kind(op: str) -> None:
    """Otherwise the first use of a kind would be tested by another kernel."""
    for kind in kinds(op):
        for case in OPS[op].check.cases(kind):
            given = _selfcheck.placed(case, kind, "cpu")
            assert OPS[op].check.kind(*given) == kind


def test_kinds_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What selects a kernel makes another kind; sizes of batches and images do not."""

    def linear(x: Tensor, n_out: int = 36) -> Kind:
        weight = torch.zeros(x.shape[1], n_out, x.shape[2], dtype=x.dtype)
        return OPS["channelwise_linear"].check.kind(x, weight, None, False)

    x = torch.zeros(5, 4, 36)
    base = linear(x)
    assert base == linear(torch.zeros(9, 2, 36)) == plain("channelwise_linear")
    off = torch.zeros(5 * 4 * 36 + 1)[1:].view(5, 4, 36)  # not at a multiple of 16 bytes
    others = [linear(x.bfloat16()), linear(x, 49), linear(torch.zeros(5, 4, 49)), linear(off)]
    others.append(linear(x[..., :16], 16))
    assert linear(x.transpose(0, 1)) == linear(off)
    for precision in ("high", "medium"):
        monkeypatch.setattr(_linear, "float32_products", lambda p=precision: p)
        others.append(linear(x))
        assert linear(x.bfloat16()) == others[0]
    assert len({base, *others}) == 1 + len(others)
    # Larger maps share two tests.
    monkeypatch.undo()
    large = {linear(torch.zeros(1, 1, n), n) for n in (132, 144, 1024)}
    assert len(large) == 1
    assert linear(torch.zeros(1, 1, 225), 225) not in large

    image, mask = torch.zeros(2, 3, 6, 5), torch.ones(2, 1, 6, 5) > 0
    last = image.to(memory_format=torch.channels_last)
    for name, before, after in (
        ("masked_loss", (), (None, 2, "mask")), ("scale_gradient_", (), ()),
        ("masked_loss_backward", (torch.ones(()), torch.ones(())), (2,)),
    ):  # fmt: skip
        images = 1 if name == "scale_gradient_" else 2

        def kind(*given: Tensor, mask: Tensor, parts: Any = (name, before, after)) -> Kind:
            name, before, after = parts
            if name == "scale_gradient_":
                return OPS[name].check.kind(given[0], torch.ones(()), mask)
            return OPS[name].check.kind(*before, *given, mask, *after)

        first = kind(*[image] * images, mask=mask)
        assert first == kind(*[image[:1, :1]] * images, mask=mask[:1].byte())
        found = {
            first,
            kind(*[last] * images, mask=mask),
            kind(*[image.half()] * images, mask=mask),
            kind(*[image] * images, mask=mask.float()),
            kind(*[image[..., 1:]] * images, mask=mask[..., 1:]),
        }
        assert len(found) == 5


def test_products_are_tested_with_the_digits_that_they_keep() -> None:
    """A kernel that rounds to TF32 would not pass as one of more digits."""
    for op in ("channelwise_linear", "channelwise_linear_backward"):
        for products in ("ieee", "tf32x3"):
            kind = plain(op)._replace(products=products)
            for case in OPS[op].check.cases(kind):
                exact = _selfcheck._results(
                    OPS[op].reference, [_selfcheck._double(a) for a in case]
                )
                rounded = [
                    ((a.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
                    if isinstance(a, Tensor) and i < 3
                    else a
                    for i, a in enumerate(case)
                ]
                found = _selfcheck._results(OPS[op].reference, rounded)
                pairs = list(zip(found, exact, strict=True))[:2]  # not that of the bias
                assert all(not torch.equal(a.double(), b) for a, b in pairs)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", targets())
def test_real_implementations_pass(target: Target, op: str) -> None:
    needs(target, op)
    device = torch.device(target.device)
    arguments = tuple(_selfcheck.placed(OPS[op].example(), plain(op), device))
    # otherwise the check would compare nothing
    assert _backends.why_not(OPS[op], target.impl, arguments) is None
    few = target.impl == "triton" and device.type == "cpu"  # the interpreter takes seconds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in [plain(op)] if few else kinds(op):
            assert _selfcheck.failure_of_kind(OPS[op], target.impl, device, kind) is None


def one_element(value: Tensor) -> Tensor:
    value = value.clone()
    flat = value.view(-1)
    flat[-1] = ~flat[-1] if value.dtype == torch.bool else flat[-1] + 1
    return value


@pytest.mark.parametrize("op", OPS_WITH_RESULTS)
def test_one_wrong_element_fails_it(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(_selfcheck._results(OPS[op].reference, OPS[op].example()))
    for which in range(count):

        def spoil(*results: Tensor, which: int = which) -> tuple[Tensor, ...]:
            return tuple(one_element(r) if i == which else r for i, r in enumerate(results))

        _selfcheck._outcomes.clear()
        with monkeypatch.context() as patch:
            Triton(patch, op, spoil)
            with pytest.warns(RuntimeWarning, match=rf'impl="auto" does not use triton for {op}'):
                reason = _selfcheck.failure_of_kind(OPS[op], "triton", CPU, plain(op))
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
    assert triton.calls == ["channelwise_linear"] * (2 + 3)  # two cases, three calls


def test_a_kernel_that_is_wrong_for_one_kind_serves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(result: Tensor) -> tuple[Tensor]:
        return (one_element(result) if result.dtype == torch.bfloat16 else result,)

    triton = Triton(monkeypatch, "channelwise_linear", spoil)
    for _ in range(2):
        run_auto()
    used = len(triton.calls)
    operands = INPUT.bfloat16(), WEIGHT.bfloat16(), None, False
    assert _auto.selected(LINEAR, (INPUT, WEIGHT, None, False)) == "triton"
    with pytest.warns(RuntimeWarning, match=r"channelwise_linear \(bfloat16, .*4 to 5 locations\)"):
        assert _auto.selected(LINEAR, operands) == "reference"
    assert len(triton.calls) == used + 1  # the first case of the other kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _auto.selected(LINEAR, operands) == "reference"


def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_the_first_use_while_a_graph_is_captured_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton, device = Triton(monkeypatch), torch.device("cuda", 0)
    captured(monkeypatch)
    message = r'fill_masked: .*graph is captured.*cekernels.warm_up\("cuda:0"\) before the capture'
    with pytest.raises(ImplementationError, match=message):
        _selfcheck.failure_of_kind(OPS["fill_masked"], "triton", device, plain("fill_masked"))
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
    with pytest.raises(ImplementationError, match=r"warm_up.*locations=\[\(4, 5\)\]"):
        run_auto()
    assert triton.calls == []
    kind = LINEAR.check.kind(INPUT, WEIGHT, None, False)
    # as a self-test of that kind leaves it; that of another one does not count
    _selfcheck._outcomes["channelwise_linear", "triton", device, plain("channelwise_linear")] = None
    with pytest.raises(ImplementationError, match="warm_up"):
        run_auto()
    _selfcheck._outcomes["channelwise_linear", "triton", device, kind] = None
    assert torch.equal(run_auto(), torch.full((2, 3, 5), 4.0))
    assert triton.calls == ["channelwise_linear"]


def test_warm_up_tests_every_op_before_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = Triton(monkeypatch)
    monkeypatch.setattr(_backends, "unavailable", lambda name: None)
    cekernels.warm_up(CPU)
    tested = {name for name, op in OPS.items() if _backends.kernel(op, "triton") is not None}
    assert {op for op, impl, *_ in _selfcheck._outcomes if impl == "triton"} == tested
    for op in OPS:
        dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        usual = OPS[op].check.usual(dtypes, [(n, n) for n in (16, 36, 64)])
        assert all((op, "triton", CPU, kind) in _selfcheck._outcomes for kind in usual)
    assert set(triton.calls) == tested
    assert set(_selfcheck._outcomes.values()) == {None}
    before = len(triton.calls)
    cekernels.warm_up(CPU)
    assert len(triton.calls) == before
    cekernels.warm_up(CPU, dtypes=[torch.float32], locations=[49, (4, 5)])
    found = {key[3].locations for key in _selfcheck._outcomes}
    assert {(49, 49), (4, 5)} <= found


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dtypes": [torch.int32]}, ValueError, "dtypes must be floating-point"),
        ({"dtypes": torch.float32}, TypeError, "dtypes must be a sequence"),
        ({"locations": 49}, TypeError, "locations must be a sequence"),
        ({"locations": [(1, 2, 3)]}, ValueError, r"locations must be numbers or \(N_in, N_out\)"),
        ({"locations": [0]}, ValueError, "locations must be in 1"),
    ],
)
def test_wrong_arguments_of_warm_up(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cekernels.warm_up("cpu", **given)


def test_an_error_that_the_device_keeps_is_attributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an access out of bounds every further call on the GPU fails, the reference's too."""
    waits: list[bool] = []

    def spoil(result: Tensor) -> tuple[Tensor]:
        waits.append(True)
        raise RuntimeError("an illegal memory access was encountered")

    def synchronize(device: torch.device) -> None:
        if waits:
            raise RuntimeError("an illegal memory access was encountered")

    Triton(monkeypatch, "channelwise_linear", spoil)
    monkeypatch.setattr(_selfcheck, "synchronize", synchronize)
    message = r"channelwise_linear: the self-test of triton .*made cpu unusable.*illegal memory"
    with pytest.raises(ImplementationError, match=message):
        run_auto()
    # An error that was there before is that of earlier work.
    _selfcheck._outcomes.clear()
    with pytest.raises(RuntimeError, match=r"^an illegal memory access"):
        run_auto()


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

    by_pixels = [op for op in OPS.values() if len(op.check.cases(plain(op.name))) > 1]
    by_pixels = [op for op in by_pixels if op.name.startswith(("masked", "scale", "fill_masked"))]
    assert len(by_pixels) == 5
    for op in by_pixels:
        for kind in kinds(op.name):
            if kind.dtype == torch.float64:
                continue
            widths, blocks = set(), set()
            for case in op.check.cases(kind):
                arguments = _selfcheck.placed(case, kind, "meta")
                for call in launches(getattr(implementation, op.name), *arguments):
                    if "ALIGN" in call.arguments:
                        widths.add(call.arguments["ALIGN"])
                        blocks.add(call.grid[0])
            assert max(blocks) > 2, "more than one block per sample"
            if kind.layout not in (CHANNELS_LAST, OTHER):
                assert max(widths) == 16 // max(kind.dtype.itemsize, kind.mask.itemsize)
                assert min(widths) < 4


def test_the_linear_check_splits_the_batch() -> None:
    """The kernel that sums the parts is thereby checked too."""
    pytest.importorskip("triton")
    from tests.helpers.triton_compile import implementation, launches

    case = OPS["channelwise_linear_backward"].example()
    arguments = _selfcheck.placed(case, plain("channelwise_linear_backward"), "meta")
    assert len(launches(implementation.channelwise_linear_backward, *arguments)) == 3
