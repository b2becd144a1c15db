"""Keys that are told from memory, on the event loop: only what `authenticate` has just found, and only as long."""

from __future__ import annotations

from datetime import timedelta

import pytest
from service_clock import Clock

from latentguard.service.access import KeyStore, NotAuthenticatedError, Scope
from latentguard.service.database import Database


@pytest.fixture
def keys(sqlite_database: Database, clock: Clock) -> KeyStore:
    return KeyStore(sqlite_database, clock=clock)


def test_a_token_is_at_hand_once_it_was_verified(keys: KeyStore) -> None:
    key, token = keys.create("shop", [Scope.screen])
    assert keys.at_hand(token) is None
    keys.authenticate(token, "127.0.0.1")
    found = keys.at_hand(token)
    assert found is not None
    assert (found.id, found.scopes) == (key.id, {Scope.screen})


def test_neither_another_secret_nor_no_token_is(keys: KeyStore) -> None:
    _, token = keys.create("shop", [Scope.screen])
    keys.authenticate(token, "127.0.0.1")
    assert keys.at_hand(token[:-1] + ("a" if token[-1] != "a" else "b")) is None
    assert keys.at_hand("") is None


def test_a_revoked_key_is_not_at_hand_any_more(keys: KeyStore) -> None:
    key, token = keys.create("shop", [Scope.screen])
    keys.authenticate(token, "127.0.0.1")
    keys.revoke(key.id)
    assert keys.at_hand(token) is None
    with pytest.raises(NotAuthenticatedError):
        keys.authenticate(token, "127.0.0.1")


def test_nor_is_the_old_secret_of_a_rotated_one(keys: KeyStore) -> None:
    key, token = keys.create("shop", [Scope.screen])
    keys.authenticate(token, "127.0.0.1")
    keys.rotate(key.id)
    assert keys.at_hand(token) is None


def test_what_another_process_revoked_is_not_at_hand_after_two_seconds(sqlite_database: Database) -> None:
    ticks = [0.0]
    here, elsewhere = KeyStore(sqlite_database, ticks=lambda: ticks[0]), KeyStore(sqlite_database)
    key, token = here.create("shop", [Scope.screen])
    here.authenticate(token, "127.0.0.1")
    elsewhere.revoke(key.id)
    ticks[0] = 2.0
    assert here.at_hand(token) is None


def test_an_expired_key_is_not(sqlite_database: Database) -> None:
    clock = Clock()
    keys = KeyStore(sqlite_database, clock=clock, ticks=lambda: 0.0)
    _, token = keys.create("shop", [Scope.screen], clock() + timedelta(seconds=30))
    keys.authenticate(token, "127.0.0.1")
    assert keys.at_hand(token) is not None
    clock.advance(31)
    assert keys.at_hand(token) is None
