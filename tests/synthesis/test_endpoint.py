"""The endpoint against a real server: retries, refusals, limits, and a key that shows nowhere."""

from __future__ import annotations

import email.utils
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, ChatServer, Reply, chat_server, fails, in_turn, says

from latentguard.synthesis.backends import Answer, BackendError
from latentguard.synthesis.endpoint import Endpoint, EndpointSettings
from latentguard.synthesis.tally import Tally

MESSAGES = [{"role": "user", "content": "hello"}]


def endpoint(server: ChatServer, **options: Any) -> Endpoint:
    defaults: dict[str, Any] = {"first_delay": 0.01, "longest_delay": 0.2, "timeout": 5.0, "api_key": KEY}
    return Endpoint(EndpointSettings(server.url, "tiny", **defaults | options))


def ask(server: ChatServer, tally: Tally | None = None, **options: Any) -> Answer:
    return endpoint(server, **options).answer(MESSAGES, 5, tally or Tally())


def test_a_dialogue_is_sent_with_model_seed_and_key() -> None:
    with chat_server(in_turn(says("hi"))) as server:
        assert ask(server) == Answer("hi")
    assert server.paths == ["/v1/chat/completions"]
    assert server.requests[0] == {"model": "tiny", "messages": MESSAGES, "temperature": 0.9, "seed": 5}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_none_is_sent_not_even_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with chat_server(in_turn(says("hi"))) as server:
        ask(server, api_key=None)
        ask(server)
    assert "Authorization" not in server.headers[0]
    assert server.headers[1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("failure", [fails(429), fails(500), fails(503), fails(529), fails(408)])
def test_passing_failures_are_tried_again(failure: Reply) -> None:
    tally = Tally()
    with chat_server(in_turn(failure, failure, says("hi"))) as server:
        assert ask(server, tally) == Answer("hi")
    assert (tally.retries, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_honoured(date: bool) -> None:
    wanted = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
    with chat_server(in_turn(fails(429, Retry_After=wanted), says("hi"))) as server:
        start = time.monotonic()
        assert ask(server, longest_delay=5.0) == Answer("hi")
    assert 0.8 < time.monotonic() - start < 4


def test_retry_after_is_bounded_and_nonsense_passed_over() -> None:
    for wanted in ("100000", "soon", "-5"):
        with chat_server(in_turn(fails(429, Retry_After=wanted), says("hi"))) as server:
            start = time.monotonic()
            assert ask(server, longest_delay=0.1) == Answer("hi")
        assert time.monotonic() - start < 2


def test_delays_double_with_jitter() -> None:
    with chat_server(in_turn(says("hi"))) as server:
        model = endpoint(server, first_delay=1.0, longest_delay=6.0)
    for attempt, longest in enumerate((1, 2, 4, 6, 6)):
        delays = {model._delay(attempt, None) for _ in range(20)}
        assert len(delays) > 1
        assert all(longest / 2 <= delay <= longest for delay in delays)


def test_attempts_come_to_an_end() -> None:
    with chat_server(in_turn(fails(500))) as server:
        with pytest.raises(BackendError, match="no answer after 3 attempts: status 500"):
            ask(server, attempts=3)
        assert len(server.requests) == 3


def test_a_slow_answer_is_given_up_and_tried_again() -> None:
    slow = says("late")
    slow.delay = 1.5
    with chat_server(in_turn(slow, says("hi"))) as server:
        assert ask(server, timeout=0.4) == Answer("hi")


def test_an_endless_answer_is_given_up() -> None:
    with (
        chat_server(in_turn(Reply(b"x" * (5 * 2**20)))) as server,
        pytest.raises(BackendError, match="too long"),
    ):
        ask(server, attempts=1)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = EndpointSettings(f"http://127.0.0.1:{port}", "tiny", attempts=2, first_delay=0.01)
    with pytest.raises(BackendError, match="the connection failed"):
        Endpoint(settings).answer(MESSAGES, 0, Tally())


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "invalid_request", "400, invalid_request"),
        (401, None, "API_KEY set"),
        (404, None, "base URL"),
        (302, None, "302"),
    ],
)
def test_a_lasting_failure_ends_at_once(status: int, code: str | None, told: str) -> None:
    with chat_server(in_turn(fails(status, code, Location="http://127.0.0.1:1/"))) as server:
        with pytest.raises(BackendError, match=told):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        says("", finish_reason="content_filter"),
        says("", message={"content": None, "refusal": "no"}),
        fails(400, "content_filter"),
        fails(400, "content_policy_violation"),
    ],
)
def test_refusals_of_the_service_are_told(reply: Reply) -> None:
    with chat_server(in_turn(reply)) as server:
        assert ask(server).refused


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"\xff", b"[" * 100_000]
)
def test_a_body_that_is_no_answer_says_nothing(body: bytes) -> None:
    with chat_server(in_turn(Reply(body))) as server:
        assert ask(server) == Answer("")


def test_the_key_shows_nowhere(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(in_turn(fails(401), fails(400), fails(500), fails(500))) as server:
        model = endpoint(server, attempts=2)
        errors = []
        for _ in range(3):
            with pytest.raises(BackendError) as caught:
                model.answer(MESSAGES, 0, Tally())
            errors.append(f"{caught.value!r} {caught.value.__cause__!r}")
    shown = " ".join([*errors, caplog.text, repr(model._settings), *capsys.readouterr()])
    assert KEY not in shown


def test_closing_ends_the_wait_for_another_attempt() -> None:
    with chat_server(in_turn(fails(429, Retry_After="60"))) as server:
        model = endpoint(server, longest_delay=60.0)
        model.close()
        start = time.monotonic()
        with pytest.raises(BackendError, match="given up"):
            model.answer(MESSAGES, 0, Tally())
    assert time.monotonic() - start < 2


# --- settings


def test_settings_come_from_the_environment_unless_given() -> None:
    environment = {
        "LATENTGUARD_SYNTHESIS_BASE_URL": "http://localhost:1/v1",
        "LATENTGUARD_SYNTHESIS_MODEL": "one",
        "LATENTGUARD_SYNTHESIS_API_KEY": KEY,
    }
    settings = EndpointSettings.from_environment(None, "other", environment)
    assert (settings.base_url, settings.model, settings.api_key) == ("http://localhost:1/v1", "other", KEY)


@pytest.mark.parametrize(
    ("url", "model", "complaint"),
    [(None, "m", "BASE_URL"), ("http://localhost", None, "MODEL"), ("ftp://a", "m", "http"), ("nowhere", "m", "http")],
)
def test_settings_that_lack_something(url: str | None, model: str | None, complaint: str) -> None:
    with pytest.raises(BackendError, match=complaint):
        EndpointSettings.from_environment(url, model, {})


def test_a_key_in_the_url_is_refused_without_showing_it() -> None:
    for url in (f"https://user:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(BackendError, match="must hold no key") as caught:
            EndpointSettings(url, "m")
        assert KEY not in str(caught.value)


def test_a_key_is_not_sent_in_the_clear_to_another_machine() -> None:
    with pytest.raises(BackendError, match="https"):
        EndpointSettings("http://example.org/v1", "m", KEY)
    EndpointSettings("http://[::1]:80/v1", "m", KEY)
    EndpointSettings("http://example.org/v1", "m")


@pytest.mark.parametrize("key", ["a b", "schlüssel", "line\nbreak"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(BackendError, match="characters") as caught:
        EndpointSettings("https://host/v1", "m", key)
    assert key not in str(caught.value)
