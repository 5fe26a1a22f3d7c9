"""Transfer of the interleaved samples of :mod:`bench.harness` to pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import machine
from bench.harness import Problem, Race, Row, run_race


class ReplayClock:
    """A timer that makes pytest-benchmark measure given durations."""

    __name__ = "interleaved rounds (bench.harness)"

    def __init__(self) -> None:
        self._instants: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        # pytest-benchmark reads the timer before and after each round.
        self._instants = (instant for seconds in durations for instant in (0.0, seconds))

    def __call__(self) -> float:
        return next(self._instants)


CLOCK = ReplayClock()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    defaults = config.option
    if not hasattr(defaults, "benchmark_columns"):
        raise pytest.UsageError("bench/ needs pytest-benchmark: pip install -e '.[test,bench]'")
    # Rows of a group are providers: fastest first, by the median as in the reports.
    if defaults.benchmark_sort == "min":
        defaults.benchmark_sort = "median"
    if defaults.benchmark_columns is None:
        defaults.benchmark_columns = ["median", "iqr", "ops", "rounds"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "row" in parameters:
            group = f"{parameters['row'].name} [{parameters['timing']}]"
            item.add_marker(pytest.mark.benchmark(group=group, timer=CLOCK))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize with every row, provider and kind of timing of the module."""
    if "row" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(
            *(row, timing, provider),
            id="-".join((provider, *row.name.split()[1:], timing)),
        )
        for row in metafunc.module.rows(machine.device())
        for timing in row.timings
        for provider in metafunc.module.providers(row)
    ]
    metafunc.parametrize(("row", "timing", "provider"), cases)


_MACHINE = pytest.StashKey[dict[str, Any]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if not config.option.collectonly:
        # Before the first measurement, so that the load is that of other processes.
        config.stash[_MACHINE] = machine.info(measured=not config.option.benchmark_disable)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    # The host name is private and tells nothing about the results.
    machine_info["node"] = ""
    machine_info["bench"] = config.stash[_MACHINE]


@pytest.fixture(scope="session")
def races() -> dict[Row, Race]:
    """The latest race only, as the tests of a row follow each other."""
    return {}


@pytest.fixture
def race(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture, races: dict[Row, Race]
) -> Callable[[Row, str, str], None]:
    """Function that reports one provider of a row; the first call for a row measures all."""

    def report(row: Row, timing: str, provider: str) -> None:
        if row not in races:
            races.clear()
            torch.manual_seed(0)
            problem: Problem = request.module.problem(row)
            providers = request.module.providers(row)
            races[row] = run_race(row, problem, providers, timed=benchmark.enabled)
        result = races[row]
        if provider in result.failed:
            raise result.failed[provider]
        if provider in result.unavailable:
            pytest.skip(result.unavailable[provider])
        measurement = result.measured[provider]
        if not benchmark.enabled:
            benchmark.pedantic(lambda: None)
            return
        if timing in measurement.not_timed:
            pytest.skip(f"not measured: {measurement.not_timed[timing]}")
        samples = measurement.samples[timing]
        CLOCK.load(samples)
        benchmark.pedantic(lambda: None, rounds=len(samples))
        benchmark.extra_info.update(result.info(provider, timing))

    return report
