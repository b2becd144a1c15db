"""The keys at the top of the vault: they wrap the data keys of its records and nothing else.

`MasterKeys` is what the vault asks for. `LocalMasterKeys` and `FileMasterKeys` keep the keys here; an adapter of a key
management service has the same three members and keeps them there, so that no master key ever enters this process.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from privacy.errors import KeyFileError, VaultError
from privacy.files import read_secret, write_secret

ENVIRONMENT = "PRIVACY_VAULT_KEYS"
DATA_KEY_BYTES = 32

_KEY_BYTES = 32
_NONCE_BYTES = 12
_SETTLING_SECONDS = 60
_MAX_FILE_BYTES = 64 * 1024


class MasterKeys(Protocol):
    """Wraps and unwraps data keys: the hook for a key management service."""

    @property
    def current_id(self) -> str:
        """The name, of at most 200 characters, of the key that wraps from now on."""

    def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        """The name of the key used, and the data key encrypted and bound to `context`, its associated data."""

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """The data key. Raises VaultError if the key is unknown, or `wrapped` or `context` was changed."""


class LocalMasterKeys:
    """Master keys in memory, 32 bytes each; the last one is current, the others still read what they wrapped.

    A key wraps under random nonces of 96 bits, good for some billions of records (NIST SP 800-38D, section 8.3, sets
    2^32 for such nonces); rotate before.

    Raises:
        KeyFileError: no key, or one that has not 32 bytes.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise KeyFileError(f"a vault needs at least one master key, of {_KEY_BYTES} bytes each")
        self._keys = {_key_id(key): key for key in keys}
        self._current_id = _key_id(keys[-1])

    @classmethod
    def from_environment(cls, name: str = ENVIRONMENT) -> LocalMasterKeys:
        """Keys from an environment variable: what a key file holds, with spaces for its line ends.

        Raises:
            KeyFileError: it is not set, or holds something else.
        """
        text = os.environ.get(name)
        if text is None:
            raise KeyFileError(f"no master key: give a key file, or set {name}")
        return cls(_parsed(text, f"the environment variable {name}"))

    @property
    def current_id(self) -> str:
        return self._current_id

    def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        nonce = os.urandom(_NONCE_BYTES)
        cipher = ChaCha20Poly1305(self._keys[self._current_id])
        return self._current_id, nonce + cipher.encrypt(nonce, data_key, context)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            raise VaultError(f"no master key {key_id}")
        try:
            return ChaCha20Poly1305(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise VaultError(f"master key {key_id} does not open the data key: it was changed") from None


class FileMasterKeys:
    """Master keys of a file, read anew whenever it changes: a rotation needs no restart of whoever uses the vault.

    The file, of mode 0600, has a key a line, base64 of 32 bytes; the last one is current.

    Raises:
        KeyFileError: the file is missing, damaged, or readable by others.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._now()

    @classmethod
    def create(cls, path: str | Path) -> FileMasterKeys:
        """Writes a new file with one new key. Raises DataError if it exists: it may be all that opens a vault."""
        write_secret(path, _formatted([secrets.token_bytes(_KEY_BYTES)]))
        return cls(path)

    @property
    def current_id(self) -> str:
        return self._now().current_id

    def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        return self._now().wrap(data_key, context)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        return self._now().unwrap(key_id, wrapped, context)

    def add(self) -> str:
        """Adds a new key to the file, which wraps from now on. Returns its name."""
        keys = [*self._read(), secrets.token_bytes(_KEY_BYTES)]
        write_secret(self._path, _formatted(keys), replace=True)
        return self.current_id

    def keep_only_current(self) -> int:
        """Removes all keys but the current from the file and returns how many; what they wrapped is lost for good.

        Raises:
            KeyFileError: the file was changed within the last minute: somebody may be storing a record at this moment
                under the key that was current until then.
        """
        keys = self._read()
        age = time.time() - self._path.stat().st_mtime
        if len(keys) > 1 and age < _SETTLING_SECONDS:
            raise KeyFileError(f"{self._path}: a key was added only {age:.0f} s ago; wait for {_SETTLING_SECONDS} s")
        write_secret(self._path, _formatted(keys[-1:]), replace=True)
        return len(keys) - 1

    def _now(self) -> LocalMasterKeys:
        try:
            status = self._path.stat()
        except OSError as error:
            raise KeyFileError(f"{self._path}: can't be read: {error.strerror or error}") from error
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen != self._seen:
            self._keys = LocalMasterKeys(self._read())
            self._seen = seen
        return self._keys

    def _read(self) -> list[bytes]:
        try:
            text = read_secret(self._path, _MAX_FILE_BYTES).decode("ascii")
        except UnicodeDecodeError:
            text = "?"
        return _parsed(text, str(self._path))


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"latentguard master key\0" + key).hexdigest()[:16]


def _formatted(keys: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(key) + b"\n" for key in keys)


def _parsed(text: str, where: str) -> list[bytes]:
    """The keys of a file or variable; of a mistake only its place is told."""
    keys = []
    for number, word in enumerate(text.split(), start=1):
        try:
            key = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise KeyFileError(f"{where}: key {number} is not base64 of {_KEY_BYTES} bytes")
        keys.append(key)
    if not keys:
        raise KeyFileError(f"{where}: holds no key")
    return keys
