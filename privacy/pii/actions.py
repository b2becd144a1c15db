"""What takes the place of personal data: a word, asterisks, a keyed hash, or a token that the vault can undo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from cryptography.hazmat.primitives import hashes, hmac

from privacy.errors import PiiError

_MIN_KEY_BYTES = 16
_HASH_BYTES = 16
_KIND = "pii"

# What reads well in a prompt, instead of a type in angle brackets.
PROMPT_WORDS: Mapping[str, str] = {"PERSON": "a person", "LOCATION": "a place"}


class Action(Protocol):
    """Says what stands in place of `value`, which is personal data of a type such as PERSON."""

    def __call__(self, kind: str, value: str) -> str: ...


class TokenStore(Protocol):
    """The part of `privacy.vault.Vault` that tokens need."""

    def store(self, kind: str, value: bytes, *, expires: datetime | None = None) -> str:
        """Keeps the value and returns an id for it."""
        ...

    def fetch(self, id: str) -> bytes:
        """The value of an id."""
        ...


@dataclass(frozen=True)
class Replace:
    """The type in angle brackets, <PERSON>, or the word that `words` has for it, such as those of PROMPT_WORDS."""

    words: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, kind: str, value: str) -> str:
        return self.words.get(kind, f"<{kind}>")


@dataclass(frozen=True)
class Mask:
    """One and the same number of `character`, whatever the length of what they hide."""

    character: str = "*"

    def __post_init__(self) -> None:
        if len(self.character) != 1 or self.character.isalnum():
            raise PiiError("personal data is masked by one character that is neither letter nor digit")

    def __call__(self, kind: str, value: str) -> str:
        return self.character * 8


@dataclass(frozen=True)
class KeyedHash:
    """HMAC-SHA256 under `key`, cut to 128 bits: <PERSON:9f…>. Equal values of a type stay equal.

    Whoever has the key can try values; without it nobody can. Raises PiiError for a key of fewer than 16 bytes.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < _MIN_KEY_BYTES:
            raise PiiError(f"the key has {len(self.key)} bytes; it needs {_MIN_KEY_BYTES} or more")

    def __call__(self, kind: str, value: str) -> str:
        code = hmac.HMAC(self.key, hashes.SHA256())
        code.update(f"{kind}:{value}".encode())
        return f"<{kind}:{code.finalize()[:_HASH_BYTES].hex()}>"


@dataclass(frozen=True)
class Tokens:
    """A token that stands for the value in the vault: <PERSON:id>; `restore` puts the value back.

    Every occurrence gets a token of its own, so that nothing tells which values are equal. `expires` is when the vault
    forgets the values.
    """

    vault: TokenStore = field(repr=False)
    expires: datetime | None = None

    def __call__(self, kind: str, value: str) -> str:
        return f"<{kind}:{self.vault.store(_KIND, _packed(kind, value), expires=self.expires)}>"


_TOKEN = re.compile(r"<([A-Z_]+):([\w-]+)>")


def restore(text: str, vault: TokenStore) -> str:
    """The text with the values that its tokens stand for.

    Raises:
        PiiError: a token's id is that of something else in the vault. What the vault raises for an unknown or expired
            id passes through.
    """
    return _TOKEN.sub(lambda match: _unpacked(match[1], vault.fetch(match[2])), text)


def _packed(kind: str, value: str) -> bytes:
    return f"{_KIND}:{kind}:{value}".encode()


def _unpacked(kind: str, content: bytes) -> str:
    # A token may be forged: no other record of the vault, such as an image, must come out of it.
    start = f"{_KIND}:{kind}:".encode()
    if not content.startswith(start):
        raise PiiError("a token stands for something else than personal data of its type")
    return content[len(start) :].decode()
