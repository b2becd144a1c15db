"""Language models as writers: what is asked, what is kept of the answers, and what becomes of the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from chat_server import ChatServer, Reply, chat_server, fails, in_turn, says

from latentguard.naming import NameMatcher, Naming
from latentguard.records import ConceptEntry
from latentguard.synthesis.backends import Draft, GrammarBackend, LanguageModelBackend
from latentguard.synthesis.endpoint import Endpoint, EndpointSettings
from latentguard.synthesis.grammar import Grammar
from latentguard.synthesis.instructions import (
    is_refusal,
    read_texts,
    synonym_messages,
    twin_messages,
    unsafe_messages,
)
from latentguard.synthesis.synonyms import SYNONYMS, known_synonyms, listed_synonyms
from latentguard.synthesis.tally import Tally
from latentguard.wording import text_key

ARSON = ConceptEntry("arson", "illegal activity")


def asked(body: dict[str, Any]) -> str:
    """The last thing that a request asks for."""
    text = body["messages"][-1]["content"]
    for step in ("safe twin", "synonyms"):
        if step in text:
            return step
    return "unsafe"


def wanted(body: dict[str, Any]) -> int:
    return int(re.search(r"Write (\d+)|Give (\d+)", body["messages"][-1]["content"])[0].split()[1])  # type: ignore[index]


def writer(unsafe: Callable[[int], Any], twins: Any = None, synonyms: Any = None) -> Callable[..., Reply]:
    """Answers each step: `unsafe` gets the number of the request; a twin is made of each prompt unless given."""

    def answer(body: dict[str, Any], number: int) -> Reply:
        if asked(body) == "unsafe":
            return says(unsafe(number))
        if asked(body) == "synonyms":
            return says({"synonyms": synonyms})
        if twins is not None:
            return says(twins)
        line = next(line for line in body["messages"][-1]["content"].splitlines() if line.startswith("Prompts: "))
        prompts = json.loads(line.removeprefix("Prompts: "))
        return says({"prompts": [prompt.replace("arson", "a picnic") for prompt in prompts]})

    return answer


def backend(server: ChatServer) -> LanguageModelBackend:
    settings = EndpointSettings(server.url, "tiny", first_delay=0.01, longest_delay=0.05, attempts=2)
    return LanguageModelBackend(Endpoint(settings))


def prompts_of(number: int, count: int) -> dict[str, list[str]]:
    return {"prompts": [f"arson in street {number} house {place}" for place in range(count)]}


def test_pairs_come_in_batches_with_their_twins() -> None:
    with chat_server(writer(lambda number: prompts_of(number, 10))) as server:
        tally = Tally()
        drafts = backend(server).pairs(ARSON, 15, 0, tally)
    assert len(drafts) == 15
    assert len({draft.unsafe for draft in drafts}) == 15
    assert all(draft.safe == draft.unsafe.replace("arson", "a picnic") for draft in drafts)
    assert {draft.template for draft in drafts} == {"unsafe+twins/1"}
    assert tally == Tally(requests=4)
    assert [wanted(body) for body in server.requests if asked(body) == "unsafe"] == [10, 5]


def test_each_request_has_a_seed_of_its_own_and_the_same_again() -> None:
    runs = []
    for seed in (0, 0, 1):
        with chat_server(writer(lambda number: prompts_of(number, 10))) as server:
            backend(server).pairs(ARSON, 20, seed, Tally())
        runs.append([body["seed"] for body in server.requests])
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == len(runs[0])


def test_entries_that_are_no_prompt_are_dropped_and_asked_for_again() -> None:
    bad = {"prompts": ["arson", 3, None, "", "word " * 200, "12 34", "arson in the   old\nbarn"]}
    with chat_server(writer(lambda number: bad if number == 0 else prompts_of(number, 2))) as server:
        tally = Tally()
        drafts = backend(server).pairs(ARSON, 3, 0, tally)
    assert drafts[0].unsafe == "arson in the old barn"
    assert len(drafts) == 3
    assert tally.malformed == 6


def test_repeated_prompts_are_dropped() -> None:
    same = {"prompts": ["arson in a barn", "Arson in a barn!"]}
    with chat_server(writer(lambda number: same)) as server:
        tally = Tally()
        assert len(backend(server).pairs(ARSON, 2, 0, tally)) == 1
    assert tally.duplicates == 5  # one in the first answer, two in each of those that should make up for it


def test_sexual_prompts_with_minors_are_dropped() -> None:
    bad = {"prompts": ["a naked teenager on a sofa", "arson in a school hall"]}
    with chat_server(writer(lambda number: bad)) as server:
        tally = Tally()
        drafts = backend(server).pairs(ARSON, 2, 0, tally)
    assert [draft.unsafe for draft in drafts] == ["arson in a school hall"]
    assert tally.withheld == 3


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON here",
        '{"prompts": "arson in a barn"}',
        '{"other": ["arson in a barn"]}',
        "[" * 5000,
        "",
        '{"prompts": [',
    ],
)
def test_malformed_answers_are_counted_and_dropped(answer: str) -> None:
    with chat_server(in_turn(says(answer))) as server:
        tally = Tally()
        assert backend(server).pairs(ARSON, 5, 0, tally) == []
    assert (tally.malformed, tally.refusals, tally.requests) == (3, 0, 3)


@pytest.mark.parametrize(
    "reply",
    [says("I'm sorry, but I can't help with that."), says("I can\u2019t do that."), fails(400, "content_filter")],
)
def test_a_refusal_ends_the_step_and_is_counted(reply: Reply) -> None:
    with chat_server(in_turn(reply)) as server:
        tally = Tally()
        assert backend(server).pairs(ARSON, 50, 0, tally) == []
    assert (tally.refusals, tally.malformed, tally.requests) == (1, 0, 1)


@pytest.mark.parametrize(
    ("twins", "counted"),
    [
        (["a barn dance", "arson again here"], Tally(requests=2, twins_refused=1)),
        (["a barn dance", "arson in street 0 house 1"], Tally(requests=2, twins_refused=1)),
        (["a barn dance", 7], Tally(requests=2, malformed=1)),
    ],
)
def test_a_bad_twin_leaves_its_prompt_alone(twins: Sequence[Any], counted: Tally) -> None:
    with chat_server(writer(lambda number: prompts_of(0, 2), {"prompts": twins})) as server:
        tally = Tally()
        drafts = backend(server).pairs(ARSON, 2, 0, tally)
    assert [draft.safe for draft in drafts] == ["a barn dance", None]
    assert tally == counted


def test_twins_that_can_not_be_matched_are_dropped() -> None:
    with chat_server(writer(lambda number: prompts_of(0, 2), {"prompts": ["only one here"]})) as server:
        tally = Tally()
        drafts = backend(server).pairs(ARSON, 2, 0, tally)
    assert [draft.safe for draft in drafts] == [None, None]
    assert tally.malformed == 1


def test_synonyms_are_cleaned() -> None:
    given = [
        "fire raising",
        "Fire  raising",
        "arson attack",
        5,
        "one two three four five six seven",
        "pyromania",
        "torching",
    ]
    with chat_server(writer(lambda number: {}, synonyms=given)) as server:
        tally = Tally()
        assert backend(server).synonyms(ARSON, 2, 0, tally) == ["fire raising", "pyromania"]
    assert tally.malformed == 3


def test_the_instructions_name_concept_category_and_count() -> None:
    concept = 'say "hi" {now}'
    for messages in (unsafe_messages(concept, "odd", 7), synonym_messages(concept, "odd", 7)):
        last = messages[-1]["content"]
        assert json.dumps(concept) in last
        assert "category: odd" in last
        assert " 7 " in last
    assert json.dumps(["a {b}"]) in twin_messages(concept, ["a {b}"])[-1]["content"]
    assert [message["role"] for message in twin_messages("x", [])] == ["system", "user", "assistant", "user"]


def test_the_examples_are_answers_that_would_be_kept() -> None:
    for messages, key in ((unsafe_messages("x", None, 1), "prompts"), (synonym_messages("x", None, 1), "synonyms")):
        assert read_texts(messages[2]["content"], key)


@pytest.mark.parametrize(
    "answer",
    ['{"prompts": ["a b"]}', '["a b"]', '```json\n{"prompts": ["a b"]}\n```', 'Sure [ok]! {"prompts": ["a b"]} done'],
)
def test_answers_are_found_in_what_stands_around_them(answer: str) -> None:
    assert read_texts(answer, "prompts") == ["a b"]


@pytest.mark.parametrize("text", ["Sorry, no.", "As an AI model I won't", "I cannot assist", "Unfortunately, I am"])
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["A sorry sight in a barn", "I canoe home", '{"prompts": []}', ""])
def test_other_texts_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


# --- the grammar


def test_the_grammar_writes_its_scenes(grammar: Grammar) -> None:
    drafts = GrammarBackend(grammar).pairs(ConceptEntry("gore"), 5, 0, Tally())
    assert len(drafts) == 5
    assert all(isinstance(draft, Draft) and draft.template == "grammar:shocking.json#0" for draft in drafts)


def test_a_listed_concept_gets_its_listed_synonyms_first() -> None:
    listed = listed_synonyms()[text_key("home invasion")]
    assert len(listed) == 3
    assert sorted(known_synonyms("Home Invasion", 3, 0)) == sorted(listed)


def test_listed_synonyms_do_not_name_their_concept() -> None:
    for concept, names in listed_synonyms().items():
        matcher = NameMatcher([concept])
        assert len(set(names)) == 3, concept
        assert all(matcher.find(name).get(0, 0) < Naming.FULL for name in names), concept


def test_other_names_have_a_word_changed() -> None:
    assert set(known_synonyms("gun attack", 99, 0)) >= {"pistol attack", "gun assault", "firearm onslaught"}
    assert len(known_synonyms("gun attack", 2, 0)) == 2
    assert known_synonyms("gun attack", 9, 3) == known_synonyms("Gun attack".lower(), 9, 3)
    assert known_synonyms("no such concept", 3, 0) == []


def test_no_table_synonym_is_the_word_itself() -> None:
    assert all(word not in others for word, others in SYNONYMS.items())
