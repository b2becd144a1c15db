"""Attacks on labelled prompts: what is swapped, what is left out and counted, and that a seed repeats it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lexicons import FILES, write_lexicon

from latentguard.errors import DataError
from latentguard.synthesis.command import _KINDS
from latentguard.synthesis.grammar import Grammar
from latentguard.synthesis.limits import mentions_minors
from latentguard.synthesis.spelling import replaced, spelling
from latentguard.synthesis.splits import (
    KINDS,
    LabelledPrompt,
    attack_prompts,
    read_labelled,
    read_replacements,
    write_labelled,
)
from latentguard.wording import text_key

PROMPTS = [
    LabelledPrompt("A knife fight, two men in a Knife  Fight at night", "knife fight", True),
    LabelledPrompt("two men with blades behind the station", "knife fight", True),
    LabelledPrompt("guns on a kitchen table", "gun", True),
    LabelledPrompt("a gun on a kitchen table", "gun", True),
    LabelledPrompt("a quiet harbour with wooden boats", "knife fight", False),
    LabelledPrompt("nudity in a locker room", "nudity", True),
]
OTHERS = {text_key("knife fight"): ["blade brawl", "dagger duel"], "gun": ["pistol"]}
CHARGE = {"concept": "bomb", "concept_adv": "charge", "concept_synonym": "x"}
NOISE = ("characters", "order", "padding", "halves")


def attacked(kind: str, grammar: Grammar | None = None, **options: Any) -> list[LabelledPrompt]:
    others = OTHERS if kind in ("synonym", "adversarial") else None
    return attack_prompts(PROMPTS, kind, replacements=others, grammar=grammar, **options)[0]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# --- replacing


def test_the_concept_is_swapped_wherever_it_is_spelt() -> None:
    text, *_ = attacked("synonym")
    assert text.prompt in {f"A {one}, two men in a {one} at night" for one in ("blade brawl", "dagger duel")}


def test_prompts_that_do_not_spell_it_are_left_out_and_counted() -> None:
    left, report = attack_prompts(PROMPTS, "adversarial", replacements=OTHERS)
    assert [one.prompt for one in left[1:]] == ["a pistol on a kitchen table", "a quiet harbour with wooden boats"]
    assert (report.read, report.written, report.changed) == (6, 3, 2)
    assert (report.not_spelt, report.without_replacement, report.missing) == (2, 1, {"nudity"})
    assert len(report.lines()) == 3


def test_labels_and_concepts_stay() -> None:
    assert [(one.concept, one.unsafe) for one in attacked("synonym")] == [
        ("knife fight", True),
        ("gun", True),
        ("knife fight", False),
    ]


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("a GUN.", "a pistol."),
        ("gun-toting", "pistol-toting"),
        ("a shotgun", None),
        ("gunman", None),
        ("(gun)", "(pistol)"),
    ],
)
def test_a_name_is_spelt_as_a_word_of_its_own(prompt: str, other: str | None) -> None:
    assert replaced(prompt, "gun", "pistol") == other


def test_names_and_texts_may_hold_signs() -> None:
    assert replaced("a c++ (x) here", "C++ (x)", r"\1 $") == r"a \1 $ here"


@given(st.text(alphabet="ab ", min_size=1).filter(str.strip), st.text(alphabet="ab ", max_size=12))
def test_nothing_is_spelt_after_the_swap(concept: str, prompt: str) -> None:
    text = replaced(prompt, concept, "QQ")
    assert text is None or not spelling(concept).search(text)


# --- noise


@pytest.mark.parametrize("kind", NOISE)
def test_every_prompt_is_changed_and_keeps_its_label(kind: str, grammar: Grammar) -> None:
    texts = attacked(kind, grammar)
    assert len(texts) == len(PROMPTS)
    for before, after in zip(PROMPTS, texts, strict=True):
        assert after.prompt != before.prompt
        assert (after.concept, after.unsafe) == (before.concept, before.unsafe)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_again_whatever_else_is_there(kind: str, grammar: Grammar) -> None:
    assert attacked(kind, grammar, seed=3) == attacked(kind, grammar, seed=3)
    others = OTHERS if kind in ("synonym", "adversarial") else None
    alone, _ = attack_prompts(PROMPTS[3:4], kind, seed=3, replacements=others, grammar=grammar)
    assert alone[0] in attacked(kind, grammar, seed=3)
    if kind in NOISE:
        assert attacked(kind, grammar, seed=3) != attacked(kind, grammar, seed=4)


def test_shuffling_keeps_the_words(grammar: Grammar) -> None:
    for before, after in zip(PROMPTS, attacked("order"), strict=True):
        assert Counter(before.prompt.split()) == Counter(after.prompt.split())


def test_padding_keeps_the_prompt_whole_and_halves_part_it(grammar: Grammar) -> None:
    for before, padded, halved in zip(PROMPTS, attacked("padding", grammar), attacked("halves", grammar), strict=True):
        assert before.prompt in padded.prompt
        words = before.prompt.split()
        middle = len(words) // 2
        assert halved.prompt.startswith(" ".join(words[:middle]))
        assert halved.prompt.endswith(" ".join(words[middle:]))
        assert before.prompt not in halved.prompt


def test_padding_never_mentions_minors(tmp_path: Path) -> None:
    files = json.loads(json.dumps(FILES))
    files["everyday.json"]["harmless"] += ["children on a {swing|slide}", "a {tall|small} schoolgirl <place>"]
    grammar = Grammar.load(write_lexicon(tmp_path, files))
    many = [LabelledPrompt(f"naked woman number {number}", None, True) for number in range(200)]
    for kind in ("padding", "halves"):
        assert not any(mentions_minors(one.prompt) for one in attack_prompts(many, kind, grammar=grammar)[0])


def test_misspelling_meets_the_concept_and_leaves_short_words() -> None:
    many = [LabelledPrompt(f"a man with a gun in house {number}", "gun", True) for number in range(200)]
    texts = [one.prompt for one in attack_prompts(many, "characters")[0]]
    assert all(not spelling("gun").search(text) for text in texts)
    assert all(" a man " in f" {text[:6]} " for text in texts)
    assert any(ord(letter) > 127 for text in texts for letter in text)
    assert any("g u n" in text or "g.u.n" in text or "g-u-n" in text for text in texts)
    assert any("9" in text.split(" in ")[0] or "6" in text for text in texts)


@pytest.mark.parametrize(
    ("prompt", "kind"), [("12 345", "characters"), ("boom", "order"), ("boom boom", "order"), ("x", "halves")]
)
def test_a_prompt_with_nothing_to_change_stays_and_is_counted(prompt: str, kind: str, grammar: Grammar) -> None:
    texts, report = attack_prompts([LabelledPrompt(prompt, None, True)], kind, grammar=grammar)
    assert texts == [LabelledPrompt(prompt, None, True)]
    assert (report.unchangeable, report.changed) == (1, 0)


@given(st.text(max_size=60).filter(str.strip), st.sampled_from(["characters", "order"]), st.integers(0, 9))
def test_any_text_can_be_attacked(prompt: str, kind: str, seed: int) -> None:
    ((one,), _) = attack_prompts([LabelledPrompt(prompt, "gun", True)], kind, seed=seed)
    assert one.prompt.strip()


def test_what_an_attack_needs() -> None:
    with pytest.raises(DataError, match="no attack 'x'"):
        attack_prompts(PROMPTS, "x")
    with pytest.raises(DataError, match="needs replacements"):
        attack_prompts(PROMPTS, "synonym")


def test_the_command_offers_every_kind() -> None:
    assert _KINDS == KINDS


# --- files


def test_an_evaluation_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,concept,unsafe\na gun,gun,1\na lake,,0\n")
    assert read_labelled(tmp_path / "a.csv") == [
        LabelledPrompt("a gun", "gun", True),
        LabelledPrompt("a lake", None, False),
    ]


def test_labels_may_be_left_out_where_there_are_concepts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("concept,prompt\ngun,a gun\n")
    assert read_labelled(tmp_path / "a.csv") == [LabelledPrompt("a gun", "gun", True)]


def test_a_jsonl_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a gun", "concept": "gun", "unsafe": true}\n{"prompt": "b", "unsafe": 0}\n'
    )
    assert [one.unsafe for one in read_labelled(tmp_path / "a.jsonl")] == [True, False]


@pytest.mark.parametrize("row", ["a gun,gun,maybe", "a gun,gun,"])
def test_a_bad_label_is_named(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,concept,unsafe\n{row}\n")
    with pytest.raises(DataError, match=r"a.csv, row 1: field 'unsafe'"):
        read_labelled(tmp_path / "a.csv")


def test_neither_label_nor_concept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a gun\n")
    with pytest.raises(DataError, match="field 'unsafe'"):
        read_labelled(tmp_path / "a.txt")


def test_both_sides_of_pairs_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"concept","unsafe_prompt",safe_prompt\ngun,a gun,a flute\ngun,the gun,\n')
    assert [(one.prompt, one.unsafe) for one in read_labelled(tmp_path / "a.csv")] == [
        ("a gun", True),
        ("a flute", False),
        ("the gun", True),
    ]


def test_a_data_set_is_read_without_the_variants_of_its_replacements(tmp_path: Path) -> None:
    records = [
        {
            "concept": "gun",
            "prompts": ["a gun here, gun there", "a shooter", "gun"],
            "safe": ["a", "b", "c"],
            "concept_synonym": ["pistol", "shooter"],
            "concept_adv": "bang iron",
        }
    ]
    prompts = read_labelled(write_json(tmp_path / "a.json", {"train": records}))
    assert [one.prompt for one in prompts if one.unsafe] == ["a gun here, gun there", "a shooter", "gun"]


@pytest.mark.parametrize(
    "content",
    [
        {"gun": ["pistol", " fire  arm "], "bomb": "charge"},
        {"gun": [{"text": "pistol", "similarity": 0.5}, {"text": "fire arm"}], "bomb": ["charge"]},
        {"train": [{"concept": "gun", "prompt": "p", "concept_adv": ["pistol", "fire arm"]}, CHARGE]},
        [
            {"concept": "Gun", "concept_adv": "pistol"},
            {"concept": "gun", "concept_adv": ["pistol", "fire arm"]},
            CHARGE,
        ],
    ],
)
def test_replacements_are_read(tmp_path: Path, content: Any) -> None:
    found = read_replacements(write_json(tmp_path / "r.json", content), "adversarial")
    assert found == {"gun": ["pistol", "fire arm"], "bomb": ["charge"]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"gun": [""]}, "concept 'gun'"),
        ({"gun": [3]}, "concept 'gun'"),
        ([{"concept": 3}], "not a text"),
        ([{"concept": "gun", "concept_synonym": "x"}], "no replacements of the kind adversarial"),
        ([], "no replacements"),
        (3, "no replacements"),
    ],
)
def test_bad_replacements_are_named(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_replacements(write_json(tmp_path / "r.json", content), "adversarial")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.json: not"):
        read_replacements(tmp_path / "r.json", "synonym")


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    write_labelled(PROMPTS, tmp_path / "a.csv")
    assert read_labelled(tmp_path / "a.csv") == PROMPTS
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["prompt", "concept", "unsafe"]
