"""The exceptions of latentguard: one base class, one subclass per kind of mistake.

Each message is a single line that says what was wrong and where. None of them carries the text of a prompt, so
they are safe to log.
"""

from __future__ import annotations


class LatentGuardError(Exception):
    """Base of every error that latentguard raises on purpose."""


class PromptError(LatentGuardError):
    """A prompt can't be scored: empty, not text, or longer than the limit."""


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


class MissingDependencyError(LatentGuardError):
    """An optional package is needed for what was asked; the message says how to install it."""
