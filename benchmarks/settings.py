"""How much is measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from benchmarks.reference import VIT_L_14, Tower

WANTED_AT = 578
"""The published list's number of concepts; what is wanted is wanted there."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        threads: processor threads of PyTorch and of ONNX Runtime.
        concepts: the sizes of the concept bank.
        rounds: the turns that a call and its reference take, fewer for large banks.
        calls: timed calls of the guard for each figure.
        prompts: prompts of a batch.
        prompt_files: files of prompts that the encoder's are taken from, instead of being made up.
        batches: the numbers of prompts in a call, rising, of the table of costs.
        pairs: pairs of prompt and concept up to which that table has the published calculation, which takes 0.7 ms and
            0.7 MB for each of them.
        steps: denoising steps of the pipeline's call that the guard is measured beside.
        device: where the table of costs is measured: "cpu", "cuda", ...
        tower: the sizes of the published pipeline's text encoder.
        denoiser: channels of the blocks of the denoiser that the guard is measured beside; Stable Diffusion 1.5's.
    """

    threads: int = 2
    concepts: tuple[int, ...] = (50, WANTED_AT, 5000)
    rounds: int = 8
    calls: int = 240
    prompts: int = 2000
    prompt_files: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    pairs: int = 5000
    steps: int = 20
    device: str = "cpu"
    tower: Tower = VIT_L_14
    denoiser: tuple[int, ...] = (320, 640, 1280, 1280)

    def to_json(self) -> str:
        """All of it, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """What :meth:`to_json` wrote."""
        given = json.loads(text)
        return cls(**{**given, "tower": Tower(**given["tower"])})

    def rounds_at(self, concept_count: int) -> int:
        """Fewer rounds where the reference takes seconds, but two at the least."""
        return max(2, min(self.rounds, self.rounds * 1000 // concept_count))

    def calls_at(self, concept_count: int) -> int:
        """Calls in each of those rounds."""
        return -(-self.calls // self.rounds_at(concept_count))


QUICK = Settings(concepts=(50, WANTED_AT), rounds=2, calls=40, prompts=200, batches=(1, 16), pairs=1000, steps=2)
"""For a look while developing: fewer runs and no large bank."""
