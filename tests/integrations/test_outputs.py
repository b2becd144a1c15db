"""What comes back from a guarded call: verdicts, blank pictures, replaced prompts, checked pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from pipelines import ALLOWED, BLOCKED, CALL, Counter, sd, sdxl, seeded

from latentguard import LatentGuard, PipelineError, PromptBlocked, UnscreenedError
from latentguard.integrations.diffusers import guard_pipeline


def test_verdicts_explain_themselves(pipe: Any, any_guard: LatentGuard) -> None:
    output = guard_pipeline(pipe, any_guard, on_block="blank")([ALLOWED[0], BLOCKED], **CALL)
    for verdict in output.verdicts:
        assert verdict.explain().score == pytest.approx(verdict.score, abs=1e-2)
    assert output.verdicts[1].scores(1)[0][0] == output.verdicts[1].concept


@pytest.mark.parametrize("on_block", ["raise", "blank"])
def test_a_tuple_has_verdicts_too(on_block: str, pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard, on_block=on_block)
    output = pipe(ALLOWED[0], return_dict=False, **CALL)
    assert isinstance(output, tuple)
    assert len(output) == 2
    assert output.verdicts[0].prompt == ALLOWED[0]
    if on_block == "blank":
        images, flags = pipe([ALLOWED[0], BLOCKED], return_dict=False, **CALL)
        assert flags == [False, True]
        images, flags = pipe(BLOCKED, return_dict=False, **CALL)
        assert not images.any()
        assert flags == [True]


def test_each_image_of_a_prompt_is_blank(pipe: Any, any_guard: LatentGuard) -> None:
    prompts = [ALLOWED[0], BLOCKED]
    plain = pipe(prompts, num_images_per_prompt=2, generator=seeded(), **CALL).images
    guard_pipeline(pipe, any_guard, on_block="blank")
    output = pipe(prompts, num_images_per_prompt=2, generator=seeded(), **CALL)
    assert output.blanked == (False, False, True, True)
    assert len(output.verdicts) == 2
    assert torch.equal(output.images[:2], plain[:2])
    assert not output.images[2:].any()


def test_a_generator_for_each_prompt_is_left_alone(pipe: Any, any_guard: LatentGuard) -> None:
    prompts = [BLOCKED, ALLOWED[0]]
    plain = pipe(prompts, generator=[seeded(1), seeded(2)], **CALL).images
    guard_pipeline(pipe, any_guard, on_block="blank")
    assert torch.equal(pipe(prompts, generator=[seeded(1), seeded(2)], **CALL).images[1], plain[1])


def test_blocked_rows_do_not_reach_the_denoiser(pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard, on_block="blank")
    seen: list[torch.Tensor] = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    pipe([ALLOWED[0], BLOCKED], **CALL)
    pipe([ALLOWED[0], ""], **CALL)
    assert torch.equal(seen[0], seen[-1])


@pytest.mark.parametrize("made", [sd, sdxl])
def test_blocked_embeddings_of_a_batch_are_blank(made: Callable[[], Any], clip_guard: LatentGuard) -> None:
    pipe = made()
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    prompts = [ALLOWED[0], BLOCKED]
    encoded = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    given = dict(zip(names, encoded, strict=False))
    plain = pipe(**given, generator=seeded(), **CALL).images
    guard_pipeline(pipe, clip_guard, on_block="blank")
    # Known beforehand, so that the reading of embeddings at every length can't block it.
    known = pipe.encode_prompt(ALLOWED[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    given = {n: torch.cat([known[i], t[1:]]) for i, (n, t) in enumerate(given.items())}
    output = pipe(**given, generator=seeded(), **CALL)
    assert [verdict.blocked for verdict in output.verdicts] == [False, True]
    assert torch.allclose(output.images[0], plain[0], atol=1e-4)
    assert not output.images[1].any()
    guard_pipeline(pipe, clip_guard, on_block="replace", replacement=ALLOWED[1])
    with pytest.raises(PromptBlocked):  # embeddings have no text to be replaced
        pipe(**given, **CALL)


@pytest.mark.parametrize("replacement", [ALLOWED[1], lambda verdict: ALLOWED[1] if verdict.blocked else ""])
def test_blocked_prompts_are_replaced(replacement: Any, any_guard: LatentGuard) -> None:
    pipe = sdxl()
    plain = pipe([ALLOWED[0], ALLOWED[1]], generator=seeded(), **CALL).images
    guard_pipeline(pipe, any_guard, on_block="replace", replacement=replacement)
    output = pipe([ALLOWED[0], BLOCKED], generator=seeded(), **CALL)
    assert torch.equal(output.images, plain)
    assert [verdict.prompt for verdict in output.verdicts] == [ALLOWED[0], BLOCKED]
    assert output.blanked == (False, False)
    assert torch.equal(
        pipe(BLOCKED, prompt_2=BLOCKED, generator=seeded(), **CALL).images,
        pipe(ALLOWED[1], generator=seeded(), **CALL).images,
    )
    encoded = pipe.encode_prompt(BLOCKED, device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(encoded[0], pipe.encode_prompt(ALLOWED[1], device="cpu", do_classifier_free_guidance=False)[0])


def test_a_replacement_is_screened_itself(pipe: Any, any_guard: LatentGuard) -> None:
    guard_pipeline(pipe, any_guard, on_block="replace", replacement=lambda verdict: verdict.prompt)
    steps = Counter(pipe.unet)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, **CALL)
    assert steps.count == 0
    guard_pipeline(pipe, any_guard, on_block="replace", replacement=lambda verdict: None)
    with pytest.raises(PipelineError, match="expected text from the callable"):
        pipe(BLOCKED, **CALL)


# --- checking pictures


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pictures_that_a_check_finds_are_blank(output_type: str, pipe: Any, clip_guard: LatentGuard) -> None:
    seen: list[Any] = []

    def check(images: list[Any]) -> list[bool]:
        seen.extend(images)
        return [i == 1 for i in range(len(images))]

    guard_pipeline(pipe, clip_guard, image_check=check)
    output = pipe(list(ALLOWED[:2]), num_inference_steps=2, output_type=output_type)
    assert [image.size for image in seen] == [(64, 64), (64, 64)]
    assert output.blanked == (False, True)
    assert output.nsfw_content_detected == [False, True]
    blank = output.images[1]
    assert not (torch.tensor(blank.getextrema()) if output_type == "pil" else blank).any()


def test_a_check_fails_closed(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard, image_check=lambda images: [])
    with pytest.raises(UnscreenedError, match="0 answers for 1 images"):
        pipe(ALLOWED[0], **CALL)
    with pytest.raises(UnscreenedError, match="latents"):
        pipe(ALLOWED[0], num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize("finds", [True, False])
def test_diffusers_safety_checker_serves_pipelines_that_lack_it(finds: bool, clip_guard: LatentGuard) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 32}
    config = transformers.CLIPConfig(vision_config=vision, text_config=sizes, projection_dim=32)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-1.0 if finds else 1.0)
    pipe = guard_pipeline(sdxl(diffusers.StableDiffusionXLPipeline), clip_guard, image_check=checker)
    output = pipe(ALLOWED[0], **CALL)
    assert output.blanked == (finds,)
    assert bool(output.images.any()) is not finds
