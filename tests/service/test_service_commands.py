from __future__ import annotations

import json
import re
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cli_runner import ROOT

from latentguard.cli import main
from latentguard.service.access import KeyStore, NotAuthenticatedError, Scope
from latentguard.service.audit import AuditLog, open_audit
from latentguard.service.database import Database
from latentguard.service.key_admin import FIRST_KEY_FILE, KeyAdmin, NoKeyError, first_key
from latentguard.service.settings import Settings, load_settings

TOKEN = re.compile(r"lg_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def settings(folder: Path) -> Settings:
    settings = load_settings(data_dir=folder)
    settings.make_data_dir()
    return settings


@pytest.fixture
def database(settings: Settings) -> Database:
    return Database(settings.database_location())


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def audit(settings: Settings, database: Database) -> AuditLog:
    return open_audit(settings, database)


def run(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    """A command on the service in `folder`: exit status, standard output and error."""
    try:
        status = main([*arguments, "--data-dir", str(folder)])
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def made(capsys: pytest.CaptureFixture[str], folder: Path, scopes: str = "screen", *more: str) -> tuple[str, str]:
    """The id and token of a new key."""
    status, out, _ = run(capsys, folder, "keys", "create", "--name", "a client", "--scopes", scopes, *more)
    assert status == 0
    return out.split("_")[1], out.strip()


def test_a_new_keys_token_is_all_that_stands_on_standard_output(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    status, out, err = run(
        capsys, folder, "keys", "create", "--scopes", "screen,generate", "--expires", "90d", "--name", "a client"
    )
    assert status == 0
    assert TOKEN.fullmatch(out.strip())
    assert not TOKEN.search(err)
    key = KeyStore(Database(f"sqlite:///{folder}/service.db")).authenticate(out.strip(), "127.0.0.1")
    assert key.scopes == {Scope.screen, Scope.generate}
    assert key.expires is not None
    assert (key.expires - key.created).days in (89, 90)


def test_the_list_shows_every_key_and_no_secret(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (kept, kept_token), (ended, ended_token) = made(capsys, folder), made(capsys, folder, "admin")
    run(capsys, folder, "keys", "revoke", ended)
    status, out, _ = run(capsys, folder, "keys", "list")
    assert status == 0
    _, first, second = out.splitlines()
    assert first.startswith(kept)
    assert first.endswith("usable")
    assert second.startswith(ended)
    assert second.endswith("revoked")
    assert not any(token.rsplit("_", 1)[1] in out for token in (kept_token, ended_token))
    assert "argon2" not in out


def test_rotating_with_an_overlap(
    capsys: pytest.CaptureFixture[str], folder: Path, database: Database, keys: KeyStore
) -> None:
    key_id, token = made(capsys, folder)
    status, out, _ = run(capsys, folder, "keys", "rotate", key_id, "--overlap", "10m")
    assert status == 0
    assert keys.authenticate(token, "127.0.0.1").id == keys.authenticate(out.strip(), "127.0.0.1").id == key_id
    run(capsys, folder, "keys", "rotate", key_id)
    with pytest.raises(NotAuthenticatedError):
        KeyStore(database).authenticate(token, "127.0.0.1")


def test_what_is_done_to_keys_is_in_the_audit_log(
    capsys: pytest.CaptureFixture[str], folder: Path, audit: AuditLog
) -> None:
    key_id, token = made(capsys, folder, "screen,admin")
    run(capsys, folder, "keys", "rotate", key_id)
    run(capsys, folder, "keys", "revoke", key_id)
    entries = list(audit.stream())
    assert [entry.action for entry in entries] == ["keys.create", "keys.rotate", "keys.revoke"]
    assert all(entry.details["key"] == key_id for entry in entries)
    assert all(entry.actor.startswith("command line") for entry in entries)
    assert entries[0].details["scopes"] == ["admin", "screen"]
    assert token.rsplit("_", 1)[1] not in json.dumps([entry.as_dict() for entry in entries])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "create", "--name", "x", "--scopes", "fly"], "'fly' is none of screen, generate, admin"),
        (["keys", "create", "--name", "", "--scopes", "screen"], "1 to 64"),
        (["keys", "create", "--name", "x", "--scopes", "screen", "--expires", "soon"], "no duration"),
        (["keys", "create", "--name", "x", "--scopes", "screen", "--expires", "0d"], "expired already"),
        (["keys", "create", "--name", "x", "--scopes", "screen", "--expires", "999999w"], "longer than"),
        (["keys", "revoke", "0" * 16], "no key"),
        (["keys", "rotate", "0" * 16], "no key"),
        (["keys", "list", "--config", "nowhere.toml"], "no such file"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], message: str
) -> None:
    made(capsys, folder)
    status, out, err = run(capsys, folder, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["audit", "verify"], ["audit", "export"], ["keys", "list"]], ids="-".join)
def test_a_folder_without_a_service_is_no_empty_service(
    capsys: pytest.CaptureFixture[str], folder: Path, command: list[str]
) -> None:
    status, _, err = run(capsys, folder, *command)
    assert status == 2
    assert "no service has its data here" in err
    assert not folder.exists()


def test_verify_tells_an_intact_log_from_a_damaged_one(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    made(capsys, folder)
    made(capsys, folder)
    assert run(capsys, folder, "audit", "verify")[:2] == (
        0,
        "intact: 2 entries, 1 to 2: no entry was changed, and none is missing\n",
    )
    with closing(sqlite3.connect(folder / "service.db", isolation_level=None)) as connection:
        connection.execute("UPDATE service_audit SET actor = 'somebody else' WHERE sequence = 2")
    status, out, _ = run(capsys, folder, "audit", "verify")
    assert status == 1
    assert "entry 2 was changed" in out


def test_verify_ends_with_status_1_as_a_process_too(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    made(capsys, folder)
    with closing(sqlite3.connect(folder / "service.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM service_audit")
    command = [sys.executable, "-m", "latentguard", "audit", "verify", "--data-dir", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert process.returncode == 1
    assert process.stdout == "damaged: entry 1 is missing at the end; intact before it: 0\n"
    assert process.stderr == ""


def test_export_writes_json_lines(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    made(capsys, folder)
    made(capsys, folder)
    status, out, _ = run(capsys, folder, "audit", "export")
    assert status == 0
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["sequence"] for entry in entries] == [1, 2]
    assert entries[1]["previous"] == entries[0]["mac"]
    target = tmp_path / "audit.jsonl"
    assert run(capsys, folder, "audit", "export", "--output", str(target))[0] == 0
    assert target.read_text() == out
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert run(capsys, folder, "audit", "export", "--output", str(target))[0] == 2


def test_the_first_start_on_loopback_makes_an_admin_key_once(
    settings: Settings, keys: KeyStore, audit: AuditLog
) -> None:
    path = first_key(settings, keys, audit)
    assert path == settings.data_dir / FIRST_KEY_FILE
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = keys.authenticate(path.read_text().strip(), "127.0.0.1")
    assert (key.scopes, key.automatic) == ({Scope.admin}, True)
    assert [entry.details["automatic"] for entry in audit.entries(action="keys.create")] == [True]
    path.unlink()
    assert first_key(settings, keys, audit) is None
    keys.revoke(key.id)
    assert first_key(settings, keys, audit) is None


def test_another_databases_key_is_not_overwritten(settings: Settings, keys: KeyStore, audit: AuditLog) -> None:
    (settings.data_dir / FIRST_KEY_FILE).write_text("another")
    with pytest.raises(NoKeyError, match="another database"):
        first_key(settings, keys, audit)
    assert keys.list() == []


def test_outside_loopback_a_key_must_have_been_made_by_command(
    settings: Settings, keys: KeyStore, audit: AuditLog
) -> None:
    outside = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(NoKeyError, match="keys create"):
        first_key(outside, keys, audit)
    assert keys.list() == []
    assert not (settings.data_dir / FIRST_KEY_FILE).exists()
    first_key(settings, keys, audit)
    [automatic] = keys.list()
    with pytest.raises(NoKeyError, match="keys create"):
        first_key(outside, keys, audit)
    admin = KeyAdmin(keys, audit, "test")
    admin.create("screening alone", [Scope.screen])
    with pytest.raises(NoKeyError, match="keys create"):
        first_key(outside, keys, audit)
    admin.create("an admin", [Scope.admin])
    with pytest.raises(NoKeyError, match=f"keys revoke {automatic.id}"):
        first_key(outside, keys, audit)
    admin.revoke(automatic.id)
    assert first_key(outside, keys, audit) is None


def test_help_loads_none_of_the_services_packages() -> None:
    code = (
        "import sys; from latentguard.cli import main\n"
        "try: main(['keys', 'create', '--help'])\n"
        "except SystemExit: pass\n"
        "loaded = {'sqlalchemy', 'pydantic', 'argon2', 'fastapi', 'torch', 'numpy'} & sys.modules.keys()\n"
        "print(loaded, file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert process.stderr == "set()\n"
