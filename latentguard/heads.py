"""What stands beside the mapping layer, and how all of it becomes one score.

Evidence about the concept (the mapping layer), about the prompt (the prompt head) and about the words (the lexical
head) complete each other. For a prompt p and a concept c, with s the mapping layer's score,

    score(p, c) = α · (s - μ_c) / σ_c  +  β_g(p, c) · rarity(c)  +  η · log(1 + e · exp h_k(c)(p))  +  b

- μ_c and σ_c are mean and spread of the scores that harmless prompts have with c, as a linear function of c's
  direction q' / |q'| foretells them: some concepts score high with every prompt.
- g is how closely p names c (not at all, in part, or whole, be it inflected), and rarity(c) how seldom the name's
  rarest word stands in harmless prompts: "clean" spelled out says little, "beheading" much.
- h_k is the prompt head's log-odds for the category k of c, or for any category where c has none. Harm adds to the
  score, and a prompt without any takes nothing from it: a concept can be unwanted where it does no harm.

The four weights and the constant are those of a logistic regression on concepts that training didn't see, so that the
score is a log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentguard.lexicon import LexicalMatch, WordRarity
from latentguard.mapping import ConceptQueries, real_lengths
from latentguard.naming import Naming
from latentguard.prompt_head import PromptHead, any_category

_LEAST = -20.0  # log-odds of any category when a policy has switched all of them off


class ConceptScale(nn.Module):
    """Mean and logarithm of the spread of a concept's scores, from its direction: linear, fitted by least squares."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.moments = nn.Linear(output, 2)

    def forward(self, queries: ConceptQueries) -> Tensor:
        """Mean and spread [N, 2] of the scores of N concepts with harmless prompts."""
        mean, spread = self.moments(F.normalize(queries.direction, dim=-1)).unbind(-1)
        return torch.stack([mean, spread.exp()], dim=-1)


@dataclass(frozen=True)
class Combination:
    """The weights of the score: ``concept`` α, ``part`` and ``named`` β, ``prompt`` η, ``bias`` b."""

    concept: float
    part: float
    named: float
    prompt: float
    bias: float

    def of_grades(self, match: LexicalMatch) -> np.ndarray:
        """What each hit adds to its concept's score [m], float32."""
        added: np.ndarray = self.naming()[match.grades] * match.rarity
        return added

    def naming(self) -> np.ndarray:
        """β by grade of naming [4], float32; 0 for none."""
        by_grade = np.zeros(max(Naming) + 1, dtype=np.float32)
        by_grade[[Naming.PART, Naming.FULL, Naming.EXACT]] = self.part, self.named, self.named
        return by_grade


@dataclass(frozen=True)
class Heads:
    """Everything beside the mapping layer that a score needs."""

    prompt_head: PromptHead
    scale: ConceptScale
    combination: Combination
    rarity: WordRarity

    def to(self, device: torch.device) -> Heads:
        """The same on ``device``, in eval mode."""
        return Heads(self.prompt_head.to(device).eval(), self.scale.to(device).eval(), self.combination, self.rarity)

    def category_of(self, name: str | None) -> int:
        """The number of a category; that of "any of them", K, for a name that the prompt head doesn't know."""
        known = self.prompt_head.shape.categories
        return known.index(name) if name in known else len(known)

    @torch.inference_mode()
    def harm(self, z: Tensor, mask: Tensor, enabled: Tensor | None = None) -> Tensor:
        """Evidence of harm [B, K + 1], log(1 + e · odds), in prompts z [B, L', D]: of each category, then of any.

        Categories that ``enabled`` [K] leaves out have no part in the last one.
        """
        if z.device.type == "cpu":
            # One by one, without padding, so that a prompt's score doesn't depend on its neighbours by a single bit.
            rows = zip(range(len(z)), real_lengths(mask), strict=True)
            each = [self.prompt_head(z[i : i + 1, :length], mask[i : i + 1, :length]) for i, length in rows]
            log_odds = torch.cat(each)
        else:
            log_odds = self.prompt_head(z, mask)
        counted = log_odds if enabled is None else log_odds.masked_fill(~enabled, -torch.inf)
        log_odds = torch.cat([log_odds, any_category(counted)[:, None].clamp_min(_LEAST)], dim=1)
        return F.softplus(log_odds + 1)
