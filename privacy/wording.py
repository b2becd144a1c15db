"""Which words of a prompt say that a person is in the picture, and which state one of the person's attributes.

Words and phrases with boundaries, in one language at a time; no model. docs/attributes.md says what that can't find.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_GAP = " ... "
_PERSON = " PERSON"
# A hyphen belongs to the word: nobody is in the picture of a man-made lake.
_START, _END = r"(?<![\w-])", r"(?![\w-])"


class Statement(NamedTuple):
    """A place of a prompt that states attributes: `prompt[start:end]`, and what may stand there instead."""

    start: int
    end: int
    attributes: frozenset[str]
    neutral: str


class Wording:
    """The words of one language.

    `people` are words for persons and `exceptions` phrases that have one without meaning it; `stated` has, for each
    attribute, the terms that state it with their neutral replacement. A term is a word or phrase, ``A ... B`` (A where
    B follows after at most two words) or ``A PERSON`` (A before a word for a person). Letter case makes no difference.

    Raises:
        ValueError: a term has two different replacements.
    """

    def __init__(
        self, people: Iterable[str], exceptions: Iterable[str], stated: Mapping[str, Mapping[str, str]]
    ) -> None:
        people, exceptions = list(people), list(exceptions)
        self._people = _compiled(_words(people)) if people else None
        self._exceptions = _compiled(_words(exceptions)) if exceptions else None
        self._neutral: dict[str, str] = {}
        self._attributes: dict[str, set[str]] = {}
        for attribute, terms in stated.items():
            for term, neutral in terms.items():
                # Keys are in lower case but for PERSON, which so is never taken for the word.
                key = _key(term.removesuffix(_PERSON)) + (_PERSON if term.endswith(_PERSON) else "")
                if (other := self._neutral.setdefault(key, neutral)) != neutral:
                    raise ValueError(f"the term {term!r} has two replacements, {other!r} and {neutral!r}")
                self._attributes.setdefault(key, set()).add(attribute)
        self._terms = self._patterns(people)

    def people(self, prompt: str) -> int:
        """How many words of the prompt are for persons."""
        if self._people is None:
            return 0
        if self._exceptions is not None:
            prompt = self._exceptions.sub(" . ", prompt)
        return len(self._people.findall(prompt))

    def statements(self, prompt: str) -> list[Statement]:
        """The places that state an attribute, in order and without overlap; of two from one place on, the longer."""
        found = sorted(self._matches(prompt), key=lambda place: (place.start, -place.end))
        kept: list[Statement] = []
        for place in found:
            if not kept or place.start >= kept[-1].end:
                kept.append(place)
            elif (place.start, place.end) == (kept[-1].start, kept[-1].end):
                kept[-1] = kept[-1]._replace(attributes=kept[-1].attributes | place.attributes)
        return kept

    def _matches(self, prompt: str) -> Iterator[Statement]:
        for pattern, suffix in self._terms:
            for match in pattern.finditer(prompt):
                key = _key(match.group()) + suffix
                yield Statement(*match.span(), frozenset(self._attributes[key]), self._neutral[key])

    def _patterns(self, people: list[str]) -> list[tuple[re.Pattern[str], str]]:
        """Patterns with what a match lacks of its term: the plain terms', those before a person's, each ``... B``'s."""
        plain: list[str] = []
        before_person: list[str] = []
        before: dict[str, list[str]] = {}
        for key in self._neutral:
            if _GAP in key:
                first, last = key.split(_GAP)
                before.setdefault(last, []).append(first)
            elif key.endswith(_PERSON):
                before_person.append(key.removesuffix(_PERSON))
            else:
                plain.append(key)
        patterns: list[tuple[re.Pattern[str], str]] = []
        if before_person and people:
            # Other adjectives of the kind may stand between: a black young man.
            between = rf"(?:\s+{_words([*plain, *before_person])})*?"
            patterns.append((_compiled(rf"{_words(before_person)}(?={between}\s+{_words(people)})"), _PERSON))
        for last, firsts in before.items():
            # Not past a comma: a black dress, blonde hair.
            ahead = rf"(?=(?:\s+[\w-]+){{0,2}}\s+{_words([last])})"
            patterns.append((_compiled(_words(firsts) + ahead), _GAP + last))
        # Last: the replacement of "blonde hair" goes before that of "blonde", which is a person.
        if plain:
            patterns.append((_compiled(_words(plain)), ""))
        return patterns


def _key(term: str) -> str:
    return " ".join(term.split()).casefold()


def _words(terms: Iterable[str]) -> str:
    """A pattern for any of the terms as whole words, the longest that fits."""
    longest_first = sorted({_key(term) for term in terms}, key=lambda term: (-len(term), term))
    return rf"{_START}(?:{'|'.join(map(_spaced, longest_first))}){_END}"


def _spaced(term: str) -> str:
    return r"\s+".join(map(re.escape, term.split()))


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)
