"""What the compiled kernels cost, and what that predicts for GPUs; the table in docs/results.

``python -m tests.helpers.ptx.budgets`` measures all cases and writes the table. The model is
explained in docs/gpu.md; no GPU has confirmed it yet.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from cekernels import reference
from context_encoder.masks import build_mask_sampler, region
from tests.helpers.implementation_cases import random
from tests.helpers.ptx import counting
from tests.helpers.ptx.cuda import Build, CompiledKernels, build, require_nvcc
from tests.helpers.ptx.machine import Machine, Report
from tests.helpers.ptx.memory import Memory
from tests.helpers.ptx.triton_ops import TritonOnMachine
from tests.helpers.triton_compile import cubin_for, implementation

PAGE = Path(__file__).parents[3] / "docs/gpu.md"
BEGIN, END = "<!-- table: predictions -->", "<!-- end of table -->"
TABLE = Path(__file__).parents[3] / "docs/results/gpu-budgets.json"
PREDICTED = Path(__file__).parents[3] / "cekernels/_predicted.py"
BATCH, CHANNELS, N = 1024, 256, 36  # the paper's layer with a large batch
OTHERS = {"4x4": 16, "8x8": 64}  # the other maps with kernels of their own in csrc/cuda
SAMPLES = 64  # images of the loss and of the masks
PRODUCTS = {
    "ieee": (torch.float32, "highest", 0),
    "tf32x3": (torch.float32, "high", 1),
    "tf32": (torch.float32, "medium", 2),
    "bf16": (torch.bfloat16, "highest", 0),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Gpu:
    """Constants of the model. ``copy``: bytes per second of a large copy, read and written."""

    name: str
    architecture: int  # of the code that it runs
    multiprocessors: int
    clock: float
    copy: float
    shared: int  # bytes per multiprocessor
    threads: int
    blocks: int


GPUS = (
    Gpu("H200", 90, 132, 1.755e9, 4.3e12, 228 << 10, 2048, 32),
    Gpu("A100", 80, 108, 1.41e9, 1.6e12, 164 << 10, 2048, 32),
    Gpu("RTX 4090", 80, 128, 2.5e9, 0.92e12, 100 << 10, 1536, 24),
)
LAUNCH = 2e-6  # seconds of a launch that follows another


@dataclass(frozen=True)
class Cost:
    """Of the main kernel of an op. Per row: of the locations of a map, or per image."""

    rows: int
    instructions: float  # of warps, per row
    wavefronts: float  # of shared memory and lines of global memory, per row
    shared_wavefronts: float  # of shared memory alone
    shared_over_ideal: float
    load_sectors: float  # bytes of the sectors over the bytes loaded
    store_sectors: float
    bytes: int  # that have to move to and from memory
    registers: int
    shared: int  # bytes per block
    spills: int
    grid: int
    threads: int
    launches: int

    def resident(self, gpu: Gpu) -> int:
        """Blocks per multiprocessor."""
        warps = self.threads // 32
        registers = warps * 32 * -(-self.registers // 8) * 8
        return min(
            65536 // registers, gpu.shared // (self.shared + 1024), gpu.threads // self.threads,
            gpu.blocks,
        )  # fmt: skip

    def prediction(self, gpu: Gpu) -> dict[str, float]:
        """Microseconds at least, and the share of the time that a copy would need."""
        issue = self.instructions * self.rows / (4 * gpu.multiprocessors * gpu.clock)
        memory = self.wavefronts * self.rows / (gpu.multiprocessors * gpu.clock)
        copy = self.bytes / gpu.copy
        waves = self.grid / (gpu.multiprocessors * self.resident(gpu))
        # A multiprocessor with one block more than the average finishes last.
        share = self.grid / gpu.multiprocessors
        busy = max(issue, memory) * -(-self.grid // gpu.multiprocessors) / share
        time = max(busy, copy) + (self.launches - 1) * LAUNCH
        values = {"issue_us": issue, "wavefronts_us": memory, "copy_us": copy, "time_us": time}
        found = {name: round(1e6 * value, 1) for name, value in values.items()}
        return found | {"share": round(copy / time, 2), "waves": round(waves, 2)}


def _cost(report: Report, rows: int, size: int, resources: tuple[int, int], launches: int) -> Cost:
    """From the executed blocks of a launch; ``rows`` and ``size`` are those of the whole op."""
    scale = report.grid / report.blocks * (SAMPLES / MEASURED if rows == SAMPLES else 1)
    per_row = scale / rows
    shared, whole = report.cost("shared"), report.cost("global")
    load, store = report.cost("global", "ld"), report.cost("global", "st")

    def sectors(cost: Any) -> float:
        return round(32 * cost[counting.SECTORS] / max(cost[counting.BYTES], 1), 2)

    return Cost(
        rows=rows,
        instructions=round(report.instructions() * per_row, 1),
        wavefronts=round(
            float(shared[counting.WAVEFRONTS] + whole[counting.WAVEFRONTS]) * per_row, 1
        ),
        shared_wavefronts=round(float(shared[counting.WAVEFRONTS]) * per_row, 1),
        shared_over_ideal=round(shared[counting.WAVEFRONTS] / max(shared[counting.IDEAL], 1), 2),
        load_sectors=sectors(load),
        store_sectors=sectors(store),
        bytes=size,
        registers=resources[0],
        shared=report.shared,
        spills=resources[1],
        grid=round(scale * report.blocks),
        threads=report.threads,
        launches=launches,
    )


# --- the compiled kernels -------------------------------------------------------------------------


def assemble(build: Build, architecture: int, source: str, names: list[str]) -> bytes:
    """The cubin with some kernels of a source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [str(require_nvcc() / "bin/ptxas"), "-O3", f"-arch=sm_{architecture}"]
        for name in names:
            command += ["-e", name]
        command += [str(build.ptx[architecture, source]), "-o", str(cubin)]
        subprocess.run(command, check=True, capture_output=True)
        return cubin.read_bytes()


def _tool(name: str, cubin: bytes, *options: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        command = [str(TOOLS / name), *options, str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def resources(cubin: bytes) -> dict[str, tuple[int, int]]:
    """Registers and bytes of stack, which include spills, per thread of each kernel."""
    listing = _tool("cuobjdump", cubin, "-res-usage")
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)", listing)
    return {name: (int(registers), int(stack)) for name, registers, stack in found}


@dataclass(frozen=True)
class Assembly:
    """What the instructions of a kernel show, of its cubin."""

    local: int  # accesses to local memory: spilled registers, arrays with a variable index
    narrow_loads: int  # loads from global memory of less than 8 bytes
    narrow_stores: int
    # Loads from shared memory per multiply-add or tensor-core product, in the inner loop.
    shared_per_multiply: float


def assembly(cubin: bytes) -> dict[str, Assembly]:
    found = {}
    for part in _tool("cuobjdump", cubin, "-sass").split("Function : ")[1:]:
        name, code = part.split("\n", 1)
        pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);"
        lines = [(int(at, 16), op, rest) for at, op, rest in re.findall(pattern, code)]
        found[name.strip()] = _assembly(lines)
    return found


def _assembly(lines: list[tuple[int, str, str]]) -> Assembly:
    operations = [op for _, op, _ in lines]

    def narrow(kind: str) -> int:
        return sum(op.startswith(kind) and not re.search(r"\.(64|128)", op) for op in operations)

    loops = []
    for at, op, rest in lines:
        target = re.search(r"0x([0-9a-f]+)", rest) if op.startswith("BRA") else None
        if target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    inner, most = 0.0, 0
    for first, last in loops:
        if any(first <= f and z <= last and (f, z) != (first, last) for f, z in loops):
            continue  # contains another loop
        body = [op for at, op, _ in lines if first <= at <= last]
        multiplies = sum(op.split(".")[0] in ("FFMA", "FFMA2", "DFMA", "HMMA") for op in body)
        if multiplies > most:
            inner, most = sum(op.startswith("LDS") for op in body) / multiplies, multiplies
    local = sum(op.startswith(("LDL", "STL")) for op in operations)
    return Assembly(local, narrow("LDG"), narrow("STG"), round(inner, 2))


# --- measurements ---------------------------------------------------------------------------------

SOURCE_OF = {"linear": "channelwise_linear", "loss": "masked_loss", "masks": "rasterize"}


def _linear_bytes(forward: bool, dtype: torch.dtype, partial: int = 0, n: int = N) -> int:
    rows, weights = BATCH * CHANNELS * n, CHANNELS * (n * n + n)
    moved = rows * (2 if forward else 4) + weights * (1 if forward else 2)
    return moved * dtype.itemsize + 2 * partial


class Measurements:
    """Costs of all cases by name: "cuda linear forward tf32 sm_90"."""

    def __init__(self, folder: Path) -> None:
        self.build = build(folder)
        self.machine = Machine(Memory(200 << 20), check=False, count=True)

    @cache  # noqa: B019 - one instance per process
    def cuda(self, architecture: int) -> dict[str, tuple[Cost, Assembly]]:
        """All ops of csrc/cuda."""
        same = all(self.build.same(source) for source in SOURCE_OF.values())
        reports = self._cuda_reports(90 if same else architecture)
        used: dict[str, tuple[int, int]] = {}
        code: dict[str, Assembly] = {}
        for op, source in SOURCE_OF.items():
            names = sorted({r.name for o, r, *_ in reports.values() if o == op})
            cubin = assemble(self.build, architecture, source, names)
            used |= resources(cubin)
            code |= assembly(cubin)
        return {
            f"cuda {name} sm_{architecture}": (
                _cost(report, rows, size, used[report.name], launches), code[report.name]
            )
            for name, (_, report, rows, size, launches) in reports.items()
        }  # fmt: skip

    @cache  # noqa: B019 - one instance per process
    def _cuda_reports(self, architecture: int) -> dict[str, tuple[str, Report, int, int, int]]:
        """What the launches of csrc/cuda did, executed once where architectures share the PTX."""
        kernels = CompiledKernels(self.build, self.machine, architecture)
        reports = {}
        for op, name, rows, size, launch in self._cuda_runs(kernels):
            main = max(kernels.reports, key=lambda r: r.instructions() * r.grid / r.blocks)
            reports[name] = op, main, rows, size, launch or len(kernels.reports)
            kernels.reports.clear()
        return reports

    def _cuda_runs(self, kernels: CompiledKernels) -> Iterator[tuple[str, str, int, int, int]]:
        memory = self.machine.memory
        for (label, n), (products, (dtype, _, number)) in itertools.product(
            {"": N, **{f"{name} ": n for name, n in OTHERS.items()}}.items(), PRODUCTS.items()
        ):
            kernels.only = sample
            for forward in (True, False):
                memory.reset()
                shapes = (BATCH, CHANNELS, n), (CHANNELS, n, n), (CHANNELS, n)
                x, w, b = (memory.zeros(s, dtype) for s in shapes)
                if forward:
                    kernels.channelwise_linear(x, w, b, True, number)
                    partial = 0
                else:
                    kernels.channelwise_linear_backward(x, x, w, x, True, True, True, number)
                    slices = kernels.reports[0].grid // (CHANNELS // _group(dtype, n))
                    partial = 4 * slices * CHANNELS * (n * n + n) if slices > 1 else 0
                name = f"linear {label}{'forward' if forward else 'backward'} {products}"
                size = _linear_bytes(forward, dtype, partial, n)
                yield "linear", name, BATCH * CHANNELS, size, 0
        kernels.only = None
        for side in (227, 128):
            memory.reset()
            p, t, mask, area = kernels.on_gpu(*loss_operands(side))
            kernels.masked_loss_and_gradient(p, t, mask, area, 2, "mask")
            yield "loss", f"loss {side}", SAMPLES, loss_bytes(mask), 0
        memory.reset()
        kernels.rasterize_polygons(*kernels.on_gpu(*mask_operands()), 227, 227, "nonzero")
        yield "masks", "masks 227", SAMPLES, SAMPLES * 227 * 227, 2  # the areas are cleared first

    @cache  # noqa: B019 - one instance per process
    def triton(self, architecture: int) -> dict[str, tuple[Cost, Assembly]]:
        """The same ops in Triton."""
        found: dict[str, tuple[Cost, Assembly]] = {}
        memory = self.machine.memory
        precision = torch.get_float32_matmul_precision()

        def add(run: TritonOnMachine, name: str, rows: int, size: int, extra: int = 0) -> None:
            reports = zip(run.reports, run.launches, strict=True)
            main, call = max(reports, key=lambda r: r[0].instructions() * r[0].grid / r[0].blocks)
            cubin = cubin_for(call, architecture)
            (used,), (code,) = resources(cubin).values(), assembly(cubin).values()
            cost = _cost(main, rows, size, used, len(run.reports) + extra)
            found[f"triton {name} sm_{architecture}"] = cost, code

        for products, (dtype, level, _) in PRODUCTS.items():
            torch.set_float32_matmul_precision(level)
            memory.reset()
            x, w, b = (memory.zeros(s, dtype) for s in LINEAR_SHAPES)
            run = TritonOnMachine(self.machine, architecture)
            run.only = sample
            run(implementation.channelwise_linear, x, w, b, True)
            add(run, f"linear forward {products}", BATCH * CHANNELS, _linear_bytes(True, dtype))
            run = TritonOnMachine(self.machine, architecture)
            run.only = sample
            run(implementation.channelwise_linear_backward, x, x, w, x, True, True, True)
            splits = run.reports[0].grid // CHANNELS
            size = _linear_bytes(False, dtype, 4 * splits * CHANNELS * (N * N + N))
            add(run, f"linear backward {products}", BATCH * CHANNELS, size)
        torch.set_float32_matmul_precision(precision)
        for side in (227, 128):
            memory.reset()
            operands = loss_operands(side)
            run = TritonOnMachine(self.machine, architecture)
            run(implementation.masked_loss_and_gradient, *operands, 2, "mask")
            add(run, f"loss {side}", SAMPLES, loss_bytes(operands[2]))
        memory.reset()
        run = TritonOnMachine(self.machine, architecture)
        run(implementation.rasterize_polygons, *mask_operands(), 227, 227, "nonzero")
        add(run, "masks 227", SAMPLES, SAMPLES * 227 * 227, 1)
        return found


LINEAR_SHAPES = ((BATCH, CHANNELS, N), (CHANNELS, N, N), (CHANNELS, N))
MEASURED = 2  # of the SAMPLES images; the others cost the same


def _group(dtype: torch.dtype, n: int) -> int:
    """Channels per block (Slab::kChannels in channelwise_linear.cu)."""
    return (4 if n == 64 else 8) // dtype.itemsize


def sample(count: int) -> list[int]:
    """Blocks that stand for all: evenly spaced, so that the last slice of the batch counts."""
    return sorted({i * count // 8 for i in range(8)})


@cache
def mask_operands(side: int = 227) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The polygons of two masks of arbitrary regions, as training draws them."""
    recorded: list[Any] = []

    def record(v: Any, c: Any, o: Any, height: int, width: int, **options: Any) -> Any:
        recorded[:] = v, c, o
        return reference.rasterize_polygons(v, c, o, height, width, "nonzero")

    plain, region.rasterize_polygons = region.rasterize_polygons, record
    try:
        sampler = build_mask_sampler("region", side, 0)
        sampler(torch.zeros(MEASURED, dtype=torch.int64), torch.arange(MEASURED))
    finally:
        region.rasterize_polygons = plain
    return recorded[0], recorded[1], recorded[2]


def loss_operands(side: int) -> tuple[torch.Tensor, ...]:
    mask, area = reference.rasterize_polygons(*mask_operands(side), side, side, "nonzero")
    p, t = (random(MEASURED, 3, side, side, seed=i) for i in range(2))
    return p, t, mask, area


def loss_bytes(mask: torch.Tensor) -> int:
    """Prediction and target where the mask is set, the mask, and the whole gradient, in float32."""
    pixels = mask[0].numel()
    masked = int(mask.sum()) / MEASURED
    return round(SAMPLES * (3 * 4 * (2 * masked + pixels) + pixels))


def measure(folder: Path) -> dict[str, tuple[Cost, Assembly]]:
    measurements = Measurements(folder)
    found: dict[str, tuple[Cost, Assembly]] = {}
    for architecture in (80, 90):
        found |= measurements.cuda(architecture) | measurements.triton(architecture)
    return found


WORK = ("rows", "bytes", "grid", "threads")


def entry(name: str, cost: Cost, code: Assembly) -> dict[str, Any]:
    """One row of the table: what may not grow, the size of the work, and the predictions."""
    architecture = int(name[-2:])
    values = vars(cost)
    return {
        "budget": {k: v for k, v in values.items() if k not in WORK} | vars(code),
        "work": {k: values[k] for k in WORK},
        "predicted": {g.name: cost.prediction(g) for g in GPUS if g.architecture == architecture},
    }


def read() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def predictions(table: dict[str, Any]) -> str:
    """The Markdown table of docs/gpu.md: microseconds at least, and the copy's share of them."""
    lines = [f"| kernel | {' | '.join(g.name for g in GPUS)} |", "| --- |" + " --- |" * len(GPUS)]
    for name in sorted({n.rsplit(" ", 1)[0] for n in table}):
        found = [table[f"{name} sm_{g.architecture}"]["predicted"][g.name] for g in GPUS]
        cells = (f"{f['time_us']:g} ({f['share']:.0%})" for f in found)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# Ops as the package calls them, by their names here.
OPS = {
    "linear forward": "channelwise_linear",
    "linear backward": "channelwise_linear_backward",
    "loss 227": "masked_loss_and_gradient",
    "masks 227": "rasterize_polygons",
}


def _reference(direction: str, dtype: torch.dtype) -> float:
    """Microseconds, at least, of the plain PyTorch implementation of the layer on the first GPU.

    Passes over the batch: forward, two of bmm and two each of bias and ReLU; backward, three of the
    gate, two each of two bmm, one of the sum of the bias.
    """
    passes, launches = (6, 3) if direction == "forward" else (8, 4)
    size = passes * BATCH * CHANNELS * N * dtype.itemsize
    return round(1e6 * (size / GPUS[0].copy + (launches - 1) * LAUNCH), 1)


def microseconds(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Predicted times on the first GPU per op (and kind of products) and implementation."""
    gpu = GPUS[0]
    found: dict[str, dict[str, float]] = {}
    for name, row in sorted(table.items()):
        language, case, architecture = re.findall(r"(\w+) (.*) sm_(\d+)", name)[0]
        op = next((o for prefix, o in OPS.items() if case.startswith(prefix)), None)
        if op is None or int(architecture) != gpu.architecture:
            continue
        key = op
        if case.startswith("linear"):
            _, direction, products = case.split()
            key = f"{op} {'16 bit' if products == 'bf16' else products}"
            times = found.setdefault(key, {})
            times["reference"] = _reference(direction, PRODUCTS[products][0])
        found.setdefault(key, {})[language] = row["predicted"][gpu.name]["time_us"]
    return {key: dict(sorted(times.items())) for key, times in sorted(found.items())}


def module(table: dict[str, Any]) -> str:
    """The source of cekernels/_predicted.py."""
    lines = [
        '"""Predicted times on a GPU per op; no GPU has confirmed them (docs/gpu.md).',
        "",
        "Written by ``python -m tests.helpers.ptx.budgets``.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        f"#: Microseconds on an {GPUS[0].name}, at least; products: B = {BATCH}, C = {CHANNELS}, "
        f"{N} locations.",
        "MICROSECONDS: dict[str, dict[str, float]] = {",
    ]
    for key, times in microseconds(table).items():
        inner = ", ".join(f'"{n}": {t}' for n, t in times.items())
        lines.append(f'    "{key}": {{{inner}}},')
    return "\n".join([*lines, "}"]) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = {name: entry(name, *found) for name, found in sorted(measure(Path(folder)).items())}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    write_page(table)
    PREDICTED.write_text(module(table))


def write_page(table: dict[str, Any]) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{predictions(table)}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
