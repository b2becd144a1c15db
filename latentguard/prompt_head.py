"""The prompt head: how harmful a prompt is by itself, whatever the concept bank holds.

A concept's score says how near a prompt is to that concept. Harm that no listed concept names has no such concept, and
a harmless prompt that names a harmful word has one. The head looks at the prompt alone. It is attention-based
multiple-instance pooling (Ilse et al., ICML 2018, arXiv 1802.04712) over the positions of z [L', D], one attention and
one value per category of harm:

    u_l = GELU(W z_l + b),  a_lk = softmax_l(A u_l)_k,  h_k = Σ_l a_lk (C u_l)_k + c_k

so that a few harmful words stand out of a long harmless text instead of being averaged away, and a prompt's logit is a
sum over its positions. h_k is the log-odds of category k against "harmless": training is a softmax over the categories
and a harmless class whose logit is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentguard.reading import Attribution
from latentguard.shapes import PromptHeadShape as PromptHeadShape


class PromptHead(nn.Module):
    """Log-odds of each category of harm; see the module's text for the formula and its source."""

    def __init__(self, shape: PromptHeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.to_hidden = nn.Linear(shape.width, shape.hidden)
        self.attention = nn.Linear(shape.hidden, len(shape.categories), bias=False)
        self.value = nn.Linear(shape.hidden, len(shape.categories))

    def forward(self, z: Tensor, mask: Tensor, noise: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Log-odds [B, K] of prompts z [B, L', D] with mask [B, L'], as :func:`latentguard.mapping.with_pooled` gives
        them; ``noise`` is what training's dropout multiplies inputs [B, L', D] and hidden units [B, L', hidden] by."""
        hidden = F.gelu(self.to_hidden(z if noise is None else z * noise[0]))
        if noise is not None:
            hidden = hidden * noise[1].to(hidden.dtype)
        shares = self.attention(hidden).masked_fill(~mask[..., None], -torch.inf).softmax(dim=1)
        # Padding is zero, so its hidden states are finite, and its shares are 0.
        log_odds: Tensor = (shares * F.linear(hidden, self.value.weight)).sum(dim=1) + self.value.bias
        return log_odds

    @torch.inference_mode()
    def attribute(self, z: Tensor, mask: Tensor, pooling: Tensor, category: int) -> Attribution:
        """One prompt z [L', D] with mask [L']: what each position added to the log-odds of ``category``.

        What the pooled state added is shared among the positions by ``pooling`` [L], as in the mapping layer.
        """
        hidden = F.gelu(self.to_hidden(z))
        shares = self.attention(hidden)[:, category].masked_fill(~mask, -torch.inf).softmax(dim=0)
        parts = shares * (hidden @ self.value.weight[category])
        return Attribution(parts[1:] + parts[0] * pooling, float(self.value.bias[category]))


def any_category(log_odds: Tensor) -> Tensor:
    """The log-odds [...] of any of the categories [..., K] against "harmless"."""
    return torch.logsumexp(log_odds, dim=-1)
