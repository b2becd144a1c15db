"""The service's one database: SQLite in a private file, or PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DisconnectionError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from latentguard.errors import MissingDependencyError, ServiceError
from privacy.files import OWNER_ONLY

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_BUSY_SECONDS = 30
_CONNECT_SECONDS = 5
_STATEMENT_SECONDS = 30
_CREATION_LOCK = 0x6C67_0001

METADATA = sa.MetaData()


class DatabaseError(ServiceError):
    """The database can't be reached or doesn't do what it should; the message holds neither password nor content."""


class Database:
    """Transactions on SQLite or PostgreSQL; what a block of `begin` did is on disk when it ends.

    Several threads and processes may use one database at once. After an outage the next call connects anew. The tables
    of `METADATA` are made at the start where they are missing.

    Raises:
        DatabaseError: the URL is no such database, or it can't be reached; every method too.
        MissingDependencyError: PostgreSQL's driver isn't installed.
    """

    def __init__(self, url: str | sa.URL) -> None:
        parsed = _parsed(url)
        self.url = parsed
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._where = parsed.render_as_string(hide_password=True)
        self._engine = _sqlite_engine(parsed) if self.is_sqlite else _postgresql_engine(parsed)
        self.create(*METADATA.sorted_tables)

    @contextmanager
    def begin(self, *, lock: int | None = None) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end of the block, or undone if the block raises.

        SQLite has one writer at a time. On PostgreSQL writers with the same number `lock` wait for each other.

        Raises:
            IntegrityError: SQLAlchemy's own: a row broke a constraint, such as that of a key that is there already.
        """
        with self._errors(), self._engine.connect() as connection:
            connection = connection.execution_options(latentguard_write=True)
            with connection.begin():
                if lock is not None and not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
                yield connection

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """A transaction that sees the database as it was when it began, and changes nothing."""
        with self._errors(), self._engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    def create(self, *tables: sa.Table) -> None:
        """Makes the tables that aren't there yet; several processes may start at once."""
        with self.connection() as connection:
            present = set(sa.inspect(connection).get_table_names())
        if present.issuperset(table.name for table in tables):
            return
        with self.begin(lock=_CREATION_LOCK) as connection:
            for table in tables:
                table.create(connection, checkfirst=True)

    def ping(self) -> None:
        """Returns if the database answers. Raises DatabaseError otherwise."""
        with self.connection() as connection:
            connection.execute(sa.select(1)).scalar_one()

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise DatabaseError(f"{self._where}: {_one_line(error)}") from None
        except OSError as error:  # a file that is gone or may not be read
            raise DatabaseError(f"{self._where}: {error.strerror or error}") from None


def microseconds(time: datetime) -> int:
    """A time with a zone as the database keeps it: microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(value: int) -> datetime:
    """What `microseconds` was given, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(timezone.utc)


Clock = Callable[[], datetime]


def _parsed(url: str | sa.URL) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise DatabaseError("the database's URL is not one, such as sqlite:///service.db") from None
    where = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseError(f"{where}: the database is SQLite or PostgreSQL")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseError(f"{where}: a database in memory would keep nothing; name a file")
    return parsed


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    path = Path(str(url.database)).absolute()
    _make_private(path)

    def connect() -> sqlite3.Connection:
        # mode=rw: a file that somebody took away is an error, never a new and empty database.
        uri = f"file:{quote(str(path))}?mode=rw"
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        return connection

    engine = sa.create_engine(f"{url.drivername}:///", creator=connect, hide_parameters=True, poolclass=sa.QueuePool)

    def remember_file(_: object, record: Any) -> None:
        record.info["file"] = _identity(path)

    def same_file(_: object, record: Any, __: object) -> None:
        # A connection to a file that was deleted or exchanged would go on writing where nobody reads.
        if record.info.get("file") != _identity(path):
            raise DisconnectionError("the file was exchanged")

    def begin(connection: sa.Connection) -> None:
        # The driver's own way begins with a read lock, which two writers can't both turn into a write lock.
        writes = connection.get_execution_options().get("latentguard_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", remember_file)
    sa.event.listen(engine, "checkout", same_file)
    sa.event.listen(engine, "begin", begin)
    return engine


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make_private(path: Path) -> None:
    """Makes the file before SQLite would, which would let others read it; its logs take over the mode."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, OWNER_ONLY)
        try:
            status = os.fstat(descriptor)
            if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                os.fchmod(descriptor, OWNER_ONLY)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DatabaseError(f"{path}: can't be opened: {error.strerror or error}") from None


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    try:
        engine = sa.create_engine(
            url, hide_parameters=True, pool_pre_ping=True, connect_args={"connect_timeout": _CONNECT_SECONDS}
        )
    except NoSuchModuleError:
        raise DatabaseError(f"{url.render_as_string(hide_password=True)}: no such driver") from None
    except ImportError as error:
        raise MissingDependencyError(f'PostgreSQL needs {error.name}: pip install "latentguard[postgresql]"') from None
    sa.event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        # A server may be set up to acknowledge what is not on disk yet; an audit log may not.
        cursor.execute("SET synchronous_commit = on")
        cursor.execute(f"SET statement_timeout = {_STATEMENT_SECONDS * 1000}")
    connection.commit()


def _one_line(error: SQLAlchemyError) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
