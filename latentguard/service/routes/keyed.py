"""Routes that need an API key, which is looked at before the body is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.types import Message

from latentguard.errors import PolicyError, PromptError
from latentguard.service.access import ApiKey, ForbiddenError, NotAuthenticatedError, Scope
from latentguard.service.database import DatabaseError
from latentguard.service.errors import (
    MALFORMED,
    BodyTooLargeError,
    BodyTooSlowError,
    ClosingError,
    DeadlineError,
    MediaTypeError,
    RequestError,
)
from latentguard.service.limits import RateLimitedError
from latentguard.service.lockout import LockedOutError
from latentguard.service.problems import documented
from latentguard.service.services import Services
from latentguard.service.settings import Settings

_BEARER = HTTPBearer(auto_error=False, description="`Authorization: Bearer lg_...`")
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="`X-API-Key: lg_...`")
_OF_EVERY_KEYED_ROUTE = (NotAuthenticatedError, LockedOutError, ForbiddenError, DatabaseError, DeadlineError)
_OF_BODIES = (BodyTooLargeError, BodyTooSlowError)
_OF_JSON = (*_OF_BODIES, MALFORMED, MediaTypeError, RequestError)
# What screening may end in, for the routes that screen.
OF_SCREENING: tuple[type[Exception], ...] = (RateLimitedError, ClosingError, PromptError, PolicyError)


# Coroutines, since FastAPI hands plain functions to a thread each, which costs more than they do.
async def services_of(request: Request) -> Services:
    """The services of the application that a request came to."""
    services: Services = request.app.state.services
    return services


async def key_of(request: Request) -> ApiKey:
    """The key that a request was made with."""
    key: ApiKey = request.state.key
    return key


async def request_id_of(request: Request) -> str:
    """The request's id."""
    request_id: str = request.state.request_id
    return request_id


ServicesOf = Annotated[Services, Depends(services_of)]
KeyOf = Annotated[ApiKey, Depends(key_of)]
RequestId = Annotated[str, Depends(request_id_of)]


async def authenticate(request: Request) -> ApiKey:
    """The key that a request brings, as bearer token or in `X-API-Key`.

    Raises:
        NotAuthenticatedError, LockedOutError: as `KeyStore.authenticate`.
    """
    services = await services_of(request)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    token = given.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    at_hand = services.keys.at_hand(token)
    if at_hand is not None:
        return at_hand
    address = request.client.host if request.client is not None else "unknown"
    try:
        return await asyncio.to_thread(services.keys.authenticate, token, address)
    except (NotAuthenticatedError, LockedOutError) as error:
        services.metrics.failed_sign_ins.labels(type(error).__name__.removesuffix("Error")).inc()
        raise


def _usual_time(settings: Settings) -> float:
    return settings.request_timeout_s


def keyed_router(
    scope: Scope | None, *, tag: str, seconds: Callable[[Settings], float] = _usual_time, streams: bool = False
) -> APIRouter:
    """A router whose routes need a key, with `scope` unless that is None.

    `seconds` is how long a route may take. Where it `streams`, the route itself
    reads the body; elsewhere it is read, as JSON, once the key is known to be good.
    """

    class KeyedRoute(APIRoute):
        """Key, then body, then the route itself, within its time."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def keyed(request: Request) -> Response:
                services = await services_of(request)
                key = await authenticate(request)
                request.state.key = key
                if scope is not None:
                    key.require(scope)
                if self.body_field is not None and not streams:
                    request = await _with_json(request)
                allowed = seconds(services.settings)
                request.state.deadline = time.monotonic() + allowed
                try:
                    return await asyncio.wait_for(handle(request), allowed)
                except asyncio.TimeoutError:
                    raise DeadlineError("the time for this request is over") from None

            return keyed

    return APIRouter(
        route_class=KeyedRoute,
        tags=[tag],
        dependencies=[Security(_BEARER), Security(_HEADER)],
        responses=documented(*_OF_EVERY_KEYED_ROUTE),
    )


def json_errors(*more: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """What a keyed route that takes JSON may end in, and `more`."""
    return documented(*_OF_EVERY_KEYED_ROUTE, *_OF_JSON, *more)


def errors(*more: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """What a keyed route without a body may end in, and `more`."""
    return documented(*_OF_EVERY_KEYED_ROUTE, RequestError, *more)


def body_errors(*more: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """What a keyed route that streams its body may end in, and `more`."""
    return documented(*_OF_EVERY_KEYED_ROUTE, *_OF_BODIES, MediaTypeError, *more)


def media_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _with_json(request: Request) -> Request:
    """The same request, its body read."""
    if media_type(request) != "application/json":
        raise MediaTypeError("application/json is what this takes")
    body = await request.body()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)
