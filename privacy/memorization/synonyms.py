"""Synonyms of common English words, from a table that keeps number, tense and degree: paraphrases without a model."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from privacy.errors import DataError
from privacy.files import read_error

TABLE = Path(__file__).with_name("data") / "synonyms.txt"

# Not within names, numbers, tags, paths, addresses or hyphenated words.
_WORD = re.compile(r"(?<![\w'’<>|@#/\\.:=_-])[A-Za-z]+(?!['’|@#/\\=_-]|[.:]\w|\w|>)")
_LEFT_OUT, _PUT_IN = "-", "~"
# Words of the table that take "an": "use" and "utilize" are spoken with a consonant first.
_VOWEL = re.compile(r"(?!us[eu]|uti)[aeiou]")
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St)\.\s*$")


def replace_words(text: str, rng: random.Random) -> str:
    """The text with every word that the table knows replaced by a synonym in the same form.

    Capitals stay, and "a" becomes "an" where the new word wants it. A capitalised word that doesn't begin a sentence is
    left alone, since it may be a name, and so are words within tags, paths and addresses.
    """
    table = _table()
    result, done = "", 0
    for match in _WORD.finditer(text):
        word = match[0]
        choices = table.get(word.lower(), ())
        if not choices or not (word.islower() or (word.istitle() and _begins_sentence(text[: match.start()]))):
            continue
        new = rng.choice(choices)
        between = text[done : match.start()]
        result += _with_article(between, word.lower(), new) if done < match.start() else between
        result += new[0].upper() + new[1:] if word.istitle() else new
        done = match.end()
    return result + text[done:]


def read_table(path: Path) -> Mapping[str, tuple[str, ...]]:
    """The synonyms of each word form, from a file of groups, one a line.

    A line has synonyms parted by `=`, each with its forms in the same order: `picture pictures = image images`. A form
    with `~` before it is put in, but never replaced, since it has other meanings, too; `-` is a form left out; `_` is a
    space. A form that stands for two others, like the past of a regular verb, is replaced only by words for which both
    are alike.

    Raises:
        DataError: the file can't be read, a line has no two synonyms, their numbers of forms differ, or a form stands
            in two places, so that it isn't known which meaning is meant.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise read_error(path, error) from error
    table: dict[str, tuple[str, ...]] = {}
    for row, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        synonyms = [synonym.split() for synonym in line.split("=")]
        if len(synonyms) < 2 or not synonyms[0] or len({len(forms) for forms in synonyms}) != 1:
            raise DataError(f"{path}: line {row}: isn't two synonyms or more with as many forms each")
        for number, forms in enumerate(synonyms):
            others = synonyms[:number] + synonyms[number + 1 :]
            for form in {form for form in forms if form != _LEFT_OUT and not form.startswith(_PUT_IN)}:
                if form in table:
                    raise DataError(f"{path}: line {row}: {form!r} stands in two places")
                table[form] = tuple(_synonyms(form, forms, others))
    return table


def _synonyms(form: str, forms: Sequence[str], others: Iterable[Sequence[str]]) -> Iterator[str]:
    slots = [slot for slot, each in enumerate(forms) if each == form]
    for other in others:
        fitting = {other[slot] for slot in slots}
        if len(fitting) == 1 and _LEFT_OUT not in fitting:
            yield fitting.pop().removeprefix(_PUT_IN).replace("_", " ")


@lru_cache(maxsize=1)
def _table() -> Mapping[str, tuple[str, ...]]:
    return read_table(TABLE)


def _begins_sentence(before: str) -> bool:
    return not before.strip() or bool(re.search(r"[.!?:>\n]\s*$", before) and not _TITLE.search(before))


def _with_article(before: str, old: str, new: str) -> str:
    """`before` with the article at its end, if any, fit for `new` where it was fit for `old`."""
    vowel = bool(_VOWEL.match(new))
    if bool(_VOWEL.match(old)) == vowel:
        return before
    return re.sub(r"(?<!\w)([Aa])n?(\s+)$", lambda match: match[1] + "n" * vowel + match[2], before)
