"""Fixtures that all tests share: a small random guard, the default one, and a cache folder of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# The models here are so small that threads cost more than they gain, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# pytest-xdist gives its processes a narrower terminal.
os.environ["COLUMNS"] = "120"

import pytest
from hypothesis import settings
from models import CONCEPTS, load_bert, random_heads, random_mapping, save_bert, save_tiny_weights

from latentguard import LatentGuard, Policy
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.shipped import shipped_path

# The first example of a test pays for what is loaded at first use, and a busy machine for its neighbours.
settings.register_profile("latentguard", deadline=None)
settings.load_profile("latentguard")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of the whole run: the embedded model is unpacked once and not into the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTGUARD_CACHE", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the small encoder."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_encoder(tiny_folder: Path) -> HuggingFaceEncoder:
    """A random two-layer BERT, 32 wide, with windows of 32 tokens."""
    return load_bert(tiny_folder)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: HuggingFaceEncoder) -> Path:
    """A weights folder for `tiny_encoder`; not to be changed by a test."""
    return save_tiny_weights(tmp_path_factory.mktemp("weights"), tiny_encoder.name)


@pytest.fixture(scope="session")
def embedded_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder for the embedded encoder, which a process loads fastest; not to be changed by a test."""
    width = EmbeddedEncoder().width
    return save_tiny_weights(tmp_path_factory.mktemp("weights"), "minilm-l6", mapping=random_mapping(width))


@pytest.fixture
def tiny_guard(tiny_encoder: HuggingFaceEncoder) -> LatentGuard:
    """A guard on `tiny_encoder` with a bank that a test may change."""
    return LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(3.5))


@pytest.fixture(scope="session")
def default_guard() -> LatentGuard:
    """A guard on the embedded encoder, with the shipped weights where there are any; not to be changed by a test."""
    if (shipped_path("weights") / "minilm-l6" / "config.json").is_file():
        return LatentGuard.from_pretrained()
    encoder = EmbeddedEncoder()
    return LatentGuard(encoder, random_mapping(encoder.width), CONCEPTS, Policy(3.5))


@pytest.fixture
def headed_guard(tiny_encoder: HuggingFaceEncoder) -> LatentGuard:
    """As `tiny_guard`, with a prompt head and a lexical one beside the mapping layer."""
    return LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(0.5), random_heads())
