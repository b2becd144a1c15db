"""The bank and the threshold: reading, changing, and what a change would do."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Header, Query, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse

from latentguard.errors import ConceptError, PolicyError
from latentguard.service.access import Scope
from latentguard.service.errors import (
    AuditUnavailableError,
    ConceptExistsError,
    ConceptNotFoundError,
    PreconditionFailedError,
)
from latentguard.service.policies import InForce
from latentguard.service.routes.keyed import KeyOf, RequestId, ServicesOf, errors, json_errors, keyed_router
from latentguard.service.schemas import (
    ChangedBody,
    ConceptBody,
    ConceptList,
    ConceptRequest,
    PolicyBody,
    PolicyRequest,
    PreviewBody,
)
from latentguard.service.services import Services
from latentguard.service.traffic import Preview

reading = keyed_router(Scope.screen, tag="policy")
changing = keyed_router(Scope.admin, tag="policy")

IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=200, description="the ETag it was made for")]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=200)]
IsPreview = Annotated[bool, Query(alias="preview", description="only say what would change on recent traffic")]
_OF_CHANGES = (PreconditionFailedError, AuditUnavailableError, PolicyError)


@reading.get(
    "/v1/concepts",
    response_model=ConceptList,
    responses={**errors(), 304: {"description": "It is what `If-None-Match` names"}},
)
async def list_concepts(
    services: ServicesOf,
    response: Response,
    search: Annotated[str | None, Query(max_length=200, description="part of a name, in either case")] = None,
    category: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100_000)] = 100_000,
    if_none_match: IfNoneMatch = None,
) -> Any:
    """The concepts that prompts are screened for."""
    now = services.policies.now
    if if_none_match is not None and _names(if_none_match, now.fingerprint):
        return Response(status_code=304, headers={"etag": _etag(now)})
    found = [
        ConceptBody(name=entry.name, category=entry.category, threshold=entry.threshold)
        for entry in now.guard.concepts
        if (search is None or search.casefold() in entry.name.casefold())
        and (category is None or category == entry.category)
    ]
    response.headers["etag"] = _etag(now)
    return ConceptList(policy=now.fingerprint, total=len(now.guard.concepts), concepts=found[:limit])


@changing.post(
    "/v1/concepts",
    status_code=201,
    response_model=PolicyBody,
    responses={
        **json_errors(*_OF_CHANGES, ConceptExistsError, ConceptError),
        200: {"model": PreviewBody, "description": "What it would change, if only a preview was asked for"},
    },
)
async def add_concept(
    body: ConceptRequest,
    services: ServicesOf,
    key: KeyOf,
    request_id: RequestId,
    response: Response,
    preview: IsPreview = False,
    if_match: IfMatch = None,
) -> Any:
    """Adds a concept, in force from the next prompt on."""
    entry = body.entry()
    if preview:
        return _shown(await asyncio.to_thread(services.preview, add=[entry]))
    after = await asyncio.to_thread(
        services.change,
        key,
        "concepts.add",
        add=[entry],
        expected=_expected(services, if_match),
        details={"request": request_id, "category": entry.category, "concept_threshold": entry.threshold},
    )
    return _in_force(after, response)


@changing.delete(
    "/v1/concepts",
    response_model=PolicyBody | PreviewBody,
    responses=errors(*_OF_CHANGES, ConceptNotFoundError, ConceptError),
)
async def remove_concept(
    name: Annotated[str, Query(min_length=1, max_length=200, description="in either case")],
    services: ServicesOf,
    key: KeyOf,
    request_id: RequestId,
    response: Response,
    preview: IsPreview = False,
    if_match: IfMatch = None,
) -> Any:
    """Takes a concept out, from the next prompt on."""
    if preview:
        if name not in services.guard.concepts:
            raise ConceptNotFoundError("there is no such concept in the bank")
        return _shown(await asyncio.to_thread(services.preview, remove=[name]))
    after = await asyncio.to_thread(
        services.change,
        key,
        "concepts.remove",
        remove=[name],
        expected=_expected(services, if_match),
        details={"request": request_id},
    )
    return _in_force(after, response)


@reading.get("/v1/policy", response_model=PolicyBody, responses=errors())
async def get_policy(services: ServicesOf, response: Response) -> Any:
    """What is in force."""
    return _in_force(services.policies.now, response)


@changing.patch(
    "/v1/policy",
    response_model=PolicyBody | PreviewBody,
    responses=json_errors(*_OF_CHANGES),
)
async def set_threshold(
    body: PolicyRequest,
    services: ServicesOf,
    key: KeyOf,
    request_id: RequestId,
    response: Response,
    preview: IsPreview = False,
    if_match: IfMatch = None,
) -> Any:
    """Moves the threshold of all concepts that have none of their own."""
    if preview:
        return _shown(await asyncio.to_thread(services.preview, threshold=body.threshold))
    after = await asyncio.to_thread(
        services.change,
        key,
        "policy.threshold",
        threshold=body.threshold,
        expected=_expected(services, if_match),
        details={"request": request_id},
    )
    return _in_force(after, response)


def _in_force(now: InForce, response: Response) -> PolicyBody:
    response.headers["etag"] = _etag(now)
    return PolicyBody(
        policy=now.fingerprint,
        version=now.version,
        threshold=now.guard.policy.threshold,
        concepts=len(now.guard.concepts),
        categories=now.guard.concepts.categories,
    )


def _shown(preview: Preview) -> Response:
    changed = [ChangedBody(**vars(each)) for each in preview.changed]
    body = PreviewBody(
        prompts=preview.prompts,
        newly_blocked=preview.newly_blocked,
        newly_allowed=preview.newly_allowed,
        changed=changed,
    )
    return JSONResponse(jsonable_encoder(body))


def _etag(now: InForce) -> str:
    return f'"{now.fingerprint}"'


def _names(header: str, fingerprint: str) -> bool:
    """Whether a header such as If-Match names this fingerprint."""
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")]
    return fingerprint in tags or "*" in tags


def _expected(services: Services, if_match: str | None) -> str | None:
    """The fingerprint that a change was made for."""
    if if_match is None:
        return None
    now = services.policies.fingerprint
    if not _names(if_match, now):
        raise PreconditionFailedError(f"the policy in force is {now}")
    return now
