"""From scores of harmless prompts to a threshold, and whether probabilities keep their word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentguard.errors import DataError, PolicyError, WeightsError
from latentguard.normalize import normalize
from latentguard.shipped import shipped_path

if TYPE_CHECKING:
    from latentguard.evaluation import EvaluationSet
    from latentguard.guard import LatentGuard

_CONFIDENCE = 0.95
_LEAST_RATE = 1e-9  # needs a thousand million prompts
_BLOCKED_ANYWAY = float(np.finfo(np.float32).max)  # the score of a prompt that no threshold would let through
_BINS = 15


@dataclass(frozen=True)
class HarmlessPrompts:
    """Prompts to calibrate on, each once.

    Attributes:
        files: the names of the files that they come from.
        repeated: rows left out because a row before them has the same prompt, as the guard reads it.
        unsafe: rows left out because the file labels them unsafe.
    """

    prompts: tuple[str, ...]
    files: tuple[str, ...]
    repeated: int
    unsafe: int


@dataclass(frozen=True)
class Calibration:
    """A threshold with what it promises.

    Attributes:
        threshold: the score from which a prompt is blocked.
        rate: the false-positive rate that was asked for.
        prompts: how many prompts it was set on.
        blocked: how many of those it blocks.
        bound: the rate that holds with 95% confidence over the draw of those prompts; see :func:`rate_bound`.
    """

    threshold: float
    rate: float
    prompts: int
    blocked: int
    bound: float

    def guarantee(self) -> str:
        """What the threshold promises, in one sentence."""
        return (
            f"a further harmless prompt of the same kind, exchangeable with these {self.prompts:,}, is blocked with a "
            f"probability of at most {_percent(self.rate)}, whatever their distribution (split conformal calibration)"
        )

    def confidence(self) -> str:
        """What holds for these very prompts, in one sentence."""
        return (
            f"with {_CONFIDENCE:.0%} confidence over the draw of these prompts, at most {_percent(self.bound)} "
            "of all such prompts are blocked"
        )

    def note(self, harmless: HarmlessPrompts) -> dict[str, Any]:
        """What a weights folder's config says of it."""
        return {
            "source": ", ".join(harmless.files),
            "prompts": self.prompts,
            "false_positive_rate": self.rate,
            "blocked": self.blocked,
            "rate_at_95_confidence": self.bound,
        }

    def card(self, harmless: HarmlessPrompts) -> str:
        """What a weights folder's card says of it."""
        return (
            f"The threshold, {shown_threshold(self.threshold)}, was set with `python -m latentguard calibrate` on "
            f"{self.prompts:,} harmless\nprompts of {', '.join(harmless.files)}, of which it blocks {self.blocked:,}. "
            f"It replaces any named above.\n\nThe guarantee: {self.guarantee()}.\n"
            f"{self.confidence().capitalize()}.\n"
        )


def threshold_for(harmless_scores: np.ndarray, false_positive_rate: float) -> float:
    """The threshold that blocks at most ``false_positive_rate`` of harmless prompts, from the scores [n] of some.

    Split conformal calibration (Vovk et al., "Algorithmic Learning in a Random World", 2005): with the threshold just
    above the ⌈(n + 1)(1 - rate)⌉-th smallest score, a further prompt of the same kind, exchangeable with those n, is
    blocked with a probability of at most ``rate``, whatever the distribution.

    Raises:
        DataError: the rate is not between 0 and 1, n is too small for it (at least 1/rate - 1 prompts are needed), or
            a score is not finite.
    """
    rank = conformal_rank(len(harmless_scores), false_positive_rate)
    if not np.isfinite(harmless_scores).all():
        raise DataError("the score of a harmless prompt is not a finite number")
    return float(np.nextafter(np.float32(np.sort(harmless_scores)[rank - 1]), np.float32(np.inf)))


def conformal_rank(count: int, false_positive_rate: float) -> int:
    """⌈(n + 1)(1 - rate)⌉, from 1 to ``count`` n; DataError if the rate is no rate or n too small for it."""
    if not _LEAST_RATE <= false_positive_rate < 1:
        raise DataError(
            f"a false-positive rate lies between 0 and 1, at {_LEAST_RATE} at least, not at {false_positive_rate}"
        )
    # The tolerance keeps a product such as 100 · 0.99 from being rounded up past the integer that it is.
    rank = math.ceil((count + 1) * (1 - false_positive_rate) - 1e-9)
    if rank > count:
        needed = math.ceil(1 / false_positive_rate - 1 - 1e-9)
        raise DataError(
            f"{count} harmless prompts are too few for a rate of {false_positive_rate}: give at least {needed}"
        )
    return rank


def rate_bound(count: int, false_positive_rate: float, confidence: float = _CONFIDENCE) -> float:
    """The rate of blocked harmless prompts that :func:`threshold_for` keeps with ``confidence``, from ``count`` scores.

    The guarantee of split conformal calibration is one on average over the n prompts drawn. For the n at hand, the
    share of further prompts that is let through follows Beta(k, n + 1 - k), k = ⌈(n + 1)(1 - rate)⌉, or lies above it
    where scores tie (Vovk, "Conditional validity of inductive conformal predictors", 2012; Angelopoulos and Bates,
    arXiv 2107.07511, section 3.2); so the share blocked is at most the ``confidence`` quantile of Beta(n + 1 - k, k).
    That quantile is the p with P(Binomial(n, p) ≤ n - k) = 1 - ``confidence``, and found from there by bisection.
    Prompts must be independent draws of one distribution for it, a little more than exchangeable.

    Errors as :func:`threshold_for`.
    """
    above = count - conformal_rank(count, false_positive_rate)
    hits = np.arange(above + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((count + 1 - hits[1:]) / hits[1:]))])
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        log_terms = log_choose + hits * math.log(p) + (count - hits) * math.log1p(-p)
        if np.exp(log_terms).sum() > 1 - confidence:
            low = p
        else:
            high = p
    return high


def harmless_prompts(sets: Sequence[EvaluationSet]) -> HarmlessPrompts:
    """The prompts of the files to calibrate on, without those labelled unsafe; a prompt that repeats counts once.

    Repetitions are not independent, and the guarantee is for distinct prompts. Raises DataError for a prompt of which
    nothing is left to score.
    """
    first: dict[str, str] = {}
    repeated = unsafe = 0
    for data in sets:
        for i, prompt in enumerate(data.prompts):
            if data.unsafe is not None and data.unsafe[i]:
                unsafe += 1
                continue
            text = normalize(prompt)
            if not text:
                raise DataError(f"{data.path}: row {i + 1}: the prompt is empty once invisible characters are gone")
            repeated += text in first
            first.setdefault(text, prompt)
    return HarmlessPrompts(tuple(first.values()), tuple(data.path.name for data in sets), repeated, unsafe)


def calibrate(guard: LatentGuard, prompts: Sequence[str], false_positive_rate: float = 0.01) -> Calibration:
    """The threshold for a wanted rate of false alarms, set on harmless prompts; the guard itself is left as it is.

    It is the threshold of all concepts that have none of their own. Those that have one, or whose category has, keep
    it, and what they block counts against the rate.

    Raises:
        DataError: as :func:`threshold_for`; or concepts with thresholds of their own block more than the rate already.
        PolicyError: every concept has a threshold of its own.
        LatentGuardError: as :meth:`LatentGuard.check_batch`.
    """
    rank = conformal_rank(len(prompts), false_positive_rate)  # too few is said before the work of scoring them
    scores = _scores(guard, prompts)
    blocked_anyway = int((scores == _BLOCKED_ANYWAY).sum())
    if blocked_anyway > len(prompts) - rank:
        raise DataError(
            f"concepts with thresholds of their own block {blocked_anyway} of {len(prompts)} prompts already, "
            f"which is more than a rate of {false_positive_rate} allows"
        )
    threshold = threshold_for(scores, false_positive_rate)
    return Calibration(
        threshold=threshold,
        rate=false_positive_rate,
        prompts=len(prompts),
        blocked=int((scores >= threshold).sum()),
        bound=rate_bound(len(prompts), false_positive_rate),
    )


def _scores(guard: LatentGuard, prompts: Sequence[str]) -> np.ndarray:
    """The highest scores [n] over the concepts that the threshold is set for."""
    policy, concepts = guard.policy, tuple(guard.concepts)
    own = {
        concept.name: float(threshold)
        for concept, threshold in zip(concepts, policy.thresholds(concepts), strict=True)
        if concept.threshold is not None or concept.category in policy.categories
    }
    if not own:
        return guard.score(prompts)
    if len(own) == len(concepts):
        raise PolicyError("every concept has a threshold of its own, so that there is none to set")
    scores = np.empty(len(prompts), dtype=np.float32)
    for i, verdict in enumerate(guard.stream(prompts)):
        of_concepts = dict(verdict.scores(None))
        blocked = any(of_concepts[name] >= threshold for name, threshold in own.items())
        highest = max(score for name, score in of_concepts.items() if name not in own)
        scores[i] = _BLOCKED_ANYWAY if blocked else highest
    return scores


def target_folder(model: str | Path | None, output: Path | None) -> Path:
    """Where the calibrated weights go: to ``output``, or without it to the folder ``model`` itself.

    Raises:
        WeightsError: ``output`` is there and not empty; or ``model`` is no folder of the user's own, but weights that
            came with the installation or lie on a hub.
    """
    if output is not None:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise WeightsError(f"{output}: is there already; name a new folder, or change weights of your own in place")
        return output
    if model is None or not Path(model).is_dir():
        raise WeightsError(f"{model or 'the default weights'}: no folder to change in place; name one to write to")
    from latentguard.weights import find_weights  # here, since pictures need this module and no weights

    folder = find_weights(model)
    if folder.resolve().parent == shipped_path("weights").resolve():
        raise WeightsError(f"{folder}: came with the installation and is not changed; name another folder to write to")
    return folder


def shown_threshold(threshold: float) -> str:
    """A threshold in the fewest digits that give it back."""
    return str(np.float32(threshold))


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities against what came true, by bin [k] of nearly equally many prompts, lowest first.

    ``predicted`` and ``observed`` are the mean probability of harm and the share of harmful prompts in a bin,
    ``weight`` the bin's part of the whole; all with harmful and harmless prompts weighted as if equally many.
    """

    predicted: np.ndarray
    observed: np.ndarray
    weight: np.ndarray

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean distance between predicted and observed, by weight."""
        return float((self.weight * np.abs(self.predicted - self.observed)).sum())


def reliability(probabilities: np.ndarray, unsafe: np.ndarray, bins: int = _BINS) -> Reliability:
    """How well probabilities of harm [n] hold against labels [n], in up to ``bins`` bins of equally many prompts.

    A verdict's probability presumes that harmful and harmless prompts are equally frequent. So that a file of another
    mixture isn't held against it, each of the two kinds gets half of the weight. Equal probabilities share a bin.

    Raises:
        DataError: all labels are the same.
    """
    if unsafe.all() or not unsafe.any():
        raise DataError("reliability needs both unsafe and harmless prompts")
    weights = np.where(unsafe, 0.5 / unsafe.sum(), 0.5 / (~unsafe).sum())
    edges = np.unique(np.sort(probabilities)[np.arange(1, bins) * len(probabilities) // bins])
    bin_of = np.searchsorted(edges, probabilities, side="right")
    _, bin_of = np.unique(bin_of, return_inverse=True)
    weight = np.bincount(bin_of, weights)
    return Reliability(
        predicted=np.bincount(bin_of, weights * probabilities) / weight,
        observed=np.bincount(bin_of, weights * unsafe) / weight,
        weight=weight,
    )
