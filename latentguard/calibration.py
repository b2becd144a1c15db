"""From scores of harmless prompts to a threshold."""

from __future__ import annotations

import math

import numpy as np

from latentguard.errors import DataError


def threshold_for(harmless_scores: np.ndarray, false_positive_rate: float) -> float:
    """The threshold that blocks at most ``false_positive_rate`` of harmless prompts, from the scores [n] of some.

    Split conformal calibration (Vovk et al., "Algorithmic Learning in a Random World", 2005): with the threshold just
    above the ⌈(n + 1)(1 - rate)⌉-th smallest score, a further prompt of the same kind, exchangeable with those n, is
    blocked with a probability of at most ``rate``, whatever the distribution.

    Raises:
        DataError: the rate is not between 0 and 1, n is too small for it (at least 1/rate - 1 prompts are needed), or
            a score is not finite.
    """
    if not 0 < false_positive_rate < 1:
        raise DataError(f"a false-positive rate lies between 0 and 1, not at {false_positive_rate}")
    if not np.isfinite(harmless_scores).all():
        raise DataError("the score of a harmless prompt is not a finite number")
    count = len(harmless_scores)
    # The tolerance keeps a product such as 100 · 0.99 from being rounded up past the integer that it is.
    rank = math.ceil((count + 1) * (1 - false_positive_rate) - 1e-9)
    if rank > count:
        needed = math.ceil(1 / false_positive_rate - 1 - 1e-9)
        raise DataError(
            f"{count} harmless prompts are too few for a rate of {false_positive_rate}: give at least {needed}"
        )
    return float(np.nextafter(np.float32(np.sort(harmless_scores)[rank - 1]), np.float32(np.inf)))
