"""Random calls of the public functions, arguments wrong in any way included, for a bounded time.

Each call returns what the reference returns and changes none of its arguments, or it raises an
error that names the function and a wrong argument. Case ``index`` of ``seed`` is always the same.

    CEKERNELS_FUZZ_SECONDS=600 CEKERNELS_FUZZ_SEED=1 pytest tests/cekernels/test_fuzz.py
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
import random
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cekernels
from cekernels import ImplementationError
from cekernels._register import OPS

SECONDS = float(os.environ.get("CEKERNELS_FUZZ_SECONDS", "4"))
LEAST = 200  # cases, also on a slow machine
SEED = int(os.environ.get("CEKERNELS_FUZZ_SEED", "0"))

Arguments = dict[str, Any]


class Named(Tensor):
    """A subclass that torch handles like a tensor."""


FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Case:
    """The random choices of one call."""

    def __init__(self, seed: int, index: int) -> None:
        self.random = random.Random(f"{seed} {index}")
        self.torch = torch.Generator().manual_seed(self.random.getrandbits(40))

    def size(self, low: int = 0, high: int = 7) -> int:
        return self.random.randint(low, high)

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def numbers(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=self.torch) * 2).to(dtype)

    def integers(self, low: int, high: int, *shape: int, dtype: Any = torch.int64) -> Tensor:
        return torch.randint(low, high, shape, generator=self.torch).to(dtype)

    def mask(self, batch: int, channels: int, *size: int) -> Tensor:
        kinds = torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32
        return self.integers(
            0, 2, batch, self.one_of(1, channels), *size, dtype=self.one_of(*kinds)
        )

    def offsets(self, pieces: int, total: int) -> Tensor:
        cuts = sorted(self.random.randint(0, total) for _ in range(pieces - 1))
        return torch.tensor([0, *cuts, total][: pieces + 1])


# --- valid arguments ------------------------------------------------------------------------------


def linear(case: Case) -> Arguments:
    B, C, n_in, n_out = (case.size(0, 5) for _ in range(4))
    dtype = case.one_of(*FLOATING)
    return {
        "input": case.numbers(B, C, n_in, dtype=dtype),
        "weight": case.numbers(C, n_out, n_in, dtype=dtype),
        "bias": case.one_of(None, case.numbers(C, n_out, dtype=dtype)),
        "activation": case.one_of(None, "relu"),
    }


def module(case: Case) -> Arguments:
    sides = case.size(1, 4), case.size(1, 4)
    size = case.one_of(sides, list(sides), math.prod(sides), (np.int64(sides[0]), sides[1]))
    return {
        "channels": case.one_of(case.size(1), np.int32(3)),
        "in_size": size,
        "out_size": case.one_of(None, case.size(1)),
        "activation": case.one_of(None, "relu"),
    }


def response_norm(case: Case) -> Arguments:
    shape = [case.size(0, 4) for _ in range(case.one_of(3, 4))]
    return {
        "input": case.numbers(*shape, dtype=case.one_of(*FLOATING)),
        "size": case.one_of(1, 2, 5, np.int64(3)),
        "alpha": case.one_of(1e-4, 0.5, 0),
        "beta": case.one_of(0.75, 0.5, np.float64(2.0)),
        "k": case.one_of(1.0, 2),
    }


def loss(case: Case) -> Arguments:
    B, C, H, W = case.size(0, 3), case.size(1, 3), case.size(0, 5), case.size(0, 20)
    area = case.integers(1, 9, B, dtype=case.one_of(torch.int64, torch.float32, torch.float64))
    return {
        "prediction": case.numbers(B, C, H, W, dtype=case.one_of(*FLOATING)),
        "target": case.numbers(B, C, H, W, dtype=case.one_of(*FLOATING, torch.int64)),
        "mask": case.mask(B, C, H, W),
        "normalize": case.one_of("mask", "all", "sum", "none"),
        "area": case.one_of(None, area),
    }


def fill(case: Case) -> Arguments:
    B, C, H, W = case.size(0, 3), case.size(1, 3), case.size(0, 5), case.size(0, 20)
    dtype = case.one_of(torch.uint8, torch.int16, torch.bool, *FLOATING)
    value = case.integers(0, 2, C)
    return {
        "image": case.integers(0, 2, B, C, H, W, dtype=dtype),
        "mask": case.mask(B, C, H, W),
        "value": case.one_of(1, value, value.tolist(), np.int64(1), value.to(dtype)),
    }


def polygons(case: Case) -> Arguments:
    count = case.size(0, 9)
    contours = case.size(1 if count else 0, 3)
    samples = case.size(1 if contours else 0, 3)
    return {
        "vertices": case.integers(-2000, 4000, count, 2, dtype=torch.int32),
        "contour_offsets": case.offsets(contours, count),
        "sample_offsets": case.offsets(samples, contours),
    }


def boxes(case: Case) -> Arguments:
    count = case.size(0, 5)
    return {
        "boxes": case.integers(-2000, 4000, count, 4, dtype=torch.int32),
        "sample_offsets": case.offsets(case.size(1 if count else 0, 3), count),
    }


def sized(shapes: Callable[[Case], Arguments]) -> Callable[[Case], Arguments]:
    def arguments(case: Case) -> Arguments:
        size = case.size(0, 12)
        return shapes(case) | {
            "height": case.one_of(size, np.int64(size)),
            "width": case.size(0, 12),
        }

    return arguments


def filled(shapes: Callable[[Case], Arguments]) -> Callable[[Case], Arguments]:
    def arguments(case: Case) -> Arguments:
        given = shapes(case)
        image = case.numbers(len(given["sample_offsets"]) - 1, 2, case.size(), case.size())
        return {"image": image, "value": case.one_of(0.5, [1.0, 2.0], torch.ones(2))} | given

    return arguments


def ruled(arguments: Callable[[Case], Arguments]) -> Callable[[Case], Arguments]:
    return lambda case: arguments(case) | {"fill_rule": case.one_of("nonzero", "evenodd")}


def fixed(case: Case) -> Arguments:
    dtype = case.one_of(*FLOATING, torch.int32, torch.uint8)
    pixels = (case.numbers(case.size(), 2) * case.one_of(1, 100, 1e6)).abs().clamp(max=6e4)
    return {"pixels": pixels.to(dtype)}


def listed_boxes(case: Case) -> Arguments:
    images = [case.numbers(case.size(0, 3), 4) * 5 for _ in range(case.size(0, 3))]
    kind = case.one_of(list, Tensor.tolist, Tensor.numpy, Tensor.double)
    return {"boxes": list(map(kind, images)), "format": case.one_of("xyxy", "xywh", "cxcywh")}


def listed_polygons(case: Case) -> Arguments:
    def contour() -> Any:
        points = case.numbers(case.size(0, 5), 2) * 5
        return case.one_of(points, points.tolist(), points.flatten().tolist(), points.numpy())

    images = [[contour() for _ in range(case.size(0, 3))] for _ in range(case.size(0, 3))]
    # Three single vertices are refused: a contour in place of a list of contours.
    for image in images:
        if len(image) == 3:
            image[0] = case.numbers(case.size(2, 5), 2) * 5
    return {"polygons": images}


def words(case: Case) -> Arguments:
    shape = (case.size(1, 4),)
    counter = tuple(case.integers(-9, 2**40, *case.one_of((), (1,), shape)) for _ in range(4))
    return {"counter": counter, "key": (case.size(), case.one_of(3, np.int64(5), -1))}


def below(case: Case) -> Arguments:
    drawn = case.integers(0, 2**32, case.size())
    return {"words": drawn, "bound": case.one_of(1, 7, 2**31, np.int64(9), torch.tensor(5))}


def seam(case: Case) -> Arguments:
    B, H, W = case.size(0, 2), case.size(1, 6), case.size(1, 6)
    mask = case.integers(0, 2, B, 1, H, W, dtype=case.one_of(torch.bool, torch.uint8))
    return {"image": case.numbers(B, 2, H, W), "mask": mask}


def match(case: Case) -> Arguments:
    image, guide, source, field, radius, weight, offset, *_ = OPS["patch_match"].example()
    settings = {"radius": radius, "guide_weight": weight, "max_offset": offset, "sweeps": 1}
    given = {"image": image, "guide": guide, "source": source, "field": field}
    return given | settings | {"first_sweep": case.size(), "seed": case.one_of(0, -1, 2**40)}


def vote(case: Case) -> Arguments:
    names = "image", "field", "cost", "mask", "depth", "radius", "max_offset"
    given = dict(zip(names, OPS["patch_vote"].example(), strict=False))
    return given | {"best": case.one_of(False, True)}


FUNCTIONS: dict[str, Callable[[Case], Arguments]] = {
    "channelwise_linear": linear,
    "ChannelwiseLinear": module,
    "local_response_norm": response_norm,
    "masked_l2_loss": loss,
    "masked_l1_loss": loss,
    "fill_masked": fill,
    "rasterize_polygons": ruled(sized(polygons)),
    "rasterize_boxes": sized(boxes),
    "fill_polygons": ruled(filled(polygons)),
    "fill_boxes": filled(boxes),
    "to_fixed_point": fixed,
    "pack_boxes": listed_boxes,
    "pack_polygons": listed_polygons,
    "philox4x32": words,
    "random_below": below,
    "remove_seam": seam,
    "patch_match": match,
    "patch_vote": vote,
    "warm_up": lambda case: {"device": case.one_of("cpu", torch.device("cpu"))},
}
OTHERS = {"Impl", "ImplementationError", "LocalResponseNorm", "__version__", "decompositions"}
assert FUNCTIONS.keys() | OTHERS == set(cekernels.__all__)


# --- wrong arguments ------------------------------------------------------------------------------

ANYTHING: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**31, 2**62, 2**63, -(2**70), 0.5, math.nan, math.inf, 1e300, 1j,
    "", "relu", "xyxy", b"3", [], [1, 2], [[0.0]], (), {}, set(), object(), np.float64(2.5),
    np.int64(-3), np.zeros(3), torch.float32, torch.tensor(3.7), torch.tensor(3), torch.tensor([3]),
    torch.zeros(2, 3), torch.zeros(0), torch.zeros((), device="meta"),
)  # fmt: skip


def others(case: Case, value: Any) -> Any:
    """Something else than a valid argument; it may happen to be valid too."""
    if case.random.random() < 0.4 or not isinstance(value, (Tensor, list, tuple)):
        return case.one_of(*ANYTHING)
    if not isinstance(value, Tensor):
        items = list(value)
        change = case.one_of("drop", "add", "spoil")
        if items and change == "drop":
            items.pop(case.size(0, len(items) - 1))
        elif items and change == "spoil":
            at = case.size(0, len(items) - 1)
            items[at] = others(case, items[at])
        else:
            items.append(case.one_of(*ANYTHING))
        return case.one_of(list, tuple)(items)
    kinds = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, *FLOATING,
             torch.complex64, torch.uint16, torch.float8_e4m3fn)  # fmt: skip
    changes: list[Callable[[], Any]] = [
        lambda: value.to("meta"),
        lambda: value.unsqueeze(case.size(0, value.dim())),
        lambda: value.flatten(),
        lambda: value.to(case.one_of(*kinds)),
        lambda: value.to_sparse(),
        lambda: torch.nested.nested_tensor([value, value]),
        lambda: torch.nested.nested_tensor([value, value], layout=torch.jagged),
        lambda: value.clone().requires_grad_(),
        lambda: value.flip(0),
        lambda: value.mT,
        lambda: value[1:],
        lambda: torch.cat([value, value]),
        lambda: value.new_zeros(()).expand(value.shape),
        lambda: torch.stack([value, value], -1)[..., 0],
        lambda: value.masked_fill(torch.rand(value.shape, generator=case.torch) < 0.3, math.nan),
        lambda: value + 2**20,
        lambda: -value,
        lambda: value.numpy(),
        lambda: value.tolist(),
        lambda: value.as_subclass(Named),
    ]
    while True:
        try:
            return case.one_of(*changes)()
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            continue


# --- results --------------------------------------------------------------------------------------


def expected(name: str, given: Arguments) -> Any:
    """The result by the reference, or where there is no other implementation by plain Python."""
    function = getattr(cekernels, name)
    if name == "to_fixed_point":
        if given["pixels"].is_meta:
            return None
        limit = 2**20
        wide = given["pixels"].double().flatten().tolist()
        flat = [round(min(max(x, -limit), limit) * 256) for x in wide]
        return torch.tensor(flat, dtype=torch.int32).reshape(given["pixels"].shape)
    if name == "random_below":
        if given["words"].is_meta:
            return None
        drawn, bound = torch.broadcast_tensors(given["words"], torch.as_tensor(given["bound"]))
        pairs = zip(drawn.flatten().tolist(), bound.flatten().tolist(), strict=True)
        products = [(w * b + 2**63) % 2**64 - 2**63 >> 32 for w, b in pairs]  # int64 wraps
        return torch.tensor(products, dtype=torch.int64).reshape(drawn.shape)
    if name in ("pack_boxes", "pack_polygons", "warm_up"):
        return None
    if name == "ChannelwiseLinear":
        torch.manual_seed(0)
        layer = function(**given | {"impl": "reference"})
        return layer(torch.ones(2, layer.weight.shape[0], layer.weight.shape[2]))
    return function(**given | {"impl": "reference"})


def found(name: str, given: Arguments) -> Any:
    function = getattr(cekernels, name)
    if name == "ChannelwiseLinear":
        torch.manual_seed(0)
        layer = function(**given)
        return layer(torch.ones(2, layer.weight.shape[0], layer.weight.shape[2]))
    return function(**given)


def bits(tensor: Tensor) -> Tensor:
    copied = tensor.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
    return copied.reshape(-1).view(torch.uint8)


def check_equal(name: str, a: Any, b: Any) -> None:
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            check_equal(name, x, y)
        return
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if a.is_meta or a.numel() == 0:
        return
    if name == "remove_seam" and not b.isfinite().all():
        return  # a solver carries NaN as far as it iterates
    if not a.dtype.is_floating_point or name.startswith("fill"):
        assert torch.equal(bits(a), bits(b))
        return
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
    tolerance = 1e-3 if name == "remove_seam" else rounding[a.dtype]
    finite = b.isfinite()
    scale = b[finite].abs().max().item() if finite.any() else 0.0
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance * max(scale, 1.0), equal_nan=True
    )


ERRORS = (TypeError, ValueError, RuntimeError, ImplementationError)


def run(seed: int, index: int) -> str:
    """One case; "right" or "refused"."""
    case = Case(seed, index)
    name = case.one_of(*FUNCTIONS)
    given = FUNCTIONS[name](case)
    spoiled = case.random.sample(sorted(given), min(case.one_of(0, 1, 1, 1, 2), len(given)))
    for argument in spoiled:
        given[argument] = others(case, given[argument])
    before = copy.copy(given)
    copies = {k: v.clone() for k, v in given.items() if type(v) is Tensor and not v.is_sparse
              and not v.is_nested}  # fmt: skip
    refusal: Exception | None = None
    try:
        result = found(name, given)
    except ERRORS as error:
        refusal = error
    if refusal is not None:
        message = f"{name}, {spoiled}: {type(refusal).__name__}: {refusal}"
        assert spoiled, f"a valid call is refused: {message}"
        assert re.match(rf"(cekernels )?{name}: ", str(refusal)), message
        names = {*inspect.signature(getattr(cekernels, name)).parameters, "input"}
        assert names & set(re.findall(r"\w+", str(refusal))), f"names no argument: {message}"
        return "refused"
    for argument, value in copies.items():
        assert before[argument] is given[argument]
        if not value.is_meta:
            assert torch.equal(bits(value), bits(given[argument]))
    right = expected(name, given)
    if right is not None:
        check_equal(name, result, right)
    return "right"


@pytest.fixture
def _bounded_memory() -> Iterator[None]:
    """Sizes that no machine has memory for are refused, and not given page by page."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_bounded_memory")
def test_any_call_is_right_or_refused_by_an_error_that_names_an_argument() -> None:
    end = time.monotonic() + SECONDS
    outcomes = {"right": 0, "refused": 0}
    for index in itertools.count():
        if index >= LEAST and time.monotonic() > end:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes[run(SEED, index)] += 1
        except Exception as error:
            error.args = (f"case {index} of seed {SEED}: {error}",)
            raise
    assert min(outcomes.values()) >= 10, outcomes
    print(outcomes)
