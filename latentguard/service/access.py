"""API keys: who may do what.

A token is `lg_<id>_<secret>`. The database holds the Argon2id hash of the secret, which nothing shows again after the
key was made. A verified token is remembered for a while, by a keyed digest, so that only the first of many requests
pays for Argon2; the key's row is read anew every two seconds, so that a revocation by any process counts within them.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from latentguard.errors import ServiceError
from latentguard.service.database import METADATA, Clock, Database, from_microseconds, microseconds, utc_now
from latentguard.service.lockout import LockedOutError, Lockouts

MAX_NAME_CHARS = 64
_ID_BYTES = 8
_SECRET_BYTES = 32
_TOKEN = re.compile(r"lg_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
# OWASP's parameters for Argon2id with the least memory: the secrets have 256 random bits, so that guessing is hopeless
# at any price, while 19 MiB and some 30 ms bound what somebody without a key can make the service spend.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_HASHES_AT_ONCE = 2
_HASH_WAIT_S = 5.0
_REMEMBERED = 1024
_REMEMBERED_S = 600.0
_ROW_S = 2.0
_LAST_USED_EVERY = timedelta(minutes=1)

_KEYS = sa.Table(
    "service_keys",
    METADATA,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(MAX_NAME_CHARS), nullable=False),
    sa.Column("scopes", sa.String(64), nullable=False),
    sa.Column("automatic", sa.Boolean, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.BigInteger, nullable=True),
    sa.Column("last_used", sa.BigInteger, nullable=True),
    sa.Column("revoked", sa.BigInteger, nullable=True),
    sa.Column("hash", sa.String(200), nullable=False),
    sa.Column("previous_hash", sa.String(200), nullable=True),
    sa.Column("previous_until", sa.BigInteger, nullable=True),
)


class Scope(str, Enum):
    """What a key may be used for; `admin` includes the others."""

    screen = "screen"
    generate = "generate"
    admin = "admin"


class NotAuthenticatedError(ServiceError):
    """The API key is not one, has expired, or was revoked; which of these is not said."""

    def __init__(self) -> None:
        super().__init__("the API key is not valid")


class ForbiddenError(ServiceError):
    """The key is valid, but lacks a scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        super().__init__(f"the API key lacks the scope {scope.value}")


class KeyNotFoundError(ServiceError):
    """There is no key of this id, or it was revoked."""


class KeyRequestError(ServiceError):
    """A key can't be made as asked: no name, no scope, or an expiry in the past."""


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. `automatic`: made by the service itself at its first start."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created: datetime
    expires: datetime | None
    last_used: datetime | None
    revoked: datetime | None
    automatic: bool = False

    def usable(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def allows(self, scope: Scope) -> bool:
        """Whether it may be used for `scope`."""
        return scope in self.scopes or Scope.admin in self.scopes

    def require(self, scope: Scope) -> None:
        """Raises ForbiddenError if it may not be used for `scope`."""
        if not self.allows(scope):
            raise ForbiddenError(scope)


class KeyStore:
    """The keys in the database; thread-safe, and safe for several processes.

    Args:
        database: where they are kept.
        lockout_failures: wrong secrets for one id from one address until that pair is locked out. An address is locked
            out whole after four times as many.
        lockout_s: how long that lasts, in seconds.
        clock: the present time; `ticks` the same in seconds that never go back.

    Raises:
        DatabaseError: the database doesn't answer; every method too.
    """

    def __init__(
        self,
        database: Database,
        *,
        lockout_failures: int = 5,
        lockout_s: float = 300.0,
        clock: Clock = utc_now,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock, self._ticks = clock, ticks
        self._lockouts = Lockouts(lockout_failures, lockout_s, ticks)
        self._verified = _Verified(ticks)
        self._rows: OrderedDict[str, tuple[float, sa.RowMapping | None]] = OrderedDict()
        self._rows_lock = threading.Lock()
        self._hashing = threading.BoundedSemaphore(_HASHES_AT_ONCE)
        # What an unknown id is compared with, so that it takes as long as a wrong secret.
        self._nobody = _HASHER.hash(secrets.token_urlsafe(_SECRET_BYTES))
        database.create(_KEYS)

    def create(
        self, name: str, scopes: Iterable[Scope], expires: datetime | None = None, *, automatic: bool = False
    ) -> tuple[ApiKey, str]:
        """Makes a key. Returns it with its token, which can't be had again.

        Raises:
            KeyRequestError: a name of no or more than 64 printable characters, no scope, or an expiry in the past.
        """
        now, granted = self._clock(), frozenset(Scope(scope) for scope in scopes)
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or not name.strip():
            raise KeyRequestError(f"the name of a key has 1 to {MAX_NAME_CHARS} printable characters")
        if not granted:
            raise KeyRequestError("a key has at least one scope of " + ", ".join(scope.value for scope in Scope))
        if expires is not None and expires <= now:
            raise KeyRequestError("the key would have expired already")
        key_id, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
        row = {
            "id": key_id,
            "name": name,
            "scopes": ",".join(scope.value for scope in Scope if scope in granted),
            "automatic": automatic,
            "created": microseconds(now),
            "expires": None if expires is None else microseconds(expires),
            "hash": self._hash(secret),
        }
        with self._database.begin() as connection:
            connection.execute(_KEYS.insert(), row)
        return self.find(key_id), f"lg_{key_id}_{secret}"

    def list(self) -> list[ApiKey]:
        """All keys, those revoked and expired too, the oldest first."""
        with self._database.connection() as connection:
            rows = connection.execute(sa.select(_KEYS).order_by(_KEYS.c.created, _KEYS.c.id)).mappings().all()
        return [_api_key(row) for row in rows]

    def find(self, key_id: str) -> ApiKey:
        """The key of an id. Raises KeyNotFoundError if there is none."""
        row = self._read(key_id)
        if row is None:
            raise KeyNotFoundError("there is no key of this id")
        return _api_key(row)

    def in_use(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        """The key of an id and a digest that changes with its secret; None if there is none that may be used."""
        row = self._read(key_id)
        if row is None or not _api_key(row).usable(self._clock()):
            return None
        return _api_key(row), hashlib.sha256(row["hash"].encode()).digest()

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key for good, here at once and in other processes within two seconds.

        Raises:
            KeyNotFoundError: there is no such key, or it was revoked before.
        """
        self._change(key_id, revoked=microseconds(self._clock()), previous_hash=None, previous_until=None)
        return self.find(key_id)

    def rotate(self, key_id: str, *, overlap: timedelta = timedelta(0)) -> tuple[ApiKey, str]:
        """Gives a key a new secret; the old one is good for `overlap` still. Returns the key with its new token.

        A key that the service made itself counts as made by command from then on.

        Raises:
            KeyNotFoundError: there is no such key, or it was revoked.
            KeyRequestError: the key has expired, or the overlap is negative or longer than 30 days.
        """
        if not timedelta(0) <= overlap <= timedelta(days=30):
            raise KeyRequestError("an overlap lasts 0 to 30 days")
        now, secret = self._clock(), secrets.token_urlsafe(_SECRET_BYTES)
        if not self.find(key_id).usable(now):
            raise KeyNotFoundError("this key was revoked or has expired")
        self._change(
            key_id,
            previous_hash=_KEYS.c.hash if overlap else None,
            previous_until=microseconds(now + overlap) if overlap else None,
            hash=self._hash(secret),
            automatic=False,
        )
        return self.find(key_id), f"lg_{key_id}_{secret}"

    def authenticate(self, token: str, client_address: str) -> ApiKey:
        """The key that a token belongs to.

        Raises:
            NotAuthenticatedError: it belongs to none, or to one that was revoked or has expired.
            LockedOutError: this address sent too many wrong ones, or more arrive than can be looked at.
        """
        found = _TOKEN.fullmatch(token)
        known = None if found is None else self._remembered(token, found[1])
        if known is None:
            self._lockouts.check(client_address, found[1] if found else None)
            known = None if found is None else self._verify(token, *found.groups())
            if known is None:
                self._lockouts.failed(client_address, found[1] if found else None)
                raise NotAuthenticatedError
            self._lockouts.succeeded(client_address, known["id"])
        key, now = _api_key(known), self._clock()
        if not key.usable(now):
            raise NotAuthenticatedError
        self._used(key, now)
        return key

    def at_hand(self, token: str) -> ApiKey | None:
        """The key of a token if `authenticate` could tell it from memory alone; never blocks, and refuses nothing."""
        found = _TOKEN.fullmatch(token)
        with self._rows_lock:
            row = None if found is None else self._row_at_hand(found[1])
        now = self._clock()
        if row is None or self._verified.hash_of(token) not in _hashes(row, now):
            return None
        key = _api_key(row)
        return key if key.usable(now) and not _use_is_due(key, now) else None

    def _remembered(self, token: str, key_id: str) -> sa.RowMapping | None:
        """The key's row if this very token was verified lately and its hash is still the key's."""
        verified = self._verified.hash_of(token)
        row = None if verified is None else self._row(key_id)
        return row if row is not None and verified in _hashes(row, self._clock()) else None

    def _verify(self, token: str, key_id: str, secret: str) -> sa.RowMapping | None:
        row = self._read(key_id)  # afresh: another process may have rotated the key a moment ago
        candidates = [self._nobody] if row is None else _hashes(row, self._clock())
        if not self._hashing.acquire(timeout=_HASH_WAIT_S):
            raise LockedOutError(1)
        try:
            matching = [candidate for candidate in candidates if _matches(candidate, secret)]
        finally:
            self._hashing.release()
        if row is None or not matching:
            return None
        self._verified.remember(token, matching[0])
        return row

    def _hash(self, secret: str) -> str:
        with self._hashing:
            return _HASHER.hash(secret)

    def _row(self, key_id: str) -> sa.RowMapping | None:
        """The key's row as it was at most two seconds ago."""
        with self._rows_lock:
            row = self._row_at_hand(key_id)
        return self._read(key_id) if row is None else row

    def _row_at_hand(self, key_id: str) -> sa.RowMapping | None:
        read_at, row = self._rows.get(key_id, (-math.inf, None))
        return row if self._ticks() - read_at < _ROW_S else None

    def _read(self, key_id: str) -> sa.RowMapping | None:
        read_at = self._ticks()
        with self._database.connection() as connection:
            row = connection.execute(sa.select(_KEYS).where(_KEYS.c.id == key_id)).mappings().one_or_none()
        with self._rows_lock:
            self._rows.pop(key_id, None)
            if row is not None:  # ids that nobody has are not worth the memory
                self._rows[key_id] = (read_at, row)
                while len(self._rows) > _REMEMBERED:
                    self._rows.popitem(last=False)
        return row

    def _change(self, key_id: str, **values: object) -> None:
        with self._database.begin() as connection:
            which = (_KEYS.c.id == key_id) & _KEYS.c.revoked.is_(None)
            changed = connection.execute(_KEYS.update().where(which).values(values)).rowcount
        with self._rows_lock:
            self._rows.pop(key_id, None)
        if not changed:
            raise KeyNotFoundError("there is no key of this id, or it was revoked")

    def _used(self, key: ApiKey, now: datetime) -> None:
        if not _use_is_due(key, now):
            return
        with self._database.begin() as connection:
            connection.execute(_KEYS.update().where(_KEYS.c.id == key.id).values(last_used=microseconds(now)))
        self._read(key.id)


class _Verified:
    """The hashes that tokens were found to match, for ten minutes each, by a digest keyed by this process alone."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._digest_key = secrets.token_bytes(32)
        self._hashes: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        self._lock = threading.Lock()

    def hash_of(self, token: str) -> str | None:
        with self._lock:
            until, hashed = self._hashes.get(self._digest(token), (-math.inf, None))
        return hashed if self._ticks() < until else None

    def remember(self, token: str, hashed: str) -> None:
        with self._lock:
            self._hashes[self._digest(token)] = (self._ticks() + _REMEMBERED_S, hashed)
            while len(self._hashes) > _REMEMBERED:
                self._hashes.popitem(last=False)

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._digest_key, token.encode(), "sha256")


def _use_is_due(key: ApiKey, now: datetime) -> bool:
    """Whether that a key was used has to be written down, which is done once a minute."""
    return key.last_used is None or now - key.last_used >= _LAST_USED_EVERY


def _hashes(row: sa.RowMapping, now: datetime) -> list[str]:
    """The hashes that a secret of this key may match at the moment."""
    until = row["previous_until"]
    overlapping = row["previous_hash"] is not None and until is not None and microseconds(now) < until
    return [row["hash"], row["previous_hash"]] if overlapping else [row["hash"]]


def _matches(hashed: str, secret: str) -> bool:
    try:
        return _HASHER.verify(hashed, secret)
    except (Argon2Error, InvalidHashError):
        return False


def _api_key(row: sa.RowMapping) -> ApiKey:
    def time_of(name: str) -> datetime | None:
        return None if row[name] is None else from_microseconds(row[name])

    return ApiKey(
        id=row["id"],
        name=row["name"],
        scopes=frozenset(Scope(scope) for scope in row["scopes"].split(",")),
        created=from_microseconds(row["created"]),
        expires=time_of("expires"),
        last_used=time_of("last_used"),
        revoked=time_of("revoked"),
        automatic=bool(row["automatic"]),
    )
