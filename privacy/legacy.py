"""Reading images of the published PrivacyAsst flow (Zhang et al., IEEE TDSC 2024). Writing them is not possible.

There an image is a Fernet token whose key both sides derive from a Diffie-Hellman exchange in a group of 23 elements:
whoever finds the token tries the 22 possible keys in an instant. What was read should be sealed anew.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import warnings
from collections.abc import Iterator

from cryptography.fernet import Fernet, InvalidToken

from privacy.errors import CannotOpenError, KeyFileError, LegacyWarning

WARNING = "the published flow's key exchange protects nothing: anybody could have read or made this; seal it anew"

_MAX_DIGITS = 1000


def open_published(token: bytes, secret: str) -> bytes:
    """The content of a Fernet token, given its key or the number that both sides agreed on.

    `secret` is either a Fernet key, 44 characters of base64, or that number in decimal. A number is tried as
    SHA-256 of its decimal digits, then of its bytes, then as the 32 bytes of the key themselves (the number big-endian,
    or its digits filled up with zeros in front); which of them is right, Fernet's own authentication tells.

    Warns:
        LegacyWarning: always, if the token could be read.

    Raises:
        KeyFileError: `secret` is neither.
        CannotOpenError: the token was changed, has another key, or is none.
    """
    for key in _candidates(secret.strip()):
        try:
            content = Fernet(key).decrypt(token.strip())
        except InvalidToken:
            continue
        warnings.warn(WARNING, LegacyWarning, stacklevel=2)
        return content
    raise CannotOpenError


def _candidates(secret: str) -> Iterator[bytes]:
    if secret.isascii() and secret.isdigit() and len(secret) <= _MAX_DIGITS:
        number = int(secret)
        raw = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")
        keys = [hashlib.sha256(str(number).encode()).digest(), hashlib.sha256(raw).digest()]
        keys += [form.rjust(32, fill) for form, fill in ((raw, b"\0"), (str(number).encode(), b"0")) if len(form) <= 32]
        yield from (base64.urlsafe_b64encode(key) for key in keys)
        return
    try:
        if len(base64.b64decode(secret, altchars=b"-_", validate=True)) != 32:
            raise ValueError
    except (binascii.Error, ValueError):
        raise KeyFileError("the secret is neither a Fernet key nor a number") from None
    yield secret.encode("ascii")
