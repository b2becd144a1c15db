"""From a concept list to a data set: the pipeline that CoPro was made with (Liu et al., ECCV 2024, section 3.1).

For each concept: unsafe prompts, their safe twins, synonyms of the concept, and adversarial replacements that a frozen
encoder takes for it. The output has the format of CoPro_v1.0.json; every row says who wrote it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

from tqdm import tqdm

from latentguard.errors import DataError
from latentguard.files import atomic_path, check_target
from latentguard.records import ConceptEntry
from latentguard.wording import text_key

from .backends import Backend, Draft
from .journal import Journal
from .limits import is_withheld
from .spelling import spelling
from .tally import Tally

JOURNAL_SUFFIX = ".journal.jsonl"
REPORT_SUFFIX = ".report.json"
_ENTRY = frozenset({"concept", "category", "pairs", "synonyms", "adversarial", "tally"})


class Search(Protocol):
    """Finds adversarial replacements, as `attack.AdversarialSearch` does."""

    encoder: str

    def replacements(self, concept: str, contexts: Sequence[str] | None = None, count: int = 3) -> Sequence[Any]: ...


@dataclass(frozen=True)
class SynthesisSettings:
    """What is asked for of each concept: pairs, synonyms and adversarial replacements."""

    per_concept: int = 50
    synonyms: int = 3
    adversarial: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_concept < 1:
            raise DataError(f"the number of pairs for each concept must be at least 1, not {self.per_concept}")
        for name in ("synonyms", "adversarial"):
            if getattr(self, name) < 0:
                raise DataError(f"the number of {name} must not be negative")


@dataclass
class SynthesisReport:
    """What came of a run. `withheld_concepts` are those that nothing is written for; see `limits`."""

    backend: str
    model: str | None
    version: str
    settings: dict[str, Any]
    concepts: int = 0
    pairs: int = 0
    without_twin: int = 0
    synonyms: int = 0
    adversarial: int = 0
    resumed: int = 0
    withheld_concepts: list[str] = field(default_factory=list)
    refused_concepts: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def as_dict(self) -> dict[str, Any]:
        """The report for a JSON file."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for people to read, one fact a line."""
        told = [
            f"{self.pairs:,} pairs of {self.concepts:,} concepts, {self.without_twin:,} of them without a twin",
            f"{self.synonyms:,} synonyms, {self.adversarial:,} adversarial replacements",
        ]
        if self.resumed:
            told.append(f"{self.resumed:,} concepts were there from the run before")
        if self.withheld_concepts:
            told.append(f"{len(self.withheld_concepts):,} concepts left out: sexual, and with minors")
        if self.refused_concepts:
            told.append(f"{len(self.refused_concepts):,} concepts that the model refused in part or whole")
        return told + self.tally.lines()


@dataclass(frozen=True)
class _Written:
    """What a back end wrote for one concept."""

    drafts: list[Draft]
    synonyms: list[str]
    tally: Tally


def synthesize(
    concepts: Sequence[ConceptEntry],
    output: str | Path,
    backend: Backend,
    settings: SynthesisSettings | None = None,
    *,
    search: Search | None = None,
    resume: bool = False,
) -> SynthesisReport:
    """Writes a data set for the concepts to `output`, and the report beside it (`OUT.report.json`).

    Finished concepts are journalled in `OUT.journal.jsonl`, with which `resume` goes on after a kill; it is taken away
    at the end. The same settings give the same file, resumed or not, as far as the back end repeats itself. Raises
    DataError if the output can't be written or the journal doesn't fit, and what the back end raises.
    """
    settings = settings or SynthesisSettings()
    output = Path(output)
    check_target(output)
    if settings.adversarial and search is None:
        raise DataError("adversarial replacements need an encoder to search against")
    asked = [concept for concept in concepts if not is_withheld(concept.name, concept.category)]
    about = {
        **asdict(settings),
        "backend": backend.name,
        "model": backend.model,
        "version": backend.version,
        "encoder": search.encoder if search is not None and settings.adversarial else None,
        "concepts": _digest(concepts),
    }
    journal = Journal(output.with_name(output.name + JOURNAL_SUFFIX), about)
    report = SynthesisReport(backend.name, backend.model, backend.version, about)
    report.withheld_concepts = [concept.name for concept in concepts if concept not in asked]
    with journal.opened(resume=resume) as entries:
        if any(entry.keys() != _ENTRY for entry in entries):
            raise DataError(f"{journal.path}: not a journal of this version; remove it to begin anew")
        done = {entry["concept"]: entry for entry in entries}
        report.resumed = len(done)
        left = [concept for concept in asked if concept.name not in done]
        for concept, written in _written(left, backend, settings, len(asked), len(done)):
            entry = _entry(concept, written, settings, search)
            journal.append(entry)
            done[concept.name] = entry
    records = _records([done[concept.name] for concept in asked], about, report)
    with atomic_path(output.with_name(output.name + REPORT_SUFFIX)) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if records:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps({"train": records}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    journal.remove()
    if not records:
        raise DataError(f"{output}: nothing to write: all was refused, dropped or left out; see its report")
    return report


def _written(
    concepts: Sequence[ConceptEntry], backend: Backend, settings: SynthesisSettings, total: int, done: int
) -> Iterator[tuple[ConceptEntry, _Written]]:
    """What the back end writes for each concept, as it comes."""
    parallel = min(backend.parallel, len(concepts))
    write = _write_in_threads if parallel > 1 else _write_in_turn
    with tqdm(total=total, initial=done, unit="concept", disable=None) as bar:
        try:
            for concept, written in write(concepts, backend, settings, parallel):
                yield concept, written
                bar.update()
        finally:
            backend.close()


def _write_in_turn(
    concepts: Sequence[ConceptEntry], backend: Backend, settings: SynthesisSettings, parallel: int
) -> Iterator[tuple[ConceptEntry, _Written]]:
    for concept in concepts:
        yield concept, _write(concept, backend, settings)


def _write_in_threads(
    concepts: Sequence[ConceptEntry], backend: Backend, settings: SynthesisSettings, parallel: int
) -> Iterator[tuple[ConceptEntry, _Written]]:
    tasks: SimpleQueue[ConceptEntry] = SimpleQueue()
    results: SimpleQueue[tuple[ConceptEntry, _Written | Exception]] = SimpleQueue()
    for concept in concepts:
        tasks.put(concept)

    def work() -> None:
        with suppress(Empty):
            while True:
                concept = tasks.get_nowait()
                try:
                    results.put((concept, _write(concept, backend, settings)))
                except Exception as error:  # raised again where the results are taken
                    results.put((concept, error))
                    return

    # Daemons, and not a pool: an interrupted run must not wait for the answers under way.
    for number in range(parallel):
        Thread(target=work, name=f"synthesis-{number}", daemon=True).start()
    for _ in concepts:
        concept, written = results.get()
        if isinstance(written, Exception):
            raise written
        yield concept, written


def _write(concept: ConceptEntry, backend: Backend, settings: SynthesisSettings) -> _Written:
    tally = Tally()
    drafts = backend.pairs(concept, settings.per_concept, settings.seed, tally)
    synonyms = backend.synonyms(concept, settings.synonyms, settings.seed, tally) if settings.synonyms else []
    tally.short += len(drafts) < settings.per_concept
    tally.without_synonyms += bool(settings.synonyms) and not synonyms
    return _Written(drafts, synonyms, tally)


def _entry(
    concept: ConceptEntry, written: _Written, settings: SynthesisSettings, search: Search | None
) -> dict[str, Any]:
    """A concept's line in the journal."""
    replacements: list[dict[str, Any]] = []
    if settings.adversarial and search is not None:
        spelt = spelling(concept.name)
        contexts = [draft.unsafe for draft in written.drafts if spelt.search(draft.unsafe)]
        found = search.replacements(concept.name, contexts, settings.adversarial)
        replacements = [{"text": one.text, "similarity": round(one.similarity, 4)} for one in found]
        written.tally.without_adversarial += not replacements
    return {
        "concept": concept.name,
        "category": concept.category,
        "pairs": [asdict(draft) for draft in written.drafts],
        "synonyms": written.synonyms,
        "adversarial": replacements,
        "tally": asdict(written.tally),
    }


def _records(entries: Sequence[dict[str, Any]], about: dict[str, Any], report: SynthesisReport) -> list[dict[str, Any]]:
    """The rows of the output: no unsafe text twice, and none that is safe elsewhere; and the report is filled in."""
    records: list[dict[str, Any]] = []
    unsafe: set[str] = set()
    safe: set[str] = set()
    for entry in entries:
        report.tally.add(Tally(**entry["tally"]))
        if entry["tally"]["refusals"]:
            report.refused_concepts.append(entry["concept"])
        report.synonyms += len(entry["synonyms"])
        report.adversarial += len(entry["adversarial"])
        for draft in entry["pairs"]:
            key = text_key(draft["unsafe"])
            twin = None if draft["safe"] is None else text_key(draft["safe"])
            if key in unsafe or key in safe or twin in unsafe or twin == key:
                report.tally.duplicates += 1
                continue
            unsafe.add(key)
            if twin is not None:
                safe.add(twin)
            records.append(_record(entry, draft, about))
    report.concepts = len({record["concept"] for record in records})
    report.pairs = len(records)
    report.without_twin = sum("safe_prompt" not in record for record in records)
    return records


def _record(entry: dict[str, Any], draft: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {"concept": entry["concept"], "prompt": draft["unsafe"]}
    if entry["category"] is not None:
        record["category"] = entry["category"]
    if draft["safe"] is not None:
        record["safe_prompt"] = draft["safe"]
    if entry["synonyms"]:
        record["concept_synonym"] = entry["synonyms"]
    if entry["adversarial"]:
        record["concept_adv"] = [one["text"] for one in entry["adversarial"]]
    record["provenance"] = {
        **{name: about[name] for name in ("backend", "model", "version", "seed")},
        "template": draft["template"],
        **({"encoder": about["encoder"]} if entry["adversarial"] else {}),
    }
    return record


def _digest(concepts: Sequence[ConceptEntry]) -> str:
    listed = json.dumps([[concept.name, concept.category] for concept in concepts])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
