from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.fernet import Fernet

from privacy import legacy
from privacy.errors import CannotOpenError, KeyFileError, LegacyWarning
from privacy.legacy import open_published


def token(raw_key: bytes) -> bytes:
    return Fernet(base64.urlsafe_b64encode(raw_key)).encrypt(b"image")


def shared_number() -> int:
    """As in the published flow: both sides of a Diffie-Hellman exchange modulo 23, with the generator 5."""
    alice, bob = 6, 15
    shared = pow(pow(5, bob, 23), alice, 23)
    assert shared == pow(pow(5, alice, 23), bob, 23)
    return shared


@pytest.mark.parametrize(
    "raw_key",
    [
        hashlib.sha256(b"2").digest(),
        hashlib.sha256(b"\x02").digest(),
        b"\x02".rjust(32, b"\0"),
        b"2".rjust(32, b"0"),
    ],
)
def test_an_image_is_read_with_the_number_agreed_on_and_a_warning(raw_key: bytes) -> None:
    with pytest.warns(LegacyWarning, match="protects nothing"):
        assert open_published(token(raw_key), f"{shared_number()}\n") == b"image"


def test_an_image_is_read_with_its_key_and_a_warning() -> None:
    key = Fernet.generate_key()
    with pytest.warns(LegacyWarning):
        assert open_published(Fernet(key).encrypt(b"image"), key.decode()) == b"image"


@pytest.mark.parametrize("secret", ["3", Fernet.generate_key().decode(), "9" * 900], ids=["short", "key", "long"])
def test_another_secret_opens_nothing(secret: str) -> None:
    with pytest.raises(CannotOpenError):
        open_published(token(hashlib.sha256(b"2").digest()), secret)


@pytest.mark.parametrize("secret", ["", "two", "AAAA", "²", "9" * 2000])
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(KeyFileError, match="neither a Fernet key nor a number"):
        open_published(token(bytes(32)), secret)


def test_nothing_can_be_written() -> None:
    assert [name for name in dir(legacy) if "encrypt" in name or "seal" in name or "write" in name] == []
