"""Concept files in: a .txt with a concept a line, or a .json with a list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentguard.records.faults import (
    TOO_LONG,
    check_is_file,
    check_suffix,
    fault_at,
    kind_of,
    prompt_fault,
    shown_name,
    unreadable,
)
from latentguard.records.lines import (
    MAX_LINE_BYTES,
    MAX_PROMPT_BYTES,
    lines,
    opened,
    parsed,
    usable,
    without_last_blanks,
)
from latentguard.records.values import finite


@dataclass(frozen=True)
class ConceptEntry:
    """A concept to screen for, with the category it belongs to and a threshold of its own, if it has them."""

    name: str
    category: str | None = None
    threshold: float | None = None


def read_concepts(path: str | Path) -> list[ConceptEntry]:
    """The concepts of a .txt, one a line, or of a .json: a list of names or of objects with `name` and, if wanted,
    `category` and `threshold` (a finite number).

    Names come without outer whitespace and in the order of the file.

    Raises:
        DataError: there is no such file, its format is unknown, it holds no concept, or one of them is empty,
            a repetition (letter case aside), or has fields that can't be used.
    """
    path = Path(path)
    check_is_file(path)
    check_suffix(path, _READERS)
    concepts: list[ConceptEntry] = []
    seen: dict[str, str] = {}
    try:
        for where, concept in _READERS[path.suffix.lower()](path):
            if fault := prompt_fault(concept.name):
                raise fault_at(path, f"the concept {fault}", where)
            if (first := seen.setdefault(concept.name.casefold(), where)) != where:
                raise fault_at(path, f"the concept repeats that of {first}", where)
            concepts.append(concept)
    except OSError as error:
        raise unreadable(path, error) from error
    if not concepts:
        raise fault_at(path, "has no concepts")
    return concepts


def _read_lines(path: Path) -> Iterator[tuple[str, ConceptEntry]]:
    with opened(path) as file:
        numbered = without_last_blanks(lines(file.content, MAX_PROMPT_BYTES, too_long=TOO_LONG))
        for line in usable(path, numbered):
            yield f"line {line.number}", ConceptEntry(line.text.strip())


def _read_list(path: Path) -> Iterator[tuple[str, ConceptEntry]]:
    with opened(path) as file:
        text = "".join(line.text for line in usable(path, lines(file.content, MAX_LINE_BYTES)))
    if not text.strip():
        return
    try:
        items = parsed(text)
    except ValueError as error:
        raise fault_at(path, str(error)) from error
    if not isinstance(items, list):
        raise fault_at(path, f"is {kind_of(items)}, not a list of concepts")
    for number, item in enumerate(items, 1):
        where = f"item {number}"
        if isinstance(item, str):
            yield where, ConceptEntry(item.strip())
        elif isinstance(item, dict):
            yield where, _concept_of(path, item, where)
        else:
            raise fault_at(path, f"is {kind_of(item)}, not a concept's name or an object", where)


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, ConceptEntry]]]] = {
    ".txt": _read_lines,
    ".json": _read_list,
}


def _concept_of(path: Path, item: Mapping[str, Any], where: str) -> ConceptEntry:
    if unknown := item.keys() - {"name", "category", "threshold"}:
        raise fault_at(path, f"has an unknown field {shown_name(min(unknown))}", where)
    name, category, threshold = item.get("name"), item.get("category"), item.get("threshold")
    if fault := prompt_fault(name):
        raise fault_at(path, f"field 'name' {fault}", where)
    if category is not None and (fault := prompt_fault(category)):
        raise fault_at(path, f"field 'category' {fault}", where)
    if threshold is not None and (threshold := finite(threshold)) is None:
        raise fault_at(path, "field 'threshold' is not a finite number", where)
    return ConceptEntry(str(name).strip(), category, threshold)
