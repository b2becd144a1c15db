"""What runs in Ray's processes: reading inputs into parts, and screening a part.

One row of the data sets is one part, so that a part is never cut or joined. What goes wrong travels as a row too: Ray
would try again, in vain, or show its own account of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from latentguard.errors import DataError, LatentGuardError
from latentguard.screening.layout import Layout
from latentguard.screening.manifest import GuardIdentity
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.parts import Part, PartRecord, Source, read_parts, screen_part
from latentguard.screening.recipe import GuardRecipe
from latentguard.screening.screener import Screener

_PART = pa.schema(
    [
        ("source", pa.int64()),
        ("number", pa.int64()),
        ("first_row", pa.int64()),
        ("last", pa.bool_()),
        ("bytes_read", pa.int64()),
        ("content", pa.large_binary()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Job:
    """All that Ray's processes need to know.

    Attributes:
        recipe, identity: how the guard is made, and what it has to be then.
        device, threads: what it computes on, and the processor threads of its encoder.
        run: the run that the parts belong to.
    """

    sources: tuple[Source, ...]
    options: ScreeningOptions
    layout: Layout
    recipe: GuardRecipe
    identity: GuardIdentity
    device: str
    threads: int
    run: str


class PartSource(Datasource):  # type: ignore[misc]
    """The parts of a job's inputs but those that are done; each input is read by one task."""

    def __init__(self, job: Job, done: Mapping[int, Mapping[int, PartRecord]]) -> None:
        self._job = job
        self._done = done

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._reader(source), nothing, schema=_PART) for source in self._job.sources]

    def _reader(self, source: Source) -> Callable[[], Iterator[pa.Table]]:
        options, layout, done = self._job.options, self._job.layout, dict(self._done.get(source.place, {}))

        def read() -> Iterator[pa.Table]:
            try:
                for part in read_parts(source, options, layout, done):
                    yield _row_of(part)
            except LatentGuardError as error:
                yield _error_row(error)

        return read


class PartScreener:
    """Screens parts with a guard of its own, which it makes when the first part comes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._screener: Screener | None = None

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            yield self._screened(row)

    def _screened(self, row: dict[str, Any]) -> pa.Table:
        if row["error"] is not None:
            return _finished_row(error=row["error"])
        try:
            if self._screener is None:
                self._screener = self._made()
            part, path = _part_of(row), self._job.sources[row["source"]].path
            return _finished_row(*screen_part(self._screener, part, path, self._job.layout, self._job.run))
        except LatentGuardError as error:
            return _finished_row(error=str(error))

    def _made(self) -> Screener:
        job = self._job
        guard = job.recipe.guard(device=job.device, threads=job.threads)
        if GuardIdentity.of(guard) != job.identity:
            raise DataError("a worker has another guard: its weights, its latentguard or its processor's are different")
        return Screener(guard, job.options)


def finished_part(row: dict[str, Any]) -> tuple[PartRecord, bytes]:
    """The record and the file of a part out of a row that a :class:`PartScreener` gave.

    Raises:
        DataError: it says what went wrong.
    """
    if row["error"] is not None:
        raise DataError(row["error"])
    return PartRecord.from_json(row["record"]), row["content"]


def _row_of(part: Part) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.table.schema) as writer:
        writer.write_table(part.table)
    fields = vars(part) | {"content": sink.getvalue().to_pybytes(), "error": None}
    return pa.Table.from_pylist([{name: fields[name] for name in _PART.names}], schema=_PART)


def _error_row(error: LatentGuardError) -> pa.Table:
    return pa.Table.from_pylist([{"error": str(error)}], schema=_PART)


def _part_of(row: dict[str, Any]) -> Part:
    with pa.ipc.open_stream(row["content"]) as reader:
        table = reader.read_all()
    return Part(row["source"], row["number"], row["first_row"], row["last"], row["bytes_read"], table)


_FINISHED = pa.schema([("record", pa.string()), ("content", pa.large_binary()), ("error", pa.string())])


def _finished_row(record: PartRecord | None = None, content: bytes | None = None, error: str | None = None) -> pa.Table:
    described = None if record is None else record.as_json()
    return pa.Table.from_pylist([{"record": described, "content": content, "error": error}], schema=_FINISHED)
