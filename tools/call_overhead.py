"""Overhead per call of the ops, interleaved between this checkout and another one.

    python tools/call_overhead.py OTHER_CHECKOUT [--rounds 150] [--out FILE.json]

Rows without a size have shapes so small that only overhead remains. Two worker processes, one per
checkout (each with its kernel library built), take turns; the result is the 20th percentile in
microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PERCENTILE = 20

WORKER = """
import sys, time, torch, cekernels
torch.manual_seed(0)
x, w, b = torch.randn(1, 2, 4), torch.randn(2, 4, 4), torch.randn(2, 4)
gx, gw, gb = (t.clone().requires_grad_() for t in (x, w, b))
p, t, m = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
gp = p.clone().requires_grad_()
boxes = torch.tensor([[0, 0, 256, 256]], dtype=torch.int32)
offsets, value = torch.tensor([0, 1]), torch.zeros(1)
g, one = torch.randn(1, 2, 4), torch.ones(())
linear, loss, fill = cekernels.channelwise_linear, cekernels.masked_l2_loss, cekernels.fill_masked
grad = torch.autograd.grad
cases = {
    "linear, no gradient": lambda: linear(x, w, b),
    "linear, with gradient, forward": lambda: linear(gx, gw, gb),
    "linear, forward and backward": lambda: grad(linear(gx, gw, gb), (gx, gw, gb), g),
    "loss, no gradient": lambda: loss(p, t, m),
    "loss, with gradient, forward": lambda: loss(gp, t, m),
    "loss, forward and backward": lambda: grad(loss(gp, t, m), (gp,), one),
    "fill_masked, no gradient": lambda: fill(p, m, value),
    "rasterize_boxes": lambda: cekernels.rasterize_boxes(boxes, offsets, 2, 2),
}
full = torch.get_num_threads()
layers = {}
for batch, dtype in ((16, torch.float32), (64, torch.bfloat16)):
    X, W, B = (torch.randn(s).to(dtype) for s in ((batch, 256, 36), (256, 36, 36), (256, 36)))
    def ours(X=X, W=W, B=B):
        return linear(X, W, B)
    def peer(X=X, W=W, B=B):
        return torch.baddbmm(B.unsqueeze(1), X.transpose(0, 1), W.transpose(1, 2)).transpose(0, 1)
    name = f"{batch}x256x6x6 {dtype}".replace("torch.", "")
    layers[f"{name}, forward"], layers[f"{name}, forward, torch.baddbmm"] = ours, peer
    if dtype is torch.float32:
        leaves, G = [t.clone().requires_grad_() for t in (X, W, B)], torch.randn(batch, 256, 36)
        layers[f"{name}, both"] = lambda f=ours, v=leaves, G=G: grad(f(*v), v, G)
        layers[f"{name}, both, torch.baddbmm"] = lambda f=peer, v=leaves, G=G: grad(f(*v), v, G)
names = [*cases, *layers]
print("|".join(names), flush=True)
for line in sys.stdin:
    times = []
    for name in names:
        call, repeats = (cases[name], 100) if name in cases else (layers[name], 10)
        torch.set_num_threads(1 if name in cases else full)
        for _ in range(repeats // 5):
            call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        times.append((time.perf_counter() - start) * 1e6 / repeats)
    print(" ".join(map(str, times)), flush=True)
"""


class Worker:
    def __init__(self, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names = self._line().split("|")
        self.rounds: list[list[float]] = []

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def round(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.rounds.append([float(n) for n in self._line().split()])

    def result(self) -> dict[str, float]:
        self.process.communicate()
        at = len(self.rounds) * PERCENTILE // 100
        columns = zip(self.names, zip(*self.rounds, strict=True), strict=True)
        return {name: round(sorted(times)[at], 2) for name, times in columns}


def revision(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    checkouts = {"before": options.other.resolve(), "after": ROOT}
    workers = {name: Worker(path) for name, path in checkouts.items()}
    for _ in range(options.rounds):
        for worker in workers.values():
            worker.round()
    results = {name: worker.result() for name, worker in workers.items()}
    print(f"{'microseconds':<46}{'before':>9}{'after':>9}{'ratio':>8}")
    for case, before in results["before"].items():
        after = results["after"][case]
        print(f"{case:<46}{before:>9.1f}{after:>9.1f}{after / before:>8.2f}")
    if options.out:
        content = {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.python_version()}",
            "rounds": options.rounds,
            "percentile": PERCENTILE,
            "revisions": {name: revision(path) for name, path in checkouts.items()},
            "microseconds": results,
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
