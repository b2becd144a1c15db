"""What is in force: changed at once, kept, and the same for every process."""

from __future__ import annotations

import threading

import pytest
from models import random_mapping

from latentguard import LatentGuard, Policy
from latentguard.errors import ConceptError
from latentguard.records import ConceptEntry
from latentguard.service.database import Database
from latentguard.service.errors import ConceptExistsError, ConceptNotFoundError, PreconditionFailedError
from latentguard.service.policies import Policies

PROMPTS = ["a red wine on the table", "a knife fight"]


@pytest.fixture
def policies(tiny_guard: LatentGuard, database: Database) -> Policies:
    return Policies(tiny_guard, database)


def test_without_changes_it_is_the_guard_of_the_settings(policies: Policies, tiny_guard: LatentGuard) -> None:
    judged = policies.check(PROMPTS)
    assert [each.verdict.score for each in judged] == tiny_guard.score(PROMPTS).tolist()
    assert {each.policy for each in judged} == {policies.fingerprint}
    assert policies.now.version == 0


def test_a_change_is_in_force_at_once_and_leaves_the_guard_it_came_from(
    policies: Policies, tiny_guard: LatentGuard
) -> None:
    before, names = policies.now, list(tiny_guard.concepts.names)
    after = policies.change(actor="key", add=[ConceptEntry("two boats", "sea", 0.5)], remove=[names[0]], threshold=1.5)
    assert policies.now is after
    assert after.guard.concepts.names == [*names[1:], "two boats"]
    assert after.guard.policy.threshold == 1.5
    assert after.fingerprint != before.fingerprint
    assert tiny_guard.concepts.names == before.guard.concepts.names == names


def test_scores_after_a_change_are_those_of_such_a_guard(policies: Policies, tiny_guard: LatentGuard) -> None:
    policies.change(actor="key", add=[ConceptEntry("two boats")])
    tiny_guard.concepts.add("two boats")
    assert [each.verdict.score for each in policies.check(PROMPTS)] == tiny_guard.score(PROMPTS).tolist()


def test_changes_outlive_the_process(policies: Policies, tiny_guard: LatentGuard, database: Database) -> None:
    name = tiny_guard.concepts.names[0]
    policies.change(actor="key", add=[ConceptEntry("two boats", "sea")])
    policies.change(actor="key", remove=[name])
    last = policies.change(actor="key", threshold=2.0)
    again = Policies(tiny_guard, database)
    assert again.fingerprint == last.fingerprint
    assert again.now.version == 3
    assert "two boats" in again.guard.concepts
    assert name not in again.guard.concepts


def test_another_process_takes_a_change_over(policies: Policies, tiny_guard: LatentGuard, database: Database) -> None:
    other = Policies(tiny_guard, database)
    policies.change(actor="key", add=[ConceptEntry("two boats")])
    assert other.fingerprint != policies.fingerprint
    assert other.refresh()
    assert other.fingerprint == policies.fingerprint
    assert not other.refresh()


def test_removing_what_was_added_gives_the_first_fingerprint_back(policies: Policies) -> None:
    first = policies.fingerprint
    policies.change(actor="key", add=[ConceptEntry("two boats")])
    assert policies.change(actor="key", remove=["Two  BOATS"]).fingerprint == first


def test_removing_and_adding_a_concept_of_the_settings_leaves_no_change(
    policies: Policies, tiny_guard: LatentGuard
) -> None:
    entry = next(iter(tiny_guard.concepts))
    policies.change(actor="key", remove=[entry.name])
    after = policies.change(actor="key", add=[entry])
    assert after.changes.added == ()
    assert after.changes.removed == ()


def test_a_change_for_another_policy_is_refused(policies: Policies) -> None:
    seen = policies.fingerprint
    policies.change(actor="key", threshold=1.0, expected=seen)
    with pytest.raises(PreconditionFailedError):
        policies.change(actor="key", threshold=2.0, expected=seen)
    assert policies.guard.policy.threshold == 1.0


def test_of_concurrent_changes_for_one_policy_one_is_made(
    tiny_guard: LatentGuard, database: Database, policies: Policies
) -> None:
    several = [policies, *(Policies(tiny_guard, database) for _ in range(3))]
    seen, barrier, outcomes = policies.fingerprint, threading.Barrier(4), list[bool]()

    def change(place: int) -> None:
        barrier.wait()
        try:
            several[place].change(actor="key", threshold=float(place), expected=seen)
            outcomes.append(True)
        except PreconditionFailedError:
            outcomes.append(False)

    threads = [threading.Thread(target=change, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]


def test_what_stops_a_change_leaves_everything_as_it_was(policies: Policies, database: Database) -> None:
    before = policies.now

    def refuse(_: object) -> None:
        raise RuntimeError("no audit")

    with pytest.raises(RuntimeError):
        policies.change(actor="key", threshold=9.0, before=refuse)
    assert policies.now is before
    assert not policies.refresh()


def test_impossible_changes_are_named(policies: Policies, tiny_guard: LatentGuard) -> None:
    names = tiny_guard.concepts.names
    with pytest.raises(ConceptExistsError):
        policies.change(actor="key", add=[ConceptEntry(names[0].upper())])
    with pytest.raises(ConceptNotFoundError):
        policies.change(actor="key", remove=["no such concept"])
    with pytest.raises(ConceptError, match="nothing would be blocked"):
        policies.change(actor="key", remove=names)
    assert policies.now.version == 0


def test_another_list_in_the_settings_keeps_what_was_changed_here(
    policies: Policies, tiny_guard: LatentGuard, database: Database
) -> None:
    first, second, *_ = tiny_guard.concepts.names
    policies.change(actor="key", add=[ConceptEntry("two boats")], remove=[first])
    other = tiny_guard.fork()
    other.concepts.remove(second)
    other.concepts.extend([ConceptEntry("a castle"), ConceptEntry("Two boats", "sea")])
    bank = Policies(other, database).guard.concepts
    assert "a castle" in bank
    assert first not in bank
    assert second not in bank
    assert [entry.category for entry in bank if entry.name.casefold() == "two boats"] == [None]


def test_thresholds_of_another_model_do_not_count(
    policies: Policies, tiny_guard: LatentGuard, database: Database
) -> None:
    policies.change(actor="key", add=[ConceptEntry("two boats", None, 0.1)], threshold=9.0)
    other = LatentGuard(tiny_guard.encoder, random_mapping(seed=5), list(tiny_guard.concepts), Policy(3.0))
    guard = Policies(other, database).guard
    assert guard.policy.threshold == 3.0
    assert [entry.threshold for entry in guard.concepts if entry.name == "two boats"] == [None]
