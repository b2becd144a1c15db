"""Plain HTTP, which only says where HTTPS is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_HEADERS = {"server": "latentguard", "connection": "close", "cache-control": "no-store"}


def redirect_app(port: int, allowed_hosts: Sequence[str] = ()) -> ASGIApp:
    """An application that answers every request with 308, to the same place on HTTPS at `port`.

    A `Host` that is none, or not among `allowed_hosts` if there are any, is answered with 400.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await _answer(scope, port, allowed_hosts)(scope, receive, send)

    return app


def named(host: str, allowed: Sequence[str]) -> bool:
    """Whether a `Host` header, with or without port, is one of these names; `*.` stands for all below."""
    name = re.sub(r":[0-9]*$", "", host.lower())
    return any(
        name == each or (each.startswith("*.") and name.endswith(each[1:])) for each in (one.lower() for one in allowed)
    )


def _answer(scope: Scope, port: int, allowed_hosts: Sequence[str]) -> Response:
    found = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
    if found is None or (allowed_hosts and not named(found[0], allowed_hosts)):
        return Response(status_code=400, headers=_HEADERS)
    place = found[1] if port == 443 else f"{found[1]}:{port}"
    query = scope["query_string"].decode("latin-1")
    path = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else "/"
    target = f"https://{place}{path if path.startswith('/') else '/'}" + (f"?{query}" if query else "")
    return RedirectResponse(target, 308, _HEADERS)
