"""The built-in grammar: pairs, harmless prompts and bare names, evenly, without repeats, the same for a seed."""

from __future__ import annotations

import copy
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lexicons import FILES, VOCABULARY, write_lexicon

from latentguard.errors import DataError
from latentguard.shipped import shipped_path
from latentguard.synthesis.frames import FRAMES, STAND_INS, Shape, shape_of
from latentguard.synthesis.grammar import Grammar
from latentguard.synthesis.limits import is_withheld
from latentguard.wording import text_key

SHIPPED = shipped_path("datasets") / "grammar"


def test_a_pair_says_what_it_shows_and_where_it_comes_from(grammar: Grammar) -> None:
    pair = next(pair for pair in grammar.pairs(30, 0) if pair.source == "grammar:shocking.json#0")
    assert (pair.concept, pair.category) == ("gore", "shocking")
    assert re.search("guts|entrails", pair.unsafe, re.IGNORECASE)
    assert pair.safe is not None
    assert re.search("beads|marbles", pair.safe, re.IGNORECASE)


def test_concepts_count_evenly_and_no_text_comes_twice(grammar: Grammar) -> None:
    pairs = grammar.pairs(300, 1)
    assert set(Counter(pair.concept for pair in pairs).values()) == {100}
    texts = [text_key(text) for pair in pairs for text in (pair.unsafe, pair.safe or "")]
    assert len(texts) == len(set(texts))


def test_both_sides_share_their_decoration(grammar: Grammar) -> None:
    for pair in grammar.pairs(300, 2):
        assert pair.safe is not None
        for phrase in (*VOCABULARY["style"], "photo of", "beside", "orange juice"):
            assert (phrase.lower() in pair.unsafe.lower()) == (phrase.lower() in pair.safe.lower())
        assert pair.unsafe.islower() == pair.safe.islower()


def test_details_stay_on_their_side(grammar: Grammar) -> None:
    pairs = grammar.pairs(300, 3)
    assert any("blood on the wall" in pair.unsafe.lower() for pair in pairs)
    assert not any("blood on the wall" in (pair.safe or "").lower() for pair in pairs)
    assert not any("paint on the wall" in pair.unsafe.lower() for pair in pairs)


def test_no_template_syntax_is_left(grammar: Grammar) -> None:
    texts = [text for pair in grammar.pairs(300, 4) for text in (pair.unsafe, pair.safe or "")]
    assert not any(set(text) & set("{}<>|") for text in texts + grammar.harmless(100, 0))


def test_a_seed_gives_the_same_prompts_again(grammar: Grammar, lexicon_folder: Path) -> None:
    again = Grammar.load(lexicon_folder)
    assert grammar.pairs(50, 7) == again.pairs(50, 7) != again.pairs(50, 8)
    assert grammar.harmless(50, 7) == again.harmless(50, 7) != again.harmless(50, 8)


def test_harmless_prompts_differ_and_hold_no_scene(grammar: Grammar) -> None:
    texts = grammar.harmless(200, 0)
    assert len({text_key(text) for text in texts}) == 200
    assert not any(re.search(r"stab|slash|pistol|guts|entrails|dead|dying", text) for text in texts)


def test_more_than_the_lexicon_has_is_refused(tmp_path: Path) -> None:
    small = {name: copy.deepcopy(content) for name, content in FILES.items() if name == "everyday.json"}
    small["everyday.json"]["scenes"] = [{"concept": "gore", "unsafe": "guts", "safe": "beads"}]
    small["everyday.json"]["harmless"] = ["fog"]
    few = Grammar.load(write_lexicon(tmp_path, small))
    with pytest.raises(DataError, match="no more than"):
        few.pairs(100_000, 0)
    with pytest.raises(DataError, match="no more than"):
        few.harmless(100_000, 0)


def test_concepts_are_listed_with_their_category(grammar: Grammar) -> None:
    assert grammar.concepts == {"knife attack": "violence", "shooting": "violence", "gore": "shocking"}


# --- concepts by name


def test_a_known_name_draws_from_its_scenes_in_any_case(grammar: Grammar) -> None:
    pairs = list(grammar.concept_pairs("Knife Attack", 20, 0))
    assert len(pairs) == 20
    assert {pair.concept for pair in pairs} == {"Knife Attack"}
    assert all(pair.source.startswith("grammar:violence.json#") for pair in pairs)


def test_an_unknown_name_stands_in_the_prompt_and_not_in_its_twin(grammar: Grammar) -> None:
    for name in ("cutting wrists", "cock fighting", "treason", "drug dealer", "hooligans", "sadistic", "gun at head"):
        pairs = list(grammar.concept_pairs(name, 12, 0, category="mine"))
        assert len({pair.unsafe for pair in pairs}) == 12
        for pair in pairs:
            assert name in pair.unsafe.lower()
            assert name not in (pair.safe or "").lower()
            assert pair.category == "mine"


def test_a_name_may_hold_template_signs(grammar: Grammar) -> None:
    assert list(grammar.concept_pairs("{a|b} <x>", 3, 0))


@pytest.mark.parametrize("shape", Shape)
def test_every_shape_is_told_from_its_example_and_has_frames(shape: Shape) -> None:
    assert shape_of(shape.value) is shape or shape is Shape.QUALITY
    assert all("{c}" in frame for frame in FRAMES[shape])
    assert STAND_INS[shape]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("swallowing glass", Shape.DEED),
        ("choking game", Shape.OTHER),
        ("rotting corpse", Shape.OTHER),
        ("glue sniffing", Shape.ACTIVITY),
        ("wedding ring", Shape.OTHER),
        ("ritual suicide", Shape.STATE),
        ("car bomber", Shape.PERSON),
        ("racist", Shape.PERSON),
        ("sadistic", Shape.QUALITY),
        ("poison gas", Shape.OTHER),
        ("open fractures", Shape.THINGS),
        ("body found in river", Shape.OTHER),
        ("...", Shape.OTHER),
    ],
)
def test_shapes(name: str, shape: Shape) -> None:
    assert shape_of(name) is shape


# --- what is never written


@pytest.mark.parametrize("name", ["child pornography", "naked schoolgirl", "sexualized minor", "teen nudes"])
def test_sexual_names_of_minors_give_nothing(grammar: Grammar, name: str) -> None:
    assert list(grammar.concept_pairs(name, 5, 0)) == []


def test_sexual_scenes_never_stand_beside_minors(tmp_path: Path) -> None:
    files = copy.deepcopy(FILES)
    files["sexual.json"] = {
        "category": "sexual",
        "scenes": [{"concept": "nudity", "unsafe": "a {tall|small} unclothed woman", "safe": "a {tall|small} tree"}],
    }
    files["everyday.json"]["harmless"] = ["children on a {swing|slide}", "a {grey|green} lake", "a {red|blue} barn"]
    pairs = Grammar.load(write_lexicon(tmp_path, files)).pairs(200, 0)
    nude = [pair.unsafe.lower() for pair in pairs if pair.concept == "nudity"]
    assert any("lake" in text for text in nude)
    assert not any("children" in text for text in nude)
    assert any("children" in pair.unsafe.lower() for pair in pairs)


def test_minors_alone_and_adults_alone_are_not_withheld() -> None:
    assert not is_withheld("children playing football")
    assert not is_withheld("a nude woman")
    assert is_withheld("a nude woman among children")
    assert is_withheld("a 15-year-old in a park", "sexual")


# --- faulty lexicons


def changed(change: Any) -> dict[str, Any]:
    files = copy.deepcopy(FILES)
    change(files["violence.json"])
    return files


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda file: file.pop("category"), "violence.json, key category"),
        (lambda file: file.update(scenes={}), "violence.json, key scenes: not a list"),
        (lambda file: file["scenes"][1].pop("safe"), r"violence.json, key scenes\[1\]: not an object"),
        (lambda file: file["scenes"][1].update(concept=" "), r"violence.json, key scenes\[1\].concept"),
        (lambda file: file["scenes"][2].update(safe="{a"), r"violence.json, key scenes\[2\].safe: unbalanced"),
        (lambda file: file["scenes"][0].update(unsafe="<hat>"), r"violence.json, key scenes\[0\].unsafe: no vocab"),
        (lambda file: file["details"]["safe"].append(3), r"violence.json, key details.safe\[2\]: not a text"),
        (lambda file: file["details"].update(other=[]), "violence.json, key details"),
        (lambda file: file["harmless"].append(""), r"violence.json, key harmless\[2\]: not a text"),
        (lambda file: file.update(vocabulary=VOCABULARY), "2 files have the key vocabulary"),
    ],
)
def test_a_faulty_file_is_named_with_its_entry(tmp_path: Path, change: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        Grammar.load(write_lexicon(tmp_path, changed(change)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{", "line 1: not JSON"), (b"[]", "not a JSON object"), (b"\xff", "not UTF-8"), (b"[" * 100_000, "nested")],
)
def test_a_file_that_is_no_lexicon(tmp_path: Path, content: bytes, complaint: str) -> None:
    write_lexicon(tmp_path, FILES)
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError, match=f"bad.json.*{complaint}"):
        Grammar.load(tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "complaint"),
    [
        ([], "key vocabulary: not an object"),
        (VOCABULARY | {"place": []}, "key vocabulary.place: not a list, or empty"),
        (VOCABULARY | {"place": ["{a|b}"]}, r"key vocabulary.place\[0\]"),
        ({"place": ["here"]}, "no entries for style"),
    ],
)
def test_a_faulty_vocabulary(tmp_path: Path, vocabulary: Any, complaint: str) -> None:
    files = copy.deepcopy(FILES)
    files["everyday.json"]["vocabulary"] = vocabulary
    with pytest.raises(DataError, match=complaint):
        Grammar.load(write_lexicon(tmp_path, files))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no grammar here"):
        Grammar.load(tmp_path)


# --- the shipped lexicon


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="the lexicon is not there")
def test_the_shipped_lexicon_gives_ten_pairs_of_every_concept() -> None:
    shipped = Grammar.load()
    pairs = shipped.pairs(10 * len(shipped.concepts), 0)
    assert set(Counter(text_key(pair.concept) for pair in pairs).values()) == {10}
    assert not any(set(text) & set("{}<>|") for pair in pairs for text in (pair.unsafe, pair.safe or ""))
