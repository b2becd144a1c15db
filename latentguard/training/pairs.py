"""Training data: pairs of an unsafe prompt and its harmless twin under a concept, and harmless prompts alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from latentguard.errors import DataError
from latentguard.naming import NameMatcher, Naming
from latentguard.records import read_prompts
from latentguard.wording import stem_families, text_key

from .concept_placing import place_concepts
from .formats import RawFile, RawPair, read_file

PathLike = str | Path

_CATEGORIES_MISSPELT = {"harrasment": "harassment"}


@dataclass(frozen=True)
class TrainingPair:
    """An unsafe prompt that shows `concept`, and the same scene made harmless (None where the data has none).

    `source` is the file's name and the line or key path that the pair came from. `harm` is false where the unsafe
    prompt shows the concept and nothing that a content policy would refuse: the concept is there, and that is all.
    """

    concept: str
    unsafe: str
    safe: str | None
    category: str | None
    source: str
    harm: bool = True


@dataclass(frozen=True)
class PairReport:
    """What became of the rows of the training files.

    `rows_read` counts rows or records of the files, and `orphans` those that are the safe half of no pair. All others
    count pairs: `pairs_found` in the files, of which `pairs` are kept and the rest dropped for one reason each, the
    first that applies of: `excluded_by_prompt`, `excluded_by_concept`, `contradictions` (a text that stands both as
    unsafe and as safe), `not_placed` (no concept could be told), `duplicates` (the unsafe text again).
    `without_twin` and `concepts` describe the pairs kept. `skipped` names the parts of files that were not read.
    """

    rows_read: int = 0
    orphans: int = 0
    pairs_found: int = 0
    excluded_by_prompt: int = 0
    excluded_by_concept: int = 0
    contradictions: int = 0
    not_placed: int = 0
    duplicates: int = 0
    pairs: int = 0
    without_twin: int = 0
    concepts: int = 0
    skipped: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, int | list[str]]:
        """The counts for a JSON file."""
        return {**asdict(self), "skipped": list(self.skipped)}

    def lines(self) -> list[str]:
        """The counts for people to read, one a line."""
        told = [
            f"{self.rows_read:,} rows read, {self.pairs_found:,} pairs found",
            f"{self.pairs:,} pairs of {self.concepts:,} concepts kept, {self.without_twin:,} of them without a twin",
        ]
        dropped = (
            (self.orphans, "safe rows dropped: their unsafe twin is missing"),
            (self.excluded_by_prompt, "pairs dropped: one side is an excluded prompt"),
            (self.excluded_by_concept, "pairs dropped: their concept is excluded"),
            (self.contradictions, "pairs dropped: a text stands both as unsafe and as safe"),
            (self.not_placed, "pairs dropped: their concept can't be told"),
            (self.duplicates, "pairs dropped: the same unsafe text again"),
        )
        told += [f"{count:,} {reason}" for count, reason in dropped if count]
        return told + [f"skipped {part}" for part in self.skipped]


def read_pairs(
    paths: PathLike | Iterable[PathLike],
    *,
    concepts: Sequence[str] | None = None,
    exclude_prompts: Iterable[str] = (),
    exclude_concepts: Iterable[str] = (),
) -> tuple[list[TrainingPair], PairReport]:
    """The pairs of training files, cleaned, in file order, and what became of every row.

    `formats` says what the files may be. CoProV2 files don't carry their concepts; these are told from `concepts`, the
    names that may occur in them. Texts and names are compared without case, white space and punctuation. A pair is
    excluded by prompt if either side is in `exclude_prompts`; by concept if its concept is in `exclude_concepts`, if
    its unsafe text also stands under such a concept, or if that text names such a one, be it in passing.
    So that an excluded concept can be told at all, `concepts` should hold the excluded ones too. Raises DataError.
    """
    files = [_placed(path, read_file(path), concepts) for path in _listed(paths)]
    found = [pair for file in files for pair in file.pairs]
    excluded_names = {text_key(name): name for name in exclude_concepts}
    excluded_texts = {text_key(text) for text in exclude_prompts}
    matcher = NameMatcher(list(excluded_names.values()))
    unsafe_keys = {text_key(pair.unsafe) for pair in found}
    safe_keys = {text_key(pair.safe) for pair in found if pair.safe is not None}
    contradictory = unsafe_keys & safe_keys
    barred = {text_key(pair.unsafe) for pair in found if pair.concept and text_key(pair.concept) in excluded_names}

    dropped: dict[str, int] = defaultdict(int)
    kept: dict[str, TrainingPair] = {}
    for pair in found:
        unsafe = text_key(pair.unsafe)
        keys = {unsafe} | (set() if pair.safe is None else {text_key(pair.safe)})
        if keys & excluded_texts:
            dropped["excluded_by_prompt"] += 1
        elif unsafe in barred or names_any(matcher, pair.unsafe):
            dropped["excluded_by_concept"] += 1
        elif keys & contradictory:
            dropped["contradictions"] += 1
        elif pair.concept is None:
            dropped["not_placed"] += 1
        elif unsafe not in kept:
            kept[unsafe] = TrainingPair(pair.concept, pair.unsafe, pair.safe, _category(pair.category), pair.source)
        else:
            dropped["duplicates"] += 1
            if kept[unsafe].safe is None and pair.safe is not None:
                kept[unsafe] = TrainingPair(pair.concept, pair.unsafe, pair.safe, _category(pair.category), pair.source)
    pairs = list(kept.values())
    report = PairReport(
        rows_read=sum(file.rows for file in files),
        orphans=sum(file.orphans for file in files),
        pairs_found=len(found),
        pairs=len(pairs),
        without_twin=sum(pair.safe is None for pair in pairs),
        concepts=len({pair.concept for pair in pairs}),
        skipped=tuple(part for file in files for part in file.skipped),
        **dropped,
    )
    return pairs, report


def without_excluded(
    pairs: Iterable[TrainingPair], exclude_prompts: Iterable[str] = (), exclude_concepts: Iterable[str] = ()
) -> list[TrainingPair]:
    """The pairs that :func:`read_pairs` would not have excluded, by the same comparison."""
    texts = {text_key(text) for text in exclude_prompts}
    matcher = NameMatcher(list(dict.fromkeys(exclude_concepts)))
    return [
        pair
        for pair in pairs
        if not texts & {text_key(pair.unsafe), text_key(pair.safe or pair.unsafe)}
        and not names_any(matcher, pair.concept)
        and not names_any(matcher, pair.unsafe)
    ]


def read_negatives(paths: PathLike | Iterable[PathLike], *, exclude_prompts: Iterable[str] = ()) -> list[str]:
    """Harmless prompts of text files (one a line) or tables with a `prompt` column, each once, in file order.

    Those in `exclude_prompts` are left out, compared as in `read_pairs`. Raises DataError.
    """
    excluded = {text_key(text) for text in exclude_prompts}
    prompts: dict[str, str] = {}
    for path in _listed(paths):
        for row in read_prompts(path):
            key = text_key(row.prompt)
            if key not in excluded:
                prompts.setdefault(key, row.prompt)
    return list(prompts.values())


def split_concepts(
    pairs: Sequence[TrainingPair], held_out: float = 0.1, seed: int = 0
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Pairs to train on and pairs of held-out concepts: at most the share `held_out`, none on both sides.

    Concepts that share a telling word ('sexism', 'sexist') stay together. The same concepts are held out for the same
    seed, whatever the order of the pairs. Raises DataError for a share outside [0, 1).
    """
    if not 0.0 <= held_out < 1.0:
        raise DataError(f"the share of concepts to hold out must be at least 0 and below 1, not {held_out}")
    family = stem_families(pair.concept for pair in pairs)
    members: dict[str, list[str]] = defaultdict(list)
    for concept, head in sorted(family.items()):
        members[head].append(concept)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    room = round(held_out * len(family))
    aside: set[str] = set()
    for head in order:
        if len(members[head]) <= room - len(aside):
            aside.update(members[head])
    train = [pair for pair in pairs if pair.concept not in aside]
    return train, [pair for pair in pairs if pair.concept in aside]


def _listed(paths: PathLike | Iterable[PathLike]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]


def _placed(path: Path, file: RawFile, concepts: Sequence[str] | None) -> RawFile:
    if not file.ordered:
        return file
    if not concepts:
        raise DataError(f"{path}: the rows carry no concept; a list of the concepts that may occur is needed")
    names = place_concepts([pair.unsafe for pair in file.pairs], [pair.category or "" for pair in file.pairs], concepts)
    placed: list[RawPair] = [replace(pair, concept=name) for pair, name in zip(file.pairs, names, strict=True)]
    return replace(file, pairs=placed)


def _category(name: str | None) -> str | None:
    """A category's name as the project writes it; data sets differ in case, and CoProV2 misspells one."""
    return None if name is None else _CATEGORIES_MISSPELT.get(name.casefold(), name.casefold())


def names_any(matcher: NameMatcher, text: str) -> bool:
    return any(naming >= Naming.FULL for naming in matcher.find(text).values())
