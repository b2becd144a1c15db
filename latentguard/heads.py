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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentguard.lexicon import WordRarity
from latentguard.mapping import ConceptQueries, real_lengths, rows_apart
from latentguard.prompt_head import PromptHead, any_category
from latentguard.shapes import LEAST_LOG_ODDS
from latentguard.shapes import Combination as Combination


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
class Heads:
    """Everything beside the mapping layer that a score needs."""

    prompt_head: PromptHead
    scale: ConceptScale
    combination: Combination
    rarity: WordRarity

    def on(self, device: torch.device) -> Heads:
        """The same on ``device``, in eval mode."""
        return Heads(self.prompt_head.to(device).eval(), self.scale.to(device).eval(), self.combination, self.rarity)

    @torch.inference_mode()
    def moments(self, queries: ConceptQueries) -> Tensor:
        """Mean and spread [N, 2] of the scores of N concepts with harmless prompts; no gradient."""
        found: Tensor = self.scale(queries)
        return found

    @torch.inference_mode()
    def harm(self, z: Tensor, mask: Tensor, enabled: Sequence[bool] | None = None) -> Tensor:
        """Evidence of harm [B, K + 1], log(1 + e · odds), in prompts z [B, L', D]: of each category, then of any.

        Categories that ``enabled`` [K] leaves out have no part in the last one.
        """
        if rows_apart(z):
            # One by one, without padding, so that a prompt's score doesn't depend on its neighbours by a single bit.
            rows = zip(range(len(z)), real_lengths(mask), strict=True)
            each = [self.prompt_head(z[i : i + 1, :length], mask[i : i + 1, :length]) for i, length in rows]
            log_odds = torch.cat(each)
        else:
            log_odds = self.prompt_head(z, mask).float()
        counted = log_odds
        if enabled is not None:
            counted = log_odds.masked_fill(~torch.tensor(enabled, device=z.device), -torch.inf)
        log_odds = torch.cat([log_odds, any_category(counted)[:, None].clamp_min(LEAST_LOG_ODDS)], dim=1)
        return F.softplus(log_odds + 1)
