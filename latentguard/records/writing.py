"""Rows out: a .csv, .jsonl or .parquet file that is whole or not there at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from latentguard.files import atomic_path, check_target, write_error
from latentguard.records.faults import check_suffix, fault_at
from latentguard.records.values import CHECKS, as_text, plain

_ROWS_A_GROUP = 4096

Columns = Mapping[str, Any]
"""The columns of an output in order, each with what its values are: str, int, float, bool, object (any value that JSON
can hold, see `latentguard.records.values.plain`), or, for a .parquet, a type of Arrow's."""


class RowWriter:
    """Takes the rows of one output file; `open_writer` makes it and puts the file in place."""

    def __init__(self, path: Path, columns: Columns, sink: _Sink) -> None:
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
            raise fault_at(self._path, f"has the fields {sorted(row)}, not {sorted(self._columns)}", where)
        values = []
        for name, kind in self._columns.items():
            try:
                values.append(CHECKS[kind](row[name]) if kind in CHECKS else row[name])
            except (TypeError, ValueError) as error:
                raise fault_at(self._path, f"field {name!r} {error}", where) from error
        self._sink.write(values)


def open_writer(path: str | Path, columns: Columns) -> AbstractContextManager[RowWriter]:
    """A context manager that gives a `RowWriter` for a .csv, .jsonl or .parquet file at `path`.

    The rows go to a temporary file in the same folder, which takes its place at the end of the block; after any
    exception in it, KeyboardInterrupt included, the temporary file is gone and a file at `path` is what it was. Values
    of an object column are text in a .csv or .parquet: as they are if they are text, otherwise JSON.

    Raises:
        DataError: at once, as `check_output`; on writing, if the disk is full or the file can't be written otherwise.
    """
    check_output(path)
    return _writing(Path(path), columns)


def check_output(path: str | Path) -> None:
    """Raises DataError unless `open_writer(path, ...)` can start: a known suffix, in a folder that exists."""
    path = Path(path)
    check_suffix(path, _SINKS)
    check_target(path)


def arrow_schema(columns: Columns) -> Any:
    """The schema of a .parquet file with these columns."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), object: pa.string()}
    return pa.schema([(name, types.get(kind, kind)) for name, kind in columns.items()])


def arrow_array(values: list[Any], kind: Any) -> Any:
    """The values of a column as an Arrow array; TypeError, ValueError or ArrowException if they have none."""
    import pyarrow as pa

    if kind is object:
        values = [as_text(plain(value)) for value in values]
    return pa.array(values, arrow_schema({"": kind}).types[0])


@contextmanager
def _writing(path: Path, columns: Columns) -> Iterator[RowWriter]:
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

    def __init__(self, path: Path, temporary: Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns
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
    def __init__(self, path: Path, temporary: Path, columns: Columns) -> None:
        super().__init__(path, temporary, columns)
        # The csv module quotes what its line end contains: with \r\n a field's own \r is kept, yet lines end in \n.
        self._writer = csv.writer(_WriteOnly(lambda line: self._put(line.removesuffix("\r\n") + "\n")))
        self._writer.writerow(self._columns)

    def write(self, values: list[Any]) -> None:
        self._writer.writerow([as_text(value) if isinstance(value, (bool, list, dict)) else value for value in values])


@dataclass(frozen=True)
class _WriteOnly:
    """The part of a file that `csv.writer` uses."""

    write: Callable[[str], None]


class _JsonlSink(_TextSink):
    def write(self, values: list[Any]) -> None:
        self._put(json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False) + "\n")


class _ParquetSink:
    def __init__(self, path: Path, temporary: Path, columns: Columns) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._schema = arrow_schema(columns)
        self._any = [place for place, kind in enumerate(columns.values()) if kind is object]
        self._rows: list[list[Any]] = []
        with _write_errors(path):
            self._writer = pq.ParquetWriter(temporary, self._schema)

    def write(self, values: list[Any]) -> None:
        for place in self._any:
            values[place] = as_text(values[place])
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


_SINKS: Mapping[str, Callable[[Path, Path, Columns], _Sink]] = {
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
