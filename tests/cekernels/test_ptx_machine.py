"""The machine of tests/helpers/ptx: its instructions, and that it finds what is planted."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.cekernels.test_compiled_cuda import ALL, IEEE, TF32
from tests.helpers.implementation_cases import polygons, random
from tests.helpers.ptx import arithmetic as A
from tests.helpers.ptx.cuda import ARCHITECTURES, Build, CompiledKernels, readable
from tests.helpers.ptx.machine import Machine, Report
from tests.helpers.ptx.memory import GpuError, Memory
from tests.helpers.ptx.parse import Module
from tests.helpers.ptx.translate import Translated, without

# --- instructions ---------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
WORDS = np.concatenate([RNG.integers(0, 2**32, 500), [0, 1, 2**31 - 1, 2**31, 2**32 - 1]]).astype(
    np.uint32
)
OTHER = RNG.permutation(WORDS)


def signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def test_integer_instructions_against_python() -> None:
    a, b = WORDS.tolist(), OTHER.tolist()
    by = (OTHER % 40).astype(np.uint32)
    i, j = WORDS.view(np.int32), OTHER.view(np.int32)
    quotients = [int(abs(signed(x)) // abs(signed(y) or 1)) for x, y in zip(a, b, strict=True)]
    with np.errstate(all="ignore"):
        quotient, rest = A.divide(i, j).tolist(), A.remainder(i, j).tolist()
    for n, (x, y) in enumerate(zip(a, b, strict=True)):
        sign = -1 if (signed(x) < 0) != (signed(y) < 0) else 1
        if y != 0 and abs(signed(x)) < 2**31:
            assert quotient[n] == sign * quotients[n]
            assert rest[n] == signed(x) - sign * quotients[n] * signed(y)
        assert A.high_product(WORDS, OTHER)[n] == x * y >> 32
        assert A.high_product(i, j)[n] == signed(x) * signed(y) >> 32
        assert A.shift_left(WORDS, by)[n] == x << int(by[n]) & 0xFFFFFFFF
        assert A.shift_right(WORDS, by)[n] == x >> int(by[n])
        assert A.shift_right(i, by)[n] == signed(x) >> min(int(by[n]), 31)


def test_bit_fields_against_python() -> None:
    first, length = RNG.integers(0, 32, (2, len(WORDS))).astype(np.uint32)
    for n, (x, y, f, k) in enumerate(zip(*(v.tolist() for v in (WORDS, OTHER, first, length)),
                                         strict=True)):  # fmt: skip
        field = (x >> f) & ((1 << k) - 1)
        assert A.extract_bits(WORDS, first, length)[n] == field
        mask = ((1 << k) - 1) << f & 0xFFFFFFFF
        assert A.insert_bits(WORDS, OTHER, first, length)[n] == y & ~mask | x << f & mask
        chosen = 0
        for byte in range(4):
            nibble = int(first[n]) * 0x1234567 + n >> 4 * byte & 15
            value = (y << 32 | x) >> 8 * (nibble & 7) & 255
            chosen |= (255 * (value >> 7) if nibble & 8 else value) << 8 * byte
        selector = np.uint32(int(first[n]) * 0x1234567 + n & 0xFFFF)
        assert A.permute_bytes(WORDS[n], OTHER[n], selector) == chosen


def test_conversions_against_torch() -> None:
    values = WORDS.view(np.float32)
    found = torch.from_numpy(A.to_bf16(values).view(np.int16)).view(torch.bfloat16)
    expected = torch.from_numpy(values.copy()).bfloat16()
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    bits = (WORDS & 0xFFFF).astype(np.uint16)
    assert torch.equal(
        torch.from_numpy(A.from_bf16(bits)).nan_to_num(7),
        torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().nan_to_num(7),
    )
    mantissa, exponent = np.frexp(values.astype(np.float64))
    with np.errstate(all="ignore"):
        nearest = np.ldexp(
            np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5), exponent - 11
        )
        rounded = A.to_tf32(values).view(np.float32).astype(np.float64)
    normal = np.isfinite(values) & (np.abs(values) > 1e-37) & (np.abs(values) < 1e38)
    assert np.array_equal(rounded[normal], nearest[normal])


# --- small kernels: what each check finds ---------------------------------------------------------


def run(
    body: str, threads: int = 64, blocks: int = 1, count: bool = False, writable: int = 1024,
    shared: int = 1024,
) -> tuple[Report, Memory, Translated]:  # fmt: skip
    """Launch a kernel; %rd0: 1024 bytes that were written; %rd1: ``writable`` that were not."""
    text = f"""
.visible .entry k(.param .u64 k_0, .param .u64 k_1)
{{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<40>; .reg .b64 %rd<20>;
    .shared .align 16 .b8 one[{shared}];
    .shared .align 16 .b8 two[256];
    ld.param.u64 %rd0, [k_0];
    ld.param.u64 %rd1, [k_1];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    shl.b32 %r2, %r0, 2;
    mov.u32 %r3, one;
    add.u32 %r4, %r3, %r2;
    cvt.u64.u32 %rd2, %r2;
    add.s64 %rd3, %rd0, %rd2;
    add.s64 %rd4, %rd1, %rd2;
{body}
    ret;
}}
"""
    memory = Memory(1 << 16)
    given = memory.place(torch.arange(256, dtype=torch.int32))
    result = memory.empty((writable,), torch.uint8)
    kernel = Translated(Module(text)["k"])
    parameters = struct.pack("<QQ", given.data_ptr(), result.data_ptr())
    report = Machine(memory, True, count).launch(kernel, (blocks,), threads, parameters)
    return report, memory, kernel


WRITE_SHARED = "st.shared.u32 [%r4], %r0;\n"
BARRIER = "bar.sync 0;\n"
# Thread i reads what thread i ^ 1, or i ^ 33 of another warp, wrote.
READ_NEIGHBOUR = "xor.b32 %r5, %r0, {}; shl.b32 %r5, %r5, 2; add.u32 %r5, %r3, %r5;\n{} \n"
LOAD = "ld.shared.u32 %r6, [%r5];"
ODD = "and.b32 %r7, %r0, 1; setp.eq.s32 %p1, %r7, 0;\n"

# Of two blocks, the one that counts last reads what both wrote.
LAST_BLOCK = """
    setp.ne.u32 %p1, %r0, 0;
    @%p1 bra $END;
    shl.b32 %r5, %r1, 2; cvt.u64.u32 %rd5, %r5; add.s64 %rd5, %rd1, %rd5;
    st.global.u32 [%rd5], %r1;
    {}
    {} %r6, [%rd0], 1;
    {}
    setp.ne.u32 %p2, %r6, 1;
    @%p2 bra $END;
    ld.global.u32 %r7, [%rd1];
    ld.global.u32 %r8, [%rd1+4];
$END: mov.u32 %r5, 0;
"""
FENCE, COUNT = "membar.gl;", "atom.global.add.u32"

FAULTS = {
    "write, then read by another warp": ("race", WRITE_SHARED + READ_NEIGHBOUR.format(33, LOAD)),
    "write, then read by the same warp": ("race", WRITE_SHARED + READ_NEIGHBOUR.format(1, LOAD)),
    "a barrier of the warp between two warps": (
        "race", WRITE_SHARED + "bar.warp.sync -1;\n" + READ_NEIGHBOUR.format(33, LOAD),
    ),
    "read by another lane, then written": (
        "race",
        WRITE_SHARED + "bar.warp.sync -1;\n" + READ_NEIGHBOUR.format(1, LOAD) + WRITE_SHARED,
    ),
    "read, then written by another thread": (
        "race",
        WRITE_SHARED + BARRIER + "ld.shared.u32 %r6, [%r4];\n"
        + READ_NEIGHBOUR.format(33, "st.shared.u32 [%r5], %r0;"),
    ),
    "read by many, then written by one of them": (
        "race",
        WRITE_SHARED + BARRIER + "ld.shared.u32 %r6, [%r3];\nsetp.eq.s32 %p1, %r0, 5;\n"
        "@%p1 st.shared.u32 [%r3], %r0;",
    ),
    "different values written to one place": ("race", "st.shared.u32 [%r3], %r0;"),
    "atomic and plain writes": (
        "race",
        "st.shared.u32 [%r4], 0;\n"
        + READ_NEIGHBOUR.format(1, "atom.shared.add.u32 %r6, [%r5], 1;"),
    ),
    "two blocks write one place": ("race", "st.global.u32 [%rd4], %r1;"),
    "one block reads what another wrote": (
        "race",
        "setp.eq.s32 %p1, %r1, 0;\n@%p1 st.global.u32 [%rd4], %r1;\n"
        "setp.ne.s32 %p2, %r1, 0;\n@%p2 bra $L; ret;\n$L: ld.global.u32 %r6, [%rd4];",
    ),
    "written without a fence before the count": ("race", LAST_BLOCK.format("", COUNT, FENCE)),
    "read without a fence after the count": ("race", LAST_BLOCK.format(FENCE, COUNT, "")),
    "counted with a fence for the block alone": (
        "race", LAST_BLOCK.format("membar.cta;", COUNT, FENCE),
    ),
    "a barrier for half of a block": (
        "divergent barrier", "setp.lt.s32 %p1, %r0, 32;\n"
        "@%p1 bra $L;\n" + BARRIER + "$L: mov.u32 %r5, 0;",
    ),
    "two barriers in two branches": (
        "divergent barrier",
        ODD + "@%p1 bra $L;\n" + BARRIER + "bra $M;\n$L:\n" + BARRIER + "$M: mov.u32 %r5, 0;",
    ),
    "a shuffle in a branch": (
        "divergent instruction", ODD + "@%p1 bra $L;\n"
        "shfl.sync.down.b32 %r5, %r0, 1, 31, -1;\n$L: mov.u32 %r6, 0;",
    ),
    "beyond an allocation": ("out of bounds", "st.global.u32 [%rd4+3872], %r0;"),
    "before an allocation": ("out of bounds", "ld.global.u32 %r5, [%rd3+-4];"),
    "far outside": ("out of bounds", "shl.b64 %rd5, %rd3, 3;\nld.global.u32 %r5, [%rd5];"),
    "beyond a shared variable": ("out of bounds", WRITE_SHARED + "st.shared.u32 [%r4+800], %r0;"),
    "a vector off its alignment": ("misaligned", "ld.global.v2.u32 {%r5, %r6}, [%rd3];"),
    "a shared vector off its alignment": (
        "misaligned", "st.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0};",
    ),
    "memory that was not written": ("not written", "ld.global.u32 %r5, [%rd4];"),
    "a copy that is not waited for": (
        "copy not waited for",
        "cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
        "ld.shared.u32 %r5, [%r4];",
    ),
    "a copy that outlives its kernel": (
        "copy not waited for", "cp.async.ca.shared.global [%r4], [%rd3], 4;\n"
        "cp.async.commit_group;",
    ),
    "a copy waited for by each thread alone": (
        "race",
        "cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
        "cp.async.wait_group 0;\n"
        + READ_NEIGHBOUR.format(33, LOAD),
    ),
    "a copy over what another thread reads": (
        "race",
        WRITE_SHARED + BARRIER + READ_NEIGHBOUR.format(33, LOAD)
        + "cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
        + BARRIER + "cp.async.wait_group 0;",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    kind, body = FAULTS[fault]
    with pytest.raises(GpuError) as raised:
        run(body, blocks=2)
    assert raised.value.kind == kind


SOUND = {
    "a barrier between": WRITE_SHARED + BARRIER + READ_NEIGHBOUR.format(33, LOAD),
    "a barrier of the warp between": WRITE_SHARED + "bar.warp.sync -1;\n"
    + READ_NEIGHBOUR.format(1, LOAD) + "bar.warp.sync -1;\n" + WRITE_SHARED,
    "one thread writes and reads": WRITE_SHARED + "ld.shared.u32 %r6, [%r4];",
    "equal values written to one place": "st.shared.u32 [%r3], 7;",
    "atomic operations of all blocks": "st.shared.u32 [%r4], 0;\n" + BARRIER
    + READ_NEIGHBOUR.format(33, "atom.shared.add.u32 %r6, [%r5], 1;"),
    "the last block reads what all wrote": LAST_BLOCK.format(FENCE, COUNT, FENCE),
    "fences as part of the count": LAST_BLOCK.format("", "atom.acq_rel.gpu.global.add.u32", ""),
    "a copy waited for, and a barrier": (
        "cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
        "cp.async.wait_group 0;\n"
        + BARRIER + READ_NEIGHBOUR.format(33, LOAD)
    ),
    "a copy over what another thread has read": WRITE_SHARED + BARRIER
    + READ_NEIGHBOUR.format(33, LOAD) + BARRIER
    + "cp.async.ca.shared.global [%r4], [%rd3], 4;\ncp.async.commit_group;\n"
    "cp.async.wait_group 0;",
    "a warp that leaves early, without barriers": "setp.lt.s32 %p1, %r0, 32;\n"
    "@%p1 bra $L;\nret;\n$L: mov.u32 %r5, 0;",
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_kernels_pass(name: str) -> None:
    run(SOUND[name], blocks=2)


def test_lanes_meet_after_a_loop_of_different_length() -> None:
    """Thread i adds 1 i % 7 times, then a shuffle needs all lanes together."""
    _, memory, _ = run(
        """
    rem.u32 %r5, %r0, 7;
    mov.u32 %r6, 0;
$LOOP: setp.ge.u32 %p1, %r6, %r5;
    @%p1 bra $DONE;
    add.u32 %r6, %r6, 1;
    bra $LOOP;
$DONE: shfl.sync.bfly.b32 %r7, %r6, 1, 31, -1;
    st.global.u32 [%rd4], %r7;
"""
    )
    found = memory.bytes.data[4][2048 // 4 :][:64]
    assert found.tolist() == [(i ^ 1) % 7 for i in range(64)]


def test_atomic_operations_return_each_value_once() -> None:
    """As the tickets of "the last block finishes" need it."""
    _, memory, _ = run(
        "mov.u32 %r5, 0;\nsetp.eq.s32 %p1, %r0, 0;\n@%p1 st.shared.u32 [%r3], %r5;\nbar.sync 0;\n"
        "atom.shared.add.u32 %r6, [%r3], 1;\nst.global.u32 [%rd4], %r6;"
    )
    assert sorted(memory.bytes.data[4][2048 // 4 :][:64].tolist()) == list(range(64))


def test_counts_of_known_patterns() -> None:
    """Sectors and wavefronts of one warp, by hand."""
    body = """
    ld.global.u32 %r5, [%rd3];
    shl.b32 %r6, %r0, 5; cvt.u64.u32 %rd5, %r6; add.s64 %rd5, %rd0, %rd5;
    ld.global.u32 %r7, [%rd5];
    st.shared.u32 [%r4], %r5;
    bar.sync 0;
    ld.shared.u32 %r8, [%r3];
    shl.b32 %r9, %r0, 3; add.u32 %r9, %r3, %r9;
    ld.shared.u32 %r10, [%r9];
    shl.b32 %r11, %r0, 4; add.u32 %r11, %r3, %r11;
    ld.shared.v4.u32 {%r12, %r13, %r14, %r15}, [%r11];
"""
    report, _, kernel = run(body, threads=32, count=True)
    costs = {
        kernel.sites[site].operands[0]: cost.tolist() for site, cost in report.accesses.items()
    }
    # [instructions, bytes, sectors, wavefronts, ideal wavefronts]
    assert costs["%r5"] == [1, 128, 4, 1, 1]  # one line
    assert costs["%r7"] == [1, 128, 32, 8, 8]  # every 32 bytes
    assert costs["%r8"] == [1, 128, 0, 1, 1]  # one word for all lanes
    assert costs["%r10"] == [1, 128, 0, 2, 1]  # every second bank
    assert costs["{%r12, %r13, %r14, %r15}"] == [1, 512, 0, 4, 4]
    assert sum(report.executed.values()) == 2  # the warp in two blocks: before the barrier, after


# --- compiled kernels without one of their barriers -----------------------------------------------

# Barriers, by their number in the kernel, that no execution needs.
REDUNDANT: dict[str, set[int]] = {}


@pytest.fixture(scope="module")
def kernels(cuda_build: Build) -> CompiledKernels:
    """With grids that lack a block: kernels loop over the rest, which some barriers are for."""
    compiled = CompiledKernels(cuda_build, Machine(Memory(160 << 20)), ARCHITECTURES[-1])
    compiled.short_grid = True
    return compiled


Run = Callable[[CompiledKernels], object]


def linear_runs(dtype: torch.dtype, products: int, n: int, shape: tuple[int, int]) -> list[Run]:
    """Forward, and backward with all gradients and without that of the input.

    With many channels a block has several tiles of the batch, here three or five so that the last
    one lies where the next work of the block begins; the first blocks stand for all.
    """
    batch, channels = shape

    def run(kernels: CompiledKernels, needs: tuple[bool, bool, bool] | None) -> None:
        kernels.only = lambda count: range(min(count, 2))
        x = kernels.memory.place(torch.zeros(batch, channels, n, dtype=dtype))
        w = kernels.memory.place(torch.zeros(channels, n, n, dtype=dtype))
        try:
            if needs is None:
                kernels.channelwise_linear(x, w, None, True, products)
            else:
                kernels.channelwise_linear_backward(x, x, w, x, *needs, products)
        finally:
            kernels.only = None

    cases = (None, ALL, (False, True, True))
    return [functools.partial(run, needs=needs) for needs in cases]


def losses(kernels: CompiledKernels) -> None:
    p, t, mask = random(3, 2, 97, 90), random(3, 2, 97, 90, seed=1), random(3, 1, 97, 90) > 0
    area = mask.sum((1, 2, 3))
    p, t, mask, area = kernels.on_gpu(p, t, mask, area)
    for known in (area, None):
        kernels.masked_loss(p, t, mask, known, 2, "mask")
    kernels.masked_loss_and_gradient(p, t, mask, None, 2, "mask")


def shapes(kernels: CompiledKernels) -> None:
    shape = kernels.on_gpu(*polygons("star with a hole, none, two", 40, 300))
    kernels.rasterize_polygons(*shape, 40, 300, "nonzero")


CASES: dict[str, list[Run]] = {
    "ieee": linear_runs(torch.float32, IEEE, 36, (160, 1024)),
    "tf32": linear_runs(torch.float32, TF32, 36, (160, 1024)),
    "bfloat16": linear_runs(torch.bfloat16, IEEE, 36, (160, 1024)),
    "other sizes": linear_runs(torch.float32, IEEE, 20, (70, 2))[:1],
    "losses": [losses],
    "shapes": [shapes],
}


@pytest.mark.parametrize("case", CASES)
def test_each_missing_barrier_is_found(kernels: CompiledKernels, case: str) -> None:
    """Of the barriers of blocks, and of the fences between blocks."""
    runs: dict[str, list[Run]] = {}  # that use a kernel
    for run in CASES[case]:
        kernels.memory.reset()
        kernels.reports.clear()
        run(kernels)
        for name in {report.name for report in kernels.reports}:
            runs.setdefault(name, []).append(run)
    found, kinds = 0, set()
    for name, its_runs in runs.items():
        whole = kernels.translated(name)
        instructions = whole.kernel.instructions
        barriers = [i for i, one in enumerate(instructions) if one.parts[0] in ("bar", "membar")]
        missed = set()
        for number, barrier in enumerate(barriers):
            kernels.replace(name, Translated(without(whole.kernel, barrier)))
            try:
                for run in its_runs:
                    kernels.memory.reset()
                    run(kernels)
            except GpuError as error:
                kinds.add(error.kind)
                found += 1
            else:
                missed.add(number)
        kernels.replace(name, whole)
        assert missed == REDUNDANT.get(readable(name), set()), readable(name)
    assert found > 0
    assert kinds == {"race"}


def test_names_of_faults_give_the_line_of_the_source(kernels: CompiledKernels) -> None:
    kernels.memory.reset()
    x, w = (kernels.memory.place(torch.ones(*s)) for s in ((2, 1, 20), (1, 20, 20)))
    short = x[:, :, :19]
    kernels.memory.bytes.state[short.data_ptr() - kernels.memory.base :][:1] = 0
    with pytest.raises(GpuError, match=re.escape("channelwise_linear.cu:")):
        kernels.channelwise_linear(x, w, None, False, IEEE)
