"""Text columns of .txt, .csv, .jsonl and .parquet files, changed in a stream; everything else stays as it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from privacy.errors import DataError, PiiError
from privacy.files import atomic_path

# Enough for a page of text in a field; no file may make us hold a line of any length.
_MAX_LINE_BYTES = 4 * 2**20
_ROWS_A_BATCH = 1024

Change = Callable[[str], str]


def rewrite(source: str | Path, target: str | Path, columns: Sequence[str], change: Change) -> int:
    """Writes `source` to `target` with every text of `columns` changed; returns the number of rows.

    Both have the same suffix: .txt and .log (a text a line, without columns), .csv with a header, .jsonl or .parquet.
    Missing values stay missing. `target`, which may be `source`, is replaced at the end or left as it was. A progress
    bar stands on a terminal's standard error.

    Raises:
        DataError: a file can't be read or written, or a row can't be used; the message names file, row and field, never
            the text.
        PiiError: `change` raised it; file and row stand before its message. Other exceptions of `change` pass through.
    """
    source, target = Path(source), Path(target)
    suffix = source.suffix.lower()
    if suffix not in _REWRITERS:
        raise DataError(f"{source}: its suffix is none of {', '.join(_REWRITERS)}")
    if target.suffix.lower() != suffix:
        raise DataError(f"{target}: its suffix is not {suffix}, as that of {source.name}")
    if not source.is_file():
        raise DataError(f"{source}: {'is a folder' if source.is_dir() else 'does not exist'}")
    wanted = list(dict.fromkeys(columns))
    if not wanted and suffix not in _LINES:
        raise DataError(f"{source}: no column is named")
    try:
        with atomic_path(target) as temporary:
            return _REWRITERS[suffix](source, temporary, wanted, change)
    except OSError as error:
        raise DataError(f"{error.filename or source}: {error.strerror or error}") from error


def _rewrite_lines(source: Path, target: Path, columns: Sequence[str], change: Change) -> int:
    number = 0
    with target.open("w", encoding="utf-8", newline="") as out:
        for number, line in _lines(source):
            text = line.rstrip("\r\n")
            out.write(_changed(change, text, source, f"line {number}") + line[len(text) :])
    return number


def _rewrite_csv(source: Path, target: Path, columns: Sequence[str], change: Change) -> int:
    number = 0
    reader = csv.reader((line for _, line in _lines(source)), strict=True)
    try:
        with target.open("w", encoding="utf-8", newline="") as out:
            # The csv module quotes what its line end contains: with \r\n a field's own \r is kept, yet lines end in \n.
            writer = csv.writer(_WriteOnly(lambda line: out.write(line.removesuffix("\r\n") + "\n")))
            header = next(reader, None)
            if header is None:
                raise DataError(f"{source}: has no header")
            places = [_place(source, header, column) for column in columns]
            writer.writerow(header)
            for row in filter(None, reader):
                number += 1
                if len(row) != len(header):
                    where = f"row {number} (line {reader.line_num})"
                    raise DataError(f"{source}: {where}: has {len(row)} fields where the header has {len(header)}")
                for place in places:
                    row[place] = _changed(change, row[place], source, f"row {number}: field {header[place]!r}")
                writer.writerow(row)
    except csv.Error as error:
        raise DataError(f"{source}: line {reader.line_num + 1}: is not valid CSV: {error}") from error
    return number


@dataclass(frozen=True)
class _WriteOnly:
    """The part of a file that `csv.writer` uses."""

    write: Callable[[str], int]


def _rewrite_jsonl(source: Path, target: Path, columns: Sequence[str], change: Change) -> int:
    number = 0
    with target.open("w", encoding="utf-8", newline="") as out:
        for number, line in _lines(source):
            where = f"line {number}"
            record = _parsed(source, line, where)
            for column in columns:
                if column not in record:
                    raise DataError(f"{source}: {where}: has no field {column!r}")
                record[column] = _changed(change, record[column], source, f"{where}: field {column!r}")
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return number


def _rewrite_parquet(source: Path, target: Path, columns: Sequence[str], change: Change) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            places = [_place(source, schema.names, column) for column in columns]
            for place in places:
                if not _is_text(schema.field(place).type):
                    raise DataError(f"{source}: field {schema.names[place]!r} is {schema.field(place).type}, not text")
            bar = tqdm(total=file.metadata.num_rows, unit="row", disable=None, leave=False)
            with pq.ParquetWriter(target, schema) as writer, bar:
                for batch in file.iter_batches(batch_size=_ROWS_A_BATCH):
                    arrays = list(batch.columns)
                    for place in places:
                        name = schema.names[place]
                        changed = [
                            _changed(change, value, source, f"row {number + row}: field {name!r}")
                            for row, value in enumerate(arrays[place].to_pylist(), 1)
                        ]
                        arrays[place] = pa.array(changed, schema.field(place).type)
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                    number += len(batch)
                    bar.update(len(batch))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{source}: after row {number}: is damaged or not a Parquet file") from error
    return number


_LINES = (".txt", ".log")
_REWRITERS: Mapping[str, Callable[[Path, Path, Sequence[str], Change], int]] = {
    ".txt": _rewrite_lines,
    ".log": _rewrite_lines,
    ".csv": _rewrite_csv,
    ".jsonl": _rewrite_jsonl,
    ".parquet": _rewrite_parquet,
}


def _changed(change: Change, value: object, source: Path, where: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{source}: {where}: is not text")
    try:
        return change(value)
    except PiiError as error:
        raise PiiError(f"{source}: {where}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers and line ends, beside a progress bar in bytes."""
    bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, disable=None, leave=False)
    with path.open("rb") as file, bar:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{path}: line {number}: is longer than {_MAX_LINE_BYTES:,} bytes")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {number}: is not UTF-8 at byte {error.start + 1} of the line") from error
            bar.update(len(line))


def _parsed(path: Path, line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {where}: is not valid JSON") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: {where}: is not an object")
    return record


def _place(path: Path, names: Sequence[str], column: str) -> int:
    if list(names).count(column) != 1:
        how = "no" if column not in names else "more than one"
        raise DataError(f"{path}: has {how} column {column!r}; its columns are: {_listed(names)}")
    return list(names).index(column)


def _listed(names: Iterable[str]) -> str:
    # In a file without a header the "names" are its first row, which is not to be printed.
    return ", ".join(repr(name) if len(name) <= 40 else "(a long text: is the header missing?)" for name in names)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
