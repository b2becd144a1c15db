"""The passkey, and the independent keys that are stretched out of it.

    passkey = PassKey.from_file("passkey.txt")
    stretching = Stretching.new()               # a new random salt; public, stored with the model
    keys = subkeys(passkey, stretching)

A passkey is text that people choose, so it is stretched: Argon2id (RFC 9106) or scrypt (RFC 7914) makes each guess cost
memory and time, and a salt of its own makes the guesses for one model worthless for the next. HKDF-Expand (RFC 5869)
then gives one key per use, none of which tells anything of another. The code published with SentinelLMs seeds a
generator with the sum of the key's characters instead, which leaves some ten thousand keys to try.
"""

from __future__ import annotations

import getpass
import os
import secrets
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from privacy.errors import ConversionError, KeyFileError, MissingDependencyError
from privacy.files import read_secret

ENVIRONMENT = "PRIVACY_PASSKEY"
MIN_CHARACTERS = 16
KEY_BYTES = 32
SALT_BYTES = 16

Kdf = Literal["argon2id", "scrypt"]

_MAX_FILE_BYTES = 64 * 1024
_MIN_DISTINCT = 5
# Argon2id: the second recommended set of RFC 9106, section 4 (memory in KiB). scrypt: N = 2^17 at r = 8, 128 MiB.
_DEFAULTS: dict[Kdf, dict[str, int]] = {
    "argon2id": {"iterations": 3, "lanes": 4, "memory": 2**16},
    "scrypt": {"log2_n": 17, "r": 8, "p": 1},
}
# What a file may ask for: no less than protects, and no more than a laptop has.
_BOUNDS: dict[Kdf, dict[str, tuple[int, int]]] = {
    "argon2id": {"iterations": (1, 16), "lanes": (1, 16), "memory": (2**14, 2**20)},
    "scrypt": {"log2_n": (14, 20), "r": (8, 8), "p": (1, 4)},
}


@dataclass(frozen=True)
class PassKey:
    """A secret text of at least 16 characters. Neither `repr` nor `str` shows it.

    Raises:
        KeyFileError: it is shorter, or so few different characters that it was hardly chosen at random.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        try:
            text = self.secret.decode("utf-8")
        except UnicodeDecodeError:
            raise KeyFileError("the passkey is not UTF-8") from None
        if len(text) < MIN_CHARACTERS:
            raise KeyFileError(f"the passkey has {len(text)} characters; at least {MIN_CHARACTERS} are needed")
        if len(set(text)) < _MIN_DISTINCT:
            raise KeyFileError(f"the passkey has fewer than {_MIN_DISTINCT} different characters")

    @classmethod
    def from_text(cls, text: str) -> PassKey:
        """The key as UTF-8 of its NFC form, so that every keyboard gives the same."""
        try:
            return cls(unicodedata.normalize("NFC", text).encode("utf-8"))
        except UnicodeEncodeError:
            raise KeyFileError("the passkey is not UTF-8") from None

    @classmethod
    def from_file(cls, path: str | Path) -> PassKey:
        """The content of a file that only its owner may read, less line breaks at its end.

        Raises:
            KeyFileError: it is missing, others may read it, or what it holds is no passkey.
        """
        try:
            return cls.from_text(read_secret(path, _MAX_FILE_BYTES).decode("utf-8-sig").rstrip("\r\n"))
        except UnicodeDecodeError:
            raise KeyFileError(f"{path}: is not UTF-8") from None
        except KeyFileError as error:
            raise error if str(error).startswith(str(path)) else KeyFileError(f"{path}: {error}") from None

    @classmethod
    def from_environment(cls) -> PassKey | None:
        """The key in $PRIVACY_PASSKEY, or None if that isn't set. Raises KeyFileError if it is, to what is no key."""
        text = os.environ.get(ENVIRONMENT)
        if text is None:
            return None
        try:
            return cls.from_text(text)
        except KeyFileError as error:
            raise KeyFileError(f"{ENVIRONMENT}: {error}") from None

    @classmethod
    def from_prompt(cls, *, twice: bool) -> PassKey:
        """Asks at the terminal, `twice` for a new key. Raises KeyFileError if nobody can be asked."""
        if not sys.stdin.isatty():
            raise KeyFileError(f"nobody to ask for the passkey; give --passkey-file or set {ENVIRONMENT}")
        text = getpass.getpass("passkey: ")
        if twice and getpass.getpass("once more: ") != text:
            raise KeyFileError("the two passkeys differ")
        return cls.from_text(text)

    @classmethod
    def obtain(cls, file: str | Path | None, *, new: bool = False) -> PassKey:
        """The key of `file`; without one, of the environment; without that, of a prompt, twice for a `new` key.

        Raises:
            KeyFileError: what was found is no passkey, or nobody can be asked.
        """
        if file is not None:
            return cls.from_file(file)
        return cls.from_environment() or cls.from_prompt(twice=new)


@dataclass(frozen=True)
class Stretching:
    """How a passkey is stretched; public, and stored with the model.

    kdf: "argon2id" or "scrypt". salt: 16 bytes. parameters: `iterations`, `lanes` and `memory` in KiB for Argon2id;
    `log2_n`, `r` and `p` for scrypt.

    Raises:
        ConversionError: a parameter is missing, unknown, or would protect nothing or take all memory there is.
    """

    kdf: Kdf
    salt: bytes
    parameters: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.kdf not in _BOUNDS:
            raise ConversionError("key stretching other than argon2id and scrypt is not known here")
        if len(self.salt) != SALT_BYTES:
            raise ConversionError(f"the salt has {len(self.salt)} bytes, not {SALT_BYTES}")
        bounds = _BOUNDS[self.kdf]
        if set(self.parameters) != set(bounds):
            raise ConversionError(f"{self.kdf} takes exactly {', '.join(bounds)}")
        for name, (least, most) in bounds.items():
            value = self.parameters[name]
            if type(value) is not int or not least <= value <= most:
                raise ConversionError(f"{self.kdf}: {name} is not a whole number from {least:,} to {most:,}")
        if self.kdf == "argon2id" and self.parameters["memory"] < 8 * self.parameters["lanes"]:
            raise ConversionError("argon2id: needs 8 KiB of memory for each lane")

    @classmethod
    def new(cls, kdf: Kdf = "argon2id") -> Stretching:
        """The recommended parameters with a salt that nobody had before."""
        if kdf not in _DEFAULTS:
            raise ConversionError("key stretching other than argon2id and scrypt is not known here")
        return cls(kdf, secrets.token_bytes(SALT_BYTES), _DEFAULTS[kdf])

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, ready for JSON."""
        return {"kdf": self.kdf, "salt": self.salt.hex(), **self.parameters}

    @classmethod
    def from_dict(cls, content: Any) -> Stretching:
        """Reads what `as_dict` gave. Raises ConversionError for anything else."""
        try:
            parameters = dict(content)
            kdf, salt = parameters.pop("kdf"), bytes.fromhex(parameters.pop("salt"))
        except (TypeError, ValueError, KeyError):
            raise ConversionError("the key stretching's parameters are missing or damaged") from None
        return cls(kdf if isinstance(kdf, str) else "", salt, parameters)  # type: ignore[arg-type]  # checked there


@dataclass(frozen=True)
class Subkeys:
    """Independent keys of 32 bytes, one per use. Neither `repr` nor `str` shows them.

    vocabulary: names of encrypted tokens. permutation: order of ids. transform: map of embeddings. noise: noise on
    embeddings. words: digests of words and vocabularies. check: tells a right passkey from a wrong one.
    """

    vocabulary: bytes = field(repr=False)
    permutation: bytes = field(repr=False)
    transform: bytes = field(repr=False)
    noise: bytes = field(repr=False)
    words: bytes = field(repr=False)
    check: bytes = field(repr=False)


def subkeys(passkey: PassKey, stretching: Stretching) -> Subkeys:
    """The keys for each use; takes 64 MiB and a fraction of a second with the recommended Argon2id.

    Raises:
        MissingDependencyError: this build of the cryptography library has no Argon2id.
    """
    stretched = _stretch(passkey, stretching)
    return Subkeys(
        **{
            each.name: HKDFExpand(SHA256(), KEY_BYTES, b"latentguard passkey " + each.name.encode()).derive(stretched)
            for each in fields(Subkeys)
        }
    )


def _stretch(passkey: PassKey, stretching: Stretching) -> bytes:
    given = stretching.parameters
    if stretching.kdf == "scrypt":
        scrypt = Scrypt(stretching.salt, KEY_BYTES, n=2 ** given["log2_n"], r=given["r"], p=given["p"])
        return scrypt.derive(passkey.secret)
    try:
        argon2id = Argon2id(
            salt=stretching.salt,
            length=KEY_BYTES,
            iterations=given["iterations"],
            lanes=given["lanes"],
            memory_cost=given["memory"],
        )
    except UnsupportedAlgorithm:
        raise MissingDependencyError(
            "Argon2id needs cryptography with OpenSSL 3.2 or later; or choose scrypt"
        ) from None
    return argon2id.derive(passkey.secret)
