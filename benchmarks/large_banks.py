"""Large concept banks: what building, changing and scoring them takes, whole and by search, and what a search misses.

``python -m benchmarks.large_banks`` measures the shipped weights. Times of scoring are the least of several turns that
whole scoring and search take one after the other, so that their ratio holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.made_up import names_around
from benchmarks.timing import Call, interleaved
from latentguard import ConceptBank, LatentGuard
from latentguard.arrays import as_numpy
from latentguard.bank import concept_key
from latentguard.errors import LatentGuardError
from latentguard.files import atomic_path, check_target
from latentguard.normalize import normalize
from latentguard.reading import ReadPrompt
from latentguard.records import ConceptEntry, read_concepts, read_prompts
from latentguard.search import Cells
from latentguard.shipped import shipped_path
from latentguard.synthesis.grammar import Grammar
from latentguard.synthesis.splits import read_replacements
from latentguard.verdict import Verdict

_SHARE_RELATED = 0.6  # of a bank: names around those of a real blacklist, the others are unrelated
_WORD = re.compile(r"\b[a-z]{4,}\b")
_TIMED = 16  # prompts of a timed turn
_TURNS = 5
_SAME = 1e-4  # a score is the same within this


@dataclass(frozen=True)
class Row:
    """What was measured at one size of the bank.

    Attributes:
        concepts: their number.
        build, load, add, remove, part: seconds to encode the bank, to load it from a file, to add or remove one
            concept, and to part it into cells.
        megabytes, cells_megabytes: the memory of the bank's arrays, and of what the search keeps beside them.
        whole, search: seconds per prompt, of prompts checked some at a time.
        blocked, same, missed: prompts that whole scoring blocks; that the search finds the same highest margin for;
            that it lets pass.
        unnamed_blocked, unnamed_same, unnamed_missed: the same where the guard is not told which names a prompt has.
    """

    concepts: int
    build: float
    load: float
    add: float
    remove: float
    part: float
    megabytes: float
    cells_megabytes: float
    whole: float
    search: float
    blocked: int
    same: int
    missed: int
    unnamed_blocked: int
    unnamed_same: int
    unnamed_missed: int


def bank_names(count: int, files: Sequence[Path] = ()) -> list[ConceptEntry]:
    """That many different concepts, in random order, the same at every call.

    Clusters of relatives as a real blacklist has them, made around the names of the shipped list, their synonyms and
    the names in ``files``; and pairs of everyday words that have nothing to do with them. Single everyday words are
    left out: with them in the bank every prompt spells out a concept, which makes a search easier than it is.
    """
    folder = shipped_path("datasets")
    listed = [concept for file in (folder / "concepts.json", *files) for concept in read_concepts(file)]
    category = {concept_key(concept.name): concept.category for concept in listed}
    for kind in ("synonym", "adversarial"):
        for name, others in read_replacements(folder / "replacements.json", kind).items():
            category |= {concept_key(other): category.get(concept_key(name)) for other in others}
    roots = sorted(category)
    texts = "".join(file.read_text(encoding="utf-8") for file in sorted((folder / "grammar").glob("*.json")))
    words = sorted(set(_WORD.findall(texts)))
    chosen = random.Random(0)
    names: dict[str, ConceptEntry] = {}
    related = round(count * _SHARE_RELATED)
    for place, name in enumerate(names_around(roots)):
        if len(names) == related:
            break
        names.setdefault(concept_key(name), ConceptEntry(name, category[roots[place % len(roots)]]))
    while len(names) < count:
        name = " ".join(chosen.sample(words, 2))
        names.setdefault(concept_key(name), ConceptEntry(name))
    found = list(names.values())
    chosen.shuffle(found)
    return found


def bank_prompts(count: int, files: Sequence[Path] = ()) -> list[str]:
    """That many different prompts, drawn from ``files``; without files, harmful and harmless ones of the grammar."""
    if files:
        found = [row.prompt for file in files for row in read_prompts(file)]
    else:
        pairs = Grammar.load().pairs(count, seed=1)
        found = [text for pair in pairs for text in (pair.unsafe, pair.safe) if text is not None]
    different = list(dict.fromkeys(found))
    random.Random(0).shuffle(different)
    return different[:count]


def measure(concepts: Sequence[ConceptEntry], prompts: Sequence[str], threads: int) -> Row:
    """The figures of one bank."""
    search = LatentGuard.from_pretrained(device="cpu", threads=threads, concepts=[], search=1)
    whole = LatentGuard(search.encoder, search.mapping, [], search.policy, search.heads)
    build = _least(partial(whole.concepts.extend, concepts), 1)
    bank = search.concepts = whole.concepts
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bank.safetensors"
        bank.save(file)
        load = _least(partial(ConceptBank.load, file, search.encoder, search.mapping, search.heads), 1)
    changes = [
        (_least(partial(bank.add, "a new concept"), 1), _least(partial(bank.remove, "a new concept"), 1))
        for _ in range(3)
    ]
    part = _least(partial(Cells.of, bank.snapshot), 1)
    search.check(prompts[0])
    some = prompts[:_TIMED]
    calls = {name: Call(partial(guard.check_batch, some)) for name, guard in (("whole", whole), ("search", search))}
    times = {name: min(timing.seconds) / len(some) for name, timing in interleaved(calls, _TURNS).items()}
    read = [ReadPrompt(whole.encoder.windows(normalize(prompt)), None) for prompt in prompts]
    named = _compared(whole.check_batch(prompts), search.check_batch(prompts))
    unnamed = _compared(whole.check_read(read), search.check_read(read))
    snapshot = bank.snapshot
    kept = [snapshot.queries.query, snapshot.queries.direction]
    return Row(
        len(concepts),
        build,
        load,
        min(added for added, _ in changes),
        min(removed for _, removed in changes),
        part,
        _megabytes([snapshot.embeddings, *kept]),
        _megabytes(kept),  # the search keeps both once more, cell by cell
        times["whole"],
        times["search"],
        *named,
        *unnamed,
    )


def _compared(expected: Sequence[Verdict], found: Sequence[Verdict]) -> tuple[int, int, int]:
    """How many are blocked, for how many of those a search finds the same margin, how many of them it lets pass."""
    pairs = [pair for pair in zip(expected, found, strict=True) if pair[0].blocked]
    same = sum(abs(ours.margin - theirs.margin) <= _SAME for theirs, ours in pairs)
    return len(pairs), same, sum(not ours.blocked for _, ours in pairs)


def _least(call: Callable[[], object], times: int) -> float:
    """The least of the seconds that a call takes."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _megabytes(arrays: Sequence[object]) -> float:
    return sum(as_numpy(array).nbytes for array in arrays) / 1e6


def tables(rows: Sequence[Row]) -> str:
    """The figures as two Markdown tables: of the bank, and of scoring."""
    bank = {
        "concepts": [f"{row.concepts:,}" for row in rows],
        "build, s": [f"{row.build:.1f}" for row in rows],
        "load, s": [f"{row.load:.1f}" for row in rows],
        "add, ms": [f"{row.add * 1e3:.0f}" for row in rows],
        "remove, ms": [f"{row.remove * 1e3:.0f}" for row in rows],
        "cells, s": [f"{row.part:.1f}" for row in rows],
        "bank, MB": [f"{row.megabytes:.0f}" for row in rows],
        "cells, MB": [f"{row.cells_megabytes:.0f}" for row in rows],
    }
    scoring = {
        "concepts": bank["concepts"],
        "every concept, ms": [f"{row.whole * 1e3:.1f}" for row in rows],
        "search, ms": [f"{row.search * 1e3:.1f}" for row in rows],
        "ratio": [f"{row.whole / row.search:.2f}" for row in rows],
        "blocked": [str(row.blocked) for row in rows],
        "recall": [_share(row.same, row.blocked) for row in rows],
        "missed": [str(row.missed) for row in rows],
        "blocked by meaning": [str(row.unnamed_blocked) for row in rows],
        "recall of these": [_share(row.unnamed_same, row.unnamed_blocked) for row in rows],
        "missed of these": [str(row.unnamed_missed) for row in rows],
    }
    return f"{_markdown(bank)}\n\n{_markdown(scoring)}"


def _share(part: int, count: int) -> str:
    return f"{part / count:.4f}" if count else "-"


def _markdown(columns: Mapping[str, Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (columns, *zip(*columns.values(), strict=True))]
    return "\n".join([lines[0], f"|{'---:|' * len(columns)}", *lines[1:]])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw time per prompt by number of concepts, for whole scoring and search."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [row.concepts for row in rows]
    axes.plot(sizes, [row.whole * 1e3 for row in rows], color="#2471a3", marker="o", label="every concept")
    axes.plot(sizes, [row.search * 1e3 for row in rows], color="#c0392b", marker="o", label="search")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("concepts in the bank")
    axes.set_ylabel("ms per prompt")
    axes.set_title("A prompt against a large bank, encoding included")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_banks", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[578, 5000, 20_000, 100_000], metavar="N")
    parser.add_argument("--names", type=Path, nargs="+", default=[], metavar="FILE", help="more concepts")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help="prompts of your own")
    parser.add_argument("--count", type=int, default=200, help="prompts that recall is measured on (default: 200)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch and ONNX Runtime (default: 2)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the times")
    given = parser.parse_args(arguments)
    if min(given.sizes) < 1 or given.count < 1 or given.threads < 1:
        parser.error("--sizes, --count and --threads: at least 1")
    torch.set_num_threads(given.threads)
    try:
        if given.plot is not None:
            check_target(given.plot)
        prompts = bank_prompts(given.count, given.prompts)
        names = bank_names(max(given.sizes), given.names)
        rows = []
        for size in sorted(given.sizes):
            rows.append(measure(names[:size], prompts, given.threads))
            print(f"{size:,} concepts measured", file=sys.stderr, flush=True)
        print(tables(rows))
        if given.plot is not None:
            plot(rows, given.plot)
    except LatentGuardError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
