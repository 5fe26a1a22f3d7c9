"""The registries are the only source of names, and the tables of the documentation follow them."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from context_encoder.config import PRESETS, PRETEXTS
from context_encoder.masks import MASKS
from context_encoder.models import MODELS
from context_encoder.transfer.registry import TRANSFERS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "context_encoder"
REGISTRIES = {"mask": MASKS, "model": MODELS, "pretext": PRETEXTS, "transfer": TRANSFERS}

# What is spelt like a name and means something else: (file, word).
OTHER_MEANINGS = {
    # The stream of random words that silhouettes and VOC's objects are drawn from.
    ("masks/region.py", "region"),
    # Its argument that says what is predicted.
    ("models/dcgan.py", "region"),
    # The option --voc.
    ("transfer/__main__.py", "voc"),
}


def names() -> dict[str, set[str]]:
    """Each name and alias with the files that may spell it out: that of its registration."""
    found: dict[str, set[str]] = {}
    for registry in REGISTRIES.values():
        for name in (*registry, *registry._aliases):
            module = registry.source(name).rpartition(".")[0]
            file = module.removeprefix("context_encoder.").replace(".", "/") + ".py"
            found.setdefault(name, set()).add(file)
    for registry in (MODELS, MASKS, PRETEXTS):
        for owner, spec in registry.items():
            module = registry.source(owner).rpartition(".")[0]
            for name in spec.presets:
                file = module.removeprefix("context_encoder.").replace(".", "/") + ".py"
                found.setdefault(name, set()).add(file)
    return found


def constants(tree: ast.AST) -> Iterator[ast.Constant]:
    """The strings of a file, without docstrings and without the values of presets.

    A preset says which mask, model and pretext go together: it must name those of other files.
    """
    if isinstance(tree, ast.Dict):
        for key, value in zip(tree.keys, tree.values, strict=True):
            named = isinstance(key, ast.Constant) and key.value in REGISTRIES
            if not (named and isinstance(value, ast.Constant)):
                yield from constants(value)
            if key is not None:
                yield from constants(key)
        return
    body = getattr(tree, "body", None)
    for child in ast.iter_child_nodes(tree):
        first = isinstance(body, list) and body and child is body[0]
        if first and isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        yield from constants(child)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        yield tree


def spelt_out(source: str, name: str) -> list[int]:
    """The lines in which a name is a string, or stands behind its option in one."""
    options = "|".join((*REGISTRIES, "masks", "preset"))
    option = re.compile(rf"--(?:{options}) (?:\w+ )*{re.escape(name)}\b(?!-)")
    return [
        constant.lineno
        for constant in constants(ast.parse(source))
        if constant.value == name or option.search(str(constant.value))
    ]


@pytest.mark.parametrize("name", sorted(names()))
def test_no_other_file_spells_a_name_out(name: str) -> None:
    own = names()[name]
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file not in own and (file, name) not in OTHER_MEANINGS:
            found += [f"{file}:{line}" for line in spelt_out(path.read_text(), name)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('if mask == "disc": pass', 1),
        ('"""The mask "disc"."""', 0),
        ('def f():\n    """disc"""\n    return f"use --mask disc or {f}"', 1),
        ('x = {"mask": "disc", "other": "disc"}', 1),
        ('x = "--mask disc-two"', 0),
        ('x: Literal["disc"] = "disc"', 2),
    ],
)
def test_a_name_that_is_spelt_out_is_seen(source: str, count: int) -> None:
    assert len(spelt_out(source, "disc")) == count


def test_every_name_has_a_registration_in_one_file() -> None:
    for registry in REGISTRIES.values():
        assert len(registry) > 1
        for name in registry:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
    assert len(PRESETS) == len(set(PRESETS)) > 1


def test_tables_in_the_documentation_follow_the_registries() -> None:
    tool = runpy.run_path(str(ROOT / "tools/docs_tables.py"))
    for file, marker in tool["PLACES"]:
        text = (ROOT / file).read_text()
        assert tool["with_tables"](file, text) == text, (
            f"the table {marker!r} in {file} is out of date: run python tools/docs_tables.py"
        )
