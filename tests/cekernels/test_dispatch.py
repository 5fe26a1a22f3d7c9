"""Which implementation serves a call: order, reasons, the environment variable, the report."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from types import ModuleType
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
    _dispatch,
    _selfcheck,
    channelwise_linear,
    fill_boxes,
    masked_l2_loss,
    reference,
)

INPUT, WEIGHT = torch.ones(2, 3, 4), torch.ones(3, 5, 4)


class Implementation(ModuleType):
    """A stand-in that serves by the reference and writes down what it was asked."""

    def __init__(self, name: str, *, unavailable: str | None = None, **unsupported: str) -> None:
        super().__init__(f"cekernels.{name}")
        self.questions: list[tuple[Any, ...]] = []
        self.calls: list[str] = []
        self.unavailable = lambda: unavailable
        self._unsupported = unsupported
        for op in reference.__all__:
            setattr(self, op, self.serve(op))

    def unsupported(self, op: str, *args: Any) -> str | None:
        self.questions.append((op, *args))
        return self._unsupported.get(op)

    def serve(self, op: str) -> Any:
        def run(*args: Any) -> Any:
            self.calls.append(op)
            return getattr(reference, op)(*args)

        return run


class Machine:
    """What is installed in a test: nothing but the reference, until something is added."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.environment("auto")
        for name in ("cpp", "triton", "cuda"):
            self.monkeypatch.setitem(sys.modules, f"cekernels.{name}", None)
        _dispatch.load.cache_clear()

    def environment(self, impl: str) -> None:
        """As a process that started with this in its environment variable."""
        self.monkeypatch.setattr(_dispatch, "DEFAULT", impl)

    def add(self, name: str, **options: str) -> Implementation:
        module = Implementation(name, **options)
        self.monkeypatch.setitem(sys.modules, f"cekernels.{name}", module)
        _dispatch.load.cache_clear()
        return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(monkeypatch)
    _dispatch.load.cache_clear()


def run(**options: Any) -> Tensor:
    return channelwise_linear(INPUT, WEIGHT, **options)


# --- order and reasons ----------------------------------------------------------------------------


def test_auto_is_the_reference_where_nothing_else_is(machine: Machine) -> None:
    assert torch.equal(run(), torch.full((2, 3, 5), 4.0))
    assert torch.equal(run(impl="reference"), run())


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_a_forced_implementation_that_is_missing_raises_with_the_reason(
    machine: Machine, name: str
) -> None:
    with pytest.raises(
        ImplementationError,
        match=rf"^channelwise_linear: impl='{name}' cannot serve this call: cannot be imported: ",
    ):
        run(impl=name)


def test_a_library_that_does_not_load_is_a_reason_not_a_crash(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(MetaPathFinder):
        def find_spec(self, fullname: str, *_: Any) -> None:
            if fullname == "cekernels.cpp":
                raise OSError("undefined symbol: aoti_torch_empty")

    monkeypatch.delitem(sys.modules, "cekernels.cpp")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert torch.equal(run(), run(impl="reference"))
    with pytest.raises(ImplementationError, match="cannot be imported: undefined symbol: aoti"):
        run(impl="cpp")


def test_auto_takes_the_first_that_serves(machine: Machine) -> None:
    cpp = machine.add("cpp")
    run()
    assert cpp.calls == ["channelwise_linear"]
    run(impl="reference")
    assert cpp.calls == ["channelwise_linear"]


def test_auto_passes_over_what_is_unavailable(machine: Machine) -> None:
    cpp = machine.add("cpp", unavailable="built for another processor")
    run()
    assert cpp.calls == cpp.questions == []
    with pytest.raises(ImplementationError, match=r"impl='cpp' .*: built for another processor$"):
        run(impl="cpp")


def test_auto_passes_over_what_does_not_support_the_call(machine: Machine) -> None:
    cpp = machine.add("cpp", channelwise_linear="N_out = 5 is odd")
    run()
    assert cpp.calls == []
    op, input, weight, bias, relu = cpp.questions[0]  # asked with the arguments of the op
    assert (op, bias, relu) == ("channelwise_linear", None, False)
    assert torch.equal(input, INPUT)
    assert torch.equal(weight, WEIGHT)
    with pytest.raises(ImplementationError, match=r"impl='cpp' cannot serve .*: N_out = 5 is odd"):
        run(impl="cpp")
    masked_l2_loss(INPUT[None], INPUT[None], INPUT[None])  # another op of it serves
    assert cpp.calls == ["masked_loss"]


def test_auto_passes_over_what_lacks_the_op(machine: Machine) -> None:
    cpp = machine.add("cpp")
    del cpp.channelwise_linear
    run()
    assert cpp.calls == []
    with pytest.raises(ImplementationError, match=r"impl='cpp' .*: has no channelwise_linear"):
        run(impl="cpp")


def test_order_on_each_device(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("cpp"), machine.add("cuda", channelwise_linear="no"), machine.add("triton")
    args = (INPUT, WEIGHT, None, False)
    monkeypatch.setattr(_selfcheck, "failure", lambda *_: None)  # see test_selfcheck.py
    chosen = {}
    for device in ("cpu", "cuda", "mps"):
        monkeypatch.setattr(_dispatch, "device_of", lambda _, device=device: torch.device(device))
        ops = ("channelwise_linear", "masked_loss")
        chosen[device] = [_dispatch.select(op, "auto", args) for op in ops]
    assert chosen == {
        "cpu": ["cpp", "cpp"],
        "cuda": ["triton", "triton"],
        "mps": ["reference", "reference"],
    }
    order = {"cuda": ("cuda", "triton", "reference")}
    monkeypatch.setattr(_dispatch, "AUTO_ORDER", order)
    monkeypatch.setattr(_dispatch, "device_of", lambda _: torch.device("cuda"))
    assert _dispatch.select("channelwise_linear", "auto", args) == "triton"
    assert _dispatch.select("masked_loss", "auto", args) == "cuda"


def test_a_forced_implementation_serves_every_derivative(machine: Machine) -> None:
    cpp = machine.add("cpp")
    input, weight = INPUT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    output = channelwise_linear(input, weight, activation="relu", impl="cpp")
    (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    assert cpp.calls == ["channelwise_linear", "channelwise_linear_backward"]
    grad.square().sum().backward()
    assert set(cpp.calls[2:]) == {"channelwise_linear", "channelwise_linear_backward"}


def test_a_backward_pass_asks_for_the_gradients_that_are_needed(machine: Machine) -> None:
    cpp = machine.add("cpp")
    bias = torch.zeros(3, 5, requires_grad=True)
    for tensors in ((INPUT, WEIGHT, bias), (INPUT.clone().requires_grad_(), WEIGHT, None)):
        channelwise_linear(*tensors).sum().backward()
    asked = [args[-1] for op, *args in cpp.questions if op == "channelwise_linear_backward"]
    assert asked == [(False, False, True), (True, False, False)]


# --- the environment variable -----------------------------------------------------------------


def test_the_environment_forces_what_is_left_to_auto(machine: Machine) -> None:
    cpp = machine.add("cpp")
    machine.environment("reference")
    run()
    assert cpp.calls == []
    run(impl="cpp")  # the argument wins
    assert cpp.calls == ["channelwise_linear"]
    machine.environment("cuda")
    with pytest.raises(ImplementationError, match="impl='cuda' cannot serve this call"):
        run()
    machine.environment("auto")
    run()
    assert cpp.calls == ["channelwise_linear"] * 2


@pytest.mark.parametrize("value", ["", "auto", "reference"])
def test_the_environment_is_read_at_import(value: str) -> None:
    program = "from cekernels import _dispatch; print(_dispatch.requested('auto'))"
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
def test_each_op_takes_the_arguments_of_its_reference_and_the_implementation(op: str) -> None:
    importlib.import_module("cekernels.random")  # defines its op; the package does without
    schema = getattr(torch.ops.cekernels, op).default._schema
    expected = list(inspect.signature(getattr(reference, op)).parameters)
    assert [argument.name for argument in schema.arguments] == [*expected, "impl"]


class Seen(TorchDispatchMode):
    """Writes down the ops of the package that the dispatcher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "cekernels":
            self.ops.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_whoever_looks_at_the_dispatcher_sees_the_ops() -> None:
    """A plain call goes past it; it must not where somebody is looking."""
    plain, layer = channelwise_linear(INPUT, WEIGHT), ChannelwiseLinear(3, 4, 5)
    with Seen() as seen:
        torch.testing.assert_close(channelwise_linear(INPUT, WEIGHT), plain)
        layer(INPUT).sum().backward()
    assert seen.ops == [*["channelwise_linear"] * 2, "channelwise_linear_backward"]

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(INPUT)
        assert channelwise_linear(fake, mode.from_tensor(WEIGHT)).shape == plain.shape
    assert channelwise_linear(INPUT.to("meta"), WEIGHT.to("meta")).is_meta

    traced = torch.jit.trace(lambda x: channelwise_linear(x, WEIGHT), INPUT, check_trace=False)
    torch.testing.assert_close(traced(2 * INPUT), 2 * plain)


def test_the_vmap_of_autograd_functional() -> None:
    """It is older than torch.func's, and looks through the ops as the dispatcher runs them."""

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


def test_negative_bits_are_resolved_before_a_kernel(machine: Machine) -> None:
    """A kernel that reads memory does not see them."""
    cpp = machine.add("cpp")
    negative = torch._neg_view(INPUT)
    for weight in (WEIGHT, WEIGHT.clone().requires_grad_()):
        torch.testing.assert_close(
            channelwise_linear(negative, weight), -channelwise_linear(INPUT, weight)
        )
    assert not any(args[0].is_neg() for _, *args in cpp.questions)


def test_a_tensor_of_another_class_keeps_its_class() -> None:
    class Named(torch.Tensor):
        pass

    assert type(channelwise_linear(INPUT.as_subclass(Named), WEIGHT)) is Named


def test_a_training_step_by_the_default_compiler() -> None:
    """Fill, layer and loss in one graph; what lies between the ops needs no C++ compiler."""
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
    clean = {k: v for k, v in os.environ.items() if k != _dispatch.ENVIRONMENT_VARIABLE}
    result = subprocess.run(
        [sys.executable, *arguments], env=clean | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning" not in result.stderr  # runpy's, of a module imported already
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
