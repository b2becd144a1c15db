"""The guard: every way of asking gives the same answer, nothing hides from it, and what it can't score it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import CONCEPTS, LONG_PROMPT, PROMPTS, WORDS, FailingEncoder, load_bert, random_mapping, save_tiny_weights

from latentguard import (
    ConceptEntry,
    ConceptError,
    EncoderError,
    LatentGuard,
    LatentGuardError,
    Policy,
    PolicyError,
    PromptError,
    WeightsError,
)
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.mapping import MappingLayer, MappingShape, with_pooled
from latentguard.records import MAX_PROMPT_CHARS

CLOSE = 1e-4


def plain_score(guard: LatentGuard, text: str) -> float:
    """A text's score by the plain formula: over all its windows and concepts the highest."""
    embeddings = guard.concepts.snapshot.embeddings
    with torch.no_grad():
        scores = [
            guard.mapping(embeddings, *with_pooled(guard.encoder.encode_windows([window]))).max()
            for window in guard.encoder.windows(text)
        ]
    return float(max(scores))


# --- one answer, however it is asked for


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG_PROMPT])
def test_a_score_is_the_formulas_highest_over_concepts_and_windows(tiny_guard: LatentGuard, prompt: str) -> None:
    assert tiny_guard.check(prompt).score == pytest.approx(plain_score(tiny_guard, prompt), abs=CLOSE)


def test_all_ways_of_asking_agree(tiny_guard: LatentGuard) -> None:
    prompts = [*PROMPTS, LONG_PROMPT]
    one_by_one = [tiny_guard.check(prompt) for prompt in prompts]
    for verdicts in (tiny_guard.check_batch(prompts), list(tiny_guard.stream(iter(prompts)))):
        assert [v.concept for v in verdicts] == [v.concept for v in one_by_one]
        assert [v.decision for v in verdicts] == [v.decision for v in one_by_one]
        np.testing.assert_allclose([v.score for v in verdicts], [v.score for v in one_by_one], atol=CLOSE)
    np.testing.assert_allclose(tiny_guard.score(prompts), [v.score for v in one_by_one], atol=CLOSE)


def test_with_the_embedded_encoder_a_batch_equals_one_by_one_bit_for_bit(default_guard: LatentGuard) -> None:
    prompts = [*PROMPTS, LONG_PROMPT, "a"]
    assert default_guard.score(prompts).tolist() == [default_guard.check(prompt).score for prompt in prompts]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join), min_size=1, max_size=8))
def test_verdicts_come_in_the_order_of_the_prompts(tiny_guard: LatentGuard, prompts: list[str]) -> None:
    verdicts = tiny_guard.check_batch(prompts)
    assert [verdict.prompt for verdict in verdicts] == prompts
    for verdict in verdicts:
        assert verdict.score == pytest.approx(tiny_guard.check(verdict.prompt).score, abs=CLOSE)


def test_scores_are_float32_one_for_each_prompt(tiny_guard: LatentGuard) -> None:
    scores = tiny_guard.score(PROMPTS)
    assert scores.dtype == np.float32
    assert scores.shape == (len(PROMPTS),)


def test_no_prompts_give_no_verdicts(tiny_guard: LatentGuard) -> None:
    assert tiny_guard.check_batch([]) == []
    assert tiny_guard.score([]).shape == (0,)


def test_a_prompt_is_blocked_from_the_threshold_on(tiny_guard: LatentGuard) -> None:
    score = tiny_guard.check(PROMPTS[0]).score
    for threshold, blocked in ((score, True), (score + 0.01, False), (score - 0.01, True)):
        tiny_guard.policy = Policy(threshold)
        assert tiny_guard.check(PROMPTS[0]).blocked is blocked


def test_a_stream_takes_prompts_a_few_hundred_at_a_time(tiny_guard: LatentGuard) -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield "a red wine"

    stream = tiny_guard.stream(prompts())
    assert taken == 0
    next(stream)
    assert 0 < taken <= 1_000


def test_a_concept_added_at_run_time_blocks_at_once(tiny_guard: LatentGuard) -> None:
    prompt = "sailing boat on the river"
    tiny_guard.policy = Policy(tiny_guard.check(prompt).score + 0.5)
    assert not tiny_guard.check(prompt).blocked
    tiny_guard.concepts.add("boat", threshold=-15)
    assert tiny_guard.check(prompt).concept == "boat"
    assert tiny_guard.check(prompt).blocked
    tiny_guard.concepts.remove("boat")
    assert not tiny_guard.check(prompt).blocked


def test_a_category_switched_off_does_not_block(tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = Policy(-100.0)
    assert tiny_guard.check("knife fight").blocked
    tiny_guard.policy = Policy(100.0, categories={"violence": -100.0})
    assert tiny_guard.check("knife fight").category == "violence"
    tiny_guard.policy = Policy(100.0, categories={"violence": None})
    assert not tiny_guard.check("knife fight").blocked
    assert tiny_guard.check("knife fight").category != "violence"


# --- nothing hides


@pytest.mark.parametrize("guard_name", ["tiny_guard", "default_guard"])
def test_harm_behind_the_first_window_counts_as_much_as_alone(guard_name: str, request: pytest.FixtureRequest) -> None:
    guard: LatentGuard = request.getfixturevalue(guard_name)
    long = "the cat and the dog in the garden of the old house on the river, " * 40 + "a naked woman and a knife fight"
    windows = guard.encoder.windows(long)
    assert len(windows) > 2
    tail = long[windows[-1].offsets[1][0] :]
    assert guard.check(long).score >= guard.check(tail).score - CLOSE


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 79), total=st.integers(80, 120))
def test_a_window_anywhere_in_a_prompt_counts(tiny_guard: LatentGuard, place: int, total: int) -> None:
    words = ["sunset"] * total
    words[place] = "bomb"
    prompt = " ".join(words)
    holding = [
        prompt[window.offsets[1][0] : window.offsets[-2][1]]
        for window in tiny_guard.encoder.windows(prompt)
        if any(prompt[a:b] == "bomb" for a, b in window.offsets)
    ]
    assert holding
    score = tiny_guard.check(prompt).score
    assert all(score >= tiny_guard.check(text).score - CLOSE for text in holding)


@pytest.mark.parametrize(
    "trick",
    [
        "n\u200ba\u200bk\u200be\u200bd woman",
        "ｎａｋｅｄ woman",
        "n\u0430k\u0435d wom\u0430n",
        "n4k3d woman",
        "n a k e d woman",
        "naked\u00a0 \t woman\n",
        "\u202enaked woman",
    ],
)
def test_a_tricky_spelling_scores_as_the_plain_one_and_is_shown_as_it_was_given(
    tiny_guard: LatentGuard, trick: str
) -> None:
    verdict, plain = tiny_guard.check(trick), tiny_guard.check("naked woman")
    assert verdict.score == plain.score
    assert verdict.prompt == trick


def test_a_tricky_spelling_of_a_concept_blocks_as_the_plain_one(tiny_guard: LatentGuard) -> None:
    tiny_guard.concepts.add("s a i l i n g b0at")
    tricky = dict(tiny_guard.check("sailing boat").scores(None))["s a i l i n g b0at"]
    tiny_guard.concepts.add("sailing boat")
    assert dict(tiny_guard.check("sailing boat").scores(None))["sailing boat"] == pytest.approx(tricky, abs=CLOSE)


# --- what can't be scored is refused


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("\u200b\u200d\ufeff", "empty"),
        ("\x00", "empty"),
        (None, "expected text, got NoneType"),
        (5, "expected text, got int"),
        (float("nan"), "expected text, got float"),
        (b"a red wine", "expected text, got bytes"),
        (["a red wine"], "expected text, got list"),
        ("secret " * (MAX_PROMPT_CHARS // 7 + 1), "100,002 characters; the limit is 100,000"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_an_error_that_names_its_place_and_not_its_text(
    tiny_guard: LatentGuard, prompt: Any, fault: str
) -> None:
    with pytest.raises(PromptError, match=f"^prompt 1: {fault}$"):
        tiny_guard.check(prompt)
    for ask in (tiny_guard.check_batch, tiny_guard.score):
        with pytest.raises(PromptError, match=f"^prompt 3: {fault}$"):
            ask(["a red wine", "sunset", prompt])


def test_the_place_of_a_bad_prompt_is_counted_over_the_whole_stream(tiny_guard: LatentGuard) -> None:
    stream = tiny_guard.stream(["sunset"] * 1_000 + [""])
    with pytest.raises(PromptError, match=r"^prompt 1001: empty$"):
        list(stream)


@pytest.mark.parametrize("ask", ["check_batch", "score"])
def test_one_text_is_not_taken_for_a_list_of_its_letters(tiny_guard: LatentGuard, ask: str) -> None:
    with pytest.raises(PromptError, match="expected a list of prompts, got one text"):
        getattr(tiny_guard, ask)("a red wine")


def test_an_empty_bank_is_an_error_and_lets_nothing_pass(tiny_encoder: HuggingFaceEncoder) -> None:
    guard = LatentGuard(tiny_encoder, random_mapping(), [], Policy(3.5))
    for ask in (guard.check, lambda prompt: guard.check_batch([prompt]), lambda prompt: guard.score([prompt])):
        with pytest.raises(ConceptError, match="the concept bank is empty"):
            ask("a red wine")


def test_a_policy_that_switches_all_concepts_off_is_an_error_and_lets_nothing_pass(
    tiny_encoder: HuggingFaceEncoder,
) -> None:
    concepts = [ConceptEntry("knife fight", "violence"), ConceptEntry("gun war", "violence")]
    guard = LatentGuard(tiny_encoder, random_mapping(), concepts, Policy(3.5, categories={"violence": None}))
    with pytest.raises(PolicyError, match="nothing would be blocked"):
        guard.check("a red wine")


@pytest.mark.parametrize("prompt", ["a bomb", "sunset " * 100 + "bomb", "bomb " + "sunset " * 100])
def test_a_prompt_whose_states_are_no_numbers_is_an_error_and_does_not_pass(tiny_folder: Path, prompt: str) -> None:
    encoder = load_bert(tiny_folder, FailingEncoder)
    assert isinstance(encoder, FailingEncoder)
    guard = LatentGuard(encoder, random_mapping(), ["knife fight"], Policy(1e6))
    encoder.fails = encoder.windows("bomb")[0].ids[1]
    assert not guard.check("sunset").blocked
    for ask in (guard.check_batch, guard.score):
        with pytest.raises(EncoderError, match="not a finite number"):
            ask(["sunset", prompt])


def test_a_layer_of_another_width_is_refused(tiny_encoder: HuggingFaceEncoder) -> None:
    with pytest.raises(WeightsError, match=r"states of width 48, the encoder hf:.* gives 32"):
        LatentGuard(tiny_encoder, MappingLayer(MappingShape(48)), CONCEPTS, Policy(3.5))


# --- from_pretrained


def test_a_guard_from_a_folder_is_the_one_that_was_saved(tiny_weights: Path, tiny_guard: LatentGuard) -> None:
    guard = LatentGuard.from_pretrained(tiny_weights)
    assert guard.policy == Policy(3.5)
    assert list(guard.concepts) == list(CONCEPTS)
    np.testing.assert_allclose(guard.score(PROMPTS), tiny_guard.score(PROMPTS), atol=CLOSE)


def test_concepts_and_threshold_can_be_given(tiny_weights: Path) -> None:
    guard = LatentGuard.from_pretrained(str(tiny_weights), concepts=["sailing boat"], threshold=-2)
    assert guard.concepts.names == ["sailing boat"]
    assert guard.policy == Policy(-2.0)


def test_a_whole_policy_can_be_given(tiny_weights: Path) -> None:
    policy = Policy(1.0, flag_margin=0.5, categories={"violence": None})
    assert LatentGuard.from_pretrained(tiny_weights, policy=policy).policy == policy


def test_a_loaded_encoder_can_be_given(tiny_weights: Path, tiny_encoder: HuggingFaceEncoder) -> None:
    assert LatentGuard.from_pretrained(tiny_weights, encoder=tiny_encoder).encoder is tiny_encoder


def test_another_encoder_than_the_weights_is_refused(tiny_weights: Path, tiny_folder: Path, tmp_path: Path) -> None:
    other = load_bert(Path(shutil.copytree(tiny_folder, tmp_path / "other")))
    with pytest.raises(WeightsError, match=r"these weights belong to the encoder hf:.*, not to hf:.*other"):
        LatentGuard.from_pretrained(tiny_weights, encoder=other)


def test_weights_whose_layer_does_not_fit_their_encoder_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = save_tiny_weights(tmp_path / "weights", f"hf:{tiny_folder}", mapping=random_mapping(width=48))
    with pytest.raises(WeightsError, match="width 48"):
        LatentGuard.from_pretrained(folder)


@pytest.mark.parametrize("threshold", ["abc", float("nan"), True])
def test_a_threshold_that_is_no_number_is_refused(tiny_weights: Path, threshold: Any) -> None:
    with pytest.raises(PolicyError, match="threshold"):
        LatentGuard.from_pretrained(tiny_weights, threshold=threshold)


def test_a_threshold_and_a_policy_together_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(PolicyError, match="not both"):
        LatentGuard.from_pretrained(tiny_weights, threshold=1.0, policy=Policy(1.0))


@pytest.mark.parametrize("name", ["no-such-weights", "./no/such/folder", "/no/such/folder", "~/weights"])
def test_weights_that_are_nowhere_are_refused_by_name(name: str) -> None:
    with pytest.raises(WeightsError, match=f"^{name}: no such weights") as caught:
        LatentGuard.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a weights folder"):
        LatentGuard.from_pretrained(tmp_path)


def test_an_unknown_encoder_in_the_weights_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "weights"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder": "word2vec"}))
    with pytest.raises(EncoderError, match="'word2vec': not an encoder"):
        LatentGuard.from_pretrained(folder)


@pytest.mark.parametrize("device", ["quantum", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(tiny_weights: Path, device: str) -> None:
    with pytest.raises(LatentGuardError):
        LatentGuard.from_pretrained(tiny_weights, device=device)
