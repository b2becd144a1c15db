"""The lexical head: which concepts of a bank a prompt spells out, how closely, and how rare their words are.

The embedding head measures what a prompt means; this one reads what it says. It finds a name in any inflection, split
by hyphens or written as one word, a single word by its relatives ("sexist" for "sexism"), and a longer name by a word
that no other name has ("Trump" for "Donald Trump"). Whether a hit counts is for its reader: the rarity of the name's
words tells "clean", which harmless prompts are full of, from "beheading".

The cost of a match is that of the words in the prompt, not of the names in the bank: each name waits under its rarest
word, and is looked at only where a prompt has that word.

Forms of words are only ever compared for equality, never looked into. So whoever matches needs no words: texts and
names can come with each form replaced by its keyed hash (:meth:`TextForms.mapped`, :meth:`NameForms.mapped`).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import add
from typing import Literal, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from latentguard.errors import WeightsError
from latentguard.naming import LONG_WORD, Naming, is_derived
from latentguard.normalize import normalize
from latentguard.wording import content_words, derivation_stem, inflection_stem, singular, word_spans, words

_FORMAT = 1
_LEAST_TEXTS = 2  # a stem in fewer texts counts as one never seen
_LONGEST = 64  # characters from which on a word is compared as it stands: no stems of it are made, none remembered
_REMEMBERED = 65536  # words whose forms are kept
_STEM_EATS = 5  # letters at the end of a word, at most, that its inflection stem lacks or has otherwise; tested

Span = tuple[int, int]
"""Where a word stands in a text: its characters [start, end)."""

Form = Literal["singular", "stem", "family"]
Replace = Callable[[Form, str], str]
"""What stands for a form of that kind. Equal forms of a kind have to have equal stand-ins, others different ones."""


class WordRarity:
    """How rare words are in harmless prompts.

    ::

        rarity = WordRarity.of(harmless_texts)
        rarity.rarity("clean"), rarity.rarity("behead")     # 0.2, 1.0
    """

    def __init__(self, texts: int, stems: Mapping[str, int]) -> None:
        """``stems`` tells in how many of so many ``texts`` an inflection stem occurs."""
        self._texts = texts
        self._stems = {stem: count for stem, count in sorted(stems.items()) if count >= _LEAST_TEXTS}

    @classmethod
    def of(cls, texts: Iterable[str]) -> WordRarity:
        """Counts the words of harmless texts, each word once a text."""
        count = 0
        stems: Counter[str] = Counter()
        for text in texts:
            count += 1
            stems.update({_FORMS[word].stem for word in words(normalize(text))})
        return cls(count, stems)

    def rarity(self, stem: str) -> float:
        """log((n + 1) / (df + 1)) / log(n + 1) for a stem in df of n texts: 0 if it is in all, 1 if in none."""
        count = self._stems.get(stem, 0)
        return 1.0 - math.log(count + 1) / math.log(self._texts + 1) if count else 1.0

    def as_bytes(self) -> bytes:
        """The content of a ``lexicon.json``, the same for the same counts."""
        described = {"format": _FORMAT, "texts": self._texts, "stems": self._stems}
        return (json.dumps(described, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> WordRarity:
        """What :meth:`as_bytes` wrote; WeightsError naming what is wrong with anything else."""
        try:
            described = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise WeightsError("lexicon.json: not JSON") from error
        if not isinstance(described, dict) or described.get("format") != _FORMAT:
            raise WeightsError(f"lexicon.json: not a lexicon of format {_FORMAT}")
        texts, stems = described.get("texts"), described.get("stems")
        if not _is_count(texts):
            raise WeightsError("lexicon.json: its number of texts is no whole number")
        if not isinstance(stems, dict):
            raise WeightsError("lexicon.json: its stems are no table")
        for stem, count in stems.items():
            if not _is_count(count) or not _LEAST_TEXTS <= count <= texts:
                raise WeightsError(
                    f"lexicon.json: the count of the stem {stem!r} is not from {_LEAST_TEXTS} to {texts}"
                )
        return cls(texts, stems)


@dataclass(frozen=True, eq=False)
class LexicalMatch:
    """The concepts that a text spells out, in the order of the bank.

    Attributes:
        concepts: int64 [m], the concepts' places in the bank.
        grades: int8 [m], how closely each is named: a value of :class:`Naming`.
        rarity: float32 [m], how rare the rarest content word of each name is in harmless prompts, from 0 to 1.
    """

    concepts: NDArray[np.int64]
    grades: NDArray[np.int8]
    rarity: NDArray[np.float32]
    _find_words: Callable[[], tuple[tuple[int, ...], ...]] = field(repr=False)

    @cached_property
    def words(self) -> tuple[tuple[int, ...], ...]:
        """For each concept the numbers of the text's words that name it, rising; found when first asked for."""
        return self._find_words()

    def spans(self, text: str) -> tuple[tuple[Span, ...], ...]:
        """For each concept the words that name it, in order, by their places in ``text``, which was matched."""
        located = word_spans(text)
        return tuple(tuple(located[number][1:] for number in of_name) for of_name in self.words)


class LexicalMatcher:
    """Tells which of a bank's concepts a text spells out. It never changes; a changed bank has another matcher.

    ::

        matcher = LexicalMatcher.of(["beheading", "Donald Trump"], rarity)
        text = normalize("Trump watches a beheading")
        match = matcher.match(matcher.forms(text))
        match.concepts, match.grades, match.spans(text)    # [0, 1], [EXACT, PART], (((16, 25),), ((0, 5),))

    Of two names of which one holds the other's words, the longer alone is a hit where a text has it in full.
    """

    def __init__(self, names: Sequence[NameForms] = ()) -> None:
        self._index = _EMPTY.extended(names)

    @classmethod
    def of(cls, names: Iterable[str], rarity: WordRarity) -> LexicalMatcher:
        """The matcher of names given as text."""
        return cls([NameForms.of(name, rarity) for name in names])

    def extended(self, names: Sequence[NameForms]) -> LexicalMatcher:
        """The matcher of this bank with more names at its end."""
        return self._of(self._index.extended(names))

    def rows(self, index: Iterable[int]) -> LexicalMatcher:
        """The matcher of the names at these places of the bank, in this order."""
        return LexicalMatcher([self._index.names[place] for place in index])

    def forms(self, text: str) -> TextForms:
        """What :meth:`match` needs of a normalised text, without the pairs that can be no name of this bank."""
        return TextForms.of(text, self._index.openings)

    def match(self, forms: TextForms) -> LexicalMatch:
        """The concepts that a text with these forms spells out."""
        found = self._index.find(forms)
        if not found:
            return _NO_MATCH
        concepts = sorted(found)
        places = np.array(concepts, dtype=np.int64)
        return LexicalMatch(
            places,
            np.array([found[concept] for concept in concepts], dtype=np.int8),
            self._index.rarities[places],
            partial(self._index.naming_words, forms, concepts),
        )

    def _of(self, index: _Index) -> LexicalMatcher:
        matcher = LexicalMatcher()
        matcher._index = index
        return matcher


_NO_MATCH = LexicalMatch(np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.float32), tuple)
for _array in (_NO_MATCH.concepts, _NO_MATCH.grades, _NO_MATCH.rarity):
    _array.flags.writeable = False


class WordForms(NamedTuple):
    """A word of a text or a name, brought to the forms by which words are compared."""

    singular: str
    stem: str
    family: str
    derived: bool  # whether it may tell a single-word name of its family

    def mapped(self, replace: Replace) -> WordForms:
        """The word with another text in place of each form."""
        return WordForms(
            replace("singular", self.singular),
            replace("stem", self.stem),
            replace("family", self.family),
            self.derived,
        )


def _stem(word: str) -> str:
    return inflection_stem(word) if len(word) <= _LONGEST else word


class _FormsOfWords(dict[str, WordForms]):
    """The forms of words, made when first asked for. A table, since calling a cached function costs twice as much."""

    def __missing__(self, word: str) -> WordForms:
        if len(word) > _LONGEST:
            return WordForms(word, word, word, False)
        if len(self) >= _REMEMBERED:
            self.clear()
        forms = WordForms(singular(word), inflection_stem(word), derivation_stem(word), is_derived(word))
        self[word] = forms
        return forms


_FORMS = _FormsOfWords()


@dataclass(frozen=True, slots=True)
class TextForms:
    """All that a matcher needs of a text.

    Attributes:
        words: the forms of its words, in order.
        pairs: of two neighbours the number of the first, and the stem of both written as one; rising.
    """

    words: Sequence[WordForms]
    pairs: Sequence[tuple[int, str]]

    @classmethod
    def of(cls, text: str, openings: frozenset[str] | None = None) -> TextForms:
        """The forms of a normalised text; with ``openings``, without the pairs that begin like none of a bank's names,
        which are nearly all, since it takes long to stem them."""
        row = words(text)
        pairs = enumerate(map(add, row, row[1:]))
        if openings is not None:
            stems = [(i, _stem(both)) for i, both in pairs if both[:-_STEM_EATS] in openings]
        else:
            stems = [(i, _stem(both)) for i, both in pairs]
        return cls([_FORMS[word] for word in row], stems)

    def mapped(self, replace: Replace) -> TextForms:
        """The text with another one in place of each form."""
        return TextForms(
            [word.mapped(replace) for word in self.words], [(i, replace("stem", stem)) for i, stem in self.pairs]
        )


@dataclass(frozen=True, slots=True)
class NameForms:
    """A concept's name, ready to be looked for.

    Attributes:
        stems: of all its words, in order.
        exact: its content words, without a plural s.
        families: of its content words.
        anchor: the family of its rarest content word, under which it is found.
        joined: the stem of its words written as one; empty where that is too short to be told from others.
        rarity: how rare its rarest content word is in harmless prompts, from 0 to 1.
    """

    stems: tuple[str, ...]
    exact: frozenset[str]
    families: frozenset[str]
    anchor: str
    joined: str
    rarity: float

    @classmethod
    def of(cls, name: str, rarity: WordRarity) -> NameForms:
        """The forms of a name given as text."""
        text = normalize(name)
        content = [_FORMS[word] for word in content_words(text)]
        rarest = max(content, key=lambda forms: (rarity.rarity(forms.stem), len(forms.stem), forms.stem), default=None)
        every = words(text)
        whole = "".join(every)
        return cls(
            stems=tuple(_FORMS[word].stem for word in every),
            exact=frozenset(forms.singular for forms in content),
            families=frozenset(forms.family for forms in content),
            anchor=rarest.family if rarest else "",
            joined=_stem(whole) if len(whole) >= LONG_WORD else "",
            rarity=rarity.rarity(rarest.stem) if rarest else 1.0,
        )

    def mapped(self, replace: Replace) -> NameForms:
        """The name with another text in place of each form."""
        return NameForms(
            stems=tuple(replace("stem", stem) for stem in self.stems),
            exact=frozenset(replace("singular", word) for word in self.exact),
            families=frozenset(replace("family", family) for family in self.families),
            anchor=replace("family", self.anchor) if self.anchor else "",
            joined=replace("stem", self.joined) if self.joined else "",
            rarity=self.rarity,
        )

    def has(self, word: WordForms) -> bool:
        """Whether a word of one of the name's families may name it: any may, but a single word has fewer relatives."""
        return len(self.families) > 1 or word.derived or word.stem == self.stems[0]


NAMELESS = NameForms((), frozenset(), frozenset(), "", "", 1.0)
"""The name of a concept that no text can spell out."""


@dataclass(frozen=True, slots=True)
class _Index:
    """Names by the words that tell them. The tables are never written to once made."""

    names: tuple[NameForms, ...]
    rarities: NDArray[np.float32]
    sharing: Mapping[str, tuple[int, ...]]  # by word family, the names that have it
    anchored: Mapping[str, tuple[int, ...]]  # by word family, the names to look at where a text has it
    joined: Mapping[str, tuple[int, ...]]  # by the stem of all words written as one
    openings: frozenset[str]  # all that words with a stem of `joined` can be without their last _STEM_EATS letters

    def extended(self, new: Sequence[NameForms]) -> _Index:
        # New places are gathered first: a table's row made anew for each one takes long where thousands share a word.
        sharing, anchored, joined = (defaultdict[str, list[int]](list) for _ in range(3))
        openings: set[str] = set()
        for place, name in enumerate(new, start=len(self.names)):
            for family in name.families:
                sharing[family].append(place)
            if name.families:
                anchored[name.anchor].append(place)
            if name.joined:
                if name.joined not in self.joined and name.joined not in joined:
                    longest = len(name.joined)
                    openings.update(name.joined[:end] for end in range(max(0, longest - _STEM_EATS), longest + 1))
                joined[name.joined].append(place)
        rarities = np.append(self.rarities, np.array([name.rarity for name in new], dtype=np.float32))
        return _Index(
            (*self.names, *new),
            rarities,
            _extended(self.sharing, sharing),
            _extended(self.anchored, anchored),
            _extended(self.joined, joined),
            self.openings | openings,
        )

    def find(self, text: TextForms) -> dict[int, Naming]:
        """As :meth:`NameMatcher.find`, in no particular order."""
        names, sharing, anchored = self.names, self.sharing, self.anchored
        known = dict.fromkeys([word for word in text.words if word[2] in sharing])
        families = {family for _, _, family, _ in known}
        partly: list[int] = []
        fully: list[int] = []
        for _, stem, family, derived in known:
            holders = sharing[family]
            if len(holders) == 1 and len(names[holders[0]].families) > 1:
                partly += holders
            for place in anchored.get(family, ()):
                name = names[place]
                if len(name.families) > 1:
                    named = name.families <= families
                elif len(name.stems) > 1:
                    named = any(_runs(name, text.words))
                else:
                    named = stem == name.stems[0]
                    if derived and not named:
                        partly.append(place)
                if named:
                    fully.append(place)
        found = dict.fromkeys(partly, Naming.PART)
        if joined := self._joined_in(text):
            found |= dict.fromkeys(joined, Naming.FULL)
        if fully:
            whole = {exact for exact, _, _, _ in text.words}
            for place in fully:
                found[place] = Naming.EXACT if names[place].exact <= whole else Naming.FULL
        if len(found) > 1:
            self._drop_nested(found)
        return found

    def _joined_in(self, text: TextForms) -> list[int]:
        """The names written as one word where the text has it in one or two: redlining, 'red line'."""
        joined = self.joined
        stems = [word[1] for word in text.words if word[1] in joined]
        stems += [stem for _, stem in text.pairs if stem in joined]
        return [place for stem in stems for place in joined[stem]]

    def _drop_nested(self, found: dict[int, Naming]) -> None:
        """Takes out the names that are contained in another that the text has in full."""
        names = self.names
        longer = [names[place] for place, naming in found.items() if naming > Naming.PART]
        longer = [name for name in longer if len(name.families) > 1]
        if not longer:
            return
        by_anchor: dict[str, list[int]] = defaultdict(list)
        for place in found:
            by_anchor[names[place].anchor].append(place)
        for name in longer:
            for family in name.families:
                for place in by_anchor.get(family, ()):
                    if names[place].families < name.families:
                        found.pop(place, None)

    def naming_words(self, text: TextForms, places: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For each of the names found in the text, the numbers of the words that name it."""
        of_family: dict[str, list[int]] = defaultdict(list)
        of_joined: dict[str, list[int]] = defaultdict(list)
        for i, word in enumerate(text.words):
            of_family[word.family].append(i)
            of_joined[word.stem].append(i)
        for i, stem in text.pairs:
            of_joined[stem] += (i, i + 1)
        numbers = []
        for name in (self.names[place] for place in places):
            naming = set(of_joined.get(name.joined, ()))
            if len(name.families) == 1 < len(name.stems):
                naming.update(i for run in _runs(name, text.words) for i in run)
            else:
                related = (i for family in name.families for i in of_family.get(family, ()))
                naming.update(i for i in related if name.has(text.words[i]))
            numbers.append(tuple(sorted(naming)))
        return tuple(numbers)


def _extended(table: Mapping[str, tuple[int, ...]], more: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    return {**table, **{key: (*table.get(key, ()), *places) for key, places in more.items()}}


_EMPTY = _Index((), np.empty(0, dtype=np.float32), {}, {}, {}, frozenset())


def _runs(name: NameForms, words: Sequence[WordForms]) -> Iterator[list[int]]:
    """The places of the name's words wherever they follow each other with at most two others between."""
    stems = [word.stem for word in words]
    for start, first in enumerate(stems):
        if first == name.stems[0]:
            following = iter(range(start + 1, min(start + len(name.stems) + 2, len(stems))))
            run = [next((i for i in following if stems[i] == stem), -1) for stem in name.stems[1:]]
            if -1 not in run:
                yield [start, *run]


def _is_count(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
