"""Build of the distribution ``cekernels``, in an sdist or a folder with its layout."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "buildtools"))
import commands

setup(**commands.WITH_KERNELS)
