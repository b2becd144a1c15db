"""The service's own secrets: random, kept in the database, wrapped by the master keys that aren't there."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from filelock import FileLock

from latentguard.errors import ServiceError
from latentguard.service.database import METADATA, Database
from privacy.errors import PrivacyError
from privacy.master_keys import DATA_KEY_BYTES, FileMasterKeys, MasterKeys

_LOCK = 0x6C67_0002

_SECRETS = sa.Table(
    "service_secrets",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(200), nullable=False),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
)


class KeyringError(ServiceError):
    """A secret of the service can't be had: its master key is missing, or it was changed in the database."""


def open_master_keys(path: Path) -> FileMasterKeys:
    """The master keys of a file, which is made, with one new key, if it isn't there.

    Raises:
        KeyringError: it can't be read or made, is damaged, or others may read it.
    """
    try:
        with FileLock(path.with_name(f"{path.name}.lock"), mode=0o600):
            return FileMasterKeys(path) if path.exists() else FileMasterKeys.create(path)
    except (PrivacyError, OSError) as error:
        raise KeyringError(f"master keys: {error}") from None


def shared_secret(database: Database, master_keys: MasterKeys, name: str) -> bytes:
    """The 32 secret bytes of this name, the same for every process on this database; made at first use.

    Whenever the current master key is another than the one that wraps it, it is wrapped anew.

    Raises:
        KeyringError: it can't be unwrapped.
        DatabaseError: the database doesn't answer.
    """
    database.create(_SECRETS)
    context = b"latentguard service secret\0" + name.encode("ascii")
    with database.begin(lock=_LOCK) as connection:
        row = connection.execute(sa.select(_SECRETS).where(_SECRETS.c.name == name)).mappings().one_or_none()
        try:
            if row is None:
                secret = os.urandom(DATA_KEY_BYTES)
                key_id, wrapped = master_keys.wrap(secret, context)
                connection.execute(_SECRETS.insert(), {"name": name, "key_id": key_id, "wrapped": wrapped})
                return secret
            secret = master_keys.unwrap(row["key_id"], bytes(row["wrapped"]), context)
            if row["key_id"] != master_keys.current_id:
                key_id, wrapped = master_keys.wrap(secret, context)
                newly = {"key_id": key_id, "wrapped": wrapped}
                connection.execute(_SECRETS.update().where(_SECRETS.c.name == name).values(newly))
        except PrivacyError as error:
            raise KeyringError(f"the service's secret {name!r}: {error}") from None
    return secret


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose."""
    return HKDF(SHA256(), 32, salt=None, info=b"latentguard service\0" + purpose.encode("ascii")).derive(secret)
