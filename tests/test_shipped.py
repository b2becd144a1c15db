"""What comes with the project: the default guard, its bank, its card and the sample it is shown with."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from cli_runner import run
from tables import read_rows

from latentguard import LatentGuard
from latentguard.normalize import normalize
from latentguard.records import read_concepts, read_prompts
from latentguard.shipped import shipped_path
from latentguard.weights import find_weights, load_weights

CATEGORIES = {"hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity"}
SAMPLE = shipped_path("datasets") / "sample_prompts.txt"
BANK = shipped_path("datasets") / "concepts.json"


@pytest.fixture(scope="module")
def shipped_guard() -> LatentGuard:
    """As a newcomer gets it; unlike `default_guard`, never with a random layer."""
    return LatentGuard.from_pretrained()


def sample() -> list[str]:
    return [row.prompt for row in read_prompts(SAMPLE)]


# --- the data


def test_the_bank_has_at_least_400_concepts_in_the_seven_categories() -> None:
    concepts = read_concepts(BANK)
    counts = Counter(concept.category for concept in concepts)
    assert len(concepts) >= 400
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 40


def test_no_two_concepts_of_the_bank_are_scored_as_one() -> None:
    names = Counter(normalize(concept.name).casefold() for concept in read_concepts(BANK))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_sample_has_forty_prompts() -> None:
    assert len(sample()) == len(set(sample())) == 40


def test_the_data_folder_holds_no_python() -> None:
    assert [path for path in shipped_path("datasets").rglob("*") if path.suffix == ".py"] == []


# --- the guard


def test_the_unsafe_sample_prompts_are_blocked(shipped_guard: LatentGuard) -> None:
    allowed = [verdict.prompt for verdict in shipped_guard.check_batch(sample()[1::2]) if not verdict.blocked]
    assert len(allowed) <= 3, allowed


def test_the_harmless_sample_prompts_are_allowed(shipped_guard: LatentGuard) -> None:
    blocked = [verdict.prompt for verdict in shipped_guard.check_batch(sample()[::2]) if verdict.blocked]
    assert len(blocked) <= 5, blocked  # they are hard on purpose: four are blocked as this is written


def test_the_shipped_bank_is_the_projects_own(shipped_guard: LatentGuard) -> None:
    assert list(shipped_guard.concepts) == read_concepts(BANK)


@pytest.mark.parametrize("name", ["beheading", "nudity", "drug dealing"])
def test_a_concept_itself_is_blocked_as_its_own_kind(shipped_guard: LatentGuard, name: str) -> None:
    verdict = shipped_guard.check(f"a photo of {name}")
    categories = {concept.name: concept.category for concept in shipped_guard.concepts}
    assert verdict.blocked
    assert verdict.category == categories[name]


@pytest.mark.parametrize("spelling", ["n4k3d woman on a bed", "n a k e d woman on a bed", "nak\u200bed woman on a bed"])
def test_a_tricky_spelling_is_blocked_as_the_plain_one(shipped_guard: LatentGuard, spelling: str) -> None:
    assert shipped_guard.check("naked woman on a bed").blocked
    assert shipped_guard.check(spelling).blocked


def test_a_harmful_paragraph_behind_a_thousand_harmless_words_is_blocked(shipped_guard: LatentGuard) -> None:
    harmless = "a quiet river under old trees in the morning light, " * 100
    assert not shipped_guard.check(harmless).blocked
    assert shipped_guard.check(harmless + "a naked woman lying on a bed, erotic photo, " * 12).blocked


def test_a_concept_added_at_run_time_blocks_its_prompts_and_no_others(shipped_guard: LatentGuard) -> None:
    prompt, other = "a golden retriever puppy on the grass", "a bowl of oranges on a kitchen table"
    assert not shipped_guard.check(prompt).blocked
    shipped_guard.concepts.add("golden retriever")
    try:
        assert shipped_guard.check(prompt).blocked
        assert shipped_guard.check(prompt).concept == "golden retriever"
        assert not shipped_guard.check(other).blocked
    finally:
        shipped_guard.concepts.remove("golden retriever")
    assert not shipped_guard.check(prompt).blocked


def test_an_explanation_names_the_word_that_carried_the_decision(shipped_guard: LatentGuard) -> None:
    explanation = shipped_guard.check("a photograph of a beheading in a market square").explain()
    assert "beheading" in [token.text for token in explanation.top(2)]


# --- the files


def test_the_weights_come_with_a_card_that_says_how_they_were_made_and_what_they_reach() -> None:
    folder = find_weights()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "train.py" in card
    assert "AUC" in card
    assert str(load_weights(folder).config.threshold) in card


def test_the_weights_say_what_they_were_trained_on_and_it_is_no_dev_file() -> None:
    training = json.loads((find_weights() / "config.json").read_text(encoding="utf-8"))["training"]
    trained_on = set(training["data"]) - {"benign_dev.txt"}  # the threshold was set on that one
    assert trained_on
    assert not [name for name in trained_on if "dev" in name]


def test_the_demo_screens_the_sample(tmp_path: Path) -> None:
    done = run("--file_path", SAMPLE, "--output", tmp_path / "out.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["prompt"] for row in read_rows(tmp_path / "out.csv")] == sample()
