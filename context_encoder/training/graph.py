"""A training step captured once and replayed, so that the host launches one graph per step.

Everything that changes between steps is in tensors that stay in place: the batch, the learning
rates, the weight of the moving average. Numbers of Python become constants of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cekernels import warm_up
from context_encoder.utils.device import Processes

__all__ = ["CapturedStep", "Recorder", "check_capture", "cuda_graph"]

Losses = dict[str, Tensor]
Step = Callable[..., Losses]

#: Runs before the capture: libraries choose algorithms, Triton and torch.compile compile, and the
#: optimizers create their state.
_WARM_UP = 3


class Recorder(Protocol):
    """Records a function without arguments that works on tensors of one device."""

    def __call__(self, function: Callable[[], Losses], /) -> tuple[Callable[[], None], Losses]:
        """A function that repeats the work on the same memory, and the tensors that it fills."""


def check_capture(device: torch.device, processes: Processes) -> None:
    """ValueError if a training step cannot be captured in a CUDA graph here."""
    if device.type != "cuda":
        raise ValueError(
            f"`graph` captures the step in a CUDA graph, this run is on {device.type}; train on "
            "a GPU (`device` cuda), or give `no_graph`"
        )
    if processes.world_size > 1:
        raise ValueError(
            f"`graph` captures the step of one process, this run has {processes.world_size}, "
            "which exchange gradients within it; give `no_graph`"
        )


def cuda_graph(function: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
    """The :class:`Recorder` for a GPU."""
    graph = torch.cuda.CUDAGraph()
    # Other threads go on meanwhile: that of the data loader allocates pinned memory.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        losses = function()
    return graph.replay, losses


class CapturedStep:
    """A step function that is recorded at its first call and replayed.

    The first call runs the function a few times before, and then restores weights, statistics,
    optimizers and random generators in place.

    Args:
        step: called with tensors on the device; returns losses. It must not read a tensor on the
            host, and must clear the gradients that it computes.
        networks: all networks with weights or buffers that it changes.
        optimizers: those that it steps, with learning rates in tensors.
        others: returns further tensors that it changes.
        record: how to record.
        device: where the step runs.
    """

    def __init__(
        self,
        step: Step,
        *,
        networks: Iterable[nn.Module],
        optimizers: Iterable[Optimizer],
        others: Callable[[], Sequence[Tensor]],
        record: Recorder,
        device: torch.device,
    ) -> None:
        self._step = step
        self._networks = list(networks)
        self._optimizers = list(optimizers)
        self._others = others
        self._record = record
        self._device = device
        self._inputs: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._losses: Losses = {}

    def __call__(self, **batch: Tensor) -> Losses:
        """The losses of a step; the tensors are overwritten by the next one.

        Args:
            batch: the arguments of the step function, on any device.

        Raises:
            ValueError: the shape of a tensor is not that of the first call.
        """
        if self._replay is None:
            self._inputs = {n: t.to(self._device, copy=True) for n, t in batch.items()}
            self._capture()
        else:
            self._fill(batch)
        assert self._replay is not None
        self._replay()
        return self._losses

    def _fill(self, batch: Mapping[str, Tensor]) -> None:
        for name, value in batch.items():
            place = self._inputs[name]
            if value.shape != place.shape:  # would be broadcast
                raise ValueError(
                    f"the step was captured with {name} of shape {tuple(place.shape)}, got "
                    f"{tuple(value.shape)}"
                )
            place.copy_(value, non_blocking=True)

    def _capture(self) -> None:
        warm_up(self._device)
        before = _Snapshot(self._networks, self._optimizers, self._others(), self._device)
        with warnings.catch_warnings():
            # The optimizers' advice for steps outside a capture, which these are on purpose.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            self._warm_up()
        self._replay, self._losses = self._record(lambda: self._step(**self._inputs))
        before.restore()

    def _warm_up(self) -> None:
        if self._device.type != "cuda":
            for _ in range(_WARM_UP):
                self._step(**self._inputs)
            return
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._step(**self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)


class _Snapshot:
    """Copies of all that a step changes."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        others: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        self._optimizers, self._device = optimizers, device
        self._tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
        self._tensors += others
        self._copies = [t.detach().clone() for t in self._tensors]
        self._states = [
            {(p, name): value.clone() for p, name, value in _state(optimizer)}
            for optimizer in optimizers
        ]
        self._random = torch.get_rng_state()
        self._random_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(copy)
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            for parameter, name, value in _state(optimizer):
                if (parameter, name) in state:
                    value.copy_(state[parameter, name])
                else:
                    value.zero_()  # how Adam begins
        torch.set_rng_state(self._random)
        if self._random_cuda is not None:
            torch.cuda.set_rng_state(self._random_cuda, self._device)


def _state(optimizer: Optimizer) -> Iterable[tuple[Tensor, str, Tensor]]:
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield parameter, name, value
