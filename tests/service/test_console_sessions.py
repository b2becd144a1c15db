"""Sessions of the console: they end, they are bounded, and a form belongs to one of them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from latentguard.service.access import ApiKey, Scope
from latentguard.service.console import sessions as module
from latentguard.service.console.sessions import ABSOLUTE_S, IDLE_S, Session, Sessions

_KEY = ApiKey("0123456789abcdef", "a key", frozenset({Scope.admin}), datetime.now(timezone.utc), None, None, None)


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def sessions(clock: _Clock) -> Sessions:
    return Sessions(clock)


def _open(sessions: Sessions) -> Session:
    return sessions.open(_KEY, b"digest")


def test_a_session_is_found_by_its_token_alone(sessions: Sessions) -> None:
    session = _open(sessions)
    assert sessions.find(session.token) is session
    assert sessions.find("") is None
    assert sessions.find(session.token[:-1]) is None


def test_each_signing_in_has_a_token_of_its_own(sessions: Sessions) -> None:
    assert len({_open(sessions).token for _ in range(50)}) == 50


def test_it_ends_when_nobody_uses_it(sessions: Sessions, clock: _Clock) -> None:
    session = _open(sessions)
    clock.now += IDLE_S - 1
    assert sessions.find(session.token) is session
    clock.now += IDLE_S + 1
    assert sessions.find(session.token) is None


def test_a_page_that_renews_itself_does_not_keep_it_open(sessions: Sessions, clock: _Clock) -> None:
    session = _open(sessions)
    clock.now += IDLE_S - 1
    assert sessions.find(session.token, use=False) is session
    clock.now += 2
    assert sessions.find(session.token, use=False) is None


def test_it_ends_after_half_a_day_however_busy(sessions: Sessions, clock: _Clock) -> None:
    session = _open(sessions)
    for _ in range(ABSOLUTE_S // 600):
        clock.now += 600
        assert sessions.find(session.token) is session
    clock.now += 1
    assert sessions.find(session.token) is None


def test_signing_out_ends_it(sessions: Sessions) -> None:
    one, other = _open(sessions), _open(sessions)
    sessions.close(one.token)
    sessions.close("no such token")
    assert sessions.find(one.token) is None
    assert sessions.find(other.token) is other


def test_there_are_never_more_than_the_limit(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SESSIONS", 3)
    opened = [_open(sessions) for _ in range(3)]
    sessions.find(opened[0].token)
    _open(sessions)
    assert sessions.find(opened[1].token) is None
    assert sessions.find(opened[0].token) is opened[0]


def test_a_form_belongs_to_one_cookie_of_one_process(sessions: Sessions) -> None:
    token = sessions.form_token("cookie")
    assert sessions.is_form_token("cookie", token)
    assert not sessions.is_form_token("another", token)
    assert not sessions.is_form_token("cookie", "")
    assert not sessions.is_form_token("cookie", "é")
    assert not Sessions().is_form_token("cookie", token)


def test_nothing_that_is_printed_of_a_session_is_secret(sessions: Sessions) -> None:
    session = _open(sessions)
    session.notes.append({"secret": "lg_secret"})
    assert session.token not in repr(session)
    assert "digest" not in repr(session)
    assert "lg_secret" not in repr(session)


def test_what_a_page_tells_is_told_once(sessions: Sessions) -> None:
    session = _open(sessions)
    session.notes.append({"text": "done"})
    assert session.take_notes() == [{"text": "done"}]
    assert session.take_notes() == []
