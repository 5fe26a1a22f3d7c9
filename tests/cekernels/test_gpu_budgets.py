"""Costs of the compiled kernels against the table of budgets, docs/results/gpu-budgets.json.

After a change of a kernel, ``python -m tests.helpers.ptx.budgets`` measures anew and writes the
table; its difference belongs to the change. docs/gpu.md explains what the numbers mean.
"""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from tests.helpers.implementation_cases import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter does not compile", allow_module_level=True)

import triton

from tests.helpers.ptx import budgets
from tests.helpers.ptx.budgets import Assembly, Cost, Measurements

TRITON = "3.7.1"  # whose code the table describes, as that of nvcc 13.0
ARCHITECTURES = (80, 90)


@pytest.fixture(scope="module")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    return Measurements(tmp_path_factory.mktemp("budgets"))


def check(found: dict[str, tuple[Cost, Assembly]], language: str, architecture: int) -> None:
    table = budgets.read()
    names = {n for n in table if n.startswith(language) and n.endswith(str(architecture))}
    assert found.keys() == names
    exceeded = []
    for name, costs in found.items():
        now, then = budgets.entry(name, *costs), table[name]
        assert now["work"] == then["work"], f"{name}: other work than the table's"
        for cost, value in now["budget"].items():
            if value > 1.02 * then["budget"][cost]:
                exceeded.append(f"{name}: {cost} is {value}, the budget {then['budget'][cost]}")
    assert not exceeded, "\n".join(exceeded)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_keeps_its_budgets(measurements: Measurements, architecture: int) -> None:
    check(measurements.cuda(architecture), "cuda", architecture)


@pytest.mark.skipif(triton.__version__ != TRITON, reason=f"budgets are those of Triton {TRITON}")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_triton_keeps_its_budgets(measurements: Measurements, architecture: int) -> None:
    check(measurements.triton(architecture), "triton", architecture)


def from_table(row: dict[str, dict[str, float]]) -> tuple[Cost, Assembly]:
    code = {k: row["budget"][k] for k in Assembly.__dataclass_fields__}
    values = {k: v for k, v in row["budget"].items() if k not in code} | row["work"]
    return Cost(**values), Assembly(**code)  # type: ignore[arg-type]


def test_predictions_follow_from_the_budgets() -> None:
    for name, row in budgets.read().items():
        assert budgets.entry(name, *from_table(row)) == row


@pytest.mark.parametrize("cost", ["instructions", "wavefronts", "registers", "store_sectors"])
def test_an_exceeded_budget_fails(cost: str) -> None:
    table = budgets.read()
    found = {n: from_table(table[n]) for n in table if n.startswith("cuda") and n.endswith("90")}
    check(found, "cuda", 90)
    name = "cuda linear forward tf32 sm_90"
    before, code = found[name]
    found[name] = dataclasses.replace(before, **{cost: 1.03 * getattr(before, cost)}), code
    with pytest.raises(AssertionError, match=f"{name}: {cost}"):
        check(found, "cuda", 90)


def test_the_page_has_the_predictions() -> None:
    assert budgets.predictions(budgets.read()) in budgets.PAGE.read_text()


def test_the_package_has_the_predictions() -> None:
    assert budgets.module(budgets.read()) == budgets.PREDICTED.read_text()


def test_nothing_spills() -> None:
    for name, row in budgets.read().items():
        assert row["budget"]["spills"] == row["budget"]["local"] == 0, name


# Counts of the same kernels by an independent interpreter of PTX, in a review of their revision
# a87ea39: warp instructions and wavefronts per row of 36 locations (B = 1024, C = 256), or warp
# instructions per image. It took one block where this table takes the mean of all; the last slices
# of the batch are shorter; for "ieee" in Triton it counted wavefronts of shared memory alone.
# Where a kernel changes, its row goes.
INDEPENDENT = {
    "triton linear forward ieee sm_90": (142, "shared_wavefronts", 142),
    "triton linear backward ieee sm_90": (346, "shared_wavefronts", 88),
    "triton linear backward bf16 sm_80": (75, "wavefronts", 31),
    "cuda masks 227 sm_90": (121_000, "", 0),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_independent_count_agrees(name: str) -> None:
    instructions, kind, wavefronts = INDEPENDENT[name]
    found = budgets.read()[name]["budget"]
    assert found["instructions"] == pytest.approx(instructions, rel=0.1)
    assert not kind or found[kind] == pytest.approx(wavefronts, rel=0.1)
