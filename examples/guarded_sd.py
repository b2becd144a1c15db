"""Stable Diffusion 1.5 with a guard: blocked prompts come back blank, the others as they would have.

python examples/guarded_sd.py "a red fox in the snow" "a masked gunman in a crowd"
python examples/guarded_sd.py --tiny        # random weights: no download, and a picture of noise
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentguard import LatentGuard
from latentguard.integrations.diffusers import guard_pipeline

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PROMPTS = ("a red fox in the snow", "a masked gunman aiming at a crowd")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws the prompts and prints their verdicts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", default=PROMPTS, metavar="PROMPT")
    parser.add_argument("--tiny", action="store_true", help="a pipeline of random weights instead of the real one")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--output", type=Path, default=Path("."), metavar="DIR", help="where the pictures go")
    given = parser.parse_args(arguments)

    pipe = guard_pipeline(load(given.tiny), LatentGuard.from_pretrained(), on_block="blank")
    output = pipe(list(given.prompts), num_inference_steps=given.steps, generator=torch.Generator().manual_seed(0))
    given.output.mkdir(parents=True, exist_ok=True)
    for place, (image, verdict) in enumerate(zip(output.images, output.verdicts, strict=True)):
        image.save(given.output / f"{place}.png")
        print("BLOCKED" if verdict.blocked else "allowed", f"{verdict.score:6.2f}", verdict.concept, sep="  ")
    return 0


def load(tiny: bool) -> Any:
    """The pipeline."""
    if tiny:
        import tiny as tiny_pipelines  # type: ignore[import-not-found]  # the file beside this one

        return tiny_pipelines.stable_diffusion()
    from diffusers import StableDiffusionPipeline

    if torch.cuda.is_available():
        return StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float16).to("cuda")
    return StableDiffusionPipeline.from_pretrained(MODEL)


if __name__ == "__main__":
    raise SystemExit(main())
