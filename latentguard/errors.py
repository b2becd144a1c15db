"""The exceptions of latentguard: one base class, one subclass per kind of mistake.

Each message is a single line that says what was wrong and where. None of them carries the text of a prompt, so
they are safe to log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentguard.verdict import Verdict


class LatentGuardError(Exception):
    """Base of every error that latentguard raises on purpose."""


class PromptError(LatentGuardError):
    """A prompt can't be scored: empty, not text, or longer than the limit."""


class MessageError(PromptError):
    """A message is no encrypted prompt or concept for this model: damaged, forged, too long, or for another one."""


class DataError(LatentGuardError):
    """A data file can't be read or written as asked; the message names the file, and the row and field if known."""


class ConceptError(LatentGuardError):
    """A concept or a concept bank can't be used: empty, already there, unknown, or no concept at all."""


class PolicyError(LatentGuardError):
    """A threshold or another setting of the policy is not usable."""


class WeightsError(LatentGuardError):
    """A weights folder is missing, damaged, or made for another encoder."""


class EncoderError(LatentGuardError):
    """A text encoder is unknown, can't be loaded, or its files are not the published ones."""


class DeviceError(LatentGuardError):
    """A device, an arithmetic or a compiler that was asked for can't be used here."""


class MissingDependencyError(LatentGuardError):
    """An optional package is needed for what was asked; the message says how to install it."""


class PipelineError(LatentGuardError):
    """An image pipeline can't be guarded: its inputs aren't understood, or it has nothing to guard."""


class UnscreenedError(LatentGuardError):
    """Something that would steer an image can't be screened, so the image is not made."""


class ToolError(LatentGuardError):
    """A tool that agents call failed; `code` is a stable word for programs, the message is for whoever called."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentError(LatentGuardError):
    """A request can't be planned or carried out as asked; the message says what is missing and how to give it."""


class ServiceError(LatentGuardError):
    """Base of what can go wrong in the service; the message holds no secret and no prompt."""


class PromptBlocked(LatentGuardError):
    """A guarded pipeline refused one or more prompts before the first denoising step.

    ``verdicts`` holds the verdict of each prompt of the call, in order, None for an empty one. The message names the
    concepts that decided and never quotes a prompt; the verdicts do hold the prompts.
    """

    def __init__(self, verdicts: Sequence[Verdict | None]) -> None:
        self.verdicts = tuple(verdicts)
        refused = [
            f"{place + 1} ({verdict.concept})"
            for place, verdict in enumerate(self.verdicts)
            if verdict is not None and verdict.blocked
        ]
        super().__init__(f"blocked, of {len(self.verdicts)} prompts: {', '.join(refused)}")
