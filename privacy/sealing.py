"""Sealing: a file that only those whom it is sealed to can open.

    key = PrivateKey.generate()
    sealed = seal(png, key.public_key(), Metadata(model="sdxl", prompt="a red bicycle"), signing_key=server_key)
    opened = open_sealed(sealed, key, signer=server_key.public_key())
    opened.data == png and opened.info.made_from("a red bicycle")

A random file key is sealed to every recipient by HPKE (RFC 9180). Under it the content is encrypted in chunks of 64 KiB
with ChaCha20-Poly1305 in the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, "Online authenticated
encryption and its nonce-reuse misuse-resistance", CRYPTO 2015): chunks that are left out, exchanged, cut off or added
are refused. `docs/sealed-format.md` describes the format byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tqdm import tqdm

from privacy.errors import CannotOpenError, DataError
from privacy.files import atomic_path, read_error, write_error
from privacy.keys import PrivateKey, PublicKey, SigningKey, VerifyKey
from privacy.sealed_header import (
    FILE_KEY_BYTES,
    FileKeys,
    Header,
    Preamble,
    prompt_hash,
    read_header,
    time_as_microseconds,
    unwrap,
    write_header,
)

CHUNK_BYTES = 64 * 1024

_TAG_BYTES = 16
_SIGNATURE_BYTES = 64
_MAX_CHUNKS = 2**32
_HASHED_AT_ONCE = 16 * (CHUNK_BYTES + _TAG_BYTES)

_K = TypeVar("_K", PublicKey, PrivateKey)


@dataclass(frozen=True)
class Metadata:
    """What is sealed with the content and can't be separated from it.

    `model` (at most 255 bytes) and `time` (with a zone; now, if None) stand in the file for everybody to read. Of the
    prompt the file holds a keyed hash, which nobody can compare with a guess who can't open the file.
    """

    model: str = ""
    prompt: str | None = field(default=None, repr=False)
    time: datetime | None = None


@dataclass(frozen=True)
class SealedInfo:
    """What an opened file says about its content; all of it is authenticated.

    `signer` is the key whose signature was verified, or None if the file is not signed: whoever has the recipient's
    public key can make such a file. `key_ids` are those of all recipients.
    """

    model: str
    time: datetime
    signer: VerifyKey | None
    key_ids: tuple[bytes, ...]
    prompt_hash: bytes | None
    _file_key: bytes = field(repr=False)

    def made_from(self, prompt: str) -> bool:
        """Whether the file was sealed with exactly this prompt as its metadata."""
        found = prompt_hash(self._file_key, prompt)
        return self.prompt_hash is not None and secrets.compare_digest(found, self.prompt_hash)


@dataclass(frozen=True)
class Opened:
    """The content of a sealed file and what the file says about it."""

    data: bytes = field(repr=False)
    info: SealedInfo


class Source(Protocol):
    """What is read from: any binary file, pipe or BytesIO."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Sink(Protocol):
    """What is written to."""

    def write(self, data: memoryview | bytes, /) -> object: ...


def seal(
    data: bytes,
    recipients: PublicKey | Sequence[PublicKey],
    metadata: Metadata | None = None,
    *,
    signing_key: SigningKey | None = None,
) -> bytes:
    """`data` as a sealed file.

    Raises:
        DataError: no recipient or more than 1,024, or metadata that can't be written.
        KeyFileError: a public key is not a valid one.
    """
    sink = BytesIO()
    seal_stream(_Memory(data), sink, recipients, metadata, signing_key=signing_key)
    return sink.getvalue()


def open_sealed(
    data: bytes, private_keys: PrivateKey | Sequence[PrivateKey], *, signer: VerifyKey | None = None
) -> Opened:
    """The content of a sealed file, for whoever has the private key of one of its recipients.

    `private_keys` may be several, such as the present key and those before it. With `signer`, the file has to be signed
    by that key. A signature that is there is verified in any case.

    Raises:
        CannotOpenError: for whatever reason.
    """
    sink = BytesIO()
    info = open_stream(_Memory(data), sink, private_keys, signer=signer)
    return Opened(sink.getvalue(), info)


def seal_stream(
    source: Source,
    sink: Sink,
    recipients: PublicKey | Sequence[PublicKey],
    metadata: Metadata | None = None,
    *,
    signing_key: SigningKey | None = None,
) -> None:
    """Seals what `source` has left into `sink`, in memory that doesn't grow with it. Raises as `seal`."""
    metadata = metadata or Metadata()
    file_key = secrets.token_bytes(FILE_KEY_BYTES)
    preamble = Preamble(
        time_as_microseconds(metadata.time or datetime.now(timezone.utc)),
        metadata.model,
        None if metadata.prompt is None else prompt_hash(file_key, metadata.prompt),
        signing_key.public_key() if signing_key else None,
    ).to_bytes()
    keys = FileKeys.derive(file_key, preamble)
    sink.write(write_header(preamble, file_key, keys, _several(recipients, PublicKey)))
    with _digest(signing_key is not None) as digest:
        for ciphertext in _encrypted(source, keys, preamble):
            digest.update(ciphertext)
            sink.write(ciphertext)
        if signing_key is not None:
            sink.write(signing_key.sign(_signed_message(preamble + keys.commitment, digest)))


def open_stream(
    source: Source,
    sink: Sink,
    private_keys: PrivateKey | Sequence[PrivateKey],
    *,
    signer: VerifyKey | None = None,
) -> SealedInfo:
    """Opens `source` into `sink`, in memory that doesn't grow with it.

    Every chunk written is authentic, but that none is missing at the end, and who signed, is known only when this
    returns: until then, and if it raises, do nothing with what `sink` got. `open_file` sees to that.

    Raises:
        CannotOpenError: for whatever reason.
    """
    header = read_header(lambda size: _exactly(source, size))
    if signer is not None and header.preamble.signer != signer:
        raise CannotOpenError
    file_key, keys = unwrap(header, _several(private_keys, PrivateKey))
    with _digest(header.preamble.signer is not None) as digest:
        trailer = _decrypted(source, sink, keys, header, digest)
        if header.preamble.signer is not None:
            message = _signed_message(header.preamble_bytes + header.commitment, digest)
            if not header.preamble.signer.verifies(trailer, message):
                raise CannotOpenError
    return SealedInfo(
        header.preamble.model,
        header.preamble.time,
        header.preamble.signer,
        tuple(stanza.key_id for stanza in header.stanzas),
        header.preamble.prompt_hash,
        file_key,
    )


def seal_file(
    path: str | Path,
    target: str | Path,
    recipients: PublicKey | Sequence[PublicKey],
    metadata: Metadata | None = None,
    *,
    signing_key: SigningKey | None = None,
    replace: bool = True,
) -> None:
    """Seals a file into `target`, which is there whole or not at all, with a progress bar for a large one.

    Raises:
        DataError: a file can't be read or written, or as `seal`.
        KeyFileError: a public key is not a valid one.
    """
    with _between(path, target, "sealing", replace=replace) as (source, sink):
        seal_stream(source, sink, recipients, metadata, signing_key=signing_key)


def open_file(
    path: str | Path,
    target: str | Path,
    private_keys: PrivateKey | Sequence[PrivateKey],
    *,
    signer: VerifyKey | None = None,
    replace: bool = True,
) -> SealedInfo:
    """Opens a sealed file into `target`, which appears only when all of it, signature included, has been verified.

    Raises:
        CannotOpenError: for whatever reason that lies in the sealed file or the key; `target` is as it was.
        DataError: a file can't be read or written.
    """
    with _between(path, target, "opening", replace=replace) as (source, sink):
        return open_stream(source, sink, private_keys, signer=signer)


def rewrap_file(
    path: str | Path,
    target: str | Path,
    private_keys: PrivateKey | Sequence[PrivateKey],
    recipients: PublicKey | Sequence[PublicKey],
) -> None:
    """Gives a sealed file other recipients, for a key rotation or to share it; `target` may be `path` itself.

    Content and signature are copied as they are: the file still says who made it. All of it is verified first. Whoever
    could open the old file and kept a copy still can.

    Raises:
        CannotOpenError: for whatever reason that lies in the sealed file or the key; `target` is as it was.
        DataError: a file can't be read or written, or as `seal`.
        KeyFileError: a public key is not a valid one.
    """
    private_keys = _several(private_keys, PrivateKey)
    with _between(path, target, "rotating") as (source, sink):
        open_stream(source, _Nowhere(), private_keys)
        source.rewind()
        header = read_header(lambda size: _exactly(source, size))
        file_key, keys = unwrap(header, private_keys)
        sink.write(write_header(header.preamble_bytes, file_key, keys, _several(recipients, PublicKey)))
        for block, _ in _blocks(source, CHUNK_BYTES):
            sink.write(block)


def _encrypted(source: Source, keys: FileKeys, preamble: bytes) -> Iterator[memoryview]:
    """The chunks of the ciphertext; each is to be used before the next, which takes its place in memory."""
    cipher = ChaCha20Poly1305(keys.payload)
    out = memoryview(bytearray(CHUNK_BYTES + _TAG_BYTES))
    for number, (chunk, last) in enumerate(_blocks(source, CHUNK_BYTES)):
        if number == _MAX_CHUNKS:
            raise DataError(f"is longer than {_MAX_CHUNKS * CHUNK_BYTES // 2**40} TiB, the most that can be sealed")
        size = len(chunk) + _TAG_BYTES
        cipher.encrypt_into(_nonce(keys, number, last=last), chunk, preamble, out[:size])
        yield out[:size]


def _decrypted(source: Source, sink: Sink, keys: FileKeys, header: Header, digest: _Hashing | _NoDigest) -> bytes:
    """Writes the content to `sink` and returns what follows the last chunk: a signature, or nothing."""
    cipher = ChaCha20Poly1305(keys.payload)
    out = memoryview(bytearray(CHUNK_BYTES))
    trailer = _SIGNATURE_BYTES if header.preamble.signer is not None else 0
    for number, (block, last) in enumerate(_blocks(source, CHUNK_BYTES + _TAG_BYTES, trailer)):
        chunk = block[: len(block) - trailer] if last else block
        size = len(chunk) - _TAG_BYTES
        # A last chunk without content is the writer's form for an empty file and for nothing else.
        if size < 0 or (size == 0 and number > 0) or number == _MAX_CHUNKS:
            raise CannotOpenError
        digest.update(chunk)
        try:
            cipher.decrypt_into(_nonce(keys, number, last=last), chunk, header.preamble_bytes, out[:size])
        except InvalidTag:
            raise CannotOpenError from None
        sink.write(out[:size])
        if last:
            return bytes(block[len(chunk) :])
    raise CannotOpenError


def _nonce(keys: FileKeys, number: int, *, last: bool) -> bytes:
    """12 bytes: a prefix, the chunk's number, and whether it is the last."""
    return keys.nonce_prefix + number.to_bytes(4, "big") + bytes([last])


def _blocks(source: Source, size: int, trailer: int = 0) -> Iterator[tuple[memoryview, bool]]:
    """Blocks of `size` bytes, and whether each is the last, which holds the `trailer` bytes that follow it as well.

    Only by looking one byte ahead is it known that a block is not the last. A block is to be used before the next.
    """
    if isinstance(source, _Memory):
        yield from source.blocks(size, trailer)
        return
    ahead = trailer + 1
    buffer = memoryview(bytearray(size + ahead))
    filled = _fill(source, buffer)
    while filled == len(buffer):
        yield buffer[:size], False
        buffer[:ahead] = buffer[size:]
        filled = ahead + _fill(source, buffer[ahead:])
    yield buffer[:filled], True


def _fill(source: Source, buffer: memoryview) -> int:
    """Reads until `buffer` is full or the source ends, since a source may give less than it is asked for."""
    filled = 0
    while filled < len(buffer):
        read = source.readinto(buffer[filled:])
        if not read:
            break
        filled += read
    return filled


def _exactly(source: Source, size: int) -> bytes:
    buffer = bytearray(size)
    if _fill(source, memoryview(buffer)) != size:
        raise CannotOpenError
    return bytes(buffer)


def _signed_message(fixed: bytes, digest: _Hashing | _NoDigest) -> bytes:
    """What Ed25519 signs: the unchanging part of the header, and the final digest of the encrypted content."""
    return b"latentguard sealed v1 signature\0" + hashlib.sha256(fixed).digest() + digest.digest()


class _Hashing:
    """SHA-256 in a thread of its own, beside the encryption: one batch is hashed while the next is filled."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._hash = hashlib.sha256()
        self._filling, self._hashed = bytearray(_HASHED_AT_ONCE), bytearray(_HASHED_AT_ONCE)
        self._filled = 0
        self._running: Future[None] | None = None

    def update(self, data: memoryview) -> None:
        end = self._filled + len(data)
        if end > _HASHED_AT_ONCE:
            self._hand_over()
            end = len(data)
        self._filling[self._filled : end] = data
        self._filled = end

    def digest(self) -> bytes:
        self._hand_over()
        self._wait()
        return self._hash.digest()

    def _hand_over(self) -> None:
        self._wait()
        self._filling, self._hashed = self._hashed, self._filling
        self._running = self._pool.submit(self._hash.update, memoryview(self._hashed)[: self._filled])
        self._filled = 0

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()


class _NoDigest:
    def update(self, data: memoryview) -> None:
        pass

    def digest(self) -> bytes:
        return b""


@contextmanager
def _digest(wanted: bool) -> Iterator[_Hashing | _NoDigest]:
    if not wanted:
        yield _NoDigest()
        return
    with ThreadPoolExecutor(1) as pool:
        yield _Hashing(pool)


def _several(keys: _K | Sequence[_K], kind: type[_K]) -> Sequence[_K]:
    return [keys] if isinstance(keys, kind) else list(keys)  # type: ignore[arg-type]


class _Memory:
    """Bytes in memory as a source, whose blocks need no copying."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    def readinto(self, buffer: memoryview, /) -> int:
        part = self._data[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def blocks(self, size: int, trailer: int) -> Iterator[tuple[memoryview, bool]]:
        """As `_blocks`."""
        while len(self._data) - self._at > size + trailer:
            yield self._data[self._at : self._at + size], False
            self._at += size
        yield self._data[self._at :], True


class _Nowhere:
    def write(self, data: memoryview | bytes, /) -> None:
        pass


class _Watched:
    """A file that is read with a progress bar."""

    def __init__(self, path: str | Path, file: FileIO, bar: tqdm[NoReturn]) -> None:
        self._path = path
        self._file = file
        self._bar = bar

    def readinto(self, buffer: memoryview, /) -> int | None:
        try:
            read = self._file.readinto(buffer)
        except OSError as error:
            raise read_error(self._path, error) from error
        self._bar.update(read or 0)
        return read

    def rewind(self) -> None:
        self._file.seek(0)
        self._bar.reset()


@contextmanager
def _between(
    path: str | Path, target: str | Path, verb: str, *, replace: bool = True
) -> Iterator[tuple[_Watched, BinaryIO]]:
    """Two open files: what is written to the second takes the place of `target` at the end, if all went well."""
    try:
        source = FileIO(path)
    except OSError as error:
        raise read_error(path, error) from error
    with (
        source,
        atomic_path(target, replace=replace) as temporary,
        tqdm(
            desc=verb,
            total=os.fstat(source.fileno()).st_size,
            unit="B",
            unit_scale=True,
            delay=0.5,
            leave=False,
            disable=None,
        ) as bar,
    ):
        try:
            with open(temporary, "wb") as sink:
                yield _Watched(path, source, bar), sink
        except OSError as error:
            raise write_error(target, error) from error
