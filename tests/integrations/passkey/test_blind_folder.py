"""What a server gets: no key, no readable word, and whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from models import CONCEPTS, PROMPTS, WORDS, random_heads, random_mapping

from examples import tiny
from latentguard import EncoderError, LatentGuard, WeightsError
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.integrations.passkey import BlindClient, BlindGuard, blind
from latentguard.weights import WeightsConfig, find_weights, load_weights, save_weights
from privacy.errors import ConversionError, PrivacyError
from privacy.passkey import PassKey, convert


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def readable(folder: Path) -> set[str]:
    """The words of four letters or more in a folder's files: of weights, the names of the tensors."""
    found: set[str] = set()
    for name, content in files(folder):
        if name.endswith(".safetensors"):
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        found |= set(re.findall(r"[a-z]{4,}", re.sub(r"[0-9a-f]{16,}", "", content.decode().casefold())))
    return found


class TestContent:
    def test_no_concept_category_or_word_of_the_vocabulary_stands_in_any_file(self, blind_folder: Path) -> None:
        hidden = {concept.name for concept in CONCEPTS} | {concept.category for concept in CONCEPTS if concept.category}
        hidden |= {word for word in WORDS if len(word) > 3}
        assert {"knife fight", "violence", "sexual", "naked", "bomb"} <= hidden
        for name, content in files(blind_folder):
            found = {word for word in hidden if re.search(rb"(?i)\b" + re.escape(word.encode()) + rb"\b", content)}
            assert not found, name

    def test_what_is_readable_stands_in_every_such_folder_whatever_it_was_made_of(
        self, shipped_folder: Path, blind_folder: Path
    ) -> None:
        of_settings = {"embedded", "absolute", "position", "embedding", "gradient", "checkpointing", "mean"}
        assert readable(shipped_folder) - readable(blind_folder) <= of_settings
        assert {"concepts", "vocab", "window"} <= readable(shipped_folder)

    def test_no_name_of_the_shipped_bank_stands_in_any_file(self, shipped_folder: Path) -> None:
        names = {concept.name.casefold() for concept in load_weights(find_weights(None)).concepts}
        assert len(names) > 400
        for name, content in files(shipped_folder):
            if not name.endswith(".safetensors"):
                text = content.decode().casefold()
                assert not {one for one in names if one in text}, name

    def test_the_order_of_the_bank_tells_nothing(self, blind_folder: Path) -> None:
        labels = [concept["name"] for concept in json.loads((blind_folder / "concepts.json").read_text())]
        assert labels == sorted(labels)

    def test_of_the_training_nothing_is_told(self, blind_folder: Path) -> None:
        assert all(b"secret-source" not in content for _, content in files(blind_folder))

    def test_the_passkey_is_nowhere(self, blind_folder: Path, passkey: PassKey) -> None:
        assert all(passkey.secret not in content for _, content in files(blind_folder))

    def test_two_conversions_have_no_hash_in_common(
        self, blind_folder: Path, headed_weights: Path, tmp_path: Path, passkey: PassKey
    ) -> None:
        def hashes(folder: Path) -> set[str]:
            return set(re.findall(r'"([0-9a-f]{32})"', (folder / "blind.json").read_text()))

        other = blind(headed_weights, tmp_path / "other", passkey)
        assert len(hashes(other)) == len(hashes(blind_folder)) > 20
        assert hashes(other).isdisjoint(hashes(blind_folder))


class TestTheServersHalf:
    def test_it_reads_no_plain_text(self, server: BlindGuard) -> None:
        with pytest.raises(EncoderError, match="no tokenizer"):
            server.guard.check(PROMPTS[0])
        with pytest.raises(EncoderError, match="no tokenizer"):
            server.guard.concepts.add("knife")


class TestWholeness:
    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            (lambda folder: (folder / "blind.json").unlink(), "no whole blind folder"),
            (lambda folder: (folder / "blind.json").write_text("{"), "cut short"),
            (lambda folder: (folder / "blind.json").write_text("[]"), "format"),
            (lambda folder: (folder / "concepts.json").write_text("[]"), "concepts.json was changed"),
            (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
            (lambda folder: (folder / "encoder" / "model.safetensors").write_bytes(b"0"), "was changed"),
            (lambda folder: shutil.rmtree(folder / "encoder"), "encoder/config.json is missing"),
        ],
    )
    def test_a_damaged_folder_is_refused(
        self, blind_folder: Path, tmp_path: Path, damage: Callable[[Path], object], problem: str
    ) -> None:
        folder = shutil.copytree(blind_folder, tmp_path / "copy")
        damage(folder)
        with pytest.raises(WeightsError, match=problem):
            BlindGuard.from_pretrained(folder)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("limits", "rows"), 0),
            (("limits", "words"), 1),
            (("limits", "barred"), ["a"]),
            (("encoder", "window"), 2),
            (("encoder", "runtime"), "pickle"),
            (("encoder", "prefix"), None),
            (("concepts",), []),
            (("files",), [1]),
        ],
    )
    def test_a_record_that_makes_no_sense_is_refused(
        self, blind_folder: Path, tmp_path: Path, place: tuple[str, ...], value: object
    ) -> None:
        folder = shutil.copytree(blind_folder, tmp_path / "copy")
        content = json.loads((folder / "blind.json").read_text())
        inner = content if len(place) == 1 else content[place[0]]
        inner[place[-1]] = value
        (folder / "blind.json").write_text(json.dumps(content))
        with pytest.raises(WeightsError):
            BlindGuard.from_pretrained(folder)

    def test_a_folder_of_plain_weights_is_none(self, headed_weights: Path) -> None:
        with pytest.raises(WeightsError, match="no whole blind folder"):
            BlindGuard.from_pretrained(headed_weights)

    def test_what_is_there_is_not_overwritten(self, headed_weights: Path, blind_folder: Path, passkey: PassKey) -> None:
        before = dict(files(blind_folder))
        with pytest.raises(WeightsError, match="exists"):
            blind(headed_weights, blind_folder, passkey)
        assert dict(files(blind_folder)) == before

    def test_a_failure_leaves_nothing_behind(self, headed_weights: Path, tmp_path: Path, passkey: PassKey) -> None:
        half = tmp_path / "half"
        half.mkdir()
        with pytest.raises(ConversionError):
            blind(headed_weights, tmp_path / "blind", passkey, converted=half)
        assert list(tmp_path.iterdir()) == [half]


class TestConversionsMadeBefore:
    def test_weights_go_with_a_conversion_of_their_encoder(
        self, headed_weights: Path, tiny_folder: Path, plain_guard: LatentGuard, tmp_path: Path, passkey: PassKey
    ) -> None:
        convert(tiny_folder, tmp_path / "converted", passkey, transform="none")
        folder = blind(headed_weights, tmp_path / "blind", passkey, converted=tmp_path / "converted")
        client = BlindClient(folder, passkey, original=plain_guard.encoder.name)
        verdict = BlindGuard.from_pretrained(folder).check(client.encrypt(PROMPTS[4]))
        assert verdict.score == pytest.approx(plain_guard.check(PROMPTS[4]).score, abs=1e-5)

    def test_a_conversion_that_changes_the_states_needs_weights_of_its_own(
        self, headed_weights: Path, tiny_folder: Path, tmp_path: Path, passkey: PassKey
    ) -> None:
        convert(tiny_folder, tmp_path / "converted", passkey, transform="glide", carry=False)
        with pytest.raises(WeightsError, match="train them over it"):
            blind(headed_weights, tmp_path / "blind", passkey, converted=tmp_path / "converted")

    def test_another_passkey_than_the_conversions_is_refused(
        self, headed_weights: Path, tiny_folder: Path, tmp_path: Path, passkey: PassKey
    ) -> None:
        convert(tiny_folder, tmp_path / "converted", PassKey.from_text("quite another passkey"), transform="none")
        with pytest.raises(PrivacyError, match="passkey"):
            blind(headed_weights, tmp_path / "blind", passkey, converted=tmp_path / "converted")


def test_a_map_carried_through_a_clip_tower_leaves_the_scores(tmp_path: Path, passkey: PassKey) -> None:
    tiny.clip_text_encoder().save_pretrained(tmp_path / "clip")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "clip")
    layers = (1, 3)
    encoder = HuggingFaceEncoder(str(tmp_path / "clip"), device=torch.device("cpu"), layers=layers)
    mapping, heads = random_mapping(encoder.width), random_heads(encoder.width)
    config = WeightsConfig(
        encoder.name,
        mapping.shape,
        threshold=0.5,
        layers=layers,
        prompt_head=heads.prompt_head.shape,
        combination=heads.combination,
    )
    weights = save_weights(tmp_path / "weights", mapping, config, CONCEPTS, "# Random\n", heads)
    folder = blind(weights, tmp_path / "blind", passkey, transform="orthogonal")
    client = BlindClient(folder, passkey, original=encoder.name)
    plain = LatentGuard.from_pretrained(weights, encoder=encoder).check_batch(PROMPTS)
    hidden = BlindGuard.from_pretrained(folder).check_batch(client.encrypt(prompt) for prompt in PROMPTS)
    assert [v.score for v in hidden] == pytest.approx([v.score for v in plain], abs=1e-3)
    assert len({round(v.score, 2) for v in plain}) == len(PROMPTS)
