"""The guard's share of a diffusers pipeline's call, against a call of a Stable Diffusion 1.5-sized one.

Its milliseconds can't be seen beside the seconds of such a call, nor in the difference of calls of a small pipeline,
which vary by more. So what a guarded call computes beside a plain one is timed by itself: the verdict on the states
that the pipeline's text encoder has computed anyway, or on the text where the guard reads that. All weights are random:
speed doesn't depend on them.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from benchmarks.made_up import LAYERS, guard_of
from benchmarks.reference import Tower
from benchmarks.report import Figure
from benchmarks.settings import WANTED_AT, Settings
from benchmarks.timing import Call, interleaved
from latentguard.encoders import load_encoder

SIDE = 64
_PROMPT = "an old fisherman mending nets at dawn in a small harbour, watercolour, muted colours"


def pipeline(settings: Settings) -> list[Figure]:
    """What a guard computes in a call of some steps, in ms, by what it reads and by bank size."""
    # Here and not above: the other benchmarks need no diffusers.
    from examples import tiny
    from latentguard.encoders.huggingface import HuggingFaceEncoder

    tiny.quiet()
    tokenizer = tiny.clip_tokenizer()
    large = _pipe(settings.tower, settings.denoiser, tokenizer)
    _draw(large, steps=1)
    start = time.perf_counter()
    _draw(large, settings.steps)
    whole = time.perf_counter() - start
    reader = HuggingFaceEncoder.from_model(large.text_encoder, tokenizer, name="hf:random")
    embedded = load_encoder(device="cpu", layers=LAYERS, threads=settings.threads)
    states = reader.encode_windows(reader.windows(_PROMPT)[:1])
    size = f"{settings.steps} steps at {SIDE}x{SIDE}"
    figures = []
    for count in settings.concepts:
        by_states, by_text = guard_of(reader, count), guard_of(embedded, count)
        times = interleaved(
            {
                "states": Call(partial(by_states.check_states, states, [_PROMPT]), settings.calls_at(count)),
                "text": Call(partial(by_text.check, _PROMPT), settings.calls_at(count)),
            },
            settings.rounds_at(count),
        )
        for name, what in (("states", "the pipeline's states"), ("text", "the text by the embedded encoder")):
            figures.append(
                Figure(
                    "pipeline",
                    f"{what}, {count:,} concepts; {size}",
                    times[name].median * 1e3,
                    "ms",
                    whole * 1e3,
                    times[name].p99 * 1e3,
                    wanted_ratio=100 if name == "states" and count == WANTED_AT else None,
                )
            )
    return figures


def _draw(pipe: Any, steps: int) -> None:
    pipe(_PROMPT, num_inference_steps=steps, height=SIDE, width=SIDE, output_type="latent")


def _pipe(tower: Tower, channels: tuple[int, ...], tokenizer: Any) -> Any:
    """A Stable Diffusion pipeline of these sizes, with as many tokens as the tokenizer has."""
    import diffusers
    import transformers

    from examples import tiny

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_hidden_layers=tower.num_hidden_layers,
        num_attention_heads=tower.num_attention_heads,
        vocab_size=len(tokenizer),
    )
    attended = len(channels) - 1
    denoiser = diffusers.UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=2,
        sample_size=SIDE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
        cross_attention_dim=tower.hidden_size,
        attention_head_dim=8,
        norm_num_groups=min(32, channels[0]),
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=tiny.vae(),
        text_encoder=transformers.CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=denoiser.eval(),
        scheduler=tiny.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
