"""What travels between key holder, client and server: encrypted prompts and concepts, and their strict reading.

A message holds token ids and keyed hashes alone, as JSON. Whoever reads one reads it against the limits of the model
that it is for; what isn't exactly such a message is refused whole, with a MessageError that quotes nothing of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from latentguard.errors import MessageError, PolicyError
from latentguard.lexicon import NameForms, TextForms, WordForms
from latentguard.policy import checked_threshold
from latentguard.records import MAX_PROMPT_CHARS

HASH_BYTES = 16

_PROMPT, _CONCEPT = "latentguard encrypted prompt 1", "latentguard encrypted concept 1"
_HASH = re.compile(r"[0-9a-f]{32}")
# As of the longest prompt that a guard reads: a word, or four tokens of a byte each, of every character.
_MAX_WORDS = MAX_PROMPT_CHARS
_MAX_TOKENS = 4 * MAX_PROMPT_CHARS
_MAX_BYTES = 200 * MAX_PROMPT_CHARS  # a word is three hashes, and one more with its neighbour
_MAX_NAME_WORDS = 256


@dataclass(frozen=True)
class Limits:
    """What a message to a model may hold.

    Attributes:
        vocabulary: which encrypted vocabulary its ids are of: the check value in the converted model's passkey.json.
        rows: number of token embeddings; ids are below.
        barred: the special ids that no text gives: they stand at a window's ends alone, where the server puts them.
        longest_name: most ids of a concept's name.
        words: whether messages hold the hashes of words too.
    """

    vocabulary: str
    rows: int
    barred: frozenset[int]
    longest_name: int
    words: bool

    def checked(self, ids: Any, longest: int) -> tuple[int, ...]:
        """The ids of a text, without special ones around them; MessageError if they can't be such."""
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < self.rows for each in ids):
            _refuse("ids", f"are not whole numbers below {self.rows:,}")
        if len(ids) > longest:
            _refuse("ids", f"are more than {longest:,}")
        if not self.barred.isdisjoint(ids):
            _refuse("ids", "have special tokens where none belong")
        return tuple(ids)


@dataclass(frozen=True)
class EncryptedPrompt:
    """A prompt that only key holders can read.

    Attributes:
        vocabulary: as in :class:`Limits`.
        ids: its encrypted token ids, whole and without special tokens: windows are cut by whoever scores it.
        forms: the keyed hashes of its words' forms; None where they are left out.
    """

    vocabulary: str
    ids: tuple[int, ...]
    forms: TextForms | None

    def as_json(self) -> str:
        """The message."""
        words = None
        if self.forms is not None:
            words = {
                "forms": [list(word) for word in self.forms.words],
                "pairs": [stem for _, stem in self.forms.pairs],
            }
        return _text({"format": _PROMPT, "vocabulary": self.vocabulary, "ids": self.ids, "words": words})

    @classmethod
    def from_json(cls, message: str | bytes, limits: Limits) -> EncryptedPrompt:
        """Reads what :meth:`as_json` wrote; MessageError for anything else."""
        content = _content(message, _PROMPT, {"ids", "words"}, limits)
        return cls(
            limits.vocabulary, limits.checked(content["ids"], _MAX_TOKENS), _text_forms(content["words"], limits)
        )


@dataclass(frozen=True)
class EncryptedConcept:
    """A concept that only key holders can read.

    Attributes:
        vocabulary: as in :class:`Limits`.
        label: the keyed hash that stands for its name in banks and verdicts.
        category: the keyed hash of its category's name, if it has one.
        threshold: the score from which it blocks a prompt, if it has one of its own.
        ids: the encrypted ids of its one window.
        forms: the keyed hashes of its name's forms, with its rarity; None where they are left out.
    """

    vocabulary: str
    label: str
    category: str | None
    threshold: float | None
    ids: tuple[int, ...]
    forms: NameForms | None

    def as_dict(self) -> dict[str, Any]:
        """The message's content, but for what all messages to a model have in common."""
        name = None
        if self.forms is not None:
            name = {
                "stems": self.forms.stems,
                "exact": sorted(self.forms.exact),
                "families": sorted(self.forms.families),
                "anchor": self.forms.anchor,
                "joined": self.forms.joined,
                "rarity": self.forms.rarity,
            }
        return {
            "label": self.label,
            "category": self.category,
            "threshold": self.threshold,
            "ids": self.ids,
            "name": name,
        }

    def as_json(self) -> str:
        """The message."""
        return _text({"format": _CONCEPT, "vocabulary": self.vocabulary, **self.as_dict()})

    @classmethod
    def from_json(cls, message: str | bytes, limits: Limits) -> EncryptedConcept:
        """Reads what :meth:`as_json` wrote; MessageError for anything else."""
        fields = {"label", "category", "threshold", "ids", "name"}
        return cls.from_dict(_content(message, _CONCEPT, fields, limits), limits)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], limits: Limits) -> EncryptedConcept:
        """Reads what :meth:`as_dict` gave; MessageError for anything else."""
        try:
            label, category, threshold = content["label"], content["category"], content["threshold"]
            ids, name = content["ids"], content["name"]
        except (KeyError, TypeError):
            _refuse("a concept", "lacks a field")
        return cls(
            limits.vocabulary,
            _hash(label, "label"),
            None if category is None else _hash(category, "category"),
            None if threshold is None else _number(threshold, "threshold"),
            limits.checked(ids, limits.longest_name),
            _name_forms(name, limits),
        )


def _text_forms(words: Any, limits: Limits) -> TextForms | None:
    if not _expected(words, limits):
        return None
    if not isinstance(words, dict) or words.keys() != {"forms", "pairs"}:
        _refuse("words", "are not forms and pairs")
    forms, pairs = words["forms"], words["pairs"]
    if not isinstance(forms, list) or not isinstance(pairs, list) or len(forms) > _MAX_WORDS:
        _refuse("words", f"are no list of at most {_MAX_WORDS:,}")
    if len(pairs) != max(0, len(forms) - 1):
        _refuse("words", "have not as many pairs as neighbours")
    return TextForms([_word(word) for word in forms], [(i, _hash(stem, "pair")) for i, stem in enumerate(pairs)])


def _word(word: Any) -> WordForms:
    if not isinstance(word, list) or len(word) != len(WordForms._fields) or type(word[-1]) is not bool:
        _refuse("words", "are not four forms each")
    singular, stem, family, derived = word
    return WordForms(_hash(singular, "form"), _hash(stem, "form"), _hash(family, "form"), derived)


def _name_forms(name: Any, limits: Limits) -> NameForms | None:
    if not _expected(name, limits):
        return None
    if not isinstance(name, dict) or name.keys() != {"stems", "exact", "families", "anchor", "joined", "rarity"}:
        _refuse("name", "has other fields than a name's forms")
    stems, exact, families = (_hashes(name[kind], kind) for kind in ("stems", "exact", "families"))
    anchor, joined = (name[kind] if name[kind] == "" else _hash(name[kind], kind) for kind in ("anchor", "joined"))
    rarity = _number(name["rarity"], "rarity")
    if not 0.0 <= rarity <= 1.0 or (anchor not in families if families else anchor != "") or (families and not stems):
        _refuse("name", "has forms that don't go together")
    return NameForms(tuple(stems), frozenset(exact), frozenset(families), anchor, joined, rarity)


def _expected(words: Any, limits: Limits) -> bool:
    """Whether there are words, as there have to be. A prompt without would get past the evidence that they are."""
    if (words is not None) != limits.words:
        _refuse("words", "are missing" if limits.words else "are there, and this model takes none")
    return limits.words


def _hashes(values: Any, what: str) -> list[str]:
    if not isinstance(values, list) or len(values) > _MAX_NAME_WORDS:
        _refuse(what, f"is no list of at most {_MAX_NAME_WORDS}")
    return [_hash(value, what) for value in values]


def _hash(value: Any, what: str) -> str:
    if not isinstance(value, str) or _HASH.fullmatch(value) is None:
        _refuse(what, f"is not a hash of {HASH_BYTES} bytes in hex digits")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, str):
        _refuse(what, "is no number")
    try:
        return checked_threshold(value, what)
    except PolicyError:
        _refuse(what, "is no finite number")


def _content(message: str | bytes, kind: str, fields: set[str], limits: Limits) -> Mapping[str, Any]:
    if len(message) > _MAX_BYTES:
        _refuse("message", f"is longer than {_MAX_BYTES:,} bytes")
    try:
        content = json.loads(message, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        raise MessageError("message: is not JSON") from None
    if (
        not isinstance(content, dict)
        or content.get("format") != kind
        or content.keys() != {"format", "vocabulary", *fields}
    ):
        _refuse("message", f"is not of the format {kind!r}")
    if content["vocabulary"] != limits.vocabulary:
        _refuse("message", "was encrypted for another model, or with another passkey")
    return content


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a field stands twice")
    return content


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _refuse(what: str, why: str) -> NoReturn:
    raise MessageError(f"{what}: {why}")
