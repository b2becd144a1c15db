"""Prompt and concept files in, result rows out: .txt, .csv, .jsonl, .json and .parquet, streamed.

Everything that a file can have wrong is a `DataError` of one line with the file, the row and the field in it, and never
the text of a prompt.
"""

from __future__ import annotations

import csv
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from latentguard.errors import DataError
from latentguard.files import atomic_path, check_target, write_error

MAX_PROMPT_CHARS = 100_000

_MAX_PROMPT_BYTES = 4 * MAX_PROMPT_CHARS + len("\r\n")
# A row of a table may have other, larger fields; still, no file may make us hold a line of any length.
_MAX_LINE_BYTES = 4 * 2**20
_ROWS_A_BATCH = 1024
_ROWS_A_GROUP = 4096
_BOM = b"\xef\xbb\xbf"
_TOO_LONG = f"is longer than {MAX_PROMPT_CHARS:,} characters"
_HALF_PAIR = "is not valid Unicode: it has half of a surrogate pair"


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file: its row, counted from 1 without a header, and the row's other columns.

    The fields of a .csv are text; those of a .jsonl or .parquet have their own types. A .txt has none.
    """

    number: int
    prompt: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConceptEntry:
    """A concept to screen for, with the category it belongs to and a threshold of its own, if it has them."""

    name: str
    category: str | None = None
    threshold: float | None = None


# --- reading prompts


def read_prompts(path: str | Path, column: str = "prompt") -> Iterator[PromptRow]:
    """Yields the prompts of a file in its order, without holding the file in memory.

    By suffix, in either case: .txt (a prompt a line), .csv (with a header), .jsonl (an object a line) or .parquet.
    Text is UTF-8, with or without a byte order mark. `column` is the field that holds the prompt; a .txt has no fields.
    Blank lines are tolerated at the end of a file only, so that every row in has a row out. The process-wide
    `csv.field_size_limit`, by default above MAX_PROMPT_CHARS, is left as it is and holds for the fields of a .csv.

    Raises:
        DataError: at once if there is no such file or its format is unknown; on reading, if a row can't be used (empty,
            missing or overlong prompt, malformed row, wrong encoding, truncated file) or there is no row at all.
    """
    path = Path(path)
    check_prompts_file(path)
    return _checked_rows(path, column)


def check_prompts_file(path: str | Path) -> None:
    """Raises DataError if `path` is not an existing file of a format that `read_prompts` knows."""
    path = Path(path)
    _check_is_file(path)
    _check_suffix(path, _READERS)


def count_prompts(path: str | Path) -> int | None:
    """How many rows a progress bar over `read_prompts(path)` may expect; None if that can't be told.

    Exact for .parquet. For the others it is the number of lines, found without decoding them: an upper bound, above the
    number of prompts where a quoted .csv field runs over several lines or blank lines end the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _count_parquet_rows(path)
        if suffix in _READERS:
            return max(0, _count_lines(path) - (suffix == ".csv"))
    except OSError:
        return None  # what is wrong with the file is for `read_prompts` to say
    return None


class _RawRow(NamedTuple):
    where: str
    prompt: object
    fields: Mapping[str, Any]


def _checked_rows(path: Path, column: str) -> Iterator[PromptRow]:
    number = 0
    try:
        for number, row in enumerate(_READERS[path.suffix.lower()](path, column), 1):
            if fault := _fault(row.prompt):
                raise _error(path, f"field {column!r} {fault}" if path.suffix.lower() != ".txt" else fault, row.where)
            yield PromptRow(number, str(row.prompt), row.fields)
    except OSError as error:
        raise _error(path, f"can't be read: {_one_line(error)}") from error
    if number == 0:
        raise _error(path, "has no prompts")


def _fault(prompt: object) -> str | None:
    """What is wrong with a prompt, in words that follow the name of its field."""
    if prompt is None:
        return "is null"
    if not isinstance(prompt, str):
        return "is NaN" if isinstance(prompt, float) and math.isnan(prompt) else f"is {_kind(prompt)}, not text"
    if len(prompt) > MAX_PROMPT_CHARS:
        return _TOO_LONG
    if not prompt.strip():
        return "is empty"
    if not _is_encodable(prompt):
        return _HALF_PAIR
    return None


def _read_txt(path: Path, column: str) -> Iterator[_RawRow]:
    for number, line in _without_last_blanks(path, _lines(path, _MAX_PROMPT_BYTES, too_long=_TOO_LONG)):
        prompt = line.rstrip("\r\n")
        if "\r" in prompt:
            raise _error(path, "has a carriage return inside: lines end with \\n or \\r\\n", f"line {number}")
        yield _RawRow(f"line {number}", prompt, {})


def _read_csv(path: Path, column: str) -> Iterator[_RawRow]:
    lines = _lines(path, _MAX_LINE_BYTES)
    reader = csv.reader((line for _, line in lines), strict=True)
    header: list[str] | None = None
    number = 0
    blank: str | None = None
    while True:
        where = f"row {number + 1} (line {reader.line_num + 1})" if header else "the header"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _error(path, f"is not valid CSV: {_csv_fault(error)}", where) from error
        if row is None:
            return
        if header is None:
            header = _checked_header(path, row, column)
            at = header.index(column)
            continue
        if not row:
            blank = blank or where
            continue
        if blank is not None:
            raise _error(path, "is blank", blank)
        number += 1
        if len(row) != len(header):
            raise _error(path, f"has {_counted(len(row), 'field')} where the header has {len(header)}", where)
        fields = dict(zip(header, row, strict=True))
        del fields[column]
        # As pandas writes a missing value, if told to.
        yield _RawRow(where, math.nan if row[at].strip() in {"nan", "NaN"} else row[at], fields)


def _csv_fault(error: csv.Error) -> str:
    if "new-line character" in str(error):  # the module's message speaks to whoever opens the file in Python
        return "a carriage return outside quotes"
    return str(error)


def _read_jsonl(path: Path, column: str) -> Iterator[_RawRow]:
    for number, line in _without_last_blanks(path, _lines(path, _MAX_LINE_BYTES)):
        where = f"line {number}"
        record = _parsed(path, line.rstrip("\r\n"), where)
        if not isinstance(record, dict):
            raise _error(path, f"is {_kind(record)}, not an object", where)
        if column not in record:
            raise _missing_column(path, column, record, where)
        yield _RawRow(where, record.pop(column), record)


def _read_parquet(path: Path, column: str) -> Iterator[_RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = _checked_header(path, file.schema_arrow.names, column)
            for batch in file.iter_batches(batch_size=_ROWS_A_BATCH):
                columns = [
                    _python_values(path, name, array, number) for name, array in zip(names, batch.columns, strict=True)
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    fields = dict(zip(names, values, strict=True))
                    yield _RawRow(f"row {number}", fields.pop(column), fields)
    except (pa.ArrowException, ValueError) as error:
        where = f"after row {number}" if number else None
        raise _error(path, f"is damaged or not a Parquet file: {_one_line(error)}", where) from error


def _python_values(path: Path, name: str, array: Any, rows_before: int) -> list[Any]:
    try:
        return list(array.to_pylist())
    except ValueError as error:  # bytes that are no UTF-8, or a time that Python's own types can't hold
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"can't be read: {_one_line(error)}"
        raise _error(path, f"field {name!r} {what}", f"rows {rows_before + 1} to {rows_before + len(array)}") from error


_READERS: Mapping[str, Callable[[Path, str], Iterator[_RawRow]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _checked_header(path: Path, names: list[str], column: str) -> list[str]:
    if column not in names:
        raise _missing_column(path, column, names)
    for name in names:
        if names.count(name) > 1:
            raise _error(path, f"has two columns {_shown(name)}")
    return names


def _missing_column(path: Path, column: str, names: Iterable[str], where: str | None = None) -> DataError:
    listed = ", ".join(map(_shown, names)) or "none"
    return _error(path, f"has no column {column!r}; its columns are: {listed}", where)


def _shown(name: str) -> str:
    # In a file without a header the "names" are its first prompt, which is not to be printed.
    return repr(name) if len(name) <= 40 and len(name.split()) <= 3 else "(a long text: is the header missing?)"


def _count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def _count_parquet_rows(path: Path) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowException:
        return None


# --- reading concepts


def read_concepts(path: str | Path) -> list[ConceptEntry]:
    """The concepts of a .txt, one a line, or of a .json: a list of names or of objects with `name` and, if wanted,
    `category` and `threshold` (a finite number).

    Names come without outer whitespace and in the order of the file.

    Raises:
        DataError: there is no such file, its format is unknown, it holds no concept, or one of them is empty,
            a repetition (letter case aside), or has fields that can't be used.
    """
    path = Path(path)
    _check_is_file(path)
    _check_suffix(path, _CONCEPT_READERS)
    concepts: list[ConceptEntry] = []
    seen: dict[str, str] = {}
    try:
        for where, concept in _CONCEPT_READERS[path.suffix.lower()](path):
            if fault := _fault(concept.name):
                raise _error(path, f"the concept {fault}", where)
            if (first := seen.setdefault(concept.name.casefold(), where)) != where:
                raise _error(path, f"the concept repeats that of {first}", where)
            concepts.append(concept)
    except OSError as error:
        raise _error(path, f"can't be read: {_one_line(error)}") from error
    if not concepts:
        raise _error(path, "has no concepts")
    return concepts


def _read_concept_lines(path: Path) -> Iterator[tuple[str, ConceptEntry]]:
    for number, line in _without_last_blanks(path, _lines(path, _MAX_PROMPT_BYTES, too_long=_TOO_LONG)):
        yield f"line {number}", ConceptEntry(line.strip())


def _read_concept_list(path: Path) -> Iterator[tuple[str, ConceptEntry]]:
    text = "".join(line for _, line in _lines(path, _MAX_LINE_BYTES))
    if not text.strip():
        return
    items = _parsed(path, text)
    if not isinstance(items, list):
        raise _error(path, f"is {_kind(items)}, not a list of concepts")
    for number, item in enumerate(items, 1):
        where = f"item {number}"
        if isinstance(item, str):
            yield where, ConceptEntry(item.strip())
        elif isinstance(item, dict):
            yield where, _concept_of(path, item, where)
        else:
            raise _error(path, f"is {_kind(item)}, not a concept's name or an object", where)


_CONCEPT_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, ConceptEntry]]]] = {
    ".txt": _read_concept_lines,
    ".json": _read_concept_list,
}


def _concept_of(path: Path, item: Mapping[str, Any], where: str) -> ConceptEntry:
    if unknown := item.keys() - {"name", "category", "threshold"}:
        raise _error(path, f"has an unknown field {_shown(min(unknown))}", where)
    name, category, threshold = item.get("name"), item.get("category"), item.get("threshold")
    if fault := _fault(name):
        raise _error(path, f"field 'name' {fault}", where)
    if category is not None and (fault := _fault(category)):
        raise _error(path, f"field 'category' {fault}", where)
    if threshold is not None and (threshold := _finite(threshold)) is None:
        raise _error(path, "field 'threshold' is not a finite number", where)
    return ConceptEntry(str(name).strip(), category, threshold)


# --- writing rows


class RowWriter:
    """Takes the rows of one output file; `open_writer` makes it and puts the file in place."""

    def __init__(self, path: Path, columns: Mapping[str, type], sink: _Sink) -> None:
        self._path = path
        self._columns = columns
        self._sink = sink
        self._rows = 0

    def write(self, row: Mapping[str, object]) -> None:
        """Adds a row: a value, or None, for each of the columns.

        Raises:
            DataError: a column is missing, unknown or of another type than was said; or the file can't be written.
        """
        self._rows += 1
        where = f"row {self._rows}"
        if row.keys() != self._columns.keys():
            raise _error(self._path, f"has the fields {sorted(row)}, not {sorted(self._columns)}", where)
        values = []
        for name, kind in self._columns.items():
            try:
                values.append(_CHECKS[kind](row[name]))
            except (TypeError, ValueError) as error:
                raise _error(self._path, f"field {name!r} {error}", where) from error
        self._sink.write(values)


def open_writer(path: str | Path, columns: Mapping[str, type]) -> AbstractContextManager[RowWriter]:
    """A context manager that gives a `RowWriter` for a .csv, .jsonl or .parquet file at `path`.

    `columns` names the columns in order, each with the type of its values: str, int, float or bool. The rows go to a
    temporary file in the same folder, which takes its place at the end of the block; after any exception in it,
    KeyboardInterrupt included, the temporary file is gone and a file at `path` is what it was.

    Raises:
        DataError: at once, as `check_output`; on writing, if the disk is full or the file can't be written otherwise.
    """
    check_output(path)
    return _writing(Path(path), columns)


def check_output(path: str | Path) -> None:
    """Raises DataError unless `open_writer(path, ...)` can start: a known suffix, in a folder that exists."""
    path = Path(path)
    _check_suffix(path, _SINKS)
    check_target(path)


@contextmanager
def _writing(path: Path, columns: Mapping[str, type]) -> Iterator[RowWriter]:
    with atomic_path(path) as temporary:
        sink = _SINKS[path.suffix.lower()](path, temporary, columns)
        try:
            yield RowWriter(path, columns, sink)
        except BaseException:
            sink.abandon()
            raise
        sink.close()


class _Sink(Protocol):
    """Where checked values go; all but `abandon` raise DataError if the file can't be written."""

    def write(self, values: list[Any]) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _TextSink:
    """A file of lines; subclasses say what a row's line is."""

    def __init__(self, path: Path, temporary: Path, columns: Mapping[str, type]) -> None:
        self._path = path
        self._columns = tuple(columns)
        self._file: TextIO = open(temporary, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        with _write_errors(self._path):
            self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):  # what is still buffered may not fit either
            self._file.close()

    def _put(self, line: str) -> None:
        with _write_errors(self._path):
            self._file.write(line)


class _CsvSink(_TextSink):
    def __init__(self, path: Path, temporary: Path, columns: Mapping[str, type]) -> None:
        super().__init__(path, temporary, columns)
        # The csv module quotes what its line end contains: with \r\n a field's own \r is kept, yet lines end in \n.
        self._writer = csv.writer(_WriteOnly(lambda line: self._put(line.removesuffix("\r\n") + "\n")))
        self._writer.writerow(self._columns)

    def write(self, values: list[Any]) -> None:
        self._writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in values])


@dataclass(frozen=True)
class _WriteOnly:
    """The part of a file that `csv.writer` uses."""

    write: Callable[[str], None]


class _JsonlSink(_TextSink):
    def write(self, values: list[Any]) -> None:
        self._put(json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False) + "\n")


class _ParquetSink:
    def __init__(self, path: Path, temporary: Path, columns: Mapping[str, type]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        self._path = path
        self._schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        self._rows: list[list[Any]] = []
        with _write_errors(path):
            self._writer = pq.ParquetWriter(temporary, self._schema)

    def write(self, values: list[Any]) -> None:
        self._rows.append(values)
        if len(self._rows) == _ROWS_A_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        with _write_errors(self._path):
            self._writer.close()

    def abandon(self) -> None:
        with suppress(OSError):
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        arrays = [
            pa.array(values, kind)
            for values, kind in zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
        ]
        with _write_errors(self._path):
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()


_SINKS: Mapping[str, Callable[[Path, Path, Mapping[str, type]], _Sink]] = {
    ".csv": _CsvSink,
    ".jsonl": _JsonlSink,
    ".parquet": _ParquetSink,
}


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"is {_kind(value)}, not text")
    if value is not None and not _is_encodable(value):
        raise ValueError(_HALF_PAIR)
    return value


def _number(value: object) -> float | None:
    number = None if value is None else _finite(_plain(value))
    if number is None and value is not None:
        raise TypeError("is not a finite number")
    return number


def _integer(value: object) -> int | None:
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise TypeError("is not an integer of 64 bits")
    return value


def _truth(value: object) -> bool | None:
    value = _plain(value)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"is {_kind(value)}, not true or false")
    return value


_CHECKS: Mapping[type, Callable[[object], object]] = {str: _text, float: _number, int: _integer, bool: _truth}


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as the Python value it holds."""
    return value.item() if hasattr(value, "item") else value


# --- what reading and writing share


def _lines(path: Path, limit: int, too_long: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers and line ends; of an overlong one, only `limit` bytes are read."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            where = f"line {number}"
            if len(line) > limit:
                raise _error(path, too_long or f"is longer than {limit:,} bytes", where)
            if number == 1:
                line = line.removeprefix(_BOM)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _error(path, f"is not UTF-8 at byte {error.start + 1} of the line", where) from error
            if "\0" in text:
                raise _error(path, "has a NUL character: is the file UTF-16, or not text?", where)
            yield number, text


def _without_last_blanks(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The lines without blank ones at the end; a blank line before another one is an error."""
    blank: int | None = None
    for number, line in lines:
        if not line.strip():
            blank = blank or number
        elif blank is not None:
            raise _error(path, "is blank", f"line {blank}")
        else:
            yield number, line


def _parsed(path: Path, text: str, where: str | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"character {error.colno}" if where else f"line {error.lineno}, character {error.colno}"
        raise _error(path, f"is not valid JSON ({error.msg}; {at})", where) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of nested brackets
        raise _error(
            path, "is not JSON that can be read: it is nested too deep or has too long a number", where
        ) from error


def _finite(value: object) -> float | None:
    """The number as a float, or None if it is not one or not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_KINDS: Mapping[type, str] = {
    type(None): "null",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _check_is_file(path: Path) -> None:
    if os.path.isdir(path):
        raise _error(path, "is a folder, not a file")
    if not os.path.exists(path):  # unlike Path.exists, no OSError for a name that is too long
        raise _error(path, "does not exist")


def _check_suffix(path: Path, known: Iterable[str]) -> None:
    if path.suffix.lower() not in known:
        raise _error(path, f"its suffix is none of {', '.join(known)}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _error(path: Path, what: str, where: str | None = None) -> DataError:
    return DataError(f"{path}: {where}: {what}" if where else f"{path}: {what}")
