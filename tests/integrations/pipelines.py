"""A small random pipeline of each class, and the arguments that a call of it needs beside the prompt."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from examples import tiny

ALLOWED = ("a red wine on the table", "a dog running through the field", "portrait of a knight with a sword")
BLOCKED = "a naked woman and a knife fight"
CALL = {"num_inference_steps": 2, "output_type": "pt"}
PICTURE = Image.new("RGB", (64, 64), (90, 120, 30))
MASK = Image.new("L", (64, 64), 255)


@cache
def clip_tokenizer() -> Any:
    """Shared by all pipelines; no test may change it."""
    return tiny.clip_tokenizer()


@cache
def t5_tokenizer() -> Any:
    words = sorted({*BLOCKED.split(), *" ".join(ALLOWED).split()})
    pieces = [f"\u2581{word}" for word in words] + [*string.ascii_lowercase, "\u2581"]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(piece, -float(len(piece) < 3)) for piece in pieces]
    return transformers.T5Tokenizer(vocab=list(dict(scores).items()), extra_ids=0, model_max_length=77)


def t5_encoder() -> Any:
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=tiny.WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    )
    return transformers.T5EncoderModel(config).eval()


def sd(kind: type = diffusers.StableDiffusionPipeline, **more: Any) -> Any:
    channels = 9 if more.pop("nine_channels", False) else 4
    components = {
        "vae": tiny.vae(),
        "text_encoder": tiny.clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": tiny.unet(channels=channels),
        "scheduler": tiny.ddim(),
    }
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(kind(**components, **extra, **more))


def sdxl(kind: type = diffusers.StableDiffusionXLPipeline, **more: Any) -> Any:
    components = {
        "vae": tiny.vae(),
        "text_encoder": tiny.clip_text_encoder(),
        "text_encoder_2": tiny.clip_text_encoder(projection=True, seed=3),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": tiny.unet(cross_attention=2 * tiny.WIDTH, xl=True),
        "scheduler": tiny.ddim(),
    }
    return quiet(kind(**components, add_watermarker=False, **more))


def controlnet(xl: bool = False) -> Any:
    pipe = sdxl() if xl else sd()
    torch.manual_seed(6)
    return diffusers.ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8), load_weights_from_unet=False
    ).eval()


def sd3_components() -> dict[str, Any]:
    torch.manual_seed(7)
    width = tiny.WIDTH
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * width,
        pooled_projection_dim=2 * width,
        out_channels=4,
    ).eval()
    torch.manual_seed(8)
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": tiny.vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        # As SD3 has it: with a projection, and the same tower beneath it as the others' CLIP ViT-L/14.
        "text_encoder": projected(tiny.clip_text_encoder()),
        "text_encoder_2": tiny.clip_text_encoder(projection=True, seed=3),
        "text_encoder_3": wide_t5_encoder(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
    }


def projected(tower: Any) -> Any:
    torch.manual_seed(9)
    model = transformers.CLIPTextModelWithProjection(tower.config).eval()
    model.text_model.load_state_dict(tower.state_dict())
    return model


def wide_t5_encoder() -> Any:
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()), d_model=2 * tiny.WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    return transformers.T5EncoderModel(config).eval()


def sd3(kind: type = diffusers.StableDiffusion3Pipeline) -> Any:
    return quiet(kind(**sd3_components()))


def flux_components() -> dict[str, Any]:
    torch.manual_seed(10)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=tiny.WIDTH,
        pooled_projection_dim=tiny.WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": tiny.vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": tiny.clip_text_encoder(),
        "text_encoder_2": t5_encoder(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
    }


def flux(kind: type = diffusers.FluxPipeline) -> Any:
    return quiet(kind(**flux_components()))


def pixart(kind: type = diffusers.PixArtAlphaPipeline) -> Any:
    torch.manual_seed(11)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=tiny.WIDTH,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    ).eval()
    components = {
        "transformer": transformer,
        "vae": tiny.vae(),
        "scheduler": tiny.ddim(),
        "text_encoder": t5_encoder(),
        "tokenizer": t5_tokenizer(),
    }
    return quiet(kind(**components))


def modular(blocks: Any, components: dict[str, Any]) -> Any:
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: one for name, one in components.items() if name in pipe.component_names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular_sdxl() -> Any:
    return modular(diffusers.StableDiffusionXLAutoBlocks(), sdxl().components)


def modular_sd3() -> Any:
    return modular(diffusers.StableDiffusion3AutoBlocks(), sd3_components())


def modular_flux() -> Any:
    return modular(diffusers.FluxAutoBlocks(), flux_components())


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Kind:
    """How to make a pipeline, and what its call takes beside the prompt, for one prompt."""

    make: Callable[[], Any]
    call: dict[str, Any] = field(default_factory=dict)
    fits: bool = True
    lists: tuple[str, ...] = ()
    """Arguments that there must be one of for each prompt."""


SMALL = {"height": 64, "width": 64}
T5 = {**SMALL, "max_sequence_length": 16}
KINDS = {
    "StableDiffusionPipeline": Kind(sd),
    "StableDiffusionImg2ImgPipeline": Kind(
        lambda: sd(diffusers.StableDiffusionImg2ImgPipeline), {"image": PICTURE}, lists=("image",)
    ),
    "StableDiffusionInpaintPipeline": Kind(
        lambda: sd(diffusers.StableDiffusionInpaintPipeline), {"image": PICTURE, "mask_image": MASK, **SMALL}
    ),
    "StableDiffusionControlNetPipeline": Kind(
        lambda: sd(diffusers.StableDiffusionControlNetPipeline, controlnet=controlnet()), {"image": PICTURE}
    ),
    "StableDiffusionControlNetImg2ImgPipeline": Kind(
        lambda: sd(diffusers.StableDiffusionControlNetImg2ImgPipeline, controlnet=controlnet()),
        {"image": PICTURE, "control_image": PICTURE},
        lists=("image", "control_image"),
    ),
    "StableDiffusionControlNetInpaintPipeline": Kind(
        lambda: sd(diffusers.StableDiffusionControlNetInpaintPipeline, controlnet=controlnet()),
        {"image": PICTURE, "mask_image": MASK, "control_image": PICTURE},
    ),
    "StableDiffusionXLPipeline": Kind(sdxl),
    "StableDiffusionXLImg2ImgPipeline": Kind(
        lambda: sdxl(diffusers.StableDiffusionXLImg2ImgPipeline), {"image": PICTURE, "strength": 1.0}, lists=("image",)
    ),
    "StableDiffusionXLInpaintPipeline": Kind(
        lambda: sdxl(diffusers.StableDiffusionXLInpaintPipeline), {"image": PICTURE, "mask_image": MASK, **SMALL}
    ),
    "StableDiffusionXLControlNetPipeline": Kind(
        lambda: sdxl(diffusers.StableDiffusionXLControlNetPipeline, controlnet=controlnet(xl=True)), {"image": PICTURE}
    ),
    "StableDiffusion3Pipeline": Kind(sd3, T5),
    "StableDiffusion3Img2ImgPipeline": Kind(
        lambda: sd3(diffusers.StableDiffusion3Img2ImgPipeline), {"image": PICTURE, **T5}
    ),
    "FluxPipeline": Kind(flux, T5),
    "FluxImg2ImgPipeline": Kind(lambda: flux(diffusers.FluxImg2ImgPipeline), {"image": PICTURE, **T5}),
    "PixArtAlphaPipeline": Kind(pixart, {**T5, "use_resolution_binning": False, "clean_caption": False}, fits=False),
    "PixArtSigmaPipeline": Kind(
        lambda: pixart(diffusers.PixArtSigmaPipeline),
        {**T5, "use_resolution_binning": False, "clean_caption": False},
        fits=False,
    ),
}
MODULAR = {
    "StableDiffusionXLModularPipeline": Kind(modular_sdxl, {**SMALL}),
    "StableDiffusion3ModularPipeline": Kind(modular_sd3, {**T5}),
    "FluxModularPipeline": Kind(modular_flux, {**T5}),
}


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


class Counter:
    """Counts the calls of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self._called)

    def _called(self, *_: object) -> None:
        self.count += 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
