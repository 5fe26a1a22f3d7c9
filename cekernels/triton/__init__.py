"""The ops as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

Each module has the functions of the module of the same name in :mod:`cekernels.reference`, and
``unsupported(op, *args)``: why a call cannot be served, or None.

With ``TRITON_INTERPRET=1`` in the environment before the first import Triton's interpreter runs
the same kernels on the CPU: slow, and meant for tests.
"""
