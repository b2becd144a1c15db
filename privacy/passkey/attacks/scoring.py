"""How much an attack read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privacy.passkey.attacks.corpus import Corpus, Ids


@dataclass(frozen=True)
class Recovery:
    """What was read right, special tokens aside: a share of all running tokens, and one of all different ones."""

    tokens: float
    types: float


@dataclass(frozen=True)
class Outcome:
    """One attack. group: what it was run against. recovered: by the words of known text that it had; 0 for none."""

    group: str
    attack: str
    recovered: Mapping[int, Recovery]


def recovery(observed: Corpus, guess: Ids, truth: Ids, special: Collection[int]) -> Recovery:
    """Compares guesses [T] for the observed types with the truth [T]; `special` ids don't count."""
    counted = ~np.isin(observed.types, list(special))
    right = counted & (guess == truth)
    weights = observed.counts
    return Recovery(
        float(weights[right].sum() / max(1, weights[counted].sum())), float(right.sum() / max(1, counted.sum()))
    )


def mean(recoveries: Sequence[Recovery]) -> Recovery:
    """The mean of each share."""
    return Recovery(
        float(np.mean([each.tokens for each in recoveries])), float(np.mean([each.types for each in recoveries]))
    )
