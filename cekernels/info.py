"""``python -m cekernels.info``: available implementations, and the reasons for the others."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path

import torch

from cekernels import _auto, _backends, _selfcheck
from cekernels._predicted import MICROSECONDS
from cekernels._register import OPS, Op
from cekernels._version import __version__


def report() -> str:
    """Versions, devices, one line per implementation, and the build of each library."""
    lines = [
        f"python {platform.python_version()}  torch {torch.__version__}  "
        f"CPU threads {torch.get_num_threads()}",
        f"cekernels {__version__}  {Path(__file__).parent}",
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            lines.append(f"cuda:{index}  {name}, CUDA {torch.version.cuda}")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        lines.append(f"no CUDA device (this torch is {built})")
    forced = _backends.DEFAULT
    if forced != "auto":
        effect = "forces the implementation" if forced in _backends.IMPLS else "is unknown"
        lines.append(f"{_backends.ENVIRONMENT_VARIABLE}={forced} {effect}")
    lines.append("")
    for name in _backends.IMPLS[1:]:
        reason = _backends.unavailable(name)
        lines.append(f"  {name:<10} {'available' if reason is None else f'no: {reason}'}")
        if reason is None and torch.cuda.is_available():
            lines += [f"  {'':<10} {line}" for line in _checks_on_devices(name)]
    lines += ["", *_choices()]
    for name, library in _backends.build_record().items():
        if library["built"]:
            lines.append("")
            lines += [
                f"{name}.so {key}: {' '.join(value) if isinstance(value, list) else value}"
                for key, value in library.items()
                if key != "built"
            ]
            if name == "_C" and _backends.load_library(name) is None:
                lines.append(f"{name}.so runs with: {_backends.instruction_set()}")
    return "\n".join(lines)


def _choices() -> list[str]:
    """What ``impl="auto"`` uses on CUDA where predictions decide."""
    lines = ['impl="auto" on CUDA, by predicted microseconds (docs/gpu.md; no GPU has shown them):']
    for key, times in MICROSECONDS.items():
        chosen = _auto.by_prediction(times)
        left_out = [n for n in times if n not in chosen]
        shown = ", ".join(f"{n} {times[n]:g}" if n in times else n for n in chosen)
        why = "".join(f"; not {n}, {times[n]:g}: slower" for n in left_out)
        lines.append(f"  {key:<36} {shown}{why}")
    sizes = ", ".join(map(str, _auto.TILED))
    lines.append(
        f"  channelwise_linear* of other maps than {sizes} locations: cuda for ieee, else triton"
    )
    return lines


# Of the kinds of calls that are tested at their first use, those whose tests are reported.
_REPORTED = ((torch.float32, torch.bfloat16), ((36, 36),))


def _failure(op: Op, name: str, device: torch.device) -> str | None:
    kinds = [k for k in op.check.usual(*_REPORTED) if k.layout == _selfcheck.CONTIGUOUS]
    reasons = (_selfcheck.failure_of_kind(op, name, device, kind) for kind in kinds)
    return next((reason for reason in reasons if reason), None)


def _checks_on_devices(name: str) -> list[str]:
    """Results of the self-test of an implementation on each GPU, for contiguous operands."""
    if name not in _auto.ORDER["cuda"] or name == "reference":
        return []
    lines = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        ops = [op for op in OPS.values() if _backends.kernel(op, name) is not None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            failures = {op.name: _failure(op, name, device) for op in ops}
        wrong = [f"{op}: {reason}" for op, reason in failures.items() if reason]
        lines.append(f"{device}: {len(ops) - len(wrong)} of {len(ops)} ops pass their self-test")
        lines += [f"  {line}" for line in wrong]
    return lines


if __name__ == "__main__":
    print(report())
