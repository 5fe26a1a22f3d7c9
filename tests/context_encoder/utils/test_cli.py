"""Exit statuses and messages of errors."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from context_encoder.data import list_images, read_image
from context_encoder.runs import find_checkpoint
from context_encoder.utils.cli import (
    UsageError,
    _first_sentences,
    parse_arguments,
    run_command,
)
from context_encoder.utils.device import Processes, choose_device
from context_encoder.utils.files import WriteError
from context_encoder.utils.options import with_options

COMMANDS = "train inpaint evaluate neighbours features weights transfer.__main__".split()


def main_of(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(f"context_encoder.{name}").main
    return main


def run(job: Callable[[Any], int | None], **options: Any) -> int:
    return run_command("test", lambda prog, words: words, job, [], **options)


def raises(error: BaseException) -> Callable[[Any], None]:
    def job(_: Any) -> None:
        raise error

    return job


class FailureError(RuntimeError):
    pass


FULL, READ_ONLY = (os.strerror(code) for code in (errno.ENOSPC, errno.EROFS))


@pytest.mark.parametrize(
    ("job", "status", "line"),
    [
        (lambda _: None, 0, ""),
        (lambda _: 1, 1, ""),
        (lambda _: list_images("nowhere"), 2, "error: image folder nowhere does not exist"),
        (lambda _: read_image("nowhere.png"), 2, "error: nowhere.png: "),
        (lambda _: find_checkpoint(Path("nowhere")), 2, "error: checkpoint nowhere does not exist"),
        (
            lambda _: choose_device("abacus", Processes()),
            2,
            "error: --device must be auto, cpu, cuda or cuda:N, got 'abacus'",
        ),
        (lambda _: Path("nowhere.txt").read_text(), 2, "error: nowhere.txt: no such file or dire"),
        (raises(PermissionError(errno.EACCES, "Denied", "x")), 2, "error: x: denied"),
        (raises(OSError(errno.EROFS, READ_ONLY, "x")), 2, "error: x: read-only file system"),
        (raises(OSError("cannot be used")), 2, "error: cannot be used"),
        (raises(OSError(errno.ENOSPC, FULL, "x")), 1, "stopped: x: no space left on device"),
        (raises(OSError(errno.EIO, "Bad disk")), 1, "stopped: bad disk"),
        (raises(WriteError(errno.ENOSPC, FULL, "x")), 1, "stopped: cannot write x: no space left"),
        (raises(WriteError(errno.EROFS, READ_ONLY, "x")), 2, "error: cannot write x: read-only"),
        (raises(FailureError("the loss is\nnot finite")), 1, "stopped: the loss is; not finite"),
        (raises(MemoryError()), 1, "stopped: out of memory; lower --batch-size"),
        (raises(torch.OutOfMemoryError("CUDA")), 1, "stopped: out of GPU memory; lower --batch"),
        (raises(KeyboardInterrupt()), 130, "interrupted; go on"),
    ],
)
def test_exit_statuses(
    job: Callable[[Any], Any], status: int, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(
        lambda words: code if isinstance(code := job(words), int) else None,
        failures=(FailureError,),
        when_interrupted="go on",
    )
    out, err = capfd.readouterr()
    assert done == status
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == bool(line)


@pytest.mark.parametrize(
    "job",
    [
        lambda _: int("x"),  # a ValueError of Python itself
        lambda _: torch.zeros(2).view(3),
        lambda _: {}["x"],
        lambda _: find_checkpoint(None),  # type: ignore[arg-type]
        raises(ValueError("raised outside of the package")),
    ],
)
def test_bugs_keep_their_traceback(job: Callable[[Any], Any]) -> None:
    with pytest.raises((ValueError, RuntimeError, KeyError, AttributeError)):
        run(job)


def test_a_parameter_is_named_as_its_option(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        with_options("`batch_size` 3 and `out`; not ``x``") == "--batch-size 3 and --out; not ``x``"
    )
    assert with_options("`pictures` caffe", {"pictures": "input"}) == "--input caffe"
    code = (
        "import logging, sys\n"
        "from context_encoder.utils.cli import run_command\n"
        "job = lambda _: logging.getLogger('x').info('leave out `batch_size`')\n"
        "sys.exit(run_command('x', lambda *_: None, job, []))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "leave out --batch-size\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys\n"
        "from context_encoder.utils.cli import run_command\n"
        "def job(_):\n"
        "    for _ in range(100_000): print('a line')\n"
        "sys.exit(run_command('x', lambda *_: None, job, []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_file_name_that_is_no_utf8_can_be_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: print("caf\udce9")) == 0
    assert run(lambda _: list_images("caf\udce9")) == 2
    out, err = capfd.readouterr()
    assert "caf\\udce9" in out
    assert "caf\\udce9" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_version_help_and_one_line_for_misuse(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = main_of(name)
    assert main(["--version"]) == 0
    out, err = capsys.readouterr()
    assert (out.startswith("context-encoder "), err) == (True, "")
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: python -m context_encoder.")
    assert err == ""
    for words in (["--nonsense", "1"], ["nonsense", "--nonsense"]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert "--help" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", "--device cpu --steps 1 --out"),
        ("inpaint", "{photo} --box 1 1 2 2 --checkpoint nowhere --out"),
        ("evaluate", "--checkpoint nowhere --out"),
        ("neighbours", "--checkpoint nowhere --out"),
        ("features", "--random --data nowhere --out"),
        ("weights", "export nowhere --out"),
        ("weights", "import nowhere --out"),
        ("transfer.__main__", "probe --data nowhere --out"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors are found before networks and photographs are opened: none of them exists."""
    (tmp_path / "file").write_bytes(b"")
    suffix = {
        "inpaint": ".png",
        "neighbours": ".png",
        "features": ".npz",
        "weights": ".safetensors",
    }
    out = tmp_path / f"file/out{suffix.get(name, '')}"
    given = [word.format(photo=tmp_path / "file") for word in words.split()]
    assert main_of(name)([*given, str(out)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: cannot write {out}: {tmp_path / 'file'} is a file, not a folder\n"
    assert os.listdir(tmp_path) == ["file"]


BOX = """\
╭─ Unrecognized options ────────────────────╮
│ Unrecognized options: --stepz, 3          │
│ ───────────────────────────────────────── │
│ Perhaps you meant:                        │
│     --steps INT                           │
│         Training steps. (default: 1000)   │
│ ───────────────────────────────────────── │
│ For full helptext, run python -m x --help │
╰───────────────────────────────────────────╯
"""
PLAIN = """\
 Unrecognized options                        \n\
 ------------------------------------------- \n\
  Unrecognized options: --stepz, 3           \n\
  -------------------------------------------\n\
  Perhaps you meant:                         \n\
      --steps INT                            \n\
          Training steps. (default: 1000)    \n\
  -------------------------------------------\n\
  For full helptext, run python -m x --help  \n"""


def test_what_tyro_says_in_one_line() -> None:
    wanted = "unrecognized options: --stepz, 3; perhaps you meant: --steps INT"
    for text in (BOX, PLAIN, BOX.replace("Unrec", "\x1b[1;31mUnrec")):
        assert _first_sentences(text) == wanted
    assert _first_sentences("something else\n entirely") == "something else entirely"

    @dataclass
    class Options:
        """Help."""

        steps: int
        layers: tuple[str, ...] = ()

    parse = partial(parse_arguments, Options, "x")
    assert parse(["--steps", "3"]).steps == 3
    for words, message in (
        ([], "missing from x: --steps INT; x --help lists the options"),
        (["--steps", "q"], "--steps: invalid literal for int() with base 10: 'q'; x --help lists"),
        (["--steps"], "missing value for argument '--steps'. Expected 1 values; x --help"),
        (
            ["--steps", "1", "--layer", "a"],
            "unrecognized options: --layer, a; perhaps you meant: -",
        ),
    ):
        with pytest.raises(UsageError) as found:
            parse(words)
        assert str(found.value).startswith(message)
        assert "\n" not in str(found.value)
    assert not logging.getLogger("x").handlers
