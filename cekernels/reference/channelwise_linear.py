"""Channel-wise fully-connected layer (Pathak et al. 2016, section 3.1) in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy: autograd does not allow in-place changes of a view of a product."""
    return tensor.clone(memory_format=torch.contiguous_format)


def channelwise_linear(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """``out[b,c,o] = act(sum_i weight[c,o,i] * input[b,c,i] + bias[c,o])``, contiguous."""
    output = torch.einsum("bci,coi->bco", input, weight)
    if bias is not None:
        output = output + bias
    if relu:
        output = output.relu()
    return _own(output)


def channelwise_linear_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    output: Tensor | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; an empty tensor ``(0,)`` for each that is not needed.

    ``output`` is given if a ReLU was applied: the gradient is 0 where it is 0.
    """
    grad = grad_output if output is None else torch.where(output > 0, grad_output, 0)
    return (
        _own(torch.einsum("bco,coi->bci", grad, weight)) if needs_input else grad.new_empty(0),
        _own(torch.einsum("bco,bci->coi", grad, input)) if needs_weight else grad.new_empty(0),
        grad.sum(0) if needs_bias else grad.new_empty(0),
    )
