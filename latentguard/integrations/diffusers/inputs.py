"""What a pipeline may be given, by the names that diffusers uses, and how it reads as prompts row by row."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from latentguard.errors import PipelineError, UnscreenedError

TEXTS = ("prompt", "prompt_2", "prompt_3")
NEGATIVE_TEXTS = tuple(f"negative_{name}" for name in TEXTS)
EMBEDDINGS = ("prompt_embeds", "pooled_prompt_embeds")
NEGATIVE_EMBEDDINGS = tuple(f"negative_{name}" for name in EMBEDDINGS)
_SIDES = {False: (TEXTS, EMBEDDINGS), True: (NEGATIVE_TEXTS, NEGATIVE_EMBEDDINGS)}

# Pictures that take the place of a prompt, which no text guard can read.
IMAGE_PROMPTS = frozenset({"ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_embeds"})
_ATTENTION = ("cross_attention_kwargs", "joint_attention_kwargs")
_HARMLESS_ATTENTION = frozenset({"scale", "ip_adapter_masks"})
_HARMLESS_EXTRAS = frozenset({"callback", "callback_steps", "denoiser_input_fields"})
# What says how to draw and not what. A pipeline that takes anything beyond these lists isn't understood.
_MANNER = frozenset((
    "height", "width", "num_inference_steps", "timesteps", "sigmas", "guidance_scale", "num_images_per_prompt",
    "eta", "generator", "latents", "output_type", "return_dict", "cross_attention_kwargs", "joint_attention_kwargs",
    "guidance_rescale", "clip_skip", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback",
    "callback_steps", "image", "strength", "mask_image", "masked_image_latents", "padding_mask_crop",
    "control_image", "controlnet_conditioning_scale", "guess_mode", "control_guidance_start",
    "control_guidance_end", "denoising_start", "denoising_end", "original_size", "crops_coords_top_left",
    "target_size", "negative_original_size", "negative_crops_coords_top_left", "negative_target_size",
    "aesthetic_score", "negative_aesthetic_score", "true_cfg_scale", "max_sequence_length", "skip_guidance_layers",
    "skip_layer_guidance_scale", "skip_layer_guidance_stop", "skip_layer_guidance_start", "mu",
    "controlnet_pooled_projections", "control_mode", "max_area", "_auto_resize", "prompt_attention_mask",
    "negative_prompt_attention_mask", "clean_caption", "use_resolution_binning", "negative_ip_adapter_image",
    "negative_ip_adapter_image_embeds", "negative_ip_adapter_embeds", "dtype", "preprocess_kwargs", "image_latents",
    "mask", "crops_coords", "controlnet_cond", "conditioning_scale", "controlnet_keep", "resized_image",
    "processed_image",
))  # fmt: skip
_KNOWN = _MANNER | IMAGE_PROMPTS | {*TEXTS, *NEGATIVE_TEXTS, *EMBEDDINGS, *NEGATIVE_EMBEDDINGS}


def check_understood(pipe: Any, kind: type) -> None:
    """PipelineError, naming the class, unless each way into a pipeline of class `kind` is known."""
    if issubclass(kind, ModularPipeline):
        taken = {parameter.name for parameter in pipe.blocks.inputs if parameter.name is not None}
        taken |= {p.kwargs_type for p in pipe.blocks.inputs if p.name is None} - _HARMLESS_EXTRAS
        if not taken & {"prompt", "prompt_embeds", *_MANNER}:
            raise PipelineError(f"{kind.__name__}: takes no prompt, so there is nothing to guard")
    elif issubclass(kind, DiffusionPipeline):
        parameters = inspect.signature(kind.__call__).parameters.values()
        taken = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
        encode = getattr(kind, "encode_prompt", None)
        if "prompt" not in taken or encode is None or "prompt" not in inspect.signature(encode).parameters:
            raise PipelineError(f"{kind.__name__}: has no prompt that it encodes by encode_prompt")
    else:
        raise PipelineError(f"{kind.__name__}: not a diffusers pipeline")
    if unknown := sorted(taken - _KNOWN):
        raise PipelineError(f"{kind.__name__}: its inputs are not understood: {', '.join(unknown)}")


def check_screenable(arguments: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
    """UnscreenedError if a call is given something that steers the image and that no text guard can read."""
    found = sorted(name for name in IMAGE_PROMPTS if arguments.get(name) is not None)
    for name in _ATTENTION:
        found += [f"{name}[{key!r}]" for key in sorted(set(arguments.get(name) or ()) - _HARMLESS_ATTENTION)]
    found += sorted(set(extras) - _HARMLESS_EXTRAS)
    if found:
        raise UnscreenedError(
            f"{', '.join(found)}: can't be screened; guard the pipeline with allow_unscreened=True to let it pass"
        )


@dataclass(frozen=True)
class Row:
    """What one image (or num_images_per_prompt of them) is made from: texts by name, and embeddings by name."""

    texts: dict[str, str]
    embeddings: dict[str, Tensor]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for: no embeddings, and no text but blank ones."""
        return not self.embeddings and not any(self.texts.values())


def rows_of(arguments: Mapping[str, Any], *, negative: bool = False) -> list[Row]:
    """The rows of a call; one text beside several rows counts for each. A blank text counts as none.

    Raises UnscreenedError where a prompt is neither text nor a list of texts, or the numbers differ.
    """
    text_names, embedding_names = _SIDES[negative]
    texts = {name: _texts(name, arguments[name]) for name in text_names if arguments.get(name) is not None}
    embeddings = {name: arguments[name] for name in embedding_names if arguments.get(name) is not None}
    for name, tensor in embeddings.items():
        if not isinstance(tensor, Tensor) or tensor.ndim < 2:
            raise UnscreenedError(f"{name}: expected a tensor [B, ...], got {type(tensor).__name__}")
    count = max((len(values) for values in [*texts.values(), *embeddings.values()]), default=0)
    for name, values in [*texts.items(), *embeddings.items()]:
        if len(values) != count and not (len(values) == 1 and isinstance(values, list)):
            raise UnscreenedError(f"{name}: {len(values)} where there are {count} prompts")
    return [
        Row(
            {name: values[min(i, len(values) - 1)] for name, values in texts.items()},
            {name.removeprefix("negative_"): tensor[i] for name, tensor in embeddings.items()},
        )
        for i in range(count)
    ]


def _texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise UnscreenedError(f"{name}: expected text or a list of texts, got {type(value).__name__}")
    return [text if text.strip(" \t\r\n") else "" for text in texts]


def is_negative(encoded: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Whether what `encode_prompt` is given is, object by object, what the call had as negative prompt.

    FLUX encodes its negative prompt by a second call of the same function.
    """
    given = {name: encoded[name] for name in (*TEXTS, *EMBEDDINGS) if encoded.get(name) is not None}
    return bool(given) and all(
        value is call.get(f"negative_{name}") and value is not call.get(name) for name, value in given.items()
    )


def with_rows_replaced(arguments: Mapping[str, Any], replaced: Mapping[int, str], count: int) -> dict[str, Any]:
    """The arguments of a call with other texts in some of its rows; the embeddings of such rows are zero.

    Their negative prompts are dropped as well, since they may be what was refused.
    """
    changed = dict(arguments)
    for name in (*TEXTS, *NEGATIVE_TEXTS):
        value = arguments.get(name)
        if value is None:
            continue
        texts = [value] * count if isinstance(value, str) else list(value)
        for row, text in replaced.items():
            texts[row] = "" if name.startswith("negative") else text
        changed[name] = texts[0] if isinstance(value, str) and count == 1 else texts
    for name in (*EMBEDDINGS, *NEGATIVE_EMBEDDINGS):
        if isinstance(tensor := arguments.get(name), Tensor):
            kept = torch.ones(len(tensor), *[1] * (tensor.ndim - 1), dtype=torch.bool, device=tensor.device)
            kept[list(replaced)] = False
            changed[name] = tensor.masked_fill(~kept, 0)
    return changed


def encoded_names(call_parameters: Sequence[str], encode_parameters: Sequence[str]) -> tuple[str | None, ...]:
    """What the results of a pipeline's `encode_prompt` are, in order, as far as they condition the image."""
    if "prompt_attention_mask" in call_parameters:
        return "prompt_embeds", None, "negative_prompt_embeds", None
    if "pooled_prompt_embeds" not in call_parameters:
        return "prompt_embeds", "negative_prompt_embeds"
    if "negative_prompt_embeds" in encode_parameters:
        return "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    return "prompt_embeds", "pooled_prompt_embeds"
