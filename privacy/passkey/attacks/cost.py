"""What a conversion costs in quality before any fine-tuning: how much of the original's sense of similarity is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.passkey.attacks.embedding import load_model
from privacy.passkey.client import PasskeyClient
from privacy.passkey.keys import PassKey
from privacy.passkey.tokenizer_files import load_tokenizer

_TEXTS = 200
_MAX_LENGTH = 64
_BATCH = 20


def agreement(original: str | Path, converted: Path, passkey: PassKey, texts: Sequence[str]) -> float:
    """Correlation of the cosines between texts, of the converted model with the original: 1 if nothing was lost.

    Of the first 200 `texts`, by the means of their last states; the same whatever orthogonal map states are under.
    """
    texts = texts[:_TEXTS]
    tokenizer = load_tokenizer(original)
    client = PasskeyClient(original, passkey, converted)
    plain, encrypted = [], []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt")
        plain.append(dict(inputs))
        encrypted.append(client.encrypt_batch(batch, truncation=True, max_length=_MAX_LENGTH))
    return float(np.corrcoef(_cosines(original, plain), _cosines(converted, encrypted))[0, 1])


def _cosines(folder: str | Path, batches: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """The cosines of all pairs of texts, each text being the mean of the last states of its tokens."""
    import torch

    model = load_model(folder)
    pooled = []
    with torch.inference_mode():
        for inputs in batches:
            mask = inputs["attention_mask"].unsqueeze(-1)
            states = model(**inputs).last_hidden_state
            pooled.append(((states * mask).sum(1) / mask.sum(1)).double())
    rows = torch.nn.functional.normalize(torch.cat(pooled), dim=1)
    cosines: NDArray[np.float64] = (rows @ rows.T)[tuple(torch.triu_indices(len(rows), len(rows), 1))].numpy()
    return cosines
