"""What a guarded pipeline gives back: blank pictures in the place of blocked ones, and the verdicts."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import PipelineState
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import CLIPImageProcessor

from latentguard.errors import PipelineError, UnscreenedError
from latentguard.verdict import Verdict

_Verdicts = Sequence[Verdict | None]
_Check = Callable[[list[Any]], Sequence[bool]]


class GuardedTuple(tuple[Any, ...]):
    """What a pipeline gives for return_dict=False, with ``verdicts`` and ``blanked`` as an output has them."""

    verdicts: tuple[Verdict | None, ...]
    blanked: tuple[bool, ...]


def output_class(kind: type) -> Any:
    """The class of what a pipeline's call gives; PipelineError, naming the pipeline, if none has images."""
    for base in kind.__mro__:
        for value in vars(sys.modules[base.__module__]).values():
            if isinstance(value, type) and issubclass(value, BaseOutput) and "images" in _fields(value):
                return value
    raise PipelineError(f"{kind.__name__}: gives no images")


def _fields(output: Any) -> Mapping[str, Any]:
    return getattr(output, "__dataclass_fields__", {})


def finished(output: Any, verdicts: _Verdicts, blanked: set[int], check: _Check | None) -> Any:
    """A call's output with the rows in `blanked`, and what the image check finds, made blank; verdicts on it."""
    is_tuple = isinstance(output, tuple)
    images = output[0] if is_tuple else output.images
    images, blank = _blanked(images, len(verdicts), blanked, check)
    if is_tuple:
        # The pipelines whose tuple has a second place hold there what their own safety checker found.
        return _described(GuardedTuple([images, *(_flags(found, blank) for found in output[1:])]), verdicts, blank)
    output.images = images
    if "nsfw_content_detected" in _fields(output):
        output.nsfw_content_detected = _flags(output.nsfw_content_detected, blank)
    return _described(output, verdicts, blank)


def finished_state(state: PipelineState, verdicts: _Verdicts, blanked: set[int], check: _Check | None) -> PipelineState:
    """The same for a modular pipeline's state, where they are values as ``images`` is."""
    blank = [i in blanked for i in range(len(verdicts))]
    if state.get("images") is not None:
        images, blank = _blanked(state.get("images"), len(verdicts), blanked, check)
        state.set("images", images)
    state.set("verdicts", tuple(verdicts))
    state.set("blanked", tuple(blank))
    return state


def all_blank(pipe: Any, kind: Any, arguments: Mapping[str, Any], verdicts: _Verdicts) -> Any:
    """The output of a call that was blocked whole, without a step of denoising."""
    taken = inspect.signature(kind.__call__).parameters
    count = len(verdicts) * (arguments.get("num_images_per_prompt") or 1)
    kind_of_output = arguments.get("output_type", taken["output_type"].default)
    images = _blank_images(pipe, _size(pipe, arguments, taken), count, kind_of_output)
    blank = [True] * count
    made = output_class(kind)
    has_flags = "nsfw_content_detected" in _fields(made)
    if not arguments.get("return_dict", True):
        return _described(GuardedTuple([images, blank] if has_flags else [images]), verdicts, blank)
    return _described(made(images=images, **{"nsfw_content_detected": blank} if has_flags else {}), verdicts, blank)


def all_blank_state(pipe: Any, inputs: Mapping[str, Any], verdicts: _Verdicts) -> PipelineState:
    """The same for a modular pipeline."""
    count = len(verdicts) * (inputs.get("num_images_per_prompt") or 1)
    size = (inputs.get("height") or pipe.default_height, inputs.get("width") or pipe.default_width)
    state = PipelineState(values=dict(inputs))
    state.set("images", _blank_images(pipe, size, count, inputs.get("output_type") or "pil"))
    state.set("verdicts", tuple(verdicts))
    state.set("blanked", (True,) * count)
    return state


def check_image_check(settings: Any, arguments: Mapping[str, Any]) -> None:
    """UnscreenedError if pictures are to be checked and a call asks for latents."""
    if settings.image_check is not None and arguments.get("output_type") == "latent" and not settings.allow_unscreened:
        raise UnscreenedError('output_type="latent": the image check can\'t see latents')


def image_check_of(checker: StableDiffusionSafetyChecker) -> _Check:
    """diffusers' own safety checker as an image check; it runs where the model is."""
    size = checker.config.vision_config.image_size
    prepare = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    @torch.no_grad()
    def check(images: list[Any]) -> Sequence[bool]:
        weight = next(checker.parameters())
        pixels = prepare(images, return_tensors="pt").pixel_values.to(weight.device, weight.dtype)
        # It blackens what it finds; given copies, it only says so.
        found: list[bool] = checker(clip_input=pixels, images=[np.zeros((1, 1, 3)) for _ in images])[1]
        return found

    return check


def _described(output: Any, verdicts: _Verdicts, blank: Sequence[bool]) -> Any:
    output.verdicts = tuple(verdicts)
    output.blanked = tuple(blank)
    return output


def _flags(found: Any, blank: Sequence[bool]) -> Any:
    """What a pipeline's safety checker found, None without one, and what is blank."""
    if found is None:
        return list(blank) if any(blank) else None
    if not isinstance(found, (list, tuple)):
        return found
    return [bool(one) or other for one, other in zip(found, blank, strict=True)]


def _blanked(images: Any, rows: int, blanked: set[int], check: _Check | None) -> tuple[Any, list[bool]]:
    each = len(images) // rows
    blank = [i // each in blanked for i in range(len(images))]
    if check is not None and len(images):
        found = list(check(_as_pil(images)))
        if len(found) != len(images):
            raise UnscreenedError(f"the image check gave {len(found)} answers for {len(images)} images")
        blank = [one or bool(other) for one, other in zip(blank, found, strict=True)]
    if not any(blank):
        return images, blank
    if isinstance(images, list):
        return [
            Image.new(image.mode, image.size) if b else image for image, b in zip(images, blank, strict=True)
        ], blank
    images = images.clone() if isinstance(images, torch.Tensor) else images.copy()
    for place, is_blank in enumerate(blank):
        if is_blank:
            images[place] = 0
    return images, blank


def _as_pil(images: Any) -> list[Any]:
    if isinstance(images, list):
        return images
    array = VaeImageProcessor.pt_to_numpy(images) if isinstance(images, torch.Tensor) else images
    pictures: list[Any] = VaeImageProcessor.numpy_to_pil(array)
    return pictures


def _blank_images(pipe: Any, size: tuple[int, int], count: int, kind: str) -> Any:
    """`count` black pictures of (height, width) in the form that `output_type` names."""
    height, width = size
    scale = pipe.vae_scale_factor
    if _is_packed(pipe):
        height, width = (side // (2 * scale) * 2 * scale for side in size)
    if kind == "latent":
        channels, high, wide = pipe.vae.config.latent_channels, height // scale, width // scale
        shape = (count, high * wide // 4, channels * 4) if _is_packed(pipe) else (count, channels, high, wide)
        return torch.zeros(shape)
    if kind == "pt":
        return torch.zeros(count, 3, height, width)
    if kind == "np":
        return np.zeros((count, height, width, 3), dtype=np.float32)
    return [Image.new("RGB", (width, height)) for _ in range(count)]


def _is_packed(pipe: Any) -> bool:
    """Whether latents are sequences of two by two patches, as FLUX has them."""
    return type(getattr(pipe, "transformer", None)).__name__.startswith("Flux")


def _size(pipe: Any, arguments: Mapping[str, Any], taken: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the pictures that a call would have made."""
    default = _default_size(pipe)
    if "height" not in taken or "controlnet_conditioning_scale" in taken:
        # Those of the picture that is worked on.
        given = arguments.get("control_image")
        default = _picture_size(arguments.get("image") if given is None else given, pipe.vae_scale_factor) or default
    return arguments.get("height") or default[0], arguments.get("width") or default[1]


def _default_size(pipe: Any) -> tuple[int, int]:
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    sample = getattr(pipe, "default_sample_size", None) or denoiser.config.sample_size
    high, wide = (sample, sample) if isinstance(sample, int) else sample
    return high * pipe.vae_scale_factor, wide * pipe.vae_scale_factor


def _picture_size(image: Any, scale: int) -> tuple[int, int] | None:
    while isinstance(image, (list, tuple)) and image:
        image = image[0]
    if isinstance(image, Image.Image):
        high, wide = image.height, image.width
    elif isinstance(image, torch.Tensor):
        high, wide = image.shape[-2:]
    elif isinstance(image, np.ndarray):
        high, wide = image.shape[-3:-1]
    else:
        return None
    return high // scale * scale, wide // scale * scale
