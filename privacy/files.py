"""Files of the privacy stage: whole or not there at all, and for nobody's eyes but their owner's."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privacy.errors import DataError, KeyFileError

OWNER_ONLY = 0o600


@contextmanager
def atomic_path(target: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields the path of an empty file beside `target`, readable by its owner alone, to be filled by the caller.

    On success the file is flushed to disk and takes the place of `target`; a symbolic link stays one, and what it
    points to is replaced. On any exception, KeyboardInterrupt included, it is removed and `target` is what it was.

    Raises:
        DataError: `target` can't be written; or it is there already and `replace` is False, in which case it is never
            touched, even if somebody else made it meanwhile.
    """
    final = Path(os.path.realpath(target))
    if final.is_dir():
        raise DataError(f"{target}: is a folder")
    if not final.parent.is_dir():
        raise DataError(f"{target}: the folder {final.parent} does not exist")
    if not replace and final.exists():
        raise _there_already(target)
    temporary = final.with_name(f".tmp-{secrets.token_hex(8)}{final.suffix}")
    try:
        with _as_data_error(target):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))
        yield temporary
        with _as_data_error(target):
            _sync(temporary)
            _put(temporary, final, target, replace=replace)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(final.parent)


def write_secret(target: str | Path, content: bytes, *, replace: bool = False) -> None:
    """Writes `content` to a file that only its owner may read.

    Raises:
        DataError: as `atomic_path`; by default an existing file is never overwritten, since it may hold the only key.
    """
    with atomic_path(target, replace=replace) as temporary, _as_data_error(target):
        temporary.write_bytes(content)


def read_secret(path: str | Path, limit: int) -> bytes:
    """The content of a file with a secret in it.

    Raises:
        KeyFileError: it is missing, can't be read, has more than `limit` bytes, or users other than its owner may read
            or write it.
    """
    try:
        # Mode and content come from one descriptor, so that the file can't be exchanged in between.
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and os.name == "posix" and status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(f"{path}: other users have access to it (mode {mode:o}): run chmod 600 on it")
            content = file.read(limit + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise KeyFileError(f"{path}: is longer than {limit:,} bytes")
    return content


def read_error(path: str | Path, error: OSError) -> DataError:
    """The DataError that says why `path` can't be read."""
    return DataError(f"{path}: can't be read: {error.strerror or error}")


def write_error(path: str | Path, error: OSError) -> DataError:
    """The DataError that says why `path` can't be written."""
    return DataError(f"{path}: can't be written: {error.strerror or error}")


@contextmanager
def _as_data_error(target: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(target, error) from error


def _there_already(target: str | Path) -> DataError:
    return DataError(f"{target}: exists already; it is not overwritten")


def _put(temporary: Path, final: Path, target: str | Path, *, replace: bool) -> None:
    if replace:
        os.replace(temporary, final)
        return
    try:
        os.link(temporary, final)  # unlike a renaming, this fails if somebody made `final` a moment ago
    except FileExistsError:
        raise _there_already(target) from None
    except OSError:  # a file system without hard links
        if final.exists():
            raise _there_already(target) from None
        os.replace(temporary, final)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable, where the system lets a folder be synced at all."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
