"""The bytes at the front of a sealed file, and the keys that come from them. `docs/sealed-format.md` has it all.

    preamble    what is public and never changes: version, time, model, prompt hash, signer
    commitment  binds the file key, so that one file can't open to two contents under two keys
    recipients  the file key, sealed to each recipient by HPKE
    MAC         over all of these, under the file key

The recipients can be exchanged (`rewrap`) without touching what the server signed: preamble, commitment and content.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import CannotOpenError, DataError, KeyFileError
from privacy.keys import HYBRID, X25519, PrivateKey, PublicKey, VerifyKey

MAGIC = b"\x89LGSEAL\n"
VERSION = 1
FILE_KEY_BYTES = 32
HASH_BYTES = 32
MAX_MODEL_BYTES = 255
MAX_RECIPIENTS = 1024

_SIGNED = 0x01
_HAS_PROMPT = 0x02
_START = struct.Struct(">8sBBQB")  # magic, version, flags, microseconds since 1970, length of the model id
_STANZA = struct.Struct(">HHH8sH")  # KEM, KDF, AEAD (numbers of RFC 9180, section 7), key id, length of what follows
_COUNT = struct.Struct(">H")

_KDF_AEAD = (0x0001, 0x0003)  # HKDF-SHA256, ChaCha20-Poly1305
_KEMS = {X25519: 0x0020, HYBRID: 0x647A}
_SUITES = {
    kind: hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    for kind, kem in ((X25519, hpke.KEM.X25519), (HYBRID, hpke.KEM.MLKEM768_X25519))
}
# What HPKE sends along (enc) for X25519, and for ML-KEM-768 and X25519 together; then the file key and its tag.
_WRAPPED_BYTES = {X25519: 32 + FILE_KEY_BYTES + 16, HYBRID: 1088 + 32 + FILE_KEY_BYTES + 16}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Preamble:
    """What a sealed file says in the clear about its content.

    `microseconds` since 1970, UTC; `prompt_hash` of 32 bytes, keyed, or None; `signer` None for an unsigned file.
    """

    microseconds: int
    model: str
    prompt_hash: bytes | None
    signer: VerifyKey | None

    @property
    def time(self) -> datetime:
        """When the file was sealed, UTC."""
        return _EPOCH + timedelta(microseconds=self.microseconds)

    def to_bytes(self) -> bytes:
        """Raises DataError if the model id is longer than 255 bytes or no Unicode, or the time before 1970."""
        try:
            model = self.model.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("the model id is not valid Unicode") from None
        if len(model) > MAX_MODEL_BYTES:
            raise DataError(f"the model id is longer than {MAX_MODEL_BYTES} bytes")
        if self.microseconds < 0:
            raise DataError("the time of sealing lies before 1970")
        flags = (_SIGNED if self.signer else 0) | (_HAS_PROMPT if self.prompt_hash else 0)
        return b"".join(
            (
                _START.pack(MAGIC, VERSION, flags, self.microseconds, len(model)),
                model,
                self.prompt_hash or b"",
                self.signer.raw if self.signer else b"",
            )
        )


@dataclass(frozen=True)
class FileKeys:
    """What is derived from a file key and a preamble: HKDF-SHA256 (RFC 5869) with labels of their own."""

    payload: bytes = field(repr=False)
    nonce_prefix: bytes = field(repr=False)
    commitment: bytes
    mac: bytes = field(repr=False)

    @classmethod
    def derive(cls, file_key: bytes, preamble: bytes) -> FileKeys:
        """The preamble is the salt: another preamble, other keys."""
        salt = hashlib.sha256(preamble).digest()
        payload = _hkdf(file_key, salt, b"payload", 32 + 7)
        return cls(
            payload=payload[:32],
            nonce_prefix=payload[32:],
            commitment=_hkdf(file_key, salt, b"commitment", HASH_BYTES),
            mac=_hkdf(file_key, salt, b"recipients", 32),
        )


@dataclass(frozen=True)
class Stanza:
    """The file key for one recipient. `kind` is None if the suite is none that this version knows."""

    kind: str | None
    key_id: bytes
    wrapped: bytes


@dataclass(frozen=True)
class Header:
    """A header as read: nothing in it is to be trusted before `unwrap` returned."""

    preamble: Preamble
    preamble_bytes: bytes
    commitment: bytes
    stanzas: tuple[Stanza, ...]
    recipients_bytes: bytes
    mac: bytes


def time_as_microseconds(time: datetime) -> int:
    """Microseconds since 1970. Raises DataError for a time without a zone."""
    if time.tzinfo is None:
        raise DataError("the time of sealing has no time zone")
    return (time - _EPOCH) // timedelta(microseconds=1)


def prompt_hash(file_key: bytes, prompt: str) -> bytes:
    """A hash of the prompt, 32 bytes, that only those who can open the file can compare with a guess.

    HMAC-SHA256 under a key from the file key. A plain hash would let anybody who finds the file try likely prompts.
    """
    key = _hkdf(file_key, None, b"prompt", 32)
    return hmac.digest(key, prompt.encode("utf-8", "surrogatepass"), "sha256")


def write_header(preamble: bytes, file_key: bytes, keys: FileKeys, recipients: Sequence[PublicKey]) -> bytes:
    """The whole header, with the file key sealed to each recipient.

    Raises:
        DataError: no recipient, or more than 1,024.
        KeyFileError: a public key is not a valid one.
    """
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise DataError(f"a file is sealed to 1 to {MAX_RECIPIENTS:,} recipients, not to {len(recipients)}")
    fixed = preamble + keys.commitment
    stanzas = b"".join(_stanza(fixed, file_key, recipient) for recipient in recipients)
    covered = fixed + _COUNT.pack(len(recipients)) + stanzas
    return covered + hmac.digest(keys.mac, covered, "sha256")


def read_header(take: Callable[[int], bytes]) -> Header:
    """Reads a header through `take(n)`, which gives n bytes or raises.

    Raises:
        CannotOpenError: it is not the header of a sealed file of this version.
    """
    start = take(_START.size)
    magic, version, flags, microseconds, length = _START.unpack(start)
    if magic != MAGIC or version != VERSION or flags & ~(_SIGNED | _HAS_PROMPT):
        raise CannotOpenError
    model = take(length)
    prompt = take(HASH_BYTES) if flags & _HAS_PROMPT else b""
    signer = take(32) if flags & _SIGNED else b""
    try:
        preamble = Preamble(microseconds, model.decode("utf-8"), prompt or None, VerifyKey(signer) if signer else None)
        _ = preamble.time  # a date that there is
    except (UnicodeDecodeError, OverflowError):
        raise CannotOpenError from None
    commitment = take(HASH_BYTES)
    recipients = count = take(_COUNT.size)
    stanzas = []
    if not 1 <= _COUNT.unpack(count)[0] <= MAX_RECIPIENTS:
        raise CannotOpenError
    for _ in range(_COUNT.unpack(count)[0]):
        head = take(_STANZA.size)
        kem, kdf, aead, key_id, size = _STANZA.unpack(head)
        wrapped = take(size)
        kind = next((kind for kind, number in _KEMS.items() if (kem, kdf, aead) == (number, *_KDF_AEAD)), None)
        stanzas.append(Stanza(kind, key_id, wrapped))
        recipients += head + wrapped
    return Header(preamble, start + model + prompt + signer, commitment, tuple(stanzas), recipients, take(HASH_BYTES))


def unwrap(header: Header, private_keys: Sequence[PrivateKey]) -> tuple[bytes, FileKeys]:
    """The file key and what is derived from it, by the first of the keys that the file is sealed to.

    Raises:
        CannotOpenError: none of the keys is meant, or the header was changed.
    """
    fixed = header.preamble_bytes + header.commitment
    for key in private_keys:
        key_id = key.public_key().key_id
        for stanza in header.stanzas:
            if (stanza.kind, stanza.key_id) != (key.kind, key_id):
                continue
            file_key = _unwrapped(fixed, stanza, key)
            keys = FileKeys.derive(file_key, header.preamble_bytes)
            mac = hmac.digest(keys.mac, fixed + header.recipients_bytes, "sha256")
            if hmac.compare_digest(mac, header.mac) & hmac.compare_digest(keys.commitment, header.commitment):
                return file_key, keys
            raise CannotOpenError
    raise CannotOpenError


def _stanza(fixed: bytes, file_key: bytes, recipient: PublicKey) -> bytes:
    public_key = recipient.to_hpke()
    try:
        wrapped = _SUITES[recipient.kind].encrypt(file_key, public_key, info=_info(fixed))
    except ValueError:  # a point of small order
        raise KeyFileError("the public key is not a valid one") from None
    return _STANZA.pack(_KEMS[recipient.kind], *_KDF_AEAD, recipient.key_id, len(wrapped)) + wrapped


def _unwrapped(fixed: bytes, stanza: Stanza, key: PrivateKey) -> bytes:
    if len(stanza.wrapped) != _WRAPPED_BYTES[key.kind]:
        raise CannotOpenError
    try:
        return _SUITES[key.kind].decrypt(stanza.wrapped, key.to_hpke(), info=_info(fixed))
    except (InvalidTag, ValueError):
        raise CannotOpenError from None


def _info(fixed: bytes) -> bytes:
    """HPKE's info: preamble and commitment. The library's HPKE has no associated data; info binds as strongly."""
    return b"latentguard sealed v1 file key\0" + fixed


def _hkdf(file_key: bytes, salt: bytes | None, label: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, b"latentguard sealed v1 " + label).derive(file_key)
