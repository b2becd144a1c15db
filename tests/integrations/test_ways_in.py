"""Every way in which a pipeline can be told what to draw."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from models import random_mapping
from pipelines import (
    ALLOWED,
    BLOCKED,
    CALL,
    KINDS,
    MODULAR,
    T5,
    Counter,
    denoiser,
    flux,
    modular,
    sd,
    sd3,
    sdxl,
    seeded,
)

from examples import tiny
from latentguard import LatentGuard, Policy, PromptBlocked, PromptError, UnscreenedError
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.integrations.diffusers import guard_pipeline, unguard_pipeline
from latentguard.integrations.diffusers.screening import last_layer
from latentguard.processor_scoring import ProcessorScoring

# So long that the words at its end are beyond the 77 tokens that the pipelines read.
LONG = "a red wine on the table, " * 20


@pytest.mark.parametrize(
    ("made", "name"),
    [(sdxl, "prompt"), (sdxl, "prompt_2"), (sd3, "prompt_2"), (sd3, "prompt_3"), (flux, "prompt"), (flux, "prompt_2")],
)
def test_each_prompt_of_a_call_is_screened(made: Callable[[], Any], name: str, any_guard: LatentGuard) -> None:
    pipe = guard_pipeline(made(), any_guard)
    more = {} if made is sdxl else T5
    steps = Counter(denoiser(pipe))
    with pytest.raises(PromptBlocked) as refused:
        pipe(**{"prompt": ALLOWED[0], name: BLOCKED}, **CALL, **more)
    assert steps.count == 0
    assert refused.value.verdicts[0].prompt == BLOCKED
    assert pipe(**{"prompt": ALLOWED[0], name: ALLOWED[1]}, **CALL, **more).images.any()


def test_the_error_names_the_concept_and_never_quotes_the_prompt(pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard)
    with pytest.raises(PromptBlocked) as refused:
        pipe([ALLOWED[0], BLOCKED], **CALL)
    assert str(refused.value) == f"blocked, of 2 prompts: 2 ({any_guard.check(BLOCKED).concept})"
    assert BLOCKED not in repr(refused.value)
    assert [verdict.blocked for verdict in refused.value.verdicts] == [False, True]


def test_what_is_beyond_the_window_is_screened_as_well(pipe: Any, any_guard: LatentGuard) -> None:
    for seed in range(100):
        mapping = random_mapping(any_guard.encoder.width, seed)
        guard = LatentGuard(any_guard.encoder, mapping, any_guard.concepts, Policy(0.0))
        without, with_words = guard.score([LONG, LONG + BLOCKED]).tolist()
        if with_words - without > 0.1:
            break
    else:
        pytest.fail("no random mapping layer tells the prompts apart")
    guard.policy = Policy((without + with_words) / 2)
    guard_pipeline(pipe, guard)
    with pytest.raises(PromptBlocked):
        pipe(LONG + BLOCKED, **CALL)
    assert pipe(LONG, **CALL).images.any()


@pytest.mark.parametrize("trick", ["n4k3d", "n a k e d", "n\u200baked"])
def test_spelling_tricks_are_undone_before_the_prompt_is_scored(
    trick: str, pipe: Any, clip_guard: LatentGuard, encoded: Callable[[LatentGuard], list[int]]
) -> None:
    guard_pipeline(pipe, clip_guard)
    counted = encoded(clip_guard)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED.replace("naked", trick), **CALL)
    assert counted == [1]


def test_text_behind_a_forged_end_of_text_is_screened(pipe: Any, clip_guard: LatentGuard) -> None:
    prompt = f"{ALLOWED[0]} <|endoftext|> {BLOCKED}"
    expected = clip_guard.check(prompt).score
    guard_pipeline(pipe, clip_guard, on_block="blank")
    assert pipe(prompt, **CALL).verdicts[0].score >= expected - 1e-3


def test_an_empty_prompt_draws_whatever_comes_and_has_no_verdict(pipe: Any, any_guard: LatentGuard) -> None:
    plain = pipe(["", ALLOWED[0]], generator=seeded(), **CALL).images
    output = guard_pipeline(pipe, any_guard)(["", ALLOWED[0]], generator=seeded(), **CALL)
    assert output.verdicts[0] is None
    assert output.verdicts[1].prompt == ALLOWED[0]
    assert torch.equal(output.images, plain)


def test_what_cannot_be_scored_is_not_drawn(pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard, on_block="blank")
    steps = Counter(pipe.unet)
    with pytest.raises(PromptError):
        pipe("\u200b\u200b", **CALL)  # nothing that a reader sees, and tokens all the same
    assert steps.count == 0


def test_a_guard_that_fails_lets_nothing_pass(
    pipe: Any, any_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_pipeline(pipe, any_guard, on_block="blank")
    steps = Counter(pipe.unet)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(any_guard, "_window_scores", fail)  # of states
    monkeypatch.setattr(ProcessorScoring, "scores", fail)  # of texts
    with pytest.raises(RuntimeError, match="out of memory"):
        pipe(ALLOWED[0], **CALL)
    assert steps.count == 0


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_changes_what_is_drawn_and_not_what_is_screened(clip_skip: int, any_guard: LatentGuard) -> None:
    pipe = sdxl()
    plain = pipe(ALLOWED[0], clip_skip=clip_skip, generator=seeded(), **CALL).images
    guard_pipeline(pipe, any_guard)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, clip_skip=clip_skip, **CALL)
    output = pipe(ALLOWED[0], clip_skip=clip_skip, generator=seeded(), **CALL)
    assert torch.equal(output.images, plain)
    assert output.verdicts[0].score == pytest.approx(any_guard.check(ALLOWED[0]).score, abs=1e-3)


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (2,)])
def test_a_guard_on_several_layers_reads_them_and_leaves_the_pipelines_output_alone(
    layers: tuple[int, ...], pipe: Any, encoded: Callable[[LatentGuard], list[int]]
) -> None:
    guard = tiny.tiny_guard(tiny.clip_text_encoder(), pipe.tokenizer, ALLOWED, BLOCKED, layers)
    expected = [guard.check(prompt).score for prompt in (ALLOWED[0], BLOCKED)]
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    guard_pipeline(pipe, guard)
    counted = encoded(guard)
    output = pipe(ALLOWED[0], generator=seeded(), **CALL)
    with pytest.raises(PromptBlocked) as refused:
        pipe(BLOCKED, **CALL)
    assert torch.equal(output.images, plain)
    assert counted == []
    scores = [output.verdicts[0].score, refused.value.verdicts[0].score]
    assert scores == pytest.approx(expected, abs=1e-3)


def test_states_asked_for_by_others_are_still_given(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    ids = pipe.tokenizer(ALLOWED[0], return_tensors="pt").input_ids
    assert pipe.text_encoder(ids).hidden_states is None
    assert len(pipe.text_encoder(ids, output_hidden_states=True).hidden_states) == 4


# --- negative prompts


@pytest.mark.parametrize("made", [sd, sdxl, sd3, flux])
def test_negative_prompts_are_screened_only_on_request(made: Callable[[], Any], any_guard: LatentGuard) -> None:
    more: dict[str, Any] = {} if made in (sd, sdxl) else dict(T5)
    if made is flux:
        more |= {"true_cfg_scale": 3.0}
    pipe = guard_pipeline(made(), any_guard)
    output = pipe(ALLOWED[0], negative_prompt=BLOCKED, **CALL, **more)
    assert output.verdicts[0].prompt == ALLOWED[0]
    guard_pipeline(pipe, any_guard, screen_negative=True)
    steps = Counter(denoiser(pipe))
    with pytest.raises(PromptBlocked):
        pipe(ALLOWED[0], negative_prompt=BLOCKED, **CALL, **more)
    assert steps.count == 0
    assert pipe(ALLOWED[0], negative_prompt=ALLOWED[1], **CALL, **more).images.any()


def test_a_prompt_is_screened_even_if_it_is_the_negative_prompt_too(any_guard: LatentGuard) -> None:
    pipe = guard_pipeline(flux(), any_guard)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, negative_prompt=BLOCKED, true_cfg_scale=3.0, **CALL, **T5)


# --- embeddings


def embeddings(pipe: Any, prompt: str) -> dict[str, Any]:
    """What `encode_prompt` gives for a prompt, by the names under which a call takes it."""
    known = {"prompt": prompt, "device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    if "prompt_2" in inspect.signature(pipe.encode_prompt).parameters:
        known["prompt_2"] = None
    if isinstance(pipe, diffusers.StableDiffusion3Pipeline):
        known |= {"prompt_3": None, "max_sequence_length": 16}
    if isinstance(pipe, diffusers.FluxPipeline):
        known = {"prompt": prompt, "prompt_2": None, "max_sequence_length": 16}
        return dict(zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt(**known), strict=False))
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    if isinstance(pipe, diffusers.PixArtAlphaPipeline):
        known |= {"max_sequence_length": 16}
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        # Its default, "", doesn't go with embeddings.
        return {"negative_prompt": None, **dict(zip(names, pipe.encode_prompt(**known), strict=False))}
    return dict(zip(names, pipe.encode_prompt(**known), strict=False))


ENCODING = ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"]
ENCODING += ["PixArtAlphaPipeline"]


@pytest.mark.parametrize("name", ENCODING)
def test_encode_prompt_is_screened_when_called_directly_and_its_embeddings_are_known_again(
    name: str, any_guard: LatentGuard
) -> None:
    kind = KINDS[name]
    pipe = guard_pipeline(kind.make(), any_guard)
    with pytest.raises(PromptBlocked) as refused:
        embeddings(pipe, BLOCKED)
    assert refused.value.verdicts[0].prompt == BLOCKED
    given = embeddings(pipe, ALLOWED[0])
    output = pipe(**given, generator=seeded(), **CALL, **kind.call)
    assert output.verdicts[0].prompt == ALLOWED[0]
    unguard_pipeline(pipe)
    assert torch.equal(pipe(**given, generator=seeded(), **CALL, **kind.call).images, output.images)


@pytest.mark.parametrize("name", ENCODING)
def test_embeddings_of_unknown_origin_are_refused_unless_they_hold_the_states(
    name: str, any_guard: LatentGuard
) -> None:
    kind = KINDS[name]
    pipe = kind.make()
    given = embeddings(pipe, BLOCKED)
    guard_pipeline(pipe, any_guard)
    steps = Counter(denoiser(pipe))
    readable = isinstance(any_guard.encoder, HuggingFaceEncoder) and any_guard.encoder.name == "hf:tiny"
    holds_states = readable and name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    with pytest.raises(PromptBlocked if holds_states else UnscreenedError):
        pipe(**given, **CALL, **kind.call)
    assert steps.count == 0
    guard_pipeline(pipe, any_guard, allow_unscreened=True)
    if not holds_states:
        assert pipe(**given, **CALL, **kind.call).verdicts == (None,)


@pytest.mark.parametrize("made", [sd, sdxl])
def test_embeddings_score_no_less_than_the_text_they_were_made_from(
    made: Callable[[], Any], clip_guard: LatentGuard
) -> None:
    pipe = made()
    given = [embeddings(pipe, prompt) for prompt in ALLOWED]
    lenient = LatentGuard(
        clip_guard.encoder, clip_guard.mapping, clip_guard.concepts, replace(clip_guard.policy, threshold=1e3)
    )
    guard_pipeline(pipe, lenient)
    for prompt, one in zip(ALLOWED, given, strict=True):
        verdict = pipe(**one, **CALL).verdicts[0]
        assert verdict.score >= clip_guard.check(prompt).score - 1e-3
        assert verdict.prompt == ""
        with pytest.raises(PromptError, match="states alone"):
            verdict.explain()


def test_weighted_embeddings_are_what_is_screened(pipe: Any, clip_guard: LatentGuard) -> None:
    given = embeddings(pipe, ALLOWED[0])
    harmful = embeddings(pipe, BLOCKED)["prompt_embeds"]
    guard_pipeline(pipe, clip_guard)
    embeddings(pipe, ALLOWED[0])  # known to the guard, but not after the change
    with pytest.raises(PromptBlocked):
        pipe(**{**given, "prompt_embeds": 0.1 * given["prompt_embeds"] + 0.9 * harmful}, **CALL)
    with pytest.raises(PromptBlocked):  # longer than a window, as prompt weighting makes them
        pipe(
            prompt_embeds=torch.cat([given["prompt_embeds"], harmful], dim=1),
            negative_prompt_embeds=torch.cat([given["negative_prompt_embeds"]] * 2, dim=1),
            **CALL,
        )


def test_harmful_embeddings_behind_a_harmless_text_do_not_slip_through(clip_guard: LatentGuard) -> None:
    pipe = sdxl()
    harmful = embeddings(pipe, BLOCKED)
    guard_pipeline(pipe, clip_guard)
    with pytest.raises(PromptBlocked):
        pipe.encode_prompt(prompt=ALLOWED[0], device="cpu", **harmful)
    steps = Counter(pipe.unet)
    with pytest.raises((PromptBlocked, ValueError)):
        pipe(ALLOWED[0], **harmful, **CALL)
    mixed = {**embeddings(pipe, ALLOWED[0]), "prompt_embeds": harmful["prompt_embeds"]}
    with pytest.raises(PromptBlocked):
        pipe(**mixed, **CALL)
    assert steps.count == 0


def test_embeddings_known_before_a_concept_was_added_are_screened_anew(pipe: Any, tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = replace(tiny_guard.policy, threshold=1e3)
    guard_pipeline(pipe, tiny_guard)
    given = embeddings(pipe, ALLOWED[0])
    assert pipe(**given, **CALL).images.any()
    tiny_guard.policy = replace(tiny_guard.policy, threshold=-1e3)
    with pytest.raises(PromptBlocked):
        pipe(**given, **CALL)


def test_the_last_layer_makes_of_the_penultimate_states_what_the_tower_makes() -> None:
    tower = tiny.clip_text_encoder()
    with torch.no_grad():
        output = tower(torch.randint(0, 49406, (3, 77)), output_hidden_states=True)
    torch.testing.assert_close(last_layer(tower, output.hidden_states[-2]), output.last_hidden_state)


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_image_embeds"])
def test_a_picture_in_the_place_of_a_prompt_is_refused(name: str, pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard)
    with pytest.raises(UnscreenedError, match=name):
        pipe(ALLOWED[0], **{name: [torch.zeros(1, 1, 32)]}, **CALL)


def test_attention_arguments_that_carry_content_are_refused(pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard)
    with pytest.raises(UnscreenedError, match="gligen"):
        pipe(ALLOWED[0], cross_attention_kwargs={"gligen": {}, "scale": 1.0}, **CALL)


# --- textual inversion


TOKEN = "<old-dog>"


@pytest.fixture
def inverted(pipe: Any) -> Any:
    """A pipeline with a learned token that means what the blocked prompt's words mean, and doesn't look like it."""
    pipe.tokenizer = tiny.clip_tokenizer()
    words = pipe.text_encoder.embeddings.token_embedding.weight[pipe.tokenizer(BLOCKED).input_ids[1:-1]]
    pipe.load_textual_inversion({TOKEN: words.detach().clone()})
    return pipe


def test_a_learned_token_is_screened_by_the_states_it_leads_to(inverted: Any, clip_guard: LatentGuard) -> None:
    assert not clip_guard.check(TOKEN).blocked
    guard_pipeline(inverted, clip_guard)
    steps = Counter(inverted.unet)
    with pytest.raises(PromptBlocked) as refused:
        inverted(TOKEN, **CALL)
    assert steps.count == 0
    assert refused.value.verdicts[0].score == pytest.approx(clip_guard.check(BLOCKED).score, abs=1e-3)
    assert inverted(ALLOWED[0], **CALL).images.any()


def test_a_learned_token_is_refused_where_only_the_text_can_be_read(inverted: Any, text_guard: LatentGuard) -> None:
    guard_pipeline(inverted, text_guard)
    with pytest.raises(UnscreenedError, match="textual inversion"):
        inverted(f"{ALLOWED[0]} {TOKEN}", **CALL)
    assert inverted(ALLOWED[0], **CALL).images.any()
    guard_pipeline(inverted, text_guard, on_block="blank", allow_unscreened=True)
    assert inverted(f"{ALLOWED[0]} {TOKEN}", **CALL).verdicts[0].prompt == f"{ALLOWED[0]} {TOKEN}"


# --- other pipelines and other doors


@pytest.mark.parametrize(
    "derive",
    [
        diffusers.StableDiffusionImg2ImgPipeline.from_pipe,
        diffusers.AutoPipelineForImage2Image.from_pipe,
        lambda pipe: type(pipe).from_pipe(pipe),
        lambda pipe: diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False),
    ],
    ids=["img2img", "auto", "its own class", "components"],
)
def test_a_pipeline_made_from_a_guarded_one_is_guarded(derive: Any, pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard, on_block="blank")
    made = derive(pipe)
    made.set_progress_bar_config(disable=True)
    more = KINDS[made.__class__.__name__].call
    steps = Counter(made.unet)
    output = made(prompt=BLOCKED, **CALL, **more)
    assert steps.count == 0
    assert output.blanked == (True,)
    unguard_pipeline(made)
    assert type(made) is made.__class__


def test_auto_pipelines_are_guarded(pipe: Any, clip_guard: LatentGuard) -> None:
    auto = diffusers.AutoPipelineForText2Image.from_pipe(pipe)
    guard_pipeline(auto, clip_guard)
    with pytest.raises(PromptBlocked):
        auto(BLOCKED, **CALL)


def test_pipelines_are_no_longer_watched_when_none_is_guarded(pipe: Any, clip_guard: LatentGuard) -> None:
    gc.collect()
    guard_pipeline(pipe, clip_guard)
    unguard_pipeline(pipe)
    assert diffusers.DiffusionPipeline.register_modules.__qualname__ == "DiffusionPipeline.register_modules"
    assert not hasattr(diffusers.DiffusionPipeline.register_modules, "__wrapped__")


def test_the_denoiser_itself_takes_no_step_outside_a_guarded_call(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    step = (torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.WIDTH))
    with pytest.raises(UnscreenedError, match="outside a guarded pipeline's call"):
        pipe.unet(*step)
    pipe(ALLOWED[0], **CALL)
    with pytest.raises(UnscreenedError):
        pipe.unet(*step)
    unguard_pipeline(pipe)
    assert pipe.unet(*step).sample.shape == (1, 4, 8, 8)


def test_models_that_are_exchanged_are_guarded_too(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    old, pipe.unet = pipe.unet, tiny.unet()
    pipe.text_encoder = tiny.clip_text_encoder(seed=9)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, **CALL)
    with pytest.raises(UnscreenedError):
        pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.WIDTH))
    assert old(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.WIDTH)).sample.shape == (1, 4, 8, 8)


# --- modular pipelines


@pytest.mark.parametrize("name", MODULAR)
def test_a_modular_pipeline_gives_what_is_asked_for(name: str, any_guard: LatentGuard) -> None:
    kind = MODULAR[name]
    pipe = guard_pipeline(kind.make(), any_guard, on_block="blank")
    images = pipe(prompt=ALLOWED[0], output="images", **CALL, **kind.call)
    assert images.any()
    both = pipe(prompt=BLOCKED, output=["images", "verdicts"], **CALL, **kind.call)
    assert not both["images"].any()
    assert both["images"].shape == images.shape
    assert both["verdicts"][0].blocked


def test_modular_pipelines_in_two_parts_screen_at_the_text_encoder(any_guard: LatentGuard) -> None:
    components = sdxl().components
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    reader = modular(blocks.sub_blocks.pop("text_encoder"), components)
    drawer = modular(blocks, components)
    unknown = reader(prompt=ALLOWED[0]).get_by_kwargs("denoiser_input_fields")
    guard_pipeline(reader, any_guard)
    guard_pipeline(drawer, any_guard)
    with pytest.raises(PromptBlocked):
        reader(prompt=BLOCKED)
    steps = Counter(drawer.unet)
    read = reader(prompt=ALLOWED[0])
    assert read.verdicts[0].prompt == ALLOWED[0]
    more = {**CALL, "height": 64, "width": 64}
    if any_guard.encoder.name != "hf:tiny":
        with pytest.raises(UnscreenedError):
            drawer(**{**unknown, "prompt_embeds": unknown["prompt_embeds"] + 1}, **more)
    assert steps.count == 0


# --- threads


def test_threads_do_not_meet(clip_guard: LatentGuard) -> None:
    first = guard_pipeline(sd(), clip_guard)
    second = diffusers.StableDiffusionPipeline(
        **{**first.components, "scheduler": tiny.ddim()}, requires_safety_checker=False
    )
    second.set_progress_bar_config(disable=True)
    plain = first(ALLOWED[0], generator=seeded(), **CALL).images
    outcomes: dict[str, list[bool]] = {"allowed": [], "blocked": []}
    start = threading.Barrier(2)

    def draw() -> None:
        start.wait()
        for _ in range(8):
            output = first(ALLOWED[0], generator=seeded(), **CALL)
            outcomes["allowed"].append(torch.equal(output.images, plain) and output.verdicts[0].prompt == ALLOWED[0])

    def refuse() -> None:
        start.wait()
        for _ in range(8):
            try:
                second(BLOCKED, **CALL)
                outcomes["blocked"].append(False)
            except PromptBlocked as refused:
                outcomes["blocked"].append(refused.verdicts[0].prompt == BLOCKED)

    threads = [threading.Thread(target=draw), threading.Thread(target=refuse)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"allowed": [True] * 8, "blocked": [True] * 8}
