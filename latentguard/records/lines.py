"""The bytes of a file, decompressed where its name says so, and its lines, none of them of unbounded length."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentguard.records.faults import MAX_PROMPT_CHARS, fault_at

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


def lines(path: Path, content: IO[bytes], limit: int, too_long: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 content with their numbers and line ends; of an overlong one, only `limit` bytes are read.

    Raises:
        DataError: a line is too long, is not UTF-8 or has a NUL character; it names `path` and the line.
    """
    number = 0
    while line := content.readline(limit + 1):
        number += 1
        where = f"line {number}"
        if len(line) > limit:
            raise fault_at(path, too_long or f"is longer than {limit:,} bytes", where)
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise fault_at(path, f"is not UTF-8 at byte {error.start + 1} of the line", where) from error
        if "\0" in text:
            raise fault_at(path, "has a NUL character: is the file UTF-16, or not text?", where)
        yield number, text


def without_last_blanks(path: Path, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines without blank ones at the end; a blank line before another one is a DataError."""
    blank: int | None = None
    for number, line in numbered:
        if not line.strip():
            blank = blank or number
        elif blank is not None:
            raise fault_at(path, "is blank", f"line {blank}")
        else:
            yield number, line


def parsed(path: Path, text: str, where: str | None = None) -> Any:
    """The value of a JSON text, that of `where` in a file; DataError if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"character {error.colno}" if where else f"line {error.lineno}, character {error.colno}"
        raise fault_at(path, f"is not valid JSON ({error.msg}; {at})", where) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        raise fault_at(
            path, "is not JSON that can be read: it is nested too deep or has too long a number", where
        ) from error
