"""Safe text-to-image generation: blocks prompts near blacklisted concepts before any diffusion step."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentguard.errors import (
    ConceptError,
    DataError,
    EncoderError,
    LatentGuardError,
    MissingDependencyError,
    PipelineError,
    PolicyError,
    PromptBlocked,
    PromptError,
    UnscreenedError,
    WeightsError,
)

if TYPE_CHECKING:
    from latentguard.bank import ConceptBank
    from latentguard.guard import LatentGuard
    from latentguard.policy import Policy
    from latentguard.records import ConceptEntry
    from latentguard.verdict import Explanation, Verdict

__version__ = "0.1.0"

_HOMES = {
    "ConceptBank": "bank",
    "ConceptEntry": "records",
    "Explanation": "verdict",
    "LatentGuard": "guard",
    "Policy": "policy",
    "Verdict": "verdict",
}

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
    "PipelineError",
    "Policy",
    "PolicyError",
    "PromptBlocked",
    "PromptError",
    "UnscreenedError",
    "Verdict",
    "WeightsError",
]


def __getattr__(name: str) -> Any:
    """Imports a name at its first use: PyTorch takes seconds, which `--help` or a misspelt file need not cost."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
