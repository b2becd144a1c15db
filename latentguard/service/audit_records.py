"""What the audit log holds, and the keyed hash that chains it."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from latentguard.errors import ServiceError
from latentguard.service.database import METADATA, from_microseconds

MAX_TEXT_CHARS = 256
MAX_DETAILS_CHARS = 16_384
GENESIS = bytes(32)

VerdictName = Literal["allow", "flag", "block"]

ENTRIES = sa.Table(
    "service_audit",
    METADATA,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.BigInteger, nullable=False, index=True),
    sa.Column("actor", sa.String(MAX_TEXT_CHARS), nullable=False, index=True),
    sa.Column("action", sa.String(MAX_TEXT_CHARS), nullable=False, index=True),
    sa.Column("policy", sa.String(MAX_TEXT_CHARS), nullable=True),
    sa.Column("verdict", sa.String(16), nullable=True, index=True),
    sa.Column("score", sa.Double, nullable=True),
    sa.Column("concept", sa.Text, nullable=True),
    sa.Column("prompt_hash", sa.String(64), nullable=True, index=True),
    sa.Column("record", sa.String(32), nullable=True),
    sa.Column("record_expires", sa.BigInteger, nullable=True),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False),
)
# Where the log begins after old entries were deleted: one row, or none for a log that is whole.
START = sa.Table(
    "service_audit_start",
    METADATA,
    sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("mac", sa.LargeBinary, nullable=False),
)
_CHAINED = [column.name for column in ENTRIES.c if column.name not in ("previous", "mac")]


class AuditError(ServiceError):
    """An event can't be entered, or the log is not what it was: nothing may be answered that isn't in it."""


@dataclass(frozen=True)
class AuditEvent:
    """What happened.

    Attributes:
        actor: the id of the API key, or what else acted.
        action: what was done, such as "screen" or "keys.revoke".
        policy: the fingerprint of the bank and policy in force.
        verdict, score, concept: the decision on `prompt`.
        prompt: as it was written. The log has its keyed hash; the text goes nowhere but into the vault, if at all.
        details: further facts, for JSON. Never a prompt, never a secret.
    """

    actor: str
    action: str
    policy: str | None = None
    verdict: VerdictName | None = None
    score: float | None = None
    concept: str | None = None
    prompt: str | None = field(default=None, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """What an entry has of it, without the prompt.

        Raises:
            AuditError: a text is too long or can't be kept, the score is not finite, or details aren't JSON.
        """
        texts = {name: getattr(self, name) for name in ("actor", "action", "policy", "verdict", "concept")}
        for name, text in texts.items():
            limit = MAX_DETAILS_CHARS if name == "concept" else MAX_TEXT_CHARS
            if text is not None and (len(text) > limit or not _storable(text)):
                raise AuditError(f"an audit event's {name} is too long, or holds what no database keeps")
        if self.score is not None and not math.isfinite(self.score):
            raise AuditError("an audit event's score is not a finite number")
        try:
            details = json.dumps(self.details, allow_nan=False)
        except (TypeError, ValueError):
            raise AuditError("an audit event's details are not JSON") from None
        if len(details) > MAX_DETAILS_CHARS:
            raise AuditError(f"an audit event's details have more than {MAX_DETAILS_CHARS:,} characters")
        # Adding 0 makes a negative zero positive, which SQLite would do as well.
        score = None if self.score is None else float(self.score) + 0.0
        return texts | {"score": score, "details": details}


@dataclass(frozen=True)
class AuditEntry:
    """An event as the log has it.

    ``prompt_hash``, ``previous`` and ``mac`` are hexadecimal; ``record`` is the prompt's id in the vault.
    """

    sequence: int
    time: datetime
    actor: str
    action: str
    policy: str | None
    verdict: str | None
    score: float | None
    concept: str | None
    prompt_hash: str | None
    record: str | None
    record_expires: datetime | None
    details: Mapping[str, Any]
    previous: str
    mac: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with times in ISO 8601."""
        expires = self.record_expires
        times = {"time": self.time.isoformat(), "record_expires": None if expires is None else expires.isoformat()}
        return dict(vars(self)) | times


def entry_of(row: Mapping[Any, Any]) -> AuditEntry:
    """The entry that a row of the table holds."""
    expires = row["record_expires"]
    changed = {
        "time": from_microseconds(row["time"]),
        "record_expires": None if expires is None else from_microseconds(expires),
        "details": json.loads(row["details"]),
        "previous": bytes(row["previous"]).hex(),
        "mac": bytes(row["mac"]).hex(),
    }
    return AuditEntry(**{column.name: row[column.name] for column in ENTRIES.c} | changed)


def entry_mac(key: bytes, row: Mapping[Any, Any]) -> bytes:
    """HMAC-SHA256 over an entry's columns and the MAC before it."""
    content = [row[name] for name in _CHAINED]
    return _mac(key, ["latentguard audit v1", *content, bytes(row["previous"]).hex()])


def start_mac(key: bytes, sequence: int, previous: bytes) -> bytes:
    """HMAC-SHA256 over where the log begins."""
    return _mac(key, ["latentguard audit start v1", sequence, previous.hex()])


def _mac(key: bytes, content: list[Any]) -> bytes:
    return hmac.digest(key, json.dumps(content).encode("ascii"), "sha256")


def _storable(text: str) -> bool:
    """Whether PostgreSQL and SQLite both keep it: UTF-8 without zero bytes."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
