from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgresql_server import postgresql

sa = pytest.importorskip("sqlalchemy")

from privacy.errors import DataError, KeyFileError, RecordNotFoundError, VaultError  # noqa: E402
from privacy.master_keys import FileMasterKeys, LocalMasterKeys  # noqa: E402
from privacy.vault import Vault  # noqa: E402

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
TABLE = "vault_records_v1"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
def keys(tmp_path: Path) -> FileMasterKeys:
    return FileMasterKeys.create(tmp_path / "vault.keys")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a vault in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vault.db"
    found: str = request.getfixturevalue("postgresql_url")
    execute(found, f"DROP TABLE IF EXISTS {TABLE}")
    return found


@pytest.fixture
def vault(url: str, keys: FileMasterKeys, clock: Clock) -> Iterator[Vault]:
    vault = Vault(url, keys, clock=clock)
    yield vault
    vault.close()


def execute(url: str, statement: str, **values: object) -> list[tuple[object, ...]]:
    """What somebody with access to the database can do past the vault."""
    engine = sa.create_engine(sa.make_url(url.replace("postgresql:", "postgresql+psycopg:")))
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def test_what_is_stored_comes_back(vault: Vault) -> None:
    values = [b"", b"value", os.urandom(300_000)]
    records = [vault.store("result", value) for value in values]
    assert [vault.fetch(record) for record in records] == values
    assert len({*records}) == len(values)


@given(kind=st.text("abcäß -", min_size=1, max_size=64), value=st.binary(max_size=200))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_kind_comes_back(vault: Vault, kind: str, value: bytes) -> None:
    assert vault.fetch(vault.store(kind, value)) == value


def test_another_process_reads_it(url: str, vault: Vault, keys: FileMasterKeys, tmp_path: Path) -> None:
    record = vault.store("result", b"value")
    assert Vault(url, FileMasterKeys(tmp_path / "vault.keys"), clock=Clock()).fetch(record) == b"value"


def test_the_database_never_sees_a_value(vault: Vault, tmp_path: Path, url: str) -> None:
    vault.store("token", b"jane@example.org")
    assert b"jane@example.org" not in b"".join(bytes(row[0]) for row in execute(url, f"SELECT content FROM {TABLE}"))
    for path in tmp_path.iterdir():
        assert b"jane@example.org" not in path.read_bytes()


def test_equal_values_look_different(vault: Vault, url: str) -> None:
    vault.store("token", b"same")
    vault.store("token", b"same")
    assert len({bytes(row[0]) for row in execute(url, f"SELECT content FROM {TABLE}")}) == 2


def test_an_unknown_record_is_not_found(vault: Vault) -> None:
    for record in ("0" * 32, "", "'; DROP TABLE x"):
        with pytest.raises(RecordNotFoundError):
            vault.fetch(record)
        with pytest.raises(RecordNotFoundError):
            vault.delete(record)


def test_a_deleted_record_is_gone(vault: Vault) -> None:
    record = vault.store("result", b"value")
    vault.delete(record)
    with pytest.raises(RecordNotFoundError):
        vault.fetch(record)


def test_an_expired_record_is_gone_before_it_is_purged(vault: Vault, clock: Clock) -> None:
    record = vault.store("result", b"value", expires=START + timedelta(days=1))
    assert vault.fetch(record) == b"value"
    clock.now += timedelta(days=1)
    with pytest.raises(RecordNotFoundError):
        vault.fetch(record)


def test_a_purge_deletes_what_expired_and_nothing_else(vault: Vault, clock: Clock, url: str) -> None:
    vault.store("result", b"short", expires=START + timedelta(hours=1))
    kept = [vault.store("result", b"long", expires=START + timedelta(hours=3)), vault.store("result", b"ever")]
    clock.now += timedelta(hours=2)
    assert vault.purge() == 1
    assert vault.purge() == 0
    assert {row[0] for row in execute(url, f"SELECT id FROM {TABLE}")} == {*kept}


def test_after_a_purge_sqlite_holds_nothing_of_the_record(tmp_path: Path, keys: FileMasterKeys, clock: Clock) -> None:
    vault = Vault(f"sqlite:///{tmp_path}/vault.db", keys, clock=clock)
    record = vault.store("result", os.urandom(5000), expires=START + timedelta(hours=1))
    with sqlite3.connect(tmp_path / "vault.db") as connection:
        wrapped, content = connection.execute(f"SELECT wrapped_key, content FROM {TABLE}").fetchone()
    clock.now += timedelta(hours=2)
    vault.purge()
    left = b"".join(path.read_bytes() for path in tmp_path.glob("vault.db*"))
    for trace in (record.encode(), wrapped, content[:64]):
        assert trace not in left


@pytest.mark.parametrize("column", ["kind", "created", "expires", "key_id", "wrapped_key", "content", "id"])
def test_whatever_is_changed_in_the_database_is_noticed(vault: Vault, url: str, column: str) -> None:
    mine = vault.store("token", b"mine", expires=START + timedelta(days=1))
    yours = vault.store("result", b"yours", expires=START + timedelta(days=2))
    if column == "id":  # my record under the name of yours
        execute(url, f"DELETE FROM {TABLE} WHERE id = :yours", yours=yours)
        execute(url, f"UPDATE {TABLE} SET id = :yours WHERE id = :mine", yours=yours, mine=mine)
    else:
        change = {"kind": "'x'", "created": "created + 1", "expires": "NULL", "key_id": "'none'"}
        other = change.get(column, f"(SELECT {column} FROM {TABLE} WHERE id = :mine)")
        execute(url, f"UPDATE {TABLE} SET {column} = {other} WHERE id = :yours AND :mine <> ''", yours=yours, mine=mine)
    with pytest.raises(VaultError) as raised:
        vault.fetch(yours)
    assert not isinstance(raised.value, RecordNotFoundError)


def test_without_its_master_key_a_record_is_lost(vault: Vault, url: str) -> None:
    record = vault.store("result", b"value")
    with pytest.raises(VaultError, match="no master key"):
        Vault(url, LocalMasterKeys([bytes(32)])).fetch(record)


def test_a_rotation_leaves_every_record_readable_under_the_new_key_alone(
    vault: Vault, keys: FileMasterKeys, tmp_path: Path
) -> None:
    records = {vault.store("token", bytes([number])): bytes([number]) for number in range(250)}
    keys.add()
    assert vault.outdated() == 250
    assert vault.rotate() == 250
    assert (vault.outdated(), vault.rotate()) == (0, 0)
    past = time.time() - 100
    os.utime(tmp_path / "vault.keys", (past, past))
    assert keys.keep_only_current() == 1
    assert {record: vault.fetch(record) for record in records} == records


def test_a_running_service_notices_a_rotation(vault: Vault, url: str, tmp_path: Path) -> None:
    record = vault.store("result", b"value")
    administrator = FileMasterKeys(tmp_path / "vault.keys")
    administrator.add()
    Vault(url, administrator).rotate()
    assert vault.fetch(record) == b"value"
    vault.store("result", b"new")
    assert vault.outdated() == 0


def test_the_vault_can_be_used_during_a_rotation(vault: Vault, keys: FileMasterKeys, url: str) -> None:
    records = {vault.store("token", bytes([number])): bytes([number]) for number in range(100)}
    stop, failures = threading.Event(), []

    def use() -> None:
        while not stop.is_set():
            try:
                for record, value in [*records.items()]:
                    assert vault.fetch(record) == value
                new = vault.store("token", b"new")
                assert vault.fetch(new) == b"new"
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        keys.add()
        Vault(url, keys).rotate()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_key_just_replaced_is_not_removed(keys: FileMasterKeys) -> None:
    keys.add()
    with pytest.raises(KeyFileError, match="wait"):
        keys.keep_only_current()


def test_a_key_management_service_can_be_hooked_in(tmp_path: Path) -> None:
    class Service:
        """Keeps its keys elsewhere, and gives and takes data keys only."""

        inner = LocalMasterKeys([os.urandom(32)])
        current_id = "projects/p/keys/1"

        def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
            return self.current_id, self.inner.wrap(data_key, context)[1]

        def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
            return self.inner.unwrap(self.inner.current_id, wrapped, context)

    vault = Vault(f"sqlite:///{tmp_path}/vault.db", Service())
    assert vault.fetch(vault.store("result", b"value")) == b"value"


@pytest.mark.parametrize(
    ("kind", "expires"),
    [("", None), ("x" * 65, None), ("a\nb", None), ("k", START), ("k", datetime(2030, 1, 1))],
)
def test_a_record_that_can_not_be_kept_is_refused(
    tmp_path: Path, keys: FileMasterKeys, clock: Clock, kind: str, expires: datetime | None
) -> None:
    vault = Vault(f"sqlite:///{tmp_path}/vault.db", keys, clock=clock)
    with pytest.raises(DataError):
        vault.store(kind, b"value", expires=expires)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is not one"),
        ("mysql://host/name", "SQLite or PostgreSQL"),
        ("sqlite://", "in memory"),
        ("sqlite:////none/at/all/vault.db", "can't be opened"),
        ("postgresql://user:hunter2@127.0.0.1:1/name", "127.0.0.1"),
    ],
)
def test_a_database_that_can_not_be_used_is_named_without_its_password(
    url: str, message: str, keys: FileMasterKeys
) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(VaultError, match=message) as raised:
        Vault(url, keys)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, keys: FileMasterKeys) -> None:
    (tmp_path / "vault.db").write_bytes(b"text" * 1000)
    with pytest.raises(VaultError, match="not a database"):
        Vault(f"sqlite:///{tmp_path}/vault.db", keys)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_the_files_of_a_vault_are_for_their_owner_alone(tmp_path: Path, keys: FileMasterKeys) -> None:
    vault = Vault(f"sqlite:///{tmp_path}/vault.db", keys)
    vault.store("result", b"value")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


# --- kill -9

STORING = """
import hashlib, os, sys
from privacy.master_keys import FileMasterKeys
from privacy.vault import Vault
vault = Vault(sys.argv[1], FileMasterKeys(sys.argv[2]))
while True:
    value = os.urandom(3000)
    record = vault.store("result", value)
    print(record, hashlib.sha256(value).hexdigest(), flush=True)
"""

ROTATING = """
import sys
from privacy.master_keys import FileMasterKeys
from privacy.vault import Vault
keys = FileMasterKeys(sys.argv[2])
vault = Vault(sys.argv[1], keys)
while True:
    keys.add()
    print(vault.rotate(), flush=True)
"""


def killed(program: str, url: str, keys: Path, seconds: float) -> list[str]:
    """Runs the program, kills it at some moment after its first line, and returns the whole lines that it printed."""
    process = subprocess.Popen([sys.executable, "-c", program, url, str(keys)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait() == -signal.SIGKILL
    return [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_kill_9_loses_no_acknowledged_record(url: str, tmp_path: Path, keys: FileMasterKeys) -> None:
    acknowledged = []
    for _ in range(3):
        acknowledged += killed(STORING, url, tmp_path / "vault.keys", random.uniform(0.02, 0.3))
    assert len(acknowledged) >= 3
    vault = Vault(url, keys)
    for line in acknowledged:
        record, digest = line.split()
        assert hashlib.sha256(vault.fetch(record)).hexdigest() == digest


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_kill_9_in_a_rotation_loses_nothing(url: str, tmp_path: Path, keys: FileMasterKeys) -> None:
    vault = Vault(url, keys)
    records = {vault.store("token", bytes([number])): bytes([number]) for number in range(250)}
    for _ in range(2):
        killed(ROTATING, url, tmp_path / "vault.keys", random.uniform(0.02, 0.2))
        assert {record: vault.fetch(record) for record in records} == records
    vault.rotate()
    assert vault.outdated() == 0
