"""Pipelines of random weights, a few hundred kilobytes each, for trying things without downloading anything.

They draw noise. Their tokenizer is CLIP's own, from the vocabulary that open_clip carries, and their guard has a random
mapping layer too, so that what it blocks means nothing; `tiny_guard` sets its threshold so that it blocks something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import open_clip
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from latentguard import LatentGuard, Policy
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.mapping import MappingLayer, MappingShape

WIDTH = 32
CONCEPTS = ("knife fight", "gun war", "naked woman", "blood on the street", "bomb")


def clip_tokenizer() -> Any:
    """The tokenizer of the published CLIP models, with windows of 77 tokens."""
    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in simple.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)


def clip_text_encoder(*, projection: bool = False, seed: int = 0) -> Any:
    """A random CLIP text tower of three layers, 32 wide, with or without a projection behind it."""
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=WIDTH,
        hidden_act="gelu" if projection else "quick_gelu",
        initializer_factor=5.0,  # so that different words have different states, as in a trained tower
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def unet(*, cross_attention: int = WIDTH, xl: bool = False, channels: int = 4) -> Any:
    """A random denoiser of two blocks, for latents of 8 by 8."""
    torch.manual_seed(1)
    extra: dict[str, Any] = {}
    if xl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        }
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention,
        attention_head_dim=8,
        norm_num_groups=8,
        **extra,
    ).eval()


def vae(*, channels: int = 4, **settings: Any) -> Any:
    """A random autoencoder that makes 8 pixels of a latent, as the real ones do."""
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 8, 16, 16],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **settings,
    ).eval()


def ddim() -> Any:
    """Stable Diffusion's noise schedule, without randomness of its own."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def stable_diffusion() -> Any:
    """A pipeline of Stable Diffusion 1's make."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl() -> Any:
    """A pipeline of Stable Diffusion XL's make."""
    tokenizer = clip_tokenizer()
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text_encoder(),
        text_encoder_2=clip_text_encoder(projection=True, seed=3),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(cross_attention=2 * WIDTH, xl=True),
        scheduler=ddim(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_guard(
    text_encoder: Any, tokenizer: Any, allowed: Sequence[str], blocked: str, layers: Sequence[int] | None = None
) -> LatentGuard:
    """A guard on a CLIP text tower that happens to tell the allowed prompts from the blocked one.

    Random layers are made until one scores the blocked prompt highest.
    """
    encoder = HuggingFaceEncoder.from_model(text_encoder, tokenizer, name="hf:tiny", layers=layers)
    for seed in range(500):
        torch.manual_seed(seed)
        layer = MappingLayer(MappingShape(encoder.width, heads=4, head_width=8, output=16)).eval().requires_grad_(False)
        guard = LatentGuard(encoder, layer, CONCEPTS, Policy(0.0))
        *others, worst = guard.score([*allowed, blocked]).tolist()
        if worst - max(others) > 1.0:
            guard.policy = Policy((worst + max(others)) / 2)
            return guard
    raise ValueError("no random mapping layer tells the blocked prompt from the allowed ones")


def quiet() -> None:
    """Keep diffusers and transformers from warning about truncated prompts and sizes of toys."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
