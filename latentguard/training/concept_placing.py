"""Recovers the concept of each prompt in a file whose rows stand in order of concept but don't carry it.

The file is read as a run of blocks. Each block draws a concept of the vocabulary, or one that the vocabulary lacks, and
a length; each of its rows names the concept exactly, in full, in part, or not at all. The most probable run of blocks
is found by a dynamic programme over all block boundaries (a segmental Viterbi search). How often a concept is named
outside its own blocks, and how long blocks are, is estimated from the rows themselves in a few rounds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from latentguard.naming import NameMatcher, Naming
from latentguard.wording import content_words, derivation_stem, words

LONGEST_BLOCK = 24
TYPICAL_BLOCK = 10
ROUNDS = 3
UNKNOWN_SHARE = 0.3  # blocks whose concept the vocabulary lacks, or that never name it
COMMON_WORD = 0.02  # a word found in more than this share of stretches of a block's length tells no concept
LEVELS = 1 + len(Naming)  # level 0: the row does not name the concept
PRIOR = np.array([0.6, 0.2, 0.4, 0.8])  # Dirichlet prior of the levels within a concept's block
LEAST_OUTSIDE, MOST_OUTSIDE = 2e-4, 0.3  # bounds on how often a concept is named outside its blocks

LEAST_NAMING_ROWS = 2.0  # a row that names the concept only in part counts half
LEAST_MARGIN = 2.0  # by how much (natural log) a block's concept must beat the next best one and the unknown
FARTHEST_ROW = 6  # a row farther than this from one that names the concept stays unplaced

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mentions = Sequence[Mapping[int, Naming]]


@dataclass(frozen=True)
class _Block:
    start: int
    stop: int
    concept: int  # index in the vocabulary, -1 for unknown

    def __len__(self) -> int:
        return self.stop - self.start


def place_concepts(
    unsafe_prompts: Sequence[str], categories: Sequence[str], vocabulary: Sequence[str]
) -> list[str | None]:
    """The concept of each prompt, or None where the rows don't tell it reliably.

    The prompts stand in order of concept. Neighbouring rows with the same text count as one row with several
    categories; no block spans two rows that share no category. Only the spelling of the names is used, and of names
    that no spelling can tell apart ('low class', 'low-class') the first one is given.
    """
    names = _distinct(vocabulary)
    texts, groups, row_of = _merge_repeats(unsafe_prompts, categories)
    if not texts or not names:
        return [None] * len(unsafe_prompts)
    matcher = NameMatcher(names, _common_families(texts))
    mentions = [matcher.find(text) for text in texts]
    breaks = [before.isdisjoint(after) for before, after in pairwise(groups)]
    durations = _log_shares(np.eye(1, LONGEST_BLOCK + 1, TYPICAL_BLOCK)[0] * LONGEST_BLOCK)
    outside = _first_outside_rates(mentions, len(names))
    blocks: list[_Block] = []
    for _ in range(ROUNDS):
        blocks = _segment(mentions, breaks, outside, durations)
        lengths = Counter(len(block) for block in blocks)
        durations = _log_shares(np.array([lengths[length] for length in range(LONGEST_BLOCK + 1)], dtype=np.float64))
        outside = _outside_rates(mentions, blocks, len(names))
    placed = _reliable(blocks, mentions, outside)
    return [None if placed[row] < 0 else names[placed[row]] for row in row_of]


def _distinct(vocabulary: Sequence[str]) -> list[str]:
    names: dict[str, str] = {}
    for name in vocabulary:
        names.setdefault("".join(content_words(name)), name)
    return [name for key, name in names.items() if key]


def _merge_repeats(prompts: Sequence[str], categories: Sequence[str]) -> tuple[list[str], list[set[str]], list[int]]:
    """The texts without neighbouring repeats, the categories of each, and for each prompt the index of its text."""
    texts: list[str] = []
    groups: list[set[str]] = []
    row_of: list[int] = []
    for prompt, category in zip(prompts, categories, strict=True):
        if texts and texts[-1] == prompt:
            groups[-1].add(category)
        else:
            texts.append(prompt)
            groups.append({category})
        row_of.append(len(texts) - 1)
    return texts, groups, row_of


def _common_families(texts: Sequence[str]) -> set[str]:
    """The word families found in so many stretches of a block's length that they tell no concept."""
    stretches = [texts[start : start + TYPICAL_BLOCK] for start in range(0, len(texts), TYPICAL_BLOCK)]
    seen: Counter[str] = Counter()
    for stretch in stretches:
        seen.update({derivation_stem(word) for text in stretch for word in words(text)})
    most = max(3.0, COMMON_WORD * len(stretches))
    return {family for family, count in seen.items() if count > most}


def _log_shares(counts: Floats) -> Floats:
    """log P(length) for lengths 0..LONGEST_BLOCK, from counts with one added to each; a block has at least one row."""
    shares = counts + 1.0
    shares[0] = 0.0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(shares / shares.sum()), dtype=np.float64)


def _first_outside_rates(mentions: Mentions, size: int) -> Floats:
    """log P(level) outside a concept's blocks [size, LEVELS], taking each concept's densest stretch for its block."""
    places: list[list[int]] = [[] for _ in range(size)]
    for row, found in enumerate(mentions):
        for concept in found:
            places[concept].append(row)
    blocks = []
    for concept, rows in enumerate(places):
        first, best = 0, (0, 0)
        for last, row in enumerate(rows):
            while rows[first] <= row - TYPICAL_BLOCK:
                first += 1
            best = max(best, (last - first + 1, rows[first]))
        blocks.append(_Block(best[1], min(best[1] + TYPICAL_BLOCK, len(mentions)), concept))
    return _outside_rates(mentions, blocks, size)


def _outside_rates(mentions: Mentions, blocks: Sequence[_Block], size: int) -> Floats:
    """log P(level) of the rows outside a concept's blocks [size, LEVELS]."""
    counts = np.zeros((size, LEVELS))
    rows = np.full(size, float(len(mentions)))
    for found in mentions:
        for concept, naming in found.items():
            counts[concept, naming] += 1
    for block in blocks:
        if block.concept >= 0:
            rows[block.concept] -= len(block)
            for found in mentions[block.start : block.stop]:
                if block.concept in found:
                    counts[block.concept, found[block.concept]] -= 1
    named = np.clip((counts[:, 1:] + 0.5) / (rows[:, None] + 0.5 * LEVELS), LEAST_OUTSIDE, MOST_OUTSIDE)
    shares = np.concatenate([1.0 - named.sum(axis=1, keepdims=True), named], axis=1)
    return np.asarray(np.log(shares), dtype=np.float64)


def _segment(mentions: Mentions, breaks: Sequence[bool], outside: Floats, durations: Floats) -> list[_Block]:
    """The most probable run of blocks, first to last."""
    known, unknown = _log_draws(len(outside))
    best = np.full(len(mentions) + 1, -np.inf)
    best[0] = 0.0
    came = [(0, -1)] * (len(mentions) + 1)
    floor = 0
    for stop in range(1, len(mentions) + 1):
        if stop >= 2 and breaks[stop - 2]:
            floor = stop - 1
        lengths = np.arange(1, min(LONGEST_BLOCK, stop - floor) + 1)
        path = best[stop - lengths] + durations[lengths]
        chosen, concept = int(np.argmax(path)), -1
        top = path[chosen] + unknown
        candidates, named = _count_back(mentions, stop, len(lengths))
        if candidates.size:
            gain = path + known + _evidence(named, lengths, outside[candidates])
            place, length = divmod(int(np.argmax(gain)), len(lengths))
            if gain[place, length] > top:
                top, chosen, concept = gain[place, length], length, int(candidates[place])
        best[stop] = top
        came[stop] = (stop - int(lengths[chosen]), concept)
    blocks: list[_Block] = []
    stop = len(mentions)
    while stop > 0:
        start, concept = came[stop]
        blocks.append(_Block(start, stop, concept))
        stop = start
    return blocks[::-1]


def _log_draws(size: int) -> tuple[float, float]:
    """log P(a block draws one given concept), log P(it draws one that the vocabulary lacks)."""
    return math.log((1.0 - UNKNOWN_SHARE) / size), math.log(UNKNOWN_SHARE)


def _count_back(mentions: Mentions, stop: int, longest: int) -> tuple[Counts, Counts]:
    """The concepts named in the rows before `stop` [C]; how often in the last 1..longest, by level [3, C, longest]."""
    slot: dict[int, int] = {}
    where: list[int] = []
    back: list[int] = []
    level: list[int] = []
    for distance in range(longest):
        for concept, naming in mentions[stop - 1 - distance].items():
            where.append(slot.setdefault(concept, len(slot)))
            back.append(distance)
            level.append(naming - 1)
    named = np.zeros((LEVELS - 1, len(slot), longest), dtype=np.int64)
    named[level, where, back] = 1
    return np.fromiter(slot, dtype=np.int64, count=len(slot)), named.cumsum(axis=2)


def _evidence(named: Counts, lengths: Counts, outside: Floats) -> Floats:
    """log of how much more probable the rows are within a concept's block than outside [C, lengths].

    Within a block the levels follow a Dirichlet-multinomial distribution with PRIOR, outside they are independent.
    """
    levels = np.concatenate([lengths - named.sum(axis=0, keepdims=True), named])
    inside = _BY_LENGTH[lengths] + sum(_BY_LEVEL[level, levels[level]] for level in range(LEVELS))
    return np.asarray(inside - np.einsum("kcl,ck->cl", levels, outside), dtype=np.float64)


def _log_rising(start: float) -> list[float]:
    """log of start * (start + 1) * ... with 0..LONGEST_BLOCK factors."""
    return [math.lgamma(start + count) - math.lgamma(start) for count in range(LONGEST_BLOCK + 1)]


_BY_LEVEL = np.array([_log_rising(float(start)) for start in PRIOR])
_BY_LENGTH = -np.array(_log_rising(float(PRIOR.sum())))


def _reliable(blocks: Sequence[_Block], mentions: Mentions, outside: Floats) -> list[int]:
    """The concept index of every row; -1 where the evidence is little, ambiguous, or far from the row."""
    known, unknown = _log_draws(len(outside))
    placed = [-1] * len(mentions)
    for block in blocks:
        naming = {row: mentions[row][block.concept] for row in range(block.start, block.stop)
                  if block.concept in mentions[row]}  # fmt: skip
        if sum(0.5 if level is Naming.PART else 1.0 for level in naming.values()) < LEAST_NAMING_ROWS:
            continue
        candidates, named = _count_back(mentions, block.stop, len(block))
        evidence = _evidence(named[:, :, -1:], np.array([len(block)]), outside[candidates])[:, 0]
        rival = max([unknown, *(known + evidence[candidates != block.concept])])
        if known + evidence[candidates == block.concept][0] - rival < LEAST_MARGIN:
            continue
        for row in range(block.start, block.stop):
            if min(abs(row - other) for other in naming) <= FARTHEST_ROW:
                placed[row] = block.concept
    return placed
