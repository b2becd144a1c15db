"""The audit log: append-only, each entry chained to the one before by a keyed hash.

    audit = AuditLog(database, master_keys, data_dir / "audit.head")
    audit.append([AuditEvent(actor=key.id, action="screen", verdict="block", prompt="...")])
    audit.verify().intact

An entry's MAC is HMAC-SHA256 over all its fields and the MAC before it, under a key that is in the database only as the
master keys wrapped it: whoever can write to the database, but doesn't have the master keys, can't change, insert,
reorder or remove an entry unseen. That the last entries are still there is told by the head, a small authenticated file
outside the database with number and MAC of the last entry that was acknowledged from here.

Prompts are kept as keyed hash alone, unless they are to be stored in the vault.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa

from latentguard.errors import ServiceError
from latentguard.service.audit_head import AuditHead, Head
from latentguard.service.audit_records import (
    ENTRIES,
    GENESIS,
    START,
    AuditEntry,
    AuditError,
    AuditEvent,
    entry_mac,
    entry_of,
    start_mac,
)
from latentguard.service.audit_verify import AuditReport, Verification
from latentguard.service.database import Clock, Database, microseconds, utc_now
from latentguard.service.keyring import derived, open_master_keys, shared_secret
from latentguard.service.settings import Settings
from privacy.errors import PrivacyError, RecordNotFoundError
from privacy.master_keys import MasterKeys
from privacy.vault import Vault

__all__ = ["AuditEntry", "AuditError", "AuditEvent", "AuditLog", "AuditReport", "open_audit"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOG = logging.getLogger(__name__)

_LOCK = 0x6C67_0003
_EVENTS_AT_ONCE = 2000
_ROWS_AT_ONCE = 2000
_PRUNE_EVERY = timedelta(hours=1)
_PRUNED_AT_ONCE = 10_000
_VAULT_KIND = "audited prompt"


class AuditLog:
    """The log in the database; threads and processes may append at once, and share one chain.

    Args:
        database: where the entries are.
        master_keys: wrap the log's own key.
        head: the file, outside the database, that tells where the log ends.
        vault: where prompts are, if any were ever stored.
        store_prompts: whether prompts go into the vault from now on.
        retention: after how long entries and their prompts are deleted; None keeps them.
        clock: the present time.

    Raises:
        DatabaseError: the database doesn't answer; every method too.
        KeyringError: the log's key can't be had.
        AuditError: prompts are to be stored, but there is no vault.
    """

    def __init__(
        self,
        database: Database,
        master_keys: MasterKeys,
        head: Path,
        *,
        vault: Vault | None = None,
        store_prompts: bool = False,
        retention: timedelta | None = None,
        clock: Clock = utc_now,
    ) -> None:
        if store_prompts and vault is None:
            raise AuditError("to store prompts, the audit log needs a vault")
        self._database, self._vault, self._clock = database, vault, clock
        self._store_prompts, self._retention = store_prompts, retention
        secret = shared_secret(database, master_keys, "audit log")
        self._chain_key, self._prompt_key = derived(secret, "audit chain"), derived(secret, "audit prompts")
        self._head = AuditHead(head, derived(secret, "audit head"))
        self._waiting: list[tuple[list[AuditEvent], Future[list[AuditEntry]]]] = []
        self._waiting_lock = threading.Lock()
        # One thread writes, so that whoever waits wakes with an answer and not just to queue for a lock.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._pruned: datetime | None = None
        database.create(ENTRIES, START)

    def prompt_hash(self, prompt: str) -> str:
        """The keyed hash by which the log knows a prompt, 64 hexadecimal digits."""
        return hmac.digest(self._prompt_key, _encoded(prompt), "sha256").hex()

    def append(self, events: Sequence[AuditEvent]) -> list[AuditEntry]:
        """Enters the events, in order, and returns them once they are on disk. Blocks: call it in a thread.

        What callers want to enter while a transaction runs goes into the next one together.

        Raises:
            AuditError: an event can't be entered, entries that were acknowledged before are gone, or the log is closed.
            DatabaseError: the database doesn't answer. Nothing was entered, or nobody knows whether it was.
        """
        if not events:
            return []
        for event in events:
            event.columns()  # a mistake in one caller's events must not fail the transaction of all
        mine: Future[list[AuditEntry]] = Future()
        with self._waiting_lock:
            self._waiting.append((list(events), mine))
        self._submit(self._commit_waiting)
        return mine.result()

    def entries(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        actor: str | None = None,
        action: str | None = None,
        verdict: str | None = None,
        prompt_hash: str | None = None,
    ) -> list[AuditEntry]:
        """The last entries, newest first: those with a number below `before`, and of this actor, action, verdict or
        prompt."""
        query = sa.select(ENTRIES).order_by(ENTRIES.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(ENTRIES.c.sequence < before)
        wanted = {"actor": actor, "action": action, "verdict": verdict, "prompt_hash": prompt_hash}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(ENTRIES.c[name] == value)
        with self._database.connection() as connection:
            return [entry_of(row) for row in connection.execute(query).mappings()]

    def stream(self) -> Iterator[AuditEntry]:
        """All entries, oldest first, a few thousand in memory at a time."""
        after = 0
        while True:
            query = sa.select(ENTRIES).where(ENTRIES.c.sequence > after).order_by(ENTRIES.c.sequence)
            with self._database.connection() as connection:
                rows = connection.execute(query.limit(_ROWS_AT_ONCE)).mappings().all()
            if not rows:
                return
            yield from map(entry_of, rows)
            after = rows[-1]["sequence"]

    def prompt(self, entry: AuditEntry) -> str | None:
        """The prompt of an entry, or None if it was never stored or its time is over.

        Raises:
            AuditError: it was changed or removed, or can't be decrypted.
        """
        if entry.record is None:
            return None
        where = f"the prompt of entry {entry.sequence}"
        if self._vault is None:
            raise AuditError(f"{where} is in a vault, which wasn't given")
        try:
            prompt = self._vault.fetch(entry.record).decode("utf-8", "surrogatepass")
        except RecordNotFoundError:
            if entry.record_expires is not None and entry.record_expires <= self._clock():
                return None
            raise AuditError(f"{where} is missing from the vault") from None
        except (PrivacyError, UnicodeDecodeError) as error:
            raise AuditError(f"{where} can't be read: {error}") from None
        if not hmac.compare_digest(self.prompt_hash(prompt), entry.prompt_hash or ""):
            raise AuditError(f"{where} is not the one that was screened")
        return prompt

    def verify(self) -> AuditReport:
        """Recomputes the chain from the first entry to the last, with progress on a terminal."""
        try:
            with self._head.locked():
                head = self._head.read()
        except AuditError as error:
            return AuditReport(0, damage="head", message=str(error))
        return Verification(self._database, self._chain_key, head, self._prompt_problem).report()

    def prune(self, before: datetime) -> int:
        """Deletes entries from before a time, at most 10,000, with their prompts, and returns how many.

        The log tells so in an entry of its own, and can be verified from its new beginning. Its last entry stays.

        Raises:
            AuditError, DatabaseError: as `append`.
        """
        return self._submit(self._prune, before).result()

    def close(self) -> None:
        """Finishes what was begun, and takes nothing more. Closes the vault's connections; the database stays open."""
        self._writer.shutdown()
        if self._vault is not None:
            self._vault.close()

    def _take(self) -> list[tuple[list[AuditEvent], Future[list[AuditEntry]]]]:
        """Who goes into the next transaction: whoever waits longest, up to a number of events."""
        with self._waiting_lock:
            count, events = 0, 0
            for waiting, _ in self._waiting:
                if count and events + len(waiting) > _EVENTS_AT_ONCE:
                    break
                count, events = count + 1, events + len(waiting)
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def _submit(self, work: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> Future[_R]:
        try:
            return self._writer.submit(work, *arguments, **named)
        except RuntimeError:
            raise AuditError("the audit log is closed") from None

    def _commit_waiting(self) -> None:
        """One transaction for some of those who wait, each of whom learns how it ended."""
        taken = self._take()
        if not taken:  # an earlier one was for them as well
            return
        try:
            entries = self._append([event for events, _ in taken for event in events])
        except BaseException as error:
            for _, future in taken:
                future.set_exception(error)
            return
        place = 0
        for events, future in taken:
            future.set_result(entries[place : place + len(events)])
            place += len(events)
        self._prune_sometimes()

    def _append(self, events: Sequence[AuditEvent]) -> list[AuditEntry]:
        records = self._stored(events)
        with self._head.locked():
            head = self._head.read()
            with self._database.begin(lock=_LOCK) as connection:
                entries = self._enter(connection, self._last(connection, head), events, records)
            self._head.write(_head_of(entries))
        return entries

    def _stored(self, events: Sequence[AuditEvent]) -> list[tuple[str, int | None] | None]:
        """Puts the prompts into the vault, and tells where each is and until when."""
        records: list[tuple[str, int | None] | None] = [None] * len(events)
        if self._vault is None or not self._store_prompts:
            return records
        texts = {place: event.prompt for place, event in enumerate(events) if event.prompt is not None}
        expires = None if self._retention is None else self._clock() + self._retention
        try:
            ids = self._vault.store_all(_VAULT_KIND, [_encoded(text) for text in texts.values()], expires=expires)
        except PrivacyError as error:
            raise AuditError(f"the prompts can't be stored: {error}") from None
        for place, record in zip(texts, ids, strict=True):
            records[place] = (record, None if expires is None else microseconds(expires))
        return records

    def _last(self, connection: sa.Connection, head: Head | None) -> sa.RowMapping | None:
        """The last entry. AuditError if it isn't genuine, or the one that `head` tells of is gone."""
        query = sa.select(ENTRIES).order_by(ENTRIES.c.sequence.desc()).limit(1)
        last = connection.execute(query).mappings().one_or_none()
        if last is not None and not hmac.compare_digest(bytes(last["mac"]), entry_mac(self._chain_key, last)):
            raise AuditError(f"audit entry {last['sequence']} was changed; run `latentguard audit verify`")
        if head is not None and not self._has(connection, head, last):
            raise AuditError("the last audit entries are gone; run `latentguard audit verify`")
        return last

    def _has(self, connection: sa.Connection, head: Head, last: sa.RowMapping | None) -> bool:
        if last is None or last["sequence"] < head.sequence:
            return False
        if last["sequence"] == head.sequence:
            return hmac.compare_digest(bytes(last["mac"]), head.mac)
        # Another folder's processes went on from there; perhaps so far that this entry was pruned since.
        mac = connection.execute(sa.select(ENTRIES.c.mac).where(ENTRIES.c.sequence == head.sequence)).scalar()
        if mac is not None:
            return hmac.compare_digest(bytes(mac), head.mac)
        start = connection.execute(sa.select(START)).mappings().one_or_none()
        return start is not None and head.sequence < start["sequence"] and self._is_genuine(start)

    def _is_genuine(self, start: sa.RowMapping) -> bool:
        expected = start_mac(self._chain_key, start["sequence"], bytes(start["previous"]))
        return hmac.compare_digest(bytes(start["mac"]), expected)

    def _enter(
        self,
        connection: sa.Connection,
        last: sa.RowMapping | None,
        events: Sequence[AuditEvent],
        records: Sequence[tuple[str, int | None] | None],
    ) -> list[AuditEntry]:
        sequence, previous = (0, GENESIS) if last is None else (last["sequence"], bytes(last["mac"]))
        now = microseconds(self._clock())
        rows: list[dict[str, Any]] = []
        for event, record in zip(events, records, strict=True):
            sequence += 1
            row = event.columns() | {
                "sequence": sequence,
                "time": now,
                "prompt_hash": None if event.prompt is None else self.prompt_hash(event.prompt),
                "record": None if record is None else record[0],
                "record_expires": None if record is None else record[1],
                "previous": previous,
            }
            previous = row["mac"] = entry_mac(self._chain_key, row)
            rows.append(row)
        connection.execute(ENTRIES.insert(), rows)
        return [entry_of(row) for row in rows]

    def _cut(self, connection: sa.Connection, first: int) -> int:
        """Deletes what is before `first`, which becomes the beginning."""
        deleted = connection.execute(ENTRIES.delete().where(ENTRIES.c.sequence < first)).rowcount
        if deleted:
            previous = bytes(
                connection.execute(sa.select(ENTRIES.c.previous).where(ENTRIES.c.sequence == first)).scalar_one()
            )
            connection.execute(START.delete())
            mac = start_mac(self._chain_key, first, previous)
            connection.execute(START.insert(), {"place": 0, "sequence": first, "previous": previous, "mac": mac})
        return deleted

    def _prune(self, before: datetime) -> int:
        with self._head.locked():
            head = self._head.read()
            with self._database.begin(lock=_LOCK) as connection:
                last = self._last(connection, head)
                first = None if last is None else _first_kept(connection, before, last["sequence"])
                deleted = 0 if first is None else self._cut(connection, first)
                if not deleted:
                    return 0
                event = AuditEvent("service", "audit.prune", details={"entries": deleted, "first": first})
                entries = self._enter(connection, last, [event], [None])
            self._head.write(_head_of(entries))
        if self._vault is not None:
            try:
                self._vault.purge()
            except PrivacyError as error:
                raise AuditError(f"expired prompts can't be deleted: {error}") from None
        return deleted

    def _prune_sometimes(self) -> None:
        """Once an hour, or as long as there is more to delete. What was just entered stays acknowledged if it fails."""
        now = self._clock()
        if self._retention is None or (self._pruned is not None and now - self._pruned < _PRUNE_EVERY):
            return
        self._pruned = now
        try:
            if self._prune(now - self._retention) == _PRUNED_AT_ONCE:
                self._pruned = None
        except ServiceError as error:
            _LOG.error("old audit entries can't be deleted: %s", error)

    def _prompt_problem(self, entry: AuditEntry) -> str | None:
        try:
            self.prompt(entry)
        except AuditError as error:
            return str(error)
        return None


def open_audit(settings: Settings, database: Database) -> AuditLog:
    """The audit log of the settings: its head and, by default, its master keys in the data folder.

    Raises:
        KeyringError, DatabaseError, AuditError: as `AuditLog`, and if the vault can't be opened.
    """
    master_keys = open_master_keys(settings.master_keys_file)
    try:
        vault = Vault(database.url, master_keys)
    except PrivacyError as error:
        raise AuditError(f"the vault can't be opened: {error}") from None
    return AuditLog(
        database,
        master_keys,
        settings.data_dir / "audit.head",
        vault=vault,
        store_prompts=settings.store_prompts,
        retention=settings.audit_retention,
    )


def _first_kept(connection: sa.Connection, before: datetime, last: int) -> int:
    """The first entry not older than `before`; or an earlier one, if there are too many to delete at once."""
    number = sa.func.min(ENTRIES.c.sequence)
    oldest: int = connection.execute(sa.select(number)).scalar_one()
    kept: int | None = connection.execute(sa.select(number).where(ENTRIES.c.time >= microseconds(before))).scalar_one()
    return min(last if kept is None else kept, last, oldest + _PRUNED_AT_ONCE)


def _head_of(entries: Sequence[AuditEntry]) -> Head:
    return Head(entries[-1].sequence, bytes.fromhex(entries[-1].mac))


def _encoded(prompt: str) -> bytes:
    """Of any text, lone surrogates included."""
    return prompt.encode("utf-8", "surrogatepass")
