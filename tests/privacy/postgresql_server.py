"""A PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database, on a socket that nobody else finds; skips where there can be none."""
    pytest.importorskip("psycopg")
    if not (shutil.which("initdb") and shutil.which("pg_ctl")):
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    # A short path, since a socket's name is limited; and not root, since PostgreSQL refuses to run as such.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        if os.getuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            options |= {"user": owner.pw_uid, "group": owner.pw_gid}
            user = "postgres"
        data = folder / "data"
        subprocess.run(["initdb", "-D", data, "-A", "trust", "-N", "-E", "UTF8"], timeout=100, **options)
        server = f"-k {folder} -c listen_addresses="
        subprocess.run(["pg_ctl", "-D", data, "-w", "-o", server, "start"], timeout=100, **options)
        try:
            yield f"postgresql://{user}@/postgres?host={folder}"
        finally:
            subprocess.run(["pg_ctl", "-D", data, "-m", "immediate", "stop"], timeout=100, **options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
