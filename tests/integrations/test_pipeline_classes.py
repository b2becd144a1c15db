"""Each class of pipeline that is guarded: no denoising step for a blocked prompt, the same bits for an allowed one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines import ALLOWED, BLOCKED, CALL, KINDS, MODULAR, Counter, denoiser, sd, seeded

from latentguard import LatentGuard, PipelineError, PromptBlocked
from latentguard.integrations.diffusers import guard_pipeline, is_guarded, unguard_pipeline

ALL = {**KINDS, **MODULAR}


@pytest.mark.parametrize("name", ALL)
def test_a_blocked_prompt_costs_no_step_and_an_allowed_one_gives_the_same_bits(
    name: str, any_guard: LatentGuard
) -> None:
    kind = ALL[name]
    pipe = kind.make()
    plain = pipe(prompt=ALLOWED[0], generator=seeded(), **CALL, **kind.call).images
    other = pipe(prompt=ALLOWED[1], generator=seeded(), **CALL, **kind.call).images
    assert not torch.equal(plain, other)

    guard_pipeline(pipe, any_guard)
    steps = Counter(denoiser(pipe))
    with pytest.raises(PromptBlocked) as refused:
        pipe(prompt=BLOCKED, generator=seeded(), **CALL, **kind.call)
    assert steps.count == 0
    assert [verdict.blocked for verdict in refused.value.verdicts] == [True]

    output = pipe(prompt=ALLOWED[0], generator=seeded(), **CALL, **kind.call)
    assert steps.count > 0
    assert torch.equal(output.images, plain)
    assert output.verdicts[0].prompt == ALLOWED[0]
    assert output.verdicts[0].score == pytest.approx(any_guard.check(ALLOWED[0]).score, abs=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_blocked_prompts_of_a_batch_are_blank_and_the_others_as_they_were(name: str, any_guard: LatentGuard) -> None:
    kind = ALL[name]
    pipe = kind.make()
    prompts = [ALLOWED[0], BLOCKED, ALLOWED[1]]
    call = {**kind.call, **{one: [kind.call[one]] * 3 for one in kind.lists}}
    plain = pipe(prompt=prompts, generator=seeded(), **CALL, **call).images
    guard_pipeline(pipe, any_guard, on_block="blank")
    output = pipe(prompt=prompts, generator=seeded(), **CALL, **call)
    assert torch.equal(output.images[0], plain[0])
    assert torch.equal(output.images[2], plain[2])
    assert not output.images[1].any()
    assert [verdict.blocked for verdict in output.verdicts] == [False, True, False]
    assert output.blanked == (False, True, False)
    if "nsfw_content_detected" in getattr(output, "__dataclass_fields__", {}):
        assert output.nsfw_content_detected == [False, True, False]


@pytest.mark.parametrize(
    ("name", "output_type"),
    [*((name, form) for name in KINDS for form in ("pil", "latent")), ("FluxPipeline", "np"), ("FluxPipeline", "pt")],
)
def test_a_call_that_is_blocked_whole_gives_blank_pictures_of_the_usual_form(
    name: str, output_type: str, clip_guard: LatentGuard
) -> None:
    kind = KINDS[name]
    pipe = kind.make()
    call = {**kind.call, "num_inference_steps": 2, "output_type": output_type, "num_images_per_prompt": 2}
    plain = pipe(prompt=ALLOWED[0], generator=seeded(), **call)
    guard_pipeline(pipe, clip_guard, on_block="blank")
    steps = Counter(denoiser(pipe))
    output = pipe(prompt=BLOCKED, generator=seeded(), **call)
    assert steps.count == 0
    assert type(output) is type(plain)
    assert output.blanked == (True, True)
    if output_type == "pil":
        assert [image.size for image in output.images] == [image.size for image in plain.images]
        assert all(image.getextrema() == ((0, 0),) * 3 for image in output.images)
    else:
        assert type(output.images) is type(plain.images)
        assert output.images.shape == plain.images.shape
        assert not output.images.any()


@pytest.mark.parametrize("name", [name for name, kind in ALL.items() if kind.fits])
def test_the_pipelines_own_states_are_read_and_nothing_is_encoded_twice(
    name: str, clip_guard: LatentGuard, encoded: Callable[[LatentGuard], list[int]]
) -> None:
    kind = ALL[name]
    pipe = guard_pipeline(kind.make(), clip_guard)
    expected = clip_guard.check(BLOCKED).score
    counted = encoded(clip_guard)
    with pytest.raises(PromptBlocked) as refused:
        pipe(prompt=BLOCKED, **CALL, **kind.call)
    pipe(prompt=ALLOWED[0], **CALL, **kind.call)
    assert counted == []
    assert refused.value.verdicts[0].score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_a_guarded_pipeline_is_the_pipeline_it_was(name: str, clip_guard: LatentGuard) -> None:
    pipe = ALL[name].make()
    kind, names, signature = type(pipe), set(vars(pipe)), str(inspect.signature(pipe.__call__))
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    before = [set(vars(module)) for module in modules]

    assert guard_pipeline(pipe, clip_guard) is pipe
    assert is_guarded(pipe)
    assert isinstance(pipe, kind)
    assert pipe.__class__ is kind
    assert type(pipe).__name__ == kind.__name__
    assert str(inspect.signature(pipe.__call__)) == signature

    assert unguard_pipeline(pipe) is pipe
    assert not is_guarded(pipe)
    assert type(pipe) is kind
    assert set(vars(pipe)) == names
    assert [set(vars(module)) for module in modules] == before
    pipe(prompt=BLOCKED, **CALL, **ALL[name].call)


class TakesMore(diffusers.StableDiffusionPipeline):
    def __call__(self, prompt: str | None = None, style_prompt: str | None = None) -> Any:
        return super().__call__(f"{prompt}, {style_prompt}")


def test_a_pipeline_whose_inputs_are_not_understood_is_refused_by_name(clip_guard: LatentGuard) -> None:
    pipe = sd(TakesMore)
    with pytest.raises(PipelineError, match="TakesMore: its inputs are not understood: style_prompt"):
        guard_pipeline(pipe, clip_guard)
    assert not is_guarded(pipe)


def test_what_is_no_text_to_image_pipeline_is_refused_by_name(clip_guard: LatentGuard) -> None:
    unconditional = diffusers.DDPMPipeline(sd().unet, diffusers.DDPMScheduler())
    with pytest.raises(PipelineError, match="DDPMPipeline"):
        guard_pipeline(unconditional, clip_guard)
    with pytest.raises(PipelineError, match="str: not a diffusers pipeline"):
        guard_pipeline("runwayml/stable-diffusion", clip_guard)
    components = {n: sd().components[n] for n in ("vae", "text_encoder", "tokenizer", "scheduler", "unet")}
    video = diffusers.TextToVideoSDPipeline(**components)
    with pytest.raises(PipelineError, match="TextToVideoSDPipeline: its inputs are not understood: num_frames"):
        guard_pipeline(video, clip_guard)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_block": "ignore"}, "on_block"),
        ({"on_block": "replace"}, "replacement"),
        ({"replacement": "a cat"}, "replacement"),
        ({"on_block": "replace", "replacement": 3}, "replacement"),
        ({"image_check": "yes"}, "image_check"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, pipe: Any, clip_guard: LatentGuard
) -> None:
    with pytest.raises(PipelineError, match=message):
        guard_pipeline(pipe, clip_guard, **options)
    assert not is_guarded(pipe)


def test_a_guard_is_a_latent_guard(pipe: Any) -> None:
    with pytest.raises(PipelineError, match="expected a LatentGuard, got function"):
        guard_pipeline(pipe, lambda prompt: True)
