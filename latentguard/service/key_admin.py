"""Making and ending API keys, each act in the audit log before it counts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from filelock import FileLock

from latentguard.errors import ServiceError
from latentguard.service.access import ApiKey, KeyStore, Scope
from latentguard.service.audit import AuditEvent, AuditLog
from latentguard.service.database import utc_now
from latentguard.service.settings import Settings
from privacy.errors import PrivacyError
from privacy.files import OWNER_ONLY, write_secret

FIRST_KEY_FILE = "admin.key"


class NoKeyError(ServiceError):
    """The service may not start as it is: outside loopback a key has to be made first."""


class KeyAdmin:
    """Keys changed on behalf of `actor`: the id of an admin's key, or who used the command line.

    Raises:
        AuditError, DatabaseError: it couldn't be written down; a new key's token is then known to nobody.
    """

    def __init__(self, keys: KeyStore, audit: AuditLog, actor: str) -> None:
        self._keys, self._audit, self._actor = keys, audit, actor

    def create(
        self, name: str, scopes: Iterable[Scope], expires: datetime | None = None, *, automatic: bool = False
    ) -> tuple[ApiKey, str]:
        """As `KeyStore.create`."""
        key, token = self._keys.create(name, scopes, expires, automatic=automatic)
        granted = sorted(scope.value for scope in key.scopes)
        self._enter("keys.create", key, name=key.name, scopes=granted, expires=_iso(key.expires), automatic=automatic)
        return key, token

    def revoke(self, key_id: str) -> ApiKey:
        """As `KeyStore.revoke`."""
        key = self._keys.revoke(key_id)
        self._enter("keys.revoke", key)
        return key

    def rotate(self, key_id: str, *, overlap: timedelta = timedelta(0)) -> tuple[ApiKey, str]:
        """As `KeyStore.rotate`."""
        key = self._keys.find(key_id)
        # First, since a key whose new token got lost would lock its owner out.
        self._enter("keys.rotate", key, overlap_s=overlap.total_seconds())
        return self._keys.rotate(key_id, overlap=overlap)

    def _enter(self, action: str, key: ApiKey, **details: object) -> None:
        self._audit.append([AuditEvent(self._actor, action, details={"key": key.id, **details})])


def first_key(settings: Settings, keys: KeyStore, audit: AuditLog) -> Path | None:
    """What has to be settled about keys before the service starts.

    On loopback, where there never was a key, an admin key is made, and its token written to a file in the data folder
    for its owner alone; the file's path is returned, None if nothing was made. Outside loopback nothing is made, and
    a key that was made like this is not good enough.

    Raises:
        NoKeyError: outside loopback, there is no usable admin key that was made by command, or the automatic one is
            still usable; or there never was a key, but the file is there, of another database.
    """
    if not settings.on_loopback:
        _check_made_by_command(keys)
        return None
    path = settings.data_dir / FIRST_KEY_FILE
    with FileLock(path.with_name(f"{path.name}.lock"), mode=OWNER_ONLY):
        if keys.list():
            return None
        if path.exists():
            raise NoKeyError(f"{path}: holds a key of another database; move it away")
        _, token = KeyAdmin(keys, audit, "service").create("first start", [Scope.admin], automatic=True)
        try:
            write_secret(path, token.encode("ascii") + b"\n")
        except PrivacyError as error:
            raise NoKeyError(str(error)) from None
    return path


def _check_made_by_command(keys: KeyStore) -> None:
    usable = [key for key in keys.list() if key.usable(utc_now())]
    automatic = [key.id for key in usable if key.automatic]
    if not any(key.allows(Scope.admin) and not key.automatic for key in usable):
        raise NoKeyError(
            "outside loopback the service needs an admin key: run `latentguard keys create --name NAME --scopes admin`"
        )
    if automatic:
        raise NoKeyError(
            "outside loopback the key made at the first start must not be usable: "
            f"run `latentguard keys revoke {automatic[0]}`"
        )


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
