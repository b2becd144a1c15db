"""Passkeys come in safely, and are stretched into keys that have nothing to do with one another."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import ConversionError, KeyFileError
from privacy.passkey.keys import PassKey, Stretching, subkeys

SECRET = "Zwölf Boxkämpfer jagen Viktor"


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "passkey.txt"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has 0 characters; at least 16 are needed"),
        ("fifteen letters", "has 15 characters; at least 16 are needed"),
        ("é" * 15, "has 15 characters"),
        ("abababababababababab", "fewer than 5 different characters"),
        ("a lone surrogate \ud800 in it", "is not UTF-8"),
    ],
)
def test_a_bad_passkey_is_refused(text: str, said: str) -> None:
    with pytest.raises(KeyFileError, match=said) as caught:
        PassKey.from_text(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_a_passkey_counts_as_its_normal_form() -> None:
    assert PassKey.from_text(SECRET) == PassKey.from_text(SECRET.replace("ö", "o\u0308").replace("ä", "a\u0308"))


def test_the_line_break_at_a_file_s_end_is_no_part_of_the_passkey(tmp_path: Path) -> None:
    assert PassKey.from_file(key_file(tmp_path, SECRET.encode() + b"\r\n")) == PassKey.from_text(SECRET)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"short\n", 0o600, "has 5 characters"),
        (b"", 0o600, "has 0 characters"),
        (b"\xff\xfe not UTF-8 at all \xff", 0o600, "is not UTF-8"),
        (SECRET.encode(), 0o644, "other users have access to it"),
        (b"x" * 100_000, 0o600, "is longer than"),
    ],
)
def test_a_bad_key_file_is_named_once(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    path = key_file(tmp_path, content, mode)
    with pytest.raises(KeyFileError, match=said) as caught:
        PassKey.from_file(path)
    assert str(caught.value).count(str(path)) == 1


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"absent\.txt: can't be read"):
        PassKey.from_file(tmp_path / "absent.txt")


def test_the_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVACY_PASSKEY", "another passkey of the environment")
    assert PassKey.obtain(key_file(tmp_path, SECRET.encode())) == PassKey.from_text(SECRET)
    assert PassKey.obtain(None) == PassKey.from_text("another passkey of the environment")


def test_an_empty_variable_is_a_bad_key_and_no_reason_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVACY_PASSKEY", "")
    with pytest.raises(KeyFileError, match="PRIVACY_PASSKEY: the passkey has 0 characters"):
        PassKey.obtain(None)


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVACY_PASSKEY", raising=False)
    with pytest.raises(KeyFileError, match="nobody to ask for the passkey; give --passkey-file or set PRIVACY_PASSKEY"):
        PassKey.obtain(None)


def test_neither_the_passkey_nor_a_subkey_is_shown(passkey: PassKey, stretching: Stretching) -> None:
    keys = subkeys(passkey, stretching)
    shown = f"{passkey!r} {passkey} {keys!r} {keys}"
    assert SECRET not in shown
    assert "Boxk" not in shown
    assert not any(repr(key) in shown or key.hex() in shown for key in astuple(keys))


def test_subkeys_are_scrypt_and_hkdf(passkey: PassKey, stretching: Stretching) -> None:
    stretched = hashlib.scrypt(SECRET.encode(), salt=stretching.salt, n=2**14, r=8, p=1, dklen=32)
    expanded = hmac.new(stretched, b"latentguard passkey permutation\x01", "sha256").digest()  # RFC 5869, one block
    assert subkeys(passkey, stretching).permutation == expanded


def test_argon2id_is_the_default_and_gives_other_keys(passkey: PassKey, stretching: Stretching) -> None:
    default = Stretching.new()
    assert default.kdf == "argon2id"
    assert not {*astuple(subkeys(passkey, default))} & {*astuple(subkeys(passkey, stretching))}


def test_each_use_has_a_key_of_its_own(passkey: PassKey, stretching: Stretching) -> None:
    keys = astuple(subkeys(passkey, stretching))
    assert len({*keys}) == 6
    assert {len(key) for key in keys} == {32}


def test_another_salt_or_passkey_gives_other_keys(passkey: PassKey, stretching: Stretching) -> None:
    own = {*astuple(subkeys(passkey, stretching))}
    assert not own & {*astuple(subkeys(passkey, replace(stretching, salt=bytes(16))))}
    assert not own & {*astuple(subkeys(PassKey.from_text(SECRET + "."), stretching))}


def test_no_two_stretchings_share_a_salt() -> None:
    assert len({Stretching.new().salt for _ in range(100)}) == 100


@pytest.mark.parametrize("kdf", ["argon2id", "scrypt"])
def test_a_stretching_survives_json(kdf: Any) -> None:
    stretching = Stretching.new(kdf)
    assert Stretching.from_dict(stretching.as_dict()) == stretching


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kdf": "md5"}, "other than argon2id and scrypt"),
        ({"kdf": ["scrypt"]}, "other than argon2id and scrypt"),
        ({"salt": "00"}, "salt has 1 bytes, not 16"),
        ({"salt": "no hex"}, "missing or damaged"),
        ({"salt": 7}, "missing or damaged"),
        ({"memory": 2**30}, "memory is not a whole number from 16,384 to 1,048,576"),
        ({"memory": 8}, "memory is not a whole number"),
        ({"iterations": 10**9}, "iterations is not a whole number from 1 to 16"),
        ({"iterations": 0}, "iterations is not"),
        ({"lanes": True}, "lanes is not"),
        ({"lanes": 2.0}, "lanes is not"),
        ({"pepper": 1}, "takes exactly iterations, lanes, memory"),
        ({"kdf": "scrypt"}, "takes exactly log2_n, r, p"),
    ],
)
def test_a_stretching_from_a_file_stays_within_bounds(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        Stretching.from_dict({**Stretching.new().as_dict(), **changes})


@pytest.mark.parametrize("content", [None, [], "scrypt", {}, {"kdf": "scrypt"}])
def test_what_is_no_stretching_is_refused(content: Any) -> None:
    with pytest.raises(ConversionError, match="missing or damaged"):
        Stretching.from_dict(content)


def answers(monkeypatch: pytest.MonkeyPatch, *typed: str) -> None:
    """A terminal at which somebody types these lines."""
    lines = iter(typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(lines))


def test_a_new_passkey_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVACY_PASSKEY", raising=False)
    answers(monkeypatch, SECRET, SECRET)
    assert PassKey.obtain(None, new=True) == PassKey.from_text(SECRET)
    answers(monkeypatch, SECRET, SECRET + ".")
    with pytest.raises(KeyFileError, match="the two passkeys differ"):
        PassKey.obtain(None, new=True)
    answers(monkeypatch, SECRET)
    assert PassKey.obtain(None) == PassKey.from_text(SECRET)
