"""Each class of pipeline that is guarded draws privately, too."""

from __future__ import annotations

import io
from typing import Any

import pytest
from pipelines import ALLOWED, KINDS, MODULAR, Counter, denoiser

pytest.importorskip("presidio_analyzer", reason="personal data is found by Presidio, of the extra privacy")

from PIL import Image

from latentguard import LatentGuard, Policy
from latentguard.integrations.diffusers import guard_pipeline
from privacy.errors import PromptRefusedError
from privacy.keys import PrivateKey
from privacy.pii import PiiFinder, Replace, Scrubber
from privacy.pipeline import PrivateImagePipeline
from privacy.sealing import open_sealed

ALL = {**KINDS, **MODULAR}
KEY = PrivateKey.generate()
MAIL = "root@printer.local"


@pytest.fixture(scope="module")
def scrubber() -> Scrubber:
    return Scrubber(Replace(), PiiFinder(names=False))


@pytest.fixture
def open_guard(text_guard: LatentGuard) -> LatentGuard:
    """A guard that lets everything pass, until its policy is changed."""
    return LatentGuard(text_guard.encoder, text_guard.mapping, ["knife fight"], Policy(1000.0))


@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize("name", ALL)
def test_each_class_draws_privately(name: str, guarded: bool, scrubber: Scrubber, open_guard: LatentGuard) -> None:
    kind = ALL[name]
    pipe = kind.make()
    if guarded:
        guard_pipeline(pipe, open_guard)
    given: dict[str, Any] = {**kind.call, "num_inference_steps": 2}
    twice = {**given, **{one: [kind.call[one]] * 2 for one in kind.lists}}
    private = PrivateImagePipeline(pipe, open_guard, seal_to=KEY.public_key(), scrubber=scrubber)
    images = private([f"{ALLOWED[2]}, {MAIL}"] * 2, **twice)
    for image in images:
        assert image.sealed is not None
        opened = open_sealed(image.sealed, KEY)
        assert Image.open(io.BytesIO(opened.data)).size == (64, 64)
        assert opened.info.made_from(image.prompt or "")
        assert (image.prompt or "").endswith(f"{ALLOWED[2]}, <EMAIL_ADDRESS>")
        assert (image.verdicts.pipeline is not None) is guarded
    assert len(images) == 2

    steps = Counter(denoiser(pipe))
    open_guard.policy = Policy(-1000.0)
    with pytest.raises(PromptRefusedError):
        private(ALLOWED[0], **given)
    assert steps.count == 0
