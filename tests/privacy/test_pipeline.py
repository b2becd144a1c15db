"""Prompts go in private, pictures come out sealed, and nothing else does."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="private images need diffusers, of the extra of that name")
pytest.importorskip("open_clip", reason="the small pipelines' tokenizer is made of open_clip's vocabulary")
pytest.importorskip("presidio_analyzer", reason="personal data is found by Presidio, of the extra privacy")

from PIL import Image

from examples import tiny
from latentguard import LatentGuard, Policy
from latentguard.integrations.diffusers import guard_pipeline, unguard_pipeline
from privacy.attributes import AttributeSchema, Profile
from privacy.errors import CannotOpenError, DataError, PipelineError, PromptRefusedError
from privacy.keys import HYBRID, PrivateKey, SigningKey
from privacy.master_keys import LocalMasterKeys
from privacy.pii import PiiFinder, Replace, Scrubber, restore
from privacy.pipeline import PrivateImage, PrivateImagePipeline
from privacy.population import Population
from privacy.sealing import Opened, open_sealed
from privacy.vault import Vault
from privacy.withheld_logs import MESSAGE, withheld_logs

ROOT = Path(__file__).parents[2]
NURSE = "a nurse reading a letter"
LAKE = "a lake at dawn"
PHONE = "+49 30 23125000"
MAIL = "root@printer.local"
KEY = PrivateKey.generate()
PUBLIC = KEY.public_key()
SERVER = SigningKey.generate()
STEPS: dict[str, Any] = {"num_inference_steps": 1}
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

tiny.quiet()


class Watched:
    """The pipeline, and what it was given."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **given: Any) -> Any:
        self.calls.append(given)
        return self.pipe(**given)

    @property
    def prompts(self) -> list[str]:
        return [prompt for call in self.calls for prompt in call["prompt"]]


@dataclass(frozen=True)
class WordVerdict:
    prompt: str
    blocked: bool


class WordGuard:
    """Blocks prompts with one of its words, and remembers what it was asked."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.asked: list[str] = []

    def check_batch(self, prompts: Sequence[str], /) -> list[WordVerdict]:
        self.asked += prompts
        return [WordVerdict(prompt, any(word in prompt for word in self.words)) for prompt in prompts]


@pytest.fixture(scope="module")
def real_pipe() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture
def pipe(real_pipe: Any) -> Watched:
    return Watched(real_pipe)


@pytest.fixture(scope="module")
def scrubber() -> Scrubber:
    """Finds what needs no model."""
    return Scrubber(Replace(), PiiFinder(names=False))


@pytest.fixture
def private(pipe: Watched, scrubber: Scrubber) -> PrivateImagePipeline:
    return PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber)


def opened(image: PrivateImage, key: PrivateKey = KEY, signer: SigningKey | None = None) -> Opened:
    assert image.sealed is not None
    return open_sealed(image.sealed, key, signer=signer.public_key() if signer else None)


def words_of(text: str, *words: str) -> list[str]:
    """Those of the words that stand in the text."""
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]


def picture(image: PrivateImage) -> Image.Image:
    made = Image.open(io.BytesIO(opened(image).data))
    assert made.format == "PNG"
    return made


# --- prompts


def test_no_personal_data_reaches_the_pipeline(private: PrivateImagePipeline, pipe: Watched) -> None:
    image = private(f"{LAKE}, call {PHONE} or mail {MAIL}", negative_prompt=f"text {MAIL}", **STEPS)[0]
    assert pipe.prompts == [f"{LAKE}, call <PHONE_NUMBER> or mail <EMAIL_ADDRESS>"]
    assert pipe.calls[0]["negative_prompt"] == ["text <EMAIL_ADDRESS>"]
    assert image.pii == {"PHONE_NUMBER": 1, "EMAIL_ADDRESS": 2}
    assert image.prompt == pipe.prompts[0]


def test_by_default_names_become_words(pipe: Watched) -> None:
    if PiiFinder().note:
        pytest.skip("names need a spaCy model")
    image = PrivateImagePipeline(pipe, seal_to=PUBLIC)("portrait of Anna Schmidt", **STEPS)[0]
    assert pipe.prompts[0].endswith("portrait of a person")
    assert image.outcome == "added"
    assert image.pii == {"PERSON": 1}


def test_persons_get_a_profile_and_lakes_do_not(private: PrivateImagePipeline, pipe: Watched) -> None:
    nurse, lake, stated = private([NURSE, LAKE, "an old man"], **STEPS)
    assert [each.outcome for each in (nurse, lake, stated)] == ["added", "no person", "stated"]
    assert pipe.prompts[0].endswith(f", {NURSE}")
    assert nurse.profile is not None
    assert len(nurse.profile) == 6
    assert nurse.profile["eye colour"] in pipe.prompts[0]
    assert pipe.prompts[1:] == [LAKE, "an old man"]
    assert lake.profile is None


def test_what_users_state_is_replaced_if_asked(pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber, replace_stated=True)
    image = private("an old man in a boat", **STEPS)[0]
    assert image.outcome == "replaced"
    assert pipe.prompts[0].endswith("a person in a boat")


def test_every_image_of_a_prompt_has_a_profile_of_its_own(pipe: Watched, scrubber: Scrubber) -> None:
    schema = AttributeSchema.default()
    population = Population(schema, window=200, bound=0.3)
    drawn: list[Profile] = []

    def draw(rng: random.Random | None) -> Profile:
        drawn.append(population.draw(rng))
        return drawn[-1]

    private = PrivateImagePipeline(pipe, None, schema, seal_to=PUBLIC, scrubber=scrubber, draw=draw)
    images = private([NURSE, LAKE], num_images_per_prompt=3, negative_prompt=["dull", "loud"], **STEPS)
    assert [image.profile for image in images] == [*drawn, None, None, None]
    assert len(drawn) == 3
    assert pipe.prompts[3:] == [LAKE] * 3
    assert pipe.calls[0]["negative_prompt"] == ["dull"] * 3 + ["loud"] * 3
    assert len({opened(image).data for image in images}) == 6


# --- the guard


def test_the_guard_sees_what_was_written_and_what_is_drawn(pipe: Watched, scrubber: Scrubber) -> None:
    guard = WordGuard("nothing")
    private = PrivateImagePipeline(pipe, guard, seal_to=PUBLIC, scrubber=scrubber)
    image = private(f"{NURSE}, call {PHONE}", **STEPS)[0]
    assert guard.asked == [f"{NURSE}, call {PHONE}", pipe.prompts[0]]
    assert [verdict and verdict.prompt for verdict in image.verdicts] == [*guard.asked, None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "prompt"),
    [
        ("old man", "an old man in a boat"),  # replaced by a person
        (MAIL, f"{LAKE}, {MAIL}"),  # taken out
        ("eyes", NURSE),  # added by the profile
    ],
)
def test_a_rewrite_launders_no_prompt(word: str, prompt: str, pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, WordGuard(word), seal_to=PUBLIC, scrubber=scrubber, replace_stated=True)
    with pytest.raises(PromptRefusedError, match=r"^refused, of 2 prompts: 2$") as refused:
        private([LAKE, prompt], num_images_per_prompt=2, **STEPS)
    assert pipe.calls == []
    assert [each.blocked for each in refused.value.verdicts] == [False, True]


@pytest.mark.parametrize("word", ["bomb", "eyes"])
def test_a_skipped_prompt_leaves_its_place(word: str, pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, WordGuard(word), seal_to=PUBLIC, scrubber=scrubber, on_block="skip")
    first, second, third = private([LAKE, "a nurse with a bomb", LAKE], **STEPS)
    assert pipe.prompts == [LAKE, "", LAKE]
    assert (second.sealed, second.prompt, second.blocked) == (None, None, True)
    assert not first.blocked
    assert picture(third).size == (64, 64)
    assert private(["a nurse with a bomb"], **STEPS)[0].blocked
    assert len(pipe.calls) == 1


def test_an_empty_prompt_is_not_asked_about(pipe: Watched, scrubber: Scrubber) -> None:
    guard = WordGuard("bomb")
    image = PrivateImagePipeline(pipe, guard, seal_to=PUBLIC, scrubber=scrubber)(["", " "], **STEPS)[0]
    assert guard.asked == []
    assert image.verdicts == (None, None, None)


class Broken:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def check_batch(self, prompts: Sequence[str], /) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer", [[], [None], [True], [SimpleNamespace(blocked=None)], [WordVerdict("", False)] * 2, OSError()]
)
def test_a_guard_that_does_not_answer_is_no_permission(answer: Any, pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, Broken(answer), seal_to=PUBLIC, scrubber=scrubber)
    with pytest.raises((PipelineError, OSError)):
        private(LAKE, **STEPS)
    assert pipe.calls == []


@pytest.fixture
def latent_guard(real_pipe: Any) -> LatentGuard:
    guard = tiny.tiny_guard(real_pipe.text_encoder, real_pipe.tokenizer, [LAKE], "a naked woman and a knife fight")
    guard.policy = Policy(1000.0)
    return guard


def test_latentguard_is_a_guard(latent_guard: LatentGuard, pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, latent_guard, seal_to=PUBLIC, scrubber=scrubber)
    assert not private(NURSE, **STEPS)[0].blocked
    latent_guard.policy = Policy(-1000.0)
    with pytest.raises(PromptRefusedError):
        private(NURSE, **STEPS)
    assert len(pipe.calls) == 1


def test_a_guarded_pipeline_needs_its_guard_here_too(
    latent_guard: LatentGuard, real_pipe: Any, scrubber: Scrubber
) -> None:
    guard_pipeline(real_pipe, latent_guard, image_check=lambda images: [True] * len(images))
    try:
        with pytest.raises(PipelineError, match="give that guard"):
            PrivateImagePipeline(real_pipe, seal_to=PUBLIC, scrubber=scrubber)(LAKE, **STEPS)
        image = PrivateImagePipeline(real_pipe, latent_guard, seal_to=PUBLIC, scrubber=scrubber)(LAKE, **STEPS)[0]
        assert None not in image.verdicts
        assert image.blanked
        assert picture(image).getextrema() == ((0, 0),) * 3
        # A stricter guard on the pipeline has drawn something else: the prompt is not sealed as this image's.
        strict = tiny.tiny_guard(real_pipe.text_encoder, real_pipe.tokenizer, [LAKE], NURSE)
        strict.policy = Policy(-1000.0)
        guard_pipeline(real_pipe, strict, on_block="blank")
        image = PrivateImagePipeline(real_pipe, latent_guard, seal_to=PUBLIC, scrubber=scrubber)(LAKE, **STEPS)[0]
        assert image.blocked
        assert image.prompt is None
        assert not opened(image).info.made_from(LAKE)
    finally:
        unguard_pipeline(real_pipe)


# --- sealing


def test_the_owner_knows_what_was_drawn_and_by_whom(pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber, signing_key=SERVER, model="toy")
    image = private(NURSE, **STEPS)[0]
    info = opened(image, signer=SERVER).info
    assert (info.model, info.signer) == ("toy", SERVER.public_key())
    assert info.made_from(pipe.prompts[0])
    assert not info.made_from(NURSE)
    assert picture(image).size == (64, 64)


def test_each_of_several_recipients_opens_the_same_picture(pipe: Watched, scrubber: Scrubber) -> None:
    second, other = PrivateKey.generate(HYBRID), PrivateKey.generate()
    private = PrivateImagePipeline(pipe, seal_to=[PUBLIC, second.public_key()], scrubber=scrubber)
    for image in private([LAKE, NURSE], **STEPS):
        assert opened(image).data == opened(image, second).data
        with pytest.raises(CannotOpenError):
            opened(image, other)
    image = private(LAKE, seal_to=other.public_key(), **STEPS)[0]
    assert opened(image, other).data
    with pytest.raises(CannotOpenError):
        opened(image)


def test_the_picture_is_the_pipelines(private: PrivateImagePipeline, real_pipe: Any) -> None:
    import torch

    plain = real_pipe(LAKE, generator=torch.Generator().manual_seed(3), **STEPS).images[0]
    image = private(LAKE, generator=torch.Generator().manual_seed(3), **STEPS)[0]
    assert picture(image).tobytes() == plain.tobytes()


def test_what_cannot_be_sealed_is_not_drawn(pipe: Watched, scrubber: Scrubber) -> None:
    with pytest.raises(DataError, match="recipients"):
        PrivateImagePipeline(pipe, seal_to=[], scrubber=scrubber)
    with pytest.raises(DataError, match="model id"):
        PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber, model="m" * 256)
    with pytest.raises(DataError, match="recipients"):
        PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber)(LAKE, seal_to=[], **STEPS)
    assert pipe.calls == []


# --- the vault


def test_the_vault_restores_what_was_taken_out(
    pipe: Watched, scrubber: Scrubber, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vault = Vault(f"sqlite:///{tmp_path / 'vault.db'}", LocalMasterKeys([bytes(32)]))
    private = PrivateImagePipeline(pipe, seal_to=PUBLIC, scrubber=scrubber, vault=vault, keep_tokens=timedelta(days=1))
    prompt = f"{NURSE}, call {PHONE}, mail {MAIL}!"
    image, second = private(prompt, num_images_per_prompt=2, **STEPS)
    assert image.tokens is not None
    assert PHONE not in image.tokens
    assert restore(image.tokens, vault) == prompt
    assert second.tokens == image.tokens
    assert "<PHONE_NUMBER>" in pipe.prompts[0]
    vault.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [text for text in (PHONE, MAIL, NURSE, "PNG") if text.encode() in stored]


def test_a_refused_prompt_leaves_nothing_in_the_vault(pipe: Watched, scrubber: Scrubber) -> None:
    class Full:
        def store(self, kind: str, value: bytes, *, expires: Any = None) -> str:
            raise AssertionError("something was stored")

        def fetch(self, id: str) -> bytes:
            raise AssertionError

    private = PrivateImagePipeline(
        pipe, WordGuard("bomb"), seal_to=PUBLIC, scrubber=scrubber, vault=Full(), on_block="skip"
    )
    assert private([f"a bomb for {MAIL}", LAKE], **STEPS)[0].tokens is None


# --- what is refused


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_type": "np"},
        {"return_dict": False},
        {"prompt_2": "another"},
        {"negative_prompt_2": ["another"]},
        {"prompt_embeds": object()},
        {"negative_pooled_prompt_embeds": object()},
        {"denoiser_input_fields": {"prompt_embeds": object()}},
        {"cross_attention_kwargs": {"gligen": {"phrases": ["a name"]}}},
        {"state": object()},
        {"num_images_per_prompt": 0},
        {"num_images_per_prompt": 2, "image": [object()]},
        {"negative_prompt": ["a", "b"]},
        {"prompt": []},
        {"prompt": [3]},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_what_would_get_past_it_is_refused(
    arguments: dict[str, Any], private: PrivateImagePipeline, pipe: Watched
) -> None:
    with pytest.raises(PipelineError, match=next(iter(reversed(arguments))).split("_kwargs")[0] + "|phrases|embeds"):
        private(**{"prompt": LAKE, **STEPS, **arguments})
    assert pipe.calls == []


def test_options_are_checked() -> None:
    for options in ({"guard": len}, {"on_block": "blank"}, {"keep_tokens": timedelta(1)}):
        with pytest.raises(PipelineError, match=next(iter(options))):
            PrivateImagePipeline(print, seal_to=PUBLIC, **options)


@pytest.mark.parametrize("images", [None, [], ["a.png"], [Image.new("RGB", (1, 1))] * 2])
def test_a_pipeline_that_gives_no_pictures_is_refused(images: Any, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(lambda **given: SimpleNamespace(images=images), seal_to=PUBLIC, scrubber=scrubber)
    with pytest.raises(PipelineError, match="the pipeline didn't give"):
        private(LAKE)


# --- nothing is shown


def test_printing_shows_nothing(pipe: Watched, scrubber: Scrubber) -> None:
    private = PrivateImagePipeline(pipe, WordGuard("bomb"), seal_to=PUBLIC, scrubber=scrubber)
    image = private(f"{NURSE}, call {PHONE}", **STEPS)[0]
    assert image.profile is not None
    shown = f"{image} {image!r} {private!r}"
    assert "PHONE_NUMBER" in shown
    assert words_of(shown, "nurse", PHONE, *image.profile.values()) == []
    with pytest.raises(PromptRefusedError) as refused:
        private("a secret bomb", **STEPS)
    assert "secret" not in f"{refused.value} {refused.value!r}"


def test_the_text_of_logs_is_withheld_in_this_context_only() -> None:
    made: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made.append(record.getMessage())

    factory = logging.getLogRecordFactory()
    logger = logging.getLogger("some.library")
    handler = Kept()
    logger.addHandler(handler)
    try:
        with withheld_logs():
            logger.error("the prompt %s", "secret", exc_info=ValueError("secret"))
            other = threading.Thread(target=logger.error, args=("of another request",))
            other.start()
            other.join()
            with withheld_logs():
                pass
            logger.error("secret again")
        logger.error("afterwards")
    finally:
        logger.removeHandler(handler)
    assert made == [MESSAGE, "of another request", MESSAGE, "afterwards"]
    assert logging.getLogRecordFactory() is factory


def test_nothing_unsealed_is_written_or_logged(tmp_path: Path) -> None:
    command = [sys.executable, "-B", str(Path(__file__).with_name("watched_call.py"))]
    environment = {**OFFLINE, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    call, leak = (json.loads(done.stdout)[part] for part in ("call", "leak"))

    assert call["starts"] == b"\x89PNG".hex()
    assert call["pii"] == {"PHONE_NUMBER": 1}
    assert call["events"] == []
    assert call["bytes written"] < 1000  # threads wake each other with a few; the picture has ten thousand
    assert MESSAGE in call["log"]
    profile = call["prompt"].partition(", a nurse")[0].split(", ")
    assert len(profile) == 6
    assert words_of(call["log"] + done.stderr, "nurse", "lighthouse", "vermilion", "23125000", *profile) == []

    # And the watch is awake.
    assert [event.split()[:2] for event in leak["events"]] == [["open", "leak.png"]]
    assert leak["bytes written"] == 0 or leak["bytes written"] > 1000  # 0 where the system doesn't count
    assert words_of(leak["log"], "vermilion")


# --- what the docs say


def test_the_guides_ten_lines_run(real_pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "private-images.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    assert snippet is not None
    assert len([line for line in snippet[1].splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    named: dict[str, Any] = {"pipe": real_pipe, "guard": None}
    exec(snippet[1], named)
    assert Image.open("nurse.png").size == (64, 64)
    assert named["image"].pii == {"PHONE_NUMBER": 1}
    assert os.listdir() == ["nurse.png"]


def test_the_example_runs_offline(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "private_image.py"), "--tiny", "--steps", "1", "--output", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=OFFLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "picture.png").size == (64, 64)
    assert "attributes added, personal data removed: {'PHONE_NUMBER': 1}" in done.stdout
    assert (tmp_path / "owner.pem").stat().st_mode & 0o077 == 0
