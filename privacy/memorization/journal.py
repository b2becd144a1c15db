"""Journals: what a long piece of work has done so far, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from privacy.errors import MemorizationError
from privacy.files import OWNER_ONLY, read_error, write_error


class Journal:
    """A JSON Lines file: the settings of the work first, then a line for each piece of it that is done.

        with Journal(path, {"seed": 1}) as journal:
            for row in range(len(journal.done), 1000):
                journal.append({"row": row, ...})

    `done` are the lines of an earlier run. A last line that was cut short by a crash is dropped.

    Raises:
        MemorizationError: the file is no journal, or its work was begun with other settings; the message names them.
        DataError: it can't be read or written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.done: list[dict[str, Any]] = []
        try:
            # Bytes, since what was being written in a crash may end in the middle of a character.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, OWNER_ONLY), "r+b")
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self._resume(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds what was done. It is with the system at once, so that it outlives this process."""
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _resume(self, settings: dict[str, Any]) -> None:
        try:
            content = self._file.read()
        except OSError as error:
            raise read_error(self.path, error) from error
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            if content and not json.dumps(settings, ensure_ascii=False).encode().startswith(content):
                raise MemorizationError(f"{self.path}: is there already, and isn't the journal of such work")
            self._file.truncate(0)
            self.append(settings)
            return
        try:
            first, *self.done = [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            raise MemorizationError(f"{self.path}: is damaged, or no journal: remove it to begin anew") from None
        if not isinstance(first, dict) or not all(isinstance(line, dict) for line in self.done):
            raise MemorizationError(f"{self.path}: is damaged, or no journal: remove it to begin anew")
        changed = sorted(key for key in {*first, *settings} if first.get(key) != settings.get(key))
        if changed:
            raise MemorizationError(
                f"{self.path}: was begun with other settings ({', '.join(changed)}): take those, or another output"
            )
        self._file.truncate(len(whole))
