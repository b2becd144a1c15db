"""The running server: HTTPS, the redirect beside it, and an end that loses no accepted request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

import latentguard
from latentguard.errors import ServiceError
from latentguard.service.app import create_app
from latentguard.service.connections import HEAD_BYTES, KEEP_ALIVE_SECONDS, Connection
from latentguard.service.key_admin import first_key
from latentguard.service.redirect import redirect_app
from latentguard.service.services import Services, open_services
from latentguard.service.settings import Settings
from latentguard.service.tls import CertificateFiles, ReloadingContext, certificate_files, fingerprint

_LOG = logging.getLogger(__name__)

_LAST_REQUESTS_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(settings: Settings) -> None:
    """Serves until SIGINT or SIGTERM; then stops accepting, answers what it accepted, and returns.

    Raises:
        ServiceError and others of LatentGuardError, PrivacyError: it can't be started; the message says why.
    """
    settings.make_data_dir()
    with contextlib.ExitStack() as stack:
        services = stack.enter_context(open_services(settings))
        made = first_key(settings, services.keys, services.audit)
        files = certificate_files(settings)
        context = ReloadingContext(files).context
        https = stack.enter_context(listening(settings.host, settings.port, "port"))
        http = None
        if settings.http_port:
            http = stack.enter_context(listening(settings.host, settings.http_port, "http_port"))
        lines = _greeting(services, https, http, files, made)
        _set_up_logging()
        asyncio.run(_until_signal(services, https, http, context, lines))


class _Server(uvicorn.Server):
    """uvicorn's, but that signals are left alone, and what its end looks like."""

    def __init__(self, config: uvicorn.Config, draining: Callable[[], None]) -> None:
        super().__init__(config)
        self._draining = draining

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: they concern all servers of the process."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nothing more, and lets open connections send what is on its way before those that idle are closed.

        From here on every answer closes its connection, so that a client never sends a request into one that is gone.
        """
        for server in self.servers:
            server.close()
        self._draining()
        waited = 0.0
        while self.server_state.connections and waited < _LAST_REQUESTS_SECONDS:
            await asyncio.sleep(0.05)
            waited += 0.05
        await super().shutdown(sockets)


async def run(
    services: Services,
    https: socket.socket,
    http: socket.socket | None,
    context: ssl.SSLContext,
    *,
    started: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Serves on two listening sockets until `stop` is set, then ends as `serve` does; `started` is called in between.

    Args:
        https: where the application is; `http`, if there is one, redirects to it.
        context: the TLS context of `https`.
    """
    settings = services.settings

    def drain() -> None:
        services.draining = True

    servers = [(_Server(_config(settings, create_app(services), context), drain), https)]
    if http is not None:
        app = redirect_app(https.getsockname()[1], settings.allowed_hosts)
        servers.append((_Server(_config(settings, app, None), drain), http))
    running = [asyncio.create_task(server.serve(sockets=[place])) for server, place in servers]
    while not all(server.started for server, _ in servers) and not any(task.done() for task in running):
        await asyncio.sleep(0.01)
    if all(server.started for server, _ in servers):
        started()
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([*running, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*running)


async def _until_signal(
    services: Services, https: socket.socket, http: socket.socket | None, context: ssl.SSLContext, lines: Sequence[str]
) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await run(services, https, http, context, started=lambda: print("\n".join(lines), flush=True), stop=stop)


def _config(settings: Settings, app: Callable[..., Any], context: ssl.SSLContext | None) -> uvicorn.Config:
    def reloading(_config: uvicorn.Config, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        if context is None:
            raise ServiceError("there is no certificate")
        return context

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="auto" if context is None else "on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
        h11_max_incomplete_event_size=HEAD_BYTES,
        ssl_context_factory=None if context is None else reloading,
    )


@contextlib.contextmanager
def listening(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    """A socket that listens; ServiceError naming the setting if it can't."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ServiceError(f"{setting}: can't listen on {host} at {port}: {error.strerror or error}") from None
    with contextlib.closing(listener):
        yield listener


def _greeting(
    services: Services, https: socket.socket, http: socket.socket | None, files: CertificateFiles, made: Path | None
) -> list[str]:
    settings = services.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"https://{host}:{https.getsockname()[1]}"
    lines = [
        f"latentguard {latentguard.__version__} listens on {url}, the console is {url}/console",
        f"certificate: {files.certificate}, SHA-256 {fingerprint(files.certificate)}",
        f"policy: {len(services.guard.concepts)} concepts, threshold {services.guard.policy.threshold:.2f}, "
        f"fingerprint {services.policies.fingerprint[:16]}",
    ]
    if http is not None:
        lines.append(f"http://{host}:{http.getsockname()[1]} redirects there")
    if made is not None:
        lines.append(f"admin key, made now: {made}")
    if services.pipeline is None:
        lines.append("no image pipeline: /v1/generate answers 501")
    return lines


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("latentguard", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("latentguard").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
