"""What means leave out, the announced time and the paper's table."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.stats import sem

from context_encoder.evaluation.schedule import Work, announcement, in_time, measure, work_bar
from context_encoder.evaluation.sheets import hash_order, most_fills
from context_encoder.evaluation.tables import Group, MethodResult, markdown, summary
from context_encoder.utils.metrics import FLAT_CONTRAST, hole_contrast


def test_flat_holes_are_counted_apart() -> None:
    """One hole that every method fills at 100 dB, among holes of 10 to 20."""
    psnr = [10.0, 12.0, 100.0, 20.0]
    method = MethodResult("m", "M", {"psnr": psnr, "feature_distance": [0.4, 0.2, 0.0, 0.3]})
    flat = [False, False, True, False]
    group = Group("squares", list("abcd"), [0] * 4, [0.1] * 4, [method], None, flat, [8, 8, 8, 16])
    means = summary(group, method)
    assert means["psnr"] == pytest.approx(14)
    assert means["psnr_median"] == 12
    assert means["psnr_standard_error"] == pytest.approx(sem([10, 12, 20]))
    assert means["feature_distance"] == pytest.approx(0.3)
    assert group.by_side() == {8: [0, 1], 16: [3]}
    assert group.bins((0, 1)) == {(0, 1): [0, 1, 3]}
    text = markdown("T", [], [group], (0, 1))
    assert (
        "1 of them is left out of all means and medians: the original has a contrast below 2 "
        in text
    )
    assert "| M | 14.00 ± " in text
    assert "| method | 8 px (n=2) | 16 px (n=1) | all (n=3) | flat (n=1) |" in text
    assert "| M | 11.00 / .3000 | 20.00 / .3000 | 14.00 / .3000 | 100.00 / .0000 |" in text
    # By covered area, with nothing else left.
    group = Group("block", list("ab"), [0, 0], [0.1, 0.2], [
        MethodResult("m", "M", {"psnr": [100.0, 90.0]})
    ], None, [True, True])  # fmt: skip
    assert summary(group, group.methods[0]) == {}
    text = markdown("T", [], [group], (0, 0.15, 1))
    assert "2 of them are left out" in text
    assert "| M | - | - |" in text
    assert "| method | flat (n=2) |" in text


def test_a_hole_is_flat_by_the_contrast_of_the_original() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((3, 3, 16, 16))
    images[1] = np.array([0.2, 0.5, 0.9])[:, None, None]  # a colour, whatever surrounds it
    images[1, :, :4] = rng.random((3, 4, 16))
    images[2] = 0.5 + rng.choice([-1.9, 1.9], (3, 16, 16)) / 255
    mask = np.zeros((3, 1, 16, 16), bool)
    mask[:, :, 6:12, 3:9] = True
    found = hole_contrast(torch.from_numpy(images).float(), torch.from_numpy(mask)).numpy()
    for i in range(3):
        inside = images[i][:, mask[i, 0]]
        expected = np.sqrt(inside.var(axis=1).mean())
        assert found[i] == pytest.approx(expected, abs=1e-6)
    assert (found < FLAT_CONTRAST).tolist() == [False, True, True]


def test_cases_of_a_sheet_are_chosen_by_a_hash() -> None:
    names, crops = [f"{i}.jpg" for i in (3, 1, 2, 1)], [0, 0, 0, 1]
    group = Group("squares", names, crops, [0.1] * 4, [], None, [False, False, True, False])
    keys = {i: f"{names[i]}:{crops[i]}".encode() for i in (0, 1, 3)}  # 2 is flat
    assert hash_order(group) == sorted(keys, key=lambda i: hashlib.sha256(keys[i]).hexdigest())
    assert most_fills(images=100, methods=10, shown=6) == 5 * 10 + 16 * 5
    assert most_fills(images=3, methods=2, shown=1) == 3 * 2 + 3


def test_the_time_is_that_of_the_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def method(seconds: float, first: float = 0.0):
        state = {"loaded": False}

        def trial(images: int) -> None:
            clock[0] += images * seconds + (0 if state["loaded"] else first)
            state["loaded"] = True

        return trial

    slow = method(2.0, first=30.0)  # loads something on its first call, which happens once
    works = [Work("slow", 100, slow), Work("slow", 20, slow), Work("fast", 100, method(0.01))]
    measure(works)
    assert [work.seconds for work in works] == pytest.approx([2.0, 2.0, 0.01])
    assert announcement(works) == ("about 4 min for 220 fills; slow: slow 4 min (2.0 s per image)")
    assert [in_time(s) for s in (0.2, 89, 100, 5000, 9000)] == [
        "1 s", "89 s", "2 min", "83 min", "2.5 h",
    ]  # fmt: skip
    with work_bar(works) as bar:
        assert bar.total == pytest.approx(241)


def test_the_papers_table_has_the_membrane_beside_it() -> None:
    """Ordered by PSNR: the membrane lies between the paper's earlier and its later network."""
    text = markdown("T", [], [], (0, 1))
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.endswith("dB |")]
    assert [row.split(" | ")[-1] for row in rows] == [
        f"{value:.2f} dB |" for value in (12.79, 14.70, 16.98, 17.23, 17.59, 17.68, 18.58)
    ]
    assert "| *membrane (harmonic interpolation)* | 11.04 % | 2.22 % | 17.68 dB |" in text
    assert "0.90 dB ahead of the membrane" in text
