"""Lists of boxes and contours per image against hand-written masks and torchvision's formats."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cekernels import (
    fill_boxes,
    fill_polygons,
    pack_boxes,
    pack_polygons,
    rasterize_boxes,
    rasterize_polygons,
)


def test_boxes_of_each_image() -> None:
    targets = [torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 2.5, 1.5, 4.0]]), torch.zeros(0, 4),
               torch.tensor([[2, 1, 4, 3]])]  # fmt: skip
    mask, area = rasterize_boxes(*pack_boxes(targets), 4, 4)
    drawn = [["".join(".#"[p] for p in row) for row in image[0]] for image in mask.int().tolist()]
    assert drawn[0] == [".##.", ".##.", "#...", "#..."]  # the centre y = 2.5 is inside, x = 1.5 not
    assert drawn[1] == ["...."] * 4
    assert drawn[2] == ["....", "..##", "..##", "...."]
    assert area.tolist() == [6, 0, 4]


def test_what_torch_takes_as_a_tensor_is_taken() -> None:
    expected = pack_boxes([torch.tensor([[1.0, 0.0, 3.0, 2.0]]), torch.zeros(0, 4)])
    corners = [1, 0, 3, 2]
    half = torch.tensor([corners], dtype=torch.float16)
    boxes: list[Any] = [[corners], np.array([corners]) * 1.0, [torch.tensor(corners)], half]
    for box in boxes:
        for nothing in ([], (), np.zeros((0, 4)), torch.zeros(0)):
            for a, b in zip(pack_boxes([box, nothing]), expected, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)
    assert [t.shape for t in pack_boxes([])] == [(0, 4), (1,)]
    batch = torch.tensor([[[1.0, 0.0, 3.0, 2.0]], [[0.0, 0.0, 1.0, 1.0]]])  # (B, K, 4)
    assert pack_boxes(batch)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("format", "box"),
    [("xyxy", [1, 2, 4, 7]), ("xywh", [1, 2, 3, 5]), ("cxcywh", [2.5, 4.5, 3, 5])],
)
def test_formats(format: Any, box: list[float]) -> None:
    boxes, offsets = pack_boxes([[box]], format=format)
    assert boxes.tolist() == [[256, 512, 1024, 1792]]
    assert offsets.tolist() == [0, 1]


def test_a_format_that_the_boxes_state_otherwise_is_an_error() -> None:
    class Format(enum.Enum):
        XYWH = "XYWH"

    class BoundingBoxes(Tensor):
        """As torchvision.tv_tensors.BoundingBoxes: a tensor with its format."""

        format = Format.XYWH

    boxes = torch.tensor([[1.0, 2.0, 3.0, 5.0]]).as_subclass(BoundingBoxes)
    with pytest.raises(ValueError, match=r"boxes\[1\] is in the format 'xywh', not 'xyxy'"):
        pack_boxes([torch.zeros(0, 4), boxes])
    packed = pack_boxes([boxes], format="xywh")[0]
    assert type(packed) is Tensor
    assert packed.tolist() == [[256, 512, 1024, 1792]]


def test_contours_of_each_image() -> None:
    square, triangle = [[0, 0], [2, 0], [2, 2], [0, 2]], [[0.0, 0.0], [4.0, 4.0], [0.0, 4.0]]
    polygons = [[square, np.array(square) + 2], [], [torch.tensor(triangle).flatten()]]
    packed = pack_polygons(polygons)
    assert [t.dtype for t in packed] == [torch.int32, torch.int64, torch.int64]
    assert packed[1].tolist() == [0, 4, 8, 11]
    assert packed[2].tolist() == [0, 2, 2, 3]
    mask, area = rasterize_polygons(*packed, 4, 4)
    assert area.tolist() == [8, 0, 6]
    assert mask[0, 0, 2:, 2:].all()
    assert [t.shape for t in pack_polygons([])] == [(0, 2), (1,), (1,)]
    assert pack_polygons([[], [[]]])[2].tolist() == [0, 0, 1]
    image = torch.zeros(3, 1, 4, 4)
    filled, cover, _ = fill_polygons(image, 1.0, *packed)
    assert torch.equal(filled, mask.float())
    assert torch.equal(cover, mask)
    assert fill_boxes(image, 1.0, *pack_boxes([[[0, 0, 4, 4]], [], []]))[2].tolist() == [16, 0, 0]


def test_device_is_that_of_the_first_tensor_or_the_one_given() -> None:
    on_meta = torch.zeros(2, 4, device="meta")
    assert {t.device.type for t in pack_boxes([[], on_meta])} == {"meta"}
    assert {t.device.type for t in pack_boxes([[[0, 0, 1, 1]]], device="meta")} == {"meta"}
    assert {t.device.type for t in pack_polygons([[on_meta[:, :2]]])} == {"meta"}


@pytest.mark.parametrize(
    ("f", "value", "error", "message"),
    [
        (pack_boxes, 3, TypeError, r"boxes must be a list, got int 3"),
        (pack_boxes, {"boxes": []}, TypeError, r"boxes must be a list, got dict"),
        (pack_boxes, [[0, 0, 1, 1]], ValueError, r"boxes\[0\] must be \(K, 4\), .*\(4,\)"),
        (pack_boxes, [torch.zeros(2, 5)], ValueError, r"boxes\[0\] must be \(K, 4\), .*\(2, 5\)"),
        (pack_boxes, [[], [["a"]]], TypeError, r"boxes\[1\] must hold numbers, got list \[\['a'\]"),
        (pack_boxes, [torch.ones(1, 4).bool()], TypeError, r"boxes\[0\] must hold real numbers"),
        (pack_boxes, [[[0, 0, 1, math.nan]]], ValueError, r"boxes\[0\] must be finite"),
        (
            pack_polygons,
            [[[[0, 0]]], [[[1, math.inf]]]],
            ValueError,
            r"polygons\[1\]\[0\] must be f",
        ),
        (pack_polygons, [[[1, 2, 3]]], ValueError, r"polygons\[0\]\[0\] must be \(N, 2\) or"),
        (
            pack_polygons,
            [[(1, 1), (9, 1), (1, 9)]],
            ValueError,
            r"polygons\[0\] is a list of 3 single vert",
        ),
        (
            pack_polygons,
            [torch.ones(3, 2)],
            ValueError,
            r"polygons\[0\] is a list of 3 single vert",
        ),
        (pack_polygons, [4], TypeError, r"polygons\[0\] must be a list, got int 4"),
        (pack_polygons, [torch.zeros(3, 2, 3)], ValueError, r"polygons\[0\]\[0\] must be \(N, 2\)"),
    ],
)
def test_errors_name_the_element(f: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{f.__name__}: {message}"):
        f(value)


def test_a_meta_tensor_beside_others_is_refused() -> None:
    boxes = [torch.zeros(1, 4), torch.zeros(1, 4, device="meta")]
    with pytest.raises(ValueError, match=r"pack_boxes: boxes\[1\] is a meta tensor"):
        pack_boxes(boxes)
    assert pack_boxes(boxes[1:])[0].is_meta
