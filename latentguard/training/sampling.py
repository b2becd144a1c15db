"""Which prompts and concepts make a training batch. A batch is a function of seed and step: resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentguard.training.pairs import TrainingPair

Places = NDArray[np.int64]


@dataclass(frozen=True)
class PairTable:
    """Training pairs as numbers: of concept c, rows ``starts[c]`` to ``starts[c + 1]`` of ``unsafe`` and ``safe``.

    Entries are places in a token-state cache; a missing safe twin is -1.
    """

    concepts: tuple[str, ...]
    starts: Places
    unsafe: Places
    safe: Places

    def __len__(self) -> int:
        return len(self.unsafe)


def tabulate(pairs: Sequence[TrainingPair], places: dict[str, int]) -> PairTable:
    """The table of ``pairs``; ``places`` says where each text stands in the cache."""
    by_concept: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        by_concept.setdefault(pair.concept, []).append(pair)
    rows = [pair for concept in sorted(by_concept) for pair in by_concept[concept]]
    sizes = [len(by_concept[concept]) for concept in sorted(by_concept)]
    return PairTable(
        concepts=tuple(sorted(by_concept)),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        unsafe=np.array([places[pair.unsafe] for pair in rows], dtype=np.int64),
        safe=np.array([-1 if pair.safe is None else places[pair.safe] for pair in rows], dtype=np.int64),
    )


@dataclass(frozen=True)
class Batch:
    """C different concepts, an unsafe prompt of each in the same order, T safe twins of theirs, further negatives.

    ``twin_of`` [T] says of each twin which of the batch's concepts it belongs to.
    """

    concepts: Places
    unsafe: Places
    twins: Places
    twin_of: Places
    negatives: Places

    @property
    def prompts(self) -> Places:
        """All prompts in the order in which the loss takes them."""
        return np.concatenate([self.unsafe, self.twins, self.negatives])


def draw_batch(
    table: PairTable, negatives: Sequence[Places], *, concepts: int, harmless: int, seed: int, step: int
) -> Batch:
    """The batch of a step: ``concepts`` concepts, their unsafe prompts and safe twins, ``harmless`` further negatives.

    A concept's prompt is drawn evenly among its own, so that concepts with many prompts don't count more. Of the
    groups of negatives each has a share that grows with the square root of its size.
    """
    rng = np.random.default_rng([seed, step])
    chosen = rng.choice(len(table.concepts), size=min(concepts, len(table.concepts)), replace=False)
    first, after = table.starts[chosen], table.starts[chosen + 1]
    rows = first + (rng.random(len(chosen)) * (after - first)).astype(np.int64)
    twins = table.safe[rows]
    return Batch(
        concepts=chosen.astype(np.int64),
        unsafe=table.unsafe[rows],
        twins=twins[twins >= 0],
        twin_of=np.flatnonzero(twins >= 0).astype(np.int64),
        negatives=_draw(rng, negatives, harmless),
    )


def _draw(rng: np.random.Generator, groups: Sequence[Places], count: int) -> Places:
    """``count`` entries of the groups without repetition, or all where there are no more."""
    entries = np.concatenate([np.empty(0, dtype=np.int64), *groups])
    if len(entries) <= count:
        return entries
    each = np.concatenate([np.full(len(group), len(group) ** -0.5) for group in groups])
    return rng.choice(entries, size=count, replace=False, p=each / each.sum())
