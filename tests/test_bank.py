"""The concept bank: what is added can be taken out without a trace, and changes are all or nothing."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import CONCEPTS, PROMPTS, WORDS, CountingEncoder, load_bert, random_mapping
from safetensors.torch import load_file, save_file

from latentguard import ConceptBank, ConceptEntry, ConceptError, LatentGuard, Policy, PolicyError, WeightsError
from latentguard.encoders.huggingface import HuggingFaceEncoder

NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(lambda words: "new " + " ".join(words))


@pytest.fixture
def bank(tiny_encoder: HuggingFaceEncoder) -> ConceptBank:
    return ConceptBank(tiny_encoder, random_mapping(), CONCEPTS)


def contents(bank: ConceptBank) -> tuple[Any, ...]:
    """All that a bank holds, in a form that compares bit for bit."""
    now = bank.snapshot
    tensors = (now.embeddings, now.queries.query, now.queries.direction)
    return now.concepts, *(tensor.numpy().tobytes() for tensor in tensors)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), data=st.data())
def test_adding_and_then_removing_changes_no_score_by_a_single_bit(
    tiny_guard: LatentGuard, names: list[str], data: st.DataObject
) -> None:
    before, held = tiny_guard.score(PROMPTS[:1]), contents(tiny_guard.concepts)
    for name in names:
        tiny_guard.concepts.add(name)
    for name in data.draw(st.permutations(names)):
        tiny_guard.concepts.remove(name)
    assert contents(tiny_guard.concepts) == held
    assert tiny_guard.score(PROMPTS[:1]).tobytes() == before.tobytes()


def test_adding_a_concept_encodes_that_one_alone(tiny_folder: Path) -> None:
    encoder = load_bert(tiny_folder, CountingEncoder)
    assert isinstance(encoder, CountingEncoder)
    bank = ConceptBank(encoder, random_mapping(), CONCEPTS)
    assert encoder.encoded == len(CONCEPTS)
    bank.add("sailing boat")
    assert encoder.encoded == len(CONCEPTS) + 1


def test_removing_a_concept_encodes_nothing(tiny_folder: Path) -> None:
    encoder = load_bert(tiny_folder, CountingEncoder)
    assert isinstance(encoder, CountingEncoder)
    bank = ConceptBank(encoder, random_mapping(), CONCEPTS)
    bank.remove("bomb")
    bank.remove_category("violence")
    assert encoder.encoded == len(CONCEPTS)


def test_a_concept_added_later_scores_as_one_that_was_there_from_the_start(tiny_encoder: HuggingFaceEncoder) -> None:
    later = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS[:2], Policy(3.5))
    for concept in CONCEPTS[2:]:
        later.concepts.add(concept.name, category=concept.category)
    whole = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(3.5))
    assert later.concepts.names == whole.concepts.names
    np.testing.assert_allclose(later.score(PROMPTS), whole.score(PROMPTS), atol=1e-4)


def test_names_are_kept_as_given_in_the_order_of_adding(bank: ConceptBank) -> None:
    bank.add("Sailing  Boat")
    assert bank.names == [*(concept.name for concept in CONCEPTS), "Sailing Boat"]
    assert list(bank)[-1] == ConceptEntry("Sailing Boat")
    assert len(bank) == len(CONCEPTS) + 1


@pytest.mark.parametrize("name", ["bomb", "BOMB", "  bomb ", "knife   Fight"])
def test_names_are_compared_without_case_and_spacing(bank: ConceptBank, name: str) -> None:
    assert name in bank
    with pytest.raises(ConceptError, match="already"):
        bank.add(name)
    bank.remove(name)
    assert name not in bank


@pytest.mark.parametrize("name", ["", "  \t\n", "\u200b", "\u2800"])
def test_a_concept_without_visible_text_is_refused(bank: ConceptBank, name: str) -> None:
    with pytest.raises(ConceptError, match="empty"):
        bank.add(name)


@pytest.mark.parametrize("concept", [None, 5, ConceptEntry(None), b"bomb"])  # type: ignore[arg-type]
def test_a_concept_that_is_not_text_is_refused(bank: ConceptBank, concept: Any) -> None:
    with pytest.raises(ConceptError, match=r"not (NoneType|int|bytes)"):
        bank.extend([concept])


def test_one_text_is_not_taken_for_a_list_of_its_letters(tiny_encoder: HuggingFaceEncoder, bank: ConceptBank) -> None:
    with pytest.raises(ConceptError, match="list"):
        bank.extend("wine")
    with pytest.raises(ConceptError, match="list"):
        LatentGuard(tiny_encoder, random_mapping(), "wine", Policy(3.5))


def test_a_concept_longer_than_the_window_is_refused_and_not_cut(bank: ConceptBank) -> None:
    with pytest.raises(ConceptError, match="longer than the encoder's window of 32 tokens"):
        bank.add("dog " * 40)


@pytest.mark.parametrize("threshold", ["abc", float("nan"), float("inf"), True, [1.0]])
def test_a_threshold_that_is_no_number_is_refused(bank: ConceptBank, threshold: Any) -> None:
    with pytest.raises(PolicyError, match="threshold of concept 'sailing boat'"):
        bank.add("sailing boat", threshold=threshold)


@pytest.mark.parametrize("bad", ["bomb", "", "new dog", ConceptEntry("cat", threshold=float("nan"))])
def test_extend_adds_all_concepts_or_none(bank: ConceptBank, bad: ConceptEntry | str) -> None:
    held = contents(bank)
    with pytest.raises((ConceptError, PolicyError)):
        bank.extend(["new dog", "new house", bad])
    assert contents(bank) == held


@pytest.mark.parametrize("name", ["sailing boat", "", "bom"])
def test_removing_what_is_not_there_is_an_error_that_changes_nothing(bank: ConceptBank, name: str) -> None:
    held = contents(bank)
    with pytest.raises(ConceptError, match="no concept"):
        bank.remove(name)
    assert contents(bank) == held


def test_removing_gives_back_the_concept(bank: ConceptBank) -> None:
    assert bank.remove("Naked Woman") == ConceptEntry("naked woman", "sexual")


def test_categories_are_listed_and_taken_out_whole(bank: ConceptBank) -> None:
    assert bank.categories == ["violence", "sexual", "shocking"]
    assert bank.remove_category("violence") == list(CONCEPTS[:2])
    assert bank.categories == ["sexual", "shocking"]
    with pytest.raises(ConceptError, match="violence"):
        bank.remove_category("violence")


def test_a_concepts_own_threshold_decides_for_it_alone(tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = Policy(1e6)
    assert not tiny_guard.check("sailing boat").blocked
    tiny_guard.concepts.add("sailing boat", threshold=-100)
    verdict = tiny_guard.check("sailing boat")
    assert verdict.blocked
    assert (verdict.concept, verdict.threshold) == ("sailing boat", -100)


def test_a_bank_that_cannot_be_encoded_is_refused(tiny_folder: Path) -> None:
    class Blind(HuggingFaceEncoder):
        def encode_windows(self, windows: Any) -> Any:
            states = super().encode_windows(windows)
            states.pooled.fill_(torch.nan)
            return states

    with pytest.raises(ConceptError, match="finite"):
        ConceptBank(load_bert(tiny_folder, Blind), random_mapping(), ["bomb"])


# --- files


def test_a_bank_that_was_saved_loads_the_same_without_encoding(
    bank: ConceptBank, tiny_folder: Path, tmp_path: Path
) -> None:
    bank.add("sailing boat", category="ships", threshold=2.5)
    bank.save(tmp_path / "bank.safetensors")
    encoder = load_bert(tiny_folder, CountingEncoder)
    assert isinstance(encoder, CountingEncoder)
    loaded = ConceptBank.load(tmp_path / "bank.safetensors", encoder, random_mapping())
    assert encoder.encoded == 0
    assert loaded.snapshot.concepts == bank.snapshot.concepts
    assert torch.equal(loaded.snapshot.embeddings, bank.snapshot.embeddings)
    torch.testing.assert_close(loaded.snapshot.queries.query, bank.snapshot.queries.query)


def test_an_empty_bank_can_be_saved_and_loaded(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> None:
    ConceptBank(tiny_encoder, random_mapping()).save(tmp_path / "bank.safetensors")
    assert len(ConceptBank.load(tmp_path / "bank.safetensors", tiny_encoder, random_mapping())) == 0


def test_a_bank_of_another_encoder_is_refused(
    bank: ConceptBank, tiny_encoder: HuggingFaceEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    described = {"format": "latentguard-bank-1", "encoder": "other", "concepts": "[]"}
    save_file(load_file(path), path, metadata=described)
    with pytest.raises(WeightsError, match="made with the encoder other, not hf:"):
        ConceptBank.load(path, tiny_encoder, random_mapping())


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_bank_is_refused(
    bank: ConceptBank, tiny_encoder: HuggingFaceEncoder, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"bank\.safetensors: not a readable concept bank"):
        ConceptBank.load(path, tiny_encoder, random_mapping())


@pytest.mark.parametrize("path", ["absent.safetensors", "."])
def test_what_is_no_file_is_no_bank(tiny_encoder: HuggingFaceEncoder, tmp_path: Path, path: str) -> None:
    with pytest.raises(WeightsError, match="not a readable concept bank"):
        ConceptBank.load(tmp_path / path, tiny_encoder, random_mapping())


@pytest.mark.parametrize(
    ("concepts", "fault"),
    [
        (None, "list of concepts"),
        ("{", "list of concepts"),
        ("[5]", "list of concepts"),
        ('[{"nom": "bomb"}]', "list of concepts"),
        ('[{"name": ""}]', "list of concepts"),
        ('[{"name": "bomb", "threshold": "high"}]', "list of concepts"),
        ('[{"name": "bomb"}, {"name": "war"}]', "embeddings for 2 concepts"),
    ],
)
def test_a_bank_whose_list_is_damaged_is_refused(
    tiny_encoder: HuggingFaceEncoder, tmp_path: Path, concepts: str | None, fault: str
) -> None:
    described = {"format": "latentguard-bank-1", "encoder": tiny_encoder.name}
    described |= {} if concepts is None else {"concepts": concepts}
    path = tmp_path / "bank.safetensors"
    save_file({"embeddings": torch.zeros(1, tiny_encoder.width)}, path, metadata=described)
    with pytest.raises(WeightsError, match=fault):
        ConceptBank.load(path, tiny_encoder, random_mapping())


def test_a_bank_with_numbers_that_are_not_finite_is_refused(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> None:
    described = {"format": "latentguard-bank-1", "encoder": tiny_encoder.name}
    described["concepts"] = json.dumps([asdict(ConceptEntry("bomb"))])
    path = tmp_path / "bank.safetensors"
    save_file({"embeddings": torch.full((1, tiny_encoder.width), torch.nan)}, path, metadata=described)
    with pytest.raises(WeightsError, match="not finite"):
        ConceptBank.load(path, tiny_encoder, random_mapping())


def test_a_safetensors_file_of_something_else_is_no_bank(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    save_file({"embeddings": torch.zeros(1, tiny_encoder.width)}, path)
    with pytest.raises(WeightsError, match="not a concept bank of this project"):
        ConceptBank.load(path, tiny_encoder, random_mapping())


# --- threads


def test_a_thread_that_scores_sees_the_bank_before_or_after_a_change_and_never_between(
    tiny_guard: LatentGuard,
) -> None:
    pairs = [("new dog", "new cat"), ("old boat", "old house")]
    with_one = {}
    for pair in pairs:
        tiny_guard.concepts.extend([ConceptEntry(name, "passing") for name in pair])
        with_one[pair] = tiny_guard.check(PROMPTS[0]).scores(None)
        tiny_guard.concepts.remove_category("passing")
    without = tiny_guard.check(PROMPTS[0]).scores(None)
    allowed = {tuple(scores) for scores in (without, *with_one.values())}
    faults: list[object] = []
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for pair in pairs:
                tiny_guard.concepts.extend([ConceptEntry(name, "passing") for name in pair])
                tiny_guard.concepts.remove_category("passing")

    def score() -> None:
        try:
            for _ in range(60):
                scores = tuple(tiny_guard.check(PROMPTS[0]).scores(None))
                if scores not in allowed:
                    faults.append(scores)
        except Exception as error:  # a thread's exception is lost unless it is handed over
            faults.append(error)

    changing = threading.Thread(target=change)
    scoring = [threading.Thread(target=score) for _ in range(2)]
    changing.start()
    for thread in scoring:
        thread.start()
    for thread in scoring:
        thread.join()
    stop.set()
    changing.join()
    assert faults == []
    assert tiny_guard.concepts.names == [concept.name for concept in CONCEPTS]


def test_concepts_added_by_several_threads_are_all_there(bank: ConceptBank) -> None:
    def add(word: str) -> None:
        bank.add(f"new {word}")

    threads = [threading.Thread(target=add, args=(word,)) for word in WORDS[:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bank.names) == sorted([concept.name for concept in CONCEPTS] + [f"new {w}" for w in WORDS[:8]])
    assert bank.snapshot.embeddings.shape[0] == len(bank.snapshot.queries) == len(bank)
