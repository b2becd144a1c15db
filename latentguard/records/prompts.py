"""Prompt files in: .txt, .csv, .tsv, .jsonl and .parquet, as they are or compressed, streamed."""

from __future__ import annotations

import csv
import json
import math
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from latentguard.errors import DataError
from latentguard.records.faults import (
    HALF_PAIR,
    TOO_LONG,
    check_is_file,
    check_suffix,
    counted,
    fault_at,
    is_encodable,
    kind_of,
    missing_column,
    one_line,
    prompt_fault,
    repeated,
    shown_name,
    unreadable,
)
from latentguard.records.lines import (
    COMPRESSIONS,
    MAX_LINE_BYTES,
    MAX_PROMPT_BYTES,
    Line,
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

    Attributes:
        fault: why the row can't be used, with its place in the file; then there is no prompt, and there may be no
            fields. None for any other row, and so always where such a row ends the reading.
    """

    number: int
    prompt: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


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
        faulty: whether to go on after a row that can't be used, and give it as one with a fault.

    Raises:
        DataError: there is no such file or its format is unknown; on reading, if the file can't be read to its end.
            Unless ``faulty``, also if a row can't be used (empty, missing or overlong prompt, malformed row, wrong
            encoding) or there is no row at all.
    """

    def __init__(
        self,
        path: str | Path,
        column: str = "prompt",
        *,
        fields: Collection[str] | None = None,
        faulty: bool = False,
    ) -> None:
        self.path = Path(path)
        check_prompts_file(self.path)
        self._reader = _READERS[_format(self.path)](self.path, column, fields)
        self._column = column
        self._faulty = faulty
        self._names_field = _format(self.path) != ".txt"

    @property
    def bytes_read(self) -> int:
        """How many of the file's bytes the rows given so far took."""
        return self._reader.bytes_read()

    def other_columns(self) -> list[str] | None:
        """The names of the other columns that are wanted, as the first row has them; None if no row can be used.

        Errors as on reading.
        """
        for row in self:
            if row.fault is None:
                return list(row.fields)
        return None

    def __iter__(self) -> Iterator[PromptRow]:
        number = 0
        try:
            for number, row in enumerate(self._reader.rows(), 1):
                fault = row.fault or self._prompt_fault(row.prompt)
                if fault is None:
                    yield PromptRow(number, str(row.prompt), row.fields)
                elif self._faulty:
                    yield PromptRow(number, "", row.fields, f"{row.where}: {fault}")
                else:
                    raise fault_at(self.path, fault, row.where)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if number == 0 and not self._faulty:
            raise fault_at(self.path, "has no prompts")

    def _prompt_fault(self, prompt: object) -> str | None:
        fault = prompt_fault(prompt)
        return f"field {self._column!r} {fault}" if fault and self._names_field else fault


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
    fault: str | None = None


class _Reader(ABC):
    """The raw rows of one file; subclasses say how they are read."""

    def __init__(self, path: Path, column: str, fields: Collection[str] | None) -> None:
        self.path = path
        self.column = column
        self._fields = None if fields is None else frozenset(fields)
        self.bytes_read: Callable[[], int] = lambda: 0

    @abstractmethod
    def rows(self) -> Iterator[_RawRow]:
        """The rows; OSError and DataError where the file can't be read on, and so nobody knows what rows it has."""

    def wanted(self, name: str) -> bool:
        """Whether the values of a column are asked for."""
        return name != self.column and (self._fields is None or name in self._fields)

    @contextmanager
    def lines(self, limit: int, too_long: str | None = None) -> Iterator[Iterator[Line]]:
        """The lines of the file, whose position is `bytes_read` from now on."""
        with opened(self.path) as file:
            self.bytes_read = lambda: file.position
            yield lines(file.content, limit, too_long)
            position = file.position
            self.bytes_read = lambda: position


class _TextReader(_Reader):
    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_PROMPT_BYTES, too_long=TOO_LONG) as numbered:
            for line in without_last_blanks(numbered):
                prompt, fault = line.text.rstrip("\r\n"), line.fault
                if fault is None and "\r" in prompt:
                    fault = "has a carriage return inside: lines end with \\n or \\r\\n"
                yield _RawRow(f"line {line.number}", prompt, {}, fault)


class _TableRow(NamedTuple):
    """The fields of a row, the line that it begins in, and the first of its lines that has a fault."""

    line: int
    fields: list[str]
    broken: Line | None = None


class _TableReader(_Reader):
    delimiter = ","

    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_LINE_BYTES) as numbered:
            rows = self._parsed(numbered)
            first = next(rows, None)
            if first is None:
                return
            header = self._header(first)
            at = header.index(self.column)
            kept = [(name, place) for place, name in enumerate(header) if self.wanted(name)]
            for number, row in enumerate(_without_last_blanks(rows), 1):
                where = _place(number, row.line)
                if (fault := _row_fault(where, row, len(header))) is not None:
                    yield fault
                    continue
                # As pandas writes a missing value, if told to.
                prompt = math.nan if row.fields[at].strip() in {"nan", "NaN"} else row.fields[at]
                yield _RawRow(where, prompt, {name: row.fields[place] for name, place in kept})

    def _parsed(self, numbered: Iterable[Line]) -> Iterator[_TableRow]:
        broken: list[Line] = []  # of the row that is being read: the module takes no line before it needs it
        reader = csv.reader(self._texts(numbered, broken), strict=True, delimiter=self.delimiter)
        for number in count():
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                if broken:
                    raise self._fault_of(broken[0]) from error
                raise fault_at(self.path, f"is not valid CSV: {_csv_fault(error)}", _place(number, line)) from error
            if fields is None:
                return
            yield _TableRow(line, fields, broken[0] if broken else None)
            broken.clear()

    def _texts(self, numbered: Iterable[Line], broken: list[Line]) -> Iterator[str]:
        for line in numbered:
            if line.fault is not None:
                if not line.text:  # too long to be read, so nobody knows where its row ends
                    raise self._fault_of(line)
                broken.append(line)
            yield line.text

    def _fault_of(self, line: Line) -> DataError:
        return fault_at(self.path, str(line.fault), f"line {line.number}")

    def _header(self, row: _TableRow) -> list[str]:
        if row.broken is not None:
            raise self._fault_of(row.broken)
        return _checked_header(self.path, row.fields, self.column)


def _row_fault(where: str, row: _TableRow, columns: int) -> _RawRow | None:
    """The raw row with what is wrong with a row of a table; None if it has so many fields as the table has columns."""
    if row.broken is not None:
        return _RawRow(f"line {row.broken.number}", None, {}, row.broken.fault)
    if not row.fields:
        return _RawRow(where, None, {}, "is blank")
    if len(row.fields) != columns:
        return _RawRow(where, None, {}, f"has {counted(len(row.fields), 'field')} where the header has {columns}")
    return None


def _without_last_blanks(rows: Iterable[_TableRow]) -> Iterator[_TableRow]:
    first: int | None = None  # the line of the first of the blank rows that were read last
    for row in rows:
        if not row.fields:
            first = first or row.line
            continue
        if first is not None:
            yield from (_TableRow(line, []) for line in range(first, row.line))
            first = None
        yield row


class _TabReader(_TableReader):
    delimiter = "\t"


class _JsonReader(_Reader):
    def rows(self) -> Iterator[_RawRow]:
        with self.lines(MAX_LINE_BYTES) as numbered:
            for line in without_last_blanks(numbered):
                where = f"line {line.number}"
                if line.fault is not None:
                    yield _RawRow(where, None, {}, line.fault)
                    continue
                try:
                    record = self._record(line.text.rstrip("\r\n"))
                except ValueError as error:
                    yield _RawRow(where, None, {}, str(error))
                    continue
                prompt = record.pop(self.column)
                yield _RawRow(where, prompt, {name: value for name, value in record.items() if self.wanted(name)})

    def _record(self, text: str) -> dict[str, Any]:
        """The object in a line; ValueError, which says what is wrong with it, if there is none that can be used."""
        record = parsed(text)
        if not isinstance(record, dict):
            raise ValueError(f"is {kind_of(record)}, not an object")
        if self.column not in record:
            raise ValueError(missing_column(self.column, record))
        if "\\u" in text:  # without such a sign, a text from a file in UTF-8 has no half of a pair
            for name, value in record.items():
                if self.wanted(name) and not is_encodable(json.dumps([name, value], ensure_ascii=False)):
                    raise ValueError(f"field {shown_name(name)} {HALF_PAIR}")
        return record


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


def _place(number: int, line: int) -> str:
    return f"row {number} (line {line})" if number else "the header"


def _csv_fault(error: csv.Error) -> str:
    if "new-line character" in str(error):  # the module's message speaks to whoever opens the file in Python
        return "a carriage return outside quotes"
    return str(error)


def _checked_header(path: Path, names: list[str], column: str) -> list[str]:
    if column not in names:
        raise fault_at(path, missing_column(column, names))
    if twice := repeated(names):
        raise fault_at(path, f"has two columns {shown_name(twice)}")
    return names


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
