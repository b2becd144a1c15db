"""A real service for tests: HTTPS on a free port of 127.0.0.1, in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from latentguard import LatentGuard
from latentguard.service.access import Scope
from latentguard.service.server import listening, run
from latentguard.service.services import Services, open_services
from latentguard.service.settings import Settings
from latentguard.service.tls import ReloadingContext, certificate_files


@dataclass(frozen=True)
class Running:
    """A service that runs: where it is, and what a client needs."""

    services: Services
    url: str
    http_url: str
    certificate: Path

    @property
    def trust(self) -> ssl.SSLContext:
        """What a client has to trust: the service's certificate alone."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def token(self, *scopes: Scope) -> str:
        """The token of a new key."""
        return self.services.keys.create("a test's", scopes)[1]

    def client(self, *scopes: Scope, **headers: str) -> httpx.Client:
        """A client with a new key of these scopes; without a key if there are none."""
        if scopes:
            headers["Authorization"] = f"Bearer {self.token(*scopes)}"
        return httpx.Client(base_url=self.url, verify=self.trust, headers=headers, timeout=30)


@contextmanager
def running_service(folder: Path, guard: LatentGuard, *, pipeline: Any = None, **settings: Any) -> Iterator[Running]:
    """A service with these settings, until the block ends."""
    given: dict[str, Any] = {"port": 0, "http_port": 0, "classifiers": (), "data_dir": folder / "data"} | settings
    with ExitStack() as stack:
        services = stack.enter_context(open_services(Settings(**given), guard=guard, pipeline=pipeline))
        files = certificate_files(services.settings)
        https = stack.enter_context(listening("127.0.0.1", 0, "port"))
        http = stack.enter_context(listening("127.0.0.1", 0, "http_port"))
        ready, ended = threading.Event(), threading.Event()
        handles: list[Any] = []

        async def main() -> None:
            stop = asyncio.Event()
            handles.extend([asyncio.get_running_loop(), stop])
            await run(services, https, http, ReloadingContext(files).context, started=ready.set, stop=stop)

        def thread() -> None:
            try:
                asyncio.run(main())
            finally:
                ended.set()
                ready.set()

        worker = threading.Thread(target=thread)
        worker.start()
        try:
            if not ready.wait(60) or ended.is_set():
                raise RuntimeError("the service didn't start")
            port, plain = https.getsockname()[1], http.getsockname()[1]
            yield Running(services, f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain}", files.certificate)
        finally:
            loop, stop = handles
            if not ended.is_set():
                loop.call_soon_threadsafe(stop.set)
            worker.join(60)


def codes(responses: Iterable[httpx.Response]) -> list[int]:
    """The status of each response."""
    return [response.status_code for response in responses]
