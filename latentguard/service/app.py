"""The HTTP application over the services."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

import latentguard
from latentguard.errors import LatentGuardError
from latentguard.service.console import console_router
from latentguard.service.errors import (
    INVALID,
    MALFORMED,
    NOT_ALLOWED,
    NOT_FOUND,
    Problem,
    PromptsBlockedError,
    Told,
    told,
)
from latentguard.service.middleware import Front
from latentguard.service.problems import problem_response
from latentguard.service.routes import (
    administration,
    calibration,
    concepts,
    images,
    jobs,
    moderation,
    screening,
    state,
)
from latentguard.service.schemas import VerdictBody
from latentguard.service.services import Services
from privacy.errors import PrivacyError

if TYPE_CHECKING:
    from latentguard.integrations.mcp.http import McpApp

_LOG = logging.getLogger("latentguard.service.requests")

_ROUTERS = (
    screening.router,
    moderation.router,
    concepts.reading,
    concepts.changing,
    calibration.router,
    images.drawing,
    images.encrypted,
    jobs.router,
    administration.router,
    administration.verifying,
    state.router,
)
_SHOWN_CONCEPTS = 5
_SHOWN_CHARS = 100


def create_app(services: Services) -> FastAPI:
    """The application: the API, and the console and the agents' tools where they are installed.

    It serves one event loop, at whose end it finishes what it accepted.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if agents is not None:
                await stack.enter_async_context(agents.running())
            async with services.running():
                yield

    app = FastAPI(
        title="latentguard",
        version=latentguard.__version__,
        description="Screens prompts for text-to-image models, and draws privately. Errors are RFC 9457 problems.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_middleware(Front, services=services)
    for kind in (LatentGuardError, PrivacyError):
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    for router in _ROUTERS:
        app.include_router(router)
    app.include_router(console_router(services))
    agents = _agents(services, app)
    if agents is not None:
        app.router.routes.append(Route("/mcp", agents, include_in_schema=False))
    return app


def _agents(services: Services, app: FastAPI) -> McpApp | None:
    """The application of the agents' tools, which ask this one's API, if their package is installed."""
    if find_spec("mcp") is None:
        return None
    from latentguard.integrations.mcp.http import McpApp

    return McpApp(services, app)


async def _known(request: Request, error: Exception) -> Response:
    answer = told(error)
    if answer.problem.status >= 500:
        _LOG.error("request=%s: %s", request.state.request_id, type(error).__name__)
    more = None
    if isinstance(error, PromptsBlockedError):
        verdicts = [VerdictBody.of(verdict, _SHOWN_CONCEPTS).model_dump() for verdict in error.verdicts]
        more = {"policy": error.policy, "verdicts": verdicts}
    return problem_response(request.state.request_id, answer, more)


async def _invalid(request: Request, error: Exception) -> Response:
    """Where a request doesn't fit; what it holds is not repeated."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    if any(each["type"] == "json_invalid" for each in found):
        return problem_response(request.state.request_id, Told(MALFORMED, MALFORMED.title))
    faults = [
        {"where": ".".join(str(part)[:_SHOWN_CHARS] for part in each["loc"]), "what": each["msg"][:200]}
        for each in found[:20]
    ]
    return problem_response(request.state.request_id, Told(INVALID, INVALID.title), {"errors": faults})


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = {400: MALFORMED, 404: NOT_FOUND, 405: NOT_ALLOWED}
    problem = known.get(status) or Problem(status, f"http_{status}", "The request can't be answered", told=False)
    response = problem_response(request.state.request_id, Told(problem, problem.title))
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        response.headers["allow"] = error.headers["Allow"]
    return response
