"""Templates of prompts: groups of alternatives, slots filled from a vocabulary, and the mending of what comes out.

A *group* `{a|b|c}` stands for one of its alternatives, which may be empty or hold slots. A *slot* `<person>` stands for
an entry of the vocabulary of that name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

Vocabulary = Mapping[str, Sequence[str]]

_GROUP = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<([^<>]*)>")
_ARTICLE = re.compile(r"\b(?P<article>[Aa]n?)(?P<space> +[\"'(]?)(?P<word>[A-Za-z0-9][\w.-]*)")
_SILENT_H = ("heir", "honest", "honor", "honour", "hour")
_CONSONANT_VOWEL = re.compile(r"eu|ew|one(?:s|\b)|once|uni[cfloqstv]|ub[ie]|ufo|uk\b|us[aeiu]|ut[aei]|ur(?:al|an|in|e)")
_VOWEL_NUMBER = re.compile(r"8|1[18](?!\d)")
_ACRONYM = re.compile(r"[A-Z]{2,5}s?\b|[A-Z](?:-|$)")  # FBI, X-ray
_SPOKEN = frozenset({"LEGO", "NASA", "NATO", "SWAT", "MAGA"})  # acronyms that are read as words
_VOWEL_LETTERS = frozenset("AEFHILMNORSX")
_SENTENCE_START = re.compile(r"([.!?]\s+)([a-z])")


class Choices:
    """What was chosen for the groups and slots of one scene, so that both its sides get the same.

    A group gets the same alternative wherever its text stands; the first, second, ... slot of a name gets the first,
    second, ... entry drawn for it.
    """

    def __init__(self, vocabulary: Vocabulary, rng: random.Random) -> None:
        self._vocabulary = vocabulary
        self._rng = rng
        self._groups: dict[str, str] = {}
        self._entries: dict[str, list[str]] = {}

    def fill(self, template: str) -> str:
        """One text of the template, mended."""
        return tidy(self._fill_slots(_GROUP.sub(self._alternative, template)))

    def _alternative(self, group: re.Match[str]) -> str:
        text = group[1]
        if text not in self._groups:
            self._groups[text] = self._rng.choice(text.split("|"))
        return self._groups[text]

    def _fill_slots(self, text: str) -> str:
        if "<" not in text:
            return text
        seen: dict[str, int] = {}

        def entry(slot: re.Match[str]) -> str:
            name = slot[1]
            place = seen.get(name, 0)
            seen[name] = place + 1
            return self._entry(name, place)

        return _SLOT.sub(entry, text)

    def _entry(self, name: str, place: int) -> str:
        drawn = self._entries.setdefault(name, [])
        while len(drawn) <= place:
            left = [entry for entry in self._vocabulary[name] if entry not in drawn] or self._vocabulary[name]
            drawn.append(self._rng.choice(left))
        return drawn[place]


def template_fault(template: object, slots: Mapping[str, object]) -> str | None:
    """What is wrong with a template, in words without its text; None if nothing."""
    if not isinstance(template, str) or not template.strip():
        return "not a text, or empty"
    if re.search(r"[{}]", _GROUP.sub("", template)):
        return "unbalanced or nested braces"
    if any("|" not in group for group in _GROUP.findall(template)):
        return "a group without alternatives"
    for name in _SLOT.findall(template):
        if name not in slots:
            return f"no vocabulary for the slot <{name}>"
    return None


def tidy(text: str) -> str:
    """The text with its articles, spaces and commas mended, and a capital after a full stop where it has any."""
    text = " ".join(text.split())
    text = re.sub(r"\s+([,.;:!?])(?=\s|$|[,.;:!?])", r"\1", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    text = re.sub(r",\s*([.;:!?])", r"\1", text)
    text = re.sub(r"([.;:!?]),(?=\s|$)", r"\1", text)
    text = re.sub(r"(?<!\.)\.\.(?!\.)", ".", text)
    text = _ARTICLE.sub(_with_article, text.strip(" ,;"))
    return _SENTENCE_START.sub(lambda found: found[1] + found[2].upper(), text) if is_prose(text) else text


def is_prose(text: str) -> bool:
    """Whether the text is made of sentences, and not of tags and phrases."""
    return text[:1].isupper() and text.endswith((".", "!", "?", '."', ".'"))


def sentence(text: str) -> str:
    """The text as a sentence: a capital first and a full stop last."""
    text = text.strip(" ,;")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", '"', "'")) else ".")


def phrase(text: str) -> str:
    """The text without the full stop at its end."""
    return text.strip(" ,;").removesuffix(".")


def _with_article(found: re.Match[str]) -> str:
    article, word = found["article"], found["word"]
    start = found.start()
    if article[0] == "A" and start and found.string[:start].rstrip(" \"'(")[-1:] not in tuple(".!?:;"):
        return found[0]  # 'grade A apples'
    if article == "a" and len(word) == 1 and word.islower():
        return found[0]  # letters: 'from a to z'
    vowel = _starts_with_vowel(word)
    return article[0] + ("n" if vowel else "") + found["space"] + word


def _starts_with_vowel(word: str) -> bool:
    if word[0].isdigit():
        return _VOWEL_NUMBER.match(word) is not None
    if _ACRONYM.match(word) and word not in _SPOKEN:
        return word[0] in _VOWEL_LETTERS
    folded = word.lower()
    if folded.startswith((*_SILENT_H, "x-ray")):
        return True
    return folded[0] in "aeiou" and _CONSONANT_VOWEL.match(folded) is None
