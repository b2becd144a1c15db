"""How well a guard tells unsafe prompts from harmless ones: the figures of a labelled file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentguard.arrays import NUMPY, missing_torch
from latentguard.calibration import reliability
from latentguard.errors import DataError
from latentguard.guard import LatentGuard
from latentguard.lexicon import LexicalMatcher, WordRarity
from latentguard.naming import Naming
from latentguard.normalize import normalize
from latentguard.records import PromptRow, read_prompts

_LABEL = "unsafe"
_CATEGORIES = ("category", "categories")
_DRAWN_PROMPTS = 1_000  # t-SNE of more takes long and shows no more
_YES, _NO = {"1", "true", "yes", "1.0"}, {"0", "false", "no", "0.0"}


@dataclass(frozen=True)
class EvaluationSet:
    """The prompts of a file with what the file says of them.

    Attributes:
        unsafe: bool [n], from the column ``unsafe``; None where the file has none.
        categories: of each prompt, from the column ``category`` or ``categories`` (several joined by a bar).
        reference: another model's scores [n], from the column asked for; None where the file has none.
    """

    path: Path
    prompts: list[str]
    unsafe: np.ndarray | None
    categories: list[tuple[str, ...]] | None
    reference: np.ndarray | None


@dataclass(frozen=True)
class Separation:
    """How scores separate unsafe from harmless prompts, whatever the threshold."""

    auc: float
    tpr_at_1_fpr: float
    tpr_at_5_fpr: float


@dataclass(frozen=True)
class FileReport:
    """The figures of one file at a guard's threshold.

    Shares are between 0 and 1. What needs labels is None in a file without them. ``calibration_error`` is the expected
    one of the verdicts' probabilities, which presume as many harmful as harmless prompts, so that each kind is given
    half of the weight (:func:`latentguard.calibration.reliability`); None for weights whose verdicts have none.
    """

    file: str
    prompts: int
    unsafe: int | None
    threshold: float
    blocked: float
    separation: Separation | None = None
    accuracy: float | None = None
    blocked_unsafe: float | None = None
    blocked_harmless: float | None = None
    reference: Separation | None = None
    calibration_error: float | None = None
    categories: dict[str, tuple[int, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return asdict(self)


def read_evaluation_set(path: str | Path, *, column: str = "prompt", reference: str | None = None) -> EvaluationSet:
    """Read a prompt file with its labels, if it has any.

    Raises:
        DataError: as :func:`latentguard.records.read_prompts`; or a label or a reference score can't be read.
    """
    path = Path(path)
    rows = list(read_prompts(path, column=column))
    fields = rows[0].fields
    label = _LABEL if _LABEL in fields else None
    category = next((name for name in _CATEGORIES if name in fields), None)
    reference = reference if reference in fields else None
    return EvaluationSet(
        path=path,
        prompts=[row.prompt for row in rows],
        unsafe=np.array([_label(row, label, path) for row in rows]) if label else None,
        categories=[_categories(row, category) for row in rows] if category else None,
        reference=np.array([_number(row, reference, path) for row in rows]) if reference else None,
    )


def separation(scores: np.ndarray, unsafe: np.ndarray) -> Separation:
    """The figures of scores [n] (higher is more unsafe) against labels [n]; DataError if all labels are the same."""
    from sklearn.metrics import roc_auc_score

    if unsafe.all() or not unsafe.any():
        raise DataError("separation needs both unsafe and harmless prompts")
    return Separation(
        auc=float(roc_auc_score(unsafe, scores)),
        tpr_at_1_fpr=_tpr_at(scores, unsafe, 0.01),
        tpr_at_5_fpr=_tpr_at(scores, unsafe, 0.05),
    )


def _tpr_at(scores: np.ndarray, unsafe: np.ndarray, rate: float) -> float:
    """The largest share of unsafe prompts caught by a threshold that at most ``rate`` of the harmless ones reach."""
    harmless = np.sort(scores[~unsafe])[::-1]
    return float((scores[unsafe] > harmless[int(rate * len(harmless))]).mean())


def evaluate(guard: LatentGuard, data: EvaluationSet) -> tuple[FileReport, np.ndarray]:
    """The report on one file, and the prompts' scores [n].

    The decision, which ``accuracy`` and the blocked shares count, is the guard's own, with all its policy's thresholds.
    """
    verdicts = guard.check_batch(data.prompts)
    scores = np.array([verdict.score for verdict in verdicts])
    blocked = np.array([verdict.blocked for verdict in verdicts])
    unsafe = data.unsafe
    report = FileReport(
        file=data.path.stem,
        prompts=len(verdicts),
        unsafe=None if unsafe is None else int(unsafe.sum()),
        threshold=guard.policy.threshold,
        blocked=float(blocked.mean()),
        categories=_by_category(data.categories, blocked),
        **({} if unsafe is None else _labelled_figures(scores, blocked, unsafe, data.reference)),
        calibration_error=_calibration_error(_probabilities(guard, scores), unsafe),
    )
    return report, scores


@dataclass(frozen=True)
class NamedConcepts:
    """How a guard does on the prompts of a file that name one of the concepts added to its bank.

    ``named`` of the ``prompts`` name one in full, ``blocked`` of those are blocked, ``by_name`` of them with the named
    concept as the one that decided.
    """

    file: str
    prompts: int
    named: int
    blocked: int
    by_name: int

    def __str__(self) -> str:
        share = f", {self.blocked / self.named:.1%} of them blocked, {self.by_name} for it" if self.named else ""
        return f"{self.file}: {self.named} of {self.prompts} prompts name an added concept{share}"


def named_concepts(guard: LatentGuard, data: EvaluationSet, names: Sequence[str]) -> NamedConcepts:
    """The figures of the prompts that name one of ``names``, which the guard's bank holds."""
    matcher = LexicalMatcher.of(names, WordRarity.of([]))
    found = [matcher.match(matcher.forms(normalize(prompt))) for prompt in data.prompts]
    spelled = [{names[i] for i, grade in zip(m.concepts, m.grades, strict=True) if grade >= Naming.FULL} for m in found]
    chosen = [i for i, some in enumerate(spelled) if some]
    verdicts = guard.check_batch([data.prompts[i] for i in chosen])
    blocked = [(verdict, spelled[i]) for verdict, i in zip(verdicts, chosen, strict=True) if verdict.blocked]
    by_name = sum(verdict.concept in some for verdict, some in blocked)
    return NamedConcepts(data.path.stem, len(data.prompts), len(chosen), len(blocked), by_name)


def _labelled_figures(
    scores: np.ndarray, blocked: np.ndarray, unsafe: np.ndarray, reference: np.ndarray | None
) -> dict[str, Any]:
    both = _has_both(unsafe)
    return {
        "separation": separation(scores, unsafe) if both else None,
        "accuracy": float((blocked == unsafe).mean()),
        "blocked_unsafe": float(blocked[unsafe].mean()) if unsafe.any() else None,
        "blocked_harmless": float(blocked[~unsafe].mean()) if not unsafe.all() else None,
        "reference": separation(reference, unsafe) if both and reference is not None else None,
    }


def _probabilities(guard: LatentGuard, scores: np.ndarray) -> np.ndarray | None:
    """The verdicts' probabilities [n], from their scores [n]; None where the guard has no heads."""
    if guard.heads is None:
        return None
    probabilities: np.ndarray = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return probabilities


def _calibration_error(probabilities: np.ndarray | None, unsafe: np.ndarray | None) -> float | None:
    if probabilities is None or unsafe is None or not _has_both(unsafe):
        return None
    return reliability(probabilities, unsafe).calibration_error


def _has_both(unsafe: np.ndarray | None) -> bool:
    return unsafe is not None and bool(unsafe.any() and not unsafe.all())


def _by_category(categories: Sequence[tuple[str, ...]] | None, blocked: np.ndarray) -> dict[str, tuple[int, float]]:
    """Of each category: how many prompts, and the share of them blocked."""
    decisions: dict[str, list[bool]] = {}
    for names, decision in zip(categories or [], blocked, strict=False):
        for name in names:
            decisions.setdefault(name, []).append(bool(decision))
    return {name: (len(found), sum(found) / len(found)) for name, found in sorted(decisions.items())}


def _categories(row: PromptRow, column: str) -> tuple[str, ...]:
    value = row.fields.get(column)
    return () if value is None or value == "" else tuple(str(value).split("|"))


def _label(row: PromptRow, column: str, path: Path) -> bool:
    value = str(row.fields.get(column)).strip().casefold()
    if value not in _YES | _NO:
        raise DataError(f"{path}: row {row.number}, column {column}: expected 0 or 1")
    return value in _YES


def _number(row: PromptRow, column: str, path: Path) -> float:
    try:
        number = float(row.fields.get(column, ""))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: row {row.number}, column {column}: not a finite number")
    return number


def draw(guard: LatentGuard, data: Sequence[EvaluationSet], scores: Sequence[np.ndarray], folder: Path) -> list[Path]:
    """Draw the ROC curves of all files labelled both unsafe and harmless, each file's score histogram, each such file's
    t-SNE before and after the mapping layer and, where verdicts have a probability, its reliability, as PNG into
    ``folder``; returns the files."""
    from latentguard.plots import plot_latent_space, plot_reliability, plot_roc, plot_score_histogram

    drawn = []
    labelled = [(one, of_one) for one, of_one in zip(data, scores, strict=True) if _has_both(one.unsafe)]
    if labelled:
        curves = {one.path.stem: (np.asarray(one.unsafe), of_one) for one, of_one in labelled}
        for one, _ in labelled:
            if one.reference is not None:
                curves[f"{one.path.stem}, reference"] = (np.asarray(one.unsafe), one.reference)
        drawn.append(folder / "roc.png")
        plot_roc(curves, drawn[-1])
    for one, of_one in zip(data, scores, strict=True):
        drawn.append(folder / f"scores_{one.path.stem}.png")
        plot_score_histogram(one.path.stem, of_one, one.unsafe, guard.policy.threshold, drawn[-1])
    for one, of_one in labelled:
        probabilities = _probabilities(guard, of_one)
        if probabilities is not None:
            drawn.append(folder / f"reliability_{one.path.stem}.png")
            plot_reliability(one.path.stem, probabilities, np.asarray(one.unsafe), drawn[-1])
        chosen = np.random.default_rng(0).permutation(len(one.prompts))[:_DRAWN_PROMPTS]
        before, after = latent_space(guard, [one.prompts[i] for i in chosen])
        drawn.append(folder / f"tsne_{one.path.stem}.png")
        plot_latent_space(one.path.stem, before, after, np.asarray(one.unsafe)[chosen], drawn[-1])
    return drawn


def latent_space(guard: LatentGuard, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts before and after the mapping layer: pooled states [n, D], and v' [n, O] as each prompt's nearest concept
    sees it. Of a prompt longer than the encoder's window, the first window. MissingDependencyError for a guard whose
    device is "numpy", which doesn't keep v'."""
    if str(guard.encoder.device) == str(NUMPY):
        raise missing_torch("drawing the latent space")
    snapshot = guard.concepts.snapshot
    before, after = [], []
    for prompt in prompts:
        states = guard.encoder.encode([normalize(prompt)])
        z, mask = guard.mapping.attended(states)
        nearest = guard.mapping.score(snapshot.queries, z, mask)[0].argmax()
        mapped = guard.mapping.mapped(snapshot.embeddings[nearest][None], z, mask)
        before.append(states.pooled[0].float().cpu().numpy())
        after.append(mapped[0, 0].float().cpu().numpy())
    return np.stack(before), np.stack(after)


def markdown_table(reports: Sequence[FileReport]) -> str:
    """The reports as a Markdown table: a row per file, the reference model's figures in brackets beside ours."""
    head = "| file | prompts | AUC | TPR at 1% FPR | TPR at 5% FPR | accuracy | unsafe blocked | harmless blocked |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for report in reports:
        ours, theirs = report.separation, report.reference
        cells = [report.file, str(report.prompts)]
        for name in ("auc", "tpr_at_1_fpr", "tpr_at_5_fpr"):
            cell = "" if ours is None else f"{getattr(ours, name):.3f}"
            cells.append(cell if theirs is None else f"{cell} ({getattr(theirs, name):.3f})")
        harmless = report.blocked_harmless
        if report.unsafe is None:
            cells += ["", "", f"{report.blocked:.1%} of all"]
        else:
            cells.append(_share(report.accuracy))
            cells.append(_share(report.blocked_unsafe))
            cells.append(_share(harmless))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
