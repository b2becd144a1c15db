"""The lexical head: what a prompt spells out, where, and how rare it is in harmless prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard.errors import WeightsError
from latentguard.lexicon import Form, LexicalMatch, LexicalMatcher, NameForms, TextForms, WordRarity
from latentguard.naming import NameMatcher, Naming
from latentguard.normalize import normalize

HARMLESS = ["a clean room", "the clean streets of a town", "a town by the sea", "two dogs"]
RARITY = WordRarity.of(HARMLESS)
PROPER = ["Mickey Mouse", "McDonald's logo", "Coca-Cola", "Donald Trump", "Spider-Man", "Pikachu"]
NAMES = [
    "abuse", "verbal abuse", "hate speech", "hate crime", "redlining", "beat down", "I'll kill you", "sexism",
    "low class", "knives", "it", "copyright infringement", "f***ing", "drunk driving", "drive by shooting", "!!!",
]  # fmt: skip
WORDS = [
    "abuse", "abusive", "abused", "verbal", "verbally", "hate", "hateful", "speeches", "crime", "red", "line", "beat",
    "him", "down", "I'll", "kill", "you", "sexist", "low-class", "knife", "kn", "ives", "it", "its", "copyright",
    "infringing", "f****ing", "drinking", "driving", "drove", "by", "shootings", "mickey", "mouse", "trump",
    "spiderman", "Spider", "man", "the", "and", "\u0130stanbul", "Stra\u00dfe", "w" * 70,
]  # fmt: skip
names_of_banks = st.lists(st.sampled_from([*NAMES, *PROPER, "w" * 70]), max_size=12, unique=True)
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join).map(normalize)


def named(match: LexicalMatch) -> dict[int, int]:
    return dict(zip(match.concepts.tolist(), match.grades.tolist(), strict=True))


def found_in(matcher: LexicalMatcher, text: str) -> LexicalMatch:
    return matcher.match(matcher.forms(text))


def names_forms(names: Sequence[str]) -> list[NameForms]:
    return [NameForms.of(name, RARITY) for name in names]


def keyed(form: Form, text: str) -> str:
    return hashlib.blake2b(text.encode(), key=b"a key", person=form.encode(), digest_size=16).hexdigest()


def answer(matcher: LexicalMatcher, text: str) -> tuple[object, ...]:
    match = found_in(matcher, text)
    return match.concepts.tolist(), match.grades.tolist(), match.rarity.tolist(), match.spans(text)


def read(matcher: LexicalMatcher, text: str) -> dict[int, list[str]]:
    match = found_in(matcher, text)
    return {
        place: [text[start:end] for start, end in spans]
        for place, spans in zip(match.concepts.tolist(), match.spans(text), strict=True)
    }


class TestMatching:
    @given(names_of_banks, texts)
    def test_it_finds_what_the_name_matcher_finds(self, names: Sequence[str], text: str) -> None:
        expected = NameMatcher([normalize(name) for name in names]).find(text)
        expected = {place: naming for place, naming in expected.items() if names[place] != "w" * 70}
        found = named(found_in(LexicalMatcher.of(names, RARITY), text))
        assert {place: naming for place, naming in found.items() if names[place] != "w" * 70} == expected

    @given(names_of_banks, texts)
    def test_every_hit_has_a_place_in_the_text(self, names: Sequence[str], text: str) -> None:
        match = found_in(LexicalMatcher.of(names, RARITY), text)
        assert len(match.spans(text)) == len(match.concepts)
        for spans in match.spans(text):
            assert spans
            assert list(spans) == sorted(set(spans))
            assert all(text[start:end].strip() for start, end in spans)

    @pytest.mark.parametrize("text", ["", "a quiet morning", "?!"])
    def test_a_text_that_names_nothing_gives_empty_arrays(self, text: str) -> None:
        match = found_in(LexicalMatcher.of(["beheading"], RARITY), text)
        assert (len(match.concepts), len(match.grades), len(match.rarity), match.spans(text)) == (0, 0, 0, ())

    @pytest.mark.parametrize("names", [[], ["beheading"], ["beheading", "zebra"]])
    def test_the_arrays_have_the_same_types_with_and_without_hits(self, names: list[str]) -> None:
        match = found_in(LexicalMatcher.of(names, RARITY), "a beheading")
        assert (match.concepts.dtype, match.grades.dtype, match.rarity.dtype) == (np.int64, np.int8, np.float32)

    def test_a_name_of_very_long_words_is_found_as_it_stands(self) -> None:
        assert named(found_in(LexicalMatcher.of(["w" * 70], RARITY), "W" * 70)) == {0: Naming.EXACT}

    def test_a_name_is_normalised_as_the_prompt_is(self) -> None:
        assert named(found_in(LexicalMatcher.of(["n\u0430zi"], RARITY), normalize("n4zi"))) == {0: Naming.EXACT}

    def test_a_very_long_text_is_read_to_its_end(self) -> None:
        names = [f"{word} {other}" for word in WORDS[:20] for other in WORDS[20:40]]
        text = normalize(" ".join(["abuse of it"] * 4000 + WORDS))
        assert named(found_in(LexicalMatcher.of(names, RARITY), text)) == NameMatcher(names).find(text)


class TestProperNames:
    @pytest.mark.parametrize(
        ("text", "name", "naming"),
        [
            ("mickey mouse", "Mickey Mouse", Naming.EXACT),
            ("Mickey-Mouse's ears", "Mickey Mouse", Naming.EXACT),
            ("MickeyMouse", "Mickey Mouse", Naming.FULL),
            ("the McDonald's logo", "McDonald's logo", Naming.EXACT),
            ("McDonald\u2019s", "McDonald's logo", Naming.PART),
            ("McDonalds", "McDonald's logo", Naming.PART),
            ("a coca cola", "Coca-Cola", Naming.EXACT),
            ("CocaCola", "Coca-Cola", Naming.FULL),
            ("donald trump", "Donald Trump", Naming.EXACT),
            ("Trump", "Donald Trump", Naming.PART),
            ("spiderman", "Spider-Man", Naming.FULL),
            ("spider man", "Spider-Man", Naming.EXACT),
            ("Spider-Man's web", "Spider-Man", Naming.EXACT),
            ("p1kachu", "Pikachu", Naming.EXACT),
        ],
    )
    def test_a_name_added_at_run_time_is_found(self, text: str, name: str, naming: Naming) -> None:
        matcher = LexicalMatcher.of(NAMES, RARITY).extended(names_forms(PROPER))
        assert named(found_in(matcher, normalize(text))) == {len(NAMES) + PROPER.index(name): naming}


class TestSpans:
    @pytest.mark.parametrize(
        ("name", "text", "found"),
        [
            ("beheading", "Beheadings and a beheading", ["Beheadings", "beheading"]),
            ("hate speech", "speeches full of hate", ["speeches", "hate"]),
            ("sexism", "a sexist man", ["sexist"]),
            ("redlining", "the red line", ["red", "line"]),
            ("Spider-Man", "spiderman and Spider-Man", ["spiderman", "Spider", "Man"]),
            ("beat down", "the sun went down; they beat him down", ["beat", "down"]),
            ("McDonald's logo", "at McDonald's", ["McDonald"]),
            ("Donald Trump", "\u0130stanbul, Stra\u00dfe: Trump", ["Trump"]),
        ],
    )
    def test_the_words_that_name_a_concept_are_told(self, name: str, text: str, found: list[str]) -> None:
        assert read(LexicalMatcher.of([name], RARITY), text) == {0: found}


class TestKeyedForms:
    @given(names_of_banks, texts)
    def test_keyed_names_are_found_in_a_keyed_text_as_plain_ones_in_plain_text(
        self, names: Sequence[str], text: str
    ) -> None:
        plain = found_in(LexicalMatcher.of(names, RARITY), text)
        matcher = LexicalMatcher([name.mapped(keyed) for name in names_forms(names)])
        hidden = matcher.match(TextForms.of(text).mapped(keyed))
        assert named(hidden) == named(plain)
        assert (hidden.rarity.tolist(), hidden.words) == (plain.rarity.tolist(), plain.words)

    def test_of_the_words_nothing_is_left(self) -> None:
        name = NameForms.of("Donald Trump's redlining", RARITY).mapped(keyed)
        text = TextForms.of("a sexist redlined it").mapped(keyed)
        forms = [*name.stems, *name.exact, *name.families, name.anchor, name.joined]
        forms += [form for word in text.words for form in word[:3]] + [stem for _, stem in text.pairs]
        assert len(forms) == 3 + 3 + 3 + 1 + 1 + 4 * 3 + 3
        assert all(len(form) == 32 and set(form) <= set("0123456789abcdef") for form in forms)


class TestChangingBanks:
    @given(names_of_banks, texts, st.data())
    def test_an_extended_matcher_is_one_built_whole(self, names: Sequence[str], text: str, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(names)))
        extended = LexicalMatcher.of(names[:cut], RARITY).extended(names_forms(names[cut:]))
        assert answer(extended, text) == answer(LexicalMatcher.of(names, RARITY), text)

    @given(names_of_banks, texts)
    def test_adding_then_removing_changes_nothing(self, names: Sequence[str], text: str) -> None:
        matcher = LexicalMatcher.of(names, RARITY)
        before = answer(matcher, text)
        back = matcher.extended(names_forms(["verbal sexism", "trumpet line"])).rows(range(len(names)))
        assert answer(back, text) == answer(matcher, text) == before

    @given(names_of_banks.flatmap(st.permutations), texts, st.data())
    def test_rows_are_those_of_the_names_chosen(self, names: Sequence[str], text: str, data: st.DataObject) -> None:
        index = data.draw(st.permutations(range(len(names))))[: len(names) // 2]
        chosen = LexicalMatcher.of([names[place] for place in index], RARITY)
        assert answer(LexicalMatcher.of(names, RARITY).rows(index), text) == answer(chosen, text)


class TestRarity:
    def test_a_stem_that_no_text_has_is_rarest(self) -> None:
        assert RARITY.rarity("behead") == 1.0

    def test_rarity_falls_with_the_number_of_texts_that_have_a_stem(self) -> None:
        assert RARITY.rarity("clean") == pytest.approx(math.log(5 / 3) / math.log(5))
        assert WordRarity.of(["the sea", "The seas"]).rarity("sea") == 0.0

    def test_without_texts_every_stem_is_rarest(self) -> None:
        assert WordRarity.of([]).rarity("clean") == 1.0

    def test_a_match_tells_the_rarity_of_the_rarest_word_of_the_name(self) -> None:
        match = found_in(LexicalMatcher.of(["clean", "clean beheading", "a town"], RARITY), "a clean town, a beheading")
        assert match.concepts.tolist() == [1, 2]
        assert match.rarity.tolist() == pytest.approx([1.0, RARITY.rarity("town")])

    def test_a_name_that_is_one_very_common_word_is_a_hit_of_no_rarity(self) -> None:
        matcher = LexicalMatcher.of(["it"], WordRarity.of(["it rains", "it snows"]))
        match = found_in(matcher, "it is late")
        assert (named(match), match.rarity.tolist()) == ({0: Naming.EXACT}, [0.0])

    @given(st.lists(texts))
    def test_reading_what_was_written_gives_the_same(self, harmless: list[str]) -> None:
        rarity = WordRarity.of(harmless)
        again = WordRarity.from_bytes(rarity.as_bytes())
        assert again.as_bytes() == rarity.as_bytes()
        assert [again.rarity(word) for word in WORDS] == [rarity.rarity(word) for word in WORDS]
        assert all(0.0 <= rarity.rarity(word) <= 1.0 for word in WORDS)

    def test_the_file_leaves_out_stems_of_one_text(self) -> None:
        assert json.loads(RARITY.as_bytes()) == {
            "format": 1,
            "texts": 4,
            "stems": {"a": 3, "clean": 2, "the": 2, "town": 2},
        }

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"[]", "not a lexicon of format 1"),
            (b'{"format":2,"texts":4,"stems":{}}', "not a lexicon of format 1"),
            (b'{"format":1,"stems":{}}', "number of texts"),
            (b'{"format":1,"texts":-4,"stems":{}}', "number of texts"),
            (b'{"format":1,"texts":NaN,"stems":{}}', "number of texts"),
            (b'{"format":1,"texts":true,"stems":{}}', "number of texts"),
            (b'{"format":1,"texts":4,"stems":["a"]}', "no table"),
            (b'{"format":1,"texts":4,"stems":{"a":5}}', "the stem 'a'"),
            (b'{"format":1,"texts":4,"stems":{"a":1}}', "the stem 'a'"),
            (b'{"format":1,"texts":4,"stems":{"a":2.5}}', "the stem 'a'"),
        ],
    )
    def test_a_damaged_file_is_refused_with_what_is_wrong(self, content: bytes, problem: str) -> None:
        with pytest.raises(WeightsError, match=problem):
            WordRarity.from_bytes(content)
