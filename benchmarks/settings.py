"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

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
        tower: the sizes of the published pipeline's text encoder.
        denoiser: channels of the blocks of the denoiser that the guard is measured beside; Stable Diffusion 1.5's.
    """

    threads: int = 2
    concepts: tuple[int, ...] = (50, WANTED_AT, 5000)
    rounds: int = 8
    calls: int = 240
    prompts: int = 2000
    tower: Tower = VIT_L_14
    denoiser: tuple[int, ...] = (320, 640, 1280, 1280)

    def rounds_at(self, concept_count: int) -> int:
        """Fewer rounds where the reference takes seconds, but two at the least."""
        return max(2, min(self.rounds, self.rounds * 1000 // concept_count))

    def calls_at(self, concept_count: int) -> int:
        """Calls in each of those rounds."""
        return -(-self.calls // self.rounds_at(concept_count))


QUICK = Settings(concepts=(50, WANTED_AT), rounds=2, calls=40, prompts=200)
"""For a look while developing: fewer runs and no large bank."""
