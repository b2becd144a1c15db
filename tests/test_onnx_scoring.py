"""Scoring in ONNX Runtime: the numbers of the layers themselves, whatever the prompt's and the bank's size."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import PROMPTS, WIDTH, random_heads, random_mapping

from latentguard import LatentGuard
from latentguard.encoders.base import TokenStates
from latentguard.errors import EncoderError
from latentguard.lite.heads import evidence_of_harm
from latentguard.mapping import ConceptQueries, MappingLayer, with_pooled
from latentguard.onnx_scoring import Evidence, OnnxScoring, _difference, agreeing_scoring

CPU = torch.device("cpu")
MAPPING, HEADS = random_mapping(), random_heads()
SWITCH = 15  # tokens from which on the output layer is applied to what each concept has gathered


def made_up(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States of a prompt of that many tokens, and their pooled state."""
    chosen = np.random.default_rng(seed)
    return chosen.standard_normal((length, WIDTH), dtype=np.float32), chosen.standard_normal(WIDTH, dtype=np.float32)


def queries(count: int, mapping: MappingLayer = MAPPING) -> ConceptQueries:
    return mapping.queries(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count)))


def attended(hidden: np.ndarray, pooled: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(1, len(hidden), dtype=torch.bool)
    return with_pooled(TokenStates(torch.from_numpy(hidden)[None], mask, torch.from_numpy(pooled)[None]))


@pytest.mark.parametrize("length", [1, SWITCH - 1, SWITCH, 60])
@pytest.mark.parametrize("count", [1, 768, 769, 9000])
def test_it_gives_what_the_layers_give(length: int, count: int) -> None:
    states, concepts = made_up(length), queries(count)
    found = OnnxScoring(MAPPING, HEADS, 1).evidence(concepts, *states)
    assert found is not None
    assert found.log_odds is not None
    z = attended(*states)
    assert found.scores == pytest.approx(MAPPING.score(concepts, *z)[0].numpy(), abs=1e-4)
    assert evidence_of_harm(found.log_odds[None]) == pytest.approx(HEADS.harm(*z).numpy(), abs=1e-4)


def test_a_mapping_layer_alone_has_no_log_odds() -> None:
    found = OnnxScoring(MAPPING, None, 1).evidence(queries(3), *made_up(4))
    assert found is not None
    assert found.log_odds is None


def test_any_number_of_threads_gives_the_same_at_once() -> None:
    scoring, concepts, prompts = OnnxScoring(MAPPING, HEADS, 2), queries(50), [made_up(3 + i, i) for i in range(40)]
    alone = scoring.single_threaded()
    assert alone.single_threaded() is alone
    assert scoring.single_threaded() is alone
    expected = [alone.evidence(concepts, *prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for one in (scoring, alone):
            together = list(pool.map(lambda prompt, one=one: one.evidence(concepts, *prompt), prompts))
            for found, known in zip(together, expected, strict=True):
                assert isinstance(found, Evidence)
                assert isinstance(known, Evidence)
                assert found.scores == pytest.approx(known.scores, abs=1e-6)


@pytest.mark.parametrize("wrong", [1e4, np.nan, np.inf])
def test_what_it_can_not_compute_exactly_it_leaves_to_the_layers(wrong: float) -> None:
    hidden, pooled = made_up(5)
    hidden[2] *= wrong
    assert OnnxScoring(MAPPING, HEADS, 1).evidence(queries(20), hidden, pooled) is None


class TestInAGuard:
    def test_a_processor_that_computes_something_else_is_found_out(
        self, headed_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        exact = OnnxScoring.evidence

        def off(scoring: OnnxScoring, *given: object) -> Evidence | None:
            found = exact(scoring, *given)  # type: ignore[arg-type]
            return None if found is None else Evidence(found.scores + np.float32(0.01), found.log_odds)

        expected = [verdict.score for verdict in headed_guard.check_batch(PROMPTS)]
        monkeypatch.setattr(OnnxScoring, "evidence", off)
        with caplog.at_level(logging.WARNING):
            slow = LatentGuard(
                headed_guard.encoder,
                headed_guard.mapping,
                headed_guard.concepts,
                headed_guard.policy,
                headed_guard.heads,
            )
        assert "off by 0.01 on this processor" in caplog.text
        assert [verdict.score for verdict in slow.check_batch(PROMPTS)] == pytest.approx(expected, abs=1e-4)

    def test_logits_beyond_a_trained_layers_are_scored_by_the_layer_itself(
        self, headed_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [verdict.score for verdict in headed_guard.check_batch(PROMPTS)]
        monkeypatch.setattr(OnnxScoring, "evidence", lambda *given: None)
        assert [verdict.score for verdict in headed_guard.check_batch(PROMPTS)] == pytest.approx(expected, abs=1e-4)

    def test_states_that_are_no_numbers_block(self, headed_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch) -> None:
        encode = headed_guard.encoder.encode_windows

        def broken(windows: object) -> TokenStates:
            states = encode(windows)  # type: ignore[arg-type]
            return replace(states, pooled=states.pooled * torch.nan)

        monkeypatch.setattr(headed_guard.encoder, "encode_windows", broken)
        with pytest.raises(EncoderError, match="not a finite number"):
            headed_guard.check(PROMPTS[0])

    def test_prompts_side_by_side_score_as_one_by_one(self) -> None:
        guard = LatentGuard.from_pretrained(threads=2)
        prompts = [*PROMPTS, " and ".join(PROMPTS * 9), *(" ".join(PROMPTS[:n]) for n in range(1, 5))]
        alone = np.array([[score for _, score in guard.check(prompt).scores(None)] for prompt in prompts])
        together = guard.check_batch(prompts)
        assert np.array([[score for _, score in verdict.scores(None)] for verdict in together]) == pytest.approx(
            alone, abs=1e-5
        )


def test_the_comparison_at_the_start_sees_a_wrong_prompt_head() -> None:
    others = random_heads(seed=5)
    scoring = OnnxScoring(MAPPING, others, 1)
    difference = _difference(scoring, MAPPING, HEADS, CPU)
    assert difference > 0.01
    assert agreeing_scoring(MAPPING, HEADS, 1, CPU) is not None
