"""An input in parts of equal numbers of rows: what is read, screened and written at a time.

Which rows a part has follows from the input and the options alone, so that a part is the same whoever makes it, and
whenever. A part never has rows of two inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentguard.errors import DataError
from latentguard.records import PromptFile, PromptRow, arrow_array, arrow_schema
from latentguard.screening.files import screened_rows
from latentguard.screening.inputs import InputState, check_unchanged
from latentguard.screening.layout import Layout
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.screener import Screener
from latentguard.screening.summary import ScreeningSummary

_METADATA_KEY = b"latentguard.part"
# A part is held in memory, so long prompts and large kept columns end it before its rows are complete.
_CHARACTERS_A_PART = 2**24
_ROWS_AT_A_TIME = 512
# As the layout names it, so that no kept column has that name.
_FAULT = "fault"


@dataclass(frozen=True)
class Source:
    """An input of a run: its place among them, its file, and what the system told of the file when the run began."""

    place: int
    path: Path
    state: InputState


@dataclass(frozen=True)
class Part:
    """Rows of an input to be screened: their faults, the prompts and the kept columns, in a table.

    Attributes:
        source, number: the input's place and the part's place in it, both from 0.
        first_row: the row of the input that is the table's first.
        last: whether the input ends with it.
        bytes_read: of the input's bytes, those that it took.
    """

    source: int
    number: int
    first_row: int
    last: bool
    bytes_read: int
    table: pa.Table


@dataclass(frozen=True)
class PartRecord:
    """What is known of a part that is done; it stands in the part's own file.

    Attributes:
        run: the run that it belongs to.
        source, number, first_row, last, bytes_read: as of :class:`Part`.
        summary: what was decided about its prompts.
    """

    run: str
    source: int
    number: int
    first_row: int
    last: bool
    bytes_read: int
    summary: ScreeningSummary

    @property
    def rows(self) -> int:
        """How many rows of the input were screened for it."""
        return self.summary.prompts

    def as_json(self) -> str:
        """The record as text; `from_json` reads it back."""
        return json.dumps(vars(self) | {"summary": self.summary.as_dict()})

    @classmethod
    def from_json(cls, text: str | bytes) -> PartRecord:
        """What `as_json` gave; KeyError, TypeError or ValueError if it is something else."""
        fields = json.loads(text)
        return cls(**(fields | {"summary": ScreeningSummary.from_dict(fields["summary"])}))

    @classmethod
    def read(cls, path: Path) -> PartRecord:
        """The record of a part's file; DataError if it can't be read or is none."""
        try:
            return cls.from_json((pq.read_schema(path).metadata or {})[_METADATA_KEY])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is damaged or no part of a run; remove it to have it made again") from error


def read_parts(
    source: Source, options: ScreeningOptions, layout: Layout, done: Mapping[int, PartRecord]
) -> Iterator[Part]:
    """The parts of an input but those that are done already.

    Raises:
        DataError: the file can't be read, a row can't be used, or the file was changed since the run began.
    """
    if done and done[max(done)].last and len(done) == max(done) + 1:
        return
    file = PromptFile(source.path, options.column, fields=layout.fields(), faulty=layout.faulty)
    rows = _PartRows(iter(file), options.part_rows)
    read = 0
    for number in count():
        taken = rows.take()
        if number not in done:
            table = _table(source.path, taken, layout)
            check_unchanged(source.path, source.state)
            first_row = taken[0].number if taken else 1  # of an input without rows
            yield Part(source.place, number, first_row, rows.ended, file.bytes_read - read, table)
        read = file.bytes_read
        if rows.ended:
            return


class _PartRows:
    """Takes the rows of a part at a time, and knows whether there is another one."""

    def __init__(self, rows: Iterator[PromptRow], limit: int) -> None:
        self._rows = rows
        self._limit = limit
        self._next = next(rows, None)

    @property
    def ended(self) -> bool:
        return self._next is None

    def take(self) -> list[PromptRow]:
        taken: list[PromptRow] = []
        characters = 0
        while self._next is not None and len(taken) < self._limit and characters < _CHARACTERS_A_PART:
            taken.append(self._next)
            characters += len(self._next.prompt) + sum(len(str(value)) for value in self._next.fields.values())
            self._next = next(self._rows, None)
        return taken


def _table(path: Path, rows: list[PromptRow], layout: Layout) -> pa.Table:
    carried = [layout.carried(path, row) for row in rows]
    arrays = {"prompt": pa.array([row.prompt or None for row in rows], pa.string())}
    if layout.faulty:
        arrays[_FAULT] = pa.array([row.fault for row in rows], pa.string())
    for name, kind in layout.kept.items():
        try:
            arrays[name] = arrow_array([fields[name] for fields in carried], kind)
        except (TypeError, ValueError, pa.ArrowException) as error:
            number = next((row.number for row in rows if not _fits(row.fields.get(name), kind)), rows[0].number)
            why = " ".join(str(error).split())
            raise DataError(f"{path}: row {number}: field {name!r} can't be kept: {why}") from error
    return pa.table(arrays)


def _fits(value: Any, kind: Any) -> bool:
    try:
        arrow_array([value], kind)
    except (TypeError, ValueError, pa.ArrowException):
        return False
    return True


def _rows_of(part: Part, layout: Layout) -> list[PromptRow]:
    prompts = part.table.column("prompt").to_pylist()
    faults = part.table.column(_FAULT).to_pylist() if layout.faulty else [None] * len(prompts)
    both = zip(prompts, faults, strict=True)
    return [PromptRow(number, prompt or "", fault=fault) for number, (prompt, fault) in enumerate(both, part.first_row)]


def screen_part(screener: Screener, part: Part, path: Path, layout: Layout, run: str) -> tuple[PartRecord, bytes]:
    """Screens a part of the input ``path``; its record, and the Parquet file with the rows that are selected.

    Raises:
        DataError: a prompt can't be scored; the message names the file and the row.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    rows = _rows_of(part, layout)
    summary = ScreeningSummary()
    selected: list[int] = []
    decided: list[dict[str, Any]] = []
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        chunk = rows[start : start + _ROWS_AT_A_TIME]
        outcomes, numbers = screened_rows(screener, path, chunk)
        summary.add(numbers)
        for place, (row, outcome) in enumerate(zip(chunk, outcomes, strict=True), start):
            if layout.selects(outcome):
                selected.append(place)
                decided.append(layout.decided(path, row.number, outcome))
    fields = {name: getattr(part, name) for name in ("source", "number", "first_row", "last", "bytes_read")}
    record = PartRecord(run=run, summary=summary, **fields)
    schema = arrow_schema(layout.columns)
    decides = schema.names[1 : len(schema.names) - len(layout.kept)]  # between the prompt and what is kept
    carried = part.table.take(pa.array(selected, pa.int64()))
    arrays = [
        pa.array([row[name] for row in decided], kind) if name in decides else carried.column(name)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    file = BytesIO()
    pq.write_table(
        pa.Table.from_arrays(arrays, schema=schema).replace_schema_metadata({_METADATA_KEY: record.as_json()}), file
    )
    return record, file.getvalue()
