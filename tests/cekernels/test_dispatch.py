"""Implementation selection: order, fallback reasons, environment variable, report."""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cekernels import (
    ChannelwiseLinear,
    ImplementationError,
    _auto,
    _backends,
    _selfcheck,
    _sources,
    channelwise_linear,
    fill_boxes,
    masked_l2_loss,
    reference,
)
from cekernels._predicted import MICROSECONDS
from cekernels._register import OPS, Op
from cekernels.ops.channelwise_linear import LINEAR
from cekernels.ops.masked_loss import LOSS

ROOT = Path(__file__).parents[2]
INPUT, WEIGHT = torch.ones(2, 3, 4), torch.ones(3, 5, 4)
HAS_CPP = _backends.unavailable("cpp") is None
needs_cpp = pytest.mark.skipif(not HAS_CPP, reason="C++ kernels are not built")


class Machine:
    """Simulated set of installed implementations: only the reference until one is added.

    An added implementation computes by the reference, and records the calls and support queries.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.calls: list[tuple[str, str]] = []
        self.questions: list[tuple[Any, ...]] = []
        self.reasons: dict[str, str | None] = dict.fromkeys(("cpp", "triton", "cuda"), "is missing")
        self.missing: set[tuple[str, str]] = set()
        self.unsupported: dict[tuple[str, str], str] = {}
        self.environment("auto")
        monkeypatch.setattr(_backends, "unavailable", lambda name: self.reasons.get(name))
        for module in (_backends, _auto):
            monkeypatch.setattr(module, "kernel", self._kernel)
        monkeypatch.setattr(_backends, "unsupported", self._unsupported)
        monkeypatch.setattr(_selfcheck, "failure", lambda *_: None)  # see test_selfcheck.py
        monkeypatch.setattr(_auto, "MICROSECONDS", {})  # see test_order_by_prediction
        fresh = functools.cache(_auto._predicted_order.__wrapped__)
        monkeypatch.setattr(_auto, "_predicted_order", fresh)
        self.device("cpu")

    def environment(self, impl: str) -> None:
        """Simulate a process that started with this value of CEKERNELS_IMPL."""
        self.monkeypatch.setattr(_backends, "DEFAULT", impl)

    def device(self, kind: str) -> None:
        """Simulate calls with tensors on a device of this kind."""
        for module in (_backends, _auto):
            self.monkeypatch.setattr(module, "device_of", lambda _: torch.device(kind))

    def add(self, name: str) -> None:
        self.reasons[name] = None

    def _kernel(self, op: Op, name: str) -> Any:
        def run(*args: Any) -> Any:
            self.calls.append((name, op.name))
            return op.reference(*args)

        return None if (name, op.name) in self.missing else run

    def _unsupported(self, op: Op, name: str, args: tuple[Any, ...]) -> str | None:
        self.questions.append((op.name, *args))
        return self.unsupported.get((name, op.name))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


ARGS = (INPUT, WEIGHT, None, False)


def run(**options: Any) -> Tensor:
    return channelwise_linear(INPUT, WEIGHT, **options)


# --- order and reasons ----------------------------------------------------------------------------


def test_auto_is_the_reference_where_nothing_else_is(machine: Machine) -> None:
    for device in ("cpu", "cuda", "mps"):
        machine.device(device)
        assert _auto.selected(LINEAR, ARGS) == "reference"
    assert torch.equal(run(), torch.full((2, 3, 5), 4.0))
    assert torch.equal(run(impl="reference"), run())


NO_LIBRARY = """
import sys, torch
def load_library(path): raise OSError("no such library")
torch.ops.load_library = load_library
sys.modules["triton"] = None
import cekernels
x, w = torch.ones(2, 3, 4), torch.ones(3, 5, 4).requires_grad_()
"""


def test_without_a_library_the_reference_serves() -> None:
    program = """
y = cekernels.channelwise_linear(x, w)
y.sum().backward()
print(y.unique().item(), w.grad.unique().item())
"""
    assert python("-c", NO_LIBRARY + program).split() == ["4.0", "2.0"]


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_a_forced_implementation_that_is_missing_raises_with_the_reason(name: str) -> None:
    program = f"""
compiled = torch.compile(cekernels.channelwise_linear, backend="eager", fullgraph=True)
for call in (cekernels.channelwise_linear, compiled):
    for weight in (w, w.detach()):
        try:
            call(x, weight, impl={name!r})
        except cekernels.ImplementationError as error:
            print(error)
"""
    lines = python("-c", NO_LIBRARY + program).splitlines()
    assert len(set(lines)) == 1, lines
    assert len(lines) == 4
    expected = f"channelwise_linear: impl='{name}' cannot handle this call: "
    assert lines[0].startswith(expected)
    reasons = ("cannot be imported: ", "not built: ", "built with torch")
    assert lines[0].removeprefix(expected).startswith(reasons)


def test_a_library_that_does_not_load_is_a_reason_not_a_crash(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    (tmp_path / "_C.so").write_bytes(b"no library")
    monkeypatch.setattr(_backends, "_FOLDER", tmp_path)
    monkeypatch.setattr(
        _backends, "build_record", lambda: {"_C": {"built": True, "torch": "2.13.0"}}
    )
    reason = _backends.load_library.__wrapped__("_C")
    assert reason is not None
    assert reason.startswith("built with torch 2.13.0 but cannot be loaded: ")
    assert reason.endswith("; install again")


@pytest.mark.parametrize(
    "content",
    [b'{"_C": {"built": tr', b"", b"[]", b"\xff\xfe\x00", b'{"_C": 3}', b'{"_C": {}}',
     b'{"_C": {"built": true}}', b'{"_C": {"built": false}}', None],
)  # fmt: skip
def test_a_damaged_build_record_is_a_reason_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    record = tmp_path / "_build.json"
    record.mkdir() if content is None else record.write_bytes(content)
    monkeypatch.setattr(_backends, "_FOLDER", tmp_path)
    monkeypatch.setattr(_backends, "build_record", _backends.build_record.__wrapped__)
    reason = _backends.load_library.__wrapped__("_C")
    assert reason is not None
    assert reason.startswith(f"not built: the build record {record} cannot be read (")
    assert reason.endswith("rebuild with: python buildtools/native.py")


@needs_cpp
@pytest.mark.parametrize("length", [0, 3, 64, 100, 5000, 500_000])
def test_a_library_that_is_cut_off_is_a_reason_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int
) -> None:
    whole = (_backends._FOLDER / "_C.so").read_bytes()
    (tmp_path / "_C.so").write_bytes(whole[:length])
    monkeypatch.setattr(_backends, "_FOLDER", tmp_path)
    monkeypatch.setattr(
        _backends, "build_record", lambda: {"_C": {"built": True, "torch": "2.13.0"}}
    )
    reason = _backends.load_library.__wrapped__("_C")
    assert reason is not None
    assert reason.endswith("; install again")


def test_a_library_of_other_sources_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an editable installation: sources that change after the build, as by git pull."""
    package, sources = tmp_path / "cekernels", tmp_path / "csrc"
    for folder in (package, tmp_path / "buildtools", sources / "ops", sources / "cpu"):
        folder.mkdir(parents=True)
    (tmp_path / "buildtools/native.py").touch()
    (package / "_C.so").write_bytes(b"no library")
    (sources / "cpu/a.cpp").write_text("int a;")
    built = {"built": True, "torch": "2.13.0", "sources": _sources.digest(sources, "_C")}
    monkeypatch.setattr(_backends, "_FOLDER", package)
    monkeypatch.setattr(_backends, "build_record", lambda: {"_C": built})
    load = _backends.load_library.__wrapped__
    assert "cannot be loaded" in str(load("_C")), "the sources are those of the record"
    os.utime(sources / "cpu/a.cpp", (0, 0))
    (sources / "notes.txt").touch()
    assert "cannot be loaded" in str(load("_C")), "only the contents of sources count"
    (sources / "cpu/a.cpp").write_text("int b;")
    with pytest.warns(RuntimeWarning, match=r"_C\.so is not used: it was built from other sources"):
        assert str(load("_C")).endswith("rebuild with: python buildtools/native.py")
    (tmp_path / "buildtools/native.py").unlink()
    assert "cannot be loaded" in str(load("_C")), "an installed package has no sources beside it"


def test_auto_takes_the_first_that_serves(machine: Machine) -> None:
    machine.add("triton")
    assert torch.equal(_auto.run(LINEAR, *ARGS), torch.full((2, 3, 5), 4.0))
    assert machine.calls == [("reference", "channelwise_linear")]  # not on the CPU
    machine.device("cuda")
    _auto.run(LINEAR, *ARGS)
    assert machine.calls[1:] == [("triton", "channelwise_linear")]


def test_auto_passes_over_what_is_unavailable(machine: Machine) -> None:
    machine.device("cuda")
    machine.reasons["triton"] = "built for another processor"
    assert _auto.selected(LINEAR, ARGS) == "reference"
    assert machine.questions == [("channelwise_linear", *ARGS)]  # only for the reference
    with pytest.raises(ImplementationError, match=r": built for another processor$"):
        _backends.run_triton(LINEAR, *ARGS)


def test_auto_passes_over_what_does_not_support_the_call(machine: Machine) -> None:
    machine.device("cuda")
    machine.add("triton")
    machine.unsupported["triton", "channelwise_linear"] = "N_out = 5 is odd"
    assert _auto.selected(LINEAR, ARGS) == "reference"
    op, input, weight, bias, relu = machine.questions[0]  # queried with the arguments of the op
    assert (op, bias, relu) == ("channelwise_linear", None, False)
    assert input is INPUT
    assert weight is WEIGHT
    with pytest.raises(ImplementationError, match=r"impl='triton' cannot .*: N_out = 5 is odd"):
        _backends.run_triton(LINEAR, *ARGS)
    image = INPUT[None]
    assert _auto.selected(LOSS, (image, image, image, None, 2, "mask")) == "triton"


def test_auto_passes_over_what_lacks_the_op(machine: Machine) -> None:
    machine.device("cuda")
    machine.add("triton")
    machine.missing.add(("triton", "channelwise_linear"))
    assert _auto.selected(LINEAR, ARGS) == "reference"
    with pytest.raises(ImplementationError, match=r"impl='triton' .*: has no channelwise_linear"):
        _backends.run_triton(LINEAR, *ARGS)


def test_order_on_each_device(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpp", "cuda", "triton"):
        machine.add(name)
    machine.unsupported["cuda", "channelwise_linear"] = "no"
    chosen = {}
    for device in ("cpu", "cuda", "mps"):
        machine.device(device)
        chosen[device] = [_auto.selected(op, ARGS) for op in (LINEAR, LOSS)]
    assert chosen == {
        "cpu": ["cpp", "cpp"],
        "cuda": ["triton", "cuda"],
        "mps": ["reference", "reference"],
    }
    monkeypatch.setitem(_auto.ORDER, "cuda", ("triton", "cuda", "reference"))
    machine.device("cuda")
    assert [_auto.selected(op, ARGS) for op in (LINEAR, LOSS)] == ["triton", "triton"]


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ({"cuda": 9.0, "triton": 12.0}, ("cuda", "triton", "reference")),
        ({"cuda": 12.0, "triton": 9.0}, ("triton", "cuda", "reference")),
        ({"cuda": 9.3, "triton": 9.0}, ("cuda", "triton", "reference")),  # as good as equal
        ({"cuda": 9.0, "triton": 99.0, "reference": 30.0}, ("cuda", "reference")),
        ({"cuda": 90.0, "triton": 31.0, "reference": 30.0}, ("triton", "reference")),
        ({"cuda": 90.0, "triton": 80.0, "reference": 30.0}, ("reference",)),
    ],
    ids=str,
)
def test_order_by_prediction(
    machine: Machine,
    times: dict[str, float],
    order: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the op, the dtype and the size of the call; others keep the order of the device."""
    assert _auto.by_prediction(times) == order
    monkeypatch.setattr(_auto, "MICROSECONDS", {"channelwise_linear 16 bit": times})
    for name in ("cuda", "triton"):
        machine.add(name)
    for device, first in (("cuda", order[0]), ("cpu", "reference")):
        machine.device(device)
        maps = torch.ones(2, 3, 36, dtype=torch.bfloat16), torch.ones(3, 36, 36)
        narrow = (maps[0], maps[1].bfloat16(), None, False)
        assert _auto.selected(LINEAR, narrow) == first
    machine.device("cuda")
    assert _auto.selected(LINEAR, ARGS) == "cuda"
    assert _auto.selected(LOSS, ARGS) == "cuda"


@pytest.mark.parametrize("n_out", [36, 49])
@pytest.mark.parametrize("n_in", [36, 49])
def test_maps_without_kernels_of_their_own(
    machine: Machine, n_in: int, n_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA library multiplies them in float32; Triton and torch have tensor cores."""
    monkeypatch.setattr(_auto, "MICROSECONDS", MICROSECONDS)
    for name in ("cuda", "triton"):
        machine.add(name)
    machine.device("cuda")
    own = n_in == n_out == 36
    for dtype, first in ((torch.float32, "cuda"), (torch.bfloat16, "cuda" if own else "triton")):
        x, w = torch.ones(2, 3, n_in, dtype=dtype), torch.ones(3, n_out, n_in, dtype=dtype)
        assert _auto.order(LINEAR, (x, w, None, False), torch.device("cuda"))[0] == first
        g = torch.ones(2, 3, n_out, dtype=dtype)
        args = (g, x, w, None, True, True, True)
        backward = OPS["channelwise_linear_backward"]
        assert _auto.order(backward, args, torch.device("cuda"))[0] == first


def test_what_is_predicted_is_an_op() -> None:
    products = {"ieee", "tf32x3", "tf32", "16 bit"}
    linear = {f"channelwise_linear{s} {p}" for s in ("", "_backward") for p in products}
    assert MICROSECONDS.keys() - linear <= OPS.keys()
    assert linear <= MICROSECONDS.keys()
    for times in MICROSECONDS.values():
        assert _auto.by_prediction(times)[0] == min(times, key=times.__getitem__) or (
            times[_auto.by_prediction(times)[0]] <= _auto.SAME * min(times.values())
        )


def test_libraries_implement_what_the_ops_say() -> None:
    """``Op.compiled`` against torch's own table; for the CUDA library against its source."""
    sources = "".join(p.read_text() for p in (ROOT / "csrc/ops").glob("*.cpp"))
    for op in OPS.values():
        named = re.findall(rf'CEK_IMPLEMENT(_DIFFERENTIABLE)?\(m, "{op.name}"', sources)
        assert named == (["_DIFFERENTIABLE" if op.has_formula else ""] if op.compiled else [])
        if HAS_CPP:
            for overload in (op.without_formula("cpp"), op.without_formula("auto")):
                has = torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU")
                assert has == ("cpp" in op.compiled), overload


@needs_cpp
def test_a_forced_implementation_serves_every_derivative() -> None:
    input, weight = INPUT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    output = channelwise_linear(input, weight, activation="relu", impl="cpp")
    with Seen() as seen:
        (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        grad.square().sum().backward()
    assert set(seen.overloads) == {
        "channelwise_linear.cpp_no_grad",
        "channelwise_linear_backward.cpp_no_grad",
    }


def test_a_backward_pass_asks_for_the_gradients_that_are_needed() -> None:
    bias = torch.zeros(3, 5, requires_grad=True)
    asked = []
    for tensors in ((INPUT, WEIGHT, bias), (INPUT.clone().requires_grad_(), WEIGHT, None)):
        output = channelwise_linear(*tensors)
        with Seen() as seen:
            output.sum().backward()
        asked += [tuple(args[-3:]) for args in seen.arguments]
    assert asked == [(False, False, True), (True, False, False)]


# --- the environment variable -----------------------------------------------------------------


def test_the_environment_forces_what_is_left_to_auto(machine: Machine) -> None:
    def overload(impl: str = "auto") -> str:
        with Seen() as seen:
            run(impl=impl)
        return seen.overloads[0]

    machine.environment("reference")
    assert overload() == "channelwise_linear.reference_no_grad"
    if HAS_CPP:
        assert overload("cpp") == "channelwise_linear.cpp_no_grad"  # the argument wins
    machine.environment("cuda")
    with pytest.raises(ImplementationError, match="impl='cuda' cannot handle this call"):
        run()
    machine.environment("auto")
    assert overload() == "channelwise_linear.no_grad"


@pytest.mark.parametrize("value", ["", "auto", "reference"])
def test_the_environment_is_read_at_import(value: str) -> None:
    program = "from cekernels import _backends; print(_backends.DEFAULT)"
    assert python("-c", program, CEKERNELS_IMPL=value).strip() == (value or "auto")


def test_the_environment_is_checked(machine: Machine) -> None:
    machine.environment("fast")
    message = "^environment variable CEKERNELS_IMPL must be one of 'auto', .*'cuda', got 'fast'"
    with pytest.raises(ValueError, match=message):
        run()
    with pytest.raises(ValueError, match=message):
        torch.func.vmap(lambda x: channelwise_linear(x, WEIGHT))(INPUT[None])


# --- the ops and their specification --------------------------------------------------------------


@pytest.mark.parametrize("op", reference.__all__)
def test_each_op_takes_the_arguments_of_its_reference(op: str) -> None:
    expected = list(inspect.signature(getattr(reference, op)).parameters)
    packet = getattr(torch.ops.cekernels, op)
    impls = ("", "reference", "cpp", "triton", "cuda")
    forced = {impl or "default" for impl in impls}
    twins = {f"{impl}_no_grad".lstrip("_") for impl in impls} if OPS[op].has_formula else set()
    assert set(packet.overloads()) == forced | twins
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        assert [argument.name for argument in schema.arguments] == expected


class Seen(TorchDispatchMode):
    """Records the ops of the package that the dispatcher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.overloads: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []

    @property
    def ops(self) -> list[str]:
        return [overload.partition(".")[0] for overload in self.overloads]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "cekernels":
            self.overloads.append(func.name().partition("::")[2])
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


@needs_cpp
def test_frames_from_the_public_function_to_the_kernel() -> None:
    """At most 4 nested Python frames without gradients and 6 with, argument checks aside."""
    weight, image = WEIGHT.clone().requires_grad_(), torch.ones(1, 1, 2, 2)
    prediction = image.clone().requires_grad_()
    calls: list[tuple[Any, int]] = [  # call and its number of frames
        (lambda: channelwise_linear(INPUT, WEIGHT), 2),
        (lambda: channelwise_linear(INPUT, weight), 5),
        (lambda: channelwise_linear(INPUT, weight, impl="cpp"), 5),
        (lambda: masked_l2_loss(image, image, image), 2),
        (lambda: masked_l2_loss(prediction, image, image), 5),
        (lambda: masked_l2_loss(image, image, image, impl="cpp"), 2),
    ]
    for call, frames in calls:
        call()
        assert _frames_of_the_kernel(call) == frames


def _frames_of_the_kernel(call: Any) -> int:
    """Nested Python frames below ``call`` at the last entry into torch's C++."""
    deepest = 0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal deepest
        if event == "c_call" and frame.f_code is torch._ops.OpOverload.__call__.__code__:
            depth = 0
            while frame.f_code is not call.__code__:
                depth, frame = depth + 1, frame.f_back
            deepest = max(deepest, depth)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return deepest


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_whoever_looks_at_the_dispatcher_sees_the_ops() -> None:
    plain, layer = channelwise_linear(INPUT, WEIGHT), ChannelwiseLinear(3, 4, 5)
    with Seen() as seen:
        torch.testing.assert_close(channelwise_linear(INPUT, WEIGHT), plain)
        layer(INPUT).sum().backward()
    assert seen.overloads == [
        *["channelwise_linear.no_grad"] * 2,
        "channelwise_linear_backward.no_grad",
    ]

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(INPUT)
        assert channelwise_linear(fake, mode.from_tensor(WEIGHT)).shape == plain.shape
    assert channelwise_linear(INPUT.to("meta"), WEIGHT.to("meta")).is_meta

    traced = torch.jit.trace(lambda x: channelwise_linear(x, WEIGHT), INPUT, check_trace=False)
    torch.testing.assert_close(traced(2 * INPUT), 2 * plain)


def test_the_vmap_of_autograd_functional() -> None:
    """The legacy vmap, older than torch.func's: it batches the ops through the dispatcher."""

    def function(weight: Tensor) -> Tensor:
        return channelwise_linear(INPUT, weight, impl="reference")

    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(lambda w: torch.einsum("bci,coi->bco", INPUT, w), WEIGHT)
    torch.testing.assert_close(jacobian(function, WEIGHT, vectorize=True), expected)


def test_forward_mode_over_a_backward_pass() -> None:
    weight = WEIGHT.clone().requires_grad_()
    prediction, target = INPUT[None].clone().requires_grad_(), torch.zeros_like(INPUT[None])
    outputs = [
        (channelwise_linear(INPUT, weight), weight),
        (torch.einsum("bci,coi->bco", INPUT, weight), weight),
        (masked_l2_loss(prediction, target, torch.ones_like(target)), prediction),
        ((prediction - target).square().mean(), prediction),
    ]
    tangents = []
    for output, leaf in outputs:

        def vjp(g: Tensor, output: Tensor = output, leaf: Tensor = leaf) -> Tensor:
            return torch.autograd.grad(output, leaf, g, retain_graph=True)[0]

        one = torch.ones_like(output)
        tangents.append(torch.func.jvp(vjp, (one,), (one,))[1])
    assert all(tangent.any() for tangent in tangents)
    torch.testing.assert_close(tangents[0], tangents[1])
    torch.testing.assert_close(tangents[2], tangents[3])


def test_autograd_is_left_out_where_torch_leaves_it_out() -> None:
    weight = WEIGHT.clone().requires_grad_()
    with torch.inference_mode(), torch.enable_grad():
        assert not channelwise_linear(INPUT, weight, activation="relu").requires_grad


def test_tracing_before_dispatch_and_function_modes_see_the_ops() -> None:
    weight = WEIGHT.clone().requires_grad_()
    graph = make_fx(lambda x: channelwise_linear(x, weight), pre_dispatch=True)(INPUT).graph
    ops = [node.target for node in graph.nodes if node.op == "call_function"]
    assert torch.ops.cekernels.channelwise_linear.default in ops

    names: list[str] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Functions():
        channelwise_linear(INPUT, weight)
    assert "cekernels.channelwise_linear.default" in names


def test_negative_bits_are_resolved_before_a_kernel() -> None:
    """A kernel reads memory, where the negation is not applied yet."""
    negative = torch._neg_view(INPUT)
    for weight in (WEIGHT, WEIGHT.clone().requires_grad_()):
        for impl in ("auto", "reference", *(["cpp"] if HAS_CPP else [])):
            found = channelwise_linear(negative, weight, impl=impl)
            torch.testing.assert_close(found, -channelwise_linear(INPUT, weight))
            assert not found.is_neg()


def test_a_tensor_of_another_class_keeps_its_class() -> None:
    class Named(torch.Tensor):
        pass

    assert type(channelwise_linear(INPUT.as_subclass(Named), WEIGHT)) is Named


def test_a_training_step_by_the_default_compiler() -> None:
    """Fill, layer and loss in one graph; the code between the ops needs no C++ compiler."""
    torch._dynamo.reset()
    layer = ChannelwiseLinear(3, (4, 6), activation="relu")
    boxes = torch.tensor([[256 * k, 0, 256 * k + 512, 768] for k in range(5)], dtype=torch.int32)
    image = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))

    def step(image: Tensor, value: Tensor, boxes: Tensor, offsets: Tensor) -> Tensor:
        masked, mask, area = fill_boxes(image, value, boxes, offsets)
        return masked_l2_loss(layer(masked), image, mask, area=area)

    results = []
    for f in (step, torch.compile(step, fullgraph=True, dynamic=True)):
        loss = f(image, torch.tensor([0.1, 0.2, 0.3]), boxes, torch.arange(6))
        results.append((loss, *torch.autograd.grad(loss, tuple(layer.parameters()))))
    torch.testing.assert_close(*results)


# --- the report and the import -----------------------------------------------------------------


def python(*arguments: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != _backends.ENVIRONMENT_VARIABLE}
    result = subprocess.run(
        [sys.executable, *arguments], env=clean | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning" not in result.stderr  # runpy's, about a module already imported
    return result.stdout


def test_info_reports_every_implementation_and_its_reason() -> None:
    lines = python("-m", "cekernels.info", CEKERNELS_IMPL="reference").splitlines()
    assert torch.__version__ in lines[0]
    assert "CEKERNELS_IMPL=reference forces the implementation" in lines
    table = lines[lines.index("") + 1 :][:4]
    states = {line.split()[0]: line.split(maxsplit=1)[1] for line in table}
    assert list(states) == ["reference", "cpp", "triton", "cuda"]
    assert states["reference"] == "available"
    for state in states.values():
        assert state == "available" or len(state.removeprefix("no: ")) > 10
    if not torch.cuda.is_available():
        assert any(line.startswith("no CUDA device") for line in lines)
        assert states["cuda"] != "available"


def test_importing_the_package_needs_and_loads_nothing_but_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import cekernels; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    new = set(python("-c", program).split()) - sys.stdlib_module_names
    assert "cekernels" in new
    assert new <= {"cekernels", "torch"}


#: Operands that may be left out: bias, output (without ReLU), areas.
OPTIONAL = {
    ("channelwise_linear", 2),
    ("channelwise_linear_backward", 3),
    ("masked_loss", 3),
    ("masked_loss_and_gradient", 3),
}


@pytest.mark.parametrize("name", OPS)
def test_none_beside_meta_tensors_is_refused(name: str) -> None:
    arguments = [a.to("meta") if isinstance(a, Tensor) else a for a in OPS[name].example()]
    call = getattr(torch.ops.cekernels, name)
    call(*arguments)
    for position, value in enumerate(arguments):
        if isinstance(value, Tensor) and (name, position) not in OPTIONAL:
            with pytest.raises((TypeError, RuntimeError), match="None"):
                call(*arguments[:position], None, *arguments[position + 1 :])
