"""Run an exported file in a process of its own, without this package.

The process imports this file from its folder, not as a part of the package, and loads the exported
file as a stranger would: it has neither ``context_encoder`` nor ``cekernels``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def main(path: str, arrays: Sequence[str]) -> None:
    """Run a file and write its outputs in order.

    Args:
        path: the exported file.
        arrays: .npz files in pairs, of the inputs to read and of the outputs to write.

    Raises:
        ImportError: something has imported this package after all.
    """
    run = _onnx(path) if path.endswith(".onnx") else _program(path)
    for given, out in zip(arrays[::2], arrays[1::2], strict=True):
        with np.load(given) as file:
            np.savez(out, *run([file[name] for name in file.files]))
    strangers = [name for name in ("context_encoder", "cekernels") if name in sys.modules]
    if strangers:
        raise ImportError(f"the check has imported {', '.join(strangers)}")


def _onnx(path: str) -> Callable[[list[Any]], Sequence[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _program(path: str) -> Callable[[list[Any]], Sequence[Any]]:
    import torch

    program = torch.export.load(path).module()

    def run(inputs: list[Any]) -> Sequence[Any]:
        found = program(*map(torch.from_numpy, inputs))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return [output.detach().numpy() for output in found]

    return run
