"""Replacement of photographs that cannot be read, and the limit to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from context_encoder.data.images import UnreadableImage
from context_encoder.data.storage import is_transient

__all__ = ["DataError", "Readable", "Replacements"]

T = TypeVar("T")

#: Samples over which the share of replaced ones is taken, or the number of files if that is less.
_WINDOW = 256


class DataError(ValueError):
    """Too few photographs can be read; the message says how many, and why."""


class Readable(Generic[T]):
    """Items by number; the next readable one, in order, replaces an unreadable one.

    A damaged file is tried once. One that the storage did not give, see
    :mod:`context_encoder.data.storage`, is tried again whenever it is wanted.

    Args:
        count: number of items.
        read: reads an item; raises UnreadableImage.
        name: the name of an item in reports.
        where: what the items are, for the error: "280 image files in photos".
    """

    def __init__(
        self, count: int, read: Callable[[int], T], name: Callable[[int], str], where: str
    ) -> None:
        self.count = count
        self.read = read
        self.name = name
        self.where = where
        self._unreadable: dict[int, str] = {}

    def __call__(self, wanted: int) -> tuple[int, T, list[tuple[str, str]]]:
        """The number of the item that was read, the item, and newly found failures.

        Raises:
            DataError: no item can be read.
            StorageError: the storage is out of reach.
        """
        failures: list[tuple[str, str]] = []
        for source in ((wanted + step) % self.count for step in range(self.count)):
            if source in self._unreadable:
                continue
            try:
                return source, self.read(source), failures
            except UnreadableImage as error:
                failures.append((self.name(source), error.reason))
                if not is_transient(error):
                    self._unreadable[source] = error.reason
        first = min(self._unreadable, default=wanted)
        reason = self._unreadable.get(first) or failures[0][1]
        raise DataError(
            f"none of the {self.where} can be read; the first is {self.name(first)}: {reason}"
        )


class Replacements:
    """Counts the samples that replaced others, and limits their share.

    Args:
        files: number of files that samples are drawn from.
        most: largest share of replaced samples, in (0, 1].
    """

    def __init__(self, files: int, most: float) -> None:
        self.most = most
        self.window = min(_WINDOW, files)
        self._recent: deque[tuple[int, int]] = deque()
        self._first: tuple[str, str] | None = None

    def add(self, samples: int, replaced: int, unreadable: list[tuple[str, str]]) -> None:
        """Count the samples of a batch.

        Args:
            samples: number of samples.
            replaced: number of those that replaced others.
            unreadable: names and reasons of files that were found unreadable.

        Raises:
            DataError: too many of the last samples are replaced.
        """
        if self._first is None and unreadable:
            self._first = unreadable[0]
        self._recent.append((samples, replaced))
        seen = sum(count for count, _ in self._recent)
        while seen - self._recent[0][0] >= self.window:
            seen -= self._recent.popleft()[0]
        lost = sum(count for _, count in self._recent)
        if seen >= self.window and lost > self.most * seen:
            example = "" if self._first is None else f", such as {': '.join(self._first)}"
            raise DataError(
                f"{lost} of the last {seen} photographs that were drawn cannot be read{example}; "
                f"`max_unreadable` allows {self.most:.0%} of them"
            )
