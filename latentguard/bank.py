"""The concept bank: the blocklist, made ready to score."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from latentguard.arrays import Array, as_numpy, joined, placed, single
from latentguard.encoders.base import TextEncoder, Window, batches
from latentguard.errors import ConceptError, PolicyError, WeightsError
from latentguard.files import atomic_path
from latentguard.lexicon import NAMELESS, LexicalMatcher, NameForms
from latentguard.normalize import normalize
from latentguard.policy import Policy, checked_threshold
from latentguard.reading import ReadConcept
from latentguard.records import ConceptEntry

if TYPE_CHECKING:
    from latentguard.heads import Heads
    from latentguard.mapping import ConceptQueries, MappingLayer

_FORMAT = "latentguard-bank-1"


@dataclass(frozen=True)
class BankSnapshot:
    """A bank at one moment. It never changes, so whoever holds it scores against one and the same list.

    ``embeddings`` [N, D] are the concepts' pooled states, ``queries`` what the mapping layer makes of them, ``scoring``
    what the heads beside it need, None where there are none.
    """

    concepts: tuple[ConceptEntry, ...]
    embeddings: Array
    queries: ConceptQueries
    scoring: ConceptScoring | None = None

    def thresholds(self, policy: Policy) -> np.ndarray:
        """As :meth:`Policy.thresholds` of the concepts, float32 [N], without a look at each of them."""
        own, numbers, categories = self._rules
        of_categories = np.array([policy.of_category(category) for category in categories], dtype=np.float32)
        return np.where(np.isnan(own), of_categories[numbers], own)

    @cached_property
    def _rules(self) -> tuple[np.ndarray, np.ndarray, list[str | None]]:
        """The concepts' own thresholds [N], no number where there is none, and their categories' numbers [N]; the
        categories."""
        categories = list(dict.fromkeys(concept.category for concept in self.concepts))
        numbers = {category: number for number, category in enumerate(categories)}
        own = [math.nan if concept.threshold is None else concept.threshold for concept in self.concepts]
        places = np.array([numbers[concept.category] for concept in self.concepts], dtype=np.int64)
        return np.array(own, dtype=np.float32), places, categories

    def row(self, place: int) -> BankSnapshot:
        """The concept at ``place`` alone."""
        return self.rows([place])

    def rows(self, places: Sequence[int]) -> BankSnapshot:
        """The concepts at ``places``, in that order."""
        rows = np.array(places, dtype=np.int64)
        return BankSnapshot(
            tuple(self.concepts[i] for i in places),
            self.embeddings[rows],
            self.queries.rows(rows),
            None if self.scoring is None else self.scoring.rows(places),
        )


@dataclass(frozen=True)
class ConceptScoring:
    """What the heads keep of N concepts.

    ``moments`` [N, 2] are mean and spread of the concepts' scores with harmless prompts, ``categories`` [N] the numbers
    of their categories among the prompt head's log-odds, ``matcher`` finds their names.
    """

    moments: Array
    categories: Array
    matcher: LexicalMatcher

    def rows(self, places: Sequence[int]) -> ConceptScoring:
        """The same for the concepts at ``places``, in that order."""
        rows = np.array(places, dtype=np.int64)
        return ConceptScoring(self.moments[rows], self.categories[rows], self.matcher.rows(places))


class ConceptBank:
    """The concepts that prompts are scored against; they come and go at run time, without training.

    ::

        bank = ConceptBank(encoder, mapping)
        bank.add("knife fight", category="violence")
        "Knife Fight" in bank                     # True: names are compared without case
        bank.remove("knife fight")

    Adding encodes the new concepts only; adding and then removing leaves every score bit for bit as it was. Changes
    are atomic: a thread that scores sees the bank before or after one, never between.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        mapping: MappingLayer,
        concepts: Iterable[ConceptEntry | str] = (),
        heads: Heads | None = None,
    ) -> None:
        self._encoder = encoder
        self._mapping = mapping
        self._heads = heads
        self._lock = threading.Lock()
        self._snapshot = self._made((), (), placed(np.empty((0, encoder.width), dtype=np.float32), encoder.device))
        self.extend(concepts)

    @property
    def snapshot(self) -> BankSnapshot:
        """The bank as it is now."""
        return self._snapshot

    @property
    def names(self) -> list[str]:
        """The concepts' names, in the order in which they were added."""
        return [concept.name for concept in self._snapshot.concepts]

    @property
    def categories(self) -> list[str]:
        """The categories that concepts have, in order of first appearance."""
        return list(dict.fromkeys(c.category for c in self._snapshot.concepts if c.category is not None))

    def __len__(self) -> int:
        return len(self._snapshot.concepts)

    def __iter__(self) -> Iterator[ConceptEntry]:
        return iter(self._snapshot.concepts)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and concept_key(name) in {concept_key(c.name) for c in self._snapshot.concepts}

    def fork(self) -> ConceptBank:
        """A bank with the same concepts, to be changed on its own; nothing is encoded."""
        other = copy(self)
        other._lock = threading.Lock()
        return other

    def add(self, name: str, *, category: str | None = None, threshold: float | None = None) -> None:
        """Add one concept; ConceptError if it is empty or there already, PolicyError if the threshold is no number."""
        self.extend([ConceptEntry(name, category, threshold)])

    def extend(self, concepts: Iterable[ConceptEntry | str]) -> None:
        """Add several concepts: all of them, or none if one can't be added."""
        if isinstance(concepts, str):
            raise ConceptError("expected a list of concepts, got one text; use add for one concept")
        self.extend_read([self._read(checked_concept(concept)) for concept in concepts])

    def extend_read(self, concepts: Iterable[ReadConcept]) -> None:
        """As :meth:`extend`, for concepts that were read elsewhere: their names are labels, not looked into."""
        new = [replace(concept, entry=checked_concept(concept.entry)) for concept in concepts]
        with self._lock:
            old = self._snapshot
            seen = {concept_key(concept.name) for concept in old.concepts}
            for concept in new:
                if concept_key(concept.entry.name) in seen:
                    raise ConceptError(f"the concept {concept.entry.name!r} is in the bank already")
                seen.add(concept_key(concept.entry.name))
            if not new:
                return
            more = self._made(
                tuple(concept.entry for concept in new),
                [concept.forms for concept in new],
                self._embed([concept.window for concept in new]),
                old.scoring,
            )
            self._snapshot = BankSnapshot(
                old.concepts + more.concepts,
                joined(old.embeddings, more.embeddings),
                old.queries.join(more.queries),
                more.scoring,
            )

    def remove(self, name: str) -> ConceptEntry:
        """Take a concept out and return it; ConceptError if there is none of that name."""
        gone = self._take_out(lambda concept: concept_key(concept.name) == concept_key(name))
        if not gone:
            raise ConceptError(f"no concept {name!r} in the bank")
        return gone[0]

    def remove_category(self, category: str) -> list[ConceptEntry]:
        """Take out all concepts of a category and return them; ConceptError if there are none."""
        gone = self._take_out(lambda concept: concept.category == category)
        if not gone:
            raise ConceptError(f"no concept of category {category!r} in the bank")
        return gone

    def _take_out(self, unwanted: Callable[[ConceptEntry], bool]) -> list[ConceptEntry]:
        with self._lock:
            old = self._snapshot
            kept = [i for i, concept in enumerate(old.concepts) if not unwanted(concept)]
            if len(kept) < len(old.concepts):
                self._snapshot = old.rows(kept)
            return [concept for concept in old.concepts if unwanted(concept)]

    def save(self, path: str | Path) -> None:
        """Write the bank, embeddings included, to one ``.safetensors`` file; loading it needs no encoding."""
        now = self._snapshot
        described = {
            "format": _FORMAT,
            "encoder": self._encoder.name,
            "concepts": json.dumps([asdict(concept) for concept in now.concepts], ensure_ascii=False),
        }
        # To memory first: save_file of safetensors reports a full disk as an error of its own.
        content = save({"embeddings": np.ascontiguousarray(as_numpy(now.embeddings))}, metadata=described)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(
        cls, path: str | Path, encoder: TextEncoder, mapping: MappingLayer, heads: Heads | None = None
    ) -> ConceptBank:
        """A bank that :meth:`save` wrote.

        Raises:
            WeightsError: the file is missing, damaged, or was made with another encoder.
        """
        path = Path(path)
        try:
            with safe_open(str(path), framework="numpy") as file:
                described = file.metadata() or {}
                embeddings = file.get_tensor("embeddings")
        except (OSError, SafetensorError, TypeError) as error:  # TypeError: of a number's type that numpy lacks
            raise WeightsError(f"{path}: not a readable concept bank ({error})") from error
        if described.get("format") != _FORMAT:
            raise WeightsError(f"{path}: not a concept bank of this project")
        if described.get("encoder") != encoder.name:
            raise WeightsError(f"{path}: made with the encoder {described.get('encoder')}, not {encoder.name}")
        try:
            concepts = tuple(checked_concept(ConceptEntry(**fields)) for fields in json.loads(described["concepts"]))
        except (KeyError, TypeError, ValueError, RecursionError, ConceptError, PolicyError) as error:
            raise WeightsError(f"{path}: its list of concepts can't be read ({error})") from error
        if embeddings.shape != (len(concepts), encoder.width):
            raise WeightsError(f"{path}: {embeddings.shape} embeddings for {len(concepts)} concepts")
        if not np.isfinite(embeddings).all():
            raise WeightsError(f"{path}: holds numbers that are not finite")
        bank = cls(encoder, mapping, heads=heads)
        names = [bank._forms(concept.name) for concept in concepts]
        bank._snapshot = bank._made(concepts, names, placed(single(embeddings), encoder.device))
        return bank

    def _made(
        self,
        concepts: tuple[ConceptEntry, ...],
        names: Sequence[NameForms | None],
        embeddings: Array,
        before: ConceptScoring | None = None,
    ) -> BankSnapshot:
        """A snapshot of ``concepts`` alone, but that its ``scoring`` goes on from that of the concepts ``before``."""
        queries = self._mapping.queries(embeddings)
        if self._heads is None:
            return BankSnapshot(concepts, embeddings, queries)
        known = self._heads.prompt_head.shape
        categories = np.array([known.category_of(concept.category) for concept in concepts], dtype=np.int64)
        matcher = LexicalMatcher() if before is None else before.matcher
        scoring = ConceptScoring(
            self._heads.moments(queries),
            placed(categories, self._encoder.device),
            matcher.extended([NAMELESS if name is None else name for name in names]),
        )
        if before is not None:
            scoring = replace(
                scoring,
                moments=joined(before.moments, scoring.moments),
                categories=joined(before.categories, scoring.categories),
            )
        return BankSnapshot(concepts, embeddings, queries, scoring)

    def _read(self, concept: ConceptEntry) -> ReadConcept:
        windows = self._encoder.windows(normalize(concept.name))
        if len(windows) > 1:
            raise ConceptError(f"a concept is longer than the encoder's window of {self._encoder.window} tokens")
        return ReadConcept(concept, windows[0], self._forms(concept.name))

    def _forms(self, name: str) -> NameForms | None:
        return None if self._heads is None else NameForms.of(name, self._heads.rarity)

    def _embed(self, windows: Sequence[Window]) -> Array:
        encoded = list(batches([len(window.ids) for window in windows], self._encoder.device))
        parts = [self._encoder.encode_windows([windows[i] for i in batch]).pooled for batch in encoded]
        embeddings = single(joined(*parts))[np.argsort(np.concatenate(encoded))]
        if not np.isfinite(as_numpy(embeddings)).all():
            raise ConceptError("the encoder gave no finite numbers for a concept")
        return embeddings


def concept_key(name: str) -> str:
    """The same text for two spellings of one name: they differ in case and white space alone."""
    return " ".join(name.split()).casefold()


def checked_concept(concept: ConceptEntry | str) -> ConceptEntry:
    """A concept with its name on one line; ConceptError or PolicyError if it can't be one."""
    entry = ConceptEntry(concept) if isinstance(concept, str) else concept
    if not isinstance(entry, ConceptEntry):
        raise ConceptError(f"a concept is a name or a ConceptEntry, not {type(entry).__name__}")
    if not isinstance(entry.name, str):
        raise ConceptError(f"a concept's name is text, not {type(entry.name).__name__}")
    if not normalize(entry.name):
        raise ConceptError("a concept's name is empty")
    if entry.threshold is not None:
        entry = replace(entry, threshold=checked_threshold(entry.threshold, f"threshold of concept {entry.name!r}"))
    return replace(entry, name=" ".join(entry.name.split()))
