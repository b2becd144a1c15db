"""What goes wrong: the audit log, the database, time, room, slow clients, and what nobody awaited."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Running, codes, running_service

from latentguard import LatentGuard
from latentguard.service import connections, middleware
from latentguard.service.access import Scope
from latentguard.service.anomaly import Monitor

PROMPT = {"prompt": "a red wine on the table"}


class SlowGuard(LatentGuard):
    """The guard, once it is let through."""

    gate: threading.Event

    @classmethod
    def of(cls, guard: LatentGuard) -> SlowGuard:
        made = cls(guard.encoder, guard.mapping, list(guard.concepts), guard.policy)
        made.gate = threading.Event()
        return made

    def check_batch(self, prompts: Any) -> list[Any]:
        self.gate.wait(20)
        return super().check_batch(prompts)


def test_without_the_audit_log_nothing_is_answered_as_allowed(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    with running_service(tmp_path, tiny_guard) as running, running.client(Scope.admin) as client:
        assert client.post("/v1/screen", json=PROMPT).status_code == 200
        before = client.get("/v1/policy").headers["etag"]
        database = tmp_path / "data" / "service.db"
        database.rename(tmp_path / "away.db")
        asked = [
            client.post("/v1/screen", json=PROMPT),
            client.post("/v1/moderations", json={"input": "a red wine"}),
            client.post("/v1/concepts", json={"name": "two boats"}),
        ]
        ready = client.get("/readyz")
        (tmp_path / "away.db").rename(database)
        again = client.post("/v1/screen", json=PROMPT)
        assert client.get("/v1/policy").headers["etag"] == before
    assert codes(asked) == [503, 503, 503]
    assert all("results" not in answer.text and str(tmp_path) not in answer.text for answer in asked)
    assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)
    assert again.status_code == 200


def test_an_error_that_nobody_awaited_tells_nothing_but_the_requests_id(
    tmp_path: Path, tiny_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Monitor, *given: Any, **more: Any) -> Any:
        raise ZeroDivisionError(str(given))

    monkeypatch.setattr(Monitor, "observe", broken)
    with (
        caplog.at_level(logging.INFO),
        running_service(tmp_path, tiny_guard) as running,
        running.client(Scope.screen) as client,
    ):
        answer = client.post("/v1/screen", json={"prompt": "a secret wish"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" not in answer.text
    assert f"request={problem['request_id']}: ZeroDivisionError" in caplog.text
    assert "in broken" in caplog.text
    assert "secret" not in caplog.text


def test_no_log_line_holds_a_prompt_or_a_key(
    tmp_path: Path, tiny_guard: LatentGuard, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        running_service(tmp_path, tiny_guard) as running,
        running.client(Scope.admin) as client,
    ):
        for body in ({"prompt": "a secret wish"}, {"prompt": "a secret wish", "top_k": 0}, {"secret": 1}):
            client.post("/v1/screen", json=body)
        client.get("/v1/concepts", params={"search": "secret"})
        client.get("/secret")
        token = client.headers["authorization"].split("_", 2)[2]
    written = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith(("latentguard", "uvicorn"))
    )
    assert "POST /v1/screen 200" in written
    assert "secret" not in written
    assert token not in caplog.text


def test_a_full_queue_answers_429_with_the_time_to_come_back(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    slow = SlowGuard.of(tiny_guard)
    answers: list[httpx.Response] = []
    settings = {"queue_limit": 3, "max_batch": 1, "screening_threads": 1}
    with running_service(tmp_path, slow, **settings) as running, running.client(Scope.screen) as client:
        threads = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/screen", json=PROMPT))) for _ in range(4)
        ]
        threads[0].start()
        wait_for(lambda: running.services.metrics.registry.get_sample_value("latentguard_requests_in_flight") == 1)
        time.sleep(0.2)
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: running.services.batcher.full)
        refused = client.post("/v1/screen", json=PROMPT)
        ready = client.get("/readyz")
        gate(running).set()
        for thread in threads:
            thread.join(30)
        assert client.get("/readyz").status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert (ready.status_code, ready.json()["checks"]["queue"]) == (503, False)
    assert codes(answers) == [200] * 4


def test_concurrent_requests_share_an_encoder_pass(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    slow = SlowGuard.of(tiny_guard)
    answers: list[httpx.Response] = []
    with running_service(tmp_path, slow, screening_threads=1) as running, running.client(Scope.screen) as client:
        threads = [
            threading.Thread(target=lambda n=n: answers.append(client.post("/v1/screen", json={"prompt": f"tea {n}"})))
            for n in range(9)
        ]
        threads[0].start()
        time.sleep(0.3)  # the first is at work, and the others gather
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: running.services.batcher.waiting == 8)
        gate(running).set()
        for thread in threads:
            thread.join(30)
        value = running.services.metrics.registry.get_sample_value
        assert (value("latentguard_batch_prompts_count"), value("latentguard_batch_prompts_sum")) == (2, 9)
    assert codes(answers) == [200] * 9


def test_what_takes_too_long_is_504(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    slow = SlowGuard.of(tiny_guard)
    with running_service(tmp_path, slow, request_timeout_s=0.3) as running, running.client(Scope.screen) as client:
        answer = client.post("/v1/screen", json=PROMPT)
        gate(running).set()
        after = client.post("/v1/screen", json=PROMPT)
        entries = running.services.audit.entries(action="screen")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert after.status_code == 200
    assert len(entries) == 1


def test_a_key_over_its_rate_is_told_when_to_come_back(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    with (
        running_service(tmp_path, tiny_guard, rate_limit_per_minute=60) as running,
        running.client(Scope.screen) as greedy,
        running.client(Scope.screen) as other,
    ):
        first = greedy.post("/v1/screen", json={"prompts": ["tea"] * 59})
        second = greedy.post("/v1/screen", json={"prompts": ["tea"] * 10})
        third = other.post("/v1/screen", json=PROMPT)
    assert codes([first, second, third]) == [200, 429, 200]
    assert second.json()["code"] == "rate_limited"
    assert 1 <= int(second.headers["retry-after"]) <= 10


def test_an_address_with_too_many_wrong_keys_has_to_wait(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    wrong = {"Authorization": "Bearer lg_0123456789abcdef_" + "a" * 43}
    settings: dict[str, Any] = {"lockout_failures": 2, "lockout_s": 60}
    with running_service(tmp_path, tiny_guard, **settings) as running, running.client() as client:
        statuses = [client.post("/v1/screen", json=PROMPT, headers=wrong).status_code for _ in range(4)]
        last = client.post("/v1/screen", json=PROMPT, headers=wrong)
    assert statuses == [401, 401, 429, 429]
    assert last.json()["code"] == "locked_out"
    assert int(last.headers["retry-after"]) > 1


# --- slow clients


def connected(running: Running) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
    plain.settimeout(20)
    return running.trust.wrap_socket(plain, server_hostname="127.0.0.1")


def answered(connection: ssl.SSLSocket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except (ConnectionError, ssl.SSLError):
        pass
    return b"".join(parts)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"], ids=["silence", "half-a-head"])
def test_a_client_that_never_asks_is_disconnected(
    sent: bytes, tmp_path: Path, tiny_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.3)
    with running_service(tmp_path, tiny_guard) as running, connected(running) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert answered(connection) == b""
        assert time.monotonic() - started < 5


def test_a_body_that_trickles_is_refused(
    tmp_path: Path, tiny_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "_BODY_SECONDS", 0.3)
    with running_service(tmp_path, tiny_guard) as running, connected(running) as connection:
        token = running.token(Scope.screen)
        connection.sendall(
            b"POST /v1/screen HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
            + f"Authorization: Bearer {token}\r\n\r\n".encode()
            + b'{"prompt": "'
        )
        answer = answered(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.rsplit(b"\r\n\r\n", 1)[1])["code"] == "body_too_slow"


def test_a_key_is_looked_at_before_the_body(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    with running_service(tmp_path, tiny_guard) as running, connected(running) as connection:
        connection.sendall(
            b"POST /v1/screen HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
        )
        assert answered(connection).startswith(b"HTTP/1.1 401 ")


def test_an_endless_head_is_refused(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    with running_service(tmp_path, tiny_guard) as running, connected(running) as connection:
        try:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Filling: " + b"a" * 200_000)
            answer = answered(connection)
        except (ssl.SSLEOFError, ConnectionError):  # it was cut off while it still sent
            answer = b""
        assert answer[:13] in (b"HTTP/1.1 400 ", b"")


def gate(running: Running) -> threading.Event:
    guard = running.services.guard
    if not isinstance(guard, SlowGuard):
        raise TypeError("the guard isn't a slow one")
    return guard.gate


def wait_for(condition: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError("it never came about")
        time.sleep(0.01)
