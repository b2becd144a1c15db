"""Linear probes of whether a model has seen a private record: per layer, cross-validated, with a permutation test.

After Ju et al., "Watch Out Your Album!" (arXiv 2503.01208): if a logistic probe on the hidden states of new images can
tell records that were drawn into the fine-tuning images from records that never were, the model remembers them. The
inputs come in pairs (`privacy.memorization.views`): each image bears a seen record once and an unseen one once, and
records are paired at random, so that nothing but what the model learnt can tell the classes apart.

Two designs, which ask different things:

`new records`: all images of a pair of records are in the same fold. The probe has to tell seen from unseen for records
and images that it was never trained on. It finds what seen records have in common; an untrained model is at 50%.

`known records`: the images of a pair are spread over the folds. The probe has met each record on other images, as in
the paper, and also finds what is particular to a record. It can read the text and learn by heart which records are
seen, with any model that sees text at all. So its chance isn't 50% but what the probe reaches for random divisions of
the same records into seen and unseen, and what counts is the difference to the model without fine-tuning. If that model
is near 100%, nothing can be told: take fewer images a record.

The permutation test swaps seen and unseen within pairs, all images of a pair together, which in both designs gives the
distribution of the accuracy if the model had seen none of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.parallel import Parallel, delayed
from tqdm import tqdm

from privacy.errors import MemorizationError

Design = Literal["new records", "known records"]
Features = Literal["linear", "quadratic"]
NEW_RECORDS: Design = "new records"
KNOWN_RECORDS: Design = "known records"
DESIGNS: tuple[Design, ...] = (NEW_RECORDS, KNOWN_RECORDS)
FEATURES: tuple[Features, ...] = ("linear", "quadratic")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

_QUANTILE = 1.96  # of a normal distribution, for 95%
_BOOTSTRAPS = 2000
_ROUNDING = 1e-12
# With many more coordinates than inputs, weak regularisation fits noise.
_INVERSE_REGULARISATION = 0.01
_COMPONENTS = 16  # of which a quadratic probe has the squares


@dataclass(frozen=True)
class Layout:
    """What the inputs of a probe are, each [n]: whether its record was seen, its pair of records, and its image."""

    seen: Bools
    pairs: Integers
    images: Integers

    @staticmethod
    def of(seen: ArrayLike, pairs: ArrayLike, images: ArrayLike) -> Layout:
        """A checked layout.

        Raises:
            MemorizationError: an image doesn't come exactly once with a seen and once with an unseen record of its
                pair, or is in two pairs.
        """
        layout = Layout(np.asarray(seen, bool), _numbered(pairs), _numbered(images))
        if not len(layout.seen) == len(layout.pairs) == len(layout.images) > 0:
            raise MemorizationError("a probe's labels, pairs and images have to be equally many")
        for image in np.unique(layout.images):
            chosen = layout.images == image
            if sorted(layout.seen[chosen]) != [False, True] or len(set(layout.pairs[chosen])) != 1:
                raise MemorizationError(
                    "each image has to bear a seen record once, and once the unseen one of its pair"
                )
        return layout

    @property
    def pair_count(self) -> int:
        """The number of pairs of records."""
        return int(self.pairs.max()) + 1


@dataclass(frozen=True)
class ProbeOutcome:
    """How well a probe tells seen from unseen records at one layer.

    accuracy: of the inputs outside of the probe's training folds; low, high: its 95% interval. chance: mean accuracy
    over permuted labels; p_value: the share of permutations (the true labels among them) that reach the accuracy.
    by_pair [pairs]: the accuracy within each; permuted [permutations]: the accuracies.

    The interval is of the larger of two standard errors: by bootstrap over pairs of records, which takes the probes as
    given, and over permutations, which has the luck of their training folds in it, too.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    p_value: float
    by_pair: Floats
    permuted: Floats


@dataclass(frozen=True)
class Difference:
    """Accuracy above the model without fine-tuning on the same inputs, with 95% interval and one-sided p value.

    As in `ProbeOutcome`, with the labels of both models permuted alike.
    """

    value: float
    low: float
    high: float
    p_value: float


def probe(
    states: NDArray[Any],
    layout: Layout,
    design: Design,
    *,
    features: Features = "linear",
    folds: int = 5,
    permutations: int = 200,
    seed: int = 0,
) -> ProbeOutcome:
    """Probes the states [n, D] of one layer.

    A "linear" probe is a logistic regression of the standardised states. A "quadratic" one also has the squares of
    their first principal components, for what sets seen records apart by its size and not by its direction. Everything
    is fitted within the training folds. Folds and permutations depend on the layout, the design and the seed alone, so
    outcomes of layers and models are comparable pair by pair.

    Raises:
        MemorizationError: there are fewer pairs, or images a pair, than the design needs, or a state isn't finite.
    """
    if permutations < 1:
        raise MemorizationError("a probe needs one permutation of its labels at least, to know its chance")
    if len(states) != len(layout.seen) or not np.isfinite(states).all():
        raise MemorizationError("a probe needs one vector of finite numbers for each input")
    fold = assign_folds(layout, design, folds, seed)
    swaps = np.random.default_rng([seed, 1]).integers(0, 2, (permutations, layout.pair_count)).astype(bool)
    swaps = np.concatenate([np.zeros((1, layout.pair_count), bool), swaps])
    labels = layout.seen ^ swaps[:, layout.pairs]  # [1 + permutations, n], the true ones first
    correct = np.zeros(labels.shape, bool)
    for number in np.unique(fold):
        test = fold == number
        train_x, test_x = _fold_features(states[~test].astype(np.float64), states[test].astype(np.float64), features)
        for row, row_labels in zip(correct, labels, strict=True):
            classifier = LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=1000).fit(train_x, row_labels[~test])
            row[test] = classifier.predict(test_x) == row_labels[test]
    accuracies = correct.mean(axis=1)
    by_pair = _by_pair(correct[0], layout)
    low, high = _interval(by_pair, accuracies[1:], seed)
    return ProbeOutcome(
        accuracy=float(accuracies[0]),
        low=max(0.0, low),
        high=min(1.0, high),
        chance=float(accuracies[1:].mean()),
        p_value=_p_value(float(accuracies[0]), accuracies[1:]),
        by_pair=by_pair,
        permuted=accuracies[1:],
    )


def probe_layers(
    layers: Iterable[tuple[str, Callable[[], NDArray[Any]]]],
    layout: Layout,
    design: Design,
    *,
    features: Features = "linear",
    folds: int = 5,
    permutations: int = 200,
    seed: int = 0,
    jobs: int = 1,
) -> dict[str, ProbeOutcome]:
    """`probe` for each named layer, whose states [n, D] are read when it is its turn; `jobs` of them in parallel."""
    named = list(layers)
    work = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_probe_read)(read, layout, design, features, folds, permutations, seed) for _, read in named
    )
    bar = tqdm(work, total=len(named), desc=f"probes, {design}", unit="layer", disable=None, leave=False)
    return {name: outcome for (name, _), outcome in zip(named, bar, strict=True)}


def p_any_layer(outcomes: Mapping[str, ProbeOutcome]) -> dict[str, float]:
    """For each layer the p value of its accuracy above chance, corrected for having looked at all of them.

    The share of permutations whose best layer is as far above its chance; Westfall and Young (1993), max-T.
    """
    best = np.max([outcome.permuted - outcome.chance for outcome in outcomes.values()], axis=0)
    return {name: _p_value(outcome.accuracy - outcome.chance, best) for name, outcome in outcomes.items()}


def difference(after: ProbeOutcome, before: ProbeOutcome, *, seed: int = 0) -> Difference:
    """How much better the probe of one model is than that of another on the same inputs, with the same seed."""
    by_pair, permuted = after.by_pair - before.by_pair, after.permuted - before.permuted
    value = float(by_pair.mean())
    low, high = _interval(by_pair, permuted, seed)
    return Difference(value, low, high, _p_value(value, permuted))


def assign_folds(layout: Layout, design: Design, folds: int, seed: int) -> Integers:
    """The fold of each input [n]; an image is in one fold with both of its records, so folds hold both classes alike.

    Raises:
        MemorizationError: `new records` needs as many pairs as folds, `known records` two images of each pair.
    """
    if folds < 2:
        raise MemorizationError("cross-validation needs at least two folds")
    rng = np.random.default_rng([seed, 2])
    if design == NEW_RECORDS:
        if layout.pair_count < folds:
            raise MemorizationError(
                f"{folds} folds of new records need as many pairs of records; there are {layout.pair_count}"
            )
        of_pair = rng.permutation(layout.pair_count) % folds
        return of_pair[layout.pairs]
    fold = np.empty(len(layout.seen), np.int64)
    for pair, offset in enumerate(rng.permutation(layout.pair_count)):
        images = rng.permutation(np.unique(layout.images[layout.pairs == pair]))
        if len(images) < 2:
            raise MemorizationError("known records need each record on two images or more: take more images")
        for position, image in enumerate(images):
            fold[layout.images == image] = (position + offset) % folds
    return fold


def _probe_read(
    read: Callable[[], NDArray[Any]],
    layout: Layout,
    design: Design,
    features: Features,
    folds: int,
    permutations: int,
    seed: int,
) -> ProbeOutcome:
    return probe(read(), layout, design, features=features, folds=folds, permutations=permutations, seed=seed)


def _fold_features(train: Floats, test: Floats, features: Features) -> tuple[Floats, Floats]:
    """The features of a fold's training and test inputs; no label is looked at, so they serve every permutation."""
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    if features == "quadratic":
        squares = make_pipeline(
            PCA(n_components=min(_COMPONENTS, *train.shape), whiten=True, svd_solver="full"),
            FunctionTransformer(np.square),
            StandardScaler(),
        ).fit(train)
        train, test = np.hstack([train, squares.transform(train)]), np.hstack([test, squares.transform(test)])
    return _rotated(train, test)


def _rotated(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """The same inputs in the span of the training ones, which leaves an L2-regularised regression as it is.

    Its weights lie in that span; with fewer inputs than coordinates the fits get much quicker.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    _, _, directions = np.linalg.svd(train, full_matrices=False)
    return train @ directions.T, test @ directions.T


def _by_pair(correct: Bools, layout: Layout) -> Floats:
    shares: Floats = np.bincount(layout.pairs, correct) / np.bincount(layout.pairs)
    return shares


def _interval(by_pair: Floats, permuted: Floats, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng([seed, 3]).integers(0, len(by_pair), (_BOOTSTRAPS, len(by_pair)))
    half = _QUANTILE * max(by_pair[drawn].mean(axis=1).std(), permuted.std())
    mean = by_pair.mean()
    return float(mean - half), float(mean + half)


def _p_value(value: float, permuted: Floats) -> float:
    """The share of permutations, the identity among them, that reach the value (Phipson and Smyth, 2010)."""
    return (1 + int((permuted >= value - _ROUNDING).sum())) / (1 + len(permuted))


def _numbered(values: ArrayLike) -> Integers:
    """The values replaced by numbers from 0 on."""
    numbers: Integers = np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)
    return numbers
