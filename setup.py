"""Build of the distribution ``context-encoder``.

A wheel contains ``context_encoder`` and requires the distribution ``cekernels`` of the same version
(buildtools/cekernels-dist). ``pip install -e .`` installs both packages of this folder, compiles
the kernels, and does not require ``cekernels``.
"""

import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "buildtools"))
import commands

DEPENDENCIES = [
    "torch>=2.11",
    "contourpy>=1.2",
    "imagecodecs>=2024.1.1",
    "fsspec>=2024.2",
    "jinja2>=3.1",
    "numpy>=1.26",
    "pillow>=11.3",
    "pydantic>=2.7",
    "safetensors>=0.4.3",
    "scipy>=1.11",
    "threadpoolctl>=3.8",
    "tensorboard>=2.16",
    "tifffile>=2024.1.30",
    "torchmetrics>=1.4",
    "tqdm>=4.66",
    "tyro>=0.9",
]

if commands.editable and commands.KERNELS_ARE_HERE:
    setup(
        packages=find_namespace_packages(include=["cekernels*", "context_encoder*"]),
        install_requires=DEPENDENCIES,
        **commands.WITH_KERNELS,
    )
else:
    setup(
        packages=find_namespace_packages(include=["context_encoder*"]),
        install_requires=[*DEPENDENCIES, f"cekernels=={commands.version()}"],
        **commands.WITHOUT_KERNELS,
    )
