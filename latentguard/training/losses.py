"""The contrastive loss of the mapping layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def two_way_contrastive(scores: Tensor, rejection: Tensor) -> Tensor:
    """The two-way contrastive loss of Latent Guard (Liu et al., ECCV 2024, arXiv 2404.08031, section 3.3), scalar.

    ``scores`` [P, C] are a batch's prompts against its C concepts; row c < C is the unsafe prompt of concept c, the
    rows after them are harmless. Of the two ways,

    - from a concept to the prompts: its unsafe prompt against all other prompts, the harmless ones among them;
    - from a prompt to the concepts: an unsafe prompt's concept against all other concepts.

    The second way here has one candidate more than the paper's: "none of these concepts", whose score is the scalar
    ``rejection``, learned. It is the answer for harmless prompts, which the paper's second way leaves out, and one that
    unsafe prompts have to beat. Scores so get one zero point for all concepts, as a single threshold needs; without it
    each concept has its own, and the maximum over a bank goes to the concept whose scores run high.
    """
    prompts, concepts = scores.shape
    own = torch.arange(concepts, device=scores.device)
    from_concepts = F.cross_entropy(scores.t(), own)
    candidates = torch.cat([scores, rejection.expand(prompts, 1)], dim=1)
    answers = F.pad(own, (0, prompts - concepts), value=concepts)
    each = F.cross_entropy(candidates, answers, reduction="none")
    unsafe, harmless = each[:concepts].mean(), each[concepts:]
    from_prompts = unsafe + harmless.mean() if len(harmless) else unsafe
    return from_concepts + from_prompts
