"""Attribute schemas: what is drawn, which prompts get a profile, and what a user's own statements turn into."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare  # type: ignore[import-untyped]

from privacy.attributes import Attribute, AttributeSchema, PeopleWords, Profile, Value, shuffle
from privacy.errors import SchemaError

SCHEMA = AttributeSchema.default()
PUBLISHED = ["skin colour", "hair colour", "age group", "eye colour", "gender", "race"]

SMALL = """
languages: [en]
templates: {en: "{prompt} ({profile})"}
people:
  en: {words: "person sailor", except: [person of interest]}
attributes:
  - name: hat
    values:
      - {name: red, weight: 3, phrases: {en: red hat}}
      - {name: blue, phrases: {en: blue hat}}
    stated:
      en: {"red ... hat": "", "blue hat": hat}
  - name: coat
    ordered: true
    values:
      - {name: short, phrases: {en: short coat}}
      - {name: long, phrases: {en: long coat}}
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_schema_has_the_published_six() -> None:
    assert [attribute.name for attribute in SCHEMA.attributes] == PUBLISHED


def test_a_prompt_with_a_person_gets_a_whole_profile() -> None:
    shuffled = SCHEMA.shuffle("a doctor reading a book", random.Random(1))
    assert shuffled.outcome == "added"
    assert shuffled.prompt.endswith(", a doctor reading a book")
    assert shuffled.profile is not None
    assert list(shuffled.profile) == PUBLISHED
    assert shuffled.prompt.count(",") == len(PUBLISHED)


@pytest.mark.parametrize(
    "prompt",
    [
        "a mountain at dawn",
        "a man-made lake",
        "a snowman",
        "an empty street, no people",
        "a baby elephant",
        "",
        "Spider-man",
    ],
)
def test_a_prompt_without_a_person_is_left_alone(prompt: str) -> None:
    shuffled = SCHEMA.shuffle(prompt, random.Random(1), replace_stated=True)
    assert (shuffled.prompt, shuffled.profile, shuffled.outcome) == (prompt, None, "no person")


@pytest.mark.parametrize(
    ("prompt", "stated"),
    [
        ("a nurse with long blond hair", {"hair colour"}),
        ("an elderly fisherman", {"age group", "gender"}),
        ("a dark-skinned dancer", {"skin colour"}),
        ("a hazel-eyed singer", {"eye colour"}),
        ("an Asian student", {"race"}),
        ("a black young person", {"race", "age group"}),
        ("HER portrait", {"gender"}),
    ],
)
def test_what_the_user_states_stays_unless_asked(prompt: str, stated: set[str]) -> None:
    shuffled = SCHEMA.shuffle(prompt, random.Random(1))
    assert (shuffled.prompt, shuffled.profile, shuffled.outcome) == (prompt, None, "stated")
    assert shuffled.stated == stated


@pytest.mark.parametrize(
    ("prompt", "neutral"),
    [
        ("an old man and his dog", "a person and their dog"),
        ("A blonde woman in a black dress", "A person in a black dress"),
        ("portrait of an elderly Asian fisherman", "portrait of a fisher"),
        ("an actress in an hour of need", "an actor in an hour of need"),
        ("white shirt, black dress, blonde hair girl", "white shirt, black dress, hair person"),
        ("a sailor with blue eyes and {curly} red hair", "a sailor with eyes and {curly} hair"),
        ("un homme lit", "une personne lit"),
        ("eine alte Frau liest", "eine Person liest"),
    ],
)
def test_what_the_user_states_is_replaced_if_asked(prompt: str, neutral: str) -> None:
    shuffled = SCHEMA.shuffle(prompt, random.Random(1), replace_stated=True)
    assert shuffled.outcome == "replaced"
    assert shuffled.prompt.endswith(", " + neutral)
    assert shuffled.profile is not None


@given(st.sampled_from(["a man", "her blond hair", "an old", "sailor", "and", "Asian", "a boy,", "blue eyes", "with"]))
@settings(max_examples=9)
def test_after_replacing_nothing_is_stated_any_more(piece: str) -> None:
    rng = random.Random(piece)
    prompt = " ".join(["a person", piece, rng.choice(["an elderly lady", "dark skin", "he"]), piece])
    shuffled = SCHEMA.shuffle(prompt, rng, replace_stated=True, draw=lambda _: Profile({}))
    assert not SCHEMA.shuffle(shuffled.prompt, rng).stated


@pytest.mark.parametrize(
    ("prompt", "phrase"),
    [("eine Ärztin", "Haut"), ("une infirmière", "peau"), ("una enfermera", "piel"), ("a nurse", "skin")],
)
def test_the_profile_is_in_the_language_of_the_prompt(prompt: str, phrase: str) -> None:
    assert phrase in SCHEMA.shuffle(prompt, random.Random(1)).prompt


def test_profiles_are_uniform() -> None:
    rng = random.Random(7)
    drawn = [SCHEMA.draw(rng) for _ in range(4000)]
    for attribute in SCHEMA.attributes:
        counts = Counter(profile[attribute.name] for profile in drawn)
        possible = [value.name for value in attribute.values if value.weight > 0]
        assert set(counts) == set(possible)
        assert chisquare([counts[value] for value in possible]).pvalue > 0.001


def test_attributes_are_independent_of_each_other_and_of_the_prompt() -> None:
    rng = random.Random(8)
    prompts = ["a nurse", "two sailors on deck", "a CEO in an office", "an old Asian man"]
    rows = []
    for number in range(6000):
        profile = SCHEMA.shuffle(prompts[number % 4], rng, replace_stated=True).profile
        assert profile is not None
        rows.append({"prompt": prompts[number % 4], **profile})
    for name in PUBLISHED:
        for other in ("prompt", "race", "gender"):
            if name != other:
                seen = Counter((row[name], row[other]) for row in rows)
                names, others = sorted({a for a, _ in seen}), sorted({b for _, b in seen})
                assert chi2_contingency([[seen[a, b] for b in others] for a in names]).pvalue > 0.0005


def test_the_same_seed_gives_the_same_profile_whatever_the_prompt() -> None:
    one = SCHEMA.shuffle("a nurse", random.Random(3)).profile
    other = SCHEMA.shuffle("an old man shouting", random.Random(3), replace_stated=True).profile
    assert one == other


def test_without_a_seed_the_source_is_the_systems() -> None:
    profiles = {tuple((shuffle("a nurse").profile or {}).values()) for _ in range(20)}
    assert len(profiles) > 10


def test_children_are_never_drawn_by_default() -> None:
    rng = random.Random(5)
    assert all(SCHEMA.draw(rng)["age group"] != "child" for _ in range(500))


def test_neither_profile_nor_prompt_is_printed_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        shuffled = SCHEMA.shuffle("a nurse", random.Random(1))
    assert shuffled.profile is not None
    shown = repr(shuffled) + repr(shuffled.profile) + str(shuffled.profile) + caplog.text
    assert "nurse" not in shown
    assert not any(value in shown for value in shuffled.profile.values())


def test_a_schema_of_ones_own(tmp_path: Path) -> None:
    schema = AttributeSchema.from_yaml(_written(tmp_path, SMALL))
    rng = random.Random(2)
    assert schema.shuffle("a sailor", rng).prompt.startswith("a sailor (")
    assert schema.shuffle("a person of interest", rng).outcome == "no person"
    assert schema.shuffle("a sailor in a red woollen hat", rng, replace_stated=True).prompt.startswith(
        "a sailor in a woollen hat ("
    )
    hats = Counter(schema.draw(rng)["hat"] for _ in range(2000))
    assert chisquare([hats["red"], hats["blue"]], [1500, 500]).pvalue > 0.001
    assert schema.attribute("coat").ordered


def test_forbidden_combinations_are_never_drawn(tmp_path: Path) -> None:
    schema = AttributeSchema.from_yaml(_written(tmp_path, SMALL + "\nforbidden: [{hat: red, coat: long}]"))
    rng = random.Random(2)
    drawn = Counter(tuple(schema.draw(rng).values()) for _ in range(500))
    assert set(drawn) == {("red", "short"), ("blue", "short"), ("blue", "long")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight: 3", "weight: many", "attribute 'hat': value 1: weight: is not a number"),
        ("weight: 3", "weight: -1", "value 'red': the weight"),
        ("weight: 3", "weigth: 3", "unknown field 'weigth'"),
        ("name: hat", "name: coat", "same name"),
        ("{en: blue hat}", "{de: Hut}", "value 'blue': there is no phrase in the language 'en'"),
        ("languages: [en]", "languages: [en, de]", "the language 'de' is missing"),
        ("({profile})", "", "template of 'en'"),
        ("attributes:", "no: 1\nattributes:", "is not text; put it in quotes"),
        ("attributes:", "forbidden: [{hat: green, coat: long}]\nattributes:", "no value 'green'"),
        ("attributes:", "forbidden: [{hat: red}]\nattributes:", "fewer than two"),
        ("languages: [en]", "languages: [en", "is not valid YAML at line"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(SchemaError, match=message) as caught:
        AttributeSchema.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_schema_of_which_nothing_can_be_drawn_is_refused(tmp_path: Path) -> None:
    pairs = [f"{{hat: {hat}, coat: {coat}}}" for hat in ("red", "blue") for coat in ("short", "long")]
    with pytest.raises(SchemaError, match="every combination"):
        AttributeSchema.from_yaml(_written(tmp_path, f"{SMALL}\nforbidden: [{', '.join(pairs)}]"))


def test_a_term_with_two_replacements_is_refused() -> None:
    values = tuple(Value(name, {"en": name}) for name in "ab")
    with pytest.raises(SchemaError, match="two replacements"):
        AttributeSchema(
            (Attribute("x", values, {"en": {"old": ""}}), Attribute("y", values, {"en": {"Old": "aged"}})),
            {"en": PeopleWords(("person",))},
            {"en": "{prompt}, {profile}"},
        )


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(SchemaError, match="no language 'tlh'"):
        SCHEMA.shuffle("a nurse", language="tlh")
