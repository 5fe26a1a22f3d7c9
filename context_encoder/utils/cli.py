"""Command lines: parsing, and the exit status and message of every error.

tyro reads types and shows help, and pydantic checks values. A command is::

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
import functools
import io
import logging
import operator
import os
import re
import signal
import sys
import threading
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, Union, get_args, get_origin

import tyro
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from tyro.constructors import PrimitiveConstructorSpec

from context_encoder.utils.errors import lacks_temporary, os_reason, outside_reason
from context_encoder.utils.options import explain, with_options
from context_encoder.utils.registry import NameIn, Names
from context_encoder.utils.version import __version__

Config = TypeVar("Config", bound=BaseModel)
Arguments = TypeVar("Arguments")

DONE, FAILED, MISUSED, PARTLY = 0, 1, 2, 3

# Errors that name an unusable file or folder, as opposed to failures while it is used.
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
    """A command line that cannot be parsed; the message is one line."""


def run_command(
    name: str,
    parse: Callable[[str, Sequence[str]], Arguments],
    job: Callable[[Arguments], int | None],
    arguments: Sequence[str] | None = None,
    *,
    failures: tuple[type[Exception], ...] = (),
    renamed: Mapping[str, str] | None = None,
    when_interrupted: str = "",
    needs_console: bool = True,
) -> int:
    """Parse, run the job, and turn any error into one line and an exit status.

    Args:
        name: name of the command's module in this package.
        parse: called with the command as it is typed and its arguments.
        job: called with the result of ``parse``; returns the exit status, or None for 0.
        arguments: the arguments; None for those of the process.
        failures: errors of the job that are not misuse and give status 1 instead of 2.
        renamed: see :func:`with_options`.
        when_interrupted: advice that is printed after an interruption.
        needs_console: False if the command goes on when its standard error cannot be written any
            more, as after the end of a terminal session.

    Returns:
        The exit status: see docs/commands.md. An error that this package does not raise itself is
        a bug, and is passed on with its traceback.
    """
    prog = f"python -m context_encoder.{name}"
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not needs_console and not isinstance(sys.stderr, _Console):
        before = sys.stderr
        sys.stderr = _Console(before)
        try:
            return run_command(
                name, parse, job, words,
                failures=failures, renamed=renamed, when_interrupted=when_interrupted,
            )  # fmt: skip
        finally:
            sys.stderr = before
    _log_to_stderr(renamed)
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid UTF-8
        if isinstance(stream, io.TextIOWrapper | _Console):
            stream.reconfigure(errors="backslashreplace")
    try:
        if "--version" in words:
            print(f"context-encoder {__version__}")
            return DONE
        with _termination_as_exception():
            status = job(parse(prog, words))
        sys.stdout.flush()  # raises BrokenPipeError here if the reader has gone
        return DONE if status is None else status
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else DONE
    except KeyboardInterrupt:
        _say("interrupted" + (when_interrupted and f"; {when_interrupted}"), renamed)
        return stopped_by(signal.SIGINT)
    except BrokenPipeError:
        # Otherwise Python reports the closed pipe again when it closes the stream.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return stopped_by(signal.SIGPIPE)
    except failures as error:
        _say(f"stopped: {error}", renamed)
        return FAILED
    except Terminated as stop:
        _say(
            f"ended by {stop.signal.name}" + (when_interrupted and f"; {when_interrupted}"), renamed
        )
        return stopped_by(stop.signal)
    except OSError as error:
        misuse = isinstance(error, _MISUSE) or error.errno in {None, *_MISUSE_CODES}
        misuse &= not lacks_temporary(error)
        _say(f"{'error' if misuse else 'stopped'}: {os_reason(error)}", renamed)
        return MISUSED if misuse else FAILED
    except Exception as error:
        if _is_message(error):
            _say(f"error: {error}", renamed)
            return MISUSED
        reason = outside_reason(error)
        if reason is None:
            raise
        _say(f"stopped: {reason}", renamed)
        return FAILED


class Terminated(BaseException):
    """A signal that ends the process, as an exception, so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Raise :class:`Terminated` at SIGTERM, SIGHUP and SIGUSR1, unless they are handled already."""

    def end(number: int, frame: types.FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: signal.Signals) -> int:
    """The exit status of a command that a signal ended, as in shells: 130 for Ctrl-C."""
    return 128 + number


def parse_arguments(kind: Any, prog: str, arguments: Sequence[str] | None) -> Any:
    """Parse a command line with tyro.

    Args:
        kind: a dataclass, or a union of dataclasses with subcommands.
        prog: the command as it is typed, for help and errors.
        arguments: the arguments; None for those of the process.

    Raises:
        UsageError: the arguments are wrong; the message is one line.
        SystemExit: help was requested and is printed.
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
    """Parse a command line into a configuration.

    Args:
        kind: class of the configuration.
        prog: the command, for the help.
        arguments: the arguments; None for those of the process.
        default: the defaults; None for those of ``kind``.

    Raises:
        ValueError: values are out of range or incompatible; one sentence per error.
    """
    parsed = parse_arguments(arguments_of(kind, default), prog, arguments)
    return checked(kind, {name: getattr(parsed, name) for name in fields_of(kind)})


def checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration; ValueError with one sentence per wrong value."""
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
    """A dataclass for tyro with the fields of a configuration, their types and their help.

    Args:
        kind: class of the configuration.
        default: source of the defaults; None for those of ``kind``.
        summary: help text of the command; None for the docstring of ``kind``.
        extra: name, type and help of further options, whose default is None.
    """
    fields: list[Any] = []
    for name, field in fields_of(kind).items():
        parsed = _parsed_type(Annotated[(field.annotation, None, *field.metadata)])
        text = with_options(field.description or "")
        if default is None and field.is_required():
            fields.append((name, Annotated[parsed, tyro.conf.arg(help=text)]))
            continue
        if default is not None:
            value = getattr(default, name)
        else:
            value = field.get_default(call_default_factory=True)
        hint: Any = Annotated[parsed, tyro.conf.arg(help=text, help_behavior_hint=_shown(value))]
        fields.append((name, hint, dataclasses.field(default=value)))
    for name, type_, text in extra:
        hint = Annotated[type_ | None, tyro.conf.arg(help=text, help_behavior_hint=_shown(None))]
        fields.append((name, hint, dataclasses.field(default=None)))
    namespace = {"__doc__": with_options(summary or kind.__doc__ or "")}
    return dataclasses.make_dataclass("Arguments", fields, namespace=namespace, kw_only=True)


def _shown(default: Any) -> str | None:
    """How tyro's help shows a default: not at all where only the help text says what none means."""
    return "" if default is None or default == () else None


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a configuration, including the options of registered classes."""
    every = getattr(kind, "all_fields", None)
    return dict(kind.model_fields) if every is None else every()


def name_argument(names: Names, *, check: bool = True) -> PrimitiveConstructorSpec[str]:
    """For ``Annotated[str, ...]``: tyro accepts one of the names and lists them in the help.

    Args:
        names: the names to choose from; aliases are accepted but not listed.
        check: whether tyro refuses other words; False leaves this to later validation.
    """
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda words: names.canonical(words[0]) if check else words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda name: [name],
    )


def _parsed_type(hint: Any) -> Any:
    """A field's type with :func:`name_argument` instead of :class:`NameIn`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for extra in parts[1:]:
            if isinstance(extra, NameIn):
                return Annotated[parts[0], name_argument(extra.names, check=False)]
        return _parsed_type(parts[0])
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, map(_parsed_type, parts))
    if origin is tuple:
        return tuple[tuple(part if part is ... else _parsed_type(part) for part in parts)]  # type: ignore[misc]
    return hint


def early_options(names: Collection[str], arguments: Sequence[str] | None) -> dict[str, str]:
    """The given values of options that decide the defaults of others, read before tyro parses."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        first.add_argument(f"--{name}", nargs="?")
    known, _ = first.parse_known_args(arguments)
    return {name: value for name, value in vars(known).items() if value is not None}


def given_fields(kind: type[BaseModel], arguments: Sequence[str] | None) -> list[str]:
    """The fields of a configuration that the command line names, in the order of the fields."""
    words = sys.argv[1:] if arguments is None else arguments
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words}
    return [name for name in fields_of(kind) if {name, f"no_{name}"} & names]


def _say(message: str, renamed: Mapping[str, str] | None) -> None:
    lines = [line.strip() for line in with_options(message, renamed).splitlines()]
    print("; ".join(filter(None, lines)), file=sys.stderr)


def _is_message(error: Exception) -> bool:
    """Whether a statement of this package raised the error, so that its text is for users."""
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
    """The errors in a box printed by tyro, as one line without frame, hints and help texts."""
    framed = "╭" in box  # on terminals without these characters the title is a section
    sections: list[list[str]] = [[]]
    for line in _COLOUR.sub("", box).splitlines():
        body = line.strip("│").rstrip()
        if set(body) <= set(" ─-"):
            sections.append([])
        elif not body.startswith(("╭", "╰", " " * 9)):
            sections[-1].append(body.strip())
    sections = [section for section in sections if section][0 if framed else 1 :]
    texts = [" ".join(section).rstrip(".") for section in sections]
    kept = [
        *texts[:1],
        *(t for t in texts[1:] if t.startswith(("Perhaps", "Available", "Unrecognized options"))),
    ]
    text = "; ".join(text[:1].lower() + text[1:] for text in kept).removeprefix("error parsing ")
    return text or " ".join(box.split())


class _Console(io.TextIOBase):
    """A stream that loses text from its first error on, such as a closed pipe, without a word."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None: closed before the start

    def _do(self, action: Callable[[TextIO], int | None]) -> int:
        if self._stream is not None:
            try:
                return action(self._stream) or 0
            except (OSError, ValueError) as error:
                if isinstance(error, UnicodeError):
                    raise
                # What Python writes there at its end must not fail either.
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
                self._stream = None
        return 0

    def write(self, text: str) -> int:
        self._do(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return bool(self._do(lambda stream: stream.isatty()))

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def reconfigure(self, **options: Any) -> None:
        if isinstance(self._stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                self._stream.reconfigure(**options)


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
