"""Guards for the small pipelines of `pipelines.py`: on their own text encoder, and on an encoder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CONCEPTS, load_bert, random_mapping
from pipelines import ALLOWED, BLOCKED, clip_tokenizer, sd

from examples import tiny
from latentguard import LatentGuard, Policy

tiny.quiet()


@pytest.fixture
def pipe() -> Any:
    """A small Stable Diffusion pipeline of its own for each test."""
    return sd()


@pytest.fixture(scope="session")
def clip_guard() -> LatentGuard:
    """A guard on a CLIP tower with the weights that the pipelines' `text_encoder` has, but an object of its own."""
    return tiny.tiny_guard(tiny.clip_text_encoder(), clip_tokenizer(), ALLOWED, BLOCKED)


@pytest.fixture(scope="session")
def text_guard(tiny_folder: Path) -> LatentGuard:
    """A guard on an encoder that no pipeline has."""
    encoder = load_bert(tiny_folder)
    for seed in range(200):
        guard = LatentGuard(encoder, random_mapping(encoder.width, seed), CONCEPTS, Policy(0.0))
        *others, worst = guard.score([*ALLOWED, BLOCKED]).tolist()
        if worst - max(others) > 1.0:
            guard.policy = Policy((worst + max(others)) / 2)
            return guard
    raise AssertionError("no random mapping layer tells the prompts apart")


@pytest.fixture(params=["own", "text"])
def any_guard(request: pytest.FixtureRequest, clip_guard: LatentGuard, text_guard: LatentGuard) -> LatentGuard:
    """Each of the two guards in turn."""
    return clip_guard if request.param == "own" else text_guard


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[LatentGuard], list[int]]:
    """Counts the windows that a guard encodes itself from now on."""

    def watch(guard: LatentGuard) -> list[int]:
        counted: list[int] = []
        encode = guard.encoder.encode_windows

        def counting(windows: Any) -> Any:
            counted.append(len(windows))
            return encode(windows)

        monkeypatch.setattr(guard.encoder, "encode_windows", counting)
        return counted

    return watch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
