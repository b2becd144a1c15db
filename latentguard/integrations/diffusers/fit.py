"""Whether the guard can read the states that a pipeline's own text encoder computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentguard.encoders.base import TextEncoder
from latentguard.encoders.huggingface import HuggingFaceEncoder, clip_text_tower

# How far two sets of weights may lie apart, as a share of their length: rounding to bf16 takes 0.0011 to 0.0017.
_ROUNDING = 0.003
_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    *("hidden_act", "layer_norm_eps"),
)


def fitting_encoder(encoder: TextEncoder, text_encoder: Any) -> HuggingFaceEncoder | None:
    """The guard's encoder if a pipeline's `text_encoder` computes the same states, None if it doesn't.

    It does if both are CLIP text towers and either one and the same object, or of the same sizes with the same weights.
    Weights are compared tensor by tensor, once, and may differ by no more than rounding to fp16 or bf16 does; LoRA
    adapters count as not there, and of the token embedding the rows that both have are compared, since textual
    inversion adds some. Weights that accelerate holds on the "meta" device can't be compared, and so don't fit.
    """
    tower = clip_text_tower(text_encoder)
    if tower is None or not isinstance(encoder, HuggingFaceEncoder):
        return None
    own = clip_text_tower(encoder.model)
    if own is None:
        return None
    if own is tower:
        return encoder
    if any(getattr(own.config, size, None) != getattr(tower.config, size, None) for size in _SIZES):
        return None
    return encoder if _same_weights(_weights(own), _weights(tower)) else None


def is_changed_by_lora(text_encoder: Any, pipe: Any) -> bool:
    """Whether LoRA adapters are loaded into a text encoder, or have been fused into a pipeline's weights."""
    loaded = bool(getattr(text_encoder, "_hf_peft_config_loaded", False)) or hasattr(text_encoder, "peft_config")
    return loaded or bool(getattr(pipe, "num_fused_loras", 0))


def _weights(tower: Any) -> dict[str, Tensor]:
    """The weights of a tower by name, without what peft adds."""
    return {
        name.replace(".base_layer", ""): tensor
        for name, tensor in tower.named_parameters()
        if ".lora_" not in name and ".modules_to_save" not in name
    }


@torch.no_grad()
def _same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    for name, first in one.items():
        second = other[name]
        if "meta" in (first.device.type, second.device.type) or first.shape[1:] != second.shape[1:]:
            return False
        rows = min(len(first), len(second))
        a, b = first[:rows].float(), second[:rows].to(first.device).float()
        if float((a - b).norm()) > _ROUNDING * float(a.norm()):
            return False
    return True
