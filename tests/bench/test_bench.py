"""Bookkeeping of the benchmarks: bytes counted, samples replayed, reports, comparisons."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import report
from bench.harness import Problem, Row, autograd_call, quantiles, relative_error, run_race, speedup
from bench.test_channelwise_linear import counted_bytes as channelwise_bytes
from bench.test_channelwise_linear import counted_flops as channelwise_flops
from bench.test_masked_loss import counted_bytes as loss_bytes
from bench.test_rasterize import box_bytes, exact_masks, fill_bytes, polygon_bytes

ROOT = Path(__file__).parents[2]
ROW = Row("op", "2x3", "float32", "forward", "cpu", "kind", {"batch": 2, "side": 3}, seconds=0.01)


# --- bytes counted ----------------------------------------------------------------------------


def test_bytes_of_channelwise_linear() -> None:
    # 2 x 3 channels, 4 locations to 5: input 24, weight 60, bias 15, output 30 elements.
    assert channelwise_bytes(2, 3, 4, 5, 4, "forward") == 4 * (24 + 60 + 15 + 30)
    # Read: gradient 30, output 30, input 24, weight 60. Written: 24, 60, 15.
    assert channelwise_bytes(2, 3, 4, 5, 2, "backward") == 2 * (30 + 30 + 24 + 60 + 24 + 60 + 15)
    assert channelwise_bytes(2, 3, 4, 5, 1, "both") == 129 + 243
    assert channelwise_flops(2, 3, 4, 5, "forward") == 2 * 2 * 3 * 4 * 5


def test_bytes_of_the_paper_s_layer() -> None:
    # 331,776 weights and 9,216 biases; 256 maps of 6 x 6 for each of 64 images in and out.
    assert channelwise_bytes(64, 256, 36, 36, 4, "forward") == 4 * (340_992 + 2 * 589_824)


def test_bytes_of_masked_loss() -> None:
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, :2, :3] = True  # 6 of 32 pixels, 3 channels, in both images
    assert loss_bytes(mask, 3, 4, "forward") == 32 + 2 * 4 * 3 * 6 + 4
    assert loss_bytes(mask, 3, 2, "backward") == 32 + 2 * 2 * 3 * 6 + 4 + 2 * 3 * 32
    assert loss_bytes(mask, 3, 4, "both") == 180 + 180 + 4 * 96


def test_bytes_of_masks() -> None:
    # 2 masks of 4 x 4 and their areas; 7 vertices of 2 int32; 3 + 1 and 2 + 1 offsets of int64.
    assert polygon_bytes(2, 4, vertices=7, contours=3) == 32 + 16 + 56 + 32 + 24
    assert box_bytes(2, 4, boxes=5) == 32 + 16 + 80 + 24
    mask = torch.zeros(1, 1, 2, 5, dtype=torch.bool)
    mask[..., 0, :4] = True  # 6 pixels of 3 channels are kept, 10 are written
    assert fill_bytes(mask, 3, 4) == 10 + 4 * 3 * 6 + 4 * 3 * 10


def test_exact_masks_by_hand() -> None:
    triangle = np.array([(0.0, 0.0), (4.0, 0.0), (0.0, 4.0)])
    expected = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    assert (exact_masks([[triangle], []], 4) == np.stack([expected, np.zeros((4, 4), bool)])).all()
    # Centres on the left and top edges are inside, those on the right and bottom edges are not.
    box = np.array([(0.5, 0.5), (2.5, 0.5), (2.5, 2.5), (0.5, 2.5)])
    assert np.argwhere(exact_masks([[box]], 4)[0]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


# --- measuring --------------------------------------------------------------------------------


class Sleeps(Problem):
    """Providers with known times, and ones that are absent, wrong or broken."""

    bytes, flops, items, limit = 10**6, 100, 2, 0.5
    seconds = {"auto": 0.002, "peer": 0.006}  # noqa: RUF012

    def build(self, provider: str) -> Any:
        from bench.harness import UnavailableError

        if provider == "absent":
            raise UnavailableError("not installed")
        if provider == "wrong":
            return lambda: 1.0, {}
        if provider == "broken":
            return lambda: 1 / 0, {}
        return lambda: time.sleep(self.seconds[provider]) or 0.0, {}

    def error(self, outputs: Any) -> float:
        return float(outputs)


def test_a_race_measures_checks_and_says_why_not() -> None:
    race = run_race(ROW, Sleeps(), ["auto", "peer", "absent", "wrong", "broken"], timed=True)
    assert set(race.measured) == {"auto", "peer"}
    assert race.unavailable == {"absent": "not installed"}
    assert isinstance(race.failed["wrong"], AssertionError)
    assert isinstance(race.failed["broken"], ZeroDivisionError)
    info = race.info("auto", "wall")
    assert info["p20"] <= info["p50"] <= info["p80"]
    assert info["p50"] >= 0.002
    assert info["gb_per_s"] == pytest.approx(1e-3 / info["p50"])
    assert set(info["speedup"]) == {"peer"}
    assert len(race.measured["auto"].samples["wall"]) == len(race.measured["peer"].samples["wall"])


def test_speedup_pairs_the_rounds() -> None:
    # The machine became three times slower midway; the ratio within each round is still 2.
    own = [1.0, 1.0, 3.0, 3.0]
    assert speedup(own, [2 * seconds for seconds in own]) == 2
    assert quantiles([4.0, 0.0, 1.0, 3.0, 2.0]) == pytest.approx((0.8, 2.0, 3.2))


def test_a_nan_is_an_error() -> None:
    truth = torch.tensor([1.0, 4.0], dtype=torch.float64)
    assert relative_error([torch.tensor([1.0, 3.0])], [truth]) == 0.25
    bad = relative_error([torch.tensor([1.0, math.nan]), torch.ones(1)], [truth, torch.ones(1)])
    assert not bad <= 1e9


def test_modes_compute_what_they_say() -> None:
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    grad = torch.tensor([1.0, 10.0])
    results = {
        mode: autograd_call(lambda x: x * x, (x,), (x,), grad, mode)()
        for mode in ("forward", "backward", "both")
    }
    assert results["forward"][0].tolist() == [4, 9]
    assert not results["forward"][0].requires_grad
    assert results["backward"][0].tolist() == [4, 60]
    assert [value.tolist() for value in results["both"]] == [[4, 9], [4, 60]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result file of the smallest benchmark row."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    select = ["bench/test_rasterize.py", "-k", "16x3x128x128-central", "-p", "no:cacheprovider"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *select, f"--benchmark-json={path}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="the selected row is a CPU row")
def test_pytest_bench_writes_what_the_report_reads(measured: Path) -> None:
    content = json.loads(measured.read_text())
    for entry in content["benchmarks"]:
        # pytest-benchmark shows the samples of the interleaved rounds.
        assert entry["stats"]["median"] == pytest.approx(entry["extra_info"]["p50"], rel=0.2)
    results = report.Results.read(measured)
    (key, providers), *others = results.rows.items()
    assert not others
    assert key[0] == "fill_masked"
    assert {"auto", "reference", "where"} <= {record["provider"] for record in providers}
    assert results.machine["copy_gb_per_s"]["cpu"] > 0
    assert all(record["error"] == 0 for record in providers)


# --- reports ----------------------------------------------------------------------------------


def record(provider: str, p50: float, batch: int, **more: Any) -> dict[str, Any]:
    return {
        "op": "channelwise_linear",
        "shape": f"{batch}x256x6x6",
        "kind": "",
        "dtype": "float32",
        "mode": "forward",
        "device": "cpu",
        "timing": "wall",
        "provider": provider,
        "axes": {"batch": batch, "channels": 256, "side": 6},
        "items": batch,
        "p20": 0.95 * p50,
        "p50": p50,
        "p80": 1.05 * p50,
        "bytes": 10**7,
        "flops": 10**8,
        "gb_per_s": 0.01 / p50,
        "items_per_s": batch / p50,
        "error": 1e-7,
        "peak_memory": 2**20,
        "speedup": {},
        **more,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    records = [
        record("auto", 0.001, 16, chosen="cpp", speedup={"einsum": 2.0, "bmm(out=)": 0.5}),
        record("bmm(out=)", 0.0005, 16, speedup={"auto": 2.0, "einsum": 4.0}),
        record("einsum", 0.002, 16, speedup={"auto": 0.5, "bmm(out=)": 0.25}),
        record("auto", 0.004, 64, chosen="cpp", speedup={"einsum": 2.0}),
        record("einsum", 0.008, 64, speedup={"auto": 0.5}),
    ]
    machine = {
        "cpu": "A CPU",
        "cpus": 2,
        "threads": 2,
        "load_average": 0.1,
        "gpu": None,
        "python": "3.12",
        "torch": "2.13.0",
        "triton": None,
        "cuda": None,
        "git": "abc",
        "implementations": {"reference": "available", "cuda": "no compiler"},
        "copy_gb_per_s": {"cpu": 20.0},
        "matmul_gflop_per_s": {"cpu": 100.0},
    }
    return {
        "machine_info": {"bench": machine},
        "datetime": "2030-01-01",
        "benchmarks": [{"extra_info": entry} for entry in records],
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_table(tmp_path: Path, content: dict[str, Any]) -> None:
    text = report.markdown(report.Results.read(write(tmp_path / "r.json", content)))
    lines = [line for line in text.splitlines() if line.startswith("| auto (cpp)")]
    # 10 MB in 1 ms: 10 GB/s, half of the 20 GB/s of a copy.
    expected = "| auto (cpp) | 950 µs | 1 ms | 1.05 ms | 10 | 10 | 50% | 1.0e-07 | 1 MiB | 0.50 |"
    assert lines[0] == expected + "  | 2.00 |"
    assert (
        "| channelwise_linear 16x256x6x6 float32 forward [wall] | cpp | bmm(out=) | 0.50 |" in text
    )
    assert "none: GPU rows not measured" in text
    assert "| implementation cuda | no compiler |" in text


def test_loading_is_set_against_training(tmp_path: Path, content: dict[str, Any]) -> None:
    entries = (
        ("training_step", "step", "trainer", 40.0),
        ("training_step", "step", "plain", 20.0),
        ("data_loading", "decode", "package", 160.0),
        ("data_loading", "decode", "plain", 80.0),
        ("data_loading", "cached", "package", 3200.0),
    )
    content["benchmarks"] = [
        {
            "extra_info": record(
                name, 1.0, 1, op=op, mode=mode, kind="laptop", items_per_s=rate, bytes=0
            )
        }
        for op, mode, name, rate in entries
    ]
    text = report.markdown(report.Results.read(write(tmp_path / "r.json", content)))
    assert "| laptop | cpu | 40 | 160 | 3200 | 25.0% |" in text


def test_the_command_writes_table_and_plots(tmp_path: Path, content: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    assert report.main([str(write(tmp_path / "r.json", content))]) == 0
    written = {path.name for path in (tmp_path / "r").iterdir()}
    prefix = "channelwise_linear-wall-"
    assert written == {
        "results.md",
        *(f"{prefix}{n}.png" for n in ("roofline", "speedup", "batch")),
    }
    assert f"![{prefix}batch]({prefix}batch.png)" in (tmp_path / "r" / "results.md").read_text()
    for name in written - {"results.md"}:
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")


def slowed(content: dict[str, Any], factor: float, providers: set[str]) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    for entry in changed["benchmarks"]:
        info = entry["extra_info"]
        if info["provider"] in providers:
            for name in ("p20", "p50", "p80"):
                info[name] *= factor
    return changed


def run_compare(tmp_path: Path, new: dict[str, Any], old: dict[str, Any], percent: float) -> int:
    paths = write(tmp_path / "new.json", new), write(tmp_path / "old.json", old)
    return report.main(
        [str(paths[0]), "--compare", str(paths[1]), "--fail-if-regression", str(percent)]
    )


def test_a_planted_regression_is_found(
    tmp_path: Path, content: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    worse = copy.deepcopy(content)
    for name in ("p20", "p50", "p80"):
        worse["benchmarks"][3]["extra_info"][name] *= 1.3
    assert run_compare(tmp_path, worse, content, 20) == 1
    printed = capsys.readouterr().out
    found = [line for line in printed.splitlines() if line.startswith("regression")]
    assert found == ["regression: channelwise_linear 64x256x6x6 float32 forward [wall] auto x1.30"]
    assert run_compare(tmp_path, worse, content, 40) == 0
    assert run_compare(tmp_path, content, worse, 0) == 0


def test_a_slower_machine_is_no_regression(tmp_path: Path, content: dict[str, Any]) -> None:
    everything = {"auto", "einsum", "bmm(out=)"}
    assert run_compare(tmp_path, slowed(content, 2.0, everything), content, 5) == 0
    # A regression: the peers got faster, ours did not.
    assert run_compare(tmp_path, slowed(content, 0.5, {"einsum", "bmm(out=)"}), content, 5) == 1
    # No regression: within the spread of the samples.
    assert run_compare(tmp_path, slowed(content, 1.08, {"auto"}), content, 5) == 0


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("{", []),
        ("[]", []),
        ('{"benchmarks": []}', []),
        (None, []),
        ("{}", ["--fail-if-regression", "5"]),
    ],
)
def test_wrong_use_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, arguments: list[str]
) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as error:
        report.main([str(path), *arguments])
    assert error.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ("needs --compare" if arguments else str(path)) in last
