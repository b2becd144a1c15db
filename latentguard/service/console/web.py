"""What every page of the console shares: who is signed in, forms, templates, headers, and how errors look."""

from __future__ import annotations

import inspect
import logging
import math
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from latentguard.errors import LatentGuardError
from latentguard.service.access import ForbiddenError, Scope
from latentguard.service.audit import AuditEvent
from latentguard.service.console.assets import read_assets
from latentguard.service.console.sessions import Session, Sessions
from latentguard.service.console.templating import environment
from latentguard.service.errors import INVALID, NOT_FOUND, RequestError, Told, told
from latentguard.service.services import Services
from privacy.errors import PrivacyError

_LOG = logging.getLogger(__name__)

SESSION_COOKIE = "__Host-latentguard-session"
VISIT_COOKIE = "__Host-latentguard-visit"
"""Ties the form of the sign-in page to the browser that asked for it, before there is a session."""

SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": SECURITY_POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FORM_TYPE = "application/x-www-form-urlencoded"
_MOST_FIELDS = 32

PAGES = (
    ("overview", "Overview"),
    ("try", "Try a prompt"),
    ("concepts", "Concepts"),
    ("threshold", "Threshold"),
    ("audit", "Audit log"),
    ("alerts", "Alerts"),
    ("keys", "API keys"),
)


class SignInNeeded(Exception):
    """Nobody is signed in, or the session is over."""


class StaleFormError(RequestError):
    """A form doesn't belong to the session, because that was renewed, or the form is somebody else's."""


@dataclass(frozen=True)
class Visit:
    """One request to a page by somebody who is signed in; ``form`` is empty for GET."""

    console: Console
    request: Request
    session: Session
    form: FormData

    @property
    def services(self) -> Services:
        """The service behind the console."""
        return self.console.services

    def field(self, name: str) -> str:
        """A field of the form without white space around it, "" where it is missing."""
        return str(self.form.get(name, "")).strip()

    def query(self, name: str) -> str:
        """A parameter of the URL without white space around it, "" where it is missing."""
        return self.request.query_params.get(name, "").strip()

    @property
    def confirmed(self) -> bool:
        """Whether the form comes from the button of a question."""
        return self.field("confirmed") == "yes"

    def page(self, template: str, name: str, /, *, status: int = 200, **values: Any) -> Response:
        """A page in the console's frame; ``name`` is the one in the navigation that it belongs to."""
        session = self.session
        pages = PAGES if session.admin else [page for page in PAGES if page[0] == "try"]
        frame = {
            "session": session,
            "pages": pages,
            "page": name,
            "home": f"/console/{pages[0][0]}",
            "notes": session.take_notes(),
        }
        return self.console.render(template, cookie=session.token, status=status, **frame, **values)

    def note(self, kind: Literal["good", "bad", "warn", "info"], text: str, secret: str | None = None) -> None:
        """Have the next page say something; a secret is shown once, ready to be copied."""
        self.session.notes.append({"kind": kind, "text": text, "secret": secret})

    def audit(self, action: str, **details: Any) -> None:
        """Write what was done to the audit log, in the name of the key that is signed in; blocks.

        Raises:
            AuditUnavailableError: it can't be written.
        """
        event = AuditEvent(self.session.key.id, action, self.services.policies.fingerprint, details=details)
        self.services.append([event])

    def ask(self, name: str, /, heading: str, text: str, *, button: str, **fields: str) -> Response:
        """A page that asks before a form goes out that carries these fields, where no dialog could."""
        return self.page(
            "confirm.html",
            name,
            heading=heading,
            text=text,
            button=button,
            action=self.request.url.path,
            back=f"/console/{name}",
            fields=list(fields.items()),
        )

    def renew(self) -> None:
        """Keep the session although its key was given another secret: whoever did it is signed in here."""
        found = self.services.keys.in_use(self.session.key.id)
        if found is not None:
            self.session.key, self.session.secret = found

    def see(self, path: str) -> Response:
        """Go on to another page, so that reloading it repeats nothing."""
        return RedirectResponse(path, status_code=303)


Handler = Callable[[Visit], Response | Awaitable[Response]]


@dataclass(frozen=True)
class PageRoute:
    """A page of the console: what answers it, and whether that is for admins alone."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    admin: bool = True


class Console:
    """The console over one service."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.sessions = Sessions()
        self.assets = read_assets()
        self._templates = environment(self.asset_path)

    def asset_path(self, name: str) -> str:
        """The URL of a static file: another one whenever its content changes, so that it may be kept for good."""
        return f"/console/static/{name}?v={self.assets[name].version}"

    def render(self, template: str, *, cookie: str, status: int = 200, **values: Any) -> Response:
        """A page whose forms belong to the browser that holds ``cookie``."""
        field = Markup('<input type="hidden" name="form_token" value="{}">').format(self.sessions.form_token(cookie))
        text = self._templates.get_template(template).render(csrf=lambda: field, **values)
        return HTMLResponse(text, status_code=status)

    def endpoint(self, route: PageRoute) -> Callable[[Request], Awaitable[Response]]:
        """What answers a page's requests: it lets in who may, and tells every error as a page."""

        async def answer(request: Request) -> Response:
            return await _call(route.handler, await self._visit(request, route))

        return self.guarded(answer)

    def guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """`answer` with errors as pages, and the console's headers."""

        async def endpoint(request: Request) -> Response:
            try:
                response = await answer(request)
            except SignInNeeded:
                response = _to_sign_in(request)
            except (LatentGuardError, PrivacyError) as error:
                response = self._error_page(error)
            except HTTPException as error:
                problem = NOT_FOUND if error.status_code == 404 else INVALID
                response = self._told_page(Told(problem, problem.title))
            except Exception as error:
                # As over the API: the log has the place, but not the message, which may quote what was sent.
                frames = "".join(traceback.format_tb(error.__traceback__))
                _LOG.error("console: %s\n%s", type(error).__name__, frames)
                response = self._error_page(error)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return endpoint

    async def form(self, request: Request, cookie: str) -> FormData:
        """The fields of a form that belongs to the browser that holds ``cookie``.

        Raises:
            RequestError: it is no form as the console's pages send them.
            StaleFormError: it belongs to another session.
        """
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != _FORM_TYPE:
            raise RequestError("a form of the console is expected")
        form = await request.form(max_fields=_MOST_FIELDS, max_files=0)
        if not self.sessions.is_form_token(cookie, str(form.get("form_token", ""))):
            raise StaleFormError("this page was out of date, and nothing was done; open it again")
        return form

    async def _visit(self, request: Request, route: PageRoute) -> Visit:
        session = await run_in_threadpool(self.session, request)
        if session is None:
            raise SignInNeeded
        if route.admin and not session.admin:
            raise ForbiddenError(Scope.admin)
        request.state.key = session.key  # for the line in the log
        form = await self.form(request, session.token) if route.method == "POST" else FormData()
        return Visit(self, request, session, form)

    def session(self, request: Request) -> Session | None:
        """The session of a request, if its key may still be used. A page that renews itself keeps nobody signed in."""
        token = request.cookies.get(SESSION_COOKIE, "")
        session = self.sessions.find(token, use="live" not in request.query_params)
        if session is None:
            return None
        found = self.services.keys.in_use(session.key.id)
        if found is None or found[1] != session.secret:
            self.sessions.close(token)  # revoked, expired, or given another secret
            return None
        session.key = found[0]
        return session

    def _error_page(self, error: Exception) -> Response:
        return self._told_page(told(error))

    def _told_page(self, known: Told) -> Response:
        title, detail = known.problem.title, known.detail
        text = self._templates.get_template("error.html").render(
            title=title, message=None if detail == title else f"{detail[:1].upper()}{detail[1:]}."
        )
        response = HTMLResponse(text, status_code=known.problem.status)
        if known.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(known.retry_after))
        return response


async def _call(handler: Handler, visit: Visit) -> Response:
    """A page's answer; what isn't written for the event loop runs in a thread."""
    on_loop = inspect.iscoroutinefunction(handler)
    answer = handler(visit) if on_loop else await run_in_threadpool(handler, visit)
    return await answer if inspect.isawaitable(answer) else answer


def _to_sign_in(request: Request) -> Response:
    if request.headers.get("HX-Request") == "true":
        # A part of a page was asked for: the whole page has to go.
        return Response(headers={"HX-Redirect": "/console/sign-in"})
    return RedirectResponse("/console/sign-in", status_code=303)
