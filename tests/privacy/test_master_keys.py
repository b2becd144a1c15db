from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from privacy.errors import DataError, KeyFileError, VaultError
from privacy.master_keys import ENVIRONMENT, FileMasterKeys, LocalMasterKeys

DATA_KEY = bytes(range(32))


def line() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def test_a_data_key_comes_back() -> None:
    keys = LocalMasterKeys([os.urandom(32)])
    assert keys.unwrap(*keys.wrap(DATA_KEY, b"context"), b"context") == DATA_KEY


def test_a_data_key_is_bound_to_its_context() -> None:
    keys = LocalMasterKeys([os.urandom(32)])
    with pytest.raises(VaultError, match="was changed"):
        keys.unwrap(*keys.wrap(DATA_KEY, b"context"), b"another")


@pytest.mark.parametrize("place", [0, 12, -1])
def test_a_changed_data_key_is_refused(place: int) -> None:
    keys = LocalMasterKeys([os.urandom(32)])
    key_id, wrapped = keys.wrap(DATA_KEY, b"")
    changed = bytearray(wrapped)
    changed[place] ^= 1
    for broken in (bytes(changed), b"", wrapped[:5]):
        with pytest.raises(VaultError):
            keys.unwrap(key_id, broken, b"")


def test_the_last_key_wraps_and_all_unwrap() -> None:
    old, new = os.urandom(32), os.urandom(32)
    before, after = LocalMasterKeys([old]), LocalMasterKeys([old, new])
    assert after.current_id == LocalMasterKeys([new]).current_id != before.current_id
    assert after.unwrap(*before.wrap(DATA_KEY, b""), b"") == DATA_KEY


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, f"{line()} {line()}")
    keys = LocalMasterKeys.from_environment()
    assert keys.unwrap(*keys.wrap(DATA_KEY, b""), b"") == DATA_KEY


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(KeyFileError, match=ENVIRONMENT):
        LocalMasterKeys.from_environment()


@pytest.mark.parametrize("text", ["", "hunter2", "AAAA", "ü"])
def test_what_is_no_key_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    path = tmp_path / "vault.keys"
    path.write_text(text)
    path.chmod(0o600)
    for read in (LocalMasterKeys.from_environment, lambda: FileMasterKeys(path)):
        with pytest.raises(KeyFileError) as raised:
            read()
        assert not text or text not in str(raised.value)


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    FileMasterKeys.create(tmp_path / "vault.keys")
    before = (tmp_path / "vault.keys").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        FileMasterKeys.create(tmp_path / "vault.keys")
    assert (tmp_path / "vault.keys").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    FileMasterKeys.create(tmp_path / "vault.keys")
    (tmp_path / "vault.keys").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        FileMasterKeys(tmp_path / "vault.keys")


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.keys: can't be read"):
        FileMasterKeys(tmp_path / "none.keys")
