"""Frequency analysis: which encrypted id is which token, from text of the same kind alone.

A token keeps its id, so the encrypted text has the frequencies and the neighbourhoods of the plain one. Nothing of the
model is needed here, and no transform of the embeddings helps against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.passkey.attacks.corpus import Corpus, Ids

NO_GUESS = -1

# How many of the most frequent types are told apart in each stage; what one finds is context to the next.
_STAGES = (50, 100, 200, 400, 800, 1500)
_ROUNDS = 5
# Neighbours are counted as context if they are this frequent; below it, guesses are too bad to build on.
_ANCHOR_COUNT = 15
_MIN_ANCHORS = 15
# Of the same kind isn't the same: a token's frequency differs by about this share, besides chance.
_SPREAD = 0.4
# Tokens of context by which a type's neighbourhood is smoothed towards the average one.
_SMOOTHING = 40.0
# Neighbours depend on each other, so that each tells less than all of what it would by itself.
_TRUST = 0.1
_BALANCING_ROUNDS = 15
_LOWEST = -50.0
_BLOCK = 1000

Scores = NDArray[np.float32]


def by_rank(observed: Corpus, known: Corpus, pairs: Mapping[int, int]) -> Ids:
    """Guesses [T] for the observed types: the n-th most frequent is the n-th most frequent of the known text.

    pairs: what is known beforehand, observed id to plain id: special tokens at least.
    """
    guess = np.array([pairs.get(int(each), NO_GUESS) for each in observed.types], dtype=np.int64)
    open_places = np.flatnonzero(guess == NO_GUESS)
    candidates = known.types[~np.isin(known.types, list(pairs.values()))]
    number = min(len(open_places), len(candidates))
    guess[open_places[:number]] = candidates[:number]
    return guess


def by_context(observed: Corpus, known: Corpus, pairs: Mapping[int, int]) -> Ids:
    """Guesses [T] for the observed types by frequency and by their neighbours, as far as these are guessed themselves.

    Soft one-to-one assignments of ever more of the most frequent types, from what their frequencies alone tell. In each
    round a type's neighbours are translated by the assignments so far, and compared with the neighbourhood of each
    known type by naive Bayes; the scores become assignments by Sinkhorn's balancing. In the end every other type is
    given the known one that its neighbourhood fits best. `pairs` as for `by_rank`.
    """
    assigned = np.zeros((0, 0), np.float32)
    for stage in _STAGES:
        width = min(stage, len(observed.types), len(known.types))
        pinned = _pinned(observed.types[:width], known.types[:width], pairs)
        prior = _frequency_scores(observed, known, slice(0, width), width)
        if not len(assigned):
            assigned = _assigned(prior, pinned)
        for _ in range(_ROUNDS):
            scores = prior + _TRUST * _Context(observed, known, assigned, width).scores(slice(0, width))
            assigned = _assigned(scores, pinned)
    guess = np.concatenate([known.types[assigned.argmax(axis=1)], _guessed_rest(observed, known, assigned)])
    return np.array([pairs.get(int(each), place) for each, place in zip(observed.types, guess, strict=True)], np.int64)


class _Context:
    """How well the neighbourhoods of observed types fit those of the `width` most frequent known types."""

    def __init__(self, observed: Corpus, known: Corpus, assigned: Scores, width: int) -> None:
        rows, columns = _anchors(observed, assigned.shape[0]), _anchors(known, assigned.shape[1])
        self._counts = observed.counts
        self._translation = assigned[:rows, :columns]
        self._observed = [each[:, :rows] for each in observed.neighbours]
        self._likelihoods = [_log_likelihoods(known, each, columns, width) for each in known.neighbours]

    def scores(self, rows: slice) -> Scores:
        """Log-likelihood ratios [rows, width] of the observed neighbours: at this known type against anywhere."""
        counts = self._counts[rows]
        total = np.zeros((len(counts), len(self._likelihoods[0][0])), np.float32)
        for neighbours, (anchors, others) in zip(self._observed, self._likelihoods, strict=True):
            translated = neighbours[rows] @ self._translation
            untranslated = counts - translated.sum(axis=1)
            total += translated @ anchors.T
            total += np.outer(untranslated, others)
        return total


def _anchors(corpus: Corpus, most: int) -> int:
    return min(most, max(_MIN_ANCHORS, int((corpus.counts >= _ANCHOR_COUNT).sum())))


def _log_likelihoods(known: Corpus, neighbours: Any, columns: int, width: int) -> tuple[Scores, Scores]:
    """How much likelier beside each of `width` types than anywhere are each anchor [width, columns], and all others."""
    average = (np.asarray(neighbours[:, :columns].sum(axis=0)).ravel() + 0.5) / known.tokens
    average_rest = max(1.0 - float(average.sum()), 1e-3)
    counts = neighbours[:width, :columns].toarray()
    totals = known.counts[:width]
    rest = np.clip(totals - counts.sum(axis=1), 0, None)
    smoothed = (counts + _SMOOTHING * average) / (totals[:, None] + _SMOOTHING)
    smoothed_rest = (rest + _SMOOTHING * average_rest) / (totals + _SMOOTHING)
    return np.log(smoothed / average).astype(np.float32), np.log(smoothed_rest / average_rest).astype(np.float32)


def _frequency_scores(observed: Corpus, known: Corpus, rows: slice, width: int) -> Scores:
    """Log-likelihoods [rows, width] of frequencies, whose square roots are normal with known variance by chance."""
    left = np.sqrt(observed.counts[rows] / observed.tokens)[:, None]
    right = np.sqrt(known.counts[:width] / known.tokens)[None]
    variance = 0.25 / observed.tokens + 0.25 / known.tokens + (_SPREAD * (left + right) / 4) ** 2
    scores: Scores = (-((left - right) ** 2) / (2 * variance)).astype(np.float32)
    return scores


def _pinned(observed: Ids, known: Ids, pairs: Mapping[int, int]) -> tuple[Ids, Ids, Ids, Ids]:
    """Rows and columns of pairs that are known, then the rows and the columns that are open."""
    column_of = {int(each): place for place, each in enumerate(known)}
    known_rows = [place for place, each in enumerate(observed) if int(each) in pairs]
    placed = [(row, column_of[plain]) for row in known_rows if (plain := pairs[int(observed[row])]) in column_of]
    taken = set(pairs.values())
    rows, columns = np.array(placed, np.int64).reshape(-1, 2).T
    open_rows = np.setdiff1d(np.arange(len(observed)), known_rows)
    open_columns = np.array([place for place, each in enumerate(known) if int(each) not in taken], np.int64)
    return rows, columns, open_rows, open_columns


def _assigned(scores: Scores, pinned: tuple[Ids, Ids, Ids, Ids]) -> Scores:
    """Soft assignments: the known pairs, and a balanced matrix of the exponentials of the other scores."""
    rows, columns, open_rows, open_columns = pinned
    assigned = np.zeros_like(scores)
    assigned[rows, columns] = 1.0
    if not (len(open_rows) and len(open_columns)):
        return assigned
    block = scores[np.ix_(open_rows, open_columns)]
    block = np.exp(np.maximum(block - block.max(axis=1, keepdims=True), _LOWEST))
    for _ in range(_BALANCING_ROUNDS):
        block /= block.sum(axis=0, keepdims=True) + 1e-9
        block /= block.sum(axis=1, keepdims=True) + 1e-9
    assigned[np.ix_(open_rows, open_columns)] = block
    return assigned


def _guessed_rest(observed: Corpus, known: Corpus, assigned: Scores) -> Ids:
    """Guesses for the observed types beyond those assigned, in blocks; several may get the same."""
    context = _Context(observed, known, assigned, len(known.types))
    guesses = [np.empty(0, np.int64)]
    for start in range(len(assigned), len(observed.types), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(observed.types)))
        scores = _frequency_scores(observed, known, rows, len(known.types)) + _TRUST * context.scores(rows)
        scores[:, np.unique(assigned.argmax(axis=1))] = -np.inf
        if np.isinf(scores).all():
            scores[:] = 0.0
        guesses.append(known.types[scores.argmax(axis=1)])
    return np.concatenate(guesses)
