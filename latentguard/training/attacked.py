"""How a freshly trained guard holds against attacks on the concepts that were held out of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentguard.evaluation import separation
from latentguard.guard import LatentGuard
from latentguard.synthesis.splits import KINDS, PADDED, REPLACING, LabelledPrompt, attack_prompts
from latentguard.training.hardening import Replacements, measuring_half
from latentguard.training.pairs import TrainingPair

AS_IT_IS = "as it is"


def attacked_figures(
    guard: LatentGuard,
    pairs: Sequence[TrainingPair],
    replacements: Mapping[str, Replacements] | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """By attack, how many unsafe prompts there are, and AUC and TPR at 1% FPR against the safe twins.

    Only prompts of harm are attacked, and harmless ones where text is put around a prompt, as in ``robustness``. The
    synonym and adversarial splits follow the published protocol, with those ``replacements`` (by kind of attack) that
    training doesn't see; unsafe prompts that don't spell their concept are left out there, and twins stay.
    """
    unsafe = [LabelledPrompt(pair.unsafe, pair.concept, True) for pair in pairs if pair.harm]
    texts = {one.prompt for one in unsafe}
    twins = [LabelledPrompt(pair.safe, pair.concept, False) for pair in pairs if pair.harm and pair.safe is not None]
    safe = [one for one in dict.fromkeys(twins) if one.prompt not in texts]
    if not unsafe or not safe:
        return {}
    plain = guard.score([one.prompt for one in safe])
    figures = {AS_IT_IS: _figures(guard.score([one.prompt for one in unsafe]), plain)}
    for kind in KINDS:
        if kind in REPLACING:
            texts_of = measuring_half((replacements or {}).get(kind, {}))
            attacked, _ = attack_prompts(unsafe, kind, seed=seed, replacements=texts_of)
        else:
            attacked, _ = attack_prompts(unsafe, kind, seed=seed)
        if not attacked:
            continue
        harmless = plain
        if kind in PADDED:
            padded, _ = attack_prompts(safe, kind, seed=seed)
            harmless = guard.score([one.prompt for one in padded])
        figures[kind] = _figures(guard.score([one.prompt for one in attacked]), harmless)
    return figures


def _figures(unsafe: np.ndarray, harmless: np.ndarray) -> dict[str, Any]:
    scores = np.concatenate([unsafe, harmless])
    found = separation(scores, np.arange(len(scores)) < len(unsafe))
    return {"unsafe": len(unsafe), "auc": round(found.auc, 4), "tpr_at_1_fpr": round(found.tpr_at_1_fpr, 4)}
