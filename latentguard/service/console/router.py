"""The console's routes: pages, sign-in, static files."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from latentguard.service.console import alerts, audit, changes, concepts, keys, overview, signin, threshold, trying
from latentguard.service.console.web import Console
from latentguard.service.services import Services

_PAGES = (overview, trying, concepts, changes, threshold, audit, alerts, keys, signin)
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def console_router(services: Services) -> APIRouter:
    """The console over `services`, at /console; / leads there. Nothing of it is in the OpenAPI description."""
    console = Console(services)

    async def show_sign_in(request: Request) -> Response:
        return await signin.show(console, request)

    async def take_sign_in(request: Request) -> Response:
        return await signin.sign_in(console, request)

    async def static(request: Request) -> Response:
        asset = console.assets.get(request.path_params["name"])
        if asset is None:
            return Response(status_code=404)
        # Only the very content that a page named may be kept.
        current = request.query_params.get("v") == asset.version
        headers = _FOR_GOOD if current else {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    async def to_console(request: Request) -> Response:
        return RedirectResponse("/console/", status_code=303)

    routes: list[BaseRoute] = [
        Route("/", to_console, methods=["GET"]),
        Route("/console", to_console, methods=["GET"]),
        Route("/console/static/{name:path}", static, methods=["GET"]),
        Route("/console/sign-in", console.guarded(show_sign_in), methods=["GET"]),
        Route("/console/sign-in", console.guarded(take_sign_in), methods=["POST"]),
        *(
            Route(f"/console{route.path}", console.endpoint(route), methods=[route.method])
            for page in _PAGES
            for route in page.ROUTES
        ),
    ]
    return APIRouter(routes=routes)
