"""The real application, over HTTPS on a free port of loopback, for the console's tests."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from latentguard import LatentGuard
from latentguard.service.access import ApiKey, Scope
from latentguard.service.app import create_app
from latentguard.service.policies import Judged
from latentguard.service.services import Services, open_services
from latentguard.service.settings import Settings
from latentguard.service.tls import certificate_files


@dataclass
class Running:
    """A service that answers at `url`."""

    url: str
    services: Services
    certificate: Path
    loop: asyncio.AbstractEventLoop

    def key(self, name: str, *scopes: Scope) -> tuple[ApiKey, str]:
        """A new key with its token."""
        return self.services.keys.create(name, scopes)

    def screen(self, key: ApiKey, prompts: Sequence[str]) -> list[Judged]:
        """Screens prompts as a client of the API would."""
        return asyncio.run_coroutine_threadsafe(self.services.screen(key, prompts), self.loop).result(60)


@contextmanager
def running(folder: Path, guard: LatentGuard, **settings: object) -> Iterator[Running]:
    """The service on a data folder of its own, until the block ends."""
    chosen = Settings(data_dir=folder, port=0, http_port=0, classifiers=(), **settings)
    with open_services(chosen, guard=guard) as services:
        files = certificate_files(chosen)
        config = uvicorn.Config(
            create_app(services),
            ssl_certfile=files.certificate,
            ssl_keyfile=files.key,
            log_level="critical",
            timeout_graceful_shutdown=5,
        )
        server, loops = uvicorn.Server(config), []
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))

            async def serve() -> None:
                loops.append(asyncio.get_running_loop())
                await server.serve([listener])

            thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
            thread.start()
            until = time.monotonic() + 30
            while not server.started:
                if time.monotonic() > until or not thread.is_alive():
                    raise RuntimeError("the server did not start")
                time.sleep(0.02)
            try:
                port = listener.getsockname()[1]
                yield Running(f"https://127.0.0.1:{port}", services, files.certificate, loops[0])
            finally:
                server.should_exit = True
                thread.join(20)
