"""Fixtures of the service's tests: databases of both kinds, a clock that a test sets, and parts of the service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

for _package in ("argon2", "fastapi", "pydantic_settings", "sqlalchemy"):
    pytest.importorskip(_package)

import sqlalchemy as sa  # noqa: E402
from postgresql_server import Server, postgresql_server  # noqa: E402
from service_clock import Clock  # noqa: E402

from latentguard.service.audit import AuditLog  # noqa: E402
from latentguard.service.database import Database  # noqa: E402
from privacy.master_keys import FileMasterKeys  # noqa: E402


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of a service that somebody runs here is nothing to the tests."""
    for name in [name for name in os.environ if name.upper().startswith("LATENTGUARD_SERVICE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql_running() -> Iterator[Server]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_running: Server) -> str:
    """A PostgreSQL database without a table in it."""
    url = postgresql_running.url.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return postgresql_running.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/service.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    """For what doesn't depend on the kind of database."""
    database = Database(f"sqlite:///{tmp_path}/service.db")
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def master_keys(tmp_path: Path) -> FileMasterKeys:
    return FileMasterKeys.create(tmp_path / "master.keys")


@pytest.fixture
def sqlite_audit(sqlite_database: Database, master_keys: FileMasterKeys, tmp_path: Path) -> AuditLog:
    return AuditLog(sqlite_database, master_keys, tmp_path / "audit.head")
