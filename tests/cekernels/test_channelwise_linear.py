"""The channel-wise fully-connected layer against float64, other layers and its own definition."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from cekernels import ChannelwiseLinear, ImplementationError, channelwise_linear

Layer = Callable[[Tensor, Tensor], Tensor]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def integers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers: their sums of products are exact in every dtype used here."""
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape))
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def by_definition(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """The defining sum, evaluated one output element at a time."""
    B, C, _ = input.shape
    n_out = weight.shape[1]
    output = input.new_zeros(B, C, n_out)
    for b in range(B):
        for c in range(C):
            for o in range(n_out):
                terms = zip(weight[c, o].tolist(), input[b, c].tolist(), strict=True)
                total = sum(w * x for w, x in terms)
                total += 0.0 if bias is None else bias[c, o].item()
                output[b, c, o] = max(total, 0.0) if relu else total
    return output


# --- values -----------------------------------------------------------------------------------


def test_hand_computed_case() -> None:
    input = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    weight = torch.tensor([[[1.0, 10.0], [0.0, -1.0]], [[2.0, 0.0], [1.0, 1.0]]])
    bias = torch.tensor([[0.5, 1.0], [0.0, -8.0]])
    # map 0: 1*1 + 10*2 + .5 and -2 + 1; map 1: 2*3 and 3 + 4 - 8
    assert channelwise_linear(input, weight, bias).tolist() == [[[21.5, -1.0], [6.0, -1.0]]]
    relu = channelwise_linear(input, weight, bias, activation="relu")
    assert relu.tolist() == [[[21.5, 0.0], [6.0, 0.0]]]
    assert channelwise_linear(input, weight).tolist() == [[[21.0, -2.0], [6.0, 7.0]]]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("batch", "channels", "n_in", "n_out"),
    [
        (2, 3, 5, 5),
        (3, 2, 4, 7),
        (1, 1, 1, 1),
        (4, 1, 6, 2),
        (2, 5, 1, 3),
        (0, 3, 4, 4),
        (1, 2, 9, 1),
    ],
)
def test_equals_its_definition(
    batch: int, channels: int, n_in: int, n_out: int, with_bias: bool, relu: bool
) -> None:
    input, weight = draw(batch, channels, n_in), draw(channels, n_out, n_in)
    bias = draw(channels, n_out) if with_bias else None
    output = channelwise_linear(input, weight, bias, activation="relu" if relu else None)
    assert output.shape == (batch, channels, n_out)
    assert output.is_contiguous()
    torch.testing.assert_close(output, by_definition(input, weight, bias, relu))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_exact_on_small_integers_in_every_dtype(dtype: torch.dtype) -> None:
    input, weight, bias = integers(3, 4, 9), integers(4, 7, 9), integers(4, 7)
    exact = channelwise_linear(input.double(), weight.double(), bias.double())
    output = channelwise_linear(input.to(dtype), weight.to(dtype), bias.to(dtype))
    assert output.dtype == dtype
    assert torch.equal(output.double(), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_error_is_that_of_a_sum_of_rounded_products(dtype: torch.dtype) -> None:
    input, weight = draw(8, 16, 36, dtype=dtype), draw(16, 36, 36, dtype=dtype)
    exact = by_definition(input.double()[:1], weight.double(), None, False)
    error = (channelwise_linear(input, weight)[:1].double() - exact).abs()
    # the terms' magnitudes bound the error of a sum: n u in float32, one rounding in 16 bits
    magnitude = by_definition(input.double()[:1].abs(), weight.double().abs(), None, False)
    unit = torch.finfo(dtype).eps / 2
    steps = 36 if dtype == torch.float32 else 2
    assert (error <= steps * unit * magnitude).all()


# --- equivalent layers of the paper -----------------------------------------------------------


def test_equals_the_grouped_convolution_of_the_authors() -> None:
    """Kernel size 6, C * 36 output channels, C groups on maps of 6 x 6, then a reshape."""
    C = 8
    input, weight, bias = draw(3, C, 6, 6), draw(C, 36, 36), draw(C, 36)
    grouped = F.conv2d(input, weight.reshape(C * 36, 1, 6, 6), bias.reshape(-1), groups=C)
    assert grouped.shape == (3, C * 36, 1, 1)
    torch.testing.assert_close(channelwise_linear(input, weight, bias), grouped.reshape(3, C, 6, 6))


def test_equals_a_block_diagonal_linear_layer() -> None:
    B, C, n_in, n_out = 3, 4, 5, 6
    layer = ChannelwiseLinear(C, n_in, n_out, dtype=torch.float64)
    full = nn.Linear(C * n_in, C * n_out, dtype=torch.float64)
    with torch.no_grad():
        full.weight.copy_(torch.block_diag(*layer.weight))
        full.bias.copy_(layer.bias.flatten())
    input = draw(B, C, n_in)
    torch.testing.assert_close(layer(input).flatten(1), full(input.flatten(1)))


def reaches_its_own_map_and_no_other(layer: Layer) -> bool:
    """Whether a change of one input element alters all of its own output map and nothing else."""
    C, N = 3, 4
    weight, input = draw(C, N, N).abs() + 0.1, draw(1, C, N)
    changed = input.repeat(C * N, 1, 1)
    changed.view(C * N, C * N).diagonal().add_(1.0)
    difference = layer(changed, weight) - layer(input, weight)
    reached = (difference != 0).reshape(C, N, C, N)
    own_map = torch.eye(C, dtype=torch.bool)[:, None, :, None].expand(C, N, C, N)
    return torch.equal(reached, own_map)


def test_a_change_reaches_every_location_of_its_own_map_and_no_other_map() -> None:
    assert reaches_its_own_map_and_no_other(channelwise_linear)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(
            lambda x, w: torch.einsum("bij,jji->bij", x, w.mT[0].expand(4, 4, 4)[..., :3]),
            id="diagonal einsum: no mixing within a map",
        ),
        pytest.param(
            lambda x, w: F.conv2d(x[..., None], w[:, :1, :1, None], groups=x.shape[1])[..., 0],
            id="depthwise 1x1 convolution: no mixing within a map",
        ),
        pytest.param(
            lambda x, w: F.linear(x.flatten(1), w[0].repeat(3, 3)).view_as(x),
            id="fully-connected layer: mixes the maps",
        ),
    ],
)
def test_layers_that_are_mistaken_for_it_fail_that_test(wrong: Layer) -> None:
    assert not reaches_its_own_map_and_no_other(wrong)


# --- layouts ----------------------------------------------------------------------------------


def test_maps_keep_their_shape_when_the_size_stays() -> None:
    input, weight = draw(2, 3, 4, 5), draw(3, 20, 20)
    maps = channelwise_linear(input, weight)
    assert maps.shape == (2, 3, 4, 5)
    assert torch.equal(maps.flatten(2), channelwise_linear(input.flatten(2), weight))
    assert channelwise_linear(input, draw(3, 7, 20)).shape == (2, 3, 7)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "part of a larger tensor": lambda t: F.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "every second": lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape[0], -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_the_input_and_of_its_gradient_does_not_matter(layout: str) -> None:
    input = LAYOUTS[layout](draw(3, 4, 2, 3)).requires_grad_()
    plain = input.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    weight = LAYOUTS["transposed"](draw(4, 6, 6)[None])[0].requires_grad_()
    upstream = LAYOUTS[layout](draw(3, 4, 2, 3, seed=1))
    output, expected = channelwise_linear(input, weight), channelwise_linear(plain, weight)
    torch.testing.assert_close(output, expected)
    ours = torch.autograd.grad(output, (input, weight), upstream)
    plain_grads = torch.autograd.grad(expected, (plain, weight), upstream.clone())
    torch.testing.assert_close(ours, plain_grads)


def test_expanded_weight_and_gradient_of_stride_zero() -> None:
    input = draw(2, 3, 4).requires_grad_()
    weight, bias = draw(1, 5, 4).expand(3, 5, 4), draw(1, 1).expand(3, 5)
    output = channelwise_linear(input, weight, bias)
    torch.testing.assert_close(output, by_definition(input.detach(), weight, bias, False))
    (grad,) = torch.autograd.grad(output.sum(), input)
    torch.testing.assert_close(grad, weight.sum(1).expand(2, 3, 4))


def test_an_empty_batch_gives_empty_output_and_zero_weight_gradient() -> None:
    layer = ChannelwiseLinear(3, (2, 2), activation="relu")
    output = layer(torch.empty(0, 3, 2, 2, requires_grad=True))
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.zeros(3, 4, 4))
    assert layer.bias.grad is not None
    assert torch.equal(layer.bias.grad, torch.zeros(3, 4))


# --- gradients --------------------------------------------------------------------------------


def away_from_kinks(relu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Operands without a pre-activation close to the kink of the ReLU."""
    tensors = draw(2, 3, 4), draw(3, 2, 4), draw(3, 2)
    if relu:
        size = by_definition(*tensors, False).abs()
        assert size.min() > 1e-3
    return tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2].requires_grad_()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_first_and_second_order(activation: Any) -> None:
    def f(*tensors: Tensor) -> Tensor:
        return channelwise_linear(*tensors, activation=activation)

    tensors = away_from_kinks(activation == "relu")
    assert gradcheck(f, tensors, check_forward_ad=True)
    assert gradgradcheck(f, tensors)
    assert gradcheck(f, tensors[:2])
    assert gradgradcheck(f, tensors[:2])


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_gradients_of_some_inputs_only(needs: tuple[int, ...], activation: Any) -> None:
    tensors = tuple(
        t.detach().requires_grad_(bool(n))
        for t, n in zip(away_from_kinks(True), needs, strict=True)
    )
    output = channelwise_linear(*tensors, activation=activation)
    wanted = [t for t in tensors if t.requires_grad]
    upstream = draw(2, 3, 2, seed=4)
    expected = torch.autograd.grad(plain_layer(*tensors, activation), wanted, upstream)
    torch.testing.assert_close(torch.autograd.grad(output, wanted, upstream), expected)
    assert gradgradcheck(lambda *t: channelwise_linear(*t, activation=activation), tensors)


def plain_layer(input: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
    """The layer built from PyTorch's own differentiable operations."""
    output = (weight @ input.unsqueeze(-1)).squeeze(-1) + bias
    return output.relu() if activation else output


@pytest.mark.parametrize("activation", [None, "relu"])
def test_third_derivative(activation: str | None) -> None:
    def third(layer: Any) -> Tensor:
        input, weight, bias = (t.detach().requires_grad_() for t in away_from_kinks(True))
        loss = layer(input, weight, bias).pow(3).sum()
        for wrt in (input, weight, input):
            (grad,) = torch.autograd.grad(loss, wrt, create_graph=True)
            loss = (grad * torch.arange(1.0, grad.numel() + 1).view_as(grad)).sum()
        return grad

    ours = third(lambda *t: channelwise_linear(*t, activation=activation))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, third(lambda *t: plain_layer(*t, activation)))


def test_relu_passes_no_gradient_at_zero() -> None:
    input = torch.tensor([[[1.0, -1.0]]], requires_grad=True)
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    channelwise_linear(input, weight, activation="relu").sum().backward()
    assert input.grad is not None
    assert input.grad.tolist() == [[[1.0, 0.0]]]  # the first row's sum is 0: no gradient


def test_torch_func_transforms_and_forward_mode() -> None:
    input, weight, bias = (t.detach() for t in away_from_kinks(True))

    def loss(input: Tensor, weight: Tensor) -> Tensor:
        return channelwise_linear(input, weight, bias, activation="relu").square().sum()

    def plain(input: Tensor, weight: Tensor) -> Tensor:
        return plain_layer(input, weight, bias, "relu").square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(transform(loss)(input, weight), transform(plain)(input, weight))
    weights = draw(5, 3, 2, 4)
    torch.testing.assert_close(
        torch.func.vmap(loss, (None, 0))(input, weights),
        torch.stack([plain(input, w) for w in weights]),
    )
    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=1), (0, None))
    torch.testing.assert_close(
        per_sample(input[:, None], weight),
        torch.stack([torch.func.grad(plain, argnums=1)(x[None], weight) for x in input]),
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(input, torch.ones_like(input))
        tangent = torch.autograd.forward_ad.unpack_dual(channelwise_linear(dual, weight)).tangent
    torch.testing.assert_close(tangent, weight.sum(2).expand(2, 3, 2))
    refusal = r"impl='cpp' cannot handle this call: torch.func"
    with pytest.raises(ImplementationError, match=refusal):
        torch.func.vmap(lambda w: channelwise_linear(input, w, impl="cpp"))(weights)


def test_gradients_batched_over_vectors() -> None:
    input, weight = draw(2, 3, 4).requires_grad_(), draw(3, 2, 4)
    upstream = draw(5, 2, 3, 2)
    output = channelwise_linear(input, weight)
    (batched,) = torch.autograd.grad(output, input, upstream, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.einsum("kbco,coi->kbci", upstream, weight))


# --- registration, compilation, autocast ------------------------------------------------------


def test_opcheck() -> None:
    op = torch.ops.cekernels.channelwise_linear
    backward = torch.ops.cekernels.channelwise_linear_backward
    input, weight, bias = (t.detach().float().requires_grad_() for t in away_from_kinks(True))
    opcheck(op.default, (input, weight, bias, True))
    opcheck(op.reference, (input.mT.contiguous().mT, weight.detach(), None, False))
    opcheck(op.default, (input.detach()[:0], weight.detach(), bias.detach(), True))
    output = op(input, weight, bias, True).detach()
    upstream = draw(2, 3, 2, dtype=torch.float32).requires_grad_()
    opcheck(backward.default, (upstream, input, weight, output, True, True, True))
    opcheck(backward.default, (upstream, input, weight.detach(), None, False, True, False))
    opcheck(backward.reference, (upstream[:0], input[:0], weight, None, True, False, True))


def test_compiled_with_dynamic_shapes_equals_eager_and_compiles_once() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    layer = ChannelwiseLinear(3, (2, 4), activation="relu")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch in (5, 6, 7):
        results = []
        for f in (layer, compiled):
            input = draw(batch, 3, 2, 4, dtype=torch.float32).requires_grad_()
            output = f(input)
            grads = torch.autograd.grad(output.square().sum(), [input, *layer.parameters()])
            results.append((output, *grads))
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1


def test_compiled_torch_func_gradient() -> None:
    weight, input = draw(3, 4, 4), draw(2, 3, 4)

    def gradient(input: Tensor) -> Tensor:
        return torch.func.grad(lambda x: channelwise_linear(x, weight).square().sum())(input)

    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), gradient(input))


def test_exports_with_a_dynamic_batch() -> None:
    layer = ChannelwiseLinear(3, (2, 3), activation="relu")
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (torch.randn(4, 3, 2, 3),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("cekernels.channelwise_linear.default") == 1
    input = torch.randn(7, 3, 2, 3)
    torch.testing.assert_close(program.module()(input), layer(input))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_follows_the_rule_of_linear(compiled: bool) -> None:
    layer, linear = ChannelwiseLinear(3, 4, activation="relu"), nn.Linear(4, 4)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    input = torch.randn(2, 3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = step(input)
        assert output.dtype == linear(input).dtype == torch.bfloat16
        assert step(input.half()).dtype == linear(input.half()).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert step(input).dtype == torch.float32
    rounded = [t.detach().bfloat16() for t in (input, layer.weight, layer.bias)]
    assert torch.equal(output, channelwise_linear(*rounded, activation="relu"))
    output.float().sum().backward()
    assert input.grad is not None
    assert input.grad.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone_and_refuses_integers() -> None:
    input, weight = draw(2, 3, 4), draw(3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(
                channelwise_linear(input, weight), by_definition(input, weight, None, False)
            )
            or channelwise_linear(input, weight).dtype == torch.float64
        )
        with pytest.raises(TypeError, match="input must have dtype"):
            channelwise_linear(torch.ones(2, 3, 4, dtype=torch.int64), weight)


def test_a_backward_pass_inside_autocast_keeps_the_precision_of_the_forward_pass() -> None:
    input, weight = draw(2, 3, 4, dtype=torch.float32), draw(3, 4, 4, dtype=torch.float32)
    input.requires_grad_()
    output = channelwise_linear(input, weight)
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = torch.autograd.grad(output.square().sum(), input, retain_graph=True)
    (outside,) = torch.autograd.grad(output.square().sum(), input)
    assert torch.equal(inside, outside)


def test_inference_mode() -> None:
    input, weight = draw(2, 3, 4), draw(3, 4, 4).requires_grad_()
    with torch.inference_mode():
        output = channelwise_linear(input, weight)
    assert output.is_inference()
    assert not output.requires_grad
    torch.testing.assert_close(output.clone(), channelwise_linear(input, weight).detach())


# --- refusals ---------------------------------------------------------------------------------

X, W, V = torch.zeros(2, 3, 4), torch.zeros(3, 5, 4), torch.zeros(3, 5)
META_W, META_V = W.to("meta"), V.to("meta")


@pytest.mark.parametrize(
    ("error", "name", "value", "message"),
    [
        (TypeError, "input", [1.0], r"must be a torch.Tensor, got list \[1.0\]"),
        (TypeError, "input", X.to_sparse(), "must be dense, got a torch.sparse_coo float32"),
        (TypeError, "weight", None, "must be a torch.Tensor, got NoneType None"),
        (TypeError, "bias", 1.0, "must be a torch.Tensor, got float 1.0"),
        (ValueError, "input", X[0], r"must be \(B, C, N\) or \(B, C, H, W\), .* \(3, 4\)"),
        (ValueError, "weight", W[0], r"must be \(C, N_out, N_in\), .* shape \(5, 4\)"),
        (TypeError, "input", X.int(), "must have dtype float16, .*, float64, got a int32"),
        (TypeError, "input", X * 1j, "must have dtype .* got a complex64"),
        (TypeError, "weight", W.double(), "the dtype of input, torch.float32, got a float64"),
        (TypeError, "bias", V.half(), "the dtype of input, torch.float32, got a float16"),
        (ValueError, "weight", META_W, "must be on the device of input, cpu, got .* meta"),
        (ValueError, "bias", META_V, "must be on the device of input, cpu, got .* meta"),
        (ValueError, "weight", W[:2], r"\(2, 5, 4\) needs an input of 2 channels with 4 locations"),
        (ValueError, "weight", W[..., :3], r"3 channels with 3 locations, got .* \(2, 3, 4\)"),
        (ValueError, "bias", V[0], r"must have shape \(3, 5\) .* got .* shape \(5,\)"),
        (ValueError, "activation", "gelu", "must be one of None, 'relu', got 'gelu'"),
        (ValueError, "impl", "fast", "must be one of 'auto', .*, 'cuda', got 'fast'"),
    ],
)
def test_refusals_name_the_argument(
    error: type[Exception], name: str, value: Any, message: str
) -> None:
    with pytest.raises(error, match=f"^channelwise_linear: {name} .*{message}"):
        channelwise_linear(**({"input": X, "weight": W, "bias": V} | {name: value}))


# --- the module -------------------------------------------------------------------------------


def test_module_has_the_layer_s_parameters_and_the_start_of_linear() -> None:
    torch.manual_seed(0)
    layer = ChannelwiseLinear(256, (6, 6))
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == {
        "weight": (256, 36, 36),
        "bias": (256, 36),
    }
    assert sum(p.numel() for p in layer.parameters()) == 331_776 + 9_216
    for parameter in layer.parameters():
        values = parameter.detach() * 6  # uniform in +-1/sqrt(36)
        assert -1 <= values.min() < -0.99
        assert 0.99 < values.max() <= 1
        assert abs(values.mean()) < 0.03
        assert abs(values.std() - 3**-0.5) < 0.02
    assert list(ChannelwiseLinear(3, 4, bias=False).state_dict()) == ["weight"]


def test_module_shapes() -> None:
    assert ChannelwiseLinear(3, 4, 6)(torch.zeros(2, 3, 4)).shape == (2, 3, 6)
    assert ChannelwiseLinear(3, (2, 2), (3, 2))(torch.zeros(2, 3, 2, 2)).shape == (2, 3, 3, 2)
    assert ChannelwiseLinear(3, [2, 2], [3, 2])(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 3, 2)
    assert ChannelwiseLinear(3, (2, 2), (3, 2))(torch.zeros(2, 3, 4)).shape == (2, 3, 6)
    assert ChannelwiseLinear(3, 4)(torch.zeros(2, 3, 1, 4)).shape == (2, 3, 1, 4)
    assert ChannelwiseLinear(3, (2, 2), 6)(torch.zeros(2, 3, 2, 2)).shape == (2, 3, 6)


def test_module_copies_pickles_and_loads() -> None:
    layer = ChannelwiseLinear(3, (2, 2), activation="relu", impl="reference")
    input = torch.randn(2, 3, 2, 2)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(input), layer(input))
        assert other.weight.data_ptr() != layer.weight.data_ptr()
    fresh = ChannelwiseLinear(3, (2, 2), activation="relu")
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(fresh(input), layer(input))  # run by another implementation
    assert "3, in_size=(2, 2), out_size=(2, 2), bias=True" in repr(layer)
    assert "activation='relu', impl='reference'" in repr(layer)


def test_module_on_meta_and_in_another_dtype() -> None:
    layer = ChannelwiseLinear(3, (2, 2), 5, device="meta", dtype=torch.float64)
    output = layer(torch.empty(2, 3, 2, 2, device="meta", dtype=torch.float64))
    assert (output.shape, output.dtype, output.device.type) == ((2, 3, 5), torch.float64, "meta")
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(draw(2, 3, 2, 2)).isfinite().all()
    assert ChannelwiseLinear(2, 3, dtype=torch.bfloat16)(torch.zeros(1, 2, 3).bfloat16()).dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "channels must be a positive integer, got 0"),
        ((2.0, 4), "channels must be a positive integer, got 2.0"),
        ((3, 0), r"in_size must be a positive integer or two \(H, W\), got 0"),
        ((3, (-2, -2)), r"in_size must be .* got \(-2, -2\)"),
        ((3, (2, 2, 2)), r"in_size must be .* got \(2, 2, 2\)"),
        ((3, 2.5), "in_size must be .* got 2.5"),
        ((3, 4, "4"), "out_size must be .* got '4'"),
        ((3, 4, (2, 0)), r"out_size must be .* got \(2, 0\)"),
    ],
)
def test_module_refuses_sizes(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^ChannelwiseLinear: " + message):
        ChannelwiseLinear(*arguments)


def test_module_refuses_options_and_maps_of_another_size() -> None:
    with pytest.raises(ValueError, match="activation must be one of None, 'relu', got 'tanh'"):
        ChannelwiseLinear(3, 4, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"impl must be one of 'auto', .* got 'numpy'"):
        ChannelwiseLinear(3, 4, impl="numpy")  # type: ignore[arg-type]
    turned = torch.zeros(1, 3, 3, 2)
    with pytest.raises(ValueError, match=r"input must have shape \(1, 3, 2, 3\) \(maps of in_size"):
        ChannelwiseLinear(3, (2, 3))(turned)


@pytest.mark.parametrize("shape", [(1, 3, 18 * 18), (2, 1, 4), (0, 2, 4)], ids=str)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_the_output_may_be_changed_in_place(shape: tuple[int, ...], impl: Any) -> None:
    """It is not a view of a product, not even where a transposition needs no copy."""
    input = draw(*shape, dtype=torch.float32)
    weight = draw(*shape[1:], shape[2], dtype=torch.float32, seed=1).requires_grad_()
    output = channelwise_linear(input, weight, impl=impl)
    expected = torch.einsum("bci,coi->bco", input, weight).relu()
    torch.testing.assert_close(output.relu_(), expected, rtol=1e-4, atol=1e-4)
    output.sum().backward()
    with torch.no_grad():
        kept = channelwise_linear(input, weight, impl=impl)
    kept += torch.zeros(shape, requires_grad=True)


def test_module_takes_integers_where_nn_linear_does() -> None:
    for size in (np.int64(6), torch.tensor(6)):
        layer = ChannelwiseLinear(size, size, (np.int32(2), 3))  # type: ignore[arg-type]
        nn.Linear(size, size)  # type: ignore[arg-type]
        assert layer.weight.shape == (6, 6, 6)
        assert layer(torch.zeros(1, 6, 6)).shape == (1, 6, 6)
        assert (layer.channels, layer.in_size, layer.out_size) == (6, 6, (2, 3))
        assert all(type(n) is int for n in (layer.channels, layer.in_size, *layer.out_size))  # type: ignore[misc]


# --- errors of memory and size ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2**20, 2**20), RuntimeError, r"out of memory: weight .* \(1048576, 1048576, 1048576\) n"),
        ((2**40, 4), RuntimeError, r"\(1099511627776, 4, 4\) needs 70,368,744,177,664 bytes"),
        ((2**31, 2**31), ValueError, r"would need .* bytes: 2\*\*63 or more"),
    ],
)
def test_parameters_that_do_not_fit_give_shape_and_bytes(
    arguments: tuple[int, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^ChannelwiseLinear: .*{message}"):
        ChannelwiseLinear(*arguments)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=layout)
    with pytest.raises(TypeError, match=r"^channelwise_linear: input must be dense, got a nested"):
        channelwise_linear(nested, torch.zeros(2, 3, 3))
    with pytest.raises(TypeError, match=r"^ChannelwiseLinear: input must be dense, got a nested"):
        ChannelwiseLinear(2, 3)(nested)
