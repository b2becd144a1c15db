"""Which files are screened: single ones, all of a folder, or those that match a pattern."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentguard.errors import DataError
from latentguard.records import check_prompts_file

_CHUNK_BYTES = 2**20
_PATTERN_SIGNS = frozenset("*?[")


def find_inputs(names: Iterable[str | Path]) -> list[Path]:
    """The prompt files that names stand for, in the order of the names.

    A name is a file; a folder, which stands for all files in it and the folders below but those that begin with "." or
    "_"; or a pattern with ``*``, ``?``, ``[...]`` and ``**``. What a folder or a pattern stands for is sorted.

    Raises:
        DataError: a name stands for no file, a file is there twice or can't be a prompt file, its name can't be
            written down, or a folder has a link to another one, where files would go unscreened.
    """
    found: dict[str, Path] = {}
    for name in names:
        for path in _files_of(Path(name)):
            _check_name(path)
            check_prompts_file(path)
            if (real := os.path.realpath(path)) in found:
                raise DataError(f"{path}: is given twice")
            found[real] = path
    return list(found.values())


def _check_name(path: Path) -> None:
    # Bytes that are no UTF-8 are halves of surrogate pairs here, and no manifest could hold them.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise DataError(f"{str(path)!r}: a file's name must be UTF-8 without control characters")


def _files_of(name: Path) -> list[Path]:
    if os.path.isdir(name):
        files = sorted(_walk(name))
        if not files:
            raise DataError(f"{name}: the folder has no files")
        return files
    if os.path.exists(name) or not _PATTERN_SIGNS & set(str(name)):
        return [name]
    matches = sorted(Path(match) for match in glob.glob(str(name), recursive=True) if os.path.isfile(match))
    if not matches:
        raise DataError(f"{name}: matches no file")
    return matches


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [each for each in folders if not _is_hidden(each)]
        for each in folders:
            if os.path.islink(path := Path(parent, each)):
                raise DataError(f"{path}: is a link to a folder; name that folder itself")
        yield from (Path(parent, each) for each in files if not _is_hidden(each))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


@dataclass(frozen=True)
class InputDigest:
    """What an input was when a run began: its name, its size in bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InputState:
    """What the system tells of a file without reading it; it changes when somebody writes to the file."""

    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> InputState:
        """The state of a file now; DataError if it is gone, or a pipe or a device, which can't be read again."""
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: is a pipe or a device; parts are made of files that can be read again")
        return cls(found.st_size, found.st_mtime_ns)


def digest_of(path: Path) -> InputDigest:
    """Reads a file once for its digest; DataError if it can't be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    return InputDigest(str(path), size, digest.hexdigest())


def check_unchanged(path: Path, state: InputState) -> None:
    """Raises DataError if a file is no longer what it was."""
    if InputState.of(path) != state:
        raise DataError(f"{path}: was changed while it was being screened")
