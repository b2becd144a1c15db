"""Prompt files in: .txt, .csv, .tsv, .jsonl and .parquet, as they are or compressed, streamed."""

from __future__ import annotations

import csv
import math
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from latentguard.records.faults import (
    TOO_LONG,
    check_is_file,
    check_suffix,
    counted,
    fault_at,
    kind_of,
    missing_column,
    one_line,
    prompt_fault,
    shown_name,
    unreadable,
)
from latentguard.records.lines import (
    COMPRESSIONS,
    MAX_LINE_BYTES,
    MAX_PROMPT_BYTES,
    lines,
    opened,
    parsed,
    without_last_blanks,
)

_ROWS_A_BATCH = 1024
_PARQUET_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file: its row, counted from 1 without a header, and the row's other columns.

    The fields of a .csv or .tsv are text; those of a .jsonl or .parquet have their own types. A .txt has none.
    """

    number: int
    prompt: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class PromptFile:
    """The prompts of a file in its order, read as they are asked for and never held in memory all at once.

    By suffix, in either case: .txt (a prompt a line), .csv or .tsv (with a header, quoted alike), .jsonl (an object a
    line) or .parquet, each also followed by .gz or .zst. A compressed .parquet is unpacked into a temporary file first,
    since it is read from its end. Text is UTF-8, with or without a byte order mark. Blank lines are tolerated at the
    end of a file only, so that every row in has a row out. The process-wide `csv.field_size_limit`, by default above
    MAX_PROMPT_CHARS, is left as it is and holds for the fields of a .csv.

    Args:
        column: the field that holds the prompt; a .txt has no fields.
        fields: the other fields that are wanted; all of them if None.

    Raises:
        DataError: there is no such file or its format is unknown; on reading, if a row can't be used (empty, missing or
            overlong prompt, malformed row, wrong encoding, truncated file) or there is no row at all.
    """

    def __init__(self, path: str | Path, column: str = "prompt", *, fields: Collection[str] | None = None) -> None:
        self.path = Path(path)
        check_prompts_file(self.path)
        self._reader = _READERS[_format(self.path)](self.path, column, fields)
        self._column = column
        self._names_field = _format(self.path) != ".txt"

    @property
    def bytes_read(self) -> int:
        """How many of the file's bytes the rows given so far took."""
        return self._reader.bytes_read()

    def other_columns(self) -> list[str]:
        """The names of the columns but the prompt's, of a .jsonl those of its first row. Errors as on reading."""
        for row in PromptFile(self.path, self._column):
            return list(row.fields)
        return []

    def __iter__(self) -> Iterator[PromptRow]:
        number = 0
        try:
            for number, row in enumerate(self._reader.rows(), 1):
                if fault := prompt_fault(row.prompt):
                    raise fault_at(
                        self.path, f"field {self._column!r} {fault}" if self._names_field else fault, row.where
                    )
                yield PromptRow(number, str(row.prompt), row.fields)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if number == 0:
            raise fault_at(self.path, "has no prompts")


def read_prompts(path: str | Path, column: str = "prompt") -> Iterator[PromptRow]:
    """The rows of a :class:`PromptFile`, with all their fields; errors as there, those of the name at once."""
    return iter(PromptFile(path, column))


def check_prompts_file(path: str | Path) -> None:
    """Raises DataError if `path` is not an existing file of a format that `read_prompts` knows."""
    path = Path(path)
    check_is_file(path)
    if _format(path) not in _READERS:
        check_suffix(path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path, _READERS)


def _format(path: Path) -> str:
    """The suffix that says what is in a file, without that of its compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS else suffix


class _RawRow(NamedTuple):
    where: str
    prompt: object
    fields: Mapping[str, Any]


class _Reader(ABC):
    """The raw rows of one file; subclasses say how they are read."""

    def __init__(self, path: Path, column: str, fields: Collection[str] | None) -> None:
        self.path = path
        self.column = column
        self._fields = None if fields is None else frozenset(fields)
        self.bytes_read: Callable[[], int] = lambda: 0

    @abstractmethod
    def rows(self) -> Iterator[_RawRow]:
        """The rows, unchecked; OSError and DataError where they can't be read."""

    def wanted(self, name: str) -> bool:
        """Whether the values of a column are asked for."""
        return name != self.column and (self._fields is None or name in self._fields)

    @contextmanager
    def lines(self, limit: int, too_long: str | None = None) -> Iterator[Iterator[tuple[int, str]]]:
        """The lines of the file, whose position is `bytes_read` from now on."""
        with opened(self.path) as file:
            self.bytes_read = lambda: file.position
            yield lines(self.path, file.content, limit, too_long)
            position = file.position
            self.bytes_read = lambda: position


class _TextReader(_Reader):
    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_PROMPT_BYTES, too_long=TOO_LONG) as numbered:
            for number, line in without_last_blanks(self.path, numbered):
                prompt = line.rstrip("\r\n")
                if "\r" in prompt:
                    raise fault_at(
                        self.path, "has a carriage return inside: lines end with \\n or \\r\\n", f"line {number}"
                    )
                yield _RawRow(f"line {number}", prompt, {})


class _TableReader(_Reader):
    delimiter = ","

    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_LINE_BYTES) as numbered:
            yield from self._rows(csv.reader((line for _, line in numbered), strict=True, delimiter=self.delimiter))

    def _rows(self, reader: Any) -> Iterator[_RawRow]:
        header: list[str] | None = None
        kept: list[tuple[str, int]] = []
        number = at = 0
        blank: str | None = None
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                where = _place(number, line, header)
                raise fault_at(self.path, f"is not valid CSV: {_csv_fault(error)}", where) from error
            if row is None:
                return
            if header is None:
                header = _checked_header(self.path, row, self.column)
                at = header.index(self.column)
                kept = [(name, place) for place, name in enumerate(header) if self.wanted(name)]
                continue
            if not row:
                blank = blank or _place(number, line, header)
                continue
            if blank is not None:
                raise fault_at(self.path, "is blank", blank)
            where = _place(number, line, header)
            number += 1
            if len(row) != len(header):
                raise fault_at(self.path, f"has {counted(len(row), 'field')} where the header has {len(header)}", where)
            # As pandas writes a missing value, if told to.
            prompt = math.nan if row[at].strip() in {"nan", "NaN"} else row[at]
            yield _RawRow(where, prompt, {name: row[place] for name, place in kept})


class _TabReader(_TableReader):
    delimiter = "\t"


class _JsonReader(_Reader):
    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_LINE_BYTES) as numbered:
            for number, line in without_last_blanks(self.path, numbered):
                where = f"line {number}"
                record = parsed(self.path, line.rstrip("\r\n"), where)
                if not isinstance(record, dict):
                    raise fault_at(self.path, f"is {kind_of(record)}, not an object", where)
                if self.column not in record:
                    raise missing_column(self.path, self.column, record, where)
                fields = {name: value for name, value in record.items() if self.wanted(name)}
                yield _RawRow(where, record[self.column], fields)


class _ParquetReader(_Reader):
    def rows(self) -> Iterator[_RawRow]:
        if self.path.suffix.lower() not in COMPRESSIONS:
            yield from self._rows(self.path)
            return
        with opened(self.path) as file, tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file.content, unpacked)
            unpacked.seek(0)
            yield from self._rows(unpacked)

    def _rows(self, source: Any) -> Iterator[_RawRow]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(source, buffer_size=_PARQUET_BUFFER_BYTES) as file:
                names = _checked_header(self.path, file.schema_arrow.names, self.column)
                kept = [name for name in names if self.wanted(name)]
                share = self.path.stat().st_size / max(1, file.metadata.num_rows)
                self.bytes_read = lambda: int(number * share)
                for batch in file.iter_batches(batch_size=_ROWS_A_BATCH, columns=[self.column, *kept]):
                    values = {name: self._values(name, batch.column(name), number) for name in (self.column, *kept)}
                    prompts = values.pop(self.column)
                    columns = zip(*values.values(), strict=True) if kept else iter([()] * len(prompts))
                    for prompt, fields in zip(prompts, columns, strict=True):
                        number += 1
                        yield _RawRow(f"row {number}", prompt, dict(zip(kept, fields, strict=True)))
        except (pa.ArrowException, ValueError) as error:
            where = f"after row {number}" if number else None
            raise fault_at(self.path, f"is damaged or not a Parquet file: {one_line(error)}", where) from error

    def _values(self, name: str, array: Any, rows_before: int) -> list[Any]:
        try:
            return list(array.to_pylist())
        except ValueError as error:  # bytes that are no UTF-8, or a time that Python's own types can't hold
            no_text = isinstance(error, UnicodeDecodeError)
            what = "is not UTF-8" if no_text else f"can't be read: {one_line(error)}"
            where = f"rows {rows_before + 1} to {rows_before + len(array)}"
            raise fault_at(self.path, f"field {name!r} {what}", where) from error


_READERS: Mapping[str, type[_Reader]] = {
    ".txt": _TextReader,
    ".csv": _TableReader,
    ".tsv": _TabReader,
    ".jsonl": _JsonReader,
    ".parquet": _ParquetReader,
}


def _place(number: int, line: int, header: list[str] | None) -> str:
    return f"row {number + 1} (line {line})" if header else "the header"


def _csv_fault(error: csv.Error) -> str:
    if "new-line character" in str(error):  # the module's message speaks to whoever opens the file in Python
        return "a carriage return outside quotes"
    return str(error)


def _checked_header(path: Path, names: list[str], column: str) -> list[str]:
    if column not in names:
        raise missing_column(path, column, names)
    if repeated := _repeated(names):
        raise fault_at(path, f"has two columns {shown_name(repeated)}")
    return names


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def parquet_types(path: Path) -> dict[str, Any]:
    """The Arrow type of each column of a .parquet file that is not compressed as a whole.

    Raises:
        DataError: the file can't be read or is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, ValueError) as error:
        raise fault_at(path, f"is damaged or not a Parquet file: {one_line(error)}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return dict(zip(schema.names, schema.types, strict=True))
