"""Keys: who may open a sealed file, and who signed it.

    key = PrivateKey.generate()
    line = str(key.public_key())  # one line to paste: "x25519:…"
    save_key(key, "key.pem", passphrase=b"…")
    key = load_private_key("key.pem", passphrase=b"…")

Every private key is 32 random bytes, its seed. A key file is PEM around the seed, encrypted under the passphrase with
scrypt (RFC 7914) and ChaCha20-Poly1305 (RFC 8439): `docs/sealed-format.md` has it byte for byte. PKCS #8, as the
cryptography library writes it, stretches a passphrase with 2,048 rounds of PBKDF2 only, and has no form for the hybrid
keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from privacy.errors import KeyFileError
from privacy.files import read_secret, write_secret

X25519 = "x25519"
HYBRID = "mlkem768-x25519"
ED25519 = "ed25519"
SEALING_KINDS = (X25519, HYBRID)

SEED_BYTES = 32
KEY_ID_BYTES = 8

_PUBLIC_BYTES = {X25519: 32, HYBRID: 1184 + 32, ED25519: 32}
_CODES = {X25519: 1, HYBRID: 2, ED25519: 3}
_KINDS = {code: kind for kind, code in _CODES.items()}
_CHECK_BYTES = 4

_PLAIN = "LATENTGUARD PRIVATE KEY"
_ENCRYPTED = "LATENTGUARD ENCRYPTED PRIVATE KEY"
_PEM = re.compile(
    rb"\s*-----BEGIN (?P<label>%b|%b)-----\s(?P<body>[A-Za-z0-9+/=\s]*)-----END (?P=label)-----\s*"
    % (_PLAIN.encode(), _ENCRYPTED.encode())
)
_FILE_VERSION = 1
_SALT_BYTES = 16
_HEAD_BYTES = 3 + _SALT_BYTES
_TAG_BYTES = 16
# 2^17 at r = 8 takes 128 MiB and half a second; a file may ask for up to eight times that, not for all memory there is.
_SCRYPT_COST = 17
_MAX_SCRYPT_COST = 20
_MAX_FILE_BYTES = 64 * 1024

# HPKE's key objects, as the library takes them.
HpkePrivateKey = x25519.X25519PrivateKey | hpke.MLKEM768X25519PrivateKey
HpkePublicKey = x25519.X25519PublicKey | hpke.MLKEM768X25519PublicKey

Passphrase = bytes | Callable[[], bytes]
"""A passphrase, or how to ask for one: called only if the file turns out to be encrypted."""


@dataclass(frozen=True)
class PublicKey:
    """What others need to seal something to its owner. `str` gives one line to paste, `from_line` reads it.

    Raises:
        KeyFileError: `kind` is none of `SEALING_KINDS`, or `raw` has not the length of such a key.
    """

    kind: str
    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in SEALING_KINDS:
            raise KeyFileError(f"is a key for {self.kind}, not one to seal to")
        _check_length(self.kind, self.raw)

    def __str__(self) -> str:
        return _line(self.kind, self.raw)

    @property
    def key_id(self) -> bytes:
        """The 8 bytes by which a sealed file says whose it is."""
        return hashlib.sha256(b"latentguard key id\0" + bytes([_CODES[self.kind]]) + self.raw).digest()[:KEY_ID_BYTES]

    @classmethod
    def from_line(cls, line: str) -> PublicKey:
        """Reads what `str` wrote. Raises KeyFileError, also if a character was lost or changed on the way."""
        return cls(*_from_line(line))

    def to_hpke(self) -> HpkePublicKey:
        """The key as the cryptography library takes it."""
        with _as_key_error():
            if self.kind == X25519:
                return x25519.X25519PublicKey.from_public_bytes(self.raw)
            return hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(self.raw[:-32]),
                x25519.X25519PublicKey.from_public_bytes(self.raw[-32:]),
            )


@dataclass(frozen=True)
class PrivateKey:
    """What opens files sealed to its public key. Neither `repr` nor `str` shows the seed."""

    kind: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in SEALING_KINDS:
            raise KeyFileError(f"is a key for {self.kind}, not one to open with")
        _check_seed(self.seed)

    @classmethod
    def generate(cls, kind: str = X25519) -> PrivateKey:
        """A new key. `HYBRID` stands against quantum computers too; its public line has 1,700 characters, not 60."""
        return cls(kind, secrets.token_bytes(SEED_BYTES))

    def public_key(self) -> PublicKey:
        """The public half."""
        if self.kind == X25519:
            return PublicKey(
                X25519, x25519.X25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
            )
        lattice, curve = self._expanded()
        raw = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        return PublicKey(HYBRID, raw)

    def to_hpke(self) -> HpkePrivateKey:
        """The key as the cryptography library takes it."""
        if self.kind == X25519:
            return x25519.X25519PrivateKey.from_private_bytes(self.seed)
        return hpke.MLKEM768X25519PrivateKey(*self._expanded())

    def _expanded(self) -> tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]:
        """Both halves from the seed, as X-Wing has it: draft-connolly-cfrg-xwing-kem, section 5.2."""
        expanded = hashlib.shake_256(self.seed).digest(64 + 32)
        with _as_key_error():
            return (
                mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
                x25519.X25519PrivateKey.from_private_bytes(expanded[64:]),
            )


@dataclass(frozen=True)
class VerifyKey:
    """A server's Ed25519 public key: tells who made a sealed file. `str` gives one line to paste."""

    raw: bytes = field(repr=False)
    kind: str = field(default=ED25519, init=False)

    def __post_init__(self) -> None:
        _check_length(ED25519, self.raw)

    def __str__(self) -> str:
        return _line(ED25519, self.raw)

    @classmethod
    def from_line(cls, line: str) -> VerifyKey:
        """Reads what `str` wrote. Raises KeyFileError, also if it is a key of another kind."""
        kind, raw = _from_line(line)
        if kind != ED25519:
            raise KeyFileError(f"is a key for {kind}, not one that verifies signatures")
        return cls(raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of this key signed `message`."""
        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A server's Ed25519 private key. Neither `repr` nor `str` shows the seed."""

    seed: bytes = field(repr=False)
    kind: str = field(default=ED25519, init=False)

    def __post_init__(self) -> None:
        _check_seed(self.seed)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key."""
        return cls(secrets.token_bytes(SEED_BYTES))

    def public_key(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self._key().public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`, 64 bytes."""
        return self._key().sign(message)

    def _key(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)


AnyPrivateKey = PrivateKey | SigningKey
_K = TypeVar("_K", PrivateKey, SigningKey)


def passphrase_bytes(text: str) -> bytes:
    """A typed passphrase as the bytes that count: UTF-8 of its NFC form, so that every keyboard gives the same.

    Raises:
        KeyFileError: it is empty.
    """
    if not text:
        raise KeyFileError("the passphrase is empty")
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")


def save_key(
    key: AnyPrivateKey, path: str | Path, *, passphrase: bytes | None, scrypt_cost: int = _SCRYPT_COST
) -> None:
    """Writes the key to a new file of mode 0600; an existing file is never overwritten.

    `passphrase` None writes the key in the clear, for servers whose secrets are kept by other means. `scrypt_cost` is
    the binary logarithm of scrypt's N.

    Raises:
        DataError: the file is there already, or can't be written.
        KeyFileError: the passphrase is empty.
    """
    write_secret(path, key_to_pem(key, passphrase=passphrase, scrypt_cost=scrypt_cost))


def load_private_key(path: str | Path, passphrase: Passphrase | None = None) -> PrivateKey:
    """Reads a key to open with.

    Raises:
        KeyFileError: no such file, others may read it, it is damaged or of another kind, or the passphrase is wrong.
    """
    return _of_type(PrivateKey, load_key(path, passphrase), path)


def load_signing_key(path: str | Path, passphrase: Passphrase | None = None) -> SigningKey:
    """Reads a key to sign with; raises as `load_private_key`."""
    return _of_type(SigningKey, load_key(path, passphrase), path)


def load_key(path: str | Path, passphrase: Passphrase | None = None) -> AnyPrivateKey:
    """Reads a key of any kind; raises as `load_private_key`."""
    pem = read_secret(path, _MAX_FILE_BYTES)
    try:
        return key_from_pem(pem, passphrase)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None


def key_to_pem(key: AnyPrivateKey, *, passphrase: bytes | None, scrypt_cost: int = _SCRYPT_COST) -> bytes:
    """The key as PEM, encrypted unless `passphrase` is None."""
    if passphrase is None:
        body = bytes([_FILE_VERSION, _CODES[key.kind]]) + key.seed
        return _armored(_PLAIN, body + _check(body))
    if not passphrase:
        raise KeyFileError("the passphrase is empty")
    head = bytes([_FILE_VERSION, _CODES[key.kind], scrypt_cost]) + os.urandom(_SALT_BYTES)
    cipher = _passphrase_cipher(passphrase, head)
    return _armored(_ENCRYPTED, head + cipher.encrypt(bytes(12), key.seed, _aad(head)))


def key_from_pem(pem: bytes, passphrase: Passphrase | None = None) -> AnyPrivateKey:
    """Reads what `key_to_pem` wrote.

    Raises:
        KeyFileError: it is damaged, or the passphrase is missing or wrong.
    """
    label, body = _unarmored(pem)
    if label == _PLAIN:
        content = body[:-_CHECK_BYTES]
        if len(content) != 2 + SEED_BYTES or not secrets.compare_digest(_check(content), body[-_CHECK_BYTES:]):
            raise _damaged()
        return _key(content, content[2:])
    if len(body) != _HEAD_BYTES + SEED_BYTES + _TAG_BYTES or body[2] > _MAX_SCRYPT_COST or not body[2]:
        raise _damaged()
    head, sealed = body[:_HEAD_BYTES], body[_HEAD_BYTES:]
    if passphrase is None:
        raise KeyFileError("is encrypted: a passphrase is needed")
    cipher = _passphrase_cipher(passphrase() if callable(passphrase) else passphrase, head)
    try:
        seed = cipher.decrypt(bytes(12), sealed, _aad(head))
    except InvalidTag:
        raise KeyFileError("the passphrase is wrong, or the file is damaged") from None
    return _key(head, seed)


def _key(head: bytes, seed: bytes) -> AnyPrivateKey:
    kind = _KINDS.get(head[1])
    if head[0] != _FILE_VERSION or kind is None:
        raise KeyFileError("is a key of a kind or version that is not known here")
    return SigningKey(seed) if kind == ED25519 else PrivateKey(kind, seed)


def _of_type(wanted: type[_K], key: AnyPrivateKey, path: str | Path) -> _K:
    if not isinstance(key, wanted):
        use = "signs" if isinstance(key, SigningKey) else "opens sealed files"
        raise KeyFileError(f"{path}: is a key that {use} ({key.kind}), not the kind needed here")
    return key


def _passphrase_cipher(passphrase: bytes, head: bytes) -> ChaCha20Poly1305:
    """The key is used once, with its own salt, so its nonce may be fixed."""
    scrypt = Scrypt(salt=head[3:], length=32, n=2 ** head[2], r=8, p=1)
    return ChaCha20Poly1305(scrypt.derive(passphrase))


def _aad(head: bytes) -> bytes:
    return b"latentguard key file\0" + head


def _armored(label: str, body: bytes) -> bytes:
    text = "\n".join(textwrap.wrap(base64.b64encode(body).decode("ascii"), 64))
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----\n".encode("ascii")


def _unarmored(pem: bytes) -> tuple[str, bytes]:
    found = _PEM.fullmatch(pem)
    if found is None:
        raise _damaged()
    try:
        return found["label"].decode("ascii"), base64.b64decode(b"".join(found["body"].split()), validate=True)
    except binascii.Error:
        raise _damaged() from None


def _damaged() -> KeyFileError:
    return KeyFileError("is no key file of this library, or is damaged")


def _line(kind: str, raw: bytes) -> str:
    content = bytes([_CODES[kind]]) + raw
    return f"{kind}:" + base64.urlsafe_b64encode(raw + _check(content)).rstrip(b"=").decode("ascii")


def _from_line(line: str) -> tuple[str, bytes]:
    kind, _, text = line.strip().partition(":")
    if kind not in _CODES:
        raise KeyFileError("is no public key: it starts with none of " + ", ".join(f"{name}:" for name in _CODES))
    try:
        body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise KeyFileError("is no public key: it has a character that none has") from None
    raw, check = body[:-_CHECK_BYTES], body[-_CHECK_BYTES:]
    if len(raw) != _PUBLIC_BYTES[kind] or not secrets.compare_digest(check, _check(bytes([_CODES[kind]]) + raw)):
        raise KeyFileError("is no public key: a part of it was lost or changed")
    return kind, raw


def _check(content: bytes) -> bytes:
    """Tells a slip of the keyboard; against malice it is no help, and needn't be."""
    return hashlib.sha256(b"latentguard checksum\0" + content).digest()[:_CHECK_BYTES]


def _check_length(kind: str, raw: bytes) -> None:
    if len(raw) != _PUBLIC_BYTES[kind]:
        raise KeyFileError(f"a public {kind} key has {_PUBLIC_BYTES[kind]} bytes, not {len(raw)}")


def _check_seed(seed: bytes) -> None:
    if len(seed) != SEED_BYTES:
        raise KeyFileError(f"a private key has {SEED_BYTES} bytes, not {len(seed)}")


@contextmanager
def _as_key_error() -> Iterator[None]:
    try:
        yield
    except UnsupportedAlgorithm:
        raise KeyFileError("keys of this kind need a newer OpenSSL than cryptography was built with") from None
    except ValueError:
        raise KeyFileError("the public key is not a valid one") from None
