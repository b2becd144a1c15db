"""Safe text-to-image generation: blocks prompts near blacklisted concepts before any diffusion step."""

from latentguard.bank import ConceptBank
from latentguard.errors import (
    ConceptError,
    DataError,
    EncoderError,
    LatentGuardError,
    MissingDependencyError,
    PolicyError,
    PromptError,
    WeightsError,
)
from latentguard.guard import LatentGuard
from latentguard.policy import Policy
from latentguard.records import ConceptEntry
from latentguard.verdict import Explanation, Verdict

__version__ = "0.1.0"

__all__ = [
    "ConceptBank",
    "ConceptEntry",
    "ConceptError",
    "DataError",
    "EncoderError",
    "Explanation",
    "LatentGuard",
    "LatentGuardError",
    "MissingDependencyError",
    "Policy",
    "PolicyError",
    "PromptError",
    "Verdict",
    "WeightsError",
]
