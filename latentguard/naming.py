"""Finds the names of concepts in a prompt: in full, inflected, or only a telling part of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from enum import IntEnum
from itertools import pairwise

from latentguard.wording import content_words, derivation_stem, inflection_stem, singular, words

LONG_WORD = 6  # letters from which on a word stands for a relative, and 'red line' for 'redlining'


class Naming(IntEnum):
    """How closely a text names a concept; a text that does not name it has no entry."""

    PART = 1  # a word that only this longer name has, or a relative of a single word: 'sexist' for 'sexism'
    FULL = 2  # every word of the name in some inflection
    EXACT = 3  # every word of the name as spelt, but for a plural s


class NameMatcher:
    """Tells which names of a vocabulary a text mentions, and how closely."""

    def __init__(self, vocabulary: Sequence[str], common: Collection[str] = ()) -> None:
        """`common` holds word families (derivation stems) too frequent to stand for a part of a longer name."""
        self._stems = [[inflection_stem(word) for word in words(name)] for name in vocabulary]
        self._exact = [{singular(word) for word in content_words(name)} for name in vocabulary]
        self._families = [{derivation_stem(word) for word in content_words(name)} for name in vocabulary]
        self._common = frozenset(common)
        self._by_family: dict[str, list[int]] = defaultdict(list)
        self._by_joined: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(vocabulary):
            for family in self._families[index]:
                self._by_family[family].append(index)
            joined = "".join(words(name))
            if len(joined) >= LONG_WORD:
                self._by_joined[inflection_stem(joined)].append(index)
        self._within = [
            {other for family in families for other in self._by_family[family] if self._families[other] < families}
            for families in self._families
        ]

    def find(self, text: str) -> dict[int, Naming]:
        """The vocabulary indices that the text mentions; of two nested names only the longer one counts."""
        row = words(text)
        stems = [inflection_stem(word) for word in row]
        whole = {singular(word) for word in row}
        families = {derivation_stem(word) for word in row}
        related = {derivation_stem(word) for word in row if is_derived(word)}
        hits = Counter(index for family in families for index in self._by_family.get(family, ()))
        found: dict[int, Naming] = {}
        for index, count in hits.items():
            if count == len(self._families[index]) and (count >= 2 or self._in_order(index, stems)):
                found[index] = Naming.EXACT if self._exact[index] <= whole else Naming.FULL
            elif self._tells(index, related, families):
                found[index] = Naming.PART
        for joined in (*row, *(first + second for first, second in pairwise(row))):
            for index in self._by_joined.get(inflection_stem(joined), ()):
                found[index] = max(Naming.FULL, found.get(index, Naming.FULL))
        full = [index for index, naming in found.items() if naming >= Naming.FULL]
        for index in full:
            for shorter in self._within[index] & found.keys():
                del found[shorter]
        return dict(sorted(found.items()))

    def _tells(self, index: int, related: set[str], families: set[str]) -> bool:
        """Whether the part of the name that the text has can mean no other name of the vocabulary."""
        if len(self._families[index]) == 1:
            return len(self._stems[index]) == 1 and not related.isdisjoint(self._families[index])
        shared = self._families[index] & families - self._common
        return any(len(self._by_family[family]) == 1 for family in shared)

    def _in_order(self, index: int, stems: Sequence[str]) -> bool:
        """Whether the words of the name follow each other with at most two others between."""
        name = self._stems[index]
        for start, stem in enumerate(stems):
            if stem == name[0]:
                following = iter(stems[start + 1 : start + len(name) + 2])
                if all(word in following for word in name[1:]):
                    return True
        return False


def is_derived(word: str) -> bool:
    """Whether a word may be told by its family: 'sexist' tells 'sexism', but 'sex' and 'food' tell no 'foodie'."""
    stem = inflection_stem(word)
    return len(stem) >= LONG_WORD or stem != derivation_stem(word)
