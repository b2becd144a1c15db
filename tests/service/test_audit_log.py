from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from service_clock import START, Clock

from latentguard.service.audit import AuditError, AuditEvent, AuditLog
from latentguard.service.database import Database, DatabaseError
from latentguard.service.keyring import KeyringError, shared_secret
from privacy.master_keys import FileMasterKeys
from privacy.vault import Vault

APPENDER = """
import sys
from pathlib import Path
from latentguard.service.audit import AuditEvent, AuditLog
from latentguard.service.database import Database
from privacy.master_keys import FileMasterKeys

url, folder, actor, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
audit = AuditLog(Database(url), FileMasterKeys(folder / "master.keys"), folder / f"{sys.argv[5]}.head")
for number in range(count):
    entries = audit.append([AuditEvent(actor, "screen", details={"number": number})])
    print(entries[-1].sequence, flush=True)
"""


@pytest.fixture
def audit(database: Database, master_keys: FileMasterKeys, tmp_path: Path, clock: Clock) -> AuditLog:
    return AuditLog(database, master_keys, tmp_path / "audit.head", clock=clock)


def event(number: int = 0, **changes: object) -> AuditEvent:
    fields: dict[str, object] = {
        "actor": "abc",
        "action": "screen",
        "policy": "f" * 64,
        "verdict": "allow",
        "score": -1.25 - number,
        "concept": "knife",
        "prompt": f"a prompt {number}",
        "details": {"request": number},
    }
    return AuditEvent(**fields | changes)  # type: ignore[arg-type]


def appender(url: str, folder: Path, actor: str, count: int, head: str = "audit") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDER, url, str(folder), actor, str(count), head]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def tamper(database: Database, statement: str, **values: object) -> None:
    """What somebody with the database and without the keys can do."""
    with database.begin() as connection:
        connection.execute(sa.text(statement), values)


def test_an_entry_holds_who_when_what_and_the_verdict(audit: AuditLog, clock: Clock) -> None:
    [entry] = audit.append([event()])
    assert (entry.sequence, entry.time, entry.actor, entry.action) == (1, START, "abc", "screen")
    assert (entry.policy, entry.verdict, entry.score, entry.concept) == ("f" * 64, "allow", -1.25, "knife")
    assert entry.details == {"request": 0}
    clock.advance(1)
    [second] = audit.append([event(1)])
    assert second.previous == entry.mac
    assert audit.entries() == [second, entry]
    assert list(audit.stream()) == [entry, second]


def test_a_prompt_is_kept_as_keyed_hash_alone(
    audit: AuditLog, database: Database, master_keys: FileMasterKeys, tmp_path: Path
) -> None:
    [entry] = audit.append([event(prompt="a very secret prompt")])
    with database.connection() as connection:
        row = connection.execute(sa.text("SELECT * FROM service_audit")).one()
    assert "secret" not in repr(tuple(row))
    assert entry.prompt_hash == audit.prompt_hash("a very secret prompt")
    assert audit.entries(prompt_hash=audit.prompt_hash("a very secret prompt")) == [entry]
    assert audit.prompt(entry) is None
    elsewhere = Database(f"sqlite:///{tmp_path}/other.db")
    other = AuditLog(elsewhere, master_keys, tmp_path / "other.head")
    assert other.prompt_hash("a very secret prompt") != entry.prompt_hash
    elsewhere.close()


def test_entries_are_found_by_actor_action_and_verdict(audit: AuditLog) -> None:
    audit.append([event(n, actor="abc" if n % 2 else "xyz", verdict="block" if n % 3 else "allow") for n in range(12)])
    audit.append([AuditEvent("xyz", "keys.create", details={"key": "new"})])
    assert [entry.sequence for entry in audit.entries(actor="xyz", limit=3)] == [13, 11, 9]
    assert [entry.sequence for entry in audit.entries(actor="xyz", before=9)] == [7, 5, 3, 1]
    assert [entry.sequence for entry in audit.entries(action="keys.create")] == [13]
    assert [entry.sequence for entry in audit.entries(verdict="allow")] == [10, 7, 4, 1]


def test_a_log_that_nobody_touched_is_intact(audit: AuditLog) -> None:
    assert audit.verify().intact
    audit.append([event(n) for n in range(5000)])
    audit.append([AuditEvent("admin", "signin")])
    report = audit.verify()
    assert report.intact
    assert (report.entries, report.first, report.last) == (5001, 1, 5001)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE service_audit SET verdict = 'block' WHERE sequence = 4", id="verdict"),
        pytest.param("UPDATE service_audit SET time = time + 1 WHERE sequence = 4", id="time"),
        pytest.param("UPDATE service_audit SET actor = 'abd' WHERE sequence = 4", id="actor"),
        pytest.param("UPDATE service_audit SET action = 'other' WHERE sequence = 4", id="action"),
        pytest.param("UPDATE service_audit SET policy = NULL WHERE sequence = 4", id="policy"),
        pytest.param("UPDATE service_audit SET score = 0.5 WHERE sequence = 4", id="score"),
        pytest.param("UPDATE service_audit SET concept = 'spoon' WHERE sequence = 4", id="concept"),
        pytest.param("UPDATE service_audit SET details = '{}' WHERE sequence = 4", id="details"),
        pytest.param(
            "UPDATE service_audit SET prompt_hash = (SELECT prompt_hash FROM service_audit WHERE sequence = 5)"
            " WHERE sequence = 4",
            id="prompt_hash",
        ),
        pytest.param(
            "UPDATE service_audit SET mac = (SELECT mac FROM service_audit WHERE sequence = 5) WHERE sequence = 4",
            id="mac",
        ),
        pytest.param(
            "UPDATE service_audit SET previous = (SELECT mac FROM service_audit WHERE sequence = 9) WHERE sequence = 4",
            id="previous",
        ),
    ],
)
def test_a_change_is_found_where_it_is(audit: AuditLog, database: Database, statement: str) -> None:
    audit.append([event(n) for n in range(10)])
    tamper(database, statement)
    report = audit.verify()
    assert (report.damage, report.sequence, report.entries) == ("changed", 4, 3)


def test_a_gap_is_found(audit: AuditLog, database: Database) -> None:
    audit.append([event(n) for n in range(10)])
    tamper(database, "DELETE FROM service_audit WHERE sequence IN (4, 5)")
    report = audit.verify()
    assert (report.damage, report.sequence, report.message) == ("missing", 4, "entries 4 to 5 are missing")


def test_a_missing_beginning_is_found(audit: AuditLog, database: Database) -> None:
    audit.append([event(n) for n in range(10)])
    tamper(database, "DELETE FROM service_audit WHERE sequence = 1")
    assert (audit.verify().damage, audit.verify().sequence) == ("missing", 1)


def test_closing_a_gap_by_renumbering_is_found(audit: AuditLog, database: Database) -> None:
    audit.append([event(n) for n in range(10)])
    tamper(database, "DELETE FROM service_audit WHERE sequence = 4")
    for sequence in range(5, 11):
        tamper(database, "UPDATE service_audit SET sequence = :n - 1 WHERE sequence = :n", n=sequence)
    assert (audit.verify().damage, audit.verify().sequence) == ("changed", 4)


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_a_cut_tail_is_found_and_nothing_is_entered_over_it(audit: AuditLog, database: Database, cut: int) -> None:
    audit.append([event(n) for n in range(10)])
    tamper(database, "DELETE FROM service_audit WHERE sequence > :last", last=10 - cut)
    report = audit.verify()
    assert (report.damage, report.sequence) == ("tail", 11 - cut)
    with pytest.raises(AuditError, match="gone"):
        audit.append([event()])
    assert audit.verify().damage == "tail"


def test_exchanged_entries_are_found(audit: AuditLog, database: Database) -> None:
    audit.append([event(n) for n in range(10)])
    for old, new in ((4, 99), (5, 4), (99, 5)):
        tamper(database, "UPDATE service_audit SET sequence = :new WHERE sequence = :old", old=old, new=new)
    assert (audit.verify().damage, audit.verify().sequence) == ("changed", 4)


def test_an_inserted_entry_is_found_and_nothing_is_chained_to_it(audit: AuditLog, database: Database) -> None:
    audit.append([event(n) for n in range(10)])
    copied = (
        "actor, action, policy, verdict, score, concept, prompt_hash, record, record_expires, details, previous, mac"
    )
    tamper(
        database,
        f"INSERT INTO service_audit (sequence, time, {copied})"
        f" SELECT 11, time, {copied} FROM service_audit WHERE sequence = 10",
    )
    assert (audit.verify().damage, audit.verify().sequence) == ("changed", 11)
    with pytest.raises(AuditError, match="changed"):
        audit.append([event()])


def forked(database: Database, master_keys: FileMasterKeys, folder: Path) -> Database:
    """A copy of a log of five entries, into which five others were entered than into the first one."""
    audit = AuditLog(database, master_keys, folder / "audit.head")
    audit.append([event(n) for n in range(5)])
    with closing(sqlite3.connect(str(database.url.database))) as connection:
        connection.execute("VACUUM INTO ?", [str(folder / "copy.db")])
    copied_head = (folder / "audit.head").read_bytes()
    audit.append([event(n, verdict="block") for n in range(5)])
    (folder / "copy.head").write_bytes(copied_head)
    copy = Database(f"sqlite:///{folder}/copy.db")
    AuditLog(copy, master_keys, folder / "copy.head").append([event(n) for n in range(5)])
    return copy


def test_a_copy_that_went_another_way_is_not_taken_for_the_log(
    sqlite_database: Database, master_keys: FileMasterKeys, tmp_path: Path
) -> None:
    copy = forked(sqlite_database, master_keys, tmp_path)
    assert AuditLog(copy, master_keys, tmp_path / "copy.head").verify().intact
    exchanged = AuditLog(copy, master_keys, tmp_path / "audit.head")
    assert (exchanged.verify().damage, exchanged.verify().sequence) == ("changed", 10)
    with pytest.raises(AuditError):
        exchanged.append([event()])
    copy.close()


def test_a_genuine_entry_of_a_copy_does_not_fit_in(
    sqlite_database: Database, master_keys: FileMasterKeys, tmp_path: Path
) -> None:
    copy = forked(sqlite_database, master_keys, tmp_path)
    with copy.connection() as connection:
        row = connection.execute(sa.text("SELECT * FROM service_audit WHERE sequence = 7")).mappings().one()
    tamper(sqlite_database, "DELETE FROM service_audit WHERE sequence = 7")
    tamper(sqlite_database, f"INSERT INTO service_audit VALUES ({', '.join(f':{name}' for name in row)})", **row)
    report = AuditLog(sqlite_database, master_keys, tmp_path / "audit.head").verify()
    assert (report.damage, report.sequence) == ("order", 7)
    copy.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing"), (b"", "no head"), (b'[1, "00", "00"]', "changed"), (b"\xff" * 512, "no head")],
    ids=["removed", "emptied", "forged", "overwritten"],
)
def test_a_head_of_no_use_is_told(audit: AuditLog, tmp_path: Path, content: bytes | None, message: str) -> None:
    audit.append([event(n) for n in range(3)])
    head = tmp_path / "audit.head"
    head.unlink() if content is None else head.write_bytes(content)
    report = audit.verify()
    assert report.damage == "head"
    assert message in report.message
    if content is not None:
        with pytest.raises(AuditError):
            audit.append([event()])


def test_an_old_head_does_not_hide_anything_that_it_tells_of(
    audit: AuditLog, database: Database, tmp_path: Path
) -> None:
    audit.append([event(n) for n in range(5)])
    old = (tmp_path / "audit.head").read_bytes()
    audit.append([event(n) for n in range(5)])
    (tmp_path / "audit.head").write_bytes(old)  # as after a power failure
    assert audit.verify().intact
    assert audit.append([event()])[0].sequence == 11
    assert audit.verify().intact


def test_without_the_master_keys_the_log_can_be_neither_continued_nor_verified(
    audit: AuditLog, database: Database, tmp_path: Path
) -> None:
    audit.append([event()])
    other = FileMasterKeys.create(tmp_path / "other.keys")
    with pytest.raises(KeyringError, match="no master key"):
        AuditLog(database, other, tmp_path / "audit.head")


def test_rotated_master_keys_still_verify(
    audit: AuditLog, database: Database, master_keys: FileMasterKeys, tmp_path: Path
) -> None:
    audit.append([event()])
    secret = shared_secret(database, master_keys, "audit log")
    newer = master_keys.add()
    assert AuditLog(database, master_keys, tmp_path / "audit.head").verify().intact
    with database.connection() as connection:
        assert connection.execute(sa.text("SELECT key_id FROM service_secrets")).scalar_one() == newer
    assert shared_secret(database, master_keys, "audit log") == secret


def test_an_acknowledged_entry_survives_kill_9(database_url: str, master_keys: FileMasterKeys, tmp_path: Path) -> None:
    process = appender(database_url, tmp_path, "victim", 100_000)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split()]
    process.wait()
    database = Database(database_url)
    audit = AuditLog(database, master_keys, tmp_path / "audit.head")
    report = audit.verify()
    assert report.intact
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    assert report.last is not None
    assert report.last >= acknowledged[-1]
    assert audit.append([event()])[0].sequence == report.last + 1
    database.close()


@pytest.mark.parametrize("heads", [("audit", "audit"), ("audit", "other")], ids=["one-folder", "two-folders"])
def test_processes_share_one_chain(
    database_url: str, master_keys: FileMasterKeys, tmp_path: Path, heads: tuple[str, str]
) -> None:
    processes = [appender(database_url, tmp_path, f"p{n}", 40, head) for n, head in enumerate(heads)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert sorted(int(number) for output in outputs for number in output) == list(range(1, 81))
    database = Database(database_url)
    for head in heads:
        report = AuditLog(database, master_keys, tmp_path / f"{head}.head").verify()
        assert report.intact
        assert report.entries == 80
    database.close()


def test_threads_share_transactions_and_each_gets_its_own_entries(audit: AuditLog, database: Database) -> None:
    commits: list[int] = []
    sa.event.listen(database._engine, "commit", lambda _: commits.append(1))
    got: dict[int, list[int]] = {}

    def append(number: int) -> None:
        got[number] = []
        for step in range(10):
            entries = audit.append([event(number, actor=f"t{number}", details={"step": step}), event(number)])
            assert entries[0].actor == f"t{number}"
            assert entries[0].details == {"step": step}
            got[number] += [entry.sequence for entry in entries]

    threads = [threading.Thread(target=append, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for numbers in got.values() for number in numbers) == list(range(1, 321))
    assert all(numbers == sorted(numbers) for numbers in got.values())
    assert len(commits) < 160
    assert audit.verify().intact


def test_nothing_is_acknowledged_while_the_database_is_away(audit: AuditLog, database: Database) -> None:
    audit.append([event()])
    tamper(database, "ALTER TABLE service_audit RENAME TO gone")
    with pytest.raises(DatabaseError):
        audit.append([event()])
    tamper(database, "ALTER TABLE gone RENAME TO service_audit")
    assert audit.append([event()])[0].sequence == 2
    assert audit.verify().intact


def test_a_closed_log_takes_nothing_more(sqlite_audit: AuditLog) -> None:
    sqlite_audit.append([event()])
    sqlite_audit.close()
    with pytest.raises(AuditError, match="closed"):
        sqlite_audit.append([event()])
    assert sqlite_audit.verify().entries == 1


def test_one_callers_mistake_does_not_fail_the_others(audit: AuditLog) -> None:
    results: list[object] = []

    def append(bad: bool) -> None:
        try:
            results.append(audit.append([event(score=float("nan") if bad else 0.0)])[0].score)
        except AuditError as error:
            results.append(str(error))

    threads = [threading.Thread(target=append, args=(n % 2 == 0,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["0.0"] * 4 + ["an audit event's score is not a finite number"] * 4
    assert audit.verify().entries == 4


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"actor": "a" * 257}, id="long-actor"),
        pytest.param({"action": "with\0zero"}, id="zero"),
        pytest.param({"concept": "\ud800"}, id="surrogate"),
        pytest.param({"score": float("inf")}, id="infinite"),
        pytest.param({"details": {"x": object()}}, id="not-json"),
        pytest.param({"details": {"x": float("nan")}}, id="nan"),
        pytest.param({"details": {"x": "y" * 20_000}}, id="long-details"),
    ],
)
def test_what_no_database_keeps_as_it_is_is_refused(sqlite_audit: AuditLog, bad: dict[str, object]) -> None:
    with pytest.raises(AuditError):
        sqlite_audit.append([event(), event(**bad)])
    assert sqlite_audit.verify().entries == 0


@pytest.mark.parametrize("score", [0.1, -0.0, 1e-300, 123456789.123456789, 3.0, None])
def test_every_score_verifies(audit: AuditLog, score: float | None) -> None:
    audit.append([event(score=score)])
    assert audit.entries()[0].score == score
    assert audit.verify().intact


@pytest.mark.parametrize("prompt", ["", "naïve ☃ \U0001f600", "zero \0 byte", "\ud800 alone"], ids=range(4))
def test_every_prompt_is_entered(audit: AuditLog, prompt: str) -> None:
    audit.append([event(prompt=prompt, details={"odd": prompt})])
    assert audit.verify().intact


class TestStoredPrompts:
    """With the operator's consent, prompts are kept in the vault."""

    @pytest.fixture
    def opened(
        self, database: Database, master_keys: FileMasterKeys, tmp_path: Path, clock: Clock
    ) -> Callable[..., AuditLog]:
        def opened(**options: object) -> AuditLog:
            vault = Vault(database.url, master_keys, clock=clock)
            options = {"store_prompts": True, "vault": vault, "clock": clock} | options
            return AuditLog(database, master_keys, tmp_path / "audit.head", **options)  # type: ignore[arg-type]

        return opened

    def test_they_come_back_and_are_encrypted(self, opened: Callable[..., AuditLog], database: Database) -> None:
        audit = opened()
        prompts = ["a very secret prompt", "\ud800 alone", ""]
        entries = audit.append([event(prompt=prompt) for prompt in prompts] + [AuditEvent("admin", "signin")])
        assert [audit.prompt(entry) for entry in entries] == [*prompts, None]
        with database.connection() as connection:
            rows = connection.execute(sa.text("SELECT * FROM vault_records_v1")).all()
        assert len(rows) == 3
        assert not any(
            b"secret" in bytes(value) for row in rows for value in row if isinstance(value, (bytes, memoryview))
        )
        assert audit.verify().intact
        audit.close()

    def test_a_prompt_exchanged_in_the_database_is_found(
        self, opened: Callable[..., AuditLog], database: Database
    ) -> None:
        audit = opened()
        one, other = audit.append([event(prompt="one"), event(prompt="other")])
        columns = ("wrapped_key", "content")
        for column in columns:
            tamper(
                database,
                f"UPDATE vault_records_v1 SET {column} = (SELECT {column} FROM vault_records_v1 WHERE id = :other)"
                " WHERE id = :one",
                one=one.record,
                other=other.record,
            )
        assert (audit.verify().damage, audit.verify().sequence) == ("prompt", 1)
        audit.close()

    def test_a_prompt_exchanged_by_somebody_with_the_vaults_keys_is_found(
        self, opened: Callable[..., AuditLog], database: Database, master_keys: FileMasterKeys
    ) -> None:
        audit = opened()
        audit.append([event(prompt="zero")])
        [entry] = audit.append([event(prompt="one")])
        vault = Vault(database.url, master_keys)
        forged = vault.store("audited prompt", b"other")
        vault.delete(str(entry.record))
        vault.close()
        tamper(database, "UPDATE service_audit SET record = :forged WHERE sequence = 2", forged=forged)
        assert (audit.verify().damage, audit.verify().sequence) == ("changed", 2)
        audit.close()

    def test_a_prompt_that_was_removed_is_found(self, opened: Callable[..., AuditLog], database: Database) -> None:
        audit = opened()
        [entry] = audit.append([event(prompt="one")])
        tamper(database, "DELETE FROM vault_records_v1")
        report = audit.verify()
        assert (report.damage, report.message) == ("prompt", "the prompt of entry 1 is missing from the vault")
        with pytest.raises(AuditError):
            audit.prompt(entry)
        audit.close()

    def test_prompts_are_gone_when_their_time_is_over(self, opened: Callable[..., AuditLog], clock: Clock) -> None:
        audit = opened(retention=timedelta(days=1))
        [entry] = audit.append([event(prompt="one")])
        clock.advance(86_400)
        assert audit.prompt(entry) is None
        assert audit.verify().intact
        audit.close()


class TestRetention:
    """Old entries are deleted, and the log says so."""

    def test_what_is_left_verifies(self, audit: AuditLog, clock: Clock) -> None:
        for n in range(10):
            audit.append([event(n)])
            clock.advance(3600)
        assert audit.prune(START + timedelta(hours=4)) == 4
        report = audit.verify()
        assert report.intact
        assert (report.first, report.last, report.entries) == (5, 11, 7)
        [note] = audit.entries(action="audit.prune")
        assert note.details == {"entries": 4, "first": 5}
        assert audit.prune(START) == 0
        audit.append([event()])
        assert audit.prune(clock.now + timedelta(days=1)) == 7
        assert (audit.verify().intact, audit.verify().first) == (True, 12)

    def test_it_happens_by_itself(
        self, database: Database, master_keys: FileMasterKeys, tmp_path: Path, clock: Clock
    ) -> None:
        audit = AuditLog(database, master_keys, tmp_path / "audit.head", retention=timedelta(days=1), clock=clock)
        audit.append([event(n) for n in range(5)])
        clock.advance(2 * 86_400)
        audit.append([event()])
        audit.close()  # which waits for what goes on after the answer
        assert [entry.action for entry in audit.stream()] == ["screen", "audit.prune"]
        assert audit.verify().intact

    def test_nobody_else_can_pretend_it(self, audit: AuditLog, database: Database, clock: Clock) -> None:
        audit.append([event(n) for n in range(10)])
        clock.advance(3600)
        audit.append([event()])
        audit.prune(clock.now)
        tamper(database, "DELETE FROM service_audit WHERE sequence = 11")
        assert (audit.verify().damage, audit.verify().sequence) == ("missing", 11)
        tamper(database, "UPDATE service_audit_start SET sequence = 12")
        assert audit.verify().damage == "changed"
        tamper(database, "DELETE FROM service_audit_start")
        assert (audit.verify().damage, audit.verify().sequence) == ("missing", 1)


def test_a_long_log_is_verified_in_seconds(sqlite_audit: AuditLog) -> None:
    for start in range(0, 10_000, 2000):
        sqlite_audit.append([event(n) for n in range(start, start + 2000)])
    begin = time.process_time()
    assert sqlite_audit.verify().entries == 10_000
    assert time.process_time() - begin < 3  # so 100,000 take no more than half a minute on the slowest machine


def test_entries_are_json(sqlite_audit: AuditLog) -> None:
    [entry] = sqlite_audit.append([event()])
    found = json.loads(json.dumps(entry.as_dict()))
    assert found["sequence"] == 1
    assert found["mac"] == entry.mac
    assert found["prompt_hash"] == entry.prompt_hash
