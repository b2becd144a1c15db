"""What a model can do before and after its fine-tuning: benchmarks, with the difference that it made.

benchmark = load_benchmark("scienceqa", "ScienceQA/")
results = [measure(place, benchmark) for place in ("before", "after")]
print(table(results))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.stats import binomtest

from privacy.errors import MemorizationError
from privacy.files import atomic_path
from privacy.memorization.answering import choose, write
from privacy.memorization.benchmarks import (
    COGNITION,
    PERCEPTION,
    Question,
    Reader,
    is_letter,
    is_same_answer,
    is_yes_or_no,
    read_mme,
    read_scienceqa,
    read_vqa,
)
from privacy.memorization.models import load_model

By = Literal["likelihood", "generation"]
BENCHMARKS = ("scienceqa", "mme", "vqa")
CONFIDENCE = 0.95

# The paper's order, where a benchmark has one.
_SCIENCEQA_GROUPS = (
    "natural science",
    "social science",
    "language science",
    "text context",
    "image context",
    "no context",
    "grades 1-6",
    "grades 7-12",
)


@dataclass(frozen=True)
class Share:
    """How many of some questions, or pairs of questions, a model gets right; `hits` has one entry for each."""

    name: str
    hits: tuple[bool, ...]

    @property
    def value(self) -> float:
        """In percent."""
        return 100 * sum(self.hits) / len(self.hits)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of a proportion (Wilson, 1927), in percent."""
        found = binomtest(sum(self.hits), len(self.hits)).proportion_ci(CONFIDENCE, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)


@dataclass(frozen=True)
class Score:
    """A figure of MME that is no share: accuracy and accuracy+ added, of one subtask or of several."""

    name: str
    value: float


@dataclass(frozen=True)
class Benchmark:
    """Questions, how a written answer is read, and how a model is asked."""

    name: str
    questions: list[Question]
    reader: Reader
    by: By
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Result:
    """What a model reached: its answers and whether each is right, in the order of the questions, and the figures."""

    model: str
    answers: list[str]
    right: list[bool]
    figures: list[Share | Score]


def load_benchmark(name: str, data: str | Path, *, split: str | None = None, by: By | None = None) -> Benchmark:
    """A benchmark by its name; see privacy.memorization.benchmarks for the files.

    split: of ScienceQA, test by default. by: whether a model chooses the likeliest answer (by default for ScienceQA,
    and for vqa where all questions have choices), or what it writes is read (by default for MME, as published).

    Raises:
        DataError: the data aren't as described there.
        MemorizationError: there is no such benchmark, or it has no splits.
    """
    if split is not None and name != "scienceqa":
        raise MemorizationError(f"{name} has no splits")
    if name == "scienceqa":
        return Benchmark(name, read_scienceqa(Path(data), split or "test"), is_letter, by or "likelihood")
    if name == "mme":
        return Benchmark(name, read_mme(Path(data)), is_yes_or_no, by or "generation")
    if name == "vqa":
        questions = read_vqa(Path(data))
        chosen: By = "likelihood" if all(each.choices for each in questions) else "generation"
        return Benchmark(name, questions, is_same_answer, by or chosen)
    raise MemorizationError(f"the benchmark is one of {', '.join(BENCHMARKS)}")


def measure(place: str | Path, benchmark: Benchmark, *, batch_size: int = 8) -> Result:
    """Asks the model of a folder or hub id all questions, on an accelerator if there is one.

    Raises:
        AuditedModelError: the model can't be loaded, or can't be asked in this way.
        DataError: an image can't be read.
        MemorizationError: the batch size isn't one.
    """
    if batch_size < 1:
        raise MemorizationError("the batch size is a whole number from 1 on")
    loaded = load_model(place)
    questions = benchmark.questions
    if benchmark.by == "likelihood":
        answers = choose(loaded, questions, batch_size)
        right = [answer == question.answer for question, answer in zip(questions, answers, strict=True)]
    else:
        answers = write(loaded, questions, batch_size, benchmark.max_new_tokens)
        right = [benchmark.reader(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return Result(str(place), answers, right, figures(benchmark, right))


def figures(benchmark: Benchmark, right: Sequence[bool]) -> list[Share | Score]:
    """The figures that a benchmark is published with, of the answers to its questions."""
    return list((_mme_figures if benchmark.name == "mme" else _accuracies)(benchmark.questions, right))


def table(results: Sequence[Result]) -> str:
    """The figures as a Markdown table: a column for each model, and for all but the first the difference from it.

    A share has its 95% confidence interval (Wilson); a difference of shares, in percentage points, the p-value of
    McNemar's exact test, since both models answered the same questions.
    """
    first, *others = results
    header = ["", "n", first.model]
    for other in others:
        header += [other.model, f"{other.model} - {first.model}"]
    lines = [header]
    for place, figure in enumerate(first.figures):
        line = [figure.name, f"{len(figure.hits):,}" if isinstance(figure, Share) else "", _shown(figure)]
        for other in others:
            line += [_shown(other.figures[place]), _difference(figure, other.figures[place])]
        lines.append(line)
    return _markdown(lines)


def write_results(path: str | Path, benchmark: Benchmark, results: Sequence[Result]) -> None:
    """Writes figures and answers as JSON, whole or not at all. Raises DataError if it can't be written."""
    content = {
        "benchmark": benchmark.name,
        "by": benchmark.by,
        "confidence": CONFIDENCE,
        "models": [_as_json(benchmark, each) for each in results],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _accuracies(questions: Sequence[Question], right: Sequence[bool]) -> Iterator[Share]:
    """The accuracy of each group of questions, and of all."""
    found = list(dict.fromkeys(group for question in questions for group in question.groups))
    published = [group for group in _SCIENCEQA_GROUPS if group in found]
    for group in [*published, *(each for each in found if each not in published)]:
        yield Share(group, _hits(questions, right, group))
    yield Share("all", tuple(right))


def _mme_figures(questions: Sequence[Question], right: Sequence[bool]) -> Iterator[Share | Score]:
    """Of each subtask the accuracy, the accuracy+ (both questions about an image right) and their sum; and the sums.

    Fu et al., arXiv 2306.13394, section 2.3: at most 200 for a subtask, 2000 for perception, 800 for cognition.
    """
    for kind, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        scores = []
        for subtask in subtasks:
            hits = _hits(questions, right, subtask)
            if not hits:
                continue
            accuracy = Share(f"{subtask}: accuracy", hits)
            both = Share(f"{subtask}: accuracy+", tuple(a and b for a, b in zip(hits[::2], hits[1::2], strict=True)))
            scores.append(accuracy.value + both.value)
            yield from (accuracy, both, Score(f"{subtask}: score", scores[-1]))
        if scores:
            yield Score(f"{kind}: score of {len(scores)} subtasks of {len(subtasks)}", sum(scores))


def _hits(questions: Sequence[Question], right: Sequence[bool], group: str) -> tuple[bool, ...]:
    return tuple(hit for question, hit in zip(questions, right, strict=True) if group in question.groups)


def _shown(figure: Share | Score) -> str:
    if isinstance(figure, Score):
        return f"{figure.value:.2f}"
    low, high = figure.interval
    return f"{figure.value:.2f} ({low:.2f} to {high:.2f})"


def _difference(before: Share | Score, after: Share | Score) -> str:
    shown = f"{after.value - before.value:+.2f}"
    if isinstance(before, Share) and isinstance(after, Share):
        return f"{shown} (p {mcnemar(before.hits, after.hits):.2g})"
    return shown


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The two-sided p-value of McNemar's exact test, for answers to the same questions (McNemar, 1947)."""
    pairs = list(zip(before, after, strict=True))
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def _as_json(benchmark: Benchmark, result: Result) -> dict[str, Any]:
    return {
        "model": result.model,
        "figures": [_figure_as_json(each) for each in result.figures],
        "answers": [
            {"id": question.id, "answer": answer, "right": right}
            for question, answer, right in zip(benchmark.questions, result.answers, result.right, strict=True)
        ],
    }


def _figure_as_json(figure: Share | Score) -> dict[str, Any]:
    if isinstance(figure, Score):
        return {"name": figure.name, "value": figure.value}
    return {"name": figure.name, "value": figure.value, "interval": figure.interval, "questions": len(figure.hits)}


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    header, *body = (" | ".join(map(str.ljust, line, widths)) for line in lines)
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join([f"| {header} |", f"|-{rule}-|", *(f"| {line} |" for line in body)])
