"""What happens to every request, whichever part of the service answers it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import traceback

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentguard.service.errors import BAD_HOST, INTERNAL, BodyTooLargeError, BodyTooSlowError, Problem, Told, told
from latentguard.service.problems import problem_response
from latentguard.service.redirect import named
from latentguard.service.services import Services
from latentguard.service.tls import is_self_signed

_LOG = logging.getLogger("latentguard.service.requests")

_SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "server": "latentguard",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
HSTS = "max-age=31536000"
_BODY_SECONDS = 10.0
_BODY_BYTES_PER_SECOND = 16 * 1024
_MOST_AT_ONCE = 2048
_CLIENT_GONE = 499  # for log and metrics alone, as other servers have it: nobody is there to be answered


class Front:
    """Outermost: a request's id, its log line and its metrics, security headers, limits, and errors nobody awaited.

    A response's own header counts before one of these. `Strict-Transport-Security` is sent with a certificate that
    others vouch for: a self-signed one would lock people out whose browsers had once seen the header.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services
        self._hosts = services.settings.allowed_hosts
        self._headers = dict(_SECURITY)
        certificate = services.settings.tls_certificate
        if certificate is not None and not is_self_signed(certificate):
            self._headers["strict-transport-security"] = HSTS
        self._present = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers an HTTP request; other kinds of connections pass, and end where nobody takes them."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        body = _Body(scope, receive, self._services)
        answer = _Answer(send, request_id, self._headers, self._services, body)
        metrics, started = self._services.metrics, time.monotonic()
        self._present += 1
        metrics.in_flight.inc()
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await problem_response(request_id, refusal)(scope, receive, answer.send)
            else:
                await self._app(scope, body.receive, answer.send)
        except ClientDisconnect:
            answer.status = answer.status or _CLIENT_GONE
        except Exception as error:
            await self._failed(error, scope, receive, answer, request_id)
        finally:
            self._present -= 1
            metrics.in_flight.dec()
            seconds, route = time.monotonic() - started, _route(scope)
            metrics.requests.labels(
                scope["method"] if len(scope["method"]) < 8 else "other", route, answer.status
            ).inc()
            metrics.latency.labels(route).observe(seconds)
            _LOG.info(
                "%s %s %s %.0f ms key=%s request=%s",
                scope["method"][:8],
                route,
                answer.status,
                1000 * seconds,
                getattr(scope["state"].get("key"), "id", "-"),
                request_id,
            )

    def _refusal(self, scope: Scope) -> Told | None:
        if self._present > _MOST_AT_ONCE:
            return Told(Problem(503, "overloaded", "Too many requests at once"), "too many requests at once", 1)
        if self._hosts and not named(Headers(scope=scope).get("host", ""), self._hosts):
            return Told(BAD_HOST, BAD_HOST.title)
        return None

    async def _failed(self, error: Exception, scope: Scope, receive: Receive, answer: _Answer, request_id: str) -> None:
        """Logs where an error came from, but not its message, which may quote what a client sent."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        _LOG.error("request=%s: %s\n%s", request_id, type(error).__name__, frames)
        if answer.status == 0:
            await problem_response(request_id, Told(INTERNAL, INTERNAL.title))(scope, receive, answer.send)


class _Body:
    """What a request brings, within limits of size and slowness; breaking one is remembered for the answer.

    A body may take ten seconds, and a second more for each 16 KiB.
    """

    def __init__(self, scope: Scope, receive: Receive, services: Services) -> None:
        self._receive = receive
        settings = services.settings
        ciphertexts = scope["path"].startswith(("/v1/classify-encrypted", "/mcp"))
        self._limit = settings.ciphertext_limit_bytes if ciphertexts else settings.body_limit_bytes
        self._began: float | None = None
        self._size = 0
        self._complete = False
        self.fault: Exception | None = None
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        self._announced = int(announced[:20]) if announced.isdigit() else 0
        self._present = self._announced > 0 or "transfer-encoding" in headers

    @property
    def unread(self) -> bool:
        """Whether some of it may still arrive."""
        return self._present and not self._complete

    async def receive(self) -> Message:
        """As ASGI has it. Raises BodyTooLargeError or BodyTooSlowError."""
        if self._complete:
            return await self._receive()
        self._check_size()
        self._began = time.monotonic() if self._began is None else self._began
        allowed = self._began + _BODY_SECONDS + self._size / _BODY_BYTES_PER_SECOND - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, allowed))
        except asyncio.TimeoutError:
            self.fault = BodyTooSlowError("the body took too long to arrive")
            raise self.fault from None
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            self._check_size()
        return message

    def _check_size(self) -> None:
        if max(self._size, self._announced) > self._limit:
            self.fault = BodyTooLargeError(f"the limit is {self._limit:,} bytes")
            raise self.fault


class _Answer:
    """What goes out, with the headers that every response has."""

    def __init__(self, send: Send, request_id: str, headers: dict[str, str], services: Services, body: _Body) -> None:
        self._send, self._request_id, self._headers = send, request_id, headers
        self._services, self._body = services, body
        self._replaced = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """As ASGI has it. What a part made of a body over the limits is replaced by the error that it was."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            fault = None if self._body.fault is None else told(self._body.fault)
            if fault is not None and message["status"] != fault.problem.status:
                self._replaced = True
                await self._instead(fault)
                return
            self._dress(message)
        await self._send(message)

    async def _instead(self, fault: Told) -> None:
        response = problem_response(self._request_id, fault)
        start: Message = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
        self._dress(start)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": response.body})

    def _dress(self, message: Message) -> None:
        self.status = message["status"]
        headers = MutableHeaders(raw=list(message.get("headers", ())))
        for name, value in self._headers.items():
            headers.setdefault(name, value)
        headers["x-request-id"] = self._request_id
        # What is left of an unread body would be taken for the next request; and one that shuts down wants none.
        if self._services.draining or self._body.unread:
            headers["connection"] = "close"
        message["headers"] = headers.raw


def _route(scope: Scope) -> str:
    """The route's template, never the path that was asked for, which holds what clients like."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"
