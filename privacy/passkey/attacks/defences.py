"""What a client could do against frequency analysis, simulated on ids: homophones, and several keys."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from privacy.passkey.attacks.corpus import Ids


class Homophones:
    """Several ids for a frequent token, of which the client draws one at random each time.

    counts [V]: how often each token is, in text of the same kind. share: no id shall stand for more than this share of
    all tokens. special: ids that stay single. plain [W]: the token of each id; W is V and one for each further id.
    """

    def __init__(self, counts: Ids, share: float, special: Collection[int]) -> None:
        numbers = np.maximum(1, np.ceil(counts / (share * counts.sum()))).astype(np.int64)
        numbers[list(special)] = 1
        self.plain = np.concatenate([np.arange(len(counts)), np.repeat(np.arange(len(counts)), numbers - 1)])
        self._numbers = numbers
        self._first = len(counts) + np.cumsum(numbers - 1) - (numbers - 1)

    def draw(self, sequences: Sequence[Ids], seed: int) -> list[Ids]:
        """`sequences` with each token's id drawn anew."""
        random = np.random.default_rng(seed)
        drawn = []
        for ids in sequences:
            choice = random.integers(self._numbers[ids])
            drawn.append(np.where(choice == 0, ids, self._first[ids] + choice - 1))
        return drawn


def shuffled(size: int, fixed: Collection[int], seed: int) -> Ids:
    """New ids [size] as another key would give them, for simulations only: `fixed` ones stay."""
    new = np.arange(size)
    free = np.setdiff1d(new, np.array(list(fixed), np.int64))
    new[free] = np.random.default_rng(seed).permutation(free)
    return new


def passages(sequences: Sequence[Ids], tokens: int, most: int, special: Collection[int]) -> list[list[Ids]]:
    """At most `most` passages of whole sequences, each of so many `tokens` or slightly more; all if there are fewer."""
    found: list[list[Ids]] = []
    passage: list[Ids] = []
    length = 0
    for ids in sequences:
        passage.append(ids)
        length += int((~np.isin(ids, list(special))).sum())
        if length >= tokens:
            found.append(passage)
            passage, length = [], 0
        if len(found) == most:
            break
    return found or [passage]
