"""A blind guard beside the plain one on a labelled file: how well each separates, and how often they decide alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from latentguard.evaluation import EvaluationSet, Separation, separation
from latentguard.guard import LatentGuard
from latentguard.integrations.passkey.client import BlindClient
from latentguard.integrations.passkey.guard import BlindGuard
from latentguard.verdict import Verdict

_AT_A_TIME = 512


@dataclass(frozen=True)
class Comparison:
    """The figures of one file.

    Attributes:
        plain, blind: how the scores of either guard separate; None for a file without unsafe and harmless prompts.
        alike: the share of the prompts on which both decide the same.
        furthest: the largest difference of a prompt's two scores.
    """

    file: str
    prompts: int
    plain: Separation | None
    blind: Separation | None
    alike: float
    furthest: float


def compare(plain: LatentGuard, blind: BlindGuard, client: BlindClient, data: EvaluationSet) -> Comparison:
    """Scores the prompts of a file with both guards, those of the blind one encrypted as a client sends them.

    Raises:
        PromptError, ConceptError, PolicyError, EncoderError: as :meth:`latentguard.LatentGuard.check_batch`.
    """
    theirs: list[Verdict] = []
    ours: list[Verdict] = []
    for start in tqdm(range(0, len(data.prompts), _AT_A_TIME), desc=data.path.stem, unit="batch", disable=None):
        prompts = data.prompts[start : start + _AT_A_TIME]
        theirs += plain.check_batch(prompts)
        ours += blind.check_batch(client.encrypt(prompt).as_json() for prompt in prompts)
    scores = [np.array([verdict.score for verdict in verdicts]) for verdicts in (theirs, ours)]
    unsafe = data.unsafe
    both = unsafe is not None and bool(unsafe.any() and not unsafe.all())
    separations = [separation(of_guard, unsafe) if unsafe is not None and both else None for of_guard in scores]
    return Comparison(
        file=data.path.stem,
        prompts=len(data.prompts),
        plain=separations[0],
        blind=separations[1],
        alike=float(np.mean([a.decision == b.decision for a, b in zip(theirs, ours, strict=True)])),
        furthest=float(np.abs(scores[0] - scores[1]).max()),
    )


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table, a row per file."""
    head = "| file | prompts | AUC, plain | AUC, blind | difference | decided alike | largest difference of scores |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for one in comparisons:
        figures = ["", "", ""]
        if one.plain is not None and one.blind is not None:
            difference = one.blind.auc - one.plain.auc
            figures = [f"{one.plain.auc:.4f}", f"{one.blind.auc:.4f}", f"{difference:+.4f}"]
        lines.append(f"| {one.file} | {one.prompts} | {' | '.join(figures)} | {one.alike:.1%} | {one.furthest:.3g} |")
    return "\n".join(lines) + "\n"
