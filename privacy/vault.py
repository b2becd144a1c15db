"""The vault: results and reversible tokens at rest, each record encrypted under a key of its own.

    vault = Vault("sqlite:///vault.db", FileMasterKeys("vault.keys"))
    record = vault.store("result", sealed_image, expires=datetime.now(timezone.utc) + timedelta(days=30))
    vault.fetch(record) == sealed_image

Envelope encryption: a record's value is encrypted with ChaCha20-Poly1305 under its own random data key, which is
wrapped by a master key (`privacy.master_keys`). Id, kind, time and expiry are bound to both as associated data: a row
that somebody exchanged, relabelled or whose life somebody prolonged in the database is refused. A record is on disk
before `store` returns.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable
from tqdm import tqdm

from privacy.errors import DataError, MissingDependencyError, RecordNotFoundError, VaultError
from privacy.files import OWNER_ONLY
from privacy.master_keys import DATA_KEY_BYTES, MasterKeys

MAX_VALUE_BYTES = 512 * 2**20
MAX_KIND_CHARS = 64

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NONCE_BYTES = 12
_ROWS_AT_ONCE = 200
_BUSY_SECONDS = 30

_METADATA = sa.MetaData()
_RECORDS = sa.Table(
    "vault_records_v1",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(MAX_KIND_CHARS), nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=True, index=True),
    sa.Column("key_id", sa.String(200), nullable=False, index=True),
    sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
_ENVELOPE = [column for column in _RECORDS.c if column.name != "content"]


class Vault:
    """Encrypted records in a database: SQLite, or PostgreSQL by a URL such as `postgresql+psycopg://host/name`.

    Several processes and threads may use one vault at once. `clock` gives the present time, with a zone.

    Raises:
        VaultError: the database can't be reached or is of no use, at the start and at every call.
        MissingDependencyError: the driver of the database is not installed.
    """

    def __init__(
        self,
        url: str | sa.URL,
        master_keys: MasterKeys,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._keys = master_keys
        self._clock = clock
        self._engine = _engine(url)
        self._where = self._engine.url.render_as_string(hide_password=True)
        with self._errors():
            self._create_tables()

    def store(self, kind: str, value: bytes, *, expires: datetime | None = None) -> str:
        """Keeps `value` and returns its id, 32 hexadecimal digits. When this returns, the record is on disk.

        From `expires` on, a time with a zone, the record can't be fetched, and the next `purge` deletes it.

        Raises:
            DataError: no kind or a kind of more than 64 characters, a value of more than 512 MiB, or an expiry without
                a zone or in the past.
            VaultError: the record could not be kept.
        """
        return self.store_all(kind, [value], expires=expires)[0]

    def store_all(self, kind: str, values: Sequence[bytes], *, expires: datetime | None = None) -> list[str]:
        """Keeps each of `values` as a record of its own, all or none; otherwise as `store`. Returns their ids."""
        if not 1 <= len(kind) <= MAX_KIND_CHARS or not kind.isprintable():
            raise DataError(f"the kind of a record has 1 to {MAX_KIND_CHARS} printable characters")
        longest = max(map(len, values), default=0)
        if longest > MAX_VALUE_BYTES:
            raise DataError(f"a record has at most {MAX_VALUE_BYTES // 2**20} MiB, not {longest:,} bytes")
        now = _microseconds(self._clock())
        until = None if expires is None else _microseconds(expires)
        if until is not None and until <= now:
            raise DataError("the record would have expired already")
        rows = [self._row(kind, value, now, until) for value in values]
        if rows:
            with self._errors(), self._engine.begin() as connection:
                connection.execute(_RECORDS.insert(), rows)
        return [row["id"] for row in rows]

    def fetch(self, record: str) -> bytes:
        """The value that `store` kept under this id.

        Raises:
            RecordNotFoundError: there is no such record, or it expired.
            VaultError: its master key is missing, or it was tampered with.
        """
        with self._errors(), self._engine.connect() as connection:
            row = connection.execute(sa.select(_RECORDS).where(_RECORDS.c.id == record)).mappings().one_or_none()
        if row is None or (row["expires"] is not None and row["expires"] <= _microseconds(self._clock())):
            raise RecordNotFoundError("the vault has no such record, or it expired")
        context = _context(row["id"], row["kind"], row["created"], row["expires"])
        data_key = self._keys.unwrap(row["key_id"], row["wrapped_key"], context)
        content = bytes(row["content"])
        try:
            return ChaCha20Poly1305(data_key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise VaultError(f"record {row['id']} was tampered with") from None

    def delete(self, record: str) -> None:
        """Deletes a record. Raises RecordNotFoundError if there is none."""
        with self._errors(), self._engine.begin() as connection:
            deleted = connection.execute(_RECORDS.delete().where(_RECORDS.c.id == record)).rowcount
        self._forget()
        if not deleted:
            raise RecordNotFoundError("the vault has no such record")

    def purge(self) -> int:
        """Deletes the records that expired, their data keys with them, and returns how many."""
        now = _microseconds(self._clock())
        with self._errors(), self._engine.begin() as connection:
            deleted = connection.execute(_RECORDS.delete().where(_RECORDS.c.expires <= now)).rowcount
        self._forget()
        return deleted

    def rotate(self) -> int:
        """Wraps every data key anew that isn't under the current master key, and returns how many.

        Values are not encrypted anew, so this is quick, and the vault can be used meanwhile. A process that is killed
        in the middle leaves every record readable; the next call goes on.

        Raises:
            VaultError: a data key can't be unwrapped: its master key is missing, or it was tampered with.
        """
        current = self._keys.current_id
        outdated = _RECORDS.c.key_id != current
        rotated = 0
        with tqdm(total=self._count(outdated), desc="rotating", unit="record", leave=False, disable=None) as bar:
            while rows := self._some(outdated):
                with self._errors(), self._engine.begin() as connection:
                    for row in rows:
                        rotated += self._rewrap(connection, row)
                bar.update(len(rows))
        self._forget()
        return rotated

    def outdated(self) -> int:
        """How many records are under another master key than the current one."""
        return self._count(_RECORDS.c.key_id != self._keys.current_id)

    def close(self) -> None:
        """Closes the connections to the database."""
        self._engine.dispose()

    def _row(self, kind: str, value: bytes, created: int, expires: int | None) -> dict[str, Any]:
        record = secrets.token_hex(16)
        context = _context(record, kind, created, expires)
        data_key, nonce = os.urandom(DATA_KEY_BYTES), os.urandom(_NONCE_BYTES)
        key_id, wrapped = self._keys.wrap(data_key, context)
        return {
            "id": record,
            "kind": kind,
            "created": created,
            "expires": expires,
            "key_id": key_id,
            "wrapped_key": wrapped,
            "content": nonce + ChaCha20Poly1305(data_key).encrypt(nonce, value, context),
        }

    def _rewrap(self, connection: sa.Connection, row: sa.RowMapping) -> int:
        context = _context(row["id"], row["kind"], row["created"], row["expires"])
        key_id, wrapped = self._keys.wrap(self._keys.unwrap(row["key_id"], row["wrapped_key"], context), context)
        # Somebody else may have rotated or deleted it meanwhile: then nothing is to be done.
        same = (_RECORDS.c.id == row["id"]) & (_RECORDS.c.key_id == row["key_id"])
        return connection.execute(_RECORDS.update().where(same).values(key_id=key_id, wrapped_key=wrapped)).rowcount

    def _some(self, which: sa.ColumnElement[bool]) -> list[sa.RowMapping]:
        with self._errors(), self._engine.connect() as connection:
            query = sa.select(*_ENVELOPE).where(which).order_by(_RECORDS.c.id).limit(_ROWS_AT_ONCE)
            return list(connection.execute(query).mappings())

    def _count(self, which: sa.ColumnElement[bool]) -> int:
        with self._errors(), self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_RECORDS).where(which)).scalar_one()

    def _forget(self) -> None:
        """Takes what was deleted or replaced out of SQLite's log as well, unless somebody is reading just now."""
        if self._engine.dialect.name == "sqlite":
            with self._errors(), self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def _create_tables(self) -> None:
        statements: list[sa.schema.ExecutableDDLElement] = [CreateTable(_RECORDS, if_not_exists=True)]
        statements += [CreateIndex(index, if_not_exists=True) for index in _RECORDS.indexes]
        # PostgreSQL may refuse "if not exists" to one of two processes that start at the same moment.
        with suppress(sa.exc.IntegrityError, sa.exc.ProgrammingError), self._engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)
        with self._engine.connect() as connection:
            connection.execute(sa.select(_RECORDS).limit(0))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise VaultError(f"{self._where}: {_one_line(error)}") from None


def _engine(url: str | sa.URL) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise VaultError("the vault's URL is not one, such as sqlite:///vault.db") from None
    where = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise VaultError(f"{where}: a vault is kept in SQLite or PostgreSQL")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    arguments: dict[str, Any] = {}
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise VaultError(f"{where}: a vault in memory would keep nothing; name a file")
        _create_private(Path(str(parsed.database)))
        arguments["timeout"] = _BUSY_SECONDS
    try:
        # hide_parameters: no error message or log of SQLAlchemy's shows what goes into a statement.
        engine = sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True, connect_args=arguments)
    except NoSuchModuleError:
        raise VaultError(f"{where}: no such driver") from None
    except ImportError as error:
        raise MissingDependencyError(f'PostgreSQL needs {error.name}: pip install "psycopg[binary]"') from None
    sa.event.listen(engine, "connect", _set_up_sqlite if parsed.get_backend_name() == "sqlite" else _set_up_postgresql)
    return engine


def _create_private(path: Path) -> None:
    """Makes the database file before SQLite would, which would let others read it; its logs take over the mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, OWNER_ONLY))
    except OSError as error:
        raise VaultError(f"{path}: can't be opened: {error.strerror or error}") from error


def _set_up_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _set_up_postgresql(connection: Any, _: object) -> None:
    # A server may be set up to acknowledge what is not on disk yet; a vault may not.
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = on")
    connection.commit()


def _context(record: str, kind: str, created: int, expires: int | None) -> bytes:
    """The associated data of a record: what of it stands in the clear."""
    return json.dumps(["latentguard vault v1", record, kind, created, expires]).encode("ascii")


def _microseconds(time: datetime) -> int:
    if time.tzinfo is None:
        raise DataError("a time has no time zone")
    return (time - _EPOCH) // timedelta(microseconds=1)


def _one_line(error: SQLAlchemyError) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
