"""What the layers of a model are sized and combined by, whatever arrays they compute with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentguard.arrays import Array
from latentguard.lexicon import LexicalMatch
from latentguard.naming import Naming

LEAST_LOG_ODDS = -20.0
"""Of any category of harm, when a policy has switched all of them off."""


@dataclass(frozen=True)
class MappingShape:
    """The sizes of a mapping layer: encoder width D, heads H of width d, output width O."""

    width: int
    heads: int = 16
    head_width: int = 32
    output: int = 128


@dataclass(frozen=True)
class PromptHeadShape:
    """The sizes of a prompt head: encoder width D, hidden width, and the names of its K categories."""

    width: int
    categories: tuple[str, ...]
    hidden: int = 192

    def category_of(self, name: str | None) -> int:
        """The number of a category; that of "any of them", K, for a name that the prompt head doesn't know."""
        return self.categories.index(name) if name in self.categories else len(self.categories)


@dataclass(frozen=True)
class Combination:
    """The weights of the score: ``concept`` α, ``part`` and ``named`` β, ``prompt`` η, ``bias`` b."""

    concept: float
    part: float
    named: float
    prompt: float
    bias: float

    def of_parts(self, scores: Array, moments: Array, harm: Array) -> Array:
        """The score but for names: of the mapping layer's [..., N], its moments [N, 2] and the evidence of harm
        [..., N] in each concept's category."""
        mean, spread = moments[:, 0], moments[:, 1]
        return self.concept * (scores - mean) / spread + self.prompt * harm + self.bias

    def of_grades(self, match: LexicalMatch) -> np.ndarray:
        """What each hit adds to its concept's score [m], float32."""
        added: np.ndarray = self.naming()[match.grades] * match.rarity
        return added

    def naming(self) -> np.ndarray:
        """β by grade of naming [4], float32; 0 for none."""
        by_grade = np.zeros(max(Naming) + 1, dtype=np.float32)
        by_grade[[Naming.PART, Naming.FULL, Naming.EXACT]] = self.part, self.named, self.named
        return by_grade
