"""Interleaved measurement of all providers of a row, under the same conditions.

A *row* is one op with its shape, dtype and mode; a *provider* is one way to compute it. All
providers of a row are checked against float64 first. Then they are timed in rounds: each round
calls every provider once, in a new random order, so that a change in the machine's speed affects
all of them, and speed-ups are medians of the ratios within a round.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import gc
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cekernels import ImplementationError

Outputs = tuple[Tensor, ...]
Call = Callable[[], Any]

#: A timed sample calls a provider as often as needed to fill this many seconds.
_SAMPLE_SECONDS = 1e-4
#: A provider that takes fewer seconds than this is called once, untimed, before each sample.
_WARM_SECONDS = 1e-2
_MIN_ROUNDS, _MAX_ROUNDS = 5, 100
_MIN_SLOW_ROUNDS = 3  # where one round takes more than half of the row's time
# Errors up to this multiple of plain PyTorch's count as rounding in another order of summation.
_ERROR_FACTOR = 3.0
_GRAPH_CALLS = 20


class UnavailableError(Exception):
    """A provider cannot handle a row, or is not measured there; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The subject of a comparison.

    Attributes:
        op: name of the operation.
        shape: its sizes, as text.
        dtype: "float32" and so on; "tf32" is float32 with TensorFloat-32 products allowed.
        mode: "forward", "backward", "both", or another mode of the op.
        device: "cpu" or "cuda".
        kind: further distinction of rows, such as the kind of mask, or "".
        axes: the sizes as numbers, for plots.
        seconds: time to spend on its samples, per kind of timing.
        compiled: whether providers that use torch.compile are measured.
        wall_only: measure wall time only, also on a GPU.
    """

    op: str
    shape: str
    dtype: str
    mode: str
    device: str
    kind: str = ""
    axes: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    seconds: float = 1.0
    compiled: bool = True
    wall_only: bool = False

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.op, self.shape, self.kind, self.dtype, self.mode)))

    @property
    def timings(self) -> tuple[str, ...]:
        kernels = self.device == "cuda" and not self.wall_only
        return ("cold", "graph", "wall") if kernels else ("wall",)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, "float32" if self.dtype == "tf32" else self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


class Problem(abc.ABC):
    """A row with its inputs.

    Attributes:
        bytes: the least memory traffic that the row needs; 0 where not meaningful.
        flops: its floating-point operations.
        items: images or masks that one call handles.
        limit: the largest error allowed for the provider built last.
    """

    bytes: int = 0
    flops: int = 0
    items: int
    limit: float = 0.0

    @abc.abstractmethod
    def build(self, provider: str) -> tuple[Call, dict[str, Any]]:
        """The call to time, and further values to record.

        Raises:
            UnavailableError: the provider cannot handle the row, or is not measured there.
        """

    @abc.abstractmethod
    def error(self, outputs: Any) -> float | None:
        """The largest error of the first call's outputs, as the op's module defines it.

        None where there is nothing to compare with; outputs of a wrong form then raise an error.
        """

    def details(self, profiler: profile) -> dict[str, Any]:
        """Further values to record from the profile of one call, which is not timed."""
        return {}


@dataclasses.dataclass
class Measurement:
    """Results of one provider of a row."""

    call: Call
    info: dict[str, Any]
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    not_timed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Race:
    """The providers of a row: measured, unavailable (with the reason), or failed."""

    row: Row
    measured: dict[str, Measurement]
    unavailable: dict[str, str]
    failed: dict[str, Exception]

    def info(self, provider: str, timing: str) -> dict[str, Any]:
        """The record of one provider for the result file."""
        row, own = self.row, self.measured[provider]
        p20, p50, p80 = quantiles(own.samples[timing])
        return {
            "op": row.op,
            "shape": row.shape,
            "kind": row.kind,
            "dtype": row.dtype,
            "mode": row.mode,
            "device": row.device,
            "timing": timing,
            "provider": provider,
            "axes": dict(row.axes),
            "p20": p20,
            "p50": p50,
            "p80": p80,
            **own.info,
            "gb_per_s": own.info["bytes"] / p50 / 1e9,
            "items_per_s": own.info["items"] / p50,
            "speedup": {
                name: speedup(own.samples[timing], other.samples[timing])
                for name, other in self.measured.items()
                if name != provider and timing in other.samples
            },
        }


def run_race(row: Row, problem: Problem, providers: Sequence[str], timed: bool) -> Race:
    """Check every provider that can handle the row, then time the correct ones."""
    with matmul_precision(row.dtype):
        race = Race(row, {}, {}, {})
        for name in providers:
            try:
                call, extra = problem.build(name)
                error, limit = problem.error(call()), problem.limit
                if error is not None and not error <= limit:
                    raise AssertionError(
                        f"{name} is wrong for {row.name}: largest error {error:.3g}, "
                        f"allowed {limit:.3g}"
                    )
                info: dict[str, Any] = {
                    "bytes": problem.bytes,
                    "flops": problem.flops,
                    "items": problem.items,
                }
                info |= {"error": error, **extra}
                if timed:
                    info["peak_memory"], profiler = observe(call, row.device)
                    info |= problem.details(profiler)
                race.measured[name] = Measurement(call, info)
            except (UnavailableError, ImplementationError) as reason:
                race.unavailable[name] = str(reason)
            except Exception as error:
                # The failure of one provider must not lose the results of the others.
                race.failed[name] = error
        if timed:
            for timing in row.timings:
                _time(race, timing)
        return race


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles."""
    values = torch.tensor(samples, dtype=torch.float64)
    low, middle, high = torch.quantile(
        values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    ).tolist()
    return low, middle, high


def speedup(own: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster ``own`` is: median of the ratios within a round."""
    return statistics.median(b / a for a, b in zip(own, other, strict=True))


class matmul_precision:  # noqa: N801 (a context manager, used as a function)
    """TensorFloat-32 products for rows of dtype "tf32", full float32 for the others."""

    def __init__(self, dtype: str) -> None:
        self._wanted = "high" if dtype == "tf32" else "highest"

    def __enter__(self) -> None:
        self._before = torch.get_float32_matmul_precision()
        self._convolutions = torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision(self._wanted)
        torch.backends.cudnn.allow_tf32 = self._wanted == "high"

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self._before)
        torch.backends.cudnn.allow_tf32 = self._convolutions


# --- correctness ------------------------------------------------------------------------------


def relative_error(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest ``|output - truth|`` over largest ``|truth|`` per output; the worst output counts."""
    worst = [0.0]
    for output, exact in zip(outputs, truth, strict=True):
        if output.shape != exact.shape:
            raise AssertionError(f"shape {tuple(output.shape)}, expected {tuple(exact.shape)}")
        if exact.numel():
            scale = exact.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
            worst.append(float((output.to(exact.dtype) - exact).abs().max() / scale))
    # max() may drop a NaN.
    return float(torch.tensor(worst).amax())


def rounding_limit(plain_error: float, dtype: torch.dtype, summands: int) -> float:
    """Upper limit of the error of a correct provider.

    Either a few times that of plain PyTorch in its dtype, or the rounding error of a sum of
    ``summands`` terms in any order, which grows with their square root.
    """
    return max(_ERROR_FACTOR * plain_error, 2 * math.sqrt(summands) * torch.finfo(dtype).eps)


def autograd_call(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    grad_output: Tensor,
    mode: str,
) -> Callable[[], Outputs]:
    """``function(*inputs)``, its gradients for ``wanted``, or both, as a call to time."""
    if mode == "forward":

        def forward() -> Outputs:
            with torch.no_grad():
                return (function(*inputs),)

        return forward
    if mode == "backward":
        outputs: dict[torch.cuda.Stream | None, Tensor] = {}

        def backward() -> Outputs:
            # Autograd runs on the stream of the forward pass: one forward pass per stream, or a
            # CUDA graph would not capture the backward pass.
            stream = torch.cuda.current_stream() if grad_output.is_cuda else None
            if stream not in outputs:
                outputs[stream] = function(*inputs)
            return torch.autograd.grad(outputs[stream], wanted, grad_output, retain_graph=True)

        return backward

    def both() -> Outputs:
        result = function(*inputs)
        return (result.detach(), *torch.autograd.grad(result, wanted, grad_output))

    return both


@functools.lru_cache(maxsize=1)
def compiled(function: Callable[..., Any], key: object, mode: str | None = None) -> Any:
    """``function``, compiled for the shapes and dtypes that ``key`` identifies."""
    # Dynamo silently stops compiling a function after too many shapes.
    torch._dynamo.reset()
    return torch.compile(function, mode=mode, dynamic=False)


# --- time and memory --------------------------------------------------------------------------


def _time(race: Race, timing: str) -> None:
    """Take interleaved samples of all measured providers by one kind of timing."""
    samplers: dict[str, Callable[[], float]] = {}
    for name, measurement in race.measured.items():
        try:
            samplers[name] = _SAMPLERS[timing](measurement.call, race.row.device)
        except Exception as error:
            measurement.not_timed[timing] = f"{type(error).__name__}: {error}"
    if not samplers:
        return
    order, shuffle = list(samplers), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in order}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        least, seconds = _MIN_ROUNDS, 0.0
        for number in range(_MAX_ROUNDS):
            if number >= least and seconds >= race.row.seconds:
                break
            shuffle.shuffle(order)
            for name in order:
                samples[name].append(samplers[name]())
            seconds = time.perf_counter() - start
            if number == 0 and seconds > race.row.seconds / 2:
                least = _MIN_SLOW_ROUNDS
    finally:
        if collecting:
            gc.enable()
    for name, values in samples.items():
        race.measured[name].samples[timing] = values


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _wall_sampler(call: Call, device: str) -> Callable[[], float]:
    """Seconds per call as seen by the caller, with warm caches.

    Without the untimed call, the first call of a sample would have to reload data that the other
    providers evicted from the caches, which weighs more the fewer calls a sample has.
    """

    def seconds(calls: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        _synchronize(device)
        return time.perf_counter() - start

    once = seconds(1)
    if once < 0.1:
        once = min(once, seconds(1))
    calls = max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)))

    def sample() -> float:
        if once < _WARM_SECONDS:
            call()
        return seconds(calls) / calls

    return sample


def _cold_sampler(call: Call, device: str) -> Callable[[], float]:
    """Seconds per call on the GPU, by events, after its L2 cache has been flushed.

    The method of ``triton.testing.do_bench``, but one sample at a time, so that providers can
    be interleaved.
    """
    size = max(256 << 20, 2 * torch.cuda.get_device_properties().L2_cache_size)
    cache = torch.empty(size, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        cache.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    sample()
    return sample


def _graph_sampler(call: Call, device: str) -> Callable[[], float]:
    """Seconds per call on the GPU without host time: a replayed CUDA graph of several calls."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(_GRAPH_CALLS):
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / _GRAPH_CALLS

    sample()
    return sample


_SAMPLERS: dict[str, Callable[[Call, str], Callable[[], float]]] = {
    "wall": _wall_sampler,
    "cold": _cold_sampler,
    "graph": _graph_sampler,
}


def observe(call: Call, device: str) -> tuple[int, profile]:
    """Peak memory of one call, and its profile.

    The memory is the most that PyTorch's allocator hands out, in bytes above the amount held
    before, including the outputs. Memory that a library takes from the system is not counted.
    """
    gpu = device == "cuda"
    before = 0
    if gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, profile_memory=not gpu) as profiler:
        kept = call()
        if gpu:
            torch.cuda.synchronize()
    del kept
    if gpu:
        return torch.cuda.max_memory_allocated() - before, profiler
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for change in (e["args"]["Bytes"] for e in events if e.get("name") == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak, profiler
