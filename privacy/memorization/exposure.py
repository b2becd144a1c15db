"""Exposure of canaries and membership inference, from losses alone.

A canary is a private record that fine-tuning saw. Its score, and that of candidates which are drawn into the very same
images instead of it, is how much fine-tuning lowered the loss there: what the base model loses minus what the audited
one does. So neither a text that is easy to read nor an image that was learned by heart counts: every candidate is as
easy or hard, and stands on the same images.

    Exposure and rank   Carlini et al., The Secret Sharer (USENIX Security 2019, arXiv 1802.08232), sections 4.2 and 4.3
    Calibration         Watson et al., On the Importance of Difficulty Calibration in MIA (arXiv 2111.08440), equation 3
    TPR at a low FPR    Carlini et al., Membership Inference Attacks From First Principles (arXiv 2112.03570), section 3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from privacy.errors import MemorizationError

Scores = NDArray[np.float64]
Integers = NDArray[np.int64]

FALSE_POSITIVE_RATE = 0.01
_RESAMPLES = 1000
_FEWEST_CANARIES = 8
_NONE = 1e-12  # where a resampling has drawn nothing, nothing is divided by it


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95% confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Exposure:
    """What the ranks of the canaries say; arrays have one entry per canary.

    `rank` is among the canary and its candidates, 1 for the record that the model favours most and halves where scores
    are equal; `exposure` is log2(candidates + 1) - log2(rank), in bits. `first` is the share of canaries of rank 1: an
    attacker who tries all candidates extracts these. `expected` and `expected_first` are what a model that never saw
    the canaries has on average.
    """

    rank: Scores
    exposure: Scores
    mean: Interval
    first: Interval
    expected: float
    expected_first: float


@dataclass(frozen=True)
class Membership:
    """Membership inference: can one tell, from the loss, the record that was there from one that wasn't?

    `auc` is 0.5 for a model that remembers nothing, 1 for one that gives every record away. `tpr` is the share of
    records recognised where 1% of those never seen are accused. The curve is that of all canaries together.
    """

    auc: Interval
    tpr: Interval
    false_positives: Scores
    true_positives: Scores


def exposure(scores: Scores, *, seed: int = 0) -> Exposure:
    """Exposure and rank of canaries, with confidence intervals by bootstrap over them: for these candidates.

    `scores` [canaries, 1 + candidates] holds the canary's own score in column 0 and those of its candidates after it;
    higher is better remembered. `seed` is that of the bootstrap.

    Raises:
        MemorizationError: there are fewer than 8 canaries or no candidates, or a score isn't a finite number.
    """
    _check(scores)
    count = scores.shape[1] - 1
    above = (scores[:, 1:] > scores[:, :1]) + (scores[:, 1:] == scores[:, :1]) / 2
    rank = 1 + above.sum(axis=1)
    bits, first = _bits(rank, count), (rank == 1).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(rank), size=(_RESAMPLES, len(rank)))
    return Exposure(
        rank,
        bits,
        _interval(float(bits.mean()), bits[drawn].mean(axis=1)),
        _interval(float(first.mean()), first[drawn].mean(axis=1)),
        float(_bits(np.arange(1.0, count + 2), count).mean()),
        1 / (count + 1),
    )


def membership(scores: Scores, candidates: Integers, *, seed: int = 0) -> Membership:
    """AUC and true-positive rate of the attack that takes a record for seen if its calibrated score is high.

    `scores` as of `exposure`, with two candidates at least. `candidates` [canaries, candidates] says which record each
    is, by a number from 0: one that is a candidate of several canaries is one and the same. The confidence intervals
    are percentiles of a bootstrap over canaries and over the records that are candidates, since what shares images, or
    a record, isn't independent.

    Raises:
        MemorizationError: as `exposure`.
    """
    _check(scores)
    if candidates.shape != (len(scores), scores.shape[1] - 1):
        raise MemorizationError("there has to be the number of a record for each candidate's score")
    if candidates.shape[1] < 2:
        raise MemorizationError("membership inference needs two candidates at least for each canary")
    calibrated = _calibrated(scores)
    attack = _Attack(calibrated)
    resampled = [
        attack.auc_and_tpr(canary, canary[:, None] * candidate) for canary, candidate in _resamplings(candidates, seed)
    ]
    auc, tpr = attack.auc_and_tpr(np.ones(len(scores)), np.ones(candidates.shape))
    auc_resampled, tpr_resampled = np.array(resampled).T
    seen = np.zeros(scores.shape, dtype=bool)
    seen[:, 0] = True
    false_positives, true_positives, _ = roc_curve(seen.ravel(), calibrated.ravel())
    return Membership(_interval(auc, auc_resampled), _interval(tpr, tpr_resampled), false_positives, true_positives)


class _Attack:
    """Calibrated scores [canaries, 1 + candidates], sorted once for many weightings of their rows and columns."""

    def __init__(self, calibrated: Scores) -> None:
        candidates = calibrated[:, 1:].ravel()
        self._order = np.argsort(candidates)
        self._sorted = candidates[self._order]
        self._own = calibrated[:, 0]
        self._below = np.searchsorted(self._sorted, self._own, "left")
        self._not_above = np.searchsorted(self._sorted, self._own, "right")

    def auc_and_tpr(self, canary: Scores, candidate: Scores) -> tuple[float, float]:
        """Both figures, where canaries weigh `canary` [canaries] and their candidates `candidate` [canaries, ...]."""
        weight = np.concatenate([[0.0], np.cumsum(candidate.ravel()[self._order])])
        total = max(weight[-1], _NONE)
        wins = (weight[self._below] + weight[self._not_above]) / (2 * total)
        # The lowest threshold that at most 1% of the candidates are above; a canary has to be above it, too.
        accused = total - weight[self._not_above]
        return (
            float(np.average(wins, weights=canary)),
            float(np.average(accused <= FALSE_POSITIVE_RATE * total, weights=canary)),
        )


def _bits(rank: Scores, candidates: int) -> Scores:
    return np.asarray(np.log2(candidates + 1) - np.log2(rank), dtype=np.float64)


def _calibrated(scores: Scores) -> Scores:
    """Each score against the others of its row, in their standard deviations: rows become comparable.

    The canary is treated like any candidate, so that without memorization all entries of a row are distributed alike.
    """
    count = scores.shape[1] - 1
    rest = scores.sum(axis=1, keepdims=True) - scores
    mean = rest / count
    variance = ((scores**2).sum(axis=1, keepdims=True) - scores**2) / count - mean**2
    # Without spread in a row nothing can be told there; with a floor, its scores are all close to 0.
    spread = np.sqrt(np.maximum(variance, np.finfo(np.float64).eps * np.maximum(1.0, (scores**2).max())))
    return np.asarray((scores - mean) / spread, dtype=np.float64)


def _resamplings(candidates: Integers, seed: int) -> Iterator[tuple[Scores, Scores]]:
    """How often each canary [canaries], and the record of each candidate, is drawn in each resampling.

    Both are resampled on their own (Owen, The pigeonhole bootstrap, 2007): a few unseen records that the model finds
    remarkable by chance would shift the ranks of all canaries.
    """
    rng = np.random.default_rng(seed)
    count, records = len(candidates), int(candidates.max()) + 1
    for _ in range(_RESAMPLES):
        canary = rng.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
        record = rng.multinomial(records, np.full(records, 1 / records)).astype(np.float64)
        yield canary, record[candidates]


def _interval(estimate: float, resampled: Scores) -> Interval:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(estimate, float(low), float(high))


def _check(scores: Scores) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise MemorizationError("there are no candidates to rank the canaries among")
    if len(scores) < _FEWEST_CANARIES:
        raise MemorizationError(f"{len(scores)} canaries are too few for a verdict: {_FEWEST_CANARIES} are the least")
    if not np.isfinite(scores).all():
        raise MemorizationError("a loss isn't a finite number: the model computes nothing of use")
