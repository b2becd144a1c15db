"""Whether the service is well, and what it counted."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from latentguard.errors import ServiceError
from latentguard.service.access import ForbiddenError, NotAuthenticatedError, Scope
from latentguard.service.lockout import LockedOutError
from latentguard.service.problems import documented
from latentguard.service.routes.keyed import ServicesOf, authenticate
from latentguard.service.schemas import Health, Readiness

router = APIRouter(tags=["state"])


@router.get("/healthz", response_model=Health)
async def healthz() -> Any:
    """The process runs and answers."""
    return Health(status="ok")


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Something isn't well"}},
)
async def readyz(services: ServicesOf) -> Any:
    """Whether requests would be answered: the guard is loaded, the database answers, there is room in the queue."""
    try:
        await asyncio.to_thread(services.database.ping)
        database = True
    except ServiceError:
        database = False
    checks = {
        "guard": len(services.guard.concepts) > 0,
        "database": database,
        "queue": not services.batcher.full,
        "running": not services.draining,
    }
    ready = Readiness(ready=all(checks.values()), checks=checks)
    return ready if ready.ready else JSONResponse(ready.model_dump(), 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **documented(NotAuthenticatedError, LockedOutError, ForbiddenError),
        200: {"description": "Prometheus' text format", "content": {"text/plain": {}}},
    },
)
async def metrics(request: Request, services: ServicesOf) -> Response:
    """The service's metrics, for a client on this machine or with an admin key."""
    if not _on_loopback(request):
        (await authenticate(request)).require(Scope.admin)
    return Response(services.metrics.exposition(), headers={"content-type": services.metrics.content_type})


def _on_loopback(request: Request) -> bool:
    """Whether the client is on this machine; one whom a proxy on it has sent isn't."""
    if request.client is None or any(name in request.headers for name in ("forwarded", "x-forwarded-for")):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
