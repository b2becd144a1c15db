"""The contrastive loss of the mapping layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TWIN_MARGIN = 1.0


def two_way_contrastive(scores: Tensor, rejection: Tensor, *, twin_of: Tensor, ignored: Tensor) -> Tensor:
    """The two-way contrastive loss of Latent Guard (Liu et al., ECCV 2024, arXiv 2404.08031, section 3.3), scalar.

    ``scores`` [P, C] are a batch's prompts against its C concepts. Row c < C is the unsafe prompt of concept c; the T rows
    after them are safe twins, of the concepts ``twin_of`` [T]; the rest are other harmless prompts. Of the two ways,

    - from a concept to the prompts: its unsafe prompt against all other prompts, the harmless ones among them;
    - from a prompt to the concepts: an unsafe prompt's concept against all other concepts.

    Three things here are not in the paper:

    - ``ignored`` [P, C] leaves a prompt out where it stands against a concept: a prompt that names another concept than
      its own is no negative of that one.
    - The second way has one candidate more, "none of these concepts", whose score is the scalar ``rejection``, learned.
      It is the answer for harmless prompts, and one that unsafe prompts have to beat. Scores so get one zero point for
      all concepts, as a single threshold needs.
    - An unsafe prompt beats its own twin by a margin, since no other negative is as near to it.
    """
    prompts, concepts = scores.shape
    own = torch.arange(concepts, device=scores.device)
    scores = scores.masked_fill(ignored, -torch.inf)
    from_concepts = F.cross_entropy(scores.t(), own)
    candidates = torch.cat([scores, rejection.expand(prompts, 1)], dim=1)
    answers = F.pad(own, (0, prompts - concepts), value=concepts)
    each = F.cross_entropy(candidates, answers, reduction="none")
    unsafe, twins, others = torch.split(each, [concepts, len(twin_of), prompts - concepts - len(twin_of)])
    of_twins = scores[concepts : concepts + len(twin_of)].gather(1, twin_of[:, None]).squeeze(1)
    margins = F.softplus(_TWIN_MARGIN + of_twins - scores.diagonal()[twin_of])
    return from_concepts + sum(part.mean() for part in (unsafe, twins, others, margins) if len(part))
