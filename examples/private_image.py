"""A picture that only its owner can open, of a prompt that says nothing of the owner.

python examples/private_image.py "a nurse called Anna Schmidt reading a letter"
python examples/private_image.py --tiny     # random weights: no download, and a picture of noise

The owner's part is `python -m privacy keygen` and `open`; here both sides are one script.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentguard import LatentGuard
from privacy.errors import PromptRefusedError
from privacy.keys import HYBRID, PrivateKey, SigningKey, save_key
from privacy.pipeline import PrivateImagePipeline
from privacy.sealing import open_sealed

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a prompt privately and opens the picture; returns the exit status, 1 if the prompt was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a nurse reading a letter, call +49 30 23125000")
    parser.add_argument("--tiny", action="store_true", help="a pipeline of random weights instead of the real one")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--output", type=Path, default=Path("."), metavar="DIR", help="where key and pictures go")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)

    # The owner makes a key and gives the public half away. Without a passphrase only for the sake of the example.
    key, server = PrivateKey.generate(HYBRID), SigningKey.generate()
    save_key(key, given.output / "owner.pem", passphrase=None)

    # The server draws. What it stores, sends and logs is sealed.
    private = PrivateImagePipeline(
        load(given.tiny), LatentGuard.from_pretrained(), seal_to=key.public_key(), signing_key=server, model="example"
    )
    try:
        image = private(given.prompt, num_inference_steps=given.steps)[0]
    except PromptRefusedError as refused:
        print(refused)
        return 1
    sealed = given.output / "picture.png.sealed"
    sealed.write_bytes(image.sealed or b"")
    print(f"{sealed}: attributes {image.outcome}, personal data removed: {dict(image.pii)}")

    # The owner opens it, and sees that it is the server's.
    opened = open_sealed(sealed.read_bytes(), key, signer=server.public_key())
    (given.output / "picture.png").write_bytes(opened.data)
    print(f"{given.output / 'picture.png'}: model {opened.info.model}, signed by {opened.info.signer}")
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
