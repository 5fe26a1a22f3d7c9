"""Text files that users write, in the encodings and with the line ends of common editors."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "check_regular",
    "decode_text",
    "read_bytes",
    "read_lines",
    "read_rows",
    "read_text",
    "shortened",
]

# The mark of UTF-32 begins with that of UTF-16, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(
    data: bytes, what: str, *, errors: Literal["strict", "surrogateescape"] = "strict"
) -> str:
    """Decode the contents of a text file; the result has no byte order mark and ends lines in LF.

    The encoding is UTF-8, with or without a byte order mark; UTF-16 or UTF-32 with one; or UTF-16
    without one, if the text begins with an ASCII character. Lines may end in LF, CRLF or CR.

    Args:
        data: the contents.
        what: name of the file in the error.
        errors: "surrogateescape" keeps bytes that are not UTF-8, for lists of file names.

    Raises:
        ValueError: the contents are not text in one of these encodings.
    """
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    data = data[len(mark) :]
    if not mark:
        # Text never holds NUL, so one in the first two bytes is half of a UTF-16 character.
        zeros = (data[:1] == b"\0", data[1:2] == b"\0")
        encoding = {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(zeros, encoding)
    try:
        text = data.decode(encoding, errors if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} is not text in UTF-8 or UTF-16: byte {data[error.start]:#04x} at position "
            f"{error.start}; save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_regular(path: str | os.PathLike[str]) -> None:
    """OSError unless a path leads to a regular file, since reading a pipe could wait for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The contents of a regular file; OSError as for :func:`read_text`."""
    check_regular(path)
    return Path(path).read_bytes()


def read_text(
    path: str | os.PathLike[str],
    *,
    most: int = 1 << 30,
    errors: Literal["strict", "surrogateescape"] = "strict",
) -> str:
    """The text of a regular file, see :func:`decode_text`.

    Args:
        path: the file.
        most: largest length in bytes.
        errors: see :func:`decode_text`.

    Raises:
        OSError: the file cannot be read, is not regular, or is longer.
        ValueError: it is not text.
    """
    check_regular(path)
    length = os.stat(path).st_size
    if length > most:
        raise OSError(
            errno.EFBIG, f"it has {length} bytes, at most {most} are expected", os.fspath(path)
        )
    return decode_text(Path(path).read_bytes(), os.fspath(path), errors=errors)


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The lines of a file of JSON objects that are not empty, each with its object.

    A crash may leave a part of a line, and a power cut any bytes: such lines have None. OSError as
    for :func:`read_text`.
    """
    for line in read_bytes(path).split(b"\n"):
        text = line.decode("utf-8", "replace").strip("\r")
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(text)
        if text:
            yield text, row if isinstance(row, dict) else None


def shortened(value: object, longest: int = 200) -> str:
    """``str(value)`` on one line, with the middle left out if it is longer than ``longest``.

    For values of unknown size in messages: contents of files, and errors of other libraries.
    """
    text = " ".join(str(value).split())
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a list of file names that are not blank; errors as for :func:`read_text`.

    Bytes that are not UTF-8 are kept as Python keeps them in file names.
    """
    lines = read_text(path, errors="surrogateescape").split("\n")
    return [line for line in lines if line and not line.isspace()]
