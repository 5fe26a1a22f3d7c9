"""Operations per training step and what they move, of this checkout and of another one.

    python tools/step_launches.py OTHER_CHECKOUT [--out docs/results/step-launches.json]

A CPU counts: every operation that reaches the dispatcher, and those among them that would launch
work on a GPU, which are all but views and allocations. A fused or foreach operation, and an op of
cekernels, counts as one. Copies of the batch to a GPU are not included, and autocast for CPUs has
slightly other rules than that for GPUs. The step is taken with two batch sizes, and bytes are
extrapolated from them to that of the preset.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "step-launches.json"
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- table: step -->", "<!-- end of table -->"
PRESETS = (
    *("inpaint-center", "inpaint-region", "inpaint-blob", "features-region", "features-block"),
    *("features-central", "features-autoencoder", "features-denoising", "features-relative-patch"),
    *("membrane-unet", "laptop"),
)
_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_COPIES = ("clone", "copy_", "contiguous", "_foreach_copy_", "_to_copy")


class Count(TorchDispatchMode):
    """Counts operations, and the bytes that casts and copies read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched: Counter[str] = Counter()
        self.launching: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        self.dispatched[name] += 1
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not _launches(func, name, given, made):
            return result
        self.launching[name] += 1
        if name in _COPIES:
            dtypes = {t.dtype for t in (*given, *made)}
            kind = "casts" if len(dtypes) > 1 else "copies"
            self.kinds[kind] += 1
            self.moved[kind] += sum(t.numel() * t.itemsize for t in (*given[:1], *made))
        return result


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """The most memory that tensors saved for backward passes hold at a time, without weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.most = self._bytes = 0
        self._counts: Counter[int] = Counter()
        self._weights = {w.untyped_storage().data_ptr() for w in weights}
        super().__init__(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: Tensor) -> Any:
        memory = tensor.untyped_storage()
        key, size = memory.data_ptr(), memory.nbytes()
        held = _Held(tensor)
        if key not in self._weights:
            self._bytes += 0 if self._counts[key] else size
            self._counts[key] += 1
            self.most = max(self.most, self._bytes)
            weakref.finalize(held, self._free, key, size)
        return held

    def _free(self, key: int, size: int) -> None:
        self._counts[key] -= 1
        self._bytes -= 0 if self._counts[key] else size


class _Held:
    """A saved tensor, of whose end we are told."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _launches(func: Any, name: str, given: list[Tensor], made: list[Tensor]) -> bool:
    if name in _ALLOCATIONS or not any(t.numel() for t in (*given, *made)):
        return False
    schema = func._schema
    if schema.is_mutable:
        return True
    if any(returned.alias_info is not None for returned in schema.returns):
        return False
    memory = {t.untyped_storage().data_ptr() for t in given}
    return not made or any(t.untyped_storage().data_ptr() not in memory for t in made)


def count(preset: str, amp: str, batch: int, graph: bool = False) -> tuple[Count, int, int]:
    """A step of a preset with ``batch`` images: counts, bytes saved, number of parameters."""
    from context_encoder.config import TrainConfig
    from context_encoder.runs import Photos
    from context_encoder.training import Trainer, resolve
    from context_encoder.utils.device import Processes

    options: dict[str, Any] = {"graph": True} if graph else {}
    config = TrainConfig.model_validate(
        {"preset": preset, "amp": amp, "batch_size": batch, "workers": 0, **options}
    )
    photos = Photos.from_config(config)
    device = torch.device("cpu")
    arguments: dict[str, Any] = {"record": lambda f: (lambda: None, f())} if graph else {}
    trainer = Trainer(resolve(config, photos), photos, device, Processes(), None, **arguments)
    for name in trainer._parts:
        trainer.learner.network(name).train()
    size = trainer.pretext.crop_size(trainer.config)
    numbers = torch.arange(batch)
    inputs = {
        "image": torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8),
        "epoch": torch.zeros_like(numbers),
        "index": numbers,
        "source": numbers,
    }
    trainer._add_to_sums(trainer.train_step(inputs))  # creates the optimizers' state
    trainer.step += 1
    parts = trainer.pretext.parts().values()
    weights = [p for part in parts for p in part.module.parameters()]
    with Count() as found:
        trainer._add_to_sums(trainer.train_step(inputs))
    saved = Saved(weights)
    with saved:  # a step of its own, as reading what is saved is dispatched too
        trainer.train_step(inputs)
    return found, saved.most, sum(p.numel() for p in weights)


def measure(preset: str, amp: str) -> dict[str, Any]:
    """The row of a preset in this checkout."""
    from context_encoder.config import TrainConfig
    from context_encoder.config import preset as named

    few, many = 2, 3
    small, small_saved, parameters = count(preset, amp, few)
    large, large_saved, _ = count(preset, amp, many)
    images = named(preset).batch_size

    def extrapolated(one: int, other: int) -> int:
        return round(one + (other - one) / (many - few) * (images - few))

    row: dict[str, Any] = {
        "images": images,
        "parameters": parameters,
        "dispatched": large.dispatched.total(),
        "launching": large.launching.total(),
        "saved": extrapolated(small_saved, large_saved),
        "adam": {"launches": large.launching["_fused_adam_"], "bytes": 28 * parameters},
    }
    for kind in ("casts", "copies"):
        moved = extrapolated(small.moved[kind], large.moved[kind])
        row[kind] = {"launches": large.kinds[kind], "bytes": moved}
    if "graph" in TrainConfig.model_fields:
        row["captured"] = count(preset, amp, few, graph=True)[0].launching.total()
    row["most"] = dict(large.launching.most_common(12))
    return row


def work(presets: list[str]) -> None:
    torch.set_num_threads(2)
    rows = {f"{p} {amp}": measure(p, amp) for p in presets for amp in ("off", "bf16")}
    print(json.dumps(rows))


def in_checkout(checkout: Path, presets: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", *presets]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    presets = list(arguments.presets)
    after = in_checkout(ROOT, presets)
    before = in_checkout(arguments.other.resolve(), presets) if arguments.other else {}
    result = {
        "counted_by": f"a CPU, torch {torch.__version__}",
        "before": before,
        "after": after,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.out == OUT:
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(result)}\n{END}{rest.split(END, 1)[1]}")


def table(result: dict[str, Any]) -> str:
    """The Markdown table of docs/gpu.md: before -> after, where they differ."""
    lines = [
        "| preset | dispatched | launching | with `--graph` | casts | copies | Adam | saved |",
        "| --- |" + " --- |" * 7,
    ]
    for name, now in result["after"].items():
        then = result["before"].get(name, now)
        preset, amp = name.split()

        def change(one: Any, other: Any) -> str:
            return f"{one} → {other}" if one != other else f"{other}"

        def moved(kind: str, now: Any = now, then: Any = then) -> str:
            return change(
                *(f"{row[kind]['launches']} ({_size(row[kind]['bytes'])})" for row in (then, now))
            )

        cells = [
            f"`{preset}`, {'float32' if amp == 'off' else amp}",
            change(then["dispatched"], now["dispatched"]),
            change(then["launching"], now["launching"]),
            f"1 + {now['captured']}",
            moved("casts"),
            moved("copies"),
            moved("adam"),
            _size(now["saved"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
