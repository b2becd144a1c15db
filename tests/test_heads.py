"""The heads beside the mapping layer: one stated sum, which follows bank and policy, and survives a file."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import CONCEPTS, LONG_PROMPT, PROMPTS, random_heads, random_mapping

from latentguard import LatentGuard, Policy
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import WeightsError
from latentguard.heads import ConceptScale, Heads
from latentguard.mapping import with_pooled
from latentguard.naming import Naming
from latentguard.normalize import normalize
from latentguard.prompt_head import any_category
from latentguard.weights import WeightsConfig, load_weights, save_weights


def stated_score(guard: LatentGuard, prompt: str, place: int) -> float:
    """The formula of `latentguard.heads`, restated plainly for a prompt of one window and the concept at ``place``."""
    heads, bank = guard.heads, guard.concepts.snapshot
    assert heads is not None
    text = normalize(prompt)
    z, mask = with_pooled(guard.encoder.encode([text]))
    embedding = bank.embeddings[place : place + 1]
    with torch.no_grad():
        raw = float(guard.mapping(embedding, z, mask))
        direction = guard.mapping.query_output(guard.mapping.to_query(embedding))
        mean, log_spread = heads.scale.moments(direction / direction.norm())[0].tolist()
        log_odds = heads.prompt_head(z, mask)[0]
    known, category = heads.prompt_head.shape.categories, bank.concepts[place].category
    harm = float(log_odds[known.index(category)] if category in known else any_category(log_odds))
    assert bank.scoring is not None
    named = 0.0
    match = bank.scoring.matcher.match(bank.scoring.matcher.forms(text))
    weights = heads.combination
    for concept, grade, rarity in zip(match.concepts, match.grades, match.rarity, strict=True):
        if concept == place:
            of_grade = {Naming.PART: weights.part, Naming.FULL: weights.named, Naming.EXACT: weights.named}
            named = of_grade[Naming(int(grade))] * float(rarity)
    evidence = math.log1p(math.e * math.exp(harm))
    return weights.concept * (raw - mean) / math.exp(log_spread) + named + weights.prompt * evidence + weights.bias


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_score_is_the_stated_sum(headed_guard: LatentGuard, prompt: str) -> None:
    scores = dict(headed_guard.check(prompt).scores(None))
    for place, name in enumerate(headed_guard.concepts.names):
        assert scores[name] == pytest.approx(stated_score(headed_guard, prompt, place), abs=1e-3)


def test_a_prompt_that_spells_a_concept_scores_higher_with_it_than_without_the_lexical_head(
    headed_guard: LatentGuard,
) -> None:
    heads = headed_guard.heads
    assert heads is not None
    silent = replace(heads, combination=replace(heads.combination, part=0.0, named=0.0))
    without = LatentGuard(headed_guard.encoder, headed_guard.mapping, CONCEPTS, Policy(0.5), silent)
    prompt = "a bomb on the bridge"
    spelled, unspelled = (dict(guard.check(prompt).scores(None)) for guard in (headed_guard, without))
    assert spelled["bomb"] > unspelled["bomb"] + 0.1
    assert spelled["naked woman"] == pytest.approx(unspelled["naked woman"])


def test_adding_and_removing_a_concept_leaves_every_score_bit_for_bit(headed_guard: LatentGuard) -> None:
    before = [headed_guard.check(prompt).scores(None) for prompt in PROMPTS]
    headed_guard.concepts.add("sailing boat", category="shocking")
    headed_guard.concepts.remove("sailing boat")
    assert [headed_guard.check(prompt).scores(None) for prompt in PROMPTS] == before


def test_a_concept_added_later_scores_as_one_that_was_there_from_the_start(headed_guard: LatentGuard) -> None:
    rest, last = CONCEPTS[:-1], CONCEPTS[-1]
    later = LatentGuard(headed_guard.encoder, headed_guard.mapping, rest, headed_guard.policy, headed_guard.heads)
    later.concepts.extend([last])
    for prompt in PROMPTS:
        assert dict(later.check(prompt).scores(None)) == pytest.approx(
            dict(headed_guard.check(prompt).scores(None)), abs=1e-4
        )


def test_a_batch_gives_what_one_by_one_gives(headed_guard: LatentGuard) -> None:
    batch = headed_guard.check_batch([*PROMPTS, LONG_PROMPT])
    for verdict in batch:
        assert verdict.score == pytest.approx(headed_guard.check(verdict.prompt).score, abs=1e-4)


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG_PROMPT])
def test_the_parts_of_an_explanation_sum_to_the_margin(headed_guard: LatentGuard, prompt: str) -> None:
    verdict = headed_guard.check(prompt)
    assert verdict.explain().margin == pytest.approx(verdict.margin, abs=1e-3)


def test_the_words_that_spell_the_concept_are_credited_for_it(headed_guard: LatentGuard) -> None:
    verdict = replace(headed_guard.check("old city, a bomb"), concept="bomb")
    heads = headed_guard.heads
    assert heads is not None
    loud = replace(heads, combination=replace(heads.combination, named=50.0))
    louder = LatentGuard(headed_guard.encoder, headed_guard.mapping, CONCEPTS, Policy(0.5), loud)
    assert louder.check(verdict.prompt).explain().top(1)[0].text == "bomb"


def test_the_probability_is_the_score_as_log_odds(headed_guard: LatentGuard, tiny_guard: LatentGuard) -> None:
    verdict = headed_guard.check("a cat")
    assert verdict.probability == pytest.approx(1 / (1 + math.exp(-verdict.score)))
    assert tiny_guard.check("a cat").probability is None


def test_a_category_switched_off_has_no_part_in_the_harm_of_uncategorised_concepts(headed_guard: LatentGuard) -> None:
    prompt = "a bomb"
    before = dict(headed_guard.check(prompt).scores(None))["bomb"]
    headed_guard.policy = Policy(0.5, categories={"sexual": None, "shocking": None})
    after = dict(headed_guard.check(prompt).scores(None))["bomb"]
    assert after < before
    headed_guard.policy = Policy(0.5, categories={"sexual": None, "shocking": None, "violence": None})
    assert np.isfinite(headed_guard.check(prompt).score)


@pytest.fixture
def folder(tmp_path: Path, tiny_encoder: HuggingFaceEncoder) -> Path:
    """A weights folder with heads."""
    mapping, heads = random_mapping(), random_heads()
    config = WeightsConfig(
        tiny_encoder.name,
        mapping.shape,
        threshold=0.5,
        prompt_head=heads.prompt_head.shape,
        combination=heads.combination,
    )
    return save_weights(tmp_path / "weights", mapping, config, CONCEPTS, "# Random\n", heads)


def test_heads_that_were_written_are_read(folder: Path, headed_guard: LatentGuard) -> None:
    guard = LatentGuard.from_pretrained(folder)
    assert [guard.check(p).scores(None) for p in PROMPTS] == [headed_guard.check(p).scores(None) for p in PROMPTS]
    assert load_weights(folder).config.combination == random_heads().combination


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format": 1, "texts": -3, "stems": {}}', b"\xff"])
def test_a_lexicon_that_is_missing_or_damaged_is_refused_by_name(folder: Path, content: bytes | None) -> None:
    path = folder / "lexicon.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"lexicon\.json"):
        load_weights(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_head": None},
        {"combination": None},
        {"prompt_head": None, "combination": None},
        {"combination": {"concept": 1}},
        {"combination": {**vars(random_heads().combination), "prompt": math.nan}},
        {"prompt_head": {"width": 32, "hidden": 8}},
        {"prompt_head": {"width": 32, "hidden": 9, "categories": ["sexual", "shocking", "violence"]}},
        {"prompt_head": {"width": 31, "hidden": 8, "categories": ["sexual", "shocking", "violence"]}},
        {"layers": "last"},
    ],
)
def test_a_config_whose_heads_cannot_be_used_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError):
        load_weights(folder)


def test_a_folder_without_its_heads_tensors_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = save_weights(
        tmp_path / "plain", random_mapping(), WeightsConfig("x", random_mapping().shape, threshold=1.0), CONCEPTS, ""
    )
    shutil.copy(plain / "model.safetensors", folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = json.loads((plain / "config.json").read_text())["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="don't fit"):
        load_weights(folder)


def test_the_scale_is_linear_in_the_direction_of_a_concept(headed_guard: LatentGuard) -> None:
    heads = headed_guard.heads
    assert isinstance(heads, Heads)
    queries = headed_guard.concepts.snapshot.queries
    assert isinstance(heads.scale, ConceptScale)
    moments = heads.scale(queries)
    unit = queries.direction / queries.direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moments[:, 0], heads.scale.moments(unit)[:, 0])
    torch.testing.assert_close(moments[:, 1].log(), heads.scale.moments(unit)[:, 1])
