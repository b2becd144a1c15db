"""Clients that send a byte at a time or never read: cut off, while others are served as usual."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from running_service import Running, running_service

from latentguard import LatentGuard
from latentguard.service import connections, middleware
from latentguard.service.access import Scope

_LIMIT_SECONDS = 1.0
_PATIENCE_SECONDS = 20.0


def connected(running: Running, receive_bytes: int | None = None) -> ssl.SSLSocket:
    """A TLS connection, with a small window for what it receives if wanted."""
    plain = socket.socket()
    if receive_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    plain.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
    plain.settimeout(_PATIENCE_SECONDS)
    context = ssl.create_default_context(cafile=str(running.certificate))
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def seconds_until_cut_off(connection: ssl.SSLSocket, text: bytes, every: float = 0.02) -> float:
    """How long the service takes a text that comes byte by byte."""
    started = time.monotonic()
    try:
        for place in range(len(text)):
            connection.sendall(text[place : place + 1])
            time.sleep(every)
            if time.monotonic() - started > _PATIENCE_SECONDS:
                break
    except (OSError, ssl.SSLError):
        pass
    return time.monotonic() - started


def seconds_until_unread_is_cut_off(connection: ssl.SSLSocket, request: bytes) -> float:
    """How long the service lets a client ask again and again without reading an answer."""
    started = time.monotonic()
    connection.settimeout(0.2)
    while time.monotonic() - started < _PATIENCE_SECONDS:
        try:
            connection.sendall(request)
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


def test_slow_clients_are_cut_off_and_others_are_served(
    tmp_path: Path, tiny_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", _LIMIT_SECONDS)
    monkeypatch.setattr(connections, "_UNSENT_SECONDS", _LIMIT_SECONDS)
    monkeypatch.setattr(connections, "_UNSENT_BYTES_PER_SECOND", 2**30)
    monkeypatch.setattr(middleware, "_BODY_SECONDS", _LIMIT_SECONDS)
    took: dict[str, float] = {}
    with running_service(tmp_path, tiny_guard) as running, running.client(Scope.screen) as client:
        token = running.token(Scope.screen)
        head = f"POST /v1/screen HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n".encode()
        typed = head + b"Content-Type: application/json\r\nContent-Length: 2000\r\n\r\n"
        plain = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"

        def slowly(name: str, first: bytes, rest: bytes) -> None:
            with connected(running) as connection:
                connection.sendall(first)
                took[name] = seconds_until_cut_off(connection, rest)

        def never_reading() -> None:
            with connected(running, receive_bytes=4096) as connection:
                took["unread"] = seconds_until_unread_is_cut_off(connection, plain)

        threads = [
            threading.Thread(target=slowly, args=("head", b"", head + b"X-Filling: " + b"a" * 2000)),
            threading.Thread(target=slowly, args=("body", typed, b'{"prompt": "' + b"a" * 2000)),
            threading.Thread(target=never_reading),
        ]
        for thread in threads:
            thread.start()
        latencies, statuses = [], set()
        while any(thread.is_alive() for thread in threads):
            started = time.monotonic()
            statuses.add(client.post("/v1/screen", json={"prompt": "a red wine"}).status_code)
            latencies.append(time.monotonic() - started)
        after = running.services.metrics.registry.get_sample_value("latentguard_requests_in_flight")
    assert statuses == {200}
    assert len(latencies) >= 10
    assert max(latencies) < _LIMIT_SECONDS
    assert {name for name, seconds in took.items() if seconds < _PATIENCE_SECONDS / 2} == {"head", "body", "unread"}
    assert after == 0
