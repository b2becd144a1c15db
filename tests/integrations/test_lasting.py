"""What a guarded pipeline goes on to do: offloading, LoRA, compiling, half precision, saving; and unguarding it."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
from pipelines import ALLOWED, BLOCKED, CALL, Counter, clip_tokenizer, sd, sdxl, seeded

from examples import tiny
from latentguard import EncoderError, LatentGuard, PromptBlocked, UnscreenedError
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.integrations.diffusers import guard_pipeline, unguard_pipeline
from latentguard.integrations.diffusers.fit import fitting_encoder


def works(pipe: Any, plain: torch.Tensor | None = None) -> None:
    """That a guarded pipeline refuses the one prompt without a step, and draws the other, the same picture as plain."""
    steps = Counter(pipe.unet)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, **CALL)
    assert steps.count == 0
    images = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    assert steps.count > 0
    if plain is not None:
        assert torch.equal(images, plain)


def bare(module: torch.nn.Module) -> bool:
    return not hasattr(module, "_diffusers_hook") and "forward" not in vars(module)


# --- offloading; on the CPU, where accelerate does all that it does elsewhere but copy to another memory


def offload_models(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, which itself fails where the accelerator is the CPU."""
    for model in pipe.components.values():
        if isinstance(model, torch.nn.Module):
            weights = {name: tensor.to("cpu") for name, tensor in model.state_dict().items()}
            add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)
            attach_align_device_hook(model, torch.device("cpu"), offload=True, weights_map=weights)
    assert next(pipe.text_encoder.parameters()).device.type == "meta"


@pytest.mark.parametrize("offload", [offload_models, offload_layers])
@pytest.mark.parametrize("guard_first", [True, False])
def test_offloading_goes_with_a_guard(
    offload: Callable[[Any], None], guard_first: bool, pipe: Any, any_guard: LatentGuard
) -> None:
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    unguarded = pipe(BLOCKED, generator=seeded(), **CALL).images
    if guard_first:
        guard_pipeline(pipe, any_guard)
        offload(pipe)
    else:
        offload(pipe)
        guard_pipeline(pipe, any_guard)
    for _ in range(2):  # the end of a call takes offloading off and puts it on again
        works(pipe, plain)
        with pytest.raises(UnscreenedError):
            pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.WIDTH))
    unguard_pipeline(pipe)
    assert torch.equal(pipe(BLOCKED, generator=seeded(), **CALL).images, unguarded)
    pipe.remove_all_hooks()
    assert not hasattr(pipe.unet, "_diffusers_hook")
    assert not hasattr(pipe.text_encoder, "_diffusers_hook")


def test_a_guard_comes_off_below_offloading_that_stays(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    pipe.enable_model_cpu_offload(device="cpu")
    unguard_pipeline(pipe)
    assert hasattr(pipe.unet, "_hf_hook")
    assert pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, tiny.WIDTH)).sample.any()
    assert not hasattr(pipe.unet, "_diffusers_hook")


def test_group_offloading_goes_with_a_guard(pipe: Any, clip_guard: LatentGuard) -> None:
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    guard_pipeline(pipe, clip_guard)
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    works(pipe, plain)


# --- LoRA


def lora(pipe: Any) -> dict[str, torch.Tensor]:
    """A LoRA for the text encoder and the denoiser, as a state dict of the pipeline's class."""
    torch.manual_seed(3)
    text, unet = copy.deepcopy(pipe.text_encoder), copy.deepcopy(pipe.unet)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    text.add_adapter(config)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    state = {f"text_encoder.{name}": one for name, one in peft.get_peft_model_state_dict(text).items()}
    return state | {f"unet.{name}": one for name, one in peft.get_peft_model_state_dict(unet).items()}


def test_lora_is_loaded_and_unloaded_under_a_guard(
    pipe: Any, clip_guard: LatentGuard, encoded: Callable[[LatentGuard], list[int]]
) -> None:
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    weights = lora(pipe)
    pipe.load_lora_weights(weights)
    with_lora = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    assert not torch.equal(plain, with_lora)
    pipe.unload_lora_weights()

    guard_pipeline(pipe, clip_guard)
    counted = encoded(clip_guard)
    works(pipe, plain)
    assert counted == []
    pipe.load_lora_weights(weights)
    # The states are no longer those that the mapping layer knows: the guard's own encoder reads the text as well.
    works(pipe, with_lora)
    assert counted
    pipe.fuse_lora()
    counted.clear()
    works(pipe)
    assert counted
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    counted.clear()
    works(pipe)
    assert counted == []


def test_a_guard_put_on_over_lora_fits_all_the_same(pipe: Any, clip_guard: LatentGuard) -> None:
    pipe.load_lora_weights(lora(pipe))
    assert fitting_encoder(clip_guard.encoder, pipe.text_encoder) is clip_guard.encoder
    works(guard_pipeline(pipe, clip_guard))


# --- compiling


@pytest.mark.parametrize(
    ("how", "guard_first"), [("torch.compile", True), ("torch.compile", False), ("Module.compile", True)]
)
def test_a_compiled_denoiser_is_guarded(how: str, guard_first: bool, pipe: Any, clip_guard: LatentGuard) -> None:
    torch.compiler.reset()
    if guard_first:
        guard_pipeline(pipe, clip_guard)
    if how == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    else:
        pipe.unet.compile(backend="eager", fullgraph=True)
    if not guard_first:
        guard_pipeline(pipe, clip_guard)
    with pytest.raises(PromptBlocked):
        pipe(BLOCKED, **CALL)
    assert pipe(ALLOWED[0], **CALL).images.any()
    assert pipe(ALLOWED[1], **CALL).images.any()
    with pytest.raises(Exception, match="outside a guarded pipeline's call"):
        pipe.unet(torch.zeros(1, 4, 8, 8), torch.tensor(1), torch.zeros(1, 77, tiny.WIDTH))
    unguard_pipeline(pipe)
    assert bare(getattr(pipe.unet, "_orig_mod", pipe.unet))


# --- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("guard_first", [True, False])
def test_half_precision_is_read_as_it_is(
    dtype: torch.dtype, guard_first: bool, clip_guard: LatentGuard, encoded: Callable[[LatentGuard], list[int]]
) -> None:
    pipe = sdxl()
    if guard_first:
        guard_pipeline(pipe, clip_guard, on_block="blank")
    pipe.to(dtype)
    if not guard_first:
        guard_pipeline(pipe, clip_guard, on_block="blank")
    counted = encoded(clip_guard)
    output = pipe([ALLOWED[0], BLOCKED], **CALL)
    assert counted == []
    assert [verdict.blocked for verdict in output.verdicts] == [False, True]
    assert pipe.text_encoder.dtype == pipe.unet.dtype == dtype
    assert output.images[0].any()


# --- what fits


def test_a_tower_fits_whatever_it_is_wrapped_in(clip_guard: LatentGuard) -> None:
    assert fitting_encoder(clip_guard.encoder, sdxl().text_encoder) is clip_guard.encoder
    projected = HuggingFaceEncoder.from_model(sdxl().text_encoder_2, clip_tokenizer(), name="hf:second")
    assert fitting_encoder(projected, sdxl().text_encoder_2) is projected


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_a_finetuned_tower_does_not_fit(share: float, clip_guard: LatentGuard) -> None:
    tower = tiny.clip_text_encoder()
    with torch.no_grad():
        weight = tower.encoder.layers[1].mlp.fc1.weight
        weight += share * weight.std() * torch.randn_like(weight)
    assert (fitting_encoder(clip_guard.encoder, tower) is None) is (share > 0)


def test_other_towers_do_not_fit(clip_guard: LatentGuard, text_guard: LatentGuard) -> None:
    assert fitting_encoder(clip_guard.encoder, tiny.clip_text_encoder(seed=1)) is None
    assert fitting_encoder(clip_guard.encoder, sdxl().text_encoder_2) is None
    assert fitting_encoder(text_guard.encoder, sd().text_encoder) is None


def test_a_guard_may_use_the_pipelines_own_tower(pipe: Any) -> None:
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    guard = tiny.tiny_guard(pipe.text_encoder, pipe.tokenizer, ALLOWED, BLOCKED)
    assert guard.encoder.model is pipe.text_encoder
    works(guard_pipeline(pipe, guard), plain)
    long = "a red wine on the table, " * 30
    guard_pipeline(pipe, guard, on_block="blank")
    assert pipe(long, **CALL).verdicts[0].score >= guard.check(long).score - 1e-3
    guard_pipeline(pipe, guard)
    pipe.enable_model_cpu_offload(device="cpu")
    works(pipe, plain)


def test_a_loaded_tower_reads_as_one_from_a_folder(tmp_path: Path) -> None:
    tower = tiny.clip_text_encoder()
    tower.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    texts = [*ALLOWED, "a red wine on the table, " * 30]
    for options in ({}, {"layers": (1, 3)}, {"pad_to_window": True}):
        saved = HuggingFaceEncoder(str(tmp_path), device=torch.device("cpu"), **options)
        loaded = HuggingFaceEncoder.from_model(tower, clip_tokenizer(), name="hf:tower", **options)
        torch.testing.assert_close(loaded.encode(texts).hidden, saved.encode(texts).hidden)
        torch.testing.assert_close(loaded.encode(texts).pooled, saved.encode(texts).pooled)


def test_only_a_clip_text_tower_makes_an_encoder() -> None:
    with pytest.raises(EncoderError, match="UNet2DConditionModel is not a CLIP text tower"):
        HuggingFaceEncoder.from_model(tiny.unet(), clip_tokenizer(), name="hf:tower")


def test_padding_that_counts_as_text_is_read_as_the_guard_pads(pipe: Any) -> None:
    encoder = HuggingFaceEncoder.from_model(tiny.clip_text_encoder(), clip_tokenizer(), name="hf:t", pad_to_window=True)
    made = tiny.tiny_guard(tiny.clip_text_encoder(), clip_tokenizer(), ALLOWED, BLOCKED)
    guard = LatentGuard(encoder, made.mapping, made.concepts, made.policy)
    guard.policy = type(guard.policy)(1e3)
    verdict = guard_pipeline(pipe, guard)(ALLOWED[0], **CALL).verdicts[0]
    assert verdict.score == pytest.approx(guard.check(ALLOWED[0]).score, abs=1e-3)


# --- saving, copying, taking off


def test_a_guarded_pipeline_is_saved_and_loaded_as_the_pipeline_it_is(
    pipe: Any, clip_guard: LatentGuard, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "plain")
    plain = pipe(ALLOWED[0], generator=seeded(), **CALL).images
    guard_pipeline(pipe, clip_guard).save_pretrained(tmp_path / "guarded")

    def files(folder: str) -> dict[str, bytes]:
        found = {str(p.relative_to(tmp_path / folder)): p for p in (tmp_path / folder).rglob("*") if p.is_file()}
        return {name: path.read_bytes() for name, path in found.items()}

    assert files("guarded") == files("plain")
    assert json.loads(files("guarded")["model_index.json"])["_class_name"] == "StableDiffusionPipeline"
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "guarded", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is diffusers.StableDiffusionPipeline
    assert torch.equal(loaded(ALLOWED[0], generator=seeded(), **CALL).images, plain)
    works(guard_pipeline(loaded, clip_guard), plain)


def test_loading_by_a_guarded_pipelines_class_gives_a_plain_one(
    pipe: Any, clip_guard: LatentGuard, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    guard_pipeline(pipe, clip_guard)
    assert type(type(pipe).from_pretrained(tmp_path, safety_checker=None)) is diffusers.StableDiffusionPipeline


def test_weights_hold_no_trace_of_a_guard(pipe: Any, clip_guard: LatentGuard) -> None:
    before = list(pipe.unet.state_dict())
    guard_pipeline(pipe, clip_guard)
    assert list(pipe.unet.state_dict()) == before
    buffer = io.BytesIO()
    torch.save(pipe.unet.state_dict(), buffer)
    assert b"latentguard" not in buffer.getvalue()


def test_a_guard_comes_off_pipeline_by_pipeline(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    made = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    unguard_pipeline(pipe)
    assert not bare(pipe.unet)
    with pytest.raises(PromptBlocked):
        made(BLOCKED, image=torch.zeros(1, 3, 64, 64), **CALL)
    unguard_pipeline(made)
    assert bare(pipe.unet)
    assert bare(pipe.text_encoder)
    assert unguard_pipeline(made) is made


def test_hooks_of_others_stay(pipe: Any, clip_guard: LatentGuard) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    class Marker(ModelHook):  # type: ignore[misc]
        seen = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen += 1
            return args, kwargs

    below, above = Marker(), Marker()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.unet)
    registry.register_hook(below, "below")
    guard_pipeline(pipe, clip_guard)
    registry.register_hook(above, "above")
    works(pipe)
    unguard_pipeline(pipe)
    assert list(registry.hooks) == ["below", "above"]
    below.seen = above.seen = 0
    pipe(BLOCKED, **CALL)
    assert below.seen == above.seen > 0


def test_a_copy_of_a_guarded_pipeline_is_guarded(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    works(copy.copy(pipe))


def test_guarding_again_changes_how(pipe: Any, clip_guard: LatentGuard) -> None:
    guard_pipeline(pipe, clip_guard)
    guard_pipeline(pipe, clip_guard, on_block="blank")
    assert pipe(BLOCKED, **CALL).blanked == (True,)
    assert len(pipe.unet._diffusers_hook.hooks) == 1
    assert type(pipe).__mro__[1] is diffusers.StableDiffusionPipeline
