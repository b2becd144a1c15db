"""Writing a file so that it is whole or not there at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentguard.errors import DataError

# No room left: on the disk, in the user's quota, or under the limit on a file's size.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def check_target(target: str | Path) -> None:
    """Raises DataError if no file can be put at `target`: its folder doesn't exist, or it is a folder itself."""
    target = Path(target)
    if not os.path.isdir(target.parent):
        raise DataError(f"{target}: the folder {target.parent} does not exist")
    if os.path.isdir(target):
        raise DataError(f"{target}: is a folder")
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"{target}: the folder {target.parent} is not writable")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yields the path of an empty file beside `target`, of the same suffix, to be filled by the caller.

    On success the file is flushed to disk and renamed to `target`, whose permissions it takes over if there was one;
    a symbolic link stays one, and what it points to is replaced. On any exception, KeyboardInterrupt included, the file
    is removed and `target` is what it was before.

    Raises:
        DataError: `target` can't be written, before the caller did any work or after; or there was no room on the disk.
            Other exceptions of the caller's own pass through.
    """
    check_target(target)
    final = Path(os.path.realpath(target))
    temporary = final.with_name(f".tmp-{secrets.token_hex(8)}{final.suffix}")
    try:
        with _as_data_error(target):
            _create(temporary, like=final)
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise write_error(target, error) from error
            raise
        with _as_data_error(target):
            _sync(temporary)
            os.replace(temporary, final)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


def write_error(target: str | Path, error: OSError) -> DataError:
    """The DataError that says why `target` can't be written."""
    return DataError(f"{target}: can't be written: {error.strerror or error}")


@contextmanager
def _as_data_error(target: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(target, error) from error


def _create(path: Path, like: Path) -> None:
    # Not with tempfile, whose files nobody but their owner may read: here the umask decides, as for any new file.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    if like.exists():
        path.chmod(like.stat().st_mode & 0o777)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable, where the system lets a folder be synced at all."""
    if os.name != "posix":
        return
    # The file is in place by now: a file system that can't sync folders is no reason to report a failure.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
