"""``python -m cekernels.info``: what this machine can run, and why not the rest."""

from __future__ import annotations

import os
import platform

import torch

from cekernels import _dispatch, _native


def report() -> str:
    """The versions, the device and one line for each implementation."""
    lines = [
        f"python {platform.python_version()}  torch {torch.__version__}  "
        f"CPU threads {torch.get_num_threads()}"
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(index)
            lines.append(f"cuda:{index}  {name}, CUDA {torch.version.cuda}")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        lines.append(f"no CUDA device (this torch is {built})")
    forced = os.environ.get(_dispatch.ENVIRONMENT_VARIABLE)
    if forced:
        effect = "forces the implementation" if forced in _dispatch.IMPLS else "names none"
        lines.append(f"{_dispatch.ENVIRONMENT_VARIABLE}={forced} {effect}")
    lines.append("")
    for name in _dispatch.IMPLS[1:]:
        _, reason = _dispatch.load(name)
        lines.append(f"  {name:<10} {'available' if reason is None else f'no: {reason}'}")
    for name, library in _native.record().items():
        if library["built"]:
            lines.append("")
            lines += [
                f"{name}.so {key}: {' '.join(value) if isinstance(value, list) else value}"
                for key, value in library.items()
                if key != "built"
            ]
            if name == "_C" and _native.load(name) is None:
                lines.append(f"{name}.so runs with: {_native.instruction_set()}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
