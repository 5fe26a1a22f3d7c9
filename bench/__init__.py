"""Benchmarks: ``pytest bench/`` measures, ``python -m bench.report`` shows. See README.md here."""
