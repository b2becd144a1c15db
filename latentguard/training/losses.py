"""The losses: the contrastive one of the mapping layer, and the classifying one of the prompt head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TWIN_MARGIN = 1.0


def two_way_contrastive(scores: Tensor, *, twin_of: Tensor, ignored: Tensor) -> Tensor:
    """The two-way contrastive loss of Latent Guard (Liu et al., ECCV 2024, arXiv 2404.08031, section 3.3), scalar.

    ``scores`` [P, C] are a batch's prompts against its C concepts. Row c < C is the unsafe prompt of concept c; the T
    rows after them are safe twins, of the concepts ``twin_of`` [T]; the rest are other harmless prompts. The two ways:

    - from a concept to the prompts: its unsafe prompt against all other prompts, the harmless ones among them;
    - from a prompt to the concepts: an unsafe prompt's concept against all other concepts.

    Two things here are not in the paper:

    - ``ignored`` [P, C] leaves a prompt out where it stands against a concept: a prompt that names another concept than
      its own is no negative of that one.
    - An unsafe prompt beats its own twin by a margin, since no other negative is as near to it.
    """
    concepts = scores.shape[1]
    own = torch.arange(concepts, device=scores.device)
    scores = scores.masked_fill(ignored, -torch.inf)
    loss = F.cross_entropy(scores.t(), own) + F.cross_entropy(scores[:concepts], own)
    if len(twin_of):
        of_twins = scores[concepts : concepts + len(twin_of)].gather(1, twin_of[:, None]).squeeze(1)
        loss = loss + F.softplus(_TWIN_MARGIN + of_twins - scores.diagonal()[twin_of]).mean()
    return loss


UNLABELLED = -2
"""A prompt that says nothing to the prompt head."""
SOME_CATEGORY = -1
"""A harmful prompt whose category isn't known."""


def prompt_loss(log_odds: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the categories of harm and a harmless class, scalar.

    ``log_odds`` [P, K] are the head's, against a harmless class whose logit is 0; ``labels`` [P] are categories from 0
    to K - 1, K for a harmless prompt, SOME_CATEGORY or UNLABELLED. Harmful and harmless prompts weigh the same.
    """
    classes = log_odds.shape[1]
    logits = F.pad(log_odds, (0, 1)).log_softmax(dim=1)
    of_label = logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    harmful = torch.where(labels == SOME_CATEGORY, torch.logsumexp(logits[:, :classes], dim=1), of_label)
    is_harmless, is_harmful = labels == classes, (labels >= SOME_CATEGORY) & (labels < classes)
    return -sum(
        (torch.where(some, harmful, 0).sum() / some.sum().clamp_min(1) for some in (is_harmful, is_harmless)),
        start=torch.zeros((), device=log_odds.device),
    )
