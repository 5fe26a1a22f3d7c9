"""Masks: reproducible to the bit, within their limits, and of the intended statistics."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from cekernels import rasterize_polygons
from context_encoder.masks import (
    MASKS,
    BlobMasks,
    FolderMasks,
    RegionMasks,
    build_mask_sampler,
    region,
    silhouettes,
    trace_outline,
    voc_outlines,
)
from context_encoder.masks.arithmetic import integer_sqrt
from context_encoder.masks.outlines import clearance, longest_edge, signed_area
from context_encoder.masks.region import UNIT, clearance_needed

DRAWN = ("block", "region", "blob")
VOC_COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 744 + [224, 224, 192]


def draw(sampler, index, epoch=0):
    index = torch.as_tensor(index)
    return sampler(torch.full_like(index, epoch), index)


def coverage(kind, size, count, seed=0):
    """Share of missing pixels of ``count`` masks, float64."""
    sampler = build_mask_sampler(kind, size, seed)
    areas = [draw(sampler, part)[1] for part in torch.arange(count).split(256)]
    return torch.cat(areas).double() / size**2


@pytest.fixture
def mask_folder(tmp_path):
    """Three masks without any symmetry."""
    for k in range(3):
        image = Image.new("L", (60, 40))
        ImageDraw.Draw(image).polygon([(3, 2), (50 - 9 * k, 6), (12, 33)], fill=255)
        image.save(tmp_path / f"{k}.png")
    return tmp_path


@pytest.fixture
def devkit(tmp_path):
    """A VOCdevkit of two images: a disc with a void border, a cut-off box; a speck, a bar."""
    objects = tmp_path / "VOC2012/SegmentationObject"
    objects.mkdir(parents=True)
    sets = tmp_path / "VOC2012/ImageSets/Segmentation"
    sets.mkdir(parents=True)
    first, second = Image.new("P", (200, 150)), Image.new("P", (150, 200))
    for image in (first, second):
        image.putpalette(VOC_COLOURS)
    pen = ImageDraw.Draw(first)
    pen.ellipse((20, 20, 100, 100), fill=255)
    pen.ellipse((23, 23, 97, 97), fill=1)
    pen.rectangle((140, 60, 199, 149), fill=2)
    pen = ImageDraw.Draw(second)
    pen.rectangle((5, 5, 14, 14), fill=1)
    pen.rectangle((10, 100, 139, 140), fill=2)
    first.save(objects / "2007_000001.png")
    second.save(objects / "2007_000002.png")
    (sets / "train.txt").write_text("2007_000001\n2007_000002\n")
    return tmp_path


# --- properties of all samplers -----------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
def test_mask_depends_on_seed_epoch_and_index_only(kind, mask_folder, tmp_path_factory, devkit):
    options = {"folder": {"mask_folder": mask_folder}, "voc": {"voc_root": devkit}}.get(kind, {})
    sampler = build_mask_sampler(kind, 48, 5, **options)
    epoch = torch.tensor([0, 0, 3, 3, 1, 0, 2, 7])
    index = torch.tensor([4, 9, 4, 1 << 31, 0, 4, 2, 7])
    mask, area = sampler(epoch, index)
    assert mask.shape == (8, 1, 48, 48)
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    assert area.dtype == torch.int64
    assert torch.equal(area, mask.sum((1, 2, 3)))
    assert area.min() > 0

    order = torch.tensor([6, 2, 7, 0, 5, 1, 4, 3])
    assert torch.equal(sampler(epoch[order], index[order])[0], mask[order])
    for k in range(8):
        assert torch.equal(sampler(epoch[k : k + 1], index[k : k + 1])[0], mask[k : k + 1])
    torch.manual_seed(0)
    again = build_mask_sampler(kind, 48, 5, **options)
    assert torch.equal(again(epoch, index)[0], mask)
    assert torch.equal(mask[0], mask[5])  # the same epoch and index
    assert not sampler.state_dict()
    empty, no_area = sampler(epoch[:0], index[:0])
    assert empty.shape == (0, 1, 48, 48)
    assert no_area.shape == (0,)


@pytest.mark.parametrize("kind", DRAWN)
def test_masks_differ_between_samples_epochs_and_seeds(kind):
    sampler = build_mask_sampler(kind, 64, 1)
    index = torch.arange(32)
    masks = torch.cat(
        [
            draw(sampler, index)[0],
            draw(sampler, index, epoch=1)[0],
            draw(build_mask_sampler(kind, 64, 2), index)[0],
            draw(build_mask_sampler(kind, 64, 1 + (1 << 32)), index)[0],
        ]
    )
    assert len(masks.flatten(1).unique(dim=0)) == 128


@pytest.mark.parametrize("kind", ["central", "block", "region", "blob", "folder"])
def test_nothing_waits_for_a_value(kind, mask_folder):
    """Fake tensors have no values: an operation that waits for a GPU raises an error."""
    options = {"mask_folder": mask_folder} if kind == "folder" else {}
    sampler = build_mask_sampler(kind, 32, 3, **options)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        index = mode.from_tensor(torch.arange(4))
        with pytest.raises(DataDependentOutputException):
            index[0].item()
        mask, area = sampler(index, index)
    assert mask.shape == (4, 1, 32, 32)
    assert area.shape == (4,)


@pytest.mark.parametrize("kind", ["region", "blob"])
def test_compiles_into_one_graph(kind):
    sampler = build_mask_sampler(kind, 32, 3)
    epoch, index = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    compiled = torch.compile(sampler, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(epoch, index), sampler(epoch, index), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("central", "989a8909e04f0db5"),
        ("block", "ccb8680e7b966559"),
        ("region", "fac8d01050b47da4"),
        ("blob", "615bc75ad3782104"),
    ],
)
def test_bits_are_pinned(kind, digest):
    """Masks are the same for resumed runs and on other machines."""
    bits = b""
    for size in (32, 65, 128):
        sampler = build_mask_sampler(kind, size, 0x0123456789ABCDEF)
        masks, _ = sampler(torch.tensor([0, 0, 7, 1 << 20]), torch.tensor([0, 1, 12345, 99]))
        bits += np.packbits(masks.numpy()).tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == digest


def test_errors_of_the_interface():
    sampler = build_mask_sampler("block", 64, 0)
    index = torch.arange(3)
    with pytest.raises(TypeError, match=r"epoch must be an int64 tensor .* got torch.int32"):
        sampler(index.int(), index)
    with pytest.raises(TypeError, match=r"index must be an int64 tensor of shape \(B,\)"):
        sampler(index, torch.tensor(3))
    with pytest.raises(ValueError, match="same length and device"):
        sampler(index, index[:2])
    with pytest.raises(ValueError, match=r"the sampler is on meta.*move the sampler"):
        build_mask_sampler("central", 64, 0).to("meta")(index, index)
    for size in (31, 1025):
        with pytest.raises(ValueError, match=f"size must be 32 to 1024 pixels, got {size}"):
            build_mask_sampler("block", size, 0)
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="seed must be in 0"):
            build_mask_sampler("block", 64, seed)
    with pytest.raises(ValueError, match="there is no mask 'square'; there are blob, block,"):
        build_mask_sampler("square", 64, 0)
    with pytest.raises(ValueError, match="hole is for 'central' masks"):
        build_mask_sampler("region", 64, 0, hole=32)
    with pytest.raises(ValueError, match="need mask_folder: "):
        build_mask_sampler("folder", 64, 0)
    with pytest.raises(ValueError, match="need voc_root"):
        build_mask_sampler("voc", 64, 0)


def test_integer_sqrt_at_perfect_squares():
    roots = torch.tensor([1, 2, 3, 1 << 15, 94906267, (1 << 30) + 1, (1 << 31) - 1])
    assert torch.equal(integer_sqrt(roots**2), roots)
    assert torch.equal(integer_sqrt(roots**2 - 1), roots - 1)
    assert torch.equal(integer_sqrt(roots**2 + 1), roots)
    assert integer_sqrt(torch.tensor(0)) == 0


# --- central and block --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "hole", "first", "last"),
    [(128, None, 32, 96), (227, None, 57, 170), (64, 20, 22, 42), (64, 21, 21, 42)],
)
def test_central_hole(size, hole, first, last):
    mask, area = draw(build_mask_sampler("central", size, 0, hole=hole), [3, 4])
    expected = torch.zeros(2, 1, size, size, dtype=torch.bool)
    expected[:, :, first:last, first:last] = True
    assert torch.equal(mask, expected)
    assert area.tolist() == [(last - first) ** 2] * 2


@pytest.mark.parametrize("hole", [0, 64, -3])
def test_central_hole_must_fit(hole):
    with pytest.raises(
        ValueError, match=f"hole must be 1 to 63 pixels for masks of 64, got {hole}"
    ):
        build_mask_sampler("central", 64, 0, hole=hole)


def test_blocks_are_squares_within_a_quarter(monkeypatch):
    """The sum of the boxes, not only their union, is limited."""
    seen = []

    def spy(boxes, offsets, height, width):
        seen.append(boxes)
        return rasterize_boxes(boxes, offsets, height, width)

    from context_encoder.masks import block

    rasterize_boxes = block.rasterize_boxes
    monkeypatch.setattr(block, "rasterize_boxes", spy)
    sums, numbers = [], []
    for size in (32, 33, 64, 100):
        _, area = draw(build_mask_sampler("block", size, 2), torch.arange(1000))
        x0, y0, x1, y1 = seen.pop().view(1000, 8, 4).unbind(-1)
        side = x1 - x0
        assert torch.equal(side, y1 - y0)
        assert ((x0 | y0 | x1 | y1) & 255 == 0).all()  # whole pixels
        side = side >> 8
        assert (torch.stack((x0, y0)) >= 0).all()
        assert (torch.stack((x1, y1)) <= 256 * size).all()
        sums.append(side.square().sum(1) / size**2)
        assert sums[-1].max() <= 0.25
        assert (area > 0).all()
        numbers.append((side > 0).sum(1))
    assert torch.cat(numbers).bincount(minlength=9)[1:].min() > 400  # 500 each expected
    assert sums[-1].max() > 0.245
    assert 0.08 < sums[-1].min() < 0.11
    assert abs(sums[-1].mean() - 0.172) < 0.01


# --- region -------------------------------------------------------------------------------------


def test_region_covers_at_most_a_quarter_and_reaches_for_it():
    """Without the random share, every mask has the largest area: the tightest case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region, "_SMALLEST_SHARE", 1.0)
        for size, count, largest in ((32, 5000, 0.20), (47, 1000, 0.21), (128, 200, 0.23)):
            share = coverage("region", size, count, seed=9)
            assert share.max() <= (size**2 // 4) / size**2
            assert share.max() > largest
    share = coverage("region", 128, 500)
    assert 0.135 < share.mean() < 0.155
    assert share.min() > 0.05
    assert share.quantile(0.95) > 0.195


def test_pixels_inside_an_outline_are_bounded():
    """The inequality of RegionMasks: at most A + (X + Y) / 2 + 1, reached by lattice boxes."""

    def excess(polygon):
        points = torch.from_numpy(np.asarray(polygon, np.int32))
        _, inside = rasterize_polygons(
            points, torch.tensor([0, len(points)]), torch.tensor([0, 1]), 64, 64
        )
        pixels = np.asarray(polygon, np.float64) / 256
        travel = np.abs(pixels - np.roll(pixels, -1, 0)).sum()
        return float(inside) - (abs(signed_area(pixels)) + travel / 2 + 1)

    outlines = silhouettes().numpy()
    draws = np.random.default_rng(0)
    for outline in outlines[::3]:
        scale, place = draws.uniform(40, 2600), draws.integers(6000, 9000, 2)
        assert excess(np.rint(outline * (scale / UNIT)) + place) <= 0
    box = np.array([(128, 128), (2688, 128), (2688, 1408), (128, 1408)])
    # Half-open edges count 10 x 5 centres; 1/256 pixel more makes it 11 x 6 and nearly tight.
    assert excess(box) == 50 - 66
    assert -0.1 < excess(box + np.array([(0, 0), (1, 0), (1, 1), (0, 1)])) <= 0


def test_deformed_outlines_are_simple_and_keep_their_area(monkeypatch):
    sampler = build_mask_sampler("region", 64, 4)
    captured = []

    def capture(vertices, contours, samples, height, width):
        captured.append((vertices, contours, samples))
        return rasterize_polygons(vertices, contours, samples, height, width)

    monkeypatch.setattr(region, "rasterize_polygons", capture)
    _, area = draw(sampler, torch.arange(150))
    vertices, contours, samples = captured[0]
    assert vertices.dtype == torch.int32
    polygons = vertices.view(150, 3, 96, 2).double().numpy() / 256
    assert contours.tolist() == list(range(0, 450 * 96 + 1, 96))
    assert samples.tolist() == list(range(0, 451, 3))
    numbers = []
    for sample, inside in zip(polygons, area, strict=True):
        drawn = [polygon for polygon in sample if np.ptp(polygon, axis=0).any()]
        numbers.append(len(drawn))
        areas = [signed_area(polygon) for polygon in drawn]
        assert min(areas) > 0  # one orientation: overlaps unite
        assert max(areas) / min(areas) < 4.2  # up to twice as long
        assert sum(areas) < 64**2 / 4
        assert inside < sum(areas) + 30
        for polygon in drawn:
            assert clearance(polygon) > 0
            extent = np.ptp(polygon, axis=0)
            outside = np.maximum(-polygon.min(0), polygon.max(0) - 64)
            assert (outside <= extent / 4 + 0.01).all()
    assert np.bincount(numbers, minlength=4)[1:].min() > 30


def test_packaged_silhouettes_survive_every_deformation():
    outlines = silhouettes()
    assert outlines.dtype == torch.int16
    assert len(outlines) >= 256
    assert len(outlines.flatten(1).unique(dim=0)) == len(outlines)
    for outline in outlines.double().numpy() / UNIT:
        assert signed_area(outline) == pytest.approx(1, abs=0.002)
        assert clearance(outline) >= clearance_needed(longest_edge(outline))


def test_clearance_of_known_polygons():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float64)
    assert clearance(square) == 1
    slot = np.array([(0, 0), (3, 0), (3, 2), (1.6, 2), (1.6, 1), (1.4, 1), (1.4, 2), (0, 2)])
    assert clearance(slot) == pytest.approx(0.2)
    bow_tie = np.array([(0, 0), (1, 1), (1, 0), (0, 1)], np.float64)
    assert clearance(bow_tie) == 0
    assert clearance_needed(0.1) > clearance_needed(0.05) > 0


def test_region_refuses_other_tables():
    with pytest.raises(TypeError, match=r"outlines must be an int16 tensor \(K, 96, 2\)"):
        RegionMasks(64, 0, torch.zeros(4, 64, 2, dtype=torch.int16))
    with pytest.raises(TypeError, match=r"got torch\.float32"):
        RegionMasks(64, 0, torch.zeros(4, 96, 2))
    with pytest.raises(ValueError, match="at least one outline"):
        RegionMasks(64, 0, silhouettes()[:0])


# --- blob ---------------------------------------------------------------------------------------


def missing(sampler, values, phase, stride=1):
    return sampler._missing(torch.as_tensor(values), torch.as_tensor(phase), stride)


def test_blob_interpolates_like_another_library():
    """Pillow's bicubic filter is Catmull-Rom too; its box sets the window and the scale."""
    size, step = 100, 599 / 9999
    sampler = BlobMasks(size, 0)
    cells = sampler.weights.shape[-1]
    values = np.random.default_rng(0).integers(0, 1 << 16, (cells, cells))
    for phase in ((0, 0), (13, 50), (63, 63)):
        rows, columns = sampler.weights.double()[torch.tensor(phase)]
        ours = rows @ torch.from_numpy(values).double() @ columns.T / 2**24
        # Lattice value k is the pixel from k to k + 1, and the window starts one value in.
        left, top = (1.5 + p / 64 - step / 2 for p in reversed(phase))
        box = (left, top, left + size * step, top + size * step)
        image = Image.fromarray(values.astype(np.float32))
        theirs = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
        assert np.abs(ours.numpy() - theirs).max() < 65536 * 1e-3
        inside = missing(sampler, values[None, None], [[phase]])[0, 0].numpy()
        clear = np.abs(theirs - 16384) > 66
        assert (inside == (theirs < 16384))[clear].all()
    assert (sampler.weights.sum(-1) == 4096).all()
    assert ((sampler.weights != 0).sum(-1) <= 4).all()


def test_blob_pattern_has_the_coverage_of_the_released_one():
    draws = np.random.default_rng(1)
    lattice = draws.random((240, 240), dtype=np.float32)
    pattern = Image.fromarray(lattice).resize((4000, 4000), Image.Resampling.BICUBIC)
    released = float((np.asarray(pattern) < 0.25).mean())

    sampler = BlobMasks(64, 0)
    cells = sampler.weights.shape[-1]
    values = draws.integers(0, 1 << 16, (2, 1000, cells, cells))
    phase = draws.integers(0, 64, (2, 1000, 2))
    share = missing(sampler, values, phase).double().mean((2, 3))
    # Standard errors: 0.0019 here (0.086 between windows), about 0.0015 there.
    assert share.mean() == pytest.approx(released, abs=0.0075)
    assert released == pytest.approx(0.167, abs=0.006)
    accepted = ((share > 0.2) & (share < 0.3)).double().mean()
    assert accepted == pytest.approx(0.26, abs=0.035)


def test_blob_takes_the_first_acceptable_window():
    sampler = BlobMasks(64, 0)
    assert sampler.stride == 1
    coarse = torch.zeros(4, 64, dtype=torch.int64)  # of 4096 pixels; 820 to 1228 are acceptable
    coarse[0, [3, 5, 9]] = torch.tensor([819, 1228, 1024])
    coarse[1, [0, 63]] = torch.tensor([1229, 820])
    coarse[2, [7, 8, 40]] = torch.tensor([700, 800, 800])  # none: the closest to a quarter
    coarse[3, [2, 6]] = torch.tensor([819, 1229])  # equally close: the first
    assert sampler._first_acceptable(coarse)[:, 0].tolist() == [5, 63, 8, 2]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_blob_coverage_is_between_20_and_30_percent(size):
    share = coverage("blob", size, 256)
    assert share.min() > 0.2
    assert share.max() < 0.3
    # The pattern's mean is below the range, so most accepted masks are in the lower half.
    assert 0.225 < share.mean() < 0.255


# --- folder -------------------------------------------------------------------------------------


def half_white(width, height):
    """Left half white."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image


def test_every_editors_mask_reads_the_same(tmp_path):
    grey = half_white(40, 30)
    files = {}
    for mode in ("L", "1", "RGB", "P", "LA", "RGBA"):
        files[mode] = grey.convert(mode)
    files["soft"] = grey.point(lambda value: 160 if value else 100)
    files["I;16"] = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    cut_out = Image.new("RGBA", grey.size, (255, 255, 255, 0))
    cut_out.paste((255, 255, 255, 255), (0, 0, 20, 30))
    files["transparent is kept"] = cut_out
    faint = Image.new("RGBA", grey.size, (255, 255, 255, 120))
    faint.paste((255, 255, 255, 140), (0, 0, 20, 30))
    files["luminance times alpha"] = faint
    for name, image in files.items():
        image.save(tmp_path / "mask.png")
        masks = FolderMasks(40, 0, tmp_path).masks
        expected = half_white(40, 40)
        assert np.array_equal(masks[0, 0].numpy(), np.asarray(expected) > 0), name


def test_folder_masks_come_in_all_four_flips(mask_folder):
    sampler = FolderMasks(32, 1, mask_folder)
    assert sampler.skipped == []
    masks, areas = draw(sampler, torch.arange(400))
    expected = []
    for path in sorted(mask_folder.glob("*.png")):
        with Image.open(path) as image:
            small = np.asarray(image.resize((32, 32), Image.Resampling.BOX)) >= 128
        expected += [small, small[:, ::-1], small[::-1], small[::-1, ::-1]]
    found = [
        next(k for k, other in enumerate(expected) if np.array_equal(mask[0], other))
        for mask in masks.numpy()
    ]
    assert np.bincount(found, minlength=12).min() > 12  # 33 each expected
    assert torch.equal(areas, masks.sum((1, 2, 3)))


def test_folder_leaves_out_what_is_no_mask(tmp_path, caplog):
    half_white(50, 50).save(tmp_path / "good.png")
    Image.new("L", (50, 50)).save(tmp_path / "black.png")
    Image.new("L", (50, 50), 255).save(tmp_path / "white.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing else")
    speck = Image.new("L", (3000, 3000))
    speck.putpixel((7, 7), 255)
    speck.save(tmp_path / "speck.png")
    with caplog.at_level(logging.WARNING):
        sampler = FolderMasks(32, 0, tmp_path)
    reasons = {path.name: reason for path, reason in sampler.skipped}
    assert reasons.keys() == {"black.png", "white.png", "broken.png", "speck.png"}
    assert reasons["black.png"] == "nothing is white at 32 x 32 pixels"
    assert reasons["white.png"] == "everything is white at 32 x 32 pixels"
    assert len(sampler.masks) == 1
    assert all(name in caplog.text for name in reasons)
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match=r"none of the 4 images in .* can be used as a mask"):
        FolderMasks(32, 0, tmp_path)


def test_folder_must_exist_and_hold_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        FolderMasks(32, 0, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no image in"):
        FolderMasks(32, 0, tmp_path)


# --- outlines of users and of PASCAL VOC ----------------------------------------------------------


def test_traced_outline_of_known_shapes():
    y, x = np.mgrid[:200, :300]
    disc = trace_outline((x - 140) ** 2 + (y - 90) ** 2 < 60**2)
    assert disc.dtype == np.int16
    assert disc.shape == (96, 2)
    assert np.hypot(*disc.T) == pytest.approx(np.full(96, UNIT / np.sqrt(np.pi)), rel=0.01)
    bar = trace_outline((x > 50) & (y > 170))  # cut off by two edges of the image
    assert np.ptp(bar, axis=0) == pytest.approx(UNIT * np.sqrt((249 / 29, 29 / 249)), rel=0.05)
    ring = trace_outline(np.abs(np.hypot(x - 140, y - 90) - 60) < 15)
    assert np.hypot(*ring.T) == pytest.approx(np.hypot(*disc.T), rel=0.02)  # the hole is filled
    for outline in (disc, bar, ring):
        assert signed_area(outline.astype(float)) == pytest.approx(UNIT**2, rel=0.002)
    assert trace_outline(np.zeros((50, 50), bool)) is None
    comb = (x % 4 < 2) & (y > 20) | (y > 180)
    for outline in (trace_outline(comb, (0.001,)),):
        assert outline is None  # teeth are too close for any deformation


def test_voc_objects_become_outlines(devkit):
    outlines = voc_outlines(devkit)
    assert outlines.shape == (3, 96, 2)  # the speck is too small, void borders are no object
    extents = [np.ptp(outline, axis=0) for outline in outlines.double().numpy() / UNIT]
    assert extents[0] == pytest.approx([1.128, 1.128], rel=0.02)
    assert extents[1] == pytest.approx(np.sqrt([60 / 90, 90 / 60]), rel=0.03)
    assert extents[2] == pytest.approx(np.sqrt([130 / 41, 41 / 130]), rel=0.03)
    assert torch.equal(voc_outlines(devkit / "VOC2012"), outlines)
    assert isinstance(build_mask_sampler("voc", 64, 0, voc_root=devkit), RegionMasks)

    (devkit / "VOC2012/ImageSets/Segmentation/train.txt").write_text("2007_000002\n")
    assert torch.equal(voc_outlines(devkit), outlines[2:])
    (devkit / "VOC2012/ImageSets/Segmentation/train.txt").unlink()
    assert torch.equal(voc_outlines(devkit), outlines)


def test_voc_errors_name_the_trouble(devkit, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        voc_outlines(elsewhere / "nowhere")
    (elsewhere / "photos").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"expected VOC2012/SegmentationObject.*found photos"
    ):
        voc_outlines(elsewhere)
    listed = devkit / "VOC2012/ImageSets/Segmentation/train.txt"
    listed.write_text("2007_000001\n2007_000009\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* first: 2007_000009.png"):
        voc_outlines(devkit)
    listed.write_text("2007_000001\n")
    path = devkit / "VOC2012/SegmentationObject/2007_000001.png"
    Image.new("RGB", (90, 90)).save(path)
    with pytest.raises(ValueError, match="has mode RGB, not a palette"):
        voc_outlines(devkit)
    Image.new("P", (90, 90)).save(path)
    with pytest.raises(ValueError, match="no object to use in the 1 images"):
        voc_outlines(devkit)
