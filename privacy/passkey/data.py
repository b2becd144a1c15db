"""Rows to fine-tune on and to measure with: from local files or from data sets of the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from privacy.errors import DataError, MissingDependencyError
from privacy.files import read_error

HUB = "hub:"
_DOCUMENT = "-DOCSTART-"
_TAG = re.compile(r"O|[BIESLU]-\S+")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Rows:
    """The chosen columns of a file or data set: row after row, the values in the order of `columns`."""

    place: str
    columns: tuple[str, ...]
    values: list[tuple[Any, ...]]

    def error(self, row: int, column: int, what: str) -> DataError:
        """What is wrong with a field, row and column counted from 0; `what` never quotes it."""
        return DataError(f"{self.place}: row {row + 1}: field {self.columns[column]!r}: {what}")

    def text(self, row: int, column: int) -> str:
        """A field that has to be text."""
        value = self.values[row][column]
        if not isinstance(value, str):
            raise self.error(row, column, "is missing" if value is None else "is no text")
        return value

    def label(self, row: int, column: int) -> str:
        """A field that names a class, by a text or by a whole number."""
        value = self.values[row][column]
        if value is None or value == "":
            raise self.error(row, column, "is missing")
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if not isinstance(value, (str, int)):
            raise self.error(row, column, "is neither text nor a whole number")
        return str(value)

    def texts(self, row: int, column: int) -> list[str]:
        """A field that has to be a list of texts, or of whole numbers, with at least one in it."""
        value = self.values[row][column]
        if not isinstance(value, list) or not value or not all(isinstance(each, (str, int)) for each in value):
            raise self.error(row, column, "is no list of texts")
        return [str(each) for each in value]


def read_rows(place: str, columns: Sequence[str], *, split: str) -> Rows:
    """The `columns` of every row of `place`.

    place: a .tsv (fields are never quoted, as in GLUE), .csv, .jsonl or .parquet file, the first two with a header; a
    CoNLL file (.txt, .conll, .iob, .bio: a token and its tags a line, an empty line after each sentence); or
    hub:NAME[:CONFIG[:SPLIT]], a data set for the `datasets` library, of which `split` is read where none is named.
    columns: their names. A dot reaches into nested objects, as in translation.en. In a CoNLL file, the number of the
    token's and of the tag's column, counted from 1; or any names, and then it is the first column and the last one that
    has nothing but tags of the kind O, B-X, I-X (the files of the shared task have others after the tags or before).

    Raises:
        DataError: it can't be read, has no rows, or lacks a column.
        MissingDependencyError: a data set of the hub is asked for, and `datasets` isn't installed.
    """
    if place.startswith(HUB):
        return _read_hub(place, columns, split)
    path = Path(place)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{place}: its suffix is none of {', '.join(_READERS)} (a data set of the hub is hub:NAME)")
    if not path.is_file():
        raise DataError(f"{place}: {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        values = list(reader(path, columns))
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError:
        raise DataError(f"{place}: is not UTF-8") from None
    if not values:
        raise DataError(f"{place}: has no rows")
    return Rows(place, tuple(columns), values)


def subset(items: Sequence[_T], count: int | None, seed: int) -> list[_T]:
    """`count` of the items, drawn at random and in their own order; all of them where there are no more."""
    if count is None or count >= len(items):
        return list(items)
    return [items[place] for place in sorted(random.Random(seed).sample(range(len(items)), count))]


def held_out(items: Sequence[_T], share: float, seed: int) -> tuple[list[_T], list[_T]]:
    """The items, parted at random into those to train on and the `share` to choose settings by; at least one each.

    Raises:
        DataError: there is one item only.
    """
    if len(items) < 2:
        raise DataError("one row can't be parted into some to train on and some to measure with")
    count = min(max(round(share * len(items)), 1), len(items) - 1)
    chosen = set(random.Random(seed).sample(range(len(items)), count))
    return (
        [item for place, item in enumerate(items) if place not in chosen],
        [item for place, item in enumerate(items) if place in chosen],
    )


def _read_tsv(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return _read_table(path, columns, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    return _read_table(path, columns, {"strict": True})


def _read_table(path: Path, columns: Sequence[str], form: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **form)
        try:
            header = next(reader, None)
            if header is None:
                raise DataError(f"{path}: is empty")
            places = [_place(path, header, column) for column in columns]
            for row in filter(None, reader):
                if len(row) != len(header):
                    fields = f"{len(row)} fields where the header has {len(header)}"
                    raise DataError(f"{path}: line {reader.line_num}: has {fields}")
                yield tuple(row[place] for place in places)
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: can't be read: {error}") from error


def _place(path: Path, header: Sequence[str], column: str) -> int:
    if column not in header:
        raise _no_column(str(path), header, column)
    return header.index(column)


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"{path}: line {number}: is not JSON") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number}: is not an object")
            yield tuple(_reached(f"{path}: line {number}", row, column) for column in columns)


def _reached(where: str, row: Mapping[str, Any], column: str) -> Any:
    """A field by its name, or by the names on the way to it with dots between."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise _no_column(where, list(row), column)
        value = value[name]
    return value


def _no_column(where: str, header: Sequence[str], column: str) -> DataError:
    return DataError(f"{where}: has no column {column!r}, only {', '.join(header)}; name yours with --columns")


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield tuple(_reached(str(path), row, column) for column in columns)
    except pa.ArrowException as error:
        raise DataError(f"{path}: is no readable parquet file") from error


def _read_conll(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    if len(columns) != 2:
        raise DataError(f"{path}: a CoNLL file has tokens and tags, not {', '.join(columns)}")
    with path.open(encoding="utf-8-sig") as file:
        sentences = list(_conll_sentences(path, file))
    if not sentences:
        return
    token, tag = _conll_columns(path, sentences, columns)
    for sentence in sentences:
        yield [fields[token] for fields in sentence], [fields[tag] for fields in sentence]


def _conll_sentences(path: Path, lines: Iterator[str]) -> Iterator[list[list[str]]]:
    sentence: list[list[str]] = []
    width = 0
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if fields and fields[0] != _DOCUMENT:
            width = width or len(fields)
            if len(fields) != width:
                raise DataError(f"{path}: line {number}: has {len(fields)} columns where the first line has {width}")
            sentence.append(fields)
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _conll_columns(path: Path, sentences: list[list[list[str]]], columns: Sequence[str]) -> tuple[int, int]:
    """The places of the token's column and of the tag's, from 0."""
    width = len(sentences[0][0])
    if all(column.isdecimal() for column in columns):
        for column in columns:
            if not 1 <= int(column) <= width:
                raise _no_column(str(path), [str(number) for number in range(1, width + 1)], column)
        return int(columns[0]) - 1, int(columns[1]) - 1
    for place in range(width - 1, 0, -1):
        if all(_TAG.fullmatch(fields[place]) for sentence in sentences for fields in sentence):
            return 0, place
    raise DataError(f"{path}: no column after the first has tags only (O, B-X, I-X)")


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[tuple[Any, ...]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_conll,
    ".conll": _read_conll,
    ".iob": _read_conll,
    ".bio": _read_conll,
}


def _read_hub(place: str, columns: Sequence[str], split: str) -> Rows:
    library = _datasets_library()
    name, config, named_split = [*place.removeprefix(HUB).split(":", 2), "", ""][:3]
    try:
        data = library.load_dataset(name, config or None, split=named_split or split)
    except Exception as error:  # the library raises what its HTTP client, its parsers and pyarrow raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{place}: can't be loaded: {reason}") from error
    values = [
        tuple(_reached(f"{place}: row {number}", row, column) for column in columns)
        for number, row in enumerate(_named_classes(data, library.ClassLabel), start=1)
    ]
    if not values:
        raise DataError(f"{place}: has no rows")
    return Rows(place, tuple(columns), values)


def _datasets_library() -> ModuleType:
    missing = MissingDependencyError("data sets of the hub need datasets: pip install datasets")
    try:
        library = import_module("datasets")
    except ImportError:
        raise missing from None
    if not hasattr(library, "load_dataset"):  # a folder of this name in the working directory can be imported, too
        raise missing
    return library


def _named_classes(data: Any, classes: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set with its classes by their names, where it has names for their numbers."""
    names: dict[str, list[str]] = {}
    for column, feature in data.features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, classes):
            names[column] = inner.names

    def named(column: str, value: Any) -> Any:
        if column not in names or value is None:
            return value
        if isinstance(value, list):
            return [named(column, each) for each in value]
        return names[column][value] if value >= 0 else None  # -1 stands for a label that is kept secret

    for row in data:
        yield {column: named(column, value) for column, value in row.items()}
