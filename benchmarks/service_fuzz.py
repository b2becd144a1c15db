"""``python -m benchmarks.service_fuzz``: malformed requests by the thousand against a service of its own.

Half of the requests come from schemathesis, which takes every operation of the service's OpenAPI description in turn,
with data that fits and data that doesn't, with a key, with a wrong one and with none. The rest is written to the
socket: HTTP that isn't any, random bytes inside TLS and outside. None may be answered with 500, with a stack, with a
path or with the prompt it came with; none may end the process, or make it grow without end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import secrets
import ssl
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode, openapi
from schemathesis.core.result import Ok
from schemathesis.generation.case import Case

from benchmarks.service_process import ServiceProcess

SETTINGS = {"rate_limit_per_minute": "10000000", "lockout_failures": "1000", "lockout_s": "1"}
MOST_GROWTH_BYTES = 256 * 2**20
_EXAMPLES_AT_ONCE = 20
_SHORTEST_PROMPT = 12
_SOCKET_SECONDS = 1.0
# Python's traces and file names, and absolute paths of the places where programs, data and people's files lie.
_LEAK = re.compile(r'Traceback|File "|\.py\b|site-packages|(?<![\w:/.])/(?:usr|home|root|tmp|var|etc|opt|srv|work)/')
_PROMPT_NAMES = {"prompt", "prompts", "input", "negative_prompt"}
# Other errors of the server's than 500, each with a stable code: no pipeline, not now, too late.
_TYPED = {501, 503, 504}


@dataclass
class Found:
    """What the service did: how many answers of each status, and what it should not have done, with the request."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    faults: list[str] = field(default_factory=list)
    grown_bytes: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Sends and prints; returns the exit status: 1 if the service did what it must not, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="requests (default: 10,000)")
    parser.add_argument("--seed", type=int, help="the same one sends the same requests (default: a random one)")
    given_ = parser.parse_args(arguments)
    if not 1 <= given_.count <= 1_000_000:
        parser.error("1 to 1,000,000 requests")
    seed = secrets.randbits(32) if given_.seed is None else given_.seed
    with tempfile.TemporaryDirectory() as folder, ServiceProcess(Path(folder), SETTINGS) as service:
        found = fuzz(service, given_.count, seed)
    answers = ", ".join(f"{count:,} times {status}" for status, count in sorted(found.statuses.items()))
    print(f"{found.sent:,} requests, seed {seed}: {answers}; memory grew by {found.grown_bytes / 2**20:.0f} MiB")
    for fault in found.faults[:50]:
        print(f"  {fault}")
    return 1 if found.faults else 0


def fuzz(service: ServiceProcess, count: int, seed: int) -> Found:
    """Sends `count` requests, half of them by schemathesis and half straight to the socket."""
    found = Found()
    with client_of(service) as client:
        description = client.get("/openapi.json").raise_for_status().json()
        warm_up(client)
        before = service.resident_bytes()
        for case in islice(_cases(description, seed), count - count // 2):
            _send(client, case, service, found)
    asyncio.run(_write_garbage(service, count // 2, seed, found))
    with client_of(service) as client:
        if not service.alive:
            found.faults.append("the process ended")
        elif (status := client.post("/v1/screen", json={"prompt": "a red wine"}).status_code) not in (200, 422):
            found.faults.append(f"after all of them a prompt was answered with {status}")
        else:
            found.grown_bytes = service.resident_bytes() - before
            if found.grown_bytes > MOST_GROWTH_BYTES:
                found.faults.append(f"memory grew by {found.grown_bytes:,} bytes")
    stack = re.search(r"(?s)(Traceback|  File ).{0,3000}", service.log)
    if stack is not None:
        found.faults.append(f"the log has a stack: {stack[0]}")
    return found


def client_of(service: ServiceProcess) -> httpx.Client:
    """A client with the admin key."""
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx.Client(base_url=f"https://127.0.0.1:{service.port}", verify=service.tls, headers=headers, timeout=40)


def warm_up(client: httpx.Client) -> None:
    """Lets the service load what it loads at first use, which is no growth."""
    for number in range(20):
        client.post("/v1/screen", json={"prompts": [f"a red wine {number} {each}" for each in range(64)]})


# --- by the description


def _cases(description: dict[str, Any], seed: int) -> Iterator[Case[Any]]:
    """Requests without end: of each operation in turn a few that fit and a few that don't."""
    schema = openapi.from_dict(description)
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    modes = [GenerationMode(name) for name in ("positive", "negative")]
    for turn in cycle(range(2**31)):
        for place, operation in enumerate(operations):
            for mode in modes:
                yield from _examples(operation.as_strategy(generation_mode=mode), seed + turn * 1000 + place)


def _examples(strategy: SearchStrategy[Case[Any]], seed: int) -> list[Case[Any]]:
    cases: list[Case[Any]] = []

    @seeded(seed)
    @settings(
        max_examples=_EXAMPLES_AT_ONCE,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Case[Any]) -> None:
        cases.append(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        try:
            collect()
        except Exception as error:  # nothing of this kind can be made for the operation, as for one without parameters
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                raise
    return cases[:_EXAMPLES_AT_ONCE]


def _send(client: httpx.Client, case: Case[Any], service: ServiceProcess, found: Found) -> None:
    sent = case.as_transport_kwargs(base_url=str(client.base_url))
    headers = {str(name): str(value) for name, value in (sent.get("headers") or {}).items()}
    headers |= (
        {"Authorization": f"Bearer {service.token}"},
        {"Authorization": f"Bearer {service.token}"},
        {},
        {"X-API-Key": "lg_0123456789abcdef_" + "a" * 43},
    )[found.sent % 4]
    described = f"{case.method} {case.operation.path}"
    body = sent.get("data")
    try:
        request = httpx.Request(
            sent["method"],
            sent["url"],
            params=sent.get("params"),
            headers=[(name.encode("utf-8"), value.encode("utf-8", "replace")) for name, value in headers.items()],
            cookies=sent.get("cookies"),
            extensions={"timeout": client.timeout.as_dict()},
            **({"json": sent["json"]} if "json" in sent else {"content": body} if body is not None else {}),
        )
    except (httpx.InvalidURL, ValueError, TypeError):  # what no client of HTTP can be made to send
        return
    found.sent += 1
    try:
        response = client.send(request)
    except httpx.HTTPError as error:
        if not isinstance(error, (httpx.LocalProtocolError, httpx.ReadError, httpx.RemoteProtocolError)):
            found.faults.append(f"{described}: {type(error).__name__}")
        return
    judge(response.status_code, response.headers.get("content-type", ""), response.text, described, service, found)
    for prompt in _prompts(sent.get("json")):
        if response.status_code >= 400 and (prompt in response.text or json.dumps(prompt)[1:-1] in response.text):
            found.faults.append(f"{described}: an error repeats the prompt")


def judge(status: int, kind: str, text: str, request: str, service: ServiceProcess, found: Found) -> None:
    """Enters an answer and what is wrong with it."""
    found.statuses[status] += 1
    if status >= 500 and status not in _TYPED:
        found.faults.append(f"{request}: {status} {text[:200]}")
    if status >= 400 and kind.startswith("application/problem+json") and not _is_problem(text):
        found.faults.append(f"{request}: {status} without a code")
    if status in _TYPED and not kind.startswith("application/problem+json"):
        found.faults.append(f"{request}: {status} is no problem, but {kind}")
    if status >= 400 and ((leak := _LEAK.search(text)) or str(service.folder) in text):
        found.faults.append(f"{request}: {status} leaks {leak[0] if leak else 'its folder'}")


def _is_problem(text: str) -> bool:
    try:
        return isinstance(json.loads(text)["code"], str)
    except (ValueError, KeyError, TypeError):
        return False


def _prompts(content: Any, named: bool = False) -> Iterator[str]:
    """The texts that stand where prompts do, long enough not to be there by chance."""
    if isinstance(content, str):
        if named and len(content) >= _SHORTEST_PROMPT:
            yield content
    elif isinstance(content, list):
        yield from chain.from_iterable(_prompts(each, named) for each in content)
    elif isinstance(content, dict):
        yield from chain.from_iterable(_prompts(each, name in _PROMPT_NAMES) for name, each in content.items())


# --- straight to the socket


async def _write_garbage(service: ServiceProcess, count: int, seed: int, found: Found) -> None:
    chance = random.Random(seed)
    queue = iter([(_garbage(chance, service), chance.random() < 0.8) for _ in range(count)])

    async def one_after_another() -> None:
        for content, inside in queue:
            found.sent += 1
            await _write(content, service.tls if inside else None, service, found)

    await asyncio.gather(*(one_after_another() for _ in range(16)))


async def _write(content: bytes, tls: ssl.SSLContext | None, service: ServiceProcess, found: Found) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, ssl=tls)
    except OSError as error:
        found.faults.append(f"no connection: {type(error).__name__}")
        return
    answer = b""
    try:
        writer.write(content)
        await writer.drain()
        answer = await asyncio.wait_for(_one_answer(reader), _SOCKET_SECONDS)
    except (OSError, asyncio.TimeoutError):  # closed, or waiting for more: both are answers to garbage
        pass
    finally:
        writer.transport.abort()
    if tls is not None and answer:
        text = answer.decode("latin-1")
        head, _, body = text.partition("\r\n\r\n")
        status = re.match(r"HTTP/1\.1 (\d{3}) ", head)
        kind = re.search(r"(?im)^content-type: (.*)$", head)
        described = f"garbage {content[:40]!r}"
        if status is None:
            found.faults.append(f"{described}: {text[:100]!r} is no answer")
        else:
            judge(int(status[1]), kind[1].strip() if kind else "", body, described, service, found)


async def _one_answer(reader: asyncio.StreamReader) -> bytes:
    """The first answer, or whatever came instead until the connection ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: (\d+)", head)
        return head + (await reader.readexactly(int(length[1])) if length else b"")
    except asyncio.IncompleteReadError as error:
        return error.partial


def _garbage(chance: random.Random, service: ServiceProcess) -> bytes:
    """Bytes that are no request, or almost one."""
    key = f"authorization: Bearer {service.token}\r\n".encode()
    prompt = json.dumps({"prompt": "a red wine"}).encode()
    noise = chance.randbytes(chance.randrange(1, 400))
    good = b"POST /v1/screen HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" + key
    kinds: Iterable[bytes] = (
        noise,
        noise + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        noise[:8].replace(b"\n", b"") + b" /v1/screen HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /" + noise.replace(b"\n", b"") + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /console/static/..%2f..%2f" + noise.hex().encode() + b"%00 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http://elsewhere/v1/policy HTTP/1.1\r\nhost: a\r\n" + key + b"\r\n",
        b"GET /v1/policy HTTP/1.1\r\nhost: a\r\nx: " + noise + b"\r\n\r\n",
        b"GET /v1/policy HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + noise.replace(b"\n", b"") + b"\r\n\r\n",
        b"GET /v1/policy HTTP/1.1\r\nhost: a\r\nx: " + b"a" * chance.randrange(30_000, 80_000) + b"\r\n\r\n",
        good + b"content-length: -1\r\n\r\n" + prompt,
        good + b"content-length: " + str(2 ** chance.randrange(20, 70)).encode() + b"\r\n\r\n",
        good + b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + prompt,
        good + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + prompt,
        good + b"transfer-encoding: chunked\r\n\r\n" + noise,
        good + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n" + noise,
        good + b"content-length: " + str(len(noise)).encode() + b"\r\n\r\n" + noise,
        good + b"content-length: 100000\r\n\r\n" + b"[" * 100_000,
        good + b'content-length: 22\r\n\r\n{"prompt": "a\\ud800bc"}'[:-1],
        good + b"content-length: 28\r\n\r\n" + b'{"prompt": "a red \xff\xfe wine"}',
        good + b"content-encoding: gzip\r\ncontent-length: 10\r\n\r\n" + noise[:10].ljust(10),
        good + b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise,
        b"GET /mcp HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" + noise,
        (good + b"content-length: 24\r\n\r\n" + prompt) * 2 + noise,
    )
    return chance.choice(list(kinds))


if __name__ == "__main__":
    sys.exit(main())
