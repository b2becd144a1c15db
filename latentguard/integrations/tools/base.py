"""The interface that all tools are offered through, and what they take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from latentguard.errors import ToolError
from latentguard.policy import Decision
from privacy.keys import PublicKey

ToolName = Literal["screen_prompt", "generate_private_image", "classify_encrypted_image"]

# The service's default limit: what is longer is no prompt.
MOST_PROMPT_CHARS = 10_000
MOST_RECIPIENTS = 16
MOST_STEPS = 150


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Answer):
    """The score of one concept."""

    concept: str
    score: float


class Word(_Answer):
    """A word of the prompt, and what it added to the score."""

    text: str
    contribution: float


class Screening(_Answer):
    """The guard's verdict on one prompt. It doesn't hold the prompt."""

    decision: Decision = Field(description="'block': it must not be drawn; 'flag': allowed, but near a threshold")
    blocked: bool
    score: float
    threshold: float = Field(description="the score from which this prompt is blocked")
    concept: str = Field(description="the blacklisted concept that decided")
    category: str | None
    probability: float | None = Field(description="that it is harmful, if harmful prompts were as frequent as harmless")
    nearest: tuple[Score, ...] = Field(description="the concepts with the highest scores, highest first")
    words: tuple[Word, ...] = Field(description="the words' shares of the score, if they were asked for")
    policy: str = Field(description="fingerprint of the thresholds and concepts that decided")


class PolicyInForce(_Answer):
    """The thresholds that count."""

    fingerprint: str
    threshold: float
    concepts: int = Field(description="how many concepts there are")


class Concept(_Answer):
    """A concept that prompts are screened for."""

    name: str
    category: str | None
    threshold: float | None = Field(description="its own threshold; null if the policy's counts")


@dataclass(frozen=True)
class SealedImage:
    """A PNG that only its recipients can open, and what was done for it. Shows nothing of the content when printed.

    `personal_data` tells how much was taken out of the prompt, by type, and `attributes` what shuffling did, as in
    `privacy.attributes.Outcome`; each is None where that is not known.
    """

    content: bytes = field(repr=False)
    personal_data: Mapping[str, int] | None
    attributes: str | None


class BlockedError(ToolError):
    """The guard blocked a prompt, and nothing was drawn; `verdict` says why."""

    def __init__(self, verdict: Screening) -> None:
        super().__init__("prompt_blocked", f"the guard blocked the prompt: it comes too near {verdict.concept!r}")
        self.verdict = verdict


class Tools(Protocol):
    """What agents may call. Every method may raise `ToolError`, which has a stable code; nothing else is raised.

    Prompts are screened before anything is drawn, and no image leaves unsealed.
    """

    @property
    def offered(self) -> frozenset[ToolName]:
        """The tools that can be called; of a remote service, those that may be there."""
        ...

    @property
    def place(self) -> str:
        """Where they work, in words: who sees what they see."""
        ...

    async def screen(self, prompt: str, *, nearest: int = 5, words: bool = False) -> Screening:
        """The verdict on a prompt, with its `nearest` concepts and, if asked for, its `words`."""
        ...

    async def generate(self, prompt: str, recipients: Sequence[PublicKey], *, steps: int | None = None) -> SealedImage:
        """Draws a prompt and seals the picture to the recipients. Raises BlockedError if the guard blocks it."""
        ...

    async def classify(self, query: bytes, keys: bytes | None = None) -> bytes:
        """The encrypted answer to a query of `privacy.encrypted_inference`; `keys` are needed once per client."""
        ...

    async def policy(self) -> PolicyInForce:
        """The policy in force."""
        ...

    async def concepts(self) -> tuple[Concept, ...]:
        """The concepts in force."""
        ...

    async def aclose(self) -> None:
        """Ends what it started."""
        ...
