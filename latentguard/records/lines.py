"""The bytes of a file, decompressed where its name says so, and its lines, none of them of unbounded length."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from latentguard.records.faults import MAX_PROMPT_CHARS, fault_at, repeated, shown_name

MAX_PROMPT_BYTES = 4 * MAX_PROMPT_CHARS + len("\r\n")
# A row of a table may have other, larger fields; still, no file may make us hold a line of any length.
MAX_LINE_BYTES = 4 * 2**20
COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}

_BUFFER_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


class OpenedFile:
    """The content of a file, decompressed, and how many of the file's own bytes were read for it."""

    def __init__(self, raw: IO[bytes], content: IO[bytes]) -> None:
        self._raw = raw
        self.content = content

    @property
    def position(self) -> int:
        """How many bytes of the file were read."""
        return self._raw.tell()


@contextmanager
def opened(path: Path) -> Iterator[OpenedFile]:
    """The content of a file: of a .gz or .zst, of any number of members or frames, decompressed.

    Reading raises OSError where the file can't be read, or is no whole .gz or .zst.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    with open(path, "rb") as raw:
        if compression is None:
            yield OpenedFile(raw, raw)
            return

        import pyarrow as pa

        decompressed = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
        with io.BufferedReader(decompressed, _BUFFER_BYTES) as content:
            yield OpenedFile(raw, content)


class Line(NamedTuple):
    """A line of a file: its number from 1, its text with the line end, and what is wrong with it, if anything is.

    Of a line that isn't UTF-8 the text has what can be read; of one that is too long, nothing.
    """

    number: int
    text: str
    fault: str | None = None


def lines(content: IO[bytes], limit: int, too_long: str | None = None) -> Iterator[Line]:
    """The lines of UTF-8 content. One of more than `limit` bytes, with a NUL character or in another encoding has a
    fault; of an overlong one, no more than `limit` bytes are held."""
    number = 0
    while line := content.readline(limit + 1):
        number += 1
        if len(line) > limit:
            yield Line(number, "", too_long or f"is longer than {limit:,} bytes")
            while line and not line.endswith(b"\n"):
                line = content.readline(limit)
            continue
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            text, fault = line.decode("utf-8"), None
        except UnicodeDecodeError as error:
            text, fault = line.decode("utf-8", "replace"), f"is not UTF-8 at byte {error.start + 1} of the line"
        if fault is None and "\0" in text:
            fault = "has a NUL character: is the file UTF-16, or not text?"
        yield Line(number, text, fault)


def without_last_blanks(numbered: Iterable[Line]) -> Iterator[Line]:
    """The lines without blank ones at the end; a blank line before another one has a fault."""
    first: int | None = None  # of the blank lines that were read last; there may be more than memory holds
    for line in numbered:
        if line.fault is None and not line.text.strip():
            first = first or line.number
            continue
        if first is not None:
            yield from (Line(number, "", "is blank") for number in range(first, line.number))
            first = None
        yield line


def usable(path: Path, numbered: Iterable[Line]) -> Iterator[Line]:
    """The lines; DataError, which names `path` and the line, at the first that has a fault."""
    for line in numbered:
        if line.fault is not None:
            raise fault_at(path, line.fault, f"line {line.number}")
        yield line


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or one of its objects has a name twice, of which readers take now this one, now that.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"is not valid JSON ({error.msg}; {line}character {error.colno})") from error
    except _RepeatedNameError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        raise ValueError("is not JSON that can be read: it is nested too deep or has too long a number") from error


class _RepeatedNameError(ValueError):
    """An object has a name twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _RepeatedNameError(f"has two fields {shown_name(str(repeated(name for name, _ in pairs)))}")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
