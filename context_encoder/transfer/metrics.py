"""Average precision as PASCAL VOC's development kits compute it, and mean intersection over union.

``nan`` stands for a value that does not exist, such as the AP of a class without objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from context_encoder.transfer.boxes import iou

Rule = Literal["11-point", "area"]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def precision_recall(
    scores: FloatArray, correct: BoolArray, positives: int
) -> tuple[FloatArray, FloatArray]:
    """Precision and recall along the list sorted by score; the sorting is stable.

    Args:
        scores: ``(N,)``.
        correct: ``(N,)``.
        positives: number of positives, at least 1.
    """
    hits = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    return hits / np.arange(1, len(hits) + 1), hits / positives


def average_precision(precision: FloatArray, recall: FloatArray, rule: Rule) -> float:
    """Average precision of a curve from :func:`precision_recall`.

    "11-point" is VOC2007's: the mean, over recalls of 0, 0.1, .. 1, of the best precision at that
    recall or above. "area" is that of VOC2010 and later: the area under the curve after each
    precision was raised to the best one at a higher recall.
    """
    if rule == "11-point":
        # 1e-12: a recall of 0.3 as a ratio of counts must not miss the threshold by rounding.
        best = [precision[recall >= t / 10 - 1e-12].max(initial=0.0) for t in range(11)]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def classification_ap(scores: FloatArray, labels: NDArray[np.int64], rule: Rule) -> float:
    """AP of one class.

    Args:
        scores: ``(N,)``.
        labels: ``(N,)``: 1 present, 0 absent, -1 only as "difficult": left out.
    """
    counted = labels >= 0
    positives = int((labels == 1).sum())
    if not positives:
        return float("nan")
    curve = precision_recall(scores[counted], labels[counted] == 1, positives)
    return average_precision(*curve, rule)


def detection_ap(
    detections: Mapping[str, tuple[FloatArray, FloatArray]],
    truth: Mapping[str, tuple[FloatArray, BoolArray]],
    rule: Rule,
    min_iou: float = 0.5,
) -> float:
    """AP of one class by VOC's rules.

    Detections are processed by decreasing score. Each is compared with the object of its image
    that it overlaps most: below ``min_iou`` it is wrong; if that object is difficult it does not
    count; otherwise the first detection of the object is right and later ones are wrong.

    Args:
        detections: by image, boxes ``(N, 4)`` and scores ``(N,)``.
        truth: by image, boxes ``(M, 4)`` and whether they are difficult ``(M,)``.
        min_iou: IoU threshold; areas include the last pixel, as in VOC.
    """
    positives = sum(int((~difficult).sum()) for _, difficult in truth.values())
    if not positives:
        return float("nan")
    flat = [
        (float(score), name, number)
        for name, (_, scores) in detections.items()
        for number, score in enumerate(scores)
    ]
    order = np.argsort([-score for score, _, _ in flat], kind="stable")
    overlaps = {
        name: iou(boxes, truth[name][0]) if name in truth else np.zeros((len(boxes), 0))
        for name, (boxes, _) in detections.items()
    }
    found = {name: np.zeros(len(difficult), bool) for name, (_, difficult) in truth.items()}
    scores, correct = [], []
    for place in order:
        score, name, number = flat[place]
        row = overlaps[name][number]
        best = int(row.argmax()) if row.size else -1
        right = best >= 0 and bool(row[best] >= min_iou)
        if right:
            if truth[name][1][best]:
                continue
            right = not found[name][best]
            found[name][best] = True
        scores.append(score)
        correct.append(right)
    curve = precision_recall(np.array(scores), np.array(correct, bool), positives)
    return average_precision(*curve, rule)


def confusion(prediction: NDArray[np.int64], label: NDArray[np.int64], classes: int) -> FloatArray:
    """``(K, K)`` pixel counts, rows the true class, columns the predicted; labels 255 left out."""
    counted = label != 255
    index = classes * label[counted].astype(np.int64) + prediction[counted]
    counts = np.bincount(index.ravel(), minlength=classes**2)
    return np.asarray(counts.reshape(classes, classes), np.float64)


def iou_per_class(matrix: FloatArray) -> FloatArray:
    """Intersection over union from a confusion matrix; nan for a class in neither map."""
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    nothing = np.full(len(matrix), np.nan)
    return np.asarray(np.divide(hits, union, out=nothing, where=union > 0))


def mean(values: FloatArray | list[float]) -> float:
    """Mean of the values that exist; nan if there are none."""
    there = np.asarray(values)[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
