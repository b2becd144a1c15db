"""Who writes the prompts: the built-in grammar, or a language model behind an endpoint or in this process.

A `Backend` writes pairs and synonyms for one concept at a time. The language models share `LanguageModelBackend`, which
asks, reads and checks; they differ in the `TextModel` that answers (`endpoint`, `local_model`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from latentguard.errors import LatentGuardError
from latentguard.naming import NameMatcher, Naming
from latentguard.records import ConceptEntry
from latentguard.wording import content_words, text_key

from .grammar import Grammar
from .instructions import (
    VERSION,
    Message,
    is_refusal,
    read_texts,
    synonym_messages,
    twin_messages,
    unsafe_messages,
)
from .limits import is_withheld
from .synonyms import known_synonyms
from .tally import Tally

PER_REQUEST = 10
"""Most prompts that a language model is asked for at once."""

_MOST_WORDS = 120
_LEAST_WORDS = 2
_SYNONYM_WORDS = 6
_EXTRA_REQUESTS = 2  # tries to make up for entries that were dropped
_UNSAFE_STEP, _TWIN_STEP, _SYNONYM_STEP = "unsafe", "twins", "synonyms"


class BackendError(LatentGuardError):
    """A back end can't be used or has stopped answering. The message never holds a key, an answer or a prompt."""


@dataclass(frozen=True)
class Draft:
    """A pair as its writer gave it; `template` says what it was made from."""

    unsafe: str
    safe: str | None
    template: str


class Backend(Protocol):
    """Writes pairs and synonyms.

    name, model, version: what a row's provenance says of it. parallel: how many concepts it may be asked for at once,
    from as many threads.
    """

    name: str
    model: str | None
    version: str
    parallel: int

    def pairs(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[Draft]:
        """Up to that many pairs of a concept; what was dropped is counted in `tally`. Raises BackendError."""
        ...

    def synonyms(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[str]:
        """Up to that many other names of a concept. Raises BackendError."""
        ...

    def close(self) -> None:
        """Gives up what is under way and frees connections."""
        ...


class GrammarBackend:
    """The built-in grammar with a list of synonyms and a table of words."""

    name = "grammar"
    model: str | None = None
    parallel = 1

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self.version = grammar.version

    def pairs(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[Draft]:
        drawn = self._grammar.concept_pairs(concept.name, count, seed, category=concept.category)
        return [Draft(pair.unsafe, pair.safe, pair.source) for pair in drawn]

    def synonyms(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[str]:
        return known_synonyms(concept.name, count, seed)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Answer:
    """What a language model said; `refused` if it, or the service around it, declined."""

    text: str
    refused: bool = False


class TextModel(Protocol):
    """A language model that answers a dialogue. `backend` and `name` are what provenance says of it."""

    backend: str
    name: str
    parallel: int

    def answer(self, messages: Sequence[Message], seed: int, tally: Tally) -> Answer:
        """The model's answer. Counts requests and retries. Raises BackendError."""
        ...

    def close(self) -> None: ...


class LanguageModelBackend:
    """Asks a language model in three steps, as CoPro was made: unsafe prompts, their safe twins, synonyms.

    Entries that are no prompt, that repeat one or that may not be written are dropped and counted, and asked for again
    a few times; an answer that refuses ends the step for its concept.
    """

    version = VERSION

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.name = model.backend
        self.model: str | None = model.name
        self.parallel = model.parallel

    def pairs(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[Draft]:
        prompts: dict[str, str] = {}
        drafts: list[Draft] = []
        for number, batch in enumerate(self._batches(concept, count, seed, tally, prompts)):
            twins = self._twins(concept, batch, _seed(seed, concept.name, _TWIN_STEP, number), tally)
            drafts += [
                Draft(unsafe, safe, f"{_UNSAFE_STEP}+{_TWIN_STEP}/{VERSION}")
                for unsafe, safe in zip(batch, twins, strict=True)
            ]
        return drafts

    def synonyms(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[str]:
        messages = synonym_messages(concept.name, concept.category, count)
        entries = self._ask(messages, "synonyms", _seed(seed, concept.name, _SYNONYM_STEP, 0), tally)
        own = {text_key(word) for word in content_words(concept.name)}
        kept: dict[str, str] = {}
        for entry in entries or ():
            text = _one_line(entry)
            words = text.split()
            if not words or len(words) > _SYNONYM_WORDS or own & {text_key(word) for word in words}:
                tally.malformed += 1
            elif is_withheld(text, concept.category):
                tally.withheld += 1
            else:
                kept.setdefault(text_key(text), text)
        return list(kept.values())[:count]

    def close(self) -> None:
        self._model.close()

    def _batches(
        self, concept: ConceptEntry, count: int, seed: int, tally: Tally, kept: dict[str, str]
    ) -> Iterator[list[str]]:
        """Unsafe prompts, none twice, until there are enough or the model gives no more."""
        requests = -(-count // PER_REQUEST) + _EXTRA_REQUESTS
        for number in range(requests):
            wanted = min(PER_REQUEST, count - len(kept))
            if wanted < 1:
                return
            messages = unsafe_messages(concept.name, concept.category, wanted)
            entries = self._ask(messages, "prompts", _seed(seed, concept.name, _UNSAFE_STEP, number), tally)
            if entries is None:
                return
            batch: list[str] = []
            for entry in entries:
                text = _one_line(entry)
                if not _is_prompt(text):
                    tally.malformed += 1
                elif is_withheld(text, concept.category):
                    tally.withheld += 1
                elif text_key(text) in kept:
                    tally.duplicates += 1
                elif len(batch) < wanted:
                    kept[text_key(text)] = text
                    batch.append(text)
            if batch:
                yield batch

    def _twins(self, concept: ConceptEntry, prompts: Sequence[str], seed: int, tally: Tally) -> list[str | None]:
        entries = self._ask(twin_messages(concept.name, prompts), "prompts", seed, tally)
        if not entries:
            return [None] * len(prompts)
        if len(entries) != len(prompts):  # which twin is whose can't be told any more
            tally.malformed += 1
            return [None] * len(prompts)
        matcher = NameMatcher([concept.name])
        twins: list[str | None] = []
        for prompt, entry in zip(prompts, entries, strict=True):
            text = _one_line(entry)
            names = any(naming >= Naming.FULL for naming in matcher.find(text).values())
            if not _is_prompt(text):
                tally.malformed += 1
                twins.append(None)
            elif names or text_key(text) == text_key(prompt) or is_withheld(text):
                tally.twins_refused += 1
                twins.append(None)
            else:
                twins.append(text)
        return twins

    def _ask(self, messages: Sequence[Message], key: str, seed: int, tally: Tally) -> list[object] | None:
        """The entries of an answer, empty if it can't be read; None if the model refused."""
        answer = self._model.answer(messages, seed, tally)
        tally.requests += 1
        entries = None if answer.refused else read_texts(answer.text, key)
        if entries is not None:
            return entries
        if answer.refused or is_refusal(answer.text):
            tally.refusals += 1
            return None
        tally.malformed += 1
        return []


def _seed(seed: int, concept: str, step: str, number: int) -> int:
    """A seed of its own for each request, whatever the order in which they are sent."""
    return random.Random(f"{seed} {text_key(concept)} {step} {number}").getrandbits(31)


def _one_line(entry: object) -> str:
    return " ".join(entry.split()) if isinstance(entry, str) else ""


def _is_prompt(text: str) -> bool:
    words = text.split()
    return _LEAST_WORDS <= len(words) <= _MOST_WORDS and any(character.isalpha() for character in text)
