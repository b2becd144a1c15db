"""The file that tells where the audit log ends, so that a log whose last entries were removed is known as such."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from latentguard.service.audit_records import AuditError
from privacy.errors import PrivacyError
from privacy.files import OWNER_ONLY, write_secret

# One sector: it is overwritten in place, needs no room on a full disk, and is never seen half-written.
_BYTES = 512
_LOCK_S = 60.0


class Head(NamedTuple):
    """Number and MAC of the last entry that was acknowledged."""

    sequence: int
    mac: bytes


class AuditHead:
    """The file, authenticated by `key`. A process uses it inside `locked` only, alone among those of this folder.

    It is not flushed to disk at each entry: a power failure may set it back by seconds, which means that for those
    the removal of entries would not be noticed, but never that something is noticed where nothing is wrong.

    Raises:
        AuditError: it can't be read or written, or was changed.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_S, mode=OWNER_ONLY)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes that use the same file waiting."""
        try:
            self._lock.acquire()
        except (OSError, Timeout) as error:
            raise AuditError(f"{self._path}: can't be locked: {error}") from None
        try:
            yield
        finally:
            self._lock.release()

    def read(self) -> Head | None:
        """The head, or None where nothing was ever acknowledged."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuditError(f"{self._path}: can't be read: {error.strerror or error}") from None
        try:
            sequence, mac, tag = json.loads(content[:_BYTES])
            head, given = Head(int(sequence), bytes.fromhex(mac)), bytes.fromhex(tag)
        except (ValueError, TypeError):
            raise AuditError(f"{self._path}: is no head of an audit log") from None
        if not hmac.compare_digest(given, self._tag(head)):
            raise AuditError(f"{self._path}: was changed, or belongs to another audit log")
        return head

    def write(self, head: Head) -> None:
        """Puts the head in place of the one before."""
        text = json.dumps([head.sequence, head.mac.hex(), self._tag(head).hex()])
        content = text.encode("ascii").ljust(_BYTES - 1) + b"\n"
        try:
            if not self._path.exists():
                write_secret(self._path, content)
                return
            descriptor = os.open(self._path, os.O_WRONLY)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AuditError(f"{self._path}: can't be written: {error.strerror or error}") from None
        except PrivacyError as error:
            raise AuditError(str(error)) from None

    def _tag(self, head: Head) -> bytes:
        content = f"latentguard audit head v1\0{head.sequence}\0{head.mac.hex()}"
        return hmac.digest(self._key, content.encode("ascii"), "sha256")
