"""Services in processes of their own under a little load, for tests that take something away from them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.service_load import Client, Load, put_load
from benchmarks.service_process import ServiceProcess

PROMPTS = [f"a red wine on table {number}" for number in range(97)]
SETTINGS = {"classifiers": ""}


def http(service: ServiceProcess) -> httpx.Client:
    """A client with the admin key."""
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.Client(base_url=f"https://127.0.0.1:{service.port}", verify=service.tls, headers=headers, timeout=40)


@contextmanager
def under_load(service: ServiceProcess, clients: int = 8) -> Iterator[Load]:
    """While the block runs, clients screen as fast as they are answered. What they saw is complete after it."""
    load, stop = Load(), threading.Event()

    async def main() -> None:
        ended = asyncio.Event()
        made = [Client(service.port, service.tls, service.token) for _ in range(clients)]
        running = asyncio.create_task(put_load(made, PROMPTS, 120, stop=ended, load=load))
        while not stop.is_set() and not running.done():
            await asyncio.sleep(0.01)
        ended.set()
        await running
        for client in made:
            client.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join(90)


def recorded(client: httpx.Client) -> set[str]:
    """The ids of all requests that the audit log knows."""
    found: set[str] = set()
    before: int | None = None
    while True:
        query: dict[str, Any] = {"limit": 1000, "action": "screen"} | ({} if before is None else {"before": before})
        entries = client.get("/v1/audit", params=query).raise_for_status().json()["entries"]
        if not entries:
            return found
        found |= {entry["details"]["request"] for entry in entries}
        before = entries[-1]["sequence"]


def intact(client: httpx.Client) -> bool:
    """Whether the audit log verifies."""
    return bool(client.post("/v1/audit/verify").raise_for_status().json()["intact"])


def screened(client: httpx.Client, prompt: str = "a red wine") -> httpx.Response:
    """The answer for one prompt."""
    return client.post("/v1/screen", json={"prompt": prompt})
