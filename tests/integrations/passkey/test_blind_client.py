"""The key holder's side: concepts at run time, labels back to names, reasons back to words; and wrong keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import LONG_PROMPT, PROMPTS

from latentguard import ConceptError, EncoderError, LatentGuard, Policy, PromptError, WeightsError
from latentguard.integrations.passkey import BlindClient, BlindGuard
from privacy.errors import PrivacyError, TokenizerMismatchError, WrongPasskeyError
from privacy.passkey import PassKey


class TestConceptsAtRunTime:
    def test_an_added_concept_scores_as_in_the_plain_guard(
        self, server: BlindGuard, client: BlindClient, plain_guard: LatentGuard, headed_weights: Path
    ) -> None:
        plain = LatentGuard.from_pretrained(headed_weights, encoder=plain_guard.encoder)
        plain.concepts.add("old river bridge", category="violence", threshold=-40.0)
        server.add(client.encrypt_concept("old river bridge", category="violence", threshold=-40.0).as_json())
        theirs, ours = (
            plain.check("the river bridges are old"),
            server.check(client.encrypt("the river bridges are old")),
        )
        assert theirs.concept == client.reveal(ours.concept) == "old river bridge"
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert (ours.threshold, ours.decision) == (-40.0, theirs.decision)

    def test_adding_and_removing_changes_nothing(self, server: BlindGuard, client: BlindClient) -> None:
        before = server.check(client.encrypt(PROMPTS[0])).scores(None)
        server.add(client.encrypt_concept("old river bridge"))
        assert len(server.check(client.encrypt(PROMPTS[0])).scores(None)) == len(before) + 1
        server.remove(client.concept("Old  River bridge"))
        assert server.check(client.encrypt(PROMPTS[0])).scores(None) == before

    def test_a_concept_that_is_there_is_refused_however_it_is_written(
        self, server: BlindGuard, client: BlindClient
    ) -> None:
        with pytest.raises(ConceptError, match="already"):
            server.add(client.encrypt_concept("Knife  FIGHT"))
        with pytest.raises(ConceptError, match="no concept"):
            server.remove(client.concept("not there"))

    @pytest.mark.parametrize(("name", "problem"), [("", "empty"), ("  ", "empty"), ("knife " * 31, "longer than")])
    def test_a_name_that_is_none_is_refused(self, client: BlindClient, name: str, problem: str) -> None:
        with pytest.raises(ConceptError, match=problem):
            client.encrypt_concept(name)

    def test_a_client_without_the_table_of_words_makes_no_concepts(
        self, blind_folder: Path, passkey: PassKey, plain_guard: LatentGuard
    ) -> None:
        client = BlindClient(blind_folder, passkey, original=plain_guard.encoder.name)
        with pytest.raises(ConceptError, match="rarity"):
            client.encrypt_concept("knife")

    def test_a_category_is_switched_off_by_its_label(self, server: BlindGuard, client: BlindClient) -> None:
        server.guard.policy = Policy(0.5, categories={client.category("violence"): None})
        for prompt in PROMPTS:
            verdict = server.check(client.encrypt(prompt))
            assert verdict.category is None or client.reveal(verdict.category) != "violence"


class TestRevealing:
    def test_a_label_that_nobody_told_the_client_of_stays_one(self, client: BlindClient) -> None:
        assert client.reveal(client.concept("bomb")) == "bomb"
        with pytest.raises(ConceptError, match="was told of"):
            client.reveal("0" * 32)

    @pytest.mark.parametrize("prompt", [PROMPTS[4], LONG_PROMPT, "knives, fights and n4k3d women", "?!"])
    def test_reasons_are_the_plain_guards(
        self, prompt: str, server: BlindGuard, client: BlindClient, plain_guard: LatentGuard
    ) -> None:
        verdict, message = server.check(client.encrypt(prompt)), client.encrypt(prompt).as_json()
        parts = server.contributions(message, verdict.concept)
        ours = client.explain(prompt, verdict.concept, verdict.threshold, parts)
        theirs = plain_guard.check(prompt).explain()
        assert ours == theirs
        assert ours.margin == pytest.approx(verdict.margin, abs=1e-3)

    def test_reasons_of_another_prompt_are_refused(self, server: BlindGuard, client: BlindClient) -> None:
        message = client.encrypt(PROMPTS[1])
        parts = server.contributions(message, client.concept("bomb"))
        with pytest.raises(PromptError, match="aren't those of this prompt"):
            client.explain(PROMPTS[5], client.concept("bomb"), 0.5, parts)

    def test_reasons_for_an_unknown_label_are_refused(self, server: BlindGuard, client: BlindClient) -> None:
        with pytest.raises(ConceptError, match="no concept"):
            server.contributions(client.encrypt(PROMPTS[1]), "0" * 32)


class TestWhatAClientRefuses:
    @pytest.mark.parametrize("prompt", ["", "   ", "\u200b", None, 7, "a" * 100_001])
    def test_a_prompt_that_cant_be_scored(self, client: BlindClient, prompt: str) -> None:
        with pytest.raises(PromptError):
            client.encrypt(prompt)

    def test_a_wrong_passkey(self, blind_folder: Path, plain_guard: LatentGuard) -> None:
        with pytest.raises(WrongPasskeyError):
            BlindClient(blind_folder, PassKey.from_text("quite another passkey"), original=plain_guard.encoder.name)

    def test_the_tokenizer_of_another_model(self, blind_folder: Path, passkey: PassKey) -> None:
        with pytest.raises(TokenizerMismatchError):
            BlindClient(blind_folder, passkey)

    @pytest.mark.parametrize("original", ["nothing", "hf:", "open_clip:RN50:"])
    def test_an_encoder_that_cant_be_converted(self, blind_folder: Path, passkey: PassKey, original: str) -> None:
        with pytest.raises(EncoderError, match="can't be converted"):
            BlindClient(blind_folder, passkey, original=original)

    def test_a_folder_without_its_records(self, blind_folder: Path, passkey: PassKey, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no whole blind folder"):
            BlindClient(tmp_path, passkey)
        shutil.copy(blind_folder / "blind.json", tmp_path)
        with pytest.raises(PrivacyError):
            BlindClient(tmp_path, passkey)

    def test_two_small_files_are_all_it_needs(
        self, blind_folder: Path, passkey: PassKey, tmp_path: Path, plain_guard: LatentGuard, client: BlindClient
    ) -> None:
        (tmp_path / "encoder").mkdir()
        for name in ("blind.json", "encoder/passkey.json"):
            shutil.copy(blind_folder / name, tmp_path / name)
        small = BlindClient(tmp_path, passkey, original=plain_guard.encoder.name)
        assert small.encrypt(PROMPTS[0]) == client.encrypt(PROMPTS[0])
