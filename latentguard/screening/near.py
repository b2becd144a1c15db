"""Prompts that are nearly the same as a harmless one: approximate, and off unless asked for.

A prompt is taken as the set of its words and of its pairs of neighbouring words, after the guard's own normalisation
and in lower case. The Jaccard similarity of two such sets is estimated by MinHash, and the prompts it is high enough
with are found by locality-sensitive hashing (datasketch).

What is found is an estimate, so it is used where an error costs least. A verdict is only ever passed on if it allowed
its prompt by a clear margin; what was blocked, flagged or anywhere near a threshold is never looked up, and a prompt
like it is always scored. Nor may the prompt have a word, or a number, that the one it resembles hasn't: one word is
enough to make a harmless prompt a harmful one. What remains are other orders, repetitions, omissions, punctuation, case
and spelling tricks. Even so an order or an omission can move a score by more than the margin, and a prompt that would
be blocked gets through. Each outcome that was passed on says so: this is for sorting large collections, not for prompts
of people who look for a way past the guard.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from itertools import pairwise
from typing import NamedTuple

from latentguard.errors import MissingDependencyError
from latentguard.normalize import normalize
from latentguard.screening.screener import Outcome

try:
    from datasketch import MinHash, MinHashLSH
except ImportError as error:
    raise MissingDependencyError("near duplicates need datasketch: pip install 'latentguard[screening]'") from error

# How far below its threshold, in the score's log-odds, a prompt has to be for others to get its verdict.
SAFE_MARGIN = 1.0

_PERMUTATIONS = 64
# A sign outside ASCII is a word too: an emoji can be all the harm there is.
_WORD = re.compile(r"\w+|[^\s\x00-\x7f]")


class _Remembered(NamedTuple):
    words: frozenset[str]
    sketch: MinHash
    outcome: Outcome


class NearDuplicates:
    """The last so many clearly harmless prompts, to be found by what is nearly the same.

    Args:
        similarity: the Jaccard similarity, estimated, from which a prompt is nearly the same.
        size: how many prompts are remembered at most; one takes some 6 KB.
        flag_margin: the guard's; verdicts within ``SAFE_MARGIN`` of being flagged aren't passed on either.
    """

    def __init__(self, similarity: float, size: int, flag_margin: float) -> None:
        self._similarity = similarity
        self._size = size
        self._margin = -(flag_margin + SAFE_MARGIN)
        self._index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
        self._remembered: OrderedDict[int, _Remembered] = OrderedDict()
        self._next = 0

    def find(self, prompt: str) -> Outcome | None:
        """The outcome, marked as such, of a remembered prompt that is nearly the same and has all of this one's words;
        None if there is none."""
        words, sketch = self._sketch(prompt)
        if not words:
            return None
        best: _Remembered | None = None
        highest = self._similarity
        for key in self._index.query(sketch):
            candidate = self._remembered[key]
            similarity = candidate.sketch.jaccard(sketch)
            if similarity >= highest and words <= candidate.words:
                best, highest = candidate, similarity
        return None if best is None else best.outcome._replace(near=True)

    def remember(self, prompt: str, outcome: Outcome) -> None:
        """Remembers a prompt that was scored, if it was allowed by a clear margin; the oldest one goes."""
        if outcome.decision != "allow" or outcome.margin > self._margin:
            return
        words, sketch = self._sketch(prompt)
        if not words:
            return
        self._index.insert(self._next, sketch)
        self._remembered[self._next] = _Remembered(words, sketch, outcome)
        self._next += 1
        if len(self._remembered) > self._size:
            oldest, _ = self._remembered.popitem(last=False)
            self._index.remove(oldest)

    def _sketch(self, prompt: str) -> tuple[frozenset[str], MinHash]:
        words = _WORD.findall(normalize(prompt).lower())
        sketch = MinHash(num_perm=_PERMUTATIONS)
        pairs = {f"{first} {second}" for first, second in pairwise(words)}
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in pairs.union(words)])
        return frozenset(words), sketch
