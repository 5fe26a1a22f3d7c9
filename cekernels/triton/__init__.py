"""The ops as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

Each module has the functions of the module of the same name in :mod:`cekernels.reference`, and
``unsupported(op, *args)``, which returns the reason why a call cannot be handled, or None.

If ``TRITON_INTERPRET=1`` is set in the environment before the first import, Triton's interpreter
runs the same kernels on the CPU: slow, and intended for tests.
"""
