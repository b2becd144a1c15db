"""Words, stems and keys: how two spellings of one text or of one concept name are told to be the same."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "d", "down", "for", "from", "he", "her", "him", "his", "i", "in", "it", "its", "ll",
     "m", "of", "off", "on", "or", "out", "over", "re", "s", "she", "t", "the", "them", "they", "to", "up", "ve",
     "while", "with", "you", "your")
)  # fmt: skip
"""Words that alone say nothing of a concept: 'down' in 'beat down' counts only next to 'beat'."""

MOST_SHARED = 4
"""A word that more names than this have in common ('abuse', 'behavior') is too general to make them relatives."""

_WORD = re.compile(r"[^\W_]+(?:\*+[^\W_]*)*")
_APOSTROPHE = re.compile(r"['\u2019](s\b)?")
_STARS = re.compile(r"\*+")
_VOWELS = frozenset("aeiouy")
_INFLECTIONS = (("ies", "i"), ("ied", "i"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"))
# Plurals of words in -f; other words in -ves are those in -ve: slaves, gloves.
_F_PLURALS = (
    "calves", "elves", "halves", "hooves", "knives", "leaves", "loaves", "scarves", "thieves", "wives", "wolves"
)  # fmt: skip
_DERIVATIONS = (
    "ization", "ation", "ition", "ating", "ator", "iveness", "fulness", "ousness", "icalli", "iti", "iliti", "ment",
    "ness", "ship", "ist", "ism", "ion", "ativ", "iv", "ant", "ent", "anc", "enc", "anci", "enci", "at", "iz", "abl",
    "ous", "ful", "ian", "ia", "ical", "ic", "ot", "er", "or", "al", "ri", "li", "i", "o", "a",
)  # fmt: skip
_LEAST_ROOT = {"ism": 3, "ist": 3, "ot": 3, "at": 5}  # letters that must be left; 4 for every other ending
_DOUBLING = frozenset({"er", "ot", "i", "o"})  # endings before which a consonant is doubled: robber, faggot


def text_key(text: str) -> str:
    """The text with case, white space and punctuation taken away: equal for two spellings of one prompt."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isalnum()) or "".join(folded.split())


def words(text: str) -> list[str]:
    """The words of a text in order, case folded; hyphens split, a possessive 's is dropped, f*** becomes f*."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    found: list[str] = _WORD.findall(_APOSTROPHE.sub(" ", folded))
    return [_STARS.sub("*", word) for word in found] if "*" in folded else found


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """The words that :func:`words` finds in a normalised text, each with the place [start, end) where it stands."""
    folded = [unicodedata.normalize("NFKC", character).casefold() for character in text]
    places = [place for place, characters in enumerate(folded) for _ in characters]
    blanked = _APOSTROPHE.sub(lambda match: " " * len(match.group()), "".join(folded))
    return [
        (_STARS.sub("*", match.group()), places[match.start()], places[match.end() - 1] + 1)
        for match in _WORD.finditer(blanked)
    ]


def content_words(name: str) -> list[str]:
    """The words of a concept name that carry its meaning; all its words where none does."""
    every = words(name)
    return [word for word in every if word not in FUNCTION_WORDS] or every


def singular(word: str) -> str:
    """The word without a plural s; other inflections stay."""
    return word[:-1] if word.endswith("s") and len(word) > 3 and not word.endswith("ss") else word


@lru_cache(maxsize=65536)
def inflection_stem(word: str) -> str:
    """One form for the inflections of a word: bully, bullies, bullied, bullying -> bulli; stab, stabbing -> stab."""
    if len(word) <= 3:
        return word
    for suffix, replacement in _INFLECTIONS:
        if word.endswith(suffix) and len(word) - len(suffix) >= 2:
            return word[: -len(suffix)] + replacement
    if word.endswith(_F_PLURALS) or word == "lives":
        return word[:-3] + "f"
    for suffix in ("ing", "ings", "ed"):
        root = word.removesuffix(suffix)
        if root != word and len(root) >= 2 and not _VOWELS.isdisjoint(root):
            return _undouble(root)
    if not word.endswith(("us", "is")):
        word = singular(word)
    return _plain_end(word)


@lru_cache(maxsize=65536)
def derivation_stem(word: str) -> str:
    """One form for words of one family: sexism, sexist -> sex; colonial, colonialism -> coloni."""
    stem = inflection_stem(word)
    for _ in range(2):
        for suffix in _DERIVATIONS:
            root = stem.removesuffix(suffix)
            if root != stem and len(root) >= _LEAST_ROOT.get(suffix, 4):
                stem = _undouble(root) if suffix in _DOUBLING else _plain_end(root)
                break
    return stem


def stem_families(names: Iterable[str]) -> dict[str, str]:
    """For each name one name that stands for its family: names that share the stem of a telling word are relatives."""
    ordered = sorted(set(names))
    sharing: dict[str, list[str]] = defaultdict(list)
    for name in ordered:
        for stem in sorted({derivation_stem(word) for word in content_words(name)}):
            sharing[stem].append(name)
    parent = {name: name for name in ordered}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for relatives in sharing.values():
        if len(relatives) <= MOST_SHARED:
            for name in relatives[1:]:
                parent[root(name)] = root(relatives[0])
    return {name: root(name) for name in ordered}


def _undouble(root: str) -> str:
    if len(root) >= 4 and root[-1] == root[-2] and root[-1] not in "lszf":
        return root[:-1]
    return _plain_end(root)


def _plain_end(word: str) -> str:
    if word.endswith("fe"):
        return word[:-1]
    if word.endswith("e") and len(word) > 3:
        return word[:-1]
    if word.endswith("y") and len(word) > 3 and word[-2] not in _VOWELS:
        return word[:-1] + "i"
    return word
