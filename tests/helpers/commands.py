"""Commands in processes of their own, which start within a fraction of a second.

They are forked from a server that has imported torch but never used it, and lead a process group.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "context_encoder.train",
        "context_encoder.transfer.__main__",
        "context_encoder.transfer.detect",
    ]
)
TRAIN, TRANSFER = "context_encoder.train", "context_encoder.transfer.__main__"


@dataclass
class Command:
    """A command that runs or has run."""

    process: BaseProcess
    errors: Path
    _status: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal to the whole process group, or to the process before it has its own."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """The exit status; fails if the command, or a child of it, does not end."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.said()}")
        self._alone(seconds)
        return status

    def _alone(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"children of the command are still running:\n{self.said()}")


def start(
    module: str,
    arguments: Sequence[str],
    errors: Path,
    *,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Command:
    """Start ``python -m module arguments``.

    Args:
        errors: file for the standard output and error.
        before: called in the new process; must be importable.
        environment: further environment variables.
    """
    process = _SERVER.Process(  # type: ignore[attr-defined]
        target=_main,
        args=(module, list(arguments), str(errors), before, dict(environment or {})),
    )
    errors.touch()
    process.start()
    return Command(process, errors)


def start_ranks(
    count: int, arguments: Sequence[str], folder: Path, **options: object
) -> list[Command]:
    """Training in several processes, without the agent of torchrun, which would end them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(
            TRAIN,
            arguments,
            folder / f"errors-{port}-{rank}",
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            **options,  # type: ignore[arg-type]
        )
        for rank in range(count)
    ]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met"
        time.sleep(0.02)


def _main(
    module: str,
    arguments: list[str],
    errors: str,
    before: Callable[[], None] | None,
    environment: dict[str, str],
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a command that a user starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which the tests may run, ignores it
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.update(environment)
    if before is not None:
        before()
    sys.exit(importlib.import_module(module).main(arguments))
