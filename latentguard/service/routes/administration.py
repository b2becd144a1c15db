"""Keys, the audit log and alerts."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any

from fastapi import Path, Query

from latentguard.service.access import ApiKey, KeyNotFoundError, KeyRequestError, Scope
from latentguard.service.errors import AuditUnavailableError
from latentguard.service.key_admin import KeyAdmin
from latentguard.service.routes.keyed import KeyOf, ServicesOf, errors, json_errors, keyed_router
from latentguard.service.schemas import (
    AlertBody,
    AlertList,
    AuditBody,
    AuditList,
    AuditReportBody,
    KeyBody,
    KeyList,
    KeyRequest,
    NewKeyBody,
    RotateRequest,
)
from latentguard.service.services import Services

_VERIFYING_SECONDS = 600.0

router = keyed_router(Scope.admin, tag="administration")
verifying = keyed_router(Scope.admin, tag="administration", seconds=lambda _: _VERIFYING_SECONDS)

KeyId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
Before = Annotated[int | None, Query(ge=1, le=2**62, description="only what came before this number")]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/v1/keys", response_model=KeyList, responses=errors())
async def list_keys(services: ServicesOf) -> Any:
    """All API keys, without their secrets."""
    return KeyList(keys=[_key(key) for key in await asyncio.to_thread(services.keys.list)])


@router.post(
    "/v1/keys",
    status_code=201,
    response_model=NewKeyBody,
    responses=json_errors(KeyRequestError, AuditUnavailableError),
)
async def create_key(body: KeyRequest, services: ServicesOf, key: KeyOf) -> Any:
    """Makes an API key; the answer is the only one that holds its secret."""
    expires = None
    if body.expires_in_days is not None:
        expires = datetime.now(timezone.utc) + timedelta(days=body.expires_in_days)
    made, token = await asyncio.to_thread(_admin(services, key).create, body.name, body.scopes, expires)
    return NewKeyBody(**_key(made).model_dump(), token=token)


@router.delete("/v1/keys/{key_id}", response_model=KeyBody, responses=errors(KeyNotFoundError, AuditUnavailableError))
async def revoke_key(key_id: KeyId, services: ServicesOf, key: KeyOf) -> Any:
    """Ends an API key for good."""
    return _key(await asyncio.to_thread(_admin(services, key).revoke, key_id))


@router.post(
    "/v1/keys/{key_id}/rotate",
    response_model=NewKeyBody,
    responses=json_errors(KeyNotFoundError, KeyRequestError, AuditUnavailableError),
)
async def rotate_key(key_id: KeyId, body: RotateRequest, services: ServicesOf, key: KeyOf) -> Any:
    """Gives an API key a new secret; the old one may stay good for a while."""
    overlap = timedelta(minutes=body.overlap_minutes)
    made, token = await asyncio.to_thread(lambda: _admin(services, key).rotate(key_id, overlap=overlap))
    return NewKeyBody(**_key(made).model_dump(), token=token)


@router.get("/v1/audit", response_model=AuditList, responses=errors())
async def list_audit(
    services: ServicesOf,
    before: Before = None,
    limit: Limit = 100,
    actor: Annotated[str | None, Query(max_length=64)] = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    verdict: Annotated[str | None, Query(pattern="^(allow|flag|block)$")] = None,
) -> Any:
    """Entries of the audit log, newest first."""
    found = await asyncio.to_thread(
        lambda: services.audit.entries(
            before=before, limit=limit, actor=_text(actor), action=_text(action), verdict=verdict
        )
    )
    return AuditList(entries=[AuditBody(**entry.as_dict()) for entry in found])


@verifying.post("/v1/audit/verify", response_model=AuditReportBody, responses=errors())
async def verify_audit(services: ServicesOf) -> Any:
    """Whether an entry of the audit log was changed or is missing. Reads all of it."""
    report = await asyncio.to_thread(services.audit.verify)
    return AuditReportBody(intact=report.intact, entries=report.entries, message=report.message)


@router.get("/v1/alerts", response_model=AlertList, responses=errors())
async def list_alerts(services: ServicesOf, before: Before = None, limit: Limit = 100) -> Any:
    """Keys that behaved like an attacker's, newest first."""
    found = await asyncio.to_thread(lambda: services.alerts.list(before=before, limit=limit))
    return AlertList(
        alerts=[AlertBody(**{name: getattr(each, name) for name in AlertBody.model_fields}) for each in found]
    )


def _admin(services: Services, key: ApiKey) -> KeyAdmin:
    return KeyAdmin(services.keys, services.audit, key.id)


def _key(key: ApiKey) -> KeyBody:
    return KeyBody(
        id=key.id,
        name=key.name,
        scopes=sorted(key.scopes),
        created=key.created.isoformat(),
        expires=_when(key.expires),
        last_used=_when(key.last_used),
        revoked=_when(key.revoked),
    )


def _when(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _text(given: str | None) -> str | None:
    """Without the character that PostgreSQL takes in no text."""
    return None if given is None else given.replace("\0", "")
