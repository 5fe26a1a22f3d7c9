"""Metrics, boxes, geometry and readers of the transfer commands, against independent truths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from context_encoder.models import build_model
from context_encoder.transfer import boxes as box_ops
from context_encoder.transfer.classify import Classify, ClassifyConfig
from context_encoder.transfer.detect import Detect, DetectConfig, FastRCNN, _Sample, sample_rois
from context_encoder.transfer.labelled_folder import stratified
from context_encoder.transfer.logistic import fit_logistic
from context_encoder.transfer.metrics import (
    average_precision,
    classification_ap,
    confusion,
    detection_ap,
    iou_per_class,
    precision_recall,
)
from context_encoder.transfer.proposals import dense_grid, find_proposals, read_proposals
from context_encoder.transfer.receptive_field import ReceptiveField, Upsampling, bilinear_kernel
from context_encoder.transfer.segment import FCN, Segment, SegmentConfig
from context_encoder.transfer.voc import read_labels, read_split
from tests.helpers.vocdevkit import CLASSES, make_devkit


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_devkit(tmp_path_factory.mktemp("devkit"), train=8, test=8)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.integers(0, 40, (count, 2))
    return np.concatenate([low, low + rng.integers(0, 40, (count, 2))], axis=1).astype(np.float64)


# --- average precision --------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    # Right, wrong, right of three to be found: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    curve = precision_recall(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 3)
    assert average_precision(*curve, "area") == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # Recall 0, .1, .2, .3 have 1; .4, .5, .6 have 2/3; the other four 0.
    assert average_precision(*curve, "11-point") == pytest.approx((4 + 3 * 2 / 3) / 11)
    nothing = precision_recall(np.zeros(0), np.zeros(0, bool), 3)
    assert average_precision(*nothing, "area") == average_precision(*nothing, "11-point") == 0


def test_area_is_scikit_learns_where_the_envelope_raises_nothing_and_never_below() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(200):
        labels = rng.integers(0, 2, 6)
        if not labels.any():
            continue
        scores = rng.permutation(6).astype(float)
        ours = classification_ap(scores, labels, "area")
        theirs = metrics.average_precision_score(labels, scores)
        assert ours >= theirs - 1e-12
        precision, _ = precision_recall(scores, labels == 1, int(labels.sum()))
        at_hits = precision[labels[np.argsort(-scores)] == 1]
        if (np.diff(at_hits) <= 0).all():
            assert ours == pytest.approx(theirs)
            equal += 1
    assert equal > 20


def test_difficult_pictures_do_not_count() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    with_difficult = classification_ap(scores, np.array([1, -1, 0, 1]), "area")
    assert with_difficult == classification_ap(scores[[0, 2, 3]], np.array([1, 0, 1]), "area")
    assert np.isnan(classification_ap(scores, np.array([0, -1, 0, 0]), "area"))


def test_detection_matches_each_object_once_and_ignores_difficult_ones() -> None:
    truth = {
        "a": (np.array([[0, 0, 9, 9], [20, 20, 29, 29.0]]), np.array([False, True])),
        "b": (np.array([[0, 0, 9, 9.0]]), np.array([False])),
    }
    detections = {
        "a": (
            np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29.0]]),
            np.array([0.9, 0.8, 0.7]),  # right; found already; difficult
        ),
        "b": (np.array([[0, 5, 9, 14], [0, 0, 9, 6.0]]), np.array([0.6, 0.5])),  # 1/3; 0.7
        "c": (np.array([[0, 0, 9, 9.0]]), np.array([0.95])),  # nothing there
    }
    # By score: wrong, right, wrong, (left out), wrong, right; two to be found.
    curve = precision_recall(
        np.arange(5.0)[::-1], np.array([False, True, False, False, True]), positives=2
    )
    for rule in ("area", "11-point"):
        assert detection_ap(detections, truth, rule) == average_precision(*curve, rule)
    # 1/2 up to recall 1/2, then 2/5.
    assert detection_ap(detections, truth, "area") == pytest.approx(0.5 * 0.5 + 0.5 * 0.4)


def test_iou_per_class_is_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (3, 20, 20))
    label[rng.random(label.shape) < 0.1] = 255
    prediction = np.where(rng.random(label.shape) < 0.5, label % 255 % 5, rng.integers(0, 5))
    ours = iou_per_class(confusion(prediction, label, 5))
    judge = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    theirs = judge(torch.from_numpy(prediction), torch.from_numpy(label))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    # A class without annotation and prediction has no value; it is not 0.
    only = iou_per_class(confusion(np.zeros((2, 2), int), np.zeros((2, 2), int), 2))
    assert only[0] == 1
    assert np.isnan(only[1])


# --- boxes --------------------------------------------------------------------------------------


def test_iou_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 12), random_boxes(rng, 9)

    def pixels(box: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = box.astype(int)
        plane = np.zeros((90, 90), bool)
        plane[y1 : y2 + 1, x1 : x2 + 1] = True
        return plane

    for i, one in enumerate(a):
        for j, other in enumerate(b):
            p, q = pixels(one), pixels(other)
            assert box_ops.iou(a, b)[i, j] == pytest.approx((p & q).sum() / (p | q).sum())


def test_coding_is_inverted_and_mirrored() -> None:
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 20), random_boxes(rng, 20)
    coded = box_ops.encode(a, b)
    np.testing.assert_allclose(box_ops.decode(a, coded), b, atol=1e-9)
    # Detect.sample relies on this: mirroring changes only the sign of the shift in x.
    mirrored = box_ops.encode(box_ops.flip(a, 100), box_ops.flip(b, 100))
    np.testing.assert_allclose(mirrored, coded * [-1, 1, 1, 1], atol=1e-9)


def test_nms_is_the_definition() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        boxes, scores = random_boxes(rng, 25), rng.permutation(25).astype(float)
        kept: list[int] = []
        for i in sorted(range(25), key=lambda i: -scores[i]):
            if all(box_ops.iou(boxes[[i]], boxes[[k]])[0, 0] <= 0.3 for k in kept):
                kept.append(i)
        assert box_ops.nms(boxes, scores, 0.3).tolist() == kept
    assert box_ops.nms(np.zeros((0, 4)), np.zeros(0), 0.3).tolist() == []


def naive_roi_pool(features: torch.Tensor, box: list[float], stride: int, size: int):
    _, height, width = features.shape
    x1, y1, x2, y2 = (int(np.floor(v / stride + 0.5)) for v in box)
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    out = []
    for channel in features:
        for i in range(size):
            for j in range(size):
                cells = [
                    channel[y, x]
                    for y in range(y1 + i * h // size, y1 + -(-(i + 1) * h // size))
                    for x in range(x1 + j * w // size, x1 + -(-(j + 1) * w // size))
                    if y < height and x < width
                ]
                out.append(torch.stack(cells).max() if cells else channel.new_zeros(()))
    return torch.stack(out).view(len(features), size, size)


def test_roi_max_pool_and_its_gradient_are_the_naive_loops() -> None:
    rng = np.random.default_rng(3)
    features = torch.randn(2, 7, 9, dtype=torch.float64, requires_grad=True)
    low = rng.uniform(0, 60, (12, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(0, 60, (12, 2))], axis=1))
    ours = box_ops.roi_max_pool(features, boxes, 8, 3)
    theirs = torch.stack([naive_roi_pool(features, b, 8, 3) for b in boxes.tolist()])
    assert torch.equal(ours, theirs)
    weight = torch.randn_like(ours)
    (ours_gradient,) = torch.autograd.grad((ours * weight).sum(), features)
    (theirs_gradient,) = torch.autograd.grad((theirs * weight).sum(), features)
    torch.testing.assert_close(ours_gradient, theirs_gradient)
    assert box_ops.roi_max_pool(features, boxes[:0], 8, 3).shape == (0, 2, 3, 3)


def test_rois_are_chosen_by_overlap() -> None:
    truth = np.array([[10, 10, 49, 49], [60, 10, 89, 39.0]])
    proposals = dense_grid(100, 80)
    boxes, labels, targets = sample_rois(
        proposals, truth, np.array([3, 1]), 32, np.random.default_rng(0)
    )
    overlaps = box_ops.iou(boxes, truth)
    positive = labels > 0
    assert 0 < positive.sum() <= 8
    assert len(boxes) == 32
    assert (overlaps[positive].max(1) >= 0.5).all()
    assert ((overlaps[~positive].max(1) >= 0.1) & (overlaps[~positive].max(1) < 0.5)).all()
    matched = overlaps[positive].argmax(1)
    assert (labels[positive] == np.array([3, 1])[matched]).all()
    decoded = box_ops.decode(boxes[positive], targets[positive])
    np.testing.assert_allclose(decoded, truth[matched], atol=1e-9)
    # An image without objects gives background only.
    _, labels, _ = sample_rois(
        proposals, truth[:0], np.zeros(0, np.int64), 8, np.random.default_rng(0)
    )
    assert labels.tolist() == [0] * 8


def test_every_place_of_a_picture_has_a_box_of_the_grid_near() -> None:
    boxes = dense_grid(120, 90)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 119).all()
    assert (boxes[:, 3] <= 89).all()
    rng = np.random.default_rng(0)
    for side in (25, 40, 60):
        x, y = rng.integers(0, 120 - side), rng.integers(0, 90 - side)
        square = np.array([[x, y, x + side - 1, y + side - 1.0]])
        assert box_ops.iou(boxes, square).max() > 0.5


# --- geometry -----------------------------------------------------------------------------------


def test_alexnet_has_the_published_stride_and_crop() -> None:
    geometry = ReceptiveField.of(build_model("alexnet").encoder)
    assert geometry.stride == 32
    assert (227 - geometry.extent) // 32 + 1 == 6
    # FCN-AlexNet pads by 100, upsamples by a kernel of 63 and crops at 18.
    upsampling = Upsampling.fit(geometry.then(6), padding=100)
    assert (upsampling.kernel, upsampling.crop) == (63, 18)


@pytest.mark.parametrize("kernel", [1, 3, 8])
def test_fcn_covers_pictures_of_every_size(kernel: int) -> None:
    network = build_model("small")
    fcn = FCN(network, 4, 8, kernel, 0.0).eval()
    for height, width in ((1, 9), (64, 50), (33, 71)):
        with torch.no_grad():
            assert fcn(torch.zeros(1, 3, height, width)).shape == (1, 4, height, width)


def test_fcn_scores_lie_where_the_picture_is() -> None:
    """The upsampled score of a cell is largest at the centre of its receptive field by autograd."""
    network = build_model("small")
    fcn = FCN(network, 1, 4, 3, 0.0).eval()
    geometry = ReceptiveField.of(fcn.encoder).then(3)
    for stage in fcn.encoder:  # an average in place of each convolution: centred, no dead units
        stage.conv.weight.data.fill_(1.0)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    padding = fcn.upsampling.padding
    cells = fcn.encoder(F.pad(x, [padding] * 4))
    window = F.avg_pool2d(cells, 3, 1)
    i = window.shape[2] // 2
    (gradient,) = torch.autograd.grad(window[0, 0, i, i], x)
    weight = gradient[0].abs().sum(0)
    centre = float((weight.sum(1) * torch.arange(64.0)).sum() / weight.sum())
    assert centre == pytest.approx(geometry.offset + geometry.stride * i - padding, abs=0.01)
    impulse = torch.zeros(1, 1, *window.shape[2:])
    impulse[0, 0, i, i] = 1
    up = fcn.upscore(impulse)[0, 0, fcn.upsampling.crop :, fcn.upsampling.crop :]
    peak = float((up.sum(1) * torch.arange(float(len(up)))).sum() / up.sum())
    assert peak == pytest.approx(centre, abs=0.01)


def test_bilinear_upsampling_keeps_a_constant() -> None:
    for kernel, stride in ((63, 32), (16, 8), (15, 8)):
        ones = torch.ones(1, 1, 4, 4)
        up = F.conv_transpose2d(ones, bilinear_kernel(kernel)[None, None], stride=stride)
        middle = up[0, 0, stride:-stride, stride:-stride]
        torch.testing.assert_close(middle, torch.ones_like(middle))


def test_detection_pads_so_that_cells_lie_on_multiples_of_the_stride() -> None:
    for name, stride in (("alexnet", 16), ("small", 8)):
        network = build_model(name)
        model = FastRCNN(network, 3, 8, 2, 0.0)
        assert model.stride == stride
        assert abs(ReceptiveField.of(model.encoder).offset - model.padding) <= 0.5
    assert [name for name, _ in FastRCNN(network, 3, 8, 2, 0.0).encoder.named_children()] == [
        "conv1",
        "conv2",
        "conv3",
    ]


def test_fcn_drops_single_numbers_not_channels() -> None:
    head = FCN(build_model("small"), 2, 64, 1, 0.5).head.train()
    for name in ("drop6", "drop7"):
        dropped = head.get_submodule(name)(torch.ones(1, 64, 8, 8)) == 0
        assert 0.3 < dropped.float().mean() < 0.7
        assert not dropped.flatten(2).all(2).any()


# --- probe --------------------------------------------------------------------------------------


def test_logistic_regression_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=generator)
    y = (x[:, :3] + torch.randn(200, 3, generator=generator)).argmax(1)
    strengths = (0.3, 0.01)
    for l2, theta in zip(strengths, fit_logistic(x, y, 3, strengths), strict=True):
        theirs = linear_model.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=5000)
        theirs.fit(x.numpy(), y.numpy())
        ours = F.softmax(torch.addmm(theta[-1], x, theta[:-1]), 1).numpy()
        np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=2e-3)


def test_stratified_takes_a_part_of_each_class() -> None:
    labels = [0] * 10 + [1] * 20 + [2] * 2
    first, second = stratified(labels, 0.2, seed=3)
    assert sorted(first + second) == list(range(32))
    assert np.bincount(np.array(labels)[second]).tolist() == [2, 4, 1]
    assert stratified(labels, 0.2, seed=3) == (first, second)
    assert stratified(labels, 0.2, seed=4) != (first, second)


# --- readers ------------------------------------------------------------------------------------


def test_a_devkit_is_read(devkit: Path) -> None:
    items = read_split(devkit, "VOC2007", "trainval", "Main", CLASSES)
    assert len(items) == 8
    assert [len(item.boxes) for item in items[:2]] == [1, 2]
    assert items[3].difficult.tolist() == [False, True]
    presence = items[3].presence(3)
    assert sorted(presence.tolist()) == [-1, 0, 1]
    segmented = read_split(devkit, "VOC2012", "train", "Segmentation", CLASSES)
    labels = read_labels(segmented[0], 3)
    assert set(np.unique(labels)) == {0, 1 + int(items[0].labels[0]), 255}
    rows, columns = np.nonzero((labels > 0) & (labels < 255))
    # The annotation counts from 1 and names the last pixel; Item counts from 0.
    assert items[0].boxes[0].tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_wrong_devkits_are_told(devkit: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_split(tmp_path / "none", "VOC2007", "test", "Main")
    with pytest.raises(FileNotFoundError, match="does not look like a VOCdevkit"):
        read_split(tmp_path, "VOC2007", "test", "Main")
    with pytest.raises(FileNotFoundError, match=r"split 'minival' is missing.*test, trainval"):
        read_split(devkit, "VOC2007", "minival", "Main", CLASSES)
    with pytest.raises(ValueError, match=r"object of class '(stripes|dots|flame)', which is none"):
        read_split(devkit, "VOC2007", "test", "Main")
    flame = read_split(devkit, "VOC2012", "val", "Segmentation", CLASSES)[1]
    assert 2 in read_split(devkit, "VOC2007", "test", "Main", CLASSES)[1].labels
    with pytest.raises(ValueError, match="has class 3; there are 2"):
        read_labels(flame, 2)
    other = make_devkit(tmp_path / "broken", 2, 2)
    (other / "VOC2007/Annotations/100001.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images.*Annotations.*100001"):
        read_split(other, "VOC2007", "test", "Main", CLASSES)
    note = other / "VOC2007/Annotations/100000.xml"
    note.write_text(note.read_text().replace("<xmin>", "<xmin>one "))
    (other / "VOC2007/ImageSets/Main/test.txt").write_text("100000")
    with pytest.raises(ValueError, match=r"100000.xml has a box .*one"):
        read_split(other, "VOC2007", "test", "Main", CLASSES)
    png = other / "VOC2007/SegmentationClass/000000.png"
    Image.open(png).convert("RGB").save(png)
    with pytest.raises(ValueError, match="mode RGB, not a palette"):
        read_labels(read_split(other, "VOC2012", "train", "Segmentation", CLASSES)[0], 3)


def test_proposals_of_every_format_are_the_same(tmp_path: Path) -> None:
    boxes = {"000001": np.array([[0, 1, 10, 20], [3, 4, 5, 6.0]]), "000002": np.ones((1, 4))}
    np.savez(tmp_path / "p.npz", **boxes)
    (tmp_path / "p.json").write_text(json.dumps({k: v.tolist() for k, v in boxes.items()}))
    cells, names = np.empty((1, 2), object), np.empty((2, 1), object)
    for i, (name, value) in enumerate(boxes.items()):
        names[i, 0] = name
        cells[0, i] = value[:, (1, 0, 3, 2)] + 1
    savemat(tmp_path / "p.mat", {"images": names, "boxes": cells})
    for suffix in ("npz", "json", "mat"):
        read = read_proposals(tmp_path / f"p.{suffix}")
        assert read.keys() == boxes.keys()
        for name, value in boxes.items():
            assert np.array_equal(read[name], value)
    (tmp_path / "q.json").write_text('{"a": [[5, 0, 1, 9]]}')
    with pytest.raises(ValueError, match="boxes of a are not x1, y1, x2, y2"):
        read_proposals(tmp_path / "q.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_proposals(tmp_path / "r.json")
    whole = (tmp_path / "p.npz").read_bytes()
    for name, content in (("s.npz", whole[: len(whole) // 2]), ("s.mat", b"x"), ("s.json", b"[]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be used"):
            read_proposals(tmp_path / name)


def test_without_selective_search_a_grid_is_taken_and_the_reason_told(
    devkit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = "no module ximgproc: pip install opencv-contrib-python-headless"
    monkeypatch.setattr("context_encoder.transfer.proposals.why_not", lambda module: reason)
    items = read_split(devkit, "VOC2007", "test", "Main", CLASSES)
    with caplog.at_level("INFO", "context_encoder"):
        found = find_proposals(items, None, tmp_path / "proposals.npz", 50)
    assert f"a dense grid (no `proposals`, no selective search: {reason})" in caplog.text
    assert all(len(found[item.name]) == 50 for item in items)
    assert not (tmp_path / "proposals.npz").exists()


def test_selective_search_goes_on_where_it_was_stopped(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Search:
        calls, stop_at = 0, 3

        def setBaseImage(self, pixels: np.ndarray) -> None:  # noqa: N802 - OpenCV's names
            Search.calls += 1
            if Search.calls == Search.stop_at:
                raise KeyboardInterrupt

        def switchToSelectiveSearchFast(self) -> None:  # noqa: N802
            pass

        def process(self) -> np.ndarray:
            return np.array([[1, 2, 10, 20]])

    monkeypatch.setattr("context_encoder.transfer.proposals._selective_search", Search)
    items = read_split(devkit, "VOC2007", "test", "Main", CLASSES)
    cache = tmp_path / "kept/proposals.npz"
    with pytest.raises(KeyboardInterrupt):
        find_proposals(items, None, cache, 100)
    assert len(read_proposals(cache)) == 2
    found = find_proposals(items, None, cache, 100)
    assert Search.calls == 3 + len(items) - 2
    assert all(boxes.tolist() == [[1, 2, 10, 21]] for boxes in found.values())
    assert len(found) == len(items)


# --- devices and synchronisation ------------------------------------------------------------------


def test_losses_neither_mix_devices_nor_wait() -> None:
    """Meta tensors cannot be combined with other devices or return numbers to the host."""
    device = torch.device("meta")
    small = build_model("small")
    size = small.image_size
    square, picture = (torch.zeros(3, n, m, dtype=torch.uint8) for n, m in ((size,) * 2, (90, 100)))
    rois = torch.tensor([[1.0, 1.0, 40.0, 40.0], [0.0, 0.0, 9.0, 9.0]])
    classify = Classify(ClassifyConfig(fc_dim=8), small, [], [])
    segment = Segment(SegmentConfig(fc_dim=8), build_model("small"), [], [])
    detect = Detect(DetectConfig(fc_dim=8), build_model("small"), [], [], {})
    for task, sample in (
        (classify, (square, torch.ones(20, dtype=torch.int64))),
        (segment, (picture, torch.zeros(90, 100, dtype=torch.int64))),
        (detect, _Sample(picture, rois, torch.tensor([3, 0]), torch.zeros(2, 4))),
    ):
        task.model.to(device)
        losses = task.losses([sample, sample], device)
        assert all(loss.is_meta and loss.dim() == 0 for loss in losses.values())
        losses["loss"].backward()
