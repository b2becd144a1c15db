"""Alerts: kept in the database, told in the log and in the audit log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import sqlalchemy as sa

from latentguard.service.audit import AuditEvent, AuditLog
from latentguard.service.database import METADATA, Database, from_microseconds, microseconds

_LOG = logging.getLogger(__name__)

Kind = Literal["block_rate", "probing", "near_duplicates"]

_ALERTS = sa.Table(
    "service_alerts",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(256), nullable=False, index=True),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Alert:
    """A key behaves like an attacker's.

    Attributes:
        kind: what was noticed: "block_rate", "probing" or "near_duplicates".
        key_id: the key.
        time: when, in seconds since 1970.
        summary: one line for people; it quotes no prompt.
        details: the figures behind it.
        id: its number in the database, None before it is there.
    """

    kind: Kind
    key_id: str
    time: float
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int | None = None

    @property
    def at(self) -> datetime:
        """`time` as a date, in UTC."""
        return datetime.fromtimestamp(self.time, timezone.utc)


class Alerts:
    """The alerts in the database.

    Raises:
        DatabaseError: the database doesn't answer; every method too.
    """

    def __init__(self, database: Database, audit: AuditLog) -> None:
        self._database, self._audit = database, audit
        database.create(_ALERTS)

    def record(self, alerts: Sequence[Alert]) -> None:
        """Logs them, enters them in the audit log, and keeps them.

        Raises:
            AuditError: the audit log can't be written.
        """
        if not alerts:
            return
        for alert in alerts:
            _LOG.warning("alert %s: key %s: %s", alert.kind, alert.key_id, alert.summary)
        self._audit.append(
            [
                AuditEvent("service", f"alert.{each.kind}", details={"key": each.key_id, **each.details})
                for each in alerts
            ]
        )
        rows = [
            {
                "time": microseconds(alert.at),
                "kind": alert.kind,
                "key_id": alert.key_id,
                "summary": alert.summary,
                "details": json.dumps(dict(alert.details)),
            }
            for alert in alerts
        ]
        with self._database.begin() as connection:
            connection.execute(_ALERTS.insert(), rows)

    def list(self, *, before: int | None = None, limit: int = 100, key_id: str | None = None) -> list[Alert]:
        """The last alerts, newest first: those with an id below `before`, and of this key."""
        query = sa.select(_ALERTS).order_by(_ALERTS.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(_ALERTS.c.id < before)
        if key_id is not None:
            query = query.where(_ALERTS.c.key_id == key_id)
        with self._database.connection() as connection:
            return [
                Alert(
                    kind=row["kind"],
                    key_id=row["key_id"],
                    time=from_microseconds(row["time"]).timestamp(),
                    summary=row["summary"],
                    details=json.loads(row["details"]),
                    id=row["id"],
                )
                for row in connection.execute(query).mappings()
            ]
