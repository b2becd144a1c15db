"""The journal of a long run: one JSON line for each finished piece of work, so that a killed run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from latentguard.errors import DataError
from latentguard.files import atomic_path, write_error


class Journal:
    """An append-only file beside an output. Its first line holds the settings of the run, each other an entry.

    A line counts once its line break is on disk: a last line without one is what a kill left, and is dropped.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._file: BinaryIO | None = None

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[list[dict[str, Any]]]:
        """Opens the journal for `append` and yields the entries that it holds already.

        Raises DataError if there is one and `resume` is False, or if it was written with other settings.
        """
        entries: list[dict[str, Any]] = []
        if self.path.exists():
            if not resume:
                raise DataError(f"{self.path}: an unfinished run; go on with --resume, or remove the file")
            entries = self._read()
        self._rewrite(entries)
        try:
            # Opened only now: `_rewrite` puts another file in its place.
            with open(self.path, "ab") as self._file:
                yield entries
        finally:
            self._file = None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry, and returns when it is on disk. Raises DataError if it can't be written."""
        if self._file is None:
            raise DataError(f"{self.path}: the journal is not open")
        try:
            self._file.write(_line(entry))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def remove(self) -> None:
        """Takes the journal away, when the output is in place."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> list[dict[str, Any]]:
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror})") from error
        whole, _, _ = content.rpartition(b"\n")
        entries = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.path}, line {number}: not JSON") from error
            if not isinstance(entry, dict):
                raise DataError(f"{self.path}, line {number}: not an object")
            entries.append(entry)
        if not entries:
            return []
        found = entries[0].get("settings")
        if found != self._settings:
            differ = sorted(
                name
                for name in {*self._settings, *(found if isinstance(found, dict) else {})}
                if not isinstance(found, dict) or found.get(name) != self._settings.get(name)
            )
            raise DataError(f"{self.path}: begun with other settings ({', '.join(differ)}); remove it to begin anew")
        return entries[1:]

    def _rewrite(self, entries: list[dict[str, Any]]) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(b"".join(map(_line, [{"settings": self._settings}, *entries])))


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
