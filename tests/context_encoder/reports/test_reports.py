"""Reports: figures, escaping, and the page in Chromium, which must ask for nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from context_encoder.config import TrainConfig
from context_encoder.evaluation.report import evaluation_report
from context_encoder.evaluation.tables import Group, MethodResult, write_json
from context_encoder.report import main
from context_encoder.reports import Series, line_chart
from context_encoder.reports.chart import ticks
from tests.helpers.browser import open_browser

HOSTILE = "<script>alert(1)</script>&\"'"
PSNR = {"telea": [20.0, 18.0, 9.0], "membrane": [21.0, 22.0, 8.5], "a run": [19.0, 30.0, 10.5]}


def group() -> Group:
    """Three images of two photographs; the third is mostly missing."""
    methods = [
        MethodResult(name, HOSTILE if name == "a run" else name, {"psnr": values})
        for name, values in PSNR.items()
    ]
    return Group("region", ["a", "a", "b"], [0, 1, 0], [0.02, 0.07, 0.45], methods)


def write_run(folder: Path, psnr: list[float], **options: Any) -> Path:
    """What training writes before its first checkpoint, and a sheet."""
    (folder / "samples").mkdir(parents=True)
    config = TrainConfig(preset="laptop", **options)
    (folder / "config.json").write_text(config.model_dump_json())
    lines = [{"split": "train", "step": 2, "loss": 0.5, "loss_rec": 0.5}]
    lines += [{"split": "val", "step": 10 * i, "psnr": v} for i, v in enumerate(psnr, 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"split": "val", "st')  # killed while writing
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "samples" / "step_0000010.png")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file; in the end no other request was made and no error reported."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    asked: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: asked.append(request.url))

    def opened(path: Path) -> Any:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda text: problems.append(text.text))
        page.on("dialog", lambda dialog: problems.append("a script of the contents ran"))
        page.goto(path.as_uri())
        return page

    yield opened
    context.close()
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert problems == []


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"section:first-of-type tbody tr td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_an_evaluation_sorts_hides_curves_and_enlarges(open_page: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "region_1.png"
    Image.fromarray(np.full((20, 40, 3), (200, 30, 90), np.uint8)).save(sheet)
    document = evaluation_report(
        f"Compared {HOSTILE}", [HOSTILE], [group()], [0, 0.05, 0.1, 0.5], {"region": [sheet]}
    )
    path = tmp_path / "report.html"
    path.write_text(document.html(), encoding="utf-8")
    page = open_page(path)
    assert page.title() == f"Compared {HOSTILE}"
    assert page.locator(".facts li").all_inner_texts() == [HOSTILE]
    # Means by hand: 15.67, 17.17, 19.83.
    assert column(page, 2) == ["15.67 dB", "17.17 dB", "19.83 dB"]
    assert page.locator("td.strong").all_inner_texts() == ["19.83 dB"]
    page.click("th:nth-child(2) button")
    assert column(page, 2) == ["19.83 dB", "17.17 dB", "15.67 dB"]
    assert page.locator("th:nth-child(2)").get_attribute("aria-sort") == "descending"
    page.click("th:nth-child(2) button")
    assert column(page, 1) == ["telea", "membrane", HOSTILE]
    page.click("th:nth-child(3) button")  # the median
    assert column(page, 3) == ["21.00 dB", "19.00 dB", "18.00 dB"]
    page.click("th:nth-child(1) button")
    assert column(page, 1) == sorted([*list(PSNR)[:2], HOSTILE], key=str.lower)

    # One chart by covered area, whose points are those of the bins.
    dots = page.locator("svg .series:nth-of-type(1) circle title").all_text_contents()
    assert dots == ["telea: 2, 20", "telea: 7, 18", "telea: 45, 9"]
    assert page.locator("svg .series.off").count() == 0
    page.click("svg .entry[data-series='1'] text")
    assert page.locator("svg .series.off").count() == 1

    page.click(".zoom")
    shown = page.locator("#viewer img").bounding_box()
    assert shown["width"] == pytest.approx(1100, abs=2)
    page.mouse.move(550, 400)
    page.mouse.wheel(0, -200)
    page.wait_for_function(
        "() => document.querySelector('#viewer img').style.transform && scale > 30"
    )
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_training_runs_are_overlaid(
    open_page: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_run(tmp_path / "first", [15.0, 18.0, 17.0])
    second = write_run(tmp_path / "sec<b>ond", [14.0, 19.5], lr=0.002)
    assert main([str(first), str(second)]) == 0
    path = first / "report.html"
    assert str(path) in capsys.readouterr().out
    page = open_page(path)
    assert page.title() == "Training: first, sec<b>ond"
    # Best and last validation.
    assert column(page, 5) == ["18.000", "19.500"]
    assert column(page, 6) == ["20", "20"]
    assert column(page, 7) == ["17.000", "19.500"]
    titles = page.locator("svg .title").all_text_contents()
    assert titles == ["PSNR in the hole, dB", "loss", "reconstruction loss"]
    points = page.locator("svg").first.locator("circle title").all_text_contents()
    assert points[:3] == ["first: 10, 15", "first: 20, 18", "first: 30, 17"]
    assert points[3:] == ["sec<b>ond: 10, 14", "sec<b>ond: 20, 19.5"]
    rows = page.locator("section:last-of-type tbody tr")
    differing = [text.split("\t")[0] for text in rows.all_inner_texts()][:1]
    assert differing == ["lr"]
    assert page.locator("section:last-of-type td.strong").count() == 3
    assert page.locator(".facts li").count() == 2  # a line of each run was cut off
    assert page.locator("figure").count() == 2
    assert page.evaluate(
        "() => [...document.querySelectorAll('figure img')].every((i) => i.naturalWidth)"
    )


def write_results(
    folder: Path,
    methods: dict[str, list[float]],
    *,
    masks: str | None = "m",
    areas: tuple[float, ...] = (0.02, 0.07, 0.45),
    crops: str = "c",
) -> Path:
    """What an evaluation of three photographs writes, PSNR alone."""
    found = [MethodResult(name, name, {"psnr": values}) for name, values in methods.items()]
    one = Group("region", ["a", "b", "c"], [0, 0, 0], areas, found, digest=masks)
    about = {
        "config": {"seed": 1, "area_bins": [0, 0.05, 0.1, 0.5]},
        "versions": {"torch": "2"},
        "facts": ["three photographs"],
        "runs": {"net": {"weights_sha256": folder.name * 20}},
        "data": {"digest": crops},
    }
    folder.mkdir(parents=True)
    write_json(folder / "results.json", about, [one], [0, 0.05, 0.1, 0.5])
    return folder


def table(page: Any, section: int, number: int) -> list[list[str]]:
    """The cells of a table of a section."""
    rows = page.locator(f"section:nth-of-type({section}) table").nth(number).locator("tbody tr")
    return [text.split("\t") for text in rows.all_inner_texts()]


def test_evaluations_of_the_same_holes_are_beside_each_other(
    open_page: Any, tmp_path: Path
) -> None:
    telea = [20.0, 18.0, 9.0]
    a = write_results(tmp_path / "a/evaluation", {"net": [20.0, 21.0, 10.0], "telea": telea})
    b = write_results(tmp_path / "b/evaluation", {"net": [21.0, 23.0, 10.0], "telea": telea})
    other = write_results(tmp_path / "other", {"net": [30.0, 31.0, 32.0]}, masks="n")
    pixels = np.full((20, 40, 3), (200, 30, 90), np.uint8)
    Image.fromarray(pixels).save(b / "region.png")
    out = tmp_path / "compared.html"
    assert main([str(a), str(b / "results.json"), str(other), "--out", str(out)]) == 0
    page = open_page(out)
    assert page.title() == "Inpainting quality: a, b, other"
    titles = page.locator("section h2").all_inner_texts()
    assert titles == ["Region masks of a, b", "Region masks of other", "Settings of evaluations"]
    facts = page.locator(".facts li").all_inner_texts()
    assert facts[0].startswith("WARNING: region masks: not all evaluations are of the same holes")
    assert facts[0].endswith("must not be compared: a, b; other")
    # Telea gave the same in both, and appears once; the two networks are told apart.
    rows = table(page, 1, 0)
    assert [row[:2] for row in rows] == [
        ["net (a)", "17.00 dB"], ["telea", "15.67 dB"], ["net (b)", "18.00 dB"]
    ]  # fmt: skip
    # In pairs: 0, -3 and -1; 1, 2 and 0. The standard deviation over the square root of 3.
    assert table(page, 1, 1) == [
        ["telea", "-1.33 dB", f"{np.std([0, -3, -1], ddof=1) / 3**0.5:.2f} dB", "0 %"],
        ["net (b)", "+1.00 dB", f"{np.std([1, 2, 0], ddof=1) / 3**0.5:.2f} dB", "67 %"],
    ]
    assert table(page, 2, 0)[0][:2] == ["net", "31.00 dB"]
    assert page.locator("figcaption").all_inner_texts() == ["b: region"]
    assert "weights" in table(page, 3, 0)[1][0]  # of those that differ


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({}, True),
        ({"masks": None}, True),  # written before masks had a digest
        ({"masks": None, "areas": (0.02, 0.07, 0.44)}, False),
        ({"masks": "n"}, False),
        ({"crops": "d"}, False),
    ],
)
def test_other_holes_are_not_compared(tmp_path: Path, other: dict[str, Any], same: bool) -> None:
    a = write_results(tmp_path / "a", {"x": [1.0, 2.0, 3.0]})
    b = write_results(tmp_path / "b", {"y": [1.0, 2.0, 4.0]}, **other)
    assert main([str(a), str(b), "--out", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert ("WARNING" not in text) == same
    assert text.count("<h2>Region masks") == (1 if same else 2)


def write_transfer(folder: Path, command: str | None, ap: float, lr: float = 0.1) -> Path:
    """What a transfer writes; without a command, before its end."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"voc": "VOCdevkit", "lr": lr}))
    lines = [{"split": "train", "step": step, "loss": 2 - step / 10} for step in (1, 2)]
    if command is not None:
        lines.append({"split": "test", "step": 2, "ap_area": ap})
        found = {
            "command": command, "network": "small", "steps": 2, "unreadable": 0,
            "metrics": {"ap_area": ap}, "test_images": 5,
            "per_class": {"cat": {"ap_area": ap - 0.1}, "dog": {"ap_area": None}},
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(found))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_transfers_and_probes(open_page: Any, tmp_path: Path) -> None:
    runs = [
        write_transfer(tmp_path / "first", "voc-classify", 0.5),
        write_transfer(tmp_path / "second", "voc-classify", 0.625, lr=0.2),
        write_transfer(tmp_path / "running", None, 0),
    ]
    probes = []
    for name, accuracies in (("p", [0.5, 0.75]), ("q", [0.625, 0.5])):
        layers = {
            layer: {"accuracy": value, "deviation": 0.01, "accuracies": [value]}
            for layer, value in zip(("conv1", "conv2"), accuracies, strict=True)
        }
        found = {
            "network": name, "config": {"seeds": [0]}, "classes": ["x", "y"], "train_images": 8,
            "test_images": 4, "unreadable": 0, "chance": 0.5, "copies": 1, "layers": layers,
        }  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "probe.json").write_text(json.dumps(found))
        probes.append(tmp_path / name)
    trained = write_run(tmp_path / "pretrained", [15.0])
    paths = [str(path) for path in (*runs, *probes, trained)]
    assert main([*paths, "--out", str(tmp_path / "all.html")]) == 0
    page = open_page(tmp_path / "all.html")
    assert page.title() == "Comparison: first, second, running, p, q, pretrained"
    titles = page.locator("section h2").all_inner_texts()
    place = {title: number for number, title in enumerate(titles, 1)}
    classify = place["Results of voc-classify"]
    assert [row[2] for row in table(page, classify, 0)] == ["50.00 %", "62.50 %"]
    assert table(page, classify, 1) == [["cat", "40.00 %", "52.50 %"], ["dog", "", ""]]
    assert "Tests of voc-classify" not in titles  # one test each is no curve
    curve = page.locator(f"section:nth-of-type({place['Training of voc-classify']}) circle title")
    assert curve.all_text_contents()[:2] == ["first: 1, 1.9", "first: 2, 1.8"]
    assert place["Training of transfer without results yet"] > classify
    probed = place["Linear probes"]
    assert table(page, probed, 1) == [
        ["conv1", "50.00 % ± 1.00", "62.50 % ± 1.00"],
        ["conv2", "75.00 % ± 1.00", "50.00 % ± 1.00"],
    ]
    strong = page.locator(f"section:nth-of-type({probed}) td.strong").all_inner_texts()
    assert strong == ["62.50 % ± 1.00", "75.00 % ± 1.00"]
    facts = page.locator(".facts li").all_inner_texts()
    assert sum("copies of training images" in fact for fact in facts) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "RUN"], "is named twice"),
        (["DAMAGED"], "is not a results.json of context_encoder.evaluate, or is damaged"),
        (["RUN", "--out", "x.txt"], "must end in .html"),
        (["EMPTY"], "is not a run folder: it has no metrics.jsonl"),
        (["RUN", "--out", "FILE"], "already there; replace it with --overwrite"),
    ],
)
def test_errors(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", [15.0])
    (tmp_path / "empty").mkdir()
    file = tmp_path / "there.html"
    file.write_text("kept")
    damaged = write_results(tmp_path / "damaged", {"x": [1.0, 2.0, 3.0]}) / "results.json"
    damaged.write_text(damaged.read_text().replace("3.0", '"much"'))
    named = {
        "DAMAGED": str(damaged),
        "RUN": str(run),
        "EMPTY": str(tmp_path / "empty"),
        "FILE": str(file),
    }
    assert main([named.get(word, word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert file.read_text() == "kept"


def test_no_address_of_another_machine(tmp_path: Path) -> None:
    text = evaluation_report("t", [], [group()], [0, 0.5], {}).html()
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", text) == []
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 30, [0, 5, 10, 15, 20, 25, 30]), (0.13, 0.21, [0.14, 0.16, 0.18, 0.2]),
     (-1, 1, [-1, -0.5, 0, 0.5, 1]), (5, 5, [5]), (0, 100_000, [0, 20e3, 40e3, 60e3, 80e3, 1e5])],
)  # fmt: skip
def test_round_numbers_on_the_axes(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_that_are_not_finite_are_left_out() -> None:
    chart = line_chart("t", "x", "y", [Series("a", [(0, 1), (1, math.nan), (2, 3)])])
    assert chart is not None
    assert "nan" not in chart
    assert chart.count("<circle") == 2
    assert line_chart("t", "x", "y", [Series("a", [(0, math.inf)])]) is None
