"""Watch over the processes of a training: each shows signs of life, and silence is reported.

In a collective operation, processes wait for one that was stopped or whose machine is gone
without any message. So every process counts in a key of the store that torch's processes meet at,
in a thread of its own, and looks at the keys of the others.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from context_encoder.utils.device import Processes

__all__ = ["Watch", "own_name"]

log = logging.getLogger("context_encoder")

_DONE, _FAILED = b"done", b"failed: "
_FAILED_STATUS = 1


def own_name(processes: Processes) -> str:
    """How messages name this process."""
    return f"process {processes.rank} (pid {os.getpid()} on {socket.gethostname()})"


class Watch:
    """Signs of life of this process and of the others, from :meth:`start` to :meth:`stop`.

    A process that is silent for 10 s is named in a warning. After ``patience``, or if a process
    has failed, this process ends with status 1: what it waits for cannot be interrupted.

    Time is counted in the ticks of this process, so that a machine that was suspended as a whole
    goes on.

    Args:
        processes: the processes.
        patience: seconds of silence after which this process ends.
        tick: seconds between two signs of life.
    """

    def __init__(self, processes: Processes, patience: float, tick: float = 1.0) -> None:
        self._rank = processes.rank
        self._patience = patience
        # With hundreds of processes, the store is asked less often.
        self._tick = tick * max(1.0, processes.world_size / 16)
        self._names: Sequence[str] = []
        run = os.environ.get("TORCHELASTIC_RUN_ID", "") + os.environ.get(
            "TORCHELASTIC_RESTART_COUNT", ""
        )
        self._keys = [f"context-encoder/{run}/{r}" for r in range(processes.world_size)]
        self._store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=30),
        )
        self._count = 0
        self._exchanged = 0
        self._silent = [0.0] * processes.world_size
        self._last = [b""] * processes.world_size
        self._stopped = threading.Event()
        self._store.set(self._keys[self._rank], "0")

    def start(self, names: Sequence[str]) -> None:
        """Watch the others, all of which have made their own object.

        Args:
            names: :func:`own_name` of every process.
        """
        self._names = names
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def stop(self, error: str | None = None) -> None:
        """End the watch; the others see that this process is done, or why it has failed."""
        self._stopped.set()
        try:
            value = _DONE if error is None else _FAILED + error.encode()
            self._store.set(self._keys[self._rank], value.decode())
        except Exception:  # the store has gone with its process
            log.debug("no store", exc_info=True)

    def lost(self, wait: float = 8.0) -> str:
        """After a failed connection: the processes that failed or are silent, as a sentence."""
        until = time.monotonic() + wait
        while time.monotonic() < until:
            failed = self._failed()
            silent = [r for r, seconds in enumerate(self._silent) if seconds >= 4 * self._tick]
            if failed or silent:
                return failed or f"{self._names[silent[0]]} has ended or does not answer"
            time.sleep(self._tick / 4)
        return "the connection to another process is lost"

    def _exchange(self) -> None:
        while not self._stopped.is_set():
            self._count += 1
            try:
                self._store.set(self._keys[self._rank], str(self._count))
                values = self._store.multi_get(self._keys)
            except Exception:  # of many types; the judge sees that there is no exchange
                log.debug("no store", exc_info=True)
            else:
                self._exchanged += 1
                for rank, value in enumerate(values):
                    same = value == self._last[rank] and value != _DONE and rank != self._rank
                    self._silent[rank] = self._silent[rank] + self._tick if same else 0.0
                    self._last[rank] = value
            self._stopped.wait(self._tick)

    def _judge(self) -> None:
        warned: set[int] = set()
        exchanged, without = -1, 0.0
        while not self._stopped.wait(self._tick):
            without = 0.0 if exchanged != self._exchanged else without + self._tick
            exchanged = self._exchanged
            # The first process may hold the store, which then is silent with it.
            silent = list(self._silent)
            silent[0] = max(silent[0], without)
            failed = self._failed()
            if failed:
                self._end(failed)
            for rank, seconds in enumerate(silent):
                if seconds >= self._patience:
                    self._end(f"{self._names[rank]} has not answered for {seconds:.0f} s")
                if seconds >= min(10.0, self._patience / 2) and rank not in warned:
                    warned.add(rank)
                    log.warning("%s has not answered for %.0f s", self._names[rank], seconds)
                elif seconds == 0 and rank in warned:
                    warned.remove(rank)
                    log.warning("%s answers again", self._names[rank])

    def _failed(self) -> str:
        for rank, value in enumerate(self._last):
            if value.startswith(_FAILED):
                return f"{self._names[rank]} has stopped: {value[len(_FAILED) :].decode()}"
        return ""

    def _end(self, reason: str) -> None:
        # The main thread may be about to end with a message of its own.
        if self._stopped.wait(3.0):
            return
        log.error("stopped: %s; the checkpoints are kept, resume with the last one", reason)
        logging.shutdown()
        sys.stderr.flush()
        os._exit(_FAILED_STATUS)
