"""A small guard with all three kinds of evidence, its blind twin, and both sides of the wire."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import CONCEPTS, PROMPTS, random_heads, random_mapping

from latentguard import LatentGuard
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.integrations.passkey import BlindClient, BlindGuard, blind
from latentguard.lexicon import WordRarity
from latentguard.weights import WeightsConfig, save_weights
from privacy.passkey import PassKey


@pytest.fixture(scope="session")
def passkey() -> PassKey:
    return PassKey.from_text("a passkey for tests only")


@pytest.fixture(scope="session")
def headed_weights(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: HuggingFaceEncoder) -> Path:
    """Weights for `tiny_encoder` with a prompt head and a lexical one; not to be changed by a test."""
    mapping, heads = random_mapping(), random_heads()
    config = WeightsConfig(
        tiny_encoder.name,
        mapping.shape,
        threshold=0.5,
        prompt_head=heads.prompt_head.shape,
        combination=heads.combination,
        training={"data": {"secret-source.csv": "0" * 64}},
    )
    return save_weights(tmp_path_factory.mktemp("headed"), mapping, config, CONCEPTS, "# Random\n", heads)


@pytest.fixture(scope="session")
def plain_guard(headed_weights: Path) -> LatentGuard:
    """The guard that reads text; not to be changed by a test."""
    return LatentGuard.from_pretrained(headed_weights)


@pytest.fixture(scope="session")
def blind_folder(tmp_path_factory: pytest.TempPathFactory, headed_weights: Path, passkey: PassKey) -> Path:
    """Its blind folder; not to be changed by a test."""
    return blind(headed_weights, tmp_path_factory.mktemp("blind") / "folder", passkey)


@pytest.fixture
def server(blind_folder: Path) -> BlindGuard:
    """The blind guard, with a bank that a test may change."""
    return BlindGuard.from_pretrained(blind_folder)


@pytest.fixture(scope="session")
def client(blind_folder: Path, passkey: PassKey, tiny_encoder: HuggingFaceEncoder) -> BlindClient:
    """The key holder's client, which knows the concepts."""
    return BlindClient(
        blind_folder, passkey, original=tiny_encoder.name, concepts=CONCEPTS, rarity=WordRarity.of(PROMPTS)
    )


@pytest.fixture(scope="session")
def shipped_folder(tmp_path_factory: pytest.TempPathFactory, passkey: PassKey) -> Path:
    """The shipped guard's blind folder; not to be changed by a test."""
    return blind(None, tmp_path_factory.mktemp("shipped") / "folder", passkey)
