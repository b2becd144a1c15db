"""A load generator for the service, bounded in clients and time: one connection and one key a client."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_ANSWER_SECONDS = 60.0
_LOST = (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError)


@dataclass(frozen=True)
class Answer:
    """A response: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass
class Client:
    """One HTTP/1.1 connection over TLS to a service on this machine, kept alive; far cheaper than a general client.

    Raises:
        OSError, asyncio.IncompleteReadError: the connection can't be made, or was lost.
        asyncio.TimeoutError: no answer within a minute.
    """

    port: int
    tls: ssl.SSLContext
    token: str | None = None
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Sends a request and awaits its answer, over a new connection where the last one was closed."""
        return await asyncio.wait_for(self._request(method, path, body), _ANSWER_SECONDS)

    async def post(self, path: str, content: object) -> Answer:
        """Sends JSON."""
        return await self.request("POST", path, json.dumps(content).encode())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection, made if there is none."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)
        return self._reader, self._writer

    def close(self) -> None:
        """Ends the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _request(self, method: str, path: str, body: bytes) -> Answer:
        try:
            reader, writer = await self.connect()
            head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\ncontent-length: {len(body)}\r\n"
            head += "content-type: application/json\r\n" if body else ""
            head += f"authorization: Bearer {self.token}\r\n" if self.token else ""
            writer.write(head.encode("ascii") + b"\r\n" + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            answer = Answer(
                int(lines[0].split(" ")[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))
            )
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return answer


@dataclass
class Load:
    """What clients saw: how long each answer with status 200 took [s], how many answers of each status there were,
    how many connections were lost under a request, and the ids of the requests that were answered with 200."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    answered: list[str] = field(default_factory=list)

    def add(self, other: Load) -> None:
        """Takes in another round."""
        self.seconds += other.seconds
        self.latencies += other.latencies
        self.statuses += other.statuses
        self.lost += other.lost
        self.answered += other.answered


async def put_load(
    clients: Sequence[Client],
    prompts: Sequence[str],
    seconds: float,
    *,
    first: int = 0,
    stop: asyncio.Event | None = None,
    load: Load | None = None,
) -> Load:
    """Lets all clients send one prompt after another, each as soon as the last is answered.

    Each client begins elsewhere among the prompts, at `first` further on. It ends after `seconds`, or when `stop` is
    set; what was sent before is awaited. What happens is entered into `load`, which is returned.
    """
    load = Load() if load is None else load
    await asyncio.gather(*(client.connect() for client in clients))
    started = time.monotonic()

    async def run(number: int, client: Client) -> None:
        place = first + number * len(prompts) // len(clients)
        while time.monotonic() - started < seconds and not (stop is not None and stop.is_set()):
            body = json.dumps({"prompt": prompts[place % len(prompts)]}).encode()
            place += 1
            sent = time.monotonic()
            try:
                answer = await client.request("POST", "/v1/screen", body)
            except _LOST:
                load.lost += 1
                await asyncio.sleep(0.05)
                continue
            load.statuses[answer.status] += 1
            if answer.status == 200:
                load.latencies.append(time.monotonic() - sent)
                load.answered.append(answer.headers["x-request-id"])
            else:
                await asyncio.sleep(min(1.0, float(answer.headers.get("retry-after", "0.05"))))

    await asyncio.gather(*(run(number, client) for number, client in enumerate(clients)))
    load.seconds = time.monotonic() - started
    return load


async def clients_of(port: int, tls: ssl.SSLContext, admin: str, count: int) -> list[Client]:
    """Clients, each with a key of its own."""
    maker = Client(port, tls, admin)
    clients = []
    for number in range(count):
        made = await maker.post("/v1/keys", {"name": f"client {number + 1}", "scopes": ["screen"]})
        if made.status != 201:
            raise RuntimeError(f"no key was made: {made.status}")
        clients.append(Client(port, tls, made.json()["token"]))
    maker.close()
    return clients
