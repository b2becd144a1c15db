"""The MCP server over HTTP on its own: a service of which nothing but /mcp is offered, on loopback alone."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from latentguard.service.app import create_app
from latentguard.service.key_admin import first_key
from latentguard.service.server import listening
from latentguard.service.services import Services, open_services
from latentguard.service.settings import Settings

PATH = "/mcp"
_HOST = "127.0.0.1"


def serve_http(settings: Settings, *, port: int) -> None:
    """Serves until it is interrupted, and prints where. It speaks plain HTTP, which leaves the machine nowhere.

    Raises:
        ServiceError and others of LatentGuardError, PrivacyError: it can't be started; the message says why.
    """
    settings = settings.model_copy(update={"host": _HOST})
    with listening(_HOST, port, "--port") as listener, open_services(settings) as services:
        made = first_key(settings, services.keys, services.audit)
        print(f"http://{_HOST}:{listener.getsockname()[1]}{PATH}", flush=True)
        if made is not None:
            print(f"admin key, made now: {made}", flush=True)
        config = uvicorn.Config(
            standalone_app(services),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.shutdown_grace_s),
        )
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def standalone_app(services: Services) -> ASGIApp:
    """The service's application, of which /mcp alone is answered."""
    app = create_app(services)

    async def only_agents(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != PATH:
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        await app(scope, receive, send)

    return only_agents
