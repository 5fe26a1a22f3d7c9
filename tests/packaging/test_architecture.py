"""The structure described in docs/design.md, checked against the source files."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "context_encoder"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
COMMANDS = {
    "context_encoder.evaluate",
    "context_encoder.export",
    "context_encoder.features",
    "context_encoder.inpaint",
    "context_encoder.neighbours",
    "context_encoder.pack",
    "context_encoder.report",
    "context_encoder.train",
    "context_encoder.weights",
    "context_encoder.demo.__main__",
    "context_encoder.transfer.__main__",
}


def imports(module: str, path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, at any level, by their defining names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = module.split(".")[: -node.level]
                source = ".".join([*base, *([node.module] if node.module else [])])
            # "from package import module" is an import of the module.
            found |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source
                for alias in node.names
            }
    return {name for name in found if name.partition(".")[0] == "context_encoder"}


KNOWN = {name.removesuffix(".__init__") for name in MODULES}
IMPORTS = {name: imports(name, path, KNOWN) for name, path in MODULES.items()}


def folder_of(module: str) -> str:
    """Folder below the package; empty for the commands and the package itself."""
    parts = module.removesuffix(".__init__").split(".")
    return parts[1] if (PACKAGE / "/".join(parts[1:2])).is_dir() and len(parts) > 1 else ""


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def test_the_commands_are_where_they_are_started() -> None:
    on_top = {name for name in MODULES if name.count(".") == 1 and not name.endswith("__init__")}
    in_folders = {"context_encoder.demo.__main__", "context_encoder.transfer.__main__"}
    assert on_top | in_folders == COMMANDS
    for name in COMMANDS:
        tree = ast.parse(MODULES[name].read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in tree.body), name


def test_no_module_imports_a_command() -> None:
    assert any(IMPORTS.values())
    wrong = {name: IMPORTS[name] & COMMANDS for name in MODULES if IMPORTS[name] & COMMANDS}
    assert not wrong


def test_folders_import_each_other_in_one_direction() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for name, found in IMPORTS.items():
        folder = folder_of(name)
        if folder:
            graph[folder] |= {folder_of(other) for other in found} - {folder, ""}
    assert len(graph) > 5
    assert cycle(graph) is None


def test_modules_import_each_other_in_one_direction() -> None:
    graph = {name.removesuffix(".__init__"): set(found) for name, found in IMPORTS.items()}
    del graph["context_encoder"]  # its names are imported on first use
    assert cycle(graph) is None


@pytest.mark.parametrize(
    ("graph", "found"),
    [({"a": {"b"}, "b": {"c"}, "c": set()}, False), ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, True)],
)
def test_a_cycle_is_seen(graph: dict[str, set[str]], found: bool) -> None:
    assert (cycle(graph) is not None) == found


def is_reexport(node: ast.stmt) -> bool:
    """Whether it is a docstring, an import, or ``__all__`` as a list of strings."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__" or (node.module or "").startswith("context_encoder.")
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return (
        isinstance(node, ast.Assign)
        and [ast.unparse(target) for target in node.targets] == ["__all__"]
        and isinstance(node.value, ast.List)
        and all(isinstance(item, ast.Constant) for item in node.value.elts)
    )


def test_init_files_hold_nothing_but_reexports() -> None:
    for name, path in MODULES.items():
        if not name.endswith("__init__") or name == "context_encoder.__init__":
            continue
        for node in ast.parse(path.read_text()).body:
            assert is_reexport(node), f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_the_package_itself_holds_nothing_but_reexports_on_first_use() -> None:
    """PEP 562's two functions and their table of names, so that importing it is cheap."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in ("__getattr__", "__dir__")
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_WHERE":
            continue
        elif isinstance(node, ast.If):
            assert ast.unparse(node.test) == "TYPE_CHECKING"
        else:
            assert is_reexport(node) or isinstance(node, ast.Import | ast.ImportFrom)


#: The helpers that know options: they parse ``--help`` and write parameters as options.
OPTION_HELPERS = {"context_encoder.utils.cli", "context_encoder.utils.options"}
OPTION = re.compile(r"(?<![\w`-])--[a-z]")


def options_in_strings(source: str) -> list[str]:
    """Strings, docstrings aside, that name a command's option: ``--batch-size``.

    A command to type (``python -m ...``) may have options, and so may Markdown for the
    documentation, where the option stands in backquotes.
    """
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    within = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and any(isinstance(p, ast.Constant) and "python -m " in str(p.value) for p in node.values)
        for part in node.values
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings | within
        and "python -m " not in node.value
        and OPTION.search(node.value)
    ]


def test_no_library_message_names_an_option() -> None:
    """It names the parameter, in backquotes; commands show that as their option."""
    found = {
        name: options_in_strings(path.read_text())
        for name, path in MODULES.items()
        if name not in COMMANDS | OPTION_HELPERS
    }
    assert {name: strings for name, strings in found.items() if strings} == {}


def test_an_option_in_a_message_is_seen() -> None:
    assert options_in_strings('raise ValueError(f"{x}: lower --batch-size")')
    assert options_in_strings('a = "--out is a file"')
    assert not options_in_strings('"""--out."""\na = "lower `batch_size`", "x -- y"')
    assert not options_in_strings('log.info("python -m package --resume %s", out)')
    assert not options_in_strings('a = f"python -m {package} --help", f"see `--voc-root`"')


def test_no_file_is_longer_than_700_lines() -> None:
    folders = ("bench", "buildtools", "cekernels", "context_encoder", "tests", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    long = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in long.items() if lines > 700} == {}


#: What replaces a file, or makes a name for a temporary one. Path.rename and Path.replace are
#: found by their one argument: str.replace and datetime.replace take others.
REPLACING = {"os.replace", "os.rename", "os.renames", "shutil.move", "os.link"}
TENSOR_WRITERS = {"save_file", "safetensors.torch.save_file"}


def calls(path: Path) -> set[str]:
    """What a file calls or imports, by the names written there; "x.rename" for any object's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            if isinstance(node.func, ast.Attribute):
                attribute = node.func.attr
                if attribute == "rename" or (attribute == "replace" and len(node.args) == 1):
                    if not node.keywords:
                        found.add(f"x.{attribute}")
                elif attribute in ("write_text", "write_bytes"):
                    found.add(f"x.{attribute}")
    return found


def test_one_module_replaces_files() -> None:
    """Results are written by utils/files.py, and by nothing else that may leave a half."""
    forbidden = REPLACING | TENSOR_WRITERS | {"tempfile", "os.fsync"}
    forbidden |= {f"x.{name}" for name in ("rename", "replace", "write_text", "write_bytes")}
    writer = PACKAGE / "utils/files.py"
    assert {"os.replace", "os.rename", "os.fsync", "save_file", "x.write_bytes"} <= calls(writer)
    found = {str(path): calls(path) & forbidden for path in MODULES.values() if path != writer}
    assert {path: names for path, names in found.items() if names} == {}


def test_one_module_turns_errors_into_exit_statuses() -> None:
    """Commands call run_command; nothing else ends a process, or prints but a command."""
    helper = PACKAGE / "utils/cli.py"
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        guards = [
            node
            for node in tree.body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        ]
        assert bool(guards) == (name in COMMANDS), name
        if path == helper:
            continue
        for guard in guards:
            assert [ast.unparse(node) for node in guard.body] == ["sys.exit(main())"]
            tree.body.remove(guard)
        text = ast.unparse(tree)
        # A data process ends with the main one; a process whose main thread waits for another
        # process, which is gone, cannot be ended otherwise.
        if name in ("context_encoder.data.loader", "context_encoder.training.watch"):
            text = text.replace("os._exit(", "")
        found = {word for word in ("sys.exit(", "SystemExit(", "except SystemExit") if word in text}
        found |= {word for word in ("os._exit(", "KeyboardInterrupt:", "tyro.cli(") if word in text}
        if name not in COMMANDS:
            found |= {word for word in (" print(", "sys.argv", "argparse") if word in text}
        assert not found, name
        if name in COMMANDS:
            assert "run_command(" in text, name
