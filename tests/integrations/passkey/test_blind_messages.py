"""Messages that aren't exactly encrypted prompts or concepts for this server are refused, and nothing is scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import PROMPTS

from latentguard.errors import MessageError, PromptError
from latentguard.integrations.passkey import BlindClient, BlindGuard, EncryptedConcept, EncryptedPrompt
from latentguard.integrations.passkey.messages import Limits
from latentguard.lexicon import NameForms, TextForms, WordForms

LIMITS = Limits("a vocabulary", rows=50, barred=frozenset({0, 2, 3}), longest_name=10, words=True)
HASHES = st.binary(min_size=16, max_size=16).map(bytes.hex)
IDS = st.lists(st.integers(0, 49).filter(lambda each: each not in LIMITS.barred), max_size=10).map(tuple)
WORDS = st.builds(WordForms, HASHES, HASHES, HASHES, st.booleans())


@st.composite
def texts(draw: st.DrawFn) -> TextForms:
    words = draw(st.lists(WORDS, max_size=4))
    return TextForms(words, [(i, draw(HASHES)) for i in range(len(words) - 1)])


@st.composite
def names(draw: st.DrawFn) -> NameForms:
    families = draw(st.frozensets(HASHES, min_size=1, max_size=3))
    stems = draw(st.lists(HASHES, min_size=1, max_size=3).map(tuple))
    joined, rarity = draw(st.one_of(st.just(""), HASHES)), draw(st.floats(0, 1))
    anchor = draw(st.sampled_from(sorted(families)))
    return NameForms(stems, draw(st.frozensets(HASHES, max_size=3)), families, anchor, joined, rarity)


class TestReading:
    @given(IDS, texts())
    def test_a_prompt_comes_back_as_it_was_written(self, ids: tuple[int, ...], forms: TextForms) -> None:
        prompt = EncryptedPrompt("a vocabulary", ids, forms)
        assert EncryptedPrompt.from_json(prompt.as_json(), LIMITS) == prompt

    @given(HASHES, st.none() | HASHES, st.none() | st.floats(-10, 10), IDS, names())
    def test_a_concept_comes_back_as_it_was_written(
        self, label: str, category: str | None, threshold: float | None, ids: tuple[int, ...], name: NameForms
    ) -> None:
        concept = EncryptedConcept("a vocabulary", label, category, threshold, ids, name)
        assert EncryptedConcept.from_json(concept.as_json(), LIMITS) == concept

    @given(st.one_of(st.text(), st.binary(), st.recursive(st.none() | st.integers(), st.lists).map(json.dumps)))
    def test_nothing_else_is_read(self, message: str | bytes) -> None:
        for kind in (EncryptedPrompt, EncryptedConcept):
            with pytest.raises(MessageError):
                kind.from_json(message, LIMITS)


def changed(message: str, change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(message)
    change(content)
    return json.dumps(content)


class TestAServer:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda m: m.update(format="latentguard encrypted prompt 2"), "format"),
            (lambda m: m.update(extra=1), "format"),
            (lambda m: m.pop("words"), "format"),
            (lambda m: m.update(vocabulary="0" * 64), "another passkey"),
            (lambda m: m.update(ids="12"), "whole numbers"),
            (lambda m: m["ids"].append(10**6), "whole numbers below"),
            (lambda m: m["ids"].append(-1), "whole numbers below"),
            (lambda m: m["ids"].append(True), "whole numbers below"),
            (lambda m: m["ids"].append(7.0), "whole numbers below"),
            (lambda m: m["ids"].append([7]), "whole numbers below"),
            (lambda m: m["ids"].append(0), "special tokens"),
            (lambda m: m["ids"].insert(0, 2), "special tokens"),
            (lambda m: m["ids"].append(3), "special tokens"),
            (lambda m: m["ids"].append(4), "special tokens"),
            (lambda m: m.update(ids=m["ids"] * 100_000), "more than"),
            (lambda m: m.update(words=None), "missing"),
            (lambda m: m.update(words=[]), "forms and pairs"),
            (lambda m: m["words"].pop("pairs"), "forms and pairs"),
            (lambda m: m["words"]["pairs"].pop(), "as many pairs"),
            (lambda m: m["words"]["forms"].pop(), "as many pairs"),
            (lambda m: m["words"]["forms"][0].pop(), "four forms"),
            (lambda m: m["words"]["forms"][0].__setitem__(3, 1), "four forms"),
            (lambda m: m["words"]["forms"][0].__setitem__(0, "knife"), "hash"),
            (lambda m: m["words"]["forms"][0].__setitem__(0, "A" * 32), "hash"),
            (lambda m: m["words"]["pairs"].__setitem__(0, None), "hash"),
        ],
    )
    def test_a_changed_prompt_is_refused_with_what_is_wrong(
        self, server: BlindGuard, client: BlindClient, change: Callable[[dict[str, Any]], object], problem: str
    ) -> None:
        message = client.encrypt(PROMPTS[0]).as_json()
        with pytest.raises(MessageError, match=problem) as error:
            server.check_batch([message, changed(message, change)])
        assert str(error.value).startswith("prompt 2: ")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda m: m.update(label="bomb"), "hash"),
            (lambda m: m.update(category="violence"), "hash"),
            (lambda m: m.update(threshold="1"), "no number"),
            (lambda m: m.update(threshold=True), "finite number"),
            (lambda m: m.update(ids=m["ids"] * 40), "more than"),
            (lambda m: m["ids"].append(0), "special tokens"),
            (lambda m: m.update(name=None), "missing"),
            (lambda m: m["name"].update(rarity=1.5), "go together"),
            (lambda m: m["name"].update(rarity=None), "finite number"),
            (lambda m: m["name"].update(anchor=m["name"]["stems"][0]), "go together"),
            (lambda m: m["name"].update(stems=[]), "go together"),
            (lambda m: m["name"].update(stems=m["name"]["stems"] * 200), "at most"),
            (lambda m: m["name"].update(families=["knife"]), "hash"),
            (lambda m: m["name"].pop("joined"), "fields"),
        ],
    )
    def test_a_changed_concept_is_refused_and_the_bank_stays(
        self, server: BlindGuard, client: BlindClient, change: Callable[[dict[str, Any]], object], problem: str
    ) -> None:
        before = server.guard.concepts.names
        with pytest.raises(MessageError, match=problem):
            server.add(changed(client.encrypt_concept("old river bridge").as_json(), change))
        assert server.guard.concepts.names == before

    @pytest.mark.parametrize(
        "message", ["", "{}", "[" * 100_000, '{"ids":NaN}', "a red wine", b"\xff", '{"ids":[],"ids":[]}']
    )
    def test_what_is_no_message_is_refused(self, server: BlindGuard, message: str | bytes) -> None:
        with pytest.raises(MessageError):
            server.check(message)

    def test_a_field_that_stands_twice_is_refused(self, server: BlindGuard, client: BlindClient) -> None:
        message = client.encrypt(PROMPTS[0]).as_json()
        with pytest.raises(MessageError, match="JSON"):
            server.check(message[:-1] + ',"ids":[]}')

    def test_a_message_longer_than_any_prompt_is_not_even_parsed(self, server: BlindGuard) -> None:
        with pytest.raises(MessageError, match="longer than"):
            server.check(" " * 30_000_000)

    def test_no_error_quotes_the_message(self, server: BlindGuard, client: BlindClient) -> None:
        message = changed(client.encrypt(PROMPTS[0]).as_json(), lambda m: m["words"]["forms"].append(["secret"] * 4))
        with pytest.raises(MessageError) as error:
            server.check(message)
        assert "secret" not in str(error.value)

    def test_what_a_client_program_made_wrong_is_refused_like_what_came_in(
        self, server: BlindGuard, client: BlindClient
    ) -> None:
        prompt = client.encrypt(PROMPTS[0])
        with pytest.raises(MessageError, match="special tokens"):
            server.check(EncryptedPrompt(prompt.vocabulary, (2, *prompt.ids), prompt.forms))

    @pytest.mark.parametrize("thing", [None, 7, ["a"]])
    def test_what_is_no_text_is_refused(self, server: BlindGuard, thing: Any) -> None:
        with pytest.raises(PromptError, match="expected a message"):
            server.check(thing)
