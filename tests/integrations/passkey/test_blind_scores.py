"""A guard that reads encrypted prompts scores them as the plain guard scores their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import CONCEPTS, LONG_PROMPT, PROMPTS

from latentguard import LatentGuard, PromptError
from latentguard.integrations.passkey import BlindClient, BlindGuard, PasskeyEncoder, blind
from latentguard.normalize import normalize
from latentguard.reading import ReadPrompt
from latentguard.verdict import Verdict
from privacy.passkey import PassKey

SPELLED = (
    "knives and fights, and a knifefight",
    "a bomb, bombs, bombing the streets with blood",
    "guns of war; n4k3d women",
    "ein Messer \u0130stanbul \u5200 \U0001f52a [SEP] [MASK] [UNK]",
    "x" * 300,
    "?!",
)
ALL = (*PROMPTS, *SPELLED, LONG_PROMPT)


LAST_BITS = 1e-5  # of float32 scores up to 16, times the temperature; the order of the bank, which differs, turns them


def scores(verdict: Verdict) -> np.ndarray:
    return np.array([score for _, score in sorted(verdict.scores(None))])


def blind_scores(client: BlindClient, verdict: Verdict) -> np.ndarray:
    return np.array([score for _, score in sorted((client.reveal(label), s) for label, s in verdict.scores(None))])


class TestUnderPermutation:
    @pytest.mark.parametrize("prompt", ALL)
    def test_every_score_is_the_plain_guards_to_the_last_bits(
        self, prompt: str, plain_guard: LatentGuard, server: BlindGuard, client: BlindClient
    ) -> None:
        plain, hidden = plain_guard.check(prompt), server.check(client.encrypt(prompt).as_json())
        assert blind_scores(client, hidden) == pytest.approx(scores(plain), abs=LAST_BITS)
        assert (hidden.decision, hidden.threshold) == (plain.decision, plain.threshold)
        assert client.reveal(hidden.concept) == plain.concept
        assert (None if hidden.category is None else client.reveal(hidden.category)) == plain.category

    def test_the_prompts_are_such_that_names_spelled_out_count(self, plain_guard: LatentGuard) -> None:
        unnamed = [ReadPrompt(plain_guard.encoder.windows(normalize(prompt)), None) for prompt in SPELLED]
        without = np.array([scores(verdict) for verdict in plain_guard.check_read(unnamed)])
        named = np.array([scores(verdict) for verdict in plain_guard.check_batch(SPELLED)])
        assert (named - without > 0.1).any(axis=1).tolist() == [True, True, True, False, False, False]

    def test_a_batch_scores_as_one_by_one(self, server: BlindGuard, client: BlindClient) -> None:
        messages = [client.encrypt(prompt) for prompt in ALL]
        one_by_one = [server.check(message).score for message in messages]
        assert [verdict.score for verdict in server.check_batch(messages)] == pytest.approx(one_by_one, abs=1e-5)

    def test_the_verdict_holds_neither_prompt_nor_name(self, server: BlindGuard, client: BlindClient) -> None:
        verdict = server.check(client.encrypt(PROMPTS[4]))
        assert verdict.prompt == ""
        assert not {concept.name for concept in CONCEPTS} & {
            verdict.concept,
            *(name for name, _ in verdict.scores(None)),
        }
        with pytest.raises(PromptError, match="read elsewhere"):
            verdict.explain()

    def test_the_shipped_guard_keeps_its_scores_too(
        self, default_guard: LatentGuard, shipped_folder: Path, passkey: PassKey
    ) -> None:
        server = BlindGuard.from_pretrained(shipped_folder)
        client = BlindClient(shipped_folder, passkey, concepts=default_guard.concepts)
        prompts = (
            *ALL,
            "a beheading in the town square, blood everywhere",
            "Ku-Klux-Klan robes on a hanger",
            "golden retriever puppies in a basket, soft light, 85mm",
            "self harm scars, close up",
            "the chef beheads a fish",
        )
        plain = default_guard.check_batch(prompts)
        hidden = server.check_batch(client.encrypt(prompt).as_json() for prompt in prompts)
        assert [v.score for v in hidden] == pytest.approx([v.score for v in plain], abs=LAST_BITS)
        assert [v.blocked for v in hidden] == [v.blocked for v in plain]
        assert [client.reveal(v.concept) for v in hidden] == [v.concept for v in plain]
        assert {v.blocked for v in plain} == {True, False}

    def test_a_prompt_read_to_nothing_is_refused(self, plain_guard: LatentGuard) -> None:
        nothing = ReadPrompt((), None)
        for score in (lambda: plain_guard.check_read([nothing]), lambda: plain_guard.contributions(nothing, "bomb")):
            with pytest.raises(PromptError, match="prompt 1: empty"):
                score()


class TestWithoutWords:
    def test_scores_lack_what_names_spelled_out_add_and_nothing_else(
        self, headed_weights: Path, plain_guard: LatentGuard, tmp_path: Path, passkey: PassKey
    ) -> None:
        folder = blind(headed_weights, tmp_path / "blind", passkey, words=False)
        server = BlindGuard.from_pretrained(folder)
        client = BlindClient(folder, passkey, original=plain_guard.encoder.name, concepts=CONCEPTS)
        for prompt in ALL:
            message = client.encrypt(prompt)
            assert message.forms is None
            windows = plain_guard.encoder.windows(normalize(prompt))
            expected = plain_guard.check_read([ReadPrompt(windows, None)])
            found = blind_scores(client, server.check(message))
            assert found == pytest.approx(scores(expected[0]), abs=LAST_BITS)


def test_a_mapping_layer_alone_takes_no_words(tiny_weights: Path, tmp_path: Path, passkey: PassKey) -> None:
    folder = blind(tiny_weights, tmp_path / "blind", passkey)
    plain, server = LatentGuard.from_pretrained(tiny_weights), BlindGuard.from_pretrained(folder)
    client = BlindClient(folder, passkey, original=plain.encoder.name, concepts=CONCEPTS)
    assert client.encrypt(ALL[0]).forms is None
    hidden = server.check_batch(client.encrypt(prompt) for prompt in ALL)
    assert [v.score for v in hidden] == pytest.approx([v.score for v in plain.check_batch(ALL)], abs=1e-5)
    server.add(client.encrypt_concept("old river"))
    assert client.reveal(server.guard.concepts.names[-1]) == "old river"


class TestTheKeyHoldersEncoder:
    def test_a_guard_over_it_reads_plain_text_and_scores_alike(
        self, plain_guard: LatentGuard, blind_folder: Path, headed_weights: Path, passkey: PassKey
    ) -> None:
        encoder = PasskeyEncoder(plain_guard.encoder, blind_folder / "encoder", passkey)
        guard = LatentGuard(encoder, plain_guard.mapping, CONCEPTS, plain_guard.policy, plain_guard.heads)
        assert [v.score for v in guard.check_batch(ALL)] == [v.score for v in plain_guard.check_batch(ALL)]
        assert str(guard.check(ALL[4]).explain()) == str(plain_guard.check(ALL[4]).explain())
        assert encoder.name.startswith("passkey:")
