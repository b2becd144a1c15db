"""A PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRED = "LATENTGUARD_REQUIRE_POSTGRESQL"
# Debian keeps the programs out of the PATH.
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name), reverse=True)


@dataclass
class Server:
    """A server on a socket that nobody else finds, with an empty database; unsafe without power, and fast."""

    url: str
    _pg_ctl: str
    _folder: Path
    _options: dict[str, Any] = field(repr=False)

    def start(self) -> None:
        server = f"-F -k {self._folder} -c listen_addresses="
        subprocess.run(
            [self._pg_ctl, "-D", self._folder / "data", "-w", "-o", server, "start"], timeout=100, **self._options
        )

    def stop(self) -> None:
        """At once, as after a crash."""
        subprocess.run(
            [self._pg_ctl, "-D", self._folder / "data", "-m", "immediate", "stop"], timeout=100, **self._options
        )


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """A running server. Skips where there can be none, or fails if the environment says that there has to be one."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        _lacking("psycopg is not installed")
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, _PLACES)])
    initdb, pg_ctl = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
    if initdb is None or pg_ctl is None:
        _lacking("PostgreSQL's initdb and pg_ctl are not installed")
    # A short path, since a socket's name is limited; and not root, since PostgreSQL refuses to run as such.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        if os.getuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                _lacking("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            options |= {"user": owner.pw_uid, "group": owner.pw_gid}
            user = "postgres"
        subprocess.run([initdb, "-D", folder / "data", "-A", "trust", "-N", "-E", "UTF8"], timeout=100, **options)
        server = Server(f"postgresql://{user}@/postgres?host={folder}", pg_ctl, folder, options)
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database; as `postgresql_server`."""
    with postgresql_server() as server:
        yield server.url


def _lacking(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)
