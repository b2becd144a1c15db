"""Recomputing the audit log's chain."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from tqdm import tqdm

from latentguard.service.audit_head import Head
from latentguard.service.audit_records import ENTRIES, GENESIS, START, AuditEntry, entry_mac, entry_of, start_mac
from latentguard.service.database import Database

_ROWS_AT_ONCE = 2000

Damage = Literal["changed", "missing", "order", "tail", "prompt", "head"]


@dataclass(frozen=True)
class AuditReport:
    """What a verification found: `entries` in order, from `first` to `last`, and the first damage after them.

    ``damage`` is None, or: an entry or the log's beginning was "changed"; entries are "missing" in the middle; an entry
    doesn't follow the one before ("order"); the "tail" was cut off; a stored "prompt" was exchanged or removed; the
    "head" can't be used, so that a cut tail couldn't be seen. ``sequence`` is the number of the entry where it is.
    """

    entries: int
    first: int | None = None
    last: int | None = None
    damage: Damage | None = None
    sequence: int | None = None
    message: str = "no entry was changed, and none is missing"

    @property
    def intact(self) -> bool:
        """Whether the log is what was written."""
        return self.damage is None


class _Found(Exception):
    def __init__(self, damage: Damage, sequence: int | None, message: str) -> None:
        super().__init__(message)
        self.damage, self.sequence, self.message = damage, sequence, message


class Verification:
    """One pass over the log, as it is at one moment.

    Args:
        database: where it is.
        key: of its chain.
        head: where it ended when that was last acknowledged; read before this begins.
        prompt_problem: tells what is wrong with an entry's stored prompt, or None.
    """

    def __init__(
        self,
        database: Database,
        key: bytes,
        head: Head | None,
        prompt_problem: Callable[[AuditEntry], str | None],
    ) -> None:
        self._database, self._key, self._head, self._prompt_problem = database, key, head, prompt_problem
        self._first: int | None = None
        self._next, self._previous = 1, GENESIS
        self._checked = 0

    def report(self) -> AuditReport:
        """Reads the log to its end or to the first damage, with progress on a terminal."""
        try:
            with self._database.connection() as connection:
                self._begin(connection)
                total = connection.execute(sa.select(sa.func.count()).select_from(ENTRIES)).scalar_one()
                query = sa.select(ENTRIES).order_by(ENTRIES.c.sequence)
                rows = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query).mappings()
                for row in tqdm(rows, total=total, desc="verifying", unit="entry", leave=False, disable=None):
                    self._follow(row)
            self._end()
        except _Found as found:
            return AuditReport(self._checked, self._first, self._last(), found.damage, found.sequence, found.message)
        return AuditReport(self._checked, self._first, self._last())

    def _begin(self, connection: sa.Connection) -> None:
        start = connection.execute(sa.select(START)).mappings().one_or_none()
        if start is None:
            return
        previous = bytes(start["previous"])
        if not hmac.compare_digest(bytes(start["mac"]), start_mac(self._key, start["sequence"], previous)):
            raise _Found("changed", None, "the record of where the log begins was changed")
        self._next, self._previous = start["sequence"], previous

    def _follow(self, row: sa.RowMapping) -> None:
        sequence = row["sequence"]
        if sequence > self._next:
            raise _Found("missing", self._next, f"{_entries(self._next, sequence - 1)} missing")
        if sequence < self._next:
            raise _Found("order", sequence, f"entry {sequence} is from before the log begins")
        mac = bytes(row["mac"])
        if not hmac.compare_digest(mac, entry_mac(self._key, row)):
            raise _Found("changed", sequence, f"entry {sequence} was changed, or was never written by this service")
        if not hmac.compare_digest(bytes(row["previous"]), self._previous):
            raise _Found("order", sequence, f"entry {sequence} does not follow the one before it")
        if self._head is not None and sequence == self._head.sequence and mac != self._head.mac:
            raise _Found("changed", sequence, f"entry {sequence} is not the one that was acknowledged")
        if row["record"] is not None:
            problem = self._prompt_problem(entry_of(row))
            if problem is not None:
                raise _Found("prompt", sequence, problem)
        self._first = sequence if self._first is None else self._first
        self._next, self._previous = sequence + 1, mac
        self._checked += 1

    def _end(self) -> None:
        if self._head is None:
            if self._checked:
                raise _Found("head", None, "nothing tells where the log ends: the head is missing")
        elif self._head.sequence >= self._next:
            raise _Found("tail", self._next, f"{_entries(self._next, self._head.sequence)} missing at the end")

    def _last(self) -> int | None:
        return self._next - 1 if self._checked else None


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
