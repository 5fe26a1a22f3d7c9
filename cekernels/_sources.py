"""Digest of the sources of a kernel library; the build loads this file too, without torch."""

from __future__ import annotations

import hashlib
import os

_FOLDERS = {"_C": ("", "ops", "cpu"), "_C_cuda": ("", "ops", "cuda")}


def digest(csrc: str | os.PathLike[str], name: str) -> str:
    """SHA-256 of the names and contents of the sources of library ``name`` in folder ``csrc``."""
    paths = [
        entry.path
        for folder in _FOLDERS[name]
        for entry in os.scandir(os.path.join(csrc, folder))
        if entry.name.endswith((".h", ".cpp", ".cu", ".cuh"))
    ]
    total = hashlib.sha256()
    for path in sorted(paths):
        with open(path, "rb") as source:
            content = source.read()
        total.update(f"{os.path.relpath(path, csrc)} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()
