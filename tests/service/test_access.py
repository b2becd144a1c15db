from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from argon2 import extract_parameters
from service_clock import Clock

from latentguard.service import access
from latentguard.service.access import (
    ForbiddenError,
    KeyNotFoundError,
    KeyRequestError,
    KeyStore,
    NotAuthenticatedError,
    Scope,
)
from latentguard.service.database import Database, DatabaseError
from latentguard.service.lockout import LockedOutError

HERE, THERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def store(database: Database, clock: Clock) -> KeyStore:
    return new_store(database, clock)


@pytest.fixture
def sqlite_store(sqlite_database: Database, clock: Clock) -> KeyStore:
    return new_store(sqlite_database, clock)


def new_store(database: Database, clock: Clock) -> KeyStore:
    return KeyStore(database, lockout_failures=3, lockout_s=60, clock=clock, ticks=clock.ticks)


def wrong(token: str) -> str:
    """The token with another secret."""
    return token[:-1] + ("A" if token[-1] != "A" else "B")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each hash that a secret is compared with, from now on."""
    seen: list[str] = []
    matches: Callable[[str, str], bool] = access._matches

    def noted(hashed: str, secret: str) -> bool:
        seen.append(hashed)
        return matches(hashed, secret)

    monkeypatch.setattr(access, "_matches", noted)
    return seen


def test_a_token_gives_its_key(store: KeyStore) -> None:
    key, token = store.create("a client", [Scope.screen, Scope.generate])
    assert token.startswith(f"lg_{key.id}_")
    found = store.authenticate(token, HERE)
    assert (found.id, found.name, found.scopes) == (key.id, "a client", {Scope.screen, Scope.generate})
    assert [each.id for each in store.list()] == [key.id]


def test_the_secret_is_kept_as_argon2id_hash_alone(store: KeyStore, database: Database) -> None:
    _, token = store.create("a client", [Scope.screen])
    with database.connection() as connection:
        row = connection.execute(sa.text("SELECT * FROM service_keys")).mappings().one()
    parameters = extract_parameters(row["hash"])
    assert parameters.type.name == "ID"
    assert parameters.memory_cost >= 19 * 1024
    secret = token.rsplit("_", 1)[1]
    assert not any(secret in str(value) for value in row.values())
    assert not any(secret in repr(each) for each in store.list())


def test_what_is_no_key_is_refused_alike(store: KeyStore) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.revoke(store.create("revoked", [Scope.screen])[0].id)
    messages = set()
    for attempt in (
        wrong(token),
        "",
        "lg_",
        f"lg_{'0' * 16}_{'A' * 43}",
        token + "A",
        f"lg_{key.id}_",
        "\0" * 99,
        "é" * 65,
    ):
        with pytest.raises(NotAuthenticatedError) as error:
            store.authenticate(attempt, f"198.51.100.{len(messages)}{len(attempt)}")
        messages.add(str(error.value))
    assert messages == {"the API key is not valid"}


def test_an_unknown_id_costs_a_comparison_as_a_wrong_secret_does(
    sqlite_store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = sqlite_store.create("a client", [Scope.screen])
    seen = counted(monkeypatch)
    for attempt in (wrong(token), f"lg_{'0' * 16}_{'A' * 43}"):
        with pytest.raises(NotAuthenticatedError):
            sqlite_store.authenticate(attempt, HERE)
    assert len(seen) == 2
    assert extract_parameters(seen[0]) == extract_parameters(seen[1])


def test_only_the_first_of_many_requests_pays_for_argon2(
    sqlite_store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = sqlite_store.create("a client", [Scope.screen])
    seen = counted(monkeypatch)
    for _ in range(50):
        sqlite_store.authenticate(token, HERE)
        clock.advance(5)
    assert len(seen) == 1
    clock.advance(600)
    sqlite_store.authenticate(token, HERE)
    assert len(seen) == 2
    with pytest.raises(NotAuthenticatedError):
        sqlite_store.authenticate(wrong(token), HERE)


def test_the_remembered_tokens_are_bounded(sqlite_store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_REMEMBERED", 3)
    tokens = [sqlite_store.create(f"client {n}", [Scope.screen])[1] for n in range(6)]
    for token in tokens:
        sqlite_store.authenticate(token, HERE)
    assert len(sqlite_store._verified._hashes) == 3
    assert len(sqlite_store._rows) <= 3
    assert all(token not in str(vars(sqlite_store._verified)) for token in tokens)


def test_a_revoked_key_is_over_at_once(store: KeyStore) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    assert store.revoke(key.id).revoked is not None
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)
    with pytest.raises(KeyNotFoundError):
        store.revoke(key.id)
    with pytest.raises(KeyNotFoundError):
        store.rotate(key.id)


def test_a_revocation_by_another_process_counts_within_seconds(
    store: KeyStore, database_url: str, clock: Clock
) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    other = Database(database_url)
    new_store(other, clock).revoke(key.id)
    other.close()
    clock.advance(2)
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)


def test_a_rotation_by_another_process_counts_at_once_for_the_new_token(
    store: KeyStore, database_url: str, clock: Clock
) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    other = Database(database_url)
    _, newer = new_store(other, clock).rotate(key.id)
    other.close()
    assert store.authenticate(newer, HERE).id == key.id
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)


def test_rotation_replaces_the_secret_and_keeps_the_key(store: KeyStore) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    rotated, newer = store.rotate(key.id)
    assert (rotated.id, rotated.name) == (key.id, key.name)
    assert store.authenticate(newer, HERE).id == key.id
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)


def test_both_tokens_are_good_while_a_rotation_overlaps(store: KeyStore, clock: Clock) -> None:
    key, token = store.create("a client", [Scope.screen])
    _, newer = store.rotate(key.id, overlap=timedelta(minutes=10))
    clock.advance(599)
    assert store.authenticate(token, HERE).id == store.authenticate(newer, HERE).id == key.id
    clock.advance(1)
    assert store.authenticate(newer, HERE).id == key.id
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)


def test_revoking_ends_an_overlap_as_well(store: KeyStore) -> None:
    key, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    store.rotate(key.id, overlap=timedelta(minutes=10))
    store.revoke(key.id)
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)


def test_a_key_ends_when_it_expires(store: KeyStore, clock: Clock) -> None:
    key, token = store.create("a client", [Scope.screen], clock.now + timedelta(days=1))
    store.authenticate(token, HERE)
    clock.advance(86_400)
    assert not store.find(key.id).usable(clock.now)
    with pytest.raises(NotAuthenticatedError):
        store.authenticate(token, HERE)
    with pytest.raises(KeyNotFoundError):
        store.rotate(key.id)


def test_when_a_key_was_used_last_is_known_to_the_minute(store: KeyStore, clock: Clock) -> None:
    key, token = store.create("a client", [Scope.screen])
    assert store.find(key.id).last_used is None
    first = clock.now
    store.authenticate(token, HERE)
    assert store.find(key.id).last_used == first
    clock.advance(59)
    store.authenticate(token, HERE)
    assert store.find(key.id).last_used == first
    clock.advance(1)
    store.authenticate(token, HERE)
    assert store.find(key.id).last_used == clock.now


def test_admin_includes_every_scope_and_no_other_does(sqlite_store: KeyStore) -> None:
    admin, _ = sqlite_store.create("admin", [Scope.admin])
    screen, _ = sqlite_store.create("screen", [Scope.screen])
    for scope in Scope:
        admin.require(scope)
    screen.require(Scope.screen)
    for scope in (Scope.generate, Scope.admin):
        with pytest.raises(ForbiddenError, match=scope.value):
            screen.require(scope)


@pytest.mark.parametrize("name", ["", " ", "a" * 65, "line\nbreak"])
def test_a_key_needs_a_name(sqlite_store: KeyStore, name: str) -> None:
    with pytest.raises(KeyRequestError, match="name"):
        sqlite_store.create(name, [Scope.screen])


def test_a_key_needs_a_scope_and_a_future(sqlite_store: KeyStore, clock: Clock) -> None:
    with pytest.raises(KeyRequestError, match="scope"):
        sqlite_store.create("a client", [])
    with pytest.raises(KeyRequestError, match="expired"):
        sqlite_store.create("a client", [Scope.screen], clock.now)


def test_a_guesser_is_locked_out_of_a_key_and_its_owner_elsewhere_is_not(store: KeyStore, clock: Clock) -> None:
    key, token = store.create("a client", [Scope.screen])
    for _ in range(3):
        with pytest.raises(NotAuthenticatedError):
            store.authenticate(wrong(token), THERE)
    with pytest.raises(LockedOutError) as error:
        store.authenticate(token, THERE)  # even the right one: whoever guesses learns nothing more
    assert error.value.retry_after == 60
    assert store.authenticate(token, HERE).id == key.id
    clock.advance(60)
    assert store.authenticate(token, THERE).id == key.id


def test_one_outdated_client_does_not_lock_out_its_neighbours(sqlite_store: KeyStore) -> None:
    _, outdated = sqlite_store.create("outdated", [Scope.screen])
    key, token = sqlite_store.create("neighbour", [Scope.screen])
    for _ in range(3):
        with pytest.raises(NotAuthenticatedError):
            sqlite_store.authenticate(wrong(outdated), HERE)
    for _ in range(20):
        with pytest.raises(LockedOutError):
            sqlite_store.authenticate(wrong(outdated), HERE)
    assert sqlite_store.authenticate(token, HERE).id == key.id


def test_an_address_that_tries_many_ids_is_locked_out_whole(
    sqlite_store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, token = sqlite_store.create("a client", [Scope.screen])
    seen = counted(monkeypatch)
    for n in range(12):
        with pytest.raises(NotAuthenticatedError):
            sqlite_store.authenticate(f"lg_{n:016x}_{'A' * 43}", "2001:db8::1")
    assert len(seen) == 12
    for address in ("2001:db8::1", "2001:db8::ffff"):  # of one subscriber
        with pytest.raises(LockedOutError):
            sqlite_store.authenticate(token, address)
    assert len(seen) == 12  # nothing was even looked at
    assert sqlite_store.authenticate(token, "2001:db8:1::1").id == key.id


def test_a_client_known_here_is_not_locked_out_by_others_at_its_address(sqlite_store: KeyStore) -> None:
    key, token = sqlite_store.create("a client", [Scope.screen])
    sqlite_store.authenticate(token, HERE)
    for n in range(12):
        with pytest.raises(NotAuthenticatedError):
            sqlite_store.authenticate(f"lg_{n:016x}_{'A' * 43}", HERE)
    with pytest.raises(LockedOutError):
        sqlite_store.authenticate("anything", HERE)
    assert sqlite_store.authenticate(token, HERE).id == key.id


def test_a_key_of_ones_own_does_not_clear_guesses_at_others(sqlite_store: KeyStore) -> None:
    _, own = sqlite_store.create("own", [Scope.screen])
    outcomes = []
    for n in range(14):
        sqlite_store._verified._hashes.clear()
        try:
            sqlite_store.authenticate(own, HERE)
            sqlite_store.authenticate(f"lg_{n:016x}_{'A' * 43}", HERE)
        except (NotAuthenticatedError, LockedOutError) as error:
            outcomes.append(type(error))
    assert outcomes == [NotAuthenticatedError] * 12 + [LockedOutError] * 2


def test_failures_long_ago_do_not_add_up(sqlite_store: KeyStore, clock: Clock) -> None:
    key, token = sqlite_store.create("a client", [Scope.screen])
    for _ in range(6):
        with pytest.raises(NotAuthenticatedError):
            sqlite_store.authenticate(wrong(token), HERE)
        clock.advance(61)
    assert sqlite_store.authenticate(token, HERE).id == key.id


def test_without_its_database_nobody_is_let_in(sqlite_database: Database, clock: Clock) -> None:
    store = new_store(sqlite_database, clock)
    _, token = store.create("a client", [Scope.screen])
    store.authenticate(token, HERE)
    clock.advance(2)
    with sqlite_database.begin() as connection:
        connection.execute(sa.text("ALTER TABLE service_keys RENAME TO gone"))
    with pytest.raises(DatabaseError):
        store.authenticate(token, HERE)


def test_a_known_token_costs_little(sqlite_store: KeyStore) -> None:
    _, token = sqlite_store.create("a client", [Scope.screen])
    sqlite_store.authenticate(token, HERE)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        sqlite_store.authenticate(token, HERE)
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 0.002
