from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgresql_server import postgresql_server
from sqlalchemy.exc import IntegrityError

from latentguard.service.database import Database, DatabaseError

NUMBERS = sa.Table("test_numbers", sa.MetaData(), sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=False))


def numbers(database: Database) -> list[int]:
    with database.connection() as connection:
        return list(connection.execute(sa.select(NUMBERS.c.n).order_by(NUMBERS.c.n)).scalars())


def put(database: Database, n: int) -> None:
    with database.begin() as connection:
        connection.execute(NUMBERS.insert(), {"n": n})


def test_what_was_written_is_read_and_outlives_the_object(database: Database, database_url: str) -> None:
    database.create(NUMBERS)
    put(database, 7)
    other = Database(database_url)
    other.create(NUMBERS)
    assert numbers(other) == [7]
    other.close()


def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    database.create(NUMBERS)

    def half() -> None:
        with database.begin() as connection:
            connection.execute(NUMBERS.insert(), {"n": 1})
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert numbers(database) == []


def test_a_broken_constraint_is_told_as_such(database: Database) -> None:
    database.create(NUMBERS)
    put(database, 1)
    with pytest.raises(IntegrityError):
        put(database, 1)
    put(database, 2)


def test_threads_that_read_and_then_write_neither_lose_an_update_nor_fail(database: Database) -> None:
    database.create(NUMBERS)

    def count_up() -> None:
        for _ in range(10):
            with database.begin(lock=5) as connection:
                last = connection.execute(sa.select(sa.func.max(NUMBERS.c.n))).scalar_one() or 0
                connection.execute(NUMBERS.insert(), {"n": last + 1})

    threads = [threading.Thread(target=count_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(database) == list(range(1, 61))


def test_a_reading_transaction_sees_one_moment(database: Database) -> None:
    database.create(NUMBERS)
    put(database, 1)
    with database.connection() as connection:
        query = sa.select(sa.func.count()).select_from(NUMBERS)
        assert connection.execute(query).scalar_one() == 1
        put(database, 2)
        assert connection.execute(query).scalar_one() == 1


def test_processes_that_start_at_once_make_the_tables_once(database_url: str) -> None:
    code = (
        "import sys; import latentguard.service.audit; from latentguard.service.database import Database;"
        "Database(sys.argv[1]).ping()"
    )
    starting = [subprocess.Popen([sys.executable, "-c", code, database_url], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in starting] == [b""] * 4


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    path.touch(mode=0o644)
    database = Database(f"sqlite:///{path}")
    database.create(NUMBERS)
    put(database, 1)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {"service.db": 0o600, "service.db-wal": 0o600, "service.db-shm": 0o600}
    database.close()


def test_sqlite_is_set_to_lose_nothing(sqlite_database: Database) -> None:
    with sqlite_database.connection() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_file_that_was_taken_away_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    path, away = tmp_path / "service.db", tmp_path / "away.db"
    database = Database(f"sqlite:///{path}")
    database.create(NUMBERS)
    put(database, 1)
    os.rename(path, away)
    with pytest.raises(DatabaseError):
        put(database, 2)
    assert not path.exists()
    os.rename(away, path)
    put(database, 3)
    assert numbers(database) == [1, 3]
    database.close()


def test_a_full_disk_is_an_error_and_then_all_goes_on(sqlite_database: Database) -> None:
    sqlite_database.create(NUMBERS)
    with sqlite_database.connection() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    # What SQLite does at this limit is what it does when the disk has no room.
    @sa.event.listens_for(sqlite_database._engine, "begin")
    def limited(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")

    limit = pages
    with pytest.raises(DatabaseError, match="full"), sqlite_database.begin() as connection:
        connection.execute(NUMBERS.insert(), [{"n": n} for n in range(10_000)])
    limit = 1_000_000
    put(sqlite_database, 1)
    assert numbers(sqlite_database) == [1]


def test_a_server_that_is_away_is_an_error_until_it_is_back() -> None:
    with postgresql_server() as server:
        database = Database(server.url)
        database.create(NUMBERS)
        put(database, 1)
        server.stop()
        with pytest.raises(DatabaseError):
            put(database, 2)
        with pytest.raises(DatabaseError):
            database.ping()
        server.start()
        put(database, 3)
        assert numbers(database) == [1, 3]
        database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not one"),
        ("mysql://user:hunter2@host/name", "SQLite or PostgreSQL"),
        ("sqlite://", "memory"),
        ("sqlite:////nowhere/at/all.db", "can't be opened"),
        ("postgresql://user:hunter2@127.0.0.1:1/name", "127.0.0.1"),
    ],
)
def test_a_url_of_no_use_is_told_without_its_password(url: str, message: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(DatabaseError, match=message) as error:
        Database(url)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)
