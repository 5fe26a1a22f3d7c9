"""Relative links of the documentation: files and anchors."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "bench").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    ROOT / "tests/README.md",
]


def without_code(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", without_code(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of one."""
    prose = re.sub(r"`[^`\n]*`", "code", without_code(text))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        there = target == page or target.exists()
        if there and anchor:
            there = anchor in anchors(text if target == page else target.read_text())
        if not there:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One `op`, two\n\n```\n# no heading\n```\n\n## One op, two\n"
    )
    page = tmp_path / "page.md"
    right = (
        "[a](other.md) [b](other.md#one-op-two) [c](other.md#one-op-two-1) [d](#here) "
        "[e](https://example.org/x)"
    )
    wrong = ["absent.md", "other.md#absent", "other.md#no-heading", "#absent"]
    text = f"# Here\n\n{right} `[f](code.md)`\n\n```\n[g](code.md)\n```\n"
    assert broken_links(page, text) == []
    assert broken_links(page, text + " ".join(f"[x\ny]({link})" for link in wrong)) == wrong
