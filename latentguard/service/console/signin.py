"""Signing in with an API key, and out."""

from __future__ import annotations

import secrets

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from latentguard.service.access import NotAuthenticatedError, Scope
from latentguard.service.audit import AuditEvent
from latentguard.service.console.sessions import ABSOLUTE_S, Session
from latentguard.service.console.web import SESSION_COOKIE, VISIT_COOKIE, Console, PageRoute, StaleFormError, Visit
from latentguard.service.lockout import LockedOutError

_STRANGER = "unknown"
_WRONG = "This is no valid API key."
_NO_SCOPE = "This key has neither the scope admin nor screen, so that there is nothing here for it."
_STALE = "The page was out of date. Try again."


async def show(console: Console, request: Request) -> Response:
    """The page to sign in; whoever has signed in goes on."""
    if await run_in_threadpool(console.session, request) is not None:
        return RedirectResponse("/console/", status_code=303)
    return _page(console, request)


async def sign_in(console: Console, request: Request) -> Response:
    """Takes a key and opens a session; everything that comes of it is in the audit log."""
    try:
        form = await console.form(request, request.cookies.get(VISIT_COOKIE, ""))
    except StaleFormError:
        return _page(console, request, _STALE, 403)
    return await run_in_threadpool(_sign_in, console, request, str(form.get("key", "")).strip())


def _sign_in(console: Console, request: Request, token: str) -> Response:
    services = console.services
    try:
        key = services.keys.authenticate(token, _address(request))
    except NotAuthenticatedError:
        return _refused(console, request, _STRANGER, "wrong_key", _WRONG, 401)
    except LockedOutError as error:
        # Not in the audit log: an attacker could fill it, and the attempts that led here are in it.
        services.metrics.failed_sign_ins.labels("locked_out").inc()
        message = f"Too many wrong keys from your address. Try again in {error.retry_after} s."
        response = _page(console, request, message, 429)
        response.headers["Retry-After"] = str(error.retry_after)
        return response
    found = services.keys.in_use(key.id)
    if found is None:
        return _refused(console, request, key.id, "wrong_key", _WRONG, 401)
    if not key.allows(Scope.screen):
        return _refused(console, request, key.id, "no_scope", _NO_SCOPE, 403)
    services.append([AuditEvent(key.id, "console.sign_in", details={"address": _address(request)})])
    console.sessions.close(request.cookies.get(SESSION_COOKIE, ""))
    response = RedirectResponse("/console/", status_code=303)
    _set_cookie(response, SESSION_COOKIE, console.sessions.open(*found).token, ABSOLUTE_S)
    response.delete_cookie(VISIT_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return response


def _refused(console: Console, request: Request, actor: str, reason: str, message: str, status: int) -> Response:
    console.services.metrics.failed_sign_ins.labels(reason).inc()
    details = {"reason": reason, "address": _address(request)}
    console.services.append([AuditEvent(actor, "console.sign_in_failed", details=details)])
    return _page(console, request, message, status)


def _page(console: Console, request: Request, message: str = "", status: int = 200) -> Response:
    # The cookie that is there already stays, or else the form in another tab would be out of date.
    visit = request.cookies.get(VISIT_COOKIE) or secrets.token_urlsafe(32)
    response = console.render("sign-in.html", cookie=visit, status=status, message=message)
    _set_cookie(response, VISIT_COOKIE, visit, None)
    return response


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _set_cookie(response: Response, name: str, value: str, seconds: int | None) -> None:
    response.set_cookie(name, value, max_age=seconds, path="/", secure=True, httponly=True, samesite="strict")


def _home(visit: Visit) -> Response:
    return visit.see(_first_page(visit.session))


def _first_page(session: Session) -> str:
    return "/console/overview" if session.admin else "/console/try"


def _sign_out(visit: Visit) -> Response:
    visit.console.sessions.close(visit.session.token)
    visit.audit("console.sign_out")
    response = visit.see("/console/sign-in")
    response.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return response


ROUTES = (
    PageRoute("GET", "/", _home, admin=False),
    PageRoute("POST", "/sign-out", _sign_out, admin=False),
)
