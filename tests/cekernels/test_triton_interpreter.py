"""The shared tests of the Triton kernels on the CPU, in a process under Triton's interpreter.

Triton decides at import whether to interpret, hence a separate process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")


def version(module: object) -> tuple[int, ...]:
    return tuple(int(n) for n in str(module.__version__).split(".")[:2])  # type: ignore[attr-defined]


@pytest.mark.skipif(
    version(triton) < (3, 7) and version(np) >= (2, 4),
    reason="the interpreter of Triton before 3.7 does not work with NumPy 2.4",
)
def test_kernels_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    names = ("test_implementations.py", "test_numerics.py", "test_selfcheck.py")
    files = [str(folder / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=folder.parents[1],
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 50
