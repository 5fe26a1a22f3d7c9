"""Benchmarks: ``pytest bench/`` measures, ``python -m bench.report`` reports. See README.md."""
