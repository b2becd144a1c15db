from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import DataError, KeyFileError
from privacy.keys import (
    HYBRID,
    SEALING_KINDS,
    X25519,
    AnyPrivateKey,
    PrivateKey,
    PublicKey,
    SigningKey,
    VerifyKey,
    key_from_pem,
    key_to_pem,
    load_key,
    load_private_key,
    load_signing_key,
    passphrase_bytes,
    save_key,
)

CHEAP = 4  # scrypt's cost in tests
EVERY_KEY = [PrivateKey.generate(X25519), PrivateKey.generate(HYBRID), SigningKey.generate()]

every_key = pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.kind)
every_kind = pytest.mark.parametrize("kind", SEALING_KINDS)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    save_key(EVERY_KEY[0], path, passphrase=b"secret", scrypt_cost=CHEAP)
    return path


@every_key
@pytest.mark.parametrize("passphrase", [None, b"secret"])
def test_a_key_comes_back_from_its_file(key: AnyPrivateKey, passphrase: bytes | None, tmp_path: Path) -> None:
    save_key(key, tmp_path / "key.pem", passphrase=passphrase, scrypt_cost=CHEAP)
    assert load_key(tmp_path / "key.pem", passphrase) == key


@every_key
def test_a_public_key_comes_back_from_its_line(key: AnyPrivateKey) -> None:
    public_key = key.public_key()
    assert type(public_key).from_line(f" {public_key}\n") == public_key
    assert "\n" not in str(public_key)


def test_the_usual_public_key_is_short() -> None:
    assert len(str(PrivateKey.generate().public_key())) < 60


@every_key
def test_no_text_form_of_a_private_key_shows_it(key: AnyPrivateKey) -> None:
    assert key.seed.hex() not in repr(key)
    assert repr(key.seed)[2:-1] not in repr(key) + str(key)


@every_kind
def test_two_keys_differ_in_their_ids(kind: str) -> None:
    one, other = PrivateKey.generate(kind).public_key(), PrivateKey.generate(kind).public_key()
    assert one.key_id != other.key_id
    assert len(one.key_id) == 8


@given(place=st.integers(0), other=st.sampled_from("AQgw1-_"))
@settings(max_examples=30)
def test_a_line_with_another_character_is_refused(place: int, other: str) -> None:
    line = str(EVERY_KEY[0].public_key())
    place = len(X25519) + 1 + place % (len(line) - len(X25519) - 1)
    changed = line[:place] + other + line[place + 1 :]
    if changed != line:
        with pytest.raises(KeyFileError, match="lost or changed"):
            PublicKey.from_line(changed)


@pytest.mark.parametrize("line", ["", "x25519:", "x25519:ä", "rsa:AAAA", "no key", "x25519:AAAA", "x25519:A"])
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(KeyFileError, match="is no public key"):
        PublicKey.from_line(line)


def test_a_line_cut_short_is_refused() -> None:
    line = str(EVERY_KEY[1].public_key())
    with pytest.raises(KeyFileError, match="lost or changed"):
        PublicKey.from_line(line[:-7])


def test_keys_of_one_use_are_not_taken_for_another(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="not one to seal to"):
        PublicKey.from_line(str(EVERY_KEY[2].public_key()))
    with pytest.raises(KeyFileError, match="not one that verifies"):
        VerifyKey.from_line(str(EVERY_KEY[0].public_key()))
    save_key(EVERY_KEY[2], tmp_path / "signs.pem", passphrase=None)
    save_key(EVERY_KEY[0], tmp_path / "opens.pem", passphrase=None)
    with pytest.raises(KeyFileError, match=r"signs\.pem: is a key that signs"):
        load_private_key(tmp_path / "signs.pem")
    with pytest.raises(KeyFileError, match=r"opens\.pem: is a key that opens"):
        load_signing_key(tmp_path / "opens.pem")


def test_a_wrong_passphrase_is_refused(key_file: Path) -> None:
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        load_key(key_file, b"another")


def test_a_passphrase_is_asked_for_only_if_it_is_needed(key_file: Path, tmp_path: Path) -> None:
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return b"secret"

    assert load_key(key_file, ask) == EVERY_KEY[0]
    save_key(EVERY_KEY[0], tmp_path / "plain.pem", passphrase=None)
    load_key(tmp_path / "plain.pem", ask)
    assert len(asked) == 1


def test_an_encrypted_key_needs_a_passphrase(key_file: Path) -> None:
    with pytest.raises(KeyFileError, match="a passphrase is needed"):
        load_key(key_file)


@pytest.mark.parametrize("empty", [lambda: passphrase_bytes(""), lambda: key_to_pem(EVERY_KEY[0], passphrase=b"")])
def test_an_empty_passphrase_is_refused(empty: object) -> None:
    with pytest.raises(KeyFileError, match="empty"):
        empty()  # type: ignore[operator]


def test_a_passphrase_is_the_same_on_every_keyboard() -> None:
    assert passphrase_bytes("Ä") == passphrase_bytes("A\u0308")


@given(place=st.integers(0), bit=st.integers(0, 7), encrypted=st.booleans())
@settings(max_examples=60)
def test_any_flipped_bit_of_a_key_file_is_refused(place: int, bit: int, encrypted: bool) -> None:
    passphrase = b"secret" if encrypted else None
    pem = bytearray(key_to_pem(EVERY_KEY[0], passphrase=passphrase, scrypt_cost=CHEAP))
    pem[place % len(pem)] ^= 1 << bit
    try:
        found = key_from_pem(bytes(pem), passphrase)
    except KeyFileError:
        return
    # What is left are changes of blanks, or of bits that base64 doesn't use.
    assert found == EVERY_KEY[0]


def test_a_file_can_not_ask_for_all_memory() -> None:
    pem = key_to_pem(EVERY_KEY[0], passphrase=b"x", scrypt_cost=CHEAP)
    import base64

    label = b"LATENTGUARD ENCRYPTED PRIVATE KEY"
    body = bytearray(base64.b64decode(b"".join(pem.splitlines()[1:-1])))
    body[2] = 40
    hostile = b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, base64.b64encode(body), label)
    with pytest.raises(KeyFileError, match="damaged"):
        key_from_pem(hostile, b"x")


def test_a_key_file_is_for_its_owner_alone(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_file_that_others_have_access_to_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"key\.pem: other users have access to it \(mode {mode:o}\)"):
        load_key(key_file, b"secret")


def test_a_key_file_is_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(DataError, match="exists already"):
        save_key(EVERY_KEY[1], key_file, passphrase=None)
    assert key_file.read_bytes() == before
    assert list(key_file.parent.iterdir()) == [key_file]


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.pem: can't be read"):
        load_key(tmp_path / "none.pem")


def test_no_error_of_a_key_file_repeats_its_content(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as raised:
        load_key(path)
    assert "hunter2" not in str(raised.value)


def test_a_signature_is_verified() -> None:
    key = SigningKey.generate()
    assert key.public_key().verifies(key.sign(b"message"), b"message")
    assert not key.public_key().verifies(key.sign(b"message"), b"another")
    assert not SigningKey.generate().public_key().verifies(key.sign(b"message"), b"message")
    assert not key.public_key().verifies(b"short", b"message")
