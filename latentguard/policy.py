"""The policy: from a score to a decision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from latentguard.errors import PolicyError
from latentguard.records import ConceptEntry

Decision = Literal["allow", "flag", "block"]


def checked_threshold(value: object, what: str = "threshold") -> float:
    """``value`` as a finite float; PolicyError naming ``what`` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, np.number)):
        raise PolicyError(f"{what}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise PolicyError(f"{what}: {str(value)[:40]!r} is not a number") from None
    if not math.isfinite(number):
        raise PolicyError(f"{what}: {number} is not a finite number")
    return number


@dataclass(frozen=True)
class Policy:
    """Which scores block a prompt.

    A concept's own threshold counts before its category's, and that before ``threshold``. A prompt is blocked when a
    concept's score reaches the threshold that counts for it, and flagged when it comes within ``flag_margin`` below.

    Args:
        threshold: the score from which a prompt is blocked.
        flag_margin: how far below a threshold a prompt is still flagged for a look; 0 flags nothing.
        categories: thresholds of whole categories; ``None`` switches a category off.
    """

    threshold: float
    flag_margin: float = 0.0
    categories: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", checked_threshold(self.threshold))
        object.__setattr__(self, "flag_margin", checked_threshold(self.flag_margin, "flag_margin"))
        if self.flag_margin < 0:
            raise PolicyError(f"flag_margin: {self.flag_margin} is below 0")
        thresholds = {
            name: None if value is None else checked_threshold(value, f"threshold of category {name!r}")
            for name, value in self.categories.items()
        }
        object.__setattr__(self, "categories", thresholds)

    def thresholds(self, concepts: Iterable[ConceptEntry]) -> np.ndarray:
        """The threshold that counts for each concept, float32 [N]; infinite where its category is switched off."""
        return np.array(
            [
                self.of_category(concept.category) if concept.threshold is None else concept.threshold
                for concept in concepts
            ],
            dtype=np.float32,
        )

    def of_category(self, category: str | None) -> float:
        """The threshold of a category's concepts without one of their own; infinite where it is switched off."""
        threshold = self.threshold if category is None else self.categories.get(category, self.threshold)
        return math.inf if threshold is None else threshold

    def decide(self, margin: float) -> Decision:
        """The decision for a score that is ``margin`` above its threshold. A margin that is no number blocks."""
        if margin < -self.flag_margin:
            return "allow"
        return "flag" if margin < 0 else "block"
