"""Stable Diffusion XL with a guard that raises, a negative prompt that is screened too, and a check of the pictures.

python examples/guarded_sdxl.py "a red fox in the snow"
python examples/guarded_sdxl.py --tiny      # random weights: no download, and a picture of noise
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from latentguard import LatentGuard, PromptBlocked
from latentguard.integrations.diffusers import guard_pipeline

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a prompt; returns the exit status, 1 if it was blocked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a red fox in the snow")
    parser.add_argument("--negative", default=None, help="a negative prompt")
    parser.add_argument("--tiny", action="store_true", help="a pipeline of random weights instead of the real one")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--output", type=Path, default=Path("picture.png"), metavar="FILE")
    given = parser.parse_args(arguments)

    pipe = guard_pipeline(
        load(given.tiny), LatentGuard.from_pretrained(), screen_negative=True, image_check=too_dark_to_tell
    )
    try:
        output = pipe(given.prompt, negative_prompt=given.negative, num_inference_steps=given.steps)
    except PromptBlocked as refused:
        print(refused)
        return 1
    output.images[0].save(given.output)
    print(f"{given.output}: {output.verdicts[0].score:.2f}" + (", made blank" if output.blanked[0] else ""))
    return 0


def too_dark_to_tell(images: list[Image.Image]) -> list[bool]:
    """An image check of one's own; a classifier would stand here, or diffusers' StableDiffusionSafetyChecker."""
    return [bool(np.asarray(image).max() < 16) for image in images]


def load(tiny: bool) -> Any:
    """The pipeline."""
    if tiny:
        import tiny as tiny_pipelines  # type: ignore[import-not-found]  # the file beside this one

        return tiny_pipelines.stable_diffusion_xl()
    from diffusers import StableDiffusionXLPipeline

    if torch.cuda.is_available():
        pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, torch_dtype=torch.float16, variant="fp16")
        pipe.enable_model_cpu_offload()
        return pipe
    return StableDiffusionXLPipeline.from_pretrained(MODEL)


if __name__ == "__main__":
    raise SystemExit(main())
