"""The heads beside the mapping layer in numpy: the formulas of :mod:`latentguard.heads` and
:mod:`latentguard.prompt_head`, for scoring alone. Tests hold them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentguard.arrays import NumpyDevice
from latentguard.lexicon import WordRarity
from latentguard.lite.layers import Linear, gelu, real_lengths, softmax
from latentguard.lite.mapping import NumpyQueries
from latentguard.reading import Attribution
from latentguard.shapes import LEAST_LOG_ODDS, Combination, PromptHeadShape


@dataclass(frozen=True)
class NumpyPromptHead:
    """Log-odds of each category of harm; see :mod:`latentguard.prompt_head`. ``attention`` [hidden, K] has no bias."""

    shape: PromptHeadShape
    to_hidden: Linear
    attention: np.ndarray
    value: Linear

    def state_dict(self) -> dict[str, np.ndarray]:
        """The trained numbers, by their names in a weights folder."""
        hidden, value = self.to_hidden.state_dict("to_hidden"), self.value.state_dict("value")
        return {**hidden, "attention.weight": self.attention.T, **value}

    def log_odds(self, z: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Log-odds [K] of one prompt z [L', D] with mask [L']."""
        hidden = gelu(self.to_hidden(z))
        shares = softmax(np.where(mask[:, None], hidden @ self.attention, -np.inf), axis=0)
        found: np.ndarray = (shares * (hidden @ self.value.weight)).sum(axis=0) + self.value.bias
        return found

    def attribute(self, z: np.ndarray, mask: np.ndarray, pooling: np.ndarray, category: int) -> Attribution:
        """One prompt z [L', D] with mask [L']: what each position added to the log-odds of ``category``."""
        hidden = gelu(self.to_hidden(z))
        shares = softmax(np.where(mask, hidden @ self.attention[:, category], -np.inf), axis=0)
        parts = shares * (hidden @ self.value.weight[:, category])
        return Attribution(parts[1:] + parts[0] * pooling, float(self.value.bias[category]))


@dataclass(frozen=True)
class NumpyScale:
    """Mean and logarithm of the spread of a concept's scores, from its direction, by ``linear``."""

    linear: Linear

    def state_dict(self) -> dict[str, np.ndarray]:
        """The trained numbers, by their names in a weights folder."""
        return self.linear.state_dict("moments")

    def __call__(self, queries: NumpyQueries) -> np.ndarray:
        """Mean and spread [N, 2] of the scores of N concepts with harmless prompts."""
        length = np.linalg.norm(queries.direction, axis=-1, keepdims=True)
        found = self.linear(queries.direction / np.maximum(length, np.float32(1e-12)))
        found[:, 1] = np.exp(found[:, 1])
        return found


@dataclass(frozen=True)
class NumpyHeads:
    """Everything beside the mapping layer that a score needs; see :class:`latentguard.heads.Heads`."""

    prompt_head: NumpyPromptHead
    scale: NumpyScale
    combination: Combination
    rarity: WordRarity

    def on(self, device: NumpyDevice) -> NumpyHeads:
        """The heads themselves; see :meth:`latentguard.heads.Heads.on`."""
        return self

    def moments(self, queries: NumpyQueries) -> np.ndarray:
        """Mean and spread [N, 2] of the scores of N concepts with harmless prompts."""
        return self.scale(queries)

    def harm(self, z: np.ndarray, mask: np.ndarray, enabled: Sequence[bool] | None = None) -> np.ndarray:
        """Evidence of harm [B, K + 1], log(1 + e · odds), in prompts z [B, L', D]: of each category, then of any.

        Categories that ``enabled`` [K] leaves out have no part in the last one.
        """
        rows = zip(z, mask, real_lengths(mask), strict=True)
        log_odds = np.stack([self.prompt_head.log_odds(one[:length], real[:length]) for one, real, length in rows])
        return evidence_of_harm(log_odds, enabled)


def evidence_of_harm(log_odds: np.ndarray, enabled: Sequence[bool] | None = None) -> np.ndarray:
    """Evidence of harm [B, K + 1], log(1 + e · odds), by the prompt head's log-odds [B, K]: of each category, of any.

    Categories that ``enabled`` [K] leaves out have no part in the last one.
    """
    counted = log_odds if enabled is None else np.where(enabled, log_odds, -np.inf)
    with np.errstate(invalid="ignore"):  # of states that are no numbers: the guard refuses such scores
        any_of_them = np.maximum(np.logaddexp.reduce(counted, axis=1), LEAST_LOG_ODDS)
        every = np.concatenate([log_odds, any_of_them[:, None]], axis=1)
        evidence: np.ndarray = np.logaddexp(np.float32(0), every + 1)
    return evidence
