"""Searching a large bank finds what scoring all of it finds, and never lets a prompt pass for having looked less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CONCEPTS, LONG_PROMPT, PROMPTS, WORDS, random_heads, random_mapping

from latentguard import LatentGuard, Policy, Verdict
from latentguard.bank import ConceptBank
from latentguard.encoders.base import TextEncoder, TokenStates
from latentguard.errors import ConceptError, EncoderError, PromptError
from latentguard.reading import ReadPrompt
from latentguard.records import ConceptEntry
from latentguard.search import Cells

_PAIRS = [f"{first} {second}" for first in WORDS for second in WORDS if first < second]
_MIXED = [*PROMPTS, LONG_PROMPT, *(f"{pair} by the lake" for pair in _PAIRS[::20])]


@pytest.fixture(scope="module")
def entries() -> list[ConceptEntry]:
    """Some 700 concepts, most of them with a category."""
    kinds = ("violence", "sexual", "shocking", None)
    return [ConceptEntry(name, kinds[i % 4]) for i, name in enumerate(_PAIRS)]


@pytest.fixture(params=["headed", "mapping alone"])
def pair(
    request: pytest.FixtureRequest, tiny_encoder: TextEncoder, entries: list[ConceptEntry]
) -> tuple[LatentGuard, LatentGuard]:
    """A guard that searches and one that scores every concept, of one bank; half of `_MIXED` is blocked."""
    heads = random_heads() if request.param == "headed" else None
    searching = LatentGuard(tiny_encoder, random_mapping(), entries, Policy(0.0), heads, search=1)
    whole = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(0.0), heads)
    whole.concepts = searching.concepts
    searching.policy = whole.policy = Policy(float(np.median(whole.score(_MIXED))), flag_margin=0.1)
    return searching, whole


@pytest.fixture(autouse=True)
def few_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these banks a search scores as small a share at first as of a large one."""
    monkeypatch.setattr("latentguard.search._FIRST", 10)


def _same(found: Sequence[Verdict], expected: Sequence[Verdict]) -> None:
    """The same decisions; of what is not allowed, the same concepts and scores too."""
    assert [verdict.decision for verdict in found] == [verdict.decision for verdict in expected]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.decision != "allow":
            assert (ours.concept, ours.category) == (theirs.concept, theirs.category)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)


def test_a_search_decides_as_scoring_every_concept_does(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    expected = whole.check_batch(_MIXED)
    assert {"allow", "block"} <= {verdict.decision for verdict in expected}
    _same(searching.check_batch(_MIXED), expected)


def test_it_scores_less_than_every_concept(pair: tuple[LatentGuard, LatentGuard]) -> None:
    counts = [len(verdict._scores) for verdict in pair[0].check_batch(_MIXED)]
    assert min(counts) < len(_PAIRS) / 10


def test_what_comes_and_goes_is_found_and_forgotten(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    before = searching.check_batch(_MIXED)
    searching.concepts.add("a small red boat", category="violence", threshold=-100.0)
    assert {verdict.concept for verdict in searching.check_batch(_MIXED)} == {"a small red boat"}
    searching.concepts.remove("a small red boat")
    _same(searching.check_batch(_MIXED), before)
    searching.concepts.remove_category("sexual")
    _same(searching.check_batch(_MIXED), whole.check_batch(_MIXED))


def test_cells_kept_up_hold_what_cells_made_anew_would(pair: tuple[LatentGuard, LatentGuard]) -> None:
    bank = pair[0].concepts
    cells = Cells.of(bank.snapshot)
    bank.add("sword garden")
    bank.remove(_PAIRS[17])
    bank.extend(["boat boat boat", "war war"])
    changed = cells.of_changed(bank.snapshot)
    places = np.array([0, 16, 17, len(bank) - 1, 40])
    query, direction = changed.rows(places)
    expected = bank.snapshot.queries.rows(places)
    assert np.array_equal(query, expected.query.numpy())
    assert np.array_equal(direction, expected.direction.numpy())
    assert sorted(changed.order.tolist()) == list(range(len(bank)))
    assert [len(of) for of in changed.directions] == np.bincount(changed.cell_of, minlength=len(cells.centres)).tolist()


def test_a_bank_that_doubles_is_parted_anew(pair: tuple[LatentGuard, LatentGuard]) -> None:
    bank = pair[0].concepts
    cells = Cells.of(bank.snapshot)
    bank.extend([f"{name} at night" for name in _PAIRS] + ["one more"])
    assert cells.of_changed(bank.snapshot).built_with == len(bank)


def test_a_saved_bank_is_searched_the_same(pair: tuple[LatentGuard, LatentGuard], tmp_path: Path) -> None:
    searching, whole = pair
    file = tmp_path / "bank.safetensors"
    searching.concepts.save(file)
    searching.concepts = ConceptBank.load(file, searching.encoder, searching.mapping, searching.heads)
    _same(searching.check_batch(_MIXED), whole.check_batch(_MIXED))


def test_forks_are_searched_each_in_its_own_bank(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, _ = pair
    fork = searching.fork()
    fork.concepts.add("strange boat", threshold=-100.0)
    for _ in range(2):
        assert fork.check("sunset").concept == "strange boat"
        assert searching.check("sunset").concept != "strange boat"


def test_switched_off_categories_decide_nothing(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    policy = Policy(whole.policy.threshold, categories={"violence": None, "sexual": 5.0})
    searching.policy = whole.policy = policy
    _same(searching.check_batch(_MIXED), whole.check_batch(_MIXED))


def test_scores_asked_for_whole_are_those_of_every_concept(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    ours, theirs = searching.check(LONG_PROMPT), whole.check(LONG_PROMPT)
    assert len(ours.scores(None)) == len(_PAIRS)
    assert dict(ours.scores(None)) == pytest.approx(dict(theirs.scores(None)), abs=1e-4)
    names = dict(theirs.scores(None))
    assert all(score == pytest.approx(names[name], abs=1e-4) for name, score in ours.scores(3))
    assert ours.explain().score == pytest.approx(ours.score, abs=1e-3)


def test_prompts_read_elsewhere_and_states_are_searched_too(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    read = [ReadPrompt(whole.encoder.windows(prompt), None) for prompt in _MIXED]
    found = searching.check_read(read)
    _same(found, whole.check_read(read))
    with pytest.raises(PromptError, match="no text to score anew"):
        found[0].scores(None)
    states = whole.encoder.encode(list(PROMPTS))
    _same(searching.check_states(states, PROMPTS), whole.check_states(states, PROMPTS))


def test_scores_are_the_highest(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, whole = pair
    blocked = [prompt for prompt in _MIXED if whole.check(prompt).blocked]
    assert searching.score(blocked) == pytest.approx(whole.score(blocked), abs=1e-4)


def test_an_estimate_that_tells_nothing_costs_time_and_no_block(
    pair: tuple[LatentGuard, LatentGuard], monkeypatch: pytest.MonkeyPatch
) -> None:
    searching, whole = pair
    monkeypatch.setattr(Cells, "estimates", lambda cells, _: np.zeros(len(cells.order), dtype=np.float32))
    _same(searching.check_batch(_MIXED), whole.check_batch(_MIXED))


def test_states_that_are_no_numbers_are_an_error(pair: tuple[LatentGuard, LatentGuard]) -> None:
    searching, _ = pair
    states = searching.encoder.encode(["sunset"])
    broken = TokenStates(torch.full_like(states.hidden, torch.nan), states.mask, states.pooled)
    with pytest.raises(EncoderError, match="not a finite number"):
        searching.check_states(broken, ["sunset"])


def test_a_search_of_banks_of_no_concepts_is_refused(tiny_encoder: TextEncoder) -> None:
    with pytest.raises(ConceptError, match="at least 1"):
        LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(0.5), search=0)


def test_smaller_banks_are_scored_whole(tiny_encoder: TextEncoder) -> None:
    guard = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(0.5), search=len(CONCEPTS) + 1)
    assert len(guard.check("sunset")._scores) == len(CONCEPTS)


def test_a_verdict_on_a_large_bank_holds_few_scores_and_gives_all(
    pair: tuple[LatentGuard, LatentGuard], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = pair
    expected = whole.check(LONG_PROMPT)
    monkeypatch.setattr("latentguard.guard._KEPT_WHOLE", 100)
    monkeypatch.setattr("latentguard.guard._KEPT_SCORES", 20)
    monkeypatch.setattr("latentguard.guard._SCORES_AT_A_TIME", 3 * len(_PAIRS))
    verdict = whole.check_batch([LONG_PROMPT] * 7)[6]
    assert len(verdict._scores) == 20
    for k in (5, 20, 21, None):
        assert [name for name, _ in verdict.scores(k)] == [name for name, _ in expected.scores(k)]
