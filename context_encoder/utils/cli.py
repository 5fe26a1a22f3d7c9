"""Command lines: parsing, the one way from an error to an exit status, and what is printed of it.

tyro reads types and shows help, pydantic checks values, both in our own words. A command is::

    def main(arguments=None):
        return run_command("evaluate", partial(parse_config, EvaluateConfig), job, arguments)

docs/commands.md has the table of exit statuses.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import dis
import errno
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro
from pydantic import BaseModel, ValidationError

from context_encoder.utils.options import explain, with_options
from context_encoder.utils.version import __version__

Config = TypeVar("Config", bound=BaseModel)
Arguments = TypeVar("Arguments")

DONE, FAILED, MISUSED = 0, 1, 2

# What names a file or folder that cannot be used, and not a failure while it is used.
_MISUSE = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
_MISUSE_CODES = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM,
    errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip
_PACKAGES = Path(__file__).parents[2]
_OURS = tuple(str(_PACKAGES / name) + os.sep for name in ("context_encoder", "cekernels"))
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UsageError(ValueError):
    """A command line that cannot be read; one line."""


def run_command(
    name: str,
    parse: Callable[[str, Sequence[str]], Arguments],
    job: Callable[[Arguments], int | None],
    arguments: Sequence[str] | None = None,
    *,
    failures: tuple[type[Exception], ...] = (),
    renamed: Mapping[str, str] | None = None,
    when_interrupted: str = "",
) -> int:
    """Parse, do the job, and turn whatever it raises into one line and an exit status.

    Args:
        name: of the command's module in this package.
        parse: called with the command as it is typed and its words.
        job: called with what ``parse`` returns; its exit status, None for 0.
        arguments: the words; None for those of the process.
        failures: errors of the job that are no misuse: status 1 in place of 2.
        renamed: see :func:`with_options`.
        when_interrupted: what to do then.

    Returns:
        The exit status: see docs/commands.md. An error that this package does not raise itself is
        a bug, and is passed on with its traceback.
    """
    prog = f"python -m context_encoder.{name}"
    words = list(sys.argv[1:] if arguments is None else arguments)
    _log_to_stderr(renamed)
    for stream in (sys.stdout, sys.stderr):  # names of files need not be valid UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if "--version" in words:
            print(f"context-encoder {__version__}")
            return DONE
        status = job(parse(prog, words))
        sys.stdout.flush()  # where a reader that has gone is noticed
        return DONE if status is None else status
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        _say("interrupted" + (when_interrupted and f"; {when_interrupted}"), renamed)
        return stopped_by(signal.SIGINT)
    except BrokenPipeError:
        # Nobody reads on. Python would say so once more when it closes the stream.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return stopped_by(signal.SIGPIPE)
    except failures as error:
        _say(f"stopped: {error}", renamed)
        return FAILED
    except (torch.OutOfMemoryError, MemoryError) as error:
        where = "memory" if isinstance(error, MemoryError) else "GPU memory"
        _say(f"stopped: out of {where}; lower `batch_size` or the image size", renamed)
        return FAILED
    except OSError as error:
        misuse = isinstance(error, _MISUSE) or error.errno in {None, *_MISUSE_CODES}
        _say(f"{'error' if misuse else 'stopped'}: {_sentence(error)}", renamed)
        return MISUSED if misuse else FAILED
    except Exception as error:
        if not _is_message(error):
            raise
        _say(f"error: {error}", renamed)
        return MISUSED


def stopped_by(number: signal.Signals) -> int:
    """The exit status of a command that a signal ended, as shells count it: 130 for Ctrl-C."""
    return 128 + number


def parse_arguments(kind: Any, prog: str, arguments: Sequence[str] | None) -> Any:
    """What tyro reads from a command line.

    Args:
        kind: a dataclass, or a union of them with subcommands.
        prog: the command as it is typed, for help and errors.
        arguments: the words; None for those of the process.

    Raises:
        UsageError: what is wrong with them, in one line.
        SystemExit: help was asked for and is printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments)
    except SystemExit as stop:
        if stop.code in (None, DONE):
            raise
        message = _first_sentences(said.getvalue())
        raise UsageError(f"{message}; {prog} --help lists the options") from None


def parse_config(
    kind: type[Config],
    prog: str,
    arguments: Sequence[str] | None,
    default: Config | None = None,
) -> Config:
    """The configuration that a command line asks for.

    Args:
        kind: its class.
        prog: the command, for the help.
        arguments: the words; None for those of the process.
        default: the defaults; None for those of ``kind``.

    Raises:
        ValueError: values that are out of range or do not go together, one sentence for each.
    """
    parsed = parse_arguments(arguments_of(kind, default), prog, arguments)
    return checked(kind, {name: getattr(parsed, name) for name in kind.model_fields})


def checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration; ValueError with a sentence for each value that is wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ValueError("; ".join(explain(error))) from None


def arguments_of(
    kind: type[BaseModel],
    default: BaseModel | None = None,
    *,
    summary: str | None = None,
    extra: Sequence[tuple[str, Any, str]] = (),
) -> type:
    """What tyro parses for a configuration: the types of its fields alone, and their help.

    Args:
        kind: the configuration.
        default: what the defaults are taken from; None for those of ``kind``.
        summary: help of the whole; None for the docstring of ``kind``.
        extra: name, type and help of options beside it, None by default.
    """
    fields: list[Any] = []
    for name, field in kind.model_fields.items():
        hint: Any = Annotated[field.annotation, tyro.conf.arg(help=field.description)]
        if default is not None:
            fields.append((name, hint, dataclasses.field(default=getattr(default, name))))
        elif field.is_required():
            fields.append((name, hint))
        else:
            fields.append((name, hint, dataclasses.field(default=field.default)))
    for name, type_, text in extra:
        hint = Annotated[type_ | None, tyro.conf.arg(help=text)]
        fields.append((name, hint, dataclasses.field(default=None)))
    namespace = {"__doc__": summary or kind.__doc__}
    return dataclasses.make_dataclass("Arguments", fields, namespace=namespace, kw_only=True)


def early_options(names: Collection[str], arguments: Sequence[str] | None) -> dict[str, str]:
    """Options that decide the defaults of the others, as they are given, before tyro parses."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        first.add_argument(f"--{name}", nargs="?")
    known, _ = first.parse_known_args(arguments)
    return {name: value for name, value in vars(known).items() if value is not None}


def given_fields(kind: type[BaseModel], arguments: Sequence[str] | None) -> list[str]:
    """The fields of a configuration that the command line names, in their order."""
    words = sys.argv[1:] if arguments is None else arguments
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words}
    return [name for name in kind.model_fields if {name, f"no_{name}"} & names]


def _say(message: str, renamed: Mapping[str, str] | None) -> None:
    lines = [line.strip() for line in with_options(message, renamed).splitlines()]
    print("; ".join(filter(None, lines)), file=sys.stderr)


def _sentence(error: OSError) -> str:
    plain = type(error).__str__ is OSError.__str__
    if plain and error.errno and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{os.fspath(error.filename)}: {reason}"
    return str(error)


def _is_message(error: Exception) -> bool:
    """Whether this package raises it by a statement, so that its text is meant for people."""
    own = type(error).__module__.startswith("context_encoder.")  # UnreadableImage and the like
    if not (own or isinstance(error, ValueError | ImportError)):
        return False
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    by_statement = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return by_statement and code.co_filename.startswith(_OURS)


def _first_sentences(box: str) -> str:
    """What a box of tyro's says, in one line: without its frame, hints for help, and help texts."""
    framed = "╭" in box  # else, for a terminal without these characters, the title is a section
    sections: list[list[str]] = [[]]
    for line in _COLOUR.sub("", box).splitlines():
        body = line.strip("│").rstrip()
        if set(body) <= set(" ─-"):
            sections.append([])
        elif not body.startswith(("╭", "╰", " " * 9)):
            sections[-1].append(body.strip())
    sections = [section for section in sections if section][0 if framed else 1 :]
    texts = [" ".join(section).rstrip(".") for section in sections]
    kept = [*texts[:1], *(t for t in texts[1:] if t.startswith(("Perhaps", "Available")))]
    text = "; ".join(text[:1].lower() + text[1:] for text in kept).removeprefix("error parsing ")
    return text or " ".join(box.split())


class _Formatter(logging.Formatter):
    def __init__(self, renamed: Mapping[str, str] | None) -> None:
        super().__init__("%(message)s")
        self._renamed = renamed

    def format(self, record: logging.LogRecord) -> str:
        return with_options(super().format(record), self._renamed)


def _log_to_stderr(renamed: Mapping[str, str] | None) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(renamed))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
