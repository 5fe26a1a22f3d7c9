"""Wheels of both distributions, checked in fresh environments.

``python tools/release.py --out dist --python 3.10 3.12 /opt/python3.13/bin/python`` builds the two
wheels and installs them, with what they require, into a new environment of each Python, where
they must fill a hole and run the compiled kernels. docs/release.md is the checklist around it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: What each environment must do, from a folder without the sources.
CHECK = """
import sys
from importlib.metadata import requires, version

import numpy as np
import torch

import cekernels
import context_encoder

assert version("cekernels") == version("context-encoder") == context_encoder.__version__
assert f"cekernels=={version('cekernels')}" in requires("context-encoder")
for package in (cekernels, context_encoder):
    assert package.__file__.startswith(sys.prefix), package.__file__

layer = cekernels.ChannelwiseLinear(3, 16, impl=sys.argv[1])
x = torch.randn(2, 3, 16)
expected = torch.einsum("coi,bci->bco", layer.weight, x) + layer.bias
torch.testing.assert_close(layer(x), expected)

y, x = np.mgrid[:96, :96]
image = np.stack([x * 2, y * 2, x + y], 2).astype(np.uint8)
mask = (abs(x - 48) < 14) & (abs(y - 48) < 14)
filled = context_encoder.HoleFiller()(np.where(mask[..., None], np.uint8(0), image), mask)
error = np.abs(filled.pixels.astype(float) - image)
assert (error[~mask] == 0).all()
assert error[mask].mean() < 4, error[mask].mean()
print("Python", sys.version.split()[0], "torch", torch.__version__)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheels")
    parser.add_argument(
        "--python",
        nargs="*",
        default=[sys.executable],
        help="Pythons to check with: programs, or versions such as 3.12 (default: this one)",
    )
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument(
        "--final", action="store_true", help="refuse a development version or an unclean tree"
    )
    options = parser.parse_args(arguments)
    version = declared_version()
    problems = not_final(version) if options.final else []
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 2
    pythons = [find_python(name) for name in options.python]
    missing = [n for n, found in zip(options.python, pythons, strict=True) if found is None]
    if missing:
        print(f"error: no Python {', '.join(missing)} on the path", file=sys.stderr)
        return 2
    start = time.monotonic()
    wheels = build(options.out, version)
    print(f"built in {time.monotonic() - start:.0f} s", flush=True)
    failed = []
    for python in filter(None, pythons):
        start = time.monotonic()
        said = check(python, wheels, options.constraints)
        ok = said is None
        print(f"{python}: {'ok' if ok else 'FAILED'}, {time.monotonic() - start:.0f} s", flush=True)
        if not ok:
            failed.append(python)
            print(said, file=sys.stderr)
    sums = options.out / "SHA256SUMS"
    lines = [f"{hashlib.sha256(w.read_bytes()).hexdigest()}  {w.name}\n" for w in wheels]
    if failed:
        print(f"error: the wheels do not work in {', '.join(failed)}", file=sys.stderr)
        sums.unlink(missing_ok=True)
        return 1
    sums.write_text("".join(lines))
    print("".join(lines), end="")
    return 0


def declared_version() -> str:
    """The version of both distributions."""
    text = (ROOT / "pyproject.toml").read_text()
    (found,) = re.findall(r'^version = "([^"]+)"$', text, re.MULTILINE)
    return str(found)


def not_final(version: str) -> list[str]:
    """Why the present tree cannot be released as it is."""
    problems = []
    if re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version) is None:
        problems.append(f"version {version} in pyproject.toml is not that of a release")
    if f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text():
        problems.append(f"CHANGELOG.md has no section [{version}]")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if status.stdout:
        problems.append("the tree has changes that are not committed")
    return problems


def find_python(name: str) -> str | None:
    """The program for a name or a version."""
    return shutil.which(f"python{name}" if re.fullmatch(r"3\.\d+", name) else name)


def build(out: Path, version: str) -> list[Path]:
    """The two wheels; others of the same version are removed before."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("cekernels", "context_encoder"):
        for old in out.glob(f"{name}-{version}-*.whl"):
            old.unlink()
    for source in ("./buildtools/cekernels-dist", "."):
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), source]
        subprocess.run(pip, cwd=ROOT, check=True)
    wheels = [
        wheel
        for name in ("cekernels", "context_encoder")
        for wheel in out.glob(f"{name}-{version}-*.whl")
    ]
    if len(wheels) != 2:
        raise SystemExit(f"expected two wheels of version {version} in {out}, found {wheels}")
    return wheels


def check(python: str, wheels: Sequence[Path], constraints: Path) -> str | None:
    """Install the wheels into a new environment and use them; returns what failed, if anything."""
    kernels = "reference" if wheels[0].name.endswith("-any.whl") else "cpp"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inside = str(place / "venv" / "bin" / "python")
        pip = [inside, "-m", "pip", "--disable-pip-version-check"]
        files = [str(wheel.resolve()) for wheel in wheels]
        commands = [
            [python, "-m", "venv", str(place / "venv")],
            [*pip, "install", "-q", "--no-compile", "-c", str(constraints.resolve()), *files],
            [*pip, "check"],
            [inside, "-c", CHECK, kernels],
            [inside, "-m", "context_encoder.inpaint", "--version"],
        ]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        for command in commands:
            ended = subprocess.run(
                command, cwd=place, env=environment, capture_output=True, text=True
            )
            if ended.returncode:
                return f"{' '.join(command)[:200]}\n{ended.stdout}{ended.stderr}"
    return None


if __name__ == "__main__":
    sys.exit(main())
