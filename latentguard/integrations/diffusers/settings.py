"""How a pipeline is guarded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from latentguard.errors import PipelineError
from latentguard.guard import LatentGuard
from latentguard.integrations.diffusers.receipts import Receipts
from latentguard.verdict import Verdict

OnBlock = Literal["raise", "blank", "replace"]
Replacement = str | Callable[[Verdict], str]
ImageCheck = Callable[[list[Any]], Sequence[bool]]


@dataclass(eq=False)
class Settings:
    """What `guard_pipeline` was told, shared by the pipelines made from the guarded one.

    ``receipts`` remembers what was screened as text and handed out as embeddings.
    """

    guard: LatentGuard
    on_block: OnBlock
    replacement: Replacement | None
    screen_negative: bool
    allow_unscreened: bool
    image_check: ImageCheck | None
    receipts: Receipts = field(default_factory=Receipts)

    def __post_init__(self) -> None:
        if not isinstance(self.guard, LatentGuard):
            raise PipelineError(f"guard: expected a LatentGuard, got {type(self.guard).__name__}")
        if self.on_block not in get_args(OnBlock):
            raise PipelineError(f"on_block: no {self.on_block!r}; give one of {', '.join(get_args(OnBlock))}")
        if (self.on_block == "replace") != (self.replacement is not None):
            raise PipelineError('replacement goes with on_block="replace", and that needs one')
        if not (self.replacement is None or isinstance(self.replacement, str) or callable(self.replacement)):
            raise PipelineError(f"replacement: expected text or a callable, got {type(self.replacement).__name__}")
        if self.image_check is not None and not callable(self.image_check):
            raise PipelineError(f"image_check: expected a callable, got {type(self.image_check).__name__}")

    def replacement_for(self, verdict: Verdict) -> str:
        """The prompt that takes the place of a blocked one; PipelineError if the callable gives no text."""
        text = self.replacement(verdict) if callable(self.replacement) else self.replacement
        if not isinstance(text, str):
            raise PipelineError(f"replacement: expected text from the callable, got {type(text).__name__}")
        return text
