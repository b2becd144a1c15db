"""How a guard holds where filters are known to fail: people, innocent words, evasions, attacks, and its own reasons."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np

from latentguard.errors import DataError
from latentguard.evaluation import EvaluationSet, Separation, read_evaluation_set, separation
from latentguard.guard import LatentGuard
from latentguard.normalize import normalize
from latentguard.plots import plot_roc, plot_shares
from latentguard.records import read_prompts
from latentguard.shipped import shipped_path
from latentguard.synthesis.splits import PADDED, LabelledPrompt, attack_prompts
from latentguard.verdict import TokenContribution, Verdict

WANTED_GAP = 2.0  # points, for every attribute

ATTACKS = ("characters", "order", *PADDED)
"""The attacks of :mod:`latentguard.synthesis.splits` that need no replacements."""

_EXPLAINED = 500  # prompts, at most
_NAMED = 3  # words taken out of each
_DRAWS = 5  # of random words
_MOST_LISTED = 20

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Labels [n] and scores [n] by name, as :func:`latentguard.plots.plot_roc` takes them."""


# --- what is measured


@dataclass(frozen=True)
class FairnessPair:
    """A harmless prompt that names a group of people, and its twin that doesn't."""

    prompt: str
    neutral: str
    attribute: str
    group: str


@dataclass(frozen=True)
class Tagged:
    """A prompt with the tags that it is counted under, by the names of their columns."""

    prompt: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class LabelledFile:
    """A labelled file with, of each prompt, the concept it shows if the file knows it."""

    data: EvaluationSet
    unsafe: np.ndarray
    concepts: Sequence[str | None]

    def prompts(self) -> list[LabelledPrompt]:
        """The prompts as attacks take them."""
        labels = map(bool, self.unsafe)
        return [LabelledPrompt(*row) for row in zip(self.data.prompts, self.concepts, labels, strict=True)]


@dataclass(frozen=True)
class RobustnessData:
    """Everything that a guard is measured on; what is None or empty is left out of the report."""

    fairness: Sequence[FairnessPair]
    harmless_uses: Sequence[Tagged]
    artist_styles: Sequence[Tagged]
    evasions: Sequence[Tagged]
    labelled: LabelledFile | None = None
    explained: Sequence[str] = ()


def read_robustness_data(
    *,
    fairness: str | Path | None = None,
    harmless_uses: str | Path | None = None,
    artist_styles: str | Path | None = None,
    evasions: str | Path | None = None,
    labelled: str | Path | None = None,
    explain: Sequence[str | Path] = (),
    column: str = "prompt",
) -> RobustnessData:
    """Read the files; the first four are the shipped ones if left out.

    Raises:
        DataError: a file can't be read, or lacks a column: ``neutral``, ``attribute`` and ``group`` of the fairness
            pairs, ``word`` of the harmless uses, ``artist`` of the artists' styles, ``kind`` and ``category`` of the
            evasions, ``unsafe`` (with both labels) of the labelled file.
    """
    shipped = shipped_path("datasets")
    return RobustnessData(
        fairness=[
            FairnessPair(one.prompt, **one.tags)
            for one in _tagged(fairness or shipped / "fairness_pairs.csv", column, "neutral", "attribute", "group")
        ],
        harmless_uses=_tagged(harmless_uses or shipped / "harmless_uses.csv", column, "word"),
        artist_styles=_tagged(artist_styles or shipped / "artist_styles.csv", column, "artist"),
        evasions=_tagged(evasions or shipped / "evasions.csv", column, "kind", "category"),
        labelled=None if labelled is None else _labelled(Path(labelled), column),
        explained=[row.prompt for path in explain for row in read_prompts(path, column=column)],
    )


def _tagged(path: str | Path, column: str, *names: str) -> list[Tagged]:
    rows = []
    for row in read_prompts(path, column=column):
        tags = {name: row.fields.get(name) for name in names}
        for name, value in tags.items():
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{path}: row {row.number}, column {name}: expected a text")
        rows.append(Tagged(row.prompt, {name: str(value).strip() for name, value in tags.items()}))
    return rows


def _labelled(path: Path, column: str) -> LabelledFile:
    data = read_evaluation_set(path, column=column)
    if data.unsafe is None or data.unsafe.all() or not data.unsafe.any():
        raise DataError(f"{path}: a labelled file has a column 'unsafe', with both 0 and 1 in it")
    concepts = [row.fields.get("concept") for row in read_prompts(path, column=column)]
    known = [concept.strip() or None if isinstance(concept, str) else None for concept in concepts]
    return LabelledFile(data, data.unsafe, known)


# --- figures


@dataclass(frozen=True)
class Share:
    """How many of so many prompts are blocked."""

    prompts: int
    blocked: int
    share: float


@dataclass(frozen=True)
class Gap:
    """What naming a group changes: shares blocked with and without it, their gap in points, and lone decisions."""

    pairs: int
    blocked: float
    neutral_blocked: float
    gap: float
    only_prompt: int
    only_neutral: int


@dataclass(frozen=True)
class SplitPair:
    """A pair of which one side alone is blocked, with both scores."""

    pair: FairnessPair
    prompt_blocked: bool
    score: float
    neutral_score: float
    concept: str


@dataclass(frozen=True)
class Fairness:
    """The gap over all pairs and by attribute, and the pairs decided differently."""

    overall: Gap
    attributes: dict[str, Gap]
    split: list[SplitPair]

    @property
    def unfair(self) -> dict[str, float]:
        """The attributes whose gap is wider than wished, with it."""
        return {name: gap.gap for name, gap in self.attributes.items() if abs(gap.gap) > WANTED_GAP + 1e-9}


@dataclass(frozen=True)
class Shares:
    """The share blocked in all, and by each value of each tag; and by whose categories' concepts how many."""

    overall: Share
    by: dict[str, dict[str, Share]]
    drawn: dict[str, int]


@dataclass(frozen=True)
class AttackFigures:
    """A labelled file after an attack: ``changed`` of its unsafe prompts are other texts than before."""

    separation: Separation
    changed: int
    blocked_unsafe: float
    blocked_harmless: float


@dataclass(frozen=True)
class CategoryErrors:
    """The errors in one category.

    ``missed`` of ``unsafe`` prompts that the file puts there pass, ``false_alarms`` of ``harmless`` ones are blocked;
    ``drawn`` harmless prompts, wherever the file puts them, are blocked for a concept of the bank's category of that
    name.
    """

    unsafe: int
    missed: int
    harmless: int
    false_alarms: int
    drawn: int


@dataclass(frozen=True)
class Faithfulness:
    """Whether the words that explanations name are those that count.

    Attributes:
        prompts: the blocked prompts looked at.
        too_short: further ones, of too few words to take some out.
        named_drop: how much the score of the deciding concept falls without the three words named first, on average.
        random_drop: the same without three random words of the prompt.
        named_matters_more: the share of prompts where the named words take more away than random ones do on average.
        p_value: of the two-sided sign test of that: how likely so many or more would be if it were a matter of chance.
    """

    prompts: int
    too_short: int
    named_drop: float
    random_drop: float
    named_matters_more: float
    p_value: float


@dataclass(frozen=True)
class RobustnessReport:
    """Everything measured, at the guard's threshold; None where there was nothing to measure it on.

    ``explained`` prompts were given to test explanations on.
    """

    threshold: float
    concepts: int
    fairness: Fairness
    harmless_uses: Shares
    artist_styles: Shares
    evasions: Shares
    labelled_file: str | None = None
    labelled_concepts: int | None = None
    attacks: dict[str, AttackFigures] | None = None
    categories: dict[str, CategoryErrors] | None = None
    explained: int = 0
    faithfulness: Faithfulness | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return asdict(self)


def measure(
    guard: LatentGuard, data: RobustnessData, *, labelled_guard: LatentGuard | None = None, seed: int = 0
) -> tuple[RobustnessReport, Curves]:
    """The report, and the scores of the labelled file as it is and under each attack.

    ``labelled_guard`` is the guard for the labelled file, where that is about other concepts. Errors as
    :meth:`LatentGuard.check_batch`.
    """
    attacks: dict[str, AttackFigures] | None = None
    categories: dict[str, CategoryErrors] | None = None
    curves: Curves = {}
    labelled, on_labelled = data.labelled, labelled_guard or guard
    if labelled is not None:
        verdicts = on_labelled.check_batch(labelled.data.prompts)
        attacks, curves = attack_figures(on_labelled, labelled, verdicts, seed=seed)
        categories = category_errors(labelled, verdicts)
    report = RobustnessReport(
        threshold=guard.policy.threshold,
        concepts=len(guard.concepts),
        fairness=fairness(guard, data.fairness),
        harmless_uses=shares(guard, data.harmless_uses),
        artist_styles=shares(guard, data.artist_styles),
        evasions=shares(guard, data.evasions),
        labelled_file=None if labelled is None else labelled.data.path.stem,
        labelled_concepts=None if labelled is None else len(on_labelled.concepts),
        attacks=attacks,
        categories=categories,
        explained=len(data.explained),
        faithfulness=faithfulness(guard, data.explained, seed=seed) if data.explained else None,
    )
    return report, curves


def fairness(guard: LatentGuard, pairs: Sequence[FairnessPair]) -> Fairness:
    """What naming a group of people changes in the guard's decisions on harmless prompts."""
    named = guard.check_batch([pair.prompt for pair in pairs])
    neutral = guard.check_batch([pair.neutral for pair in pairs])
    decisions = [(one.blocked, other.blocked) for one, other in zip(named, neutral, strict=True)]
    by_attribute = _grouped(zip((pair.attribute for pair in pairs), decisions, strict=True))
    return Fairness(
        overall=_gap(decisions),
        attributes={attribute: _gap(of_attribute) for attribute, of_attribute in by_attribute.items()},
        split=[
            SplitPair(pair, one.blocked, one.score, other.score, (one if one.blocked else other).concept)
            for pair, one, other in zip(pairs, named, neutral, strict=True)
            if one.blocked != other.blocked
        ],
    )


def _gap(decisions: Sequence[tuple[bool, bool]]) -> Gap:
    blocked, neutral_blocked = (fmean(side) for side in zip(*decisions, strict=True))
    return Gap(
        pairs=len(decisions),
        blocked=blocked,
        neutral_blocked=neutral_blocked,
        gap=100 * (blocked - neutral_blocked),
        only_prompt=sum(one and not other for one, other in decisions),
        only_neutral=sum(other and not one for one, other in decisions),
    )


def shares(guard: LatentGuard, prompts: Sequence[Tagged]) -> Shares:
    """The share of prompts blocked: in all, by each of their tags, and by the category of the deciding concept."""
    verdicts = list(guard.stream(one.prompt for one in prompts))
    blocked = [verdict.blocked for verdict in verdicts]
    by = {}
    for name in prompts[0].tags:
        by_value = _grouped(zip((one.tags[name] for one in prompts), blocked, strict=True))
        by[name] = {value: _share(decisions) for value, decisions in by_value.items()}
    return Shares(_share(blocked), by, dict(Counter(str(one.category) for one in verdicts if one.blocked)))


def _share(decisions: Sequence[bool]) -> Share:
    return Share(len(decisions), sum(decisions), fmean(decisions))


def attack_figures(
    guard: LatentGuard, labelled: LabelledFile, verdicts: Sequence[Verdict], *, seed: int = 0
) -> tuple[dict[str, AttackFigures], Curves]:
    """The figures of a labelled file as it is and under each attack, and the scores behind them.

    ``verdicts`` are the guard's on the file as it is. Attackers rewrite what would be blocked, so harmless prompts stay
    as they are, except where harmless text is put around or into a prompt: that is done to both sides, lest their
    length give the unsafe ones away.
    """
    unsafe, prompts = labelled.unsafe, labelled.prompts()
    figures = {"as it is": _attack_figures(unsafe, verdicts, 0)}
    curves = {"as it is": (unsafe, _scores(verdicts))}
    for attack in ATTACKS:
        chosen = [i for i, one in enumerate(prompts) if one.unsafe or attack in PADDED]
        rewritten, _ = attack_prompts([prompts[i] for i in chosen], attack, seed=seed)
        after, changed = list(verdicts), 0
        judged = guard.stream(one.prompt for one in rewritten)
        for i, one, verdict in zip(chosen, rewritten, judged, strict=True):
            after[i] = verdict
            changed += one.unsafe and one.prompt != prompts[i].prompt
        figures[attack] = _attack_figures(unsafe, after, changed)
        curves[attack] = (unsafe, _scores(after))
    return figures, curves


def _attack_figures(unsafe: np.ndarray, verdicts: Sequence[Verdict], changed: int) -> AttackFigures:
    blocked = np.array([verdict.blocked for verdict in verdicts])
    return AttackFigures(
        separation=separation(_scores(verdicts), unsafe),
        changed=changed,
        blocked_unsafe=float(blocked[unsafe].mean()),
        blocked_harmless=float(blocked[~unsafe].mean()),
    )


def category_errors(labelled: LabelledFile, verdicts: Sequence[Verdict]) -> dict[str, CategoryErrors] | None:
    """False negatives and false positives by category, of verdicts on a labelled file; None if it has no categories."""
    if labelled.data.categories is None:
        return None
    counts: dict[str, dict[str, int]] = {}

    def count(category: str, what: str) -> None:
        of_category = counts.setdefault(category, dict.fromkeys(CategoryErrors.__dataclass_fields__, 0))
        of_category[what] += 1

    for categories, unsafe, verdict in zip(labelled.data.categories, labelled.unsafe, verdicts, strict=True):
        for category in categories:
            count(category, "unsafe" if unsafe else "harmless")
            if verdict.blocked != unsafe:
                count(category, "missed" if unsafe else "false_alarms")
        if verdict.blocked and not unsafe and verdict.category is not None:
            count(verdict.category, "drawn")
    return {category: CategoryErrors(**of_category) for category, of_category in sorted(counts.items())}


def faithfulness(guard: LatentGuard, prompts: Sequence[str], *, seed: int = 0) -> Faithfulness | None:
    """Whether explanations name the words that count, on up to 500 blocked prompts drawn from those given.

    From each prompt the three words that :meth:`Explanation.top` names are taken out, and in other copies three random
    ones, in five draws; every copy is scored anew for the concept that had decided. None if no prompt can be used.
    """
    rng = random.Random(seed)
    distinct = list(dict.fromkeys(prompts))
    blocked = (verdict for verdict in guard.stream(rng.sample(distinct, len(distinct))) if verdict.blocked)
    drops: list[tuple[float, float]] = []
    too_short = 0
    for verdict in islice(blocked, _EXPLAINED):
        explanation = verdict.explain()
        words = explanation.tokens
        if len(words) <= _NAMED:
            too_short += 1
            continue
        removals = [explanation.top(_NAMED), *(rng.sample(words, _NAMED) for _ in range(_DRAWS))]
        texts = [_without(explanation.text, removed) for removed in removals]
        if not all(map(normalize, texts)):
            too_short += 1
            continue
        after = [dict(other.scores(None))[verdict.concept] for other in guard.check_batch(texts)]
        drops.append((verdict.score - after[0], verdict.score - fmean(after[1:])))
    if not drops:
        return None
    more = sum(named > drawn for named, drawn in drops)
    return Faithfulness(
        prompts=len(drops),
        too_short=too_short,
        named_drop=fmean(named for named, _ in drops),
        random_drop=fmean(drawn for _, drawn in drops),
        named_matters_more=more / len(drops),
        p_value=_sign_test(more, sum(named < drawn for named, drawn in drops)),
    )


def _without(text: str, words: Iterable[TokenContribution]) -> str:
    """The text without some of its words, by their places in it."""
    for word in sorted(words, key=lambda word: -word.start):
        text = text[: word.start] + text[word.end :]
    return " ".join(text.split())


def _sign_test(more: int, less: int) -> float:
    """The exact two-sided p value of ``more`` against ``less``; ties are left out."""
    both = more + less
    tail = sum(math.comb(both, hits) for hits in range(min(more, less) + 1))
    return min(1.0, 2 * tail / (1 << both))


def _scores(verdicts: Sequence[Verdict]) -> np.ndarray:
    return np.array([verdict.score for verdict in verdicts])


_Item = TypeVar("_Item")


def _grouped(rows: Iterable[tuple[str, _Item]]) -> dict[str, list[_Item]]:
    """The items by their names, in order of first appearance."""
    groups: dict[str, list[_Item]] = {}
    for name, item in rows:
        groups.setdefault(name, []).append(item)
    return groups


# --- for people to read


def markdown(report: RobustnessReport) -> str:
    """The report as Markdown: a heading and a table for each thing measured."""
    parts = [
        f"Threshold {report.threshold:.4g}, {report.concepts:,} concepts.\n",
        _fairness_markdown(report.fairness),
        _harmless_markdown(report.harmless_uses),
        _styles_markdown(report.artist_styles),
        _evasions_markdown(report.evasions),
        _errors_markdown(report),
    ]
    if report.attacks is not None:
        parts.append(_attacks_markdown(report, report.attacks))
    if report.categories is not None:
        parts.append(_categories_markdown(report, report.categories))
    if report.explained:
        parts.append("## Faithfulness of explanations\n\n" + _faithfulness_markdown(report))
    return "\n".join(parts)


def _fairness_markdown(found: Fairness) -> str:
    head = (
        *("attribute", "pairs", "naming a group: blocked", "neutral: blocked"),
        *("gap in points", "only the first", "only the neutral"),
    )
    rows = [
        (
            *(name, gap.pairs, f"{gap.blocked:.1%}", f"{gap.neutral_blocked:.1%}"),
            *(f"{gap.gap:+.1f}", gap.only_prompt, gap.only_neutral),
        )
        for name, gap in (*found.attributes.items(), ("all", found.overall))
    ]
    wide = ", ".join(f"{name} {gap:+.1f}" for name, gap in found.unfair.items())
    text = f"## Fairness\n\n{_table(head, rows)}\n"
    text += f"A gap within {WANTED_GAP:g} points for every attribute: {f'no ({wide})' if wide else 'yes'}.\n"
    if found.split:
        text += "\nDecided differently:\n\n"
    for one in found.split:
        sides = [(one.pair.prompt, one.score), (one.pair.neutral, one.neutral_score)]
        (blocked, high), (allowed, low) = sides if one.prompt_blocked else reversed(sides)
        text += (
            f"- {_printable(one.pair.attribute)}, {_printable(one.pair.group)}: blocked for "
            f'{_printable(one.concept)}, {high:.2f}: "{_printable(blocked)}"; '
            f'allowed, {low:.2f}: "{_printable(allowed)}"\n'
        )
    return text


def _harmless_markdown(found: Shares) -> str:
    words = sorted(found.by["word"].items(), key=lambda item: (-item[1].blocked, -item[1].share, item[0]))
    most = [(name, share) for name, share in words if share.blocked][:_MOST_LISTED]
    text = f"## Harmless uses of words of harm\n\n{_blocked_of(found.overall)} blocked, each a false alarm.\n"
    return text + (f"\nThe words blocked most:\n\n{_shares_table('word', 'blocked', most)}" if most else "")


def _styles_markdown(found: Shares) -> str:
    artists = [(name, share) for name, share in found.by["artist"].items() if share.blocked]
    text = f"## Artists' styles\n\n{_blocked_of(found.overall)} blocked, each a false alarm.\n"
    return text + (f"\n{_shares_table('artist', 'blocked', artists)}" if artists else "")


def _errors_markdown(report: RobustnessReport) -> str:
    """Misses and false alarms by category, of all files in which either can happen."""
    harmless = (report.harmless_uses, report.artist_styles)
    prompts = sum(found.overall.prompts for found in harmless)
    missed = report.evasions.by["category"]
    drawn = sum((Counter(found.drawn) for found in harmless), Counter())
    rows = []
    for name in dict.fromkeys([*missed, *sorted(drawn)]):
        share = missed.get(name)
        passed = "" if share is None else _part(share.prompts - share.blocked, share.prompts)
        rows.append((name, "" if share is None else share.prompts, passed, _part(drawn[name], prompts)))
    head = ("category", "evasions", "missed", f"false alarms its concepts draw among {prompts:,} harmless prompts")
    return f"## Errors by category\n\n{_table(head, rows)}"


def _evasions_markdown(found: Shares) -> str:
    text = f"## Evasions\n\n{_blocked_of(found.overall)} caught.\n"
    for name, by_value in found.by.items():
        text += f"\n{_shares_table(name, 'caught', by_value.items())}"
    return text


def _attacks_markdown(report: RobustnessReport, attacks: Mapping[str, AttackFigures]) -> str:
    head = ("attack", "changed", "AUC", "TPR at 1% FPR", "unsafe blocked", "harmless blocked")
    rows = [
        (
            *(name, f"{one.changed:,}", f"{one.separation.auc:.3f}", f"{one.separation.tpr_at_1_fpr:.3f}"),
            *(f"{one.blocked_unsafe:.1%}", f"{one.blocked_harmless:.1%}"),
        )
        for name, one in attacks.items()
    ]
    against = f"{_printable(str(report.labelled_file))}, against {report.labelled_concepts:,} concepts"
    return f"## Attacks on {against}\n\n{_table(head, rows)}"


def _categories_markdown(report: RobustnessReport, categories: Mapping[str, CategoryErrors]) -> str:
    head = ("category", "unsafe", "missed", "harmless", "false alarms", "false alarms drawn by its concepts")
    rows = [
        (
            name,
            one.unsafe,
            _part(one.missed, one.unsafe),
            one.harmless,
            _part(one.false_alarms, one.harmless),
            one.drawn,
        )
        for name, one in categories.items()
    ]
    return f"## Errors by category in {_printable(str(report.labelled_file))}\n\n{_table(head, rows)}"


def _faithfulness_markdown(report: RobustnessReport) -> str:
    found = report.faithfulness
    if found is None:
        return f"None of the {report.explained:,} prompts given is blocked and long enough to take words out.\n"
    head = ("blocked prompts", "drop without the named words", "drop without random words", "named matter more", "p")
    row = (
        *(f"{found.prompts:,}", f"{found.named_drop:.2f}", f"{found.random_drop:.2f}"),
        *(f"{found.named_matters_more:.1%}", f"{found.p_value:.2g}"),
    )
    text = _table(head, [row])
    return text + (f"\n{found.too_short:,} more were too short to take words out.\n" if found.too_short else "")


def _shares_table(name: str, verb: str, rows: Iterable[tuple[str, Share]]) -> str:
    cells = [(value, share.prompts, share.blocked, f"{share.share:.1%}") for value, share in rows]
    return _table((name, "prompts", verb, "share"), cells)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(_printable(str(cell)).replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _printable(text: str) -> str:
    """What a stranger wrote must not steer the reader's terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _blocked_of(share: Share) -> str:
    return f"{share.blocked:,} of {share.prompts:,} prompts ({share.share:.1%})"


def _part(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})" if of else "0"


def draw(report: RobustnessReport, curves: Curves, folder: Path) -> list[Path]:
    """Draw the fairness gaps, the evasions caught and, of a labelled file, the ROC under each attack, as PNG into
    ``folder``; returns the files."""
    drawn = [folder / "fairness.png", folder / "evasions.png"]
    gaps = report.fairness.attributes
    plot_shares(
        "Harmless prompts blocked, with a group of people named and without",
        {
            "naming a group": {name: gap.blocked for name, gap in gaps.items()},
            "neutral": {name: gap.neutral_blocked for name, gap in gaps.items()},
        },
        drawn[0],
    )
    kinds = {name: share.share for name, share in report.evasions.by["kind"].items()}
    plot_shares("Evasions caught, by kind", {"caught": kinds}, drawn[1])
    if curves:
        drawn.append(folder / "attacks_roc.png")
        plot_roc(curves, drawn[-1])
    return drawn
