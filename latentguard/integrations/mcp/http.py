"""The MCP server as a part of the service, at /mcp: whoever has an API key may use the tools that its scopes cover.

A tool's call becomes a request to the service's own API, in this process and with the caller's key, so that scopes,
rate limits, batching, the audit log and alerts are the same whichever way a prompt comes in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from latentguard.errors import LatentGuardError
from latentguard.integrations.mcp.server import Access, Context, mcp_server
from latentguard.integrations.tools.base import ToolName
from latentguard.integrations.tools.remote import RemoteTools
from latentguard.service.access import ApiKey
from latentguard.service.access import Scope as KeyScope
from latentguard.service.errors import BAD_HOST, NOT_ALLOWED, Problem, Told, told
from latentguard.service.problems import problem_response
from latentguard.service.routes.keyed import authenticate
from latentguard.service.services import Services

_CREDENTIALS = ("authorization", "x-api-key")
_BAD_ORIGIN = Problem(403, "unknown_origin", "The page that asks is not one of this service", told=False)


class McpApp:
    """An ASGI application for one path, which answers while `running` is entered; that can be done once.

    `api` is the application of the service, which the tools' calls go to.

    ::

    XX.routes.append(Route("/mcp", mounted))
        async with mounted.running():  # in the lifespan of the application around it
            ...
    """

    def __init__(self, services: Services, api: ASGIApp) -> None:
        self._services, self._api = services, api
        # Every request stands for itself, and is answered by plain JSON: a client needs no session, and an answer's
        # size is not bound by that of an event.
        self._sessions = StreamableHTTPSessionManager(
            mcp_server(self._access),
            json_response=True,
            stateless=True,
            max_request_body_size=services.settings.ciphertext_limit_bytes,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs what answers requests."""
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks where a request comes from and its API key, before anything of its body is read."""
        request_id = scope.get("state", {}).get("request_id", "")
        try:
            refusal = _refusal(scope, self._services)
            if refusal is None:
                scope.setdefault("state", {})["key"] = await authenticate(Request(scope))
        except LatentGuardError as error:
            refusal = told(error)
        if refusal is not None:
            await problem_response(request_id, refusal)(scope, receive, send)
            return
        await self._sessions.handle_request(scope, receive, send)

    def _access(self, context: Context) -> Access:
        """Tools that ask the service's API with the caller's own key."""
        request = context.request
        if not isinstance(request, Request):
            raise MCPError(INTERNAL_ERROR, "a request came in without its headers")
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self._api, raise_app_exceptions=False, client=_address(request.scope)),
            # The name that the client knows the service by, which the API checks as well.
            base_url=f"https://{request.headers['host']}",
            headers={name: request.headers[name] for name in _CREDENTIALS if name in request.headers},
            trust_env=False,
        )
        return Access(RemoteTools(client, self._offered(request.state.key)))

    def _offered(self, key: ApiKey) -> frozenset[ToolName]:
        there: dict[ToolName, bool] = {
            "screen_prompt": key.allows(KeyScope.screen),
            "generate_private_image": key.allows(KeyScope.generate) and self._services.pipeline is not None,
            "classify_encrypted_image": key.allows(KeyScope.generate) and self._services.classifiers is not None,
        }
        return frozenset(name for name, offered in there.items() if offered)


def _refusal(scope: Scope, services: Services) -> Told | None:
    """Why a request is not answered: no POST, or from a web page that has no business here (DNS rebinding).

    A page can reach this service by a name of its own that leads here, but not choose the names in Host and Origin: a
    Host has to be an address, localhost or a name that the settings allow, and an Origin the same as the Host.
    """
    if scope["method"] != "POST":  # a GET would hold a stream open, on which nothing is ever sent
        return Told(NOT_ALLOWED, NOT_ALLOWED.title)
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    name = _name(host)
    allowed = services.settings.allowed_hosts
    named = any(name == each.lower() or (each.startswith("*.") and name.endswith(each[1:].lower())) for each in allowed)
    if not named and not (not allowed and (name == "localhost" or _is_address(name))):
        return Told(BAD_HOST, BAD_HOST.title)
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return Told(_BAD_ORIGIN, _BAD_ORIGIN.title)
    return None


def _name(host: str) -> str:
    """A Host header's name without its port; empty for one that is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _address(scope: Scope) -> tuple[str, int]:
    client = scope.get("client")
    return (client[0], client[1]) if client else ("127.0.0.1", 0)
