"""The distribution ``cekernels``; runs in an sdist or in a folder laid out like one."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "buildtools"))
import commands

setup(**commands.WITH_KERNELS)
