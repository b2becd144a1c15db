"""Names for what decides: the model, and the whole of model, concepts and thresholds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from latentguard.arrays import as_numpy, single

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard
    from latentguard.policy import Policy


def model_fingerprint(guard: LatentGuard) -> str:
    """64 hexadecimal digits over the guard's encoder, its layers, its precision if half, all trained numbers, and how
    rare words are."""
    precision = getattr(guard.encoder, "precision", None)
    half = [precision] if precision in ("bf16", "fp16") else []
    digest = hashlib.sha256(json.dumps([guard.encoder.name, list(guard.encoder.layers), *half]).encode())
    for module in (guard.mapping, *(() if guard.heads is None else (guard.heads.scale, guard.heads.prompt_head))):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(as_numpy(single(tensor)).tobytes())
    if guard.heads is not None:
        digest.update(json.dumps(asdict(guard.heads.combination)).encode() + guard.heads.rarity.as_bytes())
    return digest.hexdigest()


def fingerprint(guard: LatentGuard, model: str) -> str:
    """64 hexadecimal digits over the model, the concepts in any order, and all thresholds."""
    policy: Policy = guard.policy
    concepts = sorted(json.dumps(asdict(entry)) for entry in guard.concepts)
    content = [model, concepts, policy.threshold, policy.flag_margin, sorted(policy.categories.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
