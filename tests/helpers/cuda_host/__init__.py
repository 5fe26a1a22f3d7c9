"""The kernels of csrc/cuda and csrc/cpu, compiled for the host and called through ctypes.

``build`` makes a library; :class:`Kernels` wraps it with the op names of ``cekernels.reference``.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_bool, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cekernels.reference.layout import dense_format
from cekernels.reference.masked_loss import accumulation_dtype

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = SANITIZE if os.environ.get("CEKERNELS_SANITIZE") else ()
_DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
_BYTES = 4
_GUARD, _GUARD_BYTE = 256, 0xA5


def build(folder: Path, kind: str, flags: tuple[str, ...] = ()) -> Path:
    """Compile the kernels of ``kind`` ("cuda" or "cpu") with g++; returns the library's path."""
    cxx = os.environ.get("CXX", "g++")
    common = ["-g", "-O1", "-fPIC", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas", *flags]
    if kind == "cuda":
        sources = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "library.cpp"]
        common.append(f"-I{HERE}")
    else:
        sources = [*sorted((CSRC / "cpu").glob("*.cpp")), HERE / "library.cpp"]
        common += ["-DCPU_KERNELS", "-DCEK_ISA=baseline"]

    def compile_one(source: Path) -> str:
        target = folder / f"{kind}-{source.stem}.o"
        command = [cxx, *common, "-x", "c++", "-c", str(source), "-o", str(target)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f"{shlex.join(command)}\n{run.stderr}"
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / f"{kind}.so"
    subprocess.run([cxx, "-shared", *flags, *objects, "-o", str(library)], check=True)
    return library


def _struct(name: str, fields: str, types: dict[str, Any]) -> type[ctypes.Structure]:
    pairs = [field.split(":") for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(n, types[t]) for n, t in pairs]})


class _Planes(ctypes.Structure):
    _fields_ = (("data", c_void_p), *((n, c_int64) for n in ("batch", "channel", "row", "column")))


_TYPES = {"i": c_int32, "l": c_int64, "p": c_void_p, "b": c_bool, "P": _Planes}
_LINEAR = _struct(
    "LinearForward",
    "dtype:i batch:l channels:l n_out:l n_in:l input:p input_batch:l input_channel:l weight:p "
    "weight_channel:l weight_row:l bias:p bias_channel:l relu:b output:p products:i",
    _TYPES,
)
_LINEAR_BACKWARD = _struct(
    "LinearBackward",
    "dtype:i batch:l channels:l n_out:l n_in:l grad_output:p grad_batch:l grad_channel:l output:p "
    "output_batch:l output_channel:l input:p input_batch:l input_channel:l weight:p "
    "weight_channel:l weight_row:l grad_input:p grad_weight:p grad_bias:p products:i",
    _TYPES,
)
_LOSS = _struct(
    "MaskedLoss",
    "dtype:i mask_dtype:i batch:l channels:l mask_channels:l height:l width:l prediction:P "
    "target:P mask:P power:i normalize:i area:p area_dtype:i area_stride:l loss:p scale:p grad:p "
    "channels_last:b counter:p",
    _TYPES,
)
_SCALE_GRADIENT = _struct(
    "ScaleGradient",
    "dtype:i mask_dtype:i batch:l channels:l mask_channels:l height:l width:l mask:P "
    "grad_loss:p grad_loss_stride:l grad:p channels_last:b",
    _TYPES,
)
_LOSS_BACKWARD = _struct(
    "MaskedLossBackward",
    "dtype:i mask_dtype:i batch:l channels:l mask_channels:l height:l width:l prediction:P "
    "target:P mask:P power:i grad_loss:p grad_loss_stride:l scale:p grad:p channels_last:b",
    _TYPES,
)
_FILL = _struct(
    "FillMasked",
    "element_size:i mask_element_size:i mask_floating:b batch:l channels:l height:l width:l "
    "image:P mask:P value:p output:p channels_last:b",
    _TYPES,
)
_SHAPES = _struct(
    "Shapes",
    "boxes:b even_odd:b batch:l height:l width:l vertices:p vertex_count:l contour_offsets:p "
    "contour_count:l sample_offsets:p mask:p area:p element_size:i channels:l image:P value:p "
    "output:p",
    _TYPES,
)


def _planes(t: Tensor) -> _Planes:
    strides = [0 if n == 1 else s for n, s in zip(t.shape[:2], t.stride()[:2], strict=True)]
    row = t.shape[3] if t.shape[2] == 1 else t.stride(2)
    return _Planes(t.data_ptr(), *strides, row, 1 if t.shape[3] == 1 else t.stride(3))


def sparse(count: int, dtype: torch.dtype) -> Tensor:
    """Any number of zeros; pages that are not written use no memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, named from Python 3.11
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)


class Kernels:
    """The ops of a library made by :func:`build`, with the signatures of ``cekernels.reference``.

    Results lie between guard bytes, which are checked after every call.
    """

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.has_one_pass = hasattr(self.library, "run_scale_gradient")
        self.ends_only = False  # run only the first and the last block of a grid
        self._guarded: list[Tensor] = []

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        if count > 2**28:
            return sparse(count, dtype).view(shape)
        size = count * dtype.itemsize
        buffer = torch.full((size + 2 * _GUARD,), _GUARD_BYTE, dtype=torch.uint8)
        self._guarded.append(buffer)
        return buffer[_GUARD : _GUARD + size].view(dtype).view(shape)

    def _like(self, image: Tensor) -> tuple[Tensor, bool]:
        """A result in the layout of an image, and whether that is channels_last: on a GPU."""
        if not self.has_one_pass or dense_format(image) == torch.contiguous_format:
            return self._empty(image.shape, image.dtype), False
        b, c, h, w = image.shape
        return self._empty((b, h, w, c), image.dtype).permute(0, 3, 1, 2), True

    def _zero(self) -> Tensor:
        """A counter for a kernel whose blocks count themselves."""
        return torch.zeros((), dtype=torch.int32)

    def _run(self, name: str, struct: type[ctypes.Structure], *values: Any) -> None:
        function = getattr(self.library, name)
        function.restype = ctypes.c_char_p
        error = function(ctypes.byref(struct(*values)))
        assert error is None, error
        for buffer in self._guarded:
            assert (buffer[:_GUARD] == _GUARD_BYTE).all(), f"{name} wrote before its result"
            assert (buffer[-_GUARD:] == _GUARD_BYTE).all(), f"{name} wrote beyond its result"
        self._guarded.clear()

    def channelwise_linear(
        self, x: Tensor, w: Tensor, b: Tensor | None, relu: bool, products: int = 0
    ) -> Tensor:
        output = self._empty((x.shape[0], *w.shape[:2]), x.dtype)
        self._run(
            "run_linear", _LINEAR, _DTYPES[x.dtype], *x.shape[:2], *w.shape[1:], x.data_ptr(),
            *x.stride()[:2], w.data_ptr(), *w.stride()[:2], None if b is None else b.data_ptr(),
            0 if b is None else b.stride(0), relu, output.data_ptr(), products,
        )  # fmt: skip
        return output

    def channelwise_linear_backward(
        self,
        g: Tensor,
        x: Tensor,
        w: Tensor,
        y: Tensor | None,
        needs_input: bool,
        needs_weight: bool,
        needs_bias: bool,
        products: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = needs_input, needs_weight, needs_bias
        shapes = (x.shape, w.shape, w.shape[:2])
        grads = [self._empty(s if n else (0,), x.dtype) for s, n in zip(shapes, needs, strict=True)]
        self._run(
            "run_linear_backward", _LINEAR_BACKWARD, _DTYPES[x.dtype], *x.shape[:2], *w.shape[1:],
            g.data_ptr(), *g.stride()[:2], None if y is None else y.data_ptr(),
            *((0, 0) if y is None else y.stride()[:2]), x.data_ptr(), *x.stride()[:2],
            w.data_ptr(), *w.stride()[:2],
            *(t.data_ptr() if n else None for t, n in zip(grads, needs, strict=True)), products,
        )  # fmt: skip
        return grads[0], grads[1], grads[2]

    def _loss_operands(self, p: Tensor, t: Tensor, mask: Tensor) -> tuple[Any, ...]:
        mask_dtype = _DTYPES[mask.dtype] if mask.is_floating_point() else _BYTES
        sizes = (p.shape[0], p.shape[1], mask.shape[1], *p.shape[2:])
        return _DTYPES[p.dtype], mask_dtype, *sizes, _planes(p), _planes(t), _planes(mask)

    def masked_loss(
        self, p: Tensor, t: Tensor, mask: Tensor, area: Tensor | None, power: int, normalize: str,
        grad: Tensor | None = None, channels_last: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dtype = accumulation_dtype(p.dtype)
        loss = self._empty(p.shape[:1] if normalize == "none" else (), dtype)
        scale, counter = self._empty((), dtype), self._zero()
        kind = 0 if area is None else _DTYPES.get(area.dtype, _BYTES)
        self._run(
            "run_loss", _LOSS, *self._loss_operands(p, t, mask), power,
            ("mask", "all", "sum", "none").index(normalize),
            None if area is None else area.data_ptr(), kind, 0 if area is None else area.stride(0),
            loss.data_ptr(), scale.data_ptr(), None if grad is None else grad.data_ptr(),
            channels_last, counter.data_ptr(),
        )  # fmt: skip
        if not self.ends_only:  # the block that ends last clears it
            assert counter == 0, "the kernel left its counter changed"
        return loss, scale

    def masked_loss_and_gradient(
        self, p: Tensor, t: Tensor, mask: Tensor, area: Tensor | None, power: int, normalize: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, last = self._like(p)
        return *self.masked_loss(p, t, mask, area, power, normalize, grad, last), grad

    def scale_gradient_(self, grad: Tensor, grad_loss: Tensor, mask: Tensor) -> None:
        mask_dtype = _DTYPES[mask.dtype] if mask.is_floating_point() else _BYTES
        self._run(
            "run_scale_gradient", _SCALE_GRADIENT, _DTYPES[grad.dtype], mask_dtype,
            *grad.shape[:2], mask.shape[1], *grad.shape[2:], _planes(mask), grad_loss.data_ptr(),
            grad_loss.stride(0) if grad_loss.dim() else 0, grad.data_ptr(),
            dense_format(grad) == torch.channels_last,
        )  # fmt: skip

    def masked_loss_backward(
        self, g: Tensor, scale: Tensor, p: Tensor, t: Tensor, mask: Tensor, power: int
    ) -> Tensor:
        grad, last = self._like(p)
        self._run(
            "run_loss_backward", _LOSS_BACKWARD, *self._loss_operands(p, t, mask), power,
            g.data_ptr(), g.stride(0) if g.dim() else 0, scale.data_ptr(), grad.data_ptr(), last,
        )  # fmt: skip
        return grad

    def fill_masked(self, image: Tensor, mask: Tensor, value: Tensor) -> Tensor:
        output, last = self._like(image)
        self._run(
            "run_fill", _FILL, image.element_size(), mask.element_size(), mask.is_floating_point(),
            *image.shape, _planes(image), _planes(mask), value.data_ptr(), output.data_ptr(), last,
        )  # fmt: skip
        return output

    def _shapes(
        self, vertices: Tensor, contours: Tensor | None, samples: Tensor, height: int, width: int,
        even_odd: bool, image: Tensor | None = None, value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        batch = len(samples) - 1
        mask = self._empty((batch, 1, height, width), torch.uint8).view(torch.bool)
        area, output = self._empty((batch,), torch.int64), torch.empty(0)
        fill: tuple[Any, ...] = (0, 0, _Planes(), None, None)
        if image is not None and value is not None:
            output = self._empty(image.shape, image.dtype)
            fill = (image.element_size(), image.shape[1], _planes(image), value.data_ptr(),
                    output.data_ptr())  # fmt: skip
        if batch == 0:
            return output, mask, area  # the bindings skip empty results
        self._run(
            "run_shapes", _SHAPES, contours is None, even_odd, batch, height, width,
            vertices.data_ptr(), len(vertices), None if contours is None else contours.data_ptr(),
            0 if contours is None else len(contours) - 1, samples.data_ptr(), mask.data_ptr(),
            area.data_ptr(), *fill,
        )  # fmt: skip
        return output, mask, area

    def rasterize_polygons(
        self, vertices: Tensor, contours: Tensor, samples: Tensor, height: int, width: int,
        fill_rule: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        even_odd = fill_rule == "evenodd"
        return self._shapes(vertices, contours, samples, height, width, even_odd)[1:]

    def rasterize_boxes(
        self, boxes: Tensor, samples: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        return self._shapes(boxes, None, samples, height, width, False)[1:]

    def fill_polygons(
        self, image: Tensor, value: Tensor, vertices: Tensor, contours: Tensor, samples: Tensor,
        fill_rule: str,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        size = image.shape[2], image.shape[3]
        even_odd = fill_rule == "evenodd"
        return self._shapes(vertices, contours, samples, *size, even_odd, image, value)

    def fill_boxes(
        self, image: Tensor, value: Tensor, boxes: Tensor, samples: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._shapes(boxes, None, samples, *image.shape[2:], False, image, value)
