"""The messages between client and server: msgpack in a frame with a version, typed, and held to lengths. Never pickle.

A message is the four bytes ``LGEI``, one byte of version, one of kind, the body's length (four bytes, big-endian) and
the body, a msgpack map with exactly the fields of its class below. What a reading accepts is bounded before anything
is allocated for it; the ciphertexts inside stay bytes here and are read by SEAL in the worker alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import msgpack

from privacy import errors
from privacy.encrypted_inference.parameters import DEFAULT, Parameters
from privacy.encrypted_inference.weights import Architecture
from privacy.errors import ContextError, InferenceError, WireError

VERSION = 1
MAX_ROTATIONS = 40
MAX_PACKED = 64
MAX_PIXELS = 1024
PACKED, BATCHED = "packed", "batched"

_MAGIC = b"LGEI"
_HEADER = struct.Struct(">4sBBI")
_NAME_CHARS = 200
_FINGERPRINT_BYTES = 32
_MAX_BODY = {  # bytes, by kind
    1: (MAX_ROTATIONS + 1) * DEFAULT.switching_key_bytes + 4096,
    2: MAX_PIXELS * DEFAULT.ciphertext_bytes // 2 + 4096 * MAX_PIXELS,  # batched ones have two of the four primes
    3: MAX_PACKED * DEFAULT.ciphertext_bytes + 4096,
    4: 4096,
}

M = TypeVar("M", bound="Keys | Query | Answer | Failure")


@dataclass(frozen=True)
class Keys:
    """What a client sends once: the public context and the evaluation keys, as SEAL writes them. Nothing is secret."""

    KIND: ClassVar[int] = 1

    parameters: Parameters
    relin: bytes
    rotations: bytes


@dataclass(frozen=True)
class Query:
    """Encrypted images, for the server that has the keys of that ``fingerprint``.

    ``layout`` is ``packed`` (a few ciphertexts per image) or ``batched`` (a ciphertext per pixel, row by row),
    ``count`` the number of images, ``shape`` the fingerprint of the architecture they are laid out for.
    """

    KIND: ClassVar[int] = 2

    fingerprint: bytes
    model: str
    shape: bytes
    layout: str
    count: int
    ciphertexts: tuple[bytes, ...]


@dataclass(frozen=True)
class Answer:
    """The encrypted logits: a ciphertext per image, or in a batched layout a ciphertext per class."""

    KIND: ClassVar[int] = 3

    fingerprint: bytes
    model: str
    layout: str
    count: int
    ciphertexts: tuple[bytes, ...]


@dataclass(frozen=True)
class Failure:
    """Why there is no answer: the name of an `InferenceError` and its message."""

    KIND: ClassVar[int] = 4

    error: str
    message: str

    @classmethod
    def of(cls, error: InferenceError) -> Failure:
        return cls(type(error).__name__, str(error)[:_NAME_CHARS])

    def exception(self) -> InferenceError:
        """The error to raise where the answer was awaited."""
        kind = getattr(errors, self.error, None)
        known = isinstance(kind, type) and issubclass(kind, InferenceError)
        return kind(self.message) if known and kind is not None else InferenceError(self.message)


def encode(message: Keys | Query | Answer | Failure) -> bytes:
    """The bytes of a message."""
    content = {field.name: _plain(getattr(message, field.name)) for field in fields(message)}
    body: bytes = msgpack.packb(content)
    return _HEADER.pack(_MAGIC, VERSION, message.KIND, len(body)) + body


def decode(content: bytes, kind: type[M]) -> M:
    """The message of that kind in `content`.

    Raises:
        WireError: it isn't one.
        ContextError: keys are for other parameters.
        InferenceError: it is a `Failure` while something else is awaited; raised as the error it stands for.
    """
    body, number = _body(content)
    if number == Failure.KIND and kind is not Failure:
        raise decode(content, Failure).exception()
    if number != kind.KIND:
        raise WireError(f"message: of kind {number}, where {kind.__name__} ({kind.KIND}) is awaited")
    wanted = {field.name for field in fields(kind)}
    if not isinstance(body, dict) or set(body) != wanted:
        raise WireError(f"message: {kind.__name__} has to have the fields {', '.join(sorted(wanted))}")
    return kind(**{name: _FIELDS[name](f"message: {name}", value) for name, value in body.items()})


def fingerprint(keys_message: bytes) -> bytes:
    """The name of a client's keys, 32 bytes: SHA-256 of the message that brings them."""
    return hashlib.sha256(keys_message).digest()


def shape_fingerprint(architecture: Architecture) -> bytes:
    """The name of an architecture, 32 bytes."""
    return hashlib.sha256(msgpack.packb(architecture.as_dict())).digest()


def _body(content: bytes) -> tuple[object, int]:
    if len(content) < _HEADER.size:
        raise WireError("message: shorter than its header")
    magic, version, kind, length = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise WireError("message: doesn't begin as one")
    if version != VERSION:
        raise WireError(f"message: of version {version}; this is version {VERSION}")
    if kind not in _MAX_BODY:
        raise WireError(f"message: of unknown kind {kind}")
    if length > _MAX_BODY[kind]:
        raise WireError(f"message: {length:,} bytes are more than the {_MAX_BODY[kind]:,} that its kind may have")
    if length != len(content) - _HEADER.size:
        raise WireError(f"message: has {len(content) - _HEADER.size:,} bytes of body, and says {length:,}")
    try:
        body = msgpack.unpackb(
            memoryview(content)[_HEADER.size :],
            strict_map_key=True,
            max_str_len=_NAME_CHARS * 4,
            max_bin_len=_MAX_BODY[1],
            max_array_len=MAX_PIXELS,
            max_map_len=8,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError("message: its body isn't msgpack of the kind awaited") from error
    return body, kind


def _plain(value: object) -> object:
    if isinstance(value, Parameters):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _bytes(at_most: int) -> Callable[[str, Any], bytes]:
    def check(where: str, value: Any) -> bytes:
        if not isinstance(value, bytes) or not 0 < len(value) <= at_most:
            raise WireError(f"{where}: not 1 to {at_most:,} bytes")
        return value

    return check


def _exactly(length: int) -> Callable[[str, Any], bytes]:
    def check(where: str, value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != length:
            raise WireError(f"{where}: not {length} bytes")
        return value

    return check


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _NAME_CHARS or not value.isprintable():
        raise WireError(f"{where}: not a text of 1 to {_NAME_CHARS} printable characters")
    return value


def _layout(where: str, value: Any) -> str:
    if value not in (PACKED, BATCHED):
        raise WireError(f"{where}: neither {PACKED} nor {BATCHED}")
    return str(value)


def _count(where: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= DEFAULT.slots:
        raise WireError(f"{where}: not 1 to {DEFAULT.slots:,}")
    return value


def _ciphertexts(where: str, value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise WireError(f"{where}: not a list of ciphertexts")
    check = _bytes(DEFAULT.ciphertext_bytes)
    return tuple(check(f"{where}: {place + 1}", one) for place, one in enumerate(value))


def _parameters(where: str, value: Any) -> Parameters:
    if value != _plain(DEFAULT):
        raise ContextError(f"{where}: not those of this server ({_plain(DEFAULT)})")
    return DEFAULT


_FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "parameters": _parameters,
    "relin": _bytes(DEFAULT.switching_key_bytes),
    "rotations": _bytes(MAX_ROTATIONS * DEFAULT.switching_key_bytes),
    "fingerprint": _exactly(_FINGERPRINT_BYTES),
    "shape": _exactly(_FINGERPRINT_BYTES),
    "model": _text,
    "error": _text,
    "message": _text,
    "layout": _layout,
    "count": _count,
    "ciphertexts": _ciphertexts,
}
