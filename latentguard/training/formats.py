"""The file formats of training data, told apart by content: CoPro_v1.0.json, CoProV2 csv, and plain csv.

**CoPro_v1.0.json**, the data set of Latent Guard (Liu et al., ECCV 2024). Read tolerantly, since copies of it differ in
their nesting. A *record* is an object with the keys

    concept                            text; may instead be the key that the record stands under
    category                           text, optional; may instead be the key above the concept
    prompt | unsafe_prompt | unsafe    text, or a list of texts
    safe_prompt | safe                 text, or a list of the same length; optional
    concept_synonym, concept_adv       text or a list of texts, optional: other words for the concept. For each of them
                                       that can be put in the concept's place in the unsafe prompt one more pair is made

(and the plurals of these prompt keys). Records stand in lists, under concepts, or under splits, nested in any order.
Splits are keys made of the words train, val, dev, test, id and ood only, as in `val_id`. Whatever is called test or ood
is held out by the data set's makers: it is skipped, and reported. All else is a DataError that names the key path.

**CoProV2 csv** (SafetyDPO): columns `prompt, image, category`. `u_idx_7_0.jpg` is unsafe, `s_idx_7_0.jpg` its safe
twin; a name that occurs several times (once per category) is joined in order. `7_0.jpg` is unsafe without a twin. No
concept is given, but unsafe rows stand in order of concept.

**Plain csv**: columns `concept, unsafe_prompt`, and optionally `safe_prompt` and `category`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from latentguard.errors import DataError

UNSAFE_KEYS = ("prompt", "unsafe_prompt", "unsafe", "prompts", "unsafe_prompts")
SAFE_KEYS = ("safe_prompt", "safe", "safe_prompts")
REPLACEMENT_KEYS = ("concept_synonym", "concept_adv")
SPLIT_WORDS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "id", "ood", "set", "split"})
HELD_OUT_WORDS = frozenset({"test", "ood"})
_IMAGE = re.compile(r"(?:(?P<side>[us])_)?(?P<key>\w*\d\w*\.\w+)")


@dataclass(frozen=True)
class RawPair:
    """A pair as its file has it; `source` is the file's name and the line or key path."""

    concept: str | None
    unsafe: str
    safe: str | None
    category: str | None
    source: str


@dataclass
class RawFile:
    """What one file holds. `ordered`: its pairs stand in order of concept and don't carry it."""

    ordered: bool = False
    rows: int = 0
    pairs: list[RawPair] = field(default_factory=list)
    orphans: int = 0  # safe rows without their unsafe twin
    skipped: list[str] = field(default_factory=list)


def read_file(path: str | Path) -> RawFile:
    """The pairs of one training file, in file order. Raises DataError that names the file and the row or key path."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    if text.lstrip()[0] in "[{":
        return _read_json(path, text)
    lines = _Table(path, text)
    for columns, read in _CSV_READERS:
        if columns <= lines.header:
            return read(lines)
    raise DataError(
        f"{path}: columns {sorted(lines.header)} are neither 'prompt, image, category' nor 'concept, unsafe_prompt'"
    )


class _Table:
    """A csv file with a header: rows as dicts with their line number."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            self.header = {name.strip() for name in self._reader.fieldnames or ()}
        except csv.Error as error:
            raise DataError(f"{path}, line 1: {error}") from error
        self._reader.fieldnames = [name.strip() for name in self._reader.fieldnames or ()]

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            for row in self._reader:
                line = self._reader.line_num
                if None in row or None in row.values():
                    self.fail(line, f"does not have {len(self.header)} fields")
                yield line, row
        except csv.Error as error:
            raise DataError(f"{self.path}, line {self._reader.line_num}: {error}") from error

    def text(self, line: int, row: Mapping[str, str], name: str) -> str:
        value = row[name].strip()
        if not value:
            self.fail(line, f"field {name} is empty")
        return value

    def fail(self, line: int, reason: str) -> NoReturn:
        raise DataError(f"{self.path}, line {line}: {reason}")


def _read_plain(table: _Table) -> RawFile:
    file = RawFile()
    for line, row in table:
        file.rows += 1
        file.pairs.append(
            RawPair(
                concept=table.text(line, row, "concept"),
                unsafe=table.text(line, row, "unsafe_prompt"),
                safe=row.get("safe_prompt", "").strip() or None,
                category=row.get("category", "").strip() or None,
                source=f"{table.path.name}:{line}",
            )
        )
    return file


def _read_coprov2(table: _Table) -> RawFile:
    file = RawFile(ordered=True)
    unsafe: list[tuple[str, str, str, str]] = []
    twins: defaultdict[str, deque[str]] = defaultdict(deque)
    for line, row in table:
        file.rows += 1
        image = _IMAGE.fullmatch(row["image"].strip())
        if image is None:
            table.fail(line, "field image is not a CoProV2 name such as u_idx_7_0.jpg")
        prompt = table.text(line, row, "prompt")
        key = image["key"]
        if image["side"] == "s":
            twins[key].append(prompt)
        else:
            join = key if image["side"] else ""
            unsafe.append((join, prompt, table.text(line, row, "category"), f"{table.path.name}:{line}"))
    for join, prompt, category, source in unsafe:
        safe = twins[join].popleft() if twins.get(join) else None
        file.pairs.append(RawPair(None, prompt, safe, category, source))
    file.orphans = sum(len(left) for left in twins.values())
    return file


_CSV_READERS: tuple[tuple[set[str], Callable[[_Table], RawFile]], ...] = (
    ({"prompt", "image", "category"}, _read_coprov2),
    ({"concept", "unsafe_prompt"}, _read_plain),
)


def _read_json(path: Path, text: str) -> RawFile:
    try:
        root = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    reader = _CoProReader(path)
    reader.walk(root, "", ())
    if not reader.file.rows and not reader.file.skipped:
        raise DataError(f"{path}: no records")
    return reader.file


class _CoProReader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = RawFile()

    def walk(self, node: Any, at: str, names: tuple[str, ...]) -> None:
        """Read what stands at a key path; `names` are the keys above it that are no splits."""
        if isinstance(node, list):
            for index, item in enumerate(node):
                self.walk(item, f"{at}[{index}]", names)
        elif not isinstance(node, dict):
            self._fail(at, f"a {type(node).__name__} where records are expected")
        elif any(key in node for key in UNSAFE_KEYS):
            self._record(node, at, names)
        else:
            for key, item in node.items():
                below = f"{at}.{key}".lstrip(".")
                split = set(re.split(r"[\W_]+", key.casefold())) - {""}
                if not split or not split <= SPLIT_WORDS:
                    self.walk(item, below, (*names, key))
                elif split & HELD_OUT_WORDS:
                    self.file.skipped.append(f"{self.path.name}: {below} ({_count_records(item)} records, held out)")
                else:
                    self.walk(item, below, names)

    def _record(self, record: dict[str, Any], at: str, names: tuple[str, ...]) -> None:
        concept = self._one(record, "concept", at) or (names[-1] if names else None)
        if concept is None:
            self._fail(at, "a record without a concept")
        above = names[:-1] if names and names[-1] == concept else names
        category = self._one(record, "category", at) or (above[-1] if above else None)
        unsafe = self._texts(record, UNSAFE_KEYS, at)
        safe: list[str] = self._texts(record, SAFE_KEYS, at)
        if safe and len(safe) != len(unsafe):
            self._fail(at, f"{len(unsafe)} unsafe prompts but {len(safe)} safe ones")
        others = self._texts(record, REPLACEMENT_KEYS, at)
        spelt = re.compile(rf"\b{re.escape(concept)}(?!\w)", re.IGNORECASE)
        self.file.rows += 1
        for index, prompt in enumerate(unsafe):
            variants = [prompt, *(other.join(spelt.split(prompt)) for other in others)]
            for variant in dict.fromkeys(variants):
                twin = safe[index] if safe else None
                self.file.pairs.append(RawPair(concept, variant, twin, category, f"{self.path.name}:{at}"))

    def _one(self, record: dict[str, Any], key: str, at: str) -> str | None:
        value = record.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            self._fail(f"{at}.{key}", "not a text, or empty")
        return value.strip()

    def _texts(self, record: dict[str, Any], keys: tuple[str, ...], at: str) -> list[str]:
        texts: list[str] = []
        for key in keys:
            value = record.get(key)
            several = value if isinstance(value, list) else [] if value is None else [value]
            for text in several:
                if not isinstance(text, str) or not text.strip():
                    self._fail(f"{at}.{key}", "neither a text nor a list of texts, or empty")
                texts.append(text.strip())
        return texts

    def _fail(self, at: str, reason: str) -> NoReturn:
        raise DataError(f"{self.path}, key {at.lstrip('.') or '(root)'}: {reason}")


def _count_records(node: Any) -> int:
    if isinstance(node, list):
        return sum(_count_records(item) for item in node)
    if isinstance(node, dict):
        if any(key in node for key in UNSAFE_KEYS):
            return 1
        return sum(_count_records(item) for item in node.values())
    return 0
