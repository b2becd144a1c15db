"""The loss that CLIP-like models are fine-tuned by."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

_MAX_LOGIT_SCALE = math.log(100)


def info_nce(logits: Tensor, texts: Tensor) -> Tensor:
    """The symmetric InfoNCE loss of a batch (Radford et al., "Learning Transferable Visual Models", 2021, figure 3).

    logits: [B, B], a row per image and a column per text, pairs on the diagonal. texts: ids [B, L]; where another
    pair's text is the same, which in data of few answers it often is, it is no negative example.
    """
    same = (texts[:, None] == texts[None, :]).all(dim=-1)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -math.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def contrastive_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """The loss of a batch: InfoNCE, or the sigmoid loss of its own for a SigLIP, which is told by its bias."""
    if any(name.endswith("logit_bias") for name, _ in model.named_parameters()):
        loss: Tensor = model(**batch, return_loss=True).loss
        return loss
    return info_nce(model(**batch).logits_per_image, batch["input_ids"])


class ContrastiveTrainer(transformers.Trainer):  # type: ignore[misc]  # transformers' types are not followed
    """A Trainer of CLIP-like models."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        return contrastive_loss(model, inputs)


class ClipLogitScale(transformers.TrainerCallback):  # type: ignore[misc]
    """Keeps logits from being scaled by more than 100, as CLIP was trained (Radford et al., 2021, section 2.5)."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale") and parameter.requires_grad:
                with torch.no_grad():
                    parameter.clamp_(max=_MAX_LOGIT_SCALE)
