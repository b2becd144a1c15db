"""Text as an attacker sees it: sequences of ids, how often each occurs, and beside which others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.errors import AttackError
from privacy.files import read_error

Ids = NDArray[np.int64]

_OFFSETS = (1, 2)
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Corpus:
    """Statistics of sequences of ids.

    types [T]: the ids that occur, most frequent first. counts [T]: how often. neighbours: for each place beside a token
    (next, previous, next but one, previous but one) a sparse matrix [T, T] of how often which type stands there.
    """

    types: Ids
    counts: Ids
    neighbours: tuple[Any, ...]

    @classmethod
    def of(cls, sequences: Sequence[Ids]) -> Corpus:
        """The statistics of `sequences`, each of int64 [L]; those beside each other in different ones aren't counted.

        Raises:
            AttackError: there is no id at all.
        """
        ids = np.concatenate([*sequences, np.empty(0, np.int64)])
        if not ids.size:
            raise AttackError("there is no text to learn from")
        types, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        place = np.argsort(order)[place]
        sequence = np.repeat(np.arange(len(sequences)), [len(each) for each in sequences])
        neighbours = []
        for offset in _OFFSETS:
            inside = sequence[offset:] == sequence[:-offset]
            pair = (place[:-offset][inside], place[offset:][inside])
            following = sparse.coo_matrix((np.ones(len(pair[0]), np.float32), pair), (len(types), len(types))).tocsr()
            neighbours += [following, following.T.tocsr()]
        return cls(types[order], counts[order], tuple(neighbours))

    @property
    def tokens(self) -> int:
        """How many ids there are."""
        return int(self.counts.sum())

    def places(self) -> dict[int, int]:
        """Where in `types` each id is."""
        return {int(each): place for place, each in enumerate(self.types)}


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file that aren't empty.

    Raises:
        DataError: it can't be read.
        AttackError: it isn't UTF-8, is longer than 256 MiB, or has no text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise read_error(path, error) from error
    if len(content) > _MAX_BYTES:
        raise AttackError(f"{path}: is longer than {_MAX_BYTES:,} bytes")
    try:
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise AttackError(f"{path}: is not UTF-8 at byte {error.start + 1}") from None
    if not lines:
        raise AttackError(f"{path}: has no text")
    return lines


def first_words(lines: Sequence[str], words: int) -> list[str]:
    """The beginning of `lines` with that many words, as white space parts them; the last line may be cut."""
    kept = []
    for line in lines:
        parts = line.split()[:words]
        if not parts:
            break
        kept.append(" ".join(parts))
        words -= len(parts)
    return kept
