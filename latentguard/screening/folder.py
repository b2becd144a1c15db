"""Screening into a folder: an output in parts, which an interrupted run can be gone on with.

The folder holds a Parquet file for each part (``part-<input>-<part of it>.parquet``) and ``_manifest.json``. A part's
file is written under another name and renamed when it is whole, and says in its metadata which rows it stands for; so
whatever a part's file is there for is done, and nothing else is. Where a run was killed doesn't matter.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from latentguard.errors import DataError
from latentguard.files import atomic_path, write_error
from latentguard.screening.inputs import find_inputs
from latentguard.screening.manifest import GuardIdentity, Plan, check_same
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.parts import PartRecord, read_parts, screen_part
from latentguard.screening.progress import Progress
from latentguard.screening.screener import Screener
from latentguard.screening.summary import ScreeningSummary

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard

_MANIFEST = "_manifest.json"
_LOCK = ".lock"
_TEMPORARY = ".tmp-*"
_SECONDS_BETWEEN_MANIFESTS = 5.0


def screen_folder(
    guard: LatentGuard,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    options: ScreeningOptions | None = None,
) -> ScreeningSummary:
    """Screen the prompts of ``inputs`` into the folder ``output``, part by part, and go on where an earlier run ended.

    The parts in the order of their names hold the rows in the order of the inputs. Memory is bounded by the size of a
    part, whatever the inputs' size.

    Args:
        inputs: as of :func:`latentguard.screening.screen_file`.

    Returns:
        The numbers of the whole run, with what earlier ones did of it.

    Raises:
        DataError: a file can't be read or written, a row can't be used, ``output`` holds something else or a run with
            other inputs, another guard or other options, or another process writes there.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    options = options or ScreeningOptions()
    paths = find_inputs([inputs] if isinstance(inputs, (str, Path)) else inputs)
    check_folder(output, paths)
    plan = Plan.of(paths, options, GuardIdentity.of(guard), flags=guard.policy.flag_margin > 0)
    screener = Screener(guard, options)
    with opened_folder(output, plan) as folder, closing(folder.progress()) as bar:
        for source in plan.sources:
            for part in read_parts(source, options, plan.layout, folder.done[source.place]):
                record, content = screen_part(screener, part, source.path, plan.layout, folder.run)
                folder.add(record, content)
                bar.advance(record.rows, record.bytes_read)
        return folder.finish()


def check_folder(output: str | Path, inputs: Iterable[Path]) -> None:
    """Raises DataError if parts can't be written into ``output``, or if they would be among the inputs."""
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is no folder")
    if not output.parent.is_dir():
        raise DataError(f"{output}: the folder {output.parent} does not exist")
    real = output.resolve()
    for path in inputs:
        if real in path.resolve().parents:
            raise DataError(f"{output}: the input {path} is in it; give another folder for the output")
    if not output.is_dir() or (output / _MANIFEST).is_file():
        return
    with _as_data_error(output):
        if any(not each.name.startswith(".") for each in output.iterdir()):
            raise DataError(f"{output}: the folder has other files; give a new one, or an empty one")


class PartFolder:
    """The folder of a run that nobody else writes to; made by :func:`opened_folder`.

    Attributes:
        run: what its parts say they belong to.
        done: the records of the parts that are there, by their input's place and their own.
    """

    def __init__(self, path: Path, plan: Plan, run: str, done: Iterable[PartRecord]) -> None:
        self._path = path
        self._plan = plan
        self.run = run
        self.done: defaultdict[int, dict[int, PartRecord]] = defaultdict(dict)
        self._summary = ScreeningSummary()
        self._parts = 0
        self._written = -float("inf")
        for record in done:
            self._count(record)
        self._earlier = sum(record.bytes_read for parts in self.done.values() for record in parts.values())

    def progress(self) -> Progress:
        """A bar on which what is done already is done."""
        return Progress(self._plan.size, rows=self._summary.prompts, read=self._earlier)

    def add(self, record: PartRecord, content: bytes) -> None:
        """Puts a part in place, unless it is there; DataError if it can't be written."""
        if record.number in self.done[record.source]:
            return
        target = self._path / f"part-{record.source:05}-{record.number:05}.parquet"
        with atomic_path(target) as temporary, _as_data_error(target):
            temporary.write_bytes(content)
        self._count(record)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_MANIFESTS:
            self.write_manifest()

    def finish(self) -> ScreeningSummary:
        """Writes down that all is done; the numbers of all parts. DataError if one is missing."""
        for source in self._plan.sources:
            numbers = self.done[source.place]
            last = max(numbers, default=-1)
            if len(numbers) != last + 1 or not numbers or not numbers[last].last:
                raise DataError(f"{self._path}: parts of {source.path} are missing; give the command again")
        self.write_manifest(complete=True)
        return self._summary

    def write_manifest(self, *, complete: bool = False) -> None:
        """Writes down what the run is and how far it is; DataError if it can't be written."""
        content: dict[str, Any] = self._plan.settings() | {
            "run": self.run,
            "complete": complete,
            "rows": self._summary.prompts,
            "parts": self._parts,
            "summary": self._summary.as_dict(),
        }
        target = self._path / _MANIFEST
        with atomic_path(target) as temporary, _as_data_error(target):
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self._written = time.monotonic()

    def _count(self, record: PartRecord) -> None:
        self.done[record.source][record.number] = record
        self._summary.add(record.summary)
        self._parts += 1


@contextmanager
def opened_folder(output: str | Path, plan: Plan) -> Iterator[PartFolder]:
    """The folder of the run of this plan: a new one, or one that was begun with the same plan, and what is done of it.

    Raises:
        DataError: as :func:`screen_folder`.
    """
    path = Path(output)
    with _as_data_error(path):
        path.mkdir(exist_ok=True)
    with _locked(path):
        settings = plan.settings()
        begun = _read_manifest(path / _MANIFEST)
        if begun is not None:
            check_same(path, begun, settings)
        for leftover in path.glob(_TEMPORARY):  # of a run that was killed
            with suppress(OSError):
                leftover.unlink()
        run = secrets.token_hex(16) if begun is None else str(begun.get("run"))
        folder = PartFolder(path, plan, run, _records(path, run))
        if begun is None:
            folder.write_manifest()
        yield folder


def _records(path: Path, run: str) -> Iterator[PartRecord]:
    for file in sorted(path.glob("part-*.parquet")):
        record = PartRecord.read(file)
        if record.run != run:
            raise DataError(f"{file}: belongs to another run; remove it to have it made again")
        yield record


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a run's manifest: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no run's manifest")
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path / _LOCK, timeout=0)
    with _as_data_error(path):
        try:
            lock.acquire()
        except Timeout as error:
            raise DataError(f"{path}: another process is screening into it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
