"""Precision, gradients and weight updates, shared by all training steps.

No method synchronizes with the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from context_encoder.optimization.batch_statistics import share_batch_statistics
from context_encoder.utils.device import Processes

T = TypeVar("T")

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """The networks that a run trains, each with its optimizer.

    A step calls, in this order: :meth:`set_learning_rates`; :meth:`network` under
    :meth:`autocast`, :meth:`backward` for each of :meth:`micro_batches`, and
    :meth:`update_weights` for each network; :meth:`adjust_loss_scale`. All but the first may be
    captured in a CUDA graph with ``rates_on_device``.

    Args:
        networks: by name, on ``device``. Processes that train together start from the weights
            of the first one.
        optimizers: by the same names; their learning rates are the initial ones.
        device: that of this process.
        amp: "off", "bf16" or "fp16" (with a scaled loss).
        clip: largest norm of the gradient of a network; None for no limit.
        compile: torch.compile the networks.
        accumulate: micro-batches per step, whose gradients are added up before an update.
        rates_on_device: hold learning rates in tensors on the device, where a captured step reads
            them; for Adam with ``fused=True``.
        processes: the processes that train together. Batch normalisation then uses the statistics
            of all of them.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        device: torch.device,
        *,
        amp: str = "off",
        clip: float | None = None,
        compile: bool = False,
        accumulate: int = 1,
        rates_on_device: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.device = device
        self.accumulate = accumulate
        self.processes = processes or Processes()
        self.optimizers = dict(optimizers)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
                if rates_on_device:
                    # Fused Adam reads float32 on GPUs, any dtype on CPUs.
                    dtype = torch.float64 if device.type == "cpu" else torch.float32
                    group["lr"] = torch.full((), group["lr"], dtype=dtype, device=device)
        self._factor: float | None = None
        self._within = False  # one of several micro-batches
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self._dtype = _AMP_DTYPES.get(amp)
        self._clip = clip
        self._networks = {name: self._wrap(n, compile) for name, n in networks.items()}

    def _wrap(self, network: nn.Module, compile: bool) -> nn.Module:
        if self.processes.world_size > 1:
            share_batch_statistics(network)
        wrapped: nn.Module = torch.compile(network) if compile else network  # type: ignore[assignment]
        if self.processes.world_size > 1:
            index = None if self.device.index is None else [self.device.index]
            wrapped = DistributedDataParallel(wrapped, device_ids=index)
        return wrapped

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return self.processes.world_size

    def set_learning_rates(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its initial value."""
        if factor == self._factor:
            return
        self._factor = factor
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                rate = group["initial_lr"] * factor
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def learning_rate(self) -> float:
        """The learning rate of the first network."""
        initial: float = next(iter(self.optimizers.values())).param_groups[0]["initial_lr"]
        return initial * (1.0 if self._factor is None else self._factor)

    def split(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Tensors ``(B, ...)`` as those of :attr:`accumulate` micro-batches, equal parts in order.

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        if self.accumulate == 1:
            return [tensors]
        size, rest = divmod(len(tensors[0]), self.accumulate)
        if rest:
            raise ValueError(
                f"a batch of {len(tensors[0])} cannot be divided into {self.accumulate} equal parts"
            )
        return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))

    def micro_batches(self, name: str, parts: Sequence[T]) -> Iterator[T]:
        """The parts of a batch, on each of which a gradient of a network is computed.

        With several processes, its gradients are averaged with those of the last part only.

        Args:
            name: the network.
            parts: :attr:`accumulate` of them.
        """
        network = self._networks[name]
        for number, part in enumerate(parts, start=1):
            alone = isinstance(network, DistributedDataParallel) and number < len(parts)
            with network.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                self._within = True
                yield part
                self._within = False

    def network(self, name: str) -> nn.Module:
        """A network for use in a training step: compiled, and averaging its gradients.

        With several processes, a backward pass through it averages the gradients of its weights
        over the processes.
        """
        return self._networks[name]

    def autocast(self) -> torch.autocast:
        """The autocast context in which networks and losses are computed."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss (scaled for fp16) to those of all weights it depends on.

        Args:
            loss: the mean over a micro-batch; it counts with its share of the batch.

        Raises:
            RuntimeError: the step does not compute its batch in :meth:`micro_batches`.
        """
        if self.accumulate > 1:
            if not self._within:
                raise RuntimeError(
                    "`accumulate` needs a training step that computes its batch in parts, by "
                    "Learner.split and Learner.micro_batches; this one does not"
                )
            loss = loss / self.accumulate
        self.scaler.scale(loss).backward()

    def update_weights(self, name: str) -> None:
        """Clip a network's gradient, take one optimizer step and clear its gradients.

        With fp16, a network whose gradients are not finite stays unchanged.
        """
        optimizer = self.optimizers[name]
        if self._clip is not None:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_grad_norm_(parameters, self._clip)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def adjust_loss_scale(self) -> None:
        """Adapt the fp16 loss scale to whether gradients were finite; called once per step."""
        self.scaler.update()

    def scale_tensors(self) -> list[Tensor]:
        """The tensors of the fp16 loss scale, which :meth:`adjust_loss_scale` changes in place."""
        if not self.scaler.is_enabled():
            return []
        self.scaler.scale(torch.zeros((), device=self.device))  # creates them
        found = (self.scaler._scale, self.scaler._growth_tracker)
        return [tensor for tensor in found if tensor is not None]
