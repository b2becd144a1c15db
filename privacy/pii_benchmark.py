"""How well personal data is found, and how fast: `python -m privacy.pii_benchmark`.

Precision and recall per type on the made-up set of `privacy.pii.examples`. A labelled span counts as found if a finding
of its type covers all of it, and as removed if findings of any types do; a finding is right if it overlaps a span of
its type. Findings in clean prompts are wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from privacy.errors import PrivacyError
from privacy.pii.examples import LabelledPrompt, clean_prompts, labelled_prompts
from privacy.pii.finder import Finding, PiiFinder

# A prompt's time is the shortest of these, since a busy machine adds what isn't ours.
_RUNS = 3


@dataclass
class Measured:
    """Counts per type over a set of prompts, and the seconds that each prompt took."""

    labelled: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    in_clean: Counter[str] = field(default_factory=Counter)
    clean_touched: int = 0
    seconds: list[float] = field(default_factory=list)

    def precision(self, kind: str) -> float:
        """The share of findings that are right; 1 without any."""
        return self.right[kind] / self.findings[kind] if self.findings[kind] else 1.0

    def recall(self, kind: str) -> float:
        """The share of labelled spans that are found whole."""
        return self.found[kind] / self.labelled[kind] if self.labelled[kind] else 1.0


def measure(finder: PiiFinder, labelled: Sequence[LabelledPrompt], clean: Sequence[str]) -> Measured:
    """What `finder` finds in both sets; types that it doesn't look for aren't counted."""
    measured = Measured()
    # Models and regular expressions are made ready at first use.
    for prompt in labelled[:8]:
        finder.find(prompt.text)
    for prompt in tqdm(labelled, desc="labelled", disable=None, leave=False):
        _count(measured, _timed(finder, prompt.text, measured.seconds), prompt, finder.types)
    for text in tqdm(clean, desc="clean", disable=None, leave=False):
        found = _timed(finder, text, measured.seconds)
        measured.findings.update(each.type for each in found)
        measured.in_clean.update(each.type for each in found)
        measured.clean_touched += bool(found)
    return measured


def _count(measured: Measured, found: Sequence[Finding], prompt: LabelledPrompt, types: Sequence[str]) -> None:
    for span in prompt.spans:
        if span.type in types:
            measured.labelled[span.type] += 1
            measured.found[span.type] += _covered(span, [each for each in found if each.type == span.type], prompt.text)
            measured.removed[span.type] += _covered(span, found, prompt.text)
    for each in found:
        measured.findings[each.type] += 1
        measured.right[each.type] += any(
            each.type == span.type and each.start < span.end and span.start < each.end for span in prompt.spans
        )


def _covered(span: Finding, found: Sequence[Finding], text: str) -> bool:
    inside = {place for each in found for place in range(each.start, each.end)}
    return all(place in inside for place in range(span.start, span.end) if text[place].isalnum())


def _timed(finder: PiiFinder, text: str, seconds: list[float]) -> list[Finding]:
    took = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        found = finder.find(text)
        took.append(time.perf_counter() - start)
    seconds.append(min(took))
    return found


def report(measured: Measured, types: Sequence[str]) -> str:
    """Precision and recall per type as a table in text."""
    lines = [f"{'type':<14} {'spans':>6} {'precision':>10} {'recall':>8} {'removed':>8} {'in clean':>9}"]
    for kind in types:
        removed = measured.removed[kind] / measured.labelled[kind] if measured.labelled[kind] else 1.0
        lines.append(
            f"{kind:<14} {measured.labelled[kind]:>6} {measured.precision(kind):>10.3f} {measured.recall(kind):>8.3f} "
            f"{removed:>8.3f} {measured.in_clean[kind]:>9}"
        )
    return "\n".join(lines)


def percentile(seconds: Sequence[float], share: float) -> float:
    """The milliseconds that `share` of the prompts stay within."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, with names where a spaCy model is installed, and without."""
    parser = argparse.ArgumentParser(
        prog="python -m privacy.pii_benchmark", description="measures how well and how fast personal data is found"
    )
    parser.add_argument("--labelled", type=int, default=560, help="made-up prompts with personal data (default: 560)")
    parser.add_argument("--clean", type=int, default=500, help="made-up prompts without (default: 500)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a .txt of prompts, one a line: what's found in it"
    )
    chosen = parser.parse_args(arguments)
    try:
        finders = [PiiFinder(names=None), PiiFinder(names=False)]
    except PrivacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    labelled, clean = labelled_prompts(chosen.labelled, chosen.seed), clean_prompts(chosen.clean, chosen.seed)
    for finder, title in zip(finders, ("with names", "without names"), strict=True):
        measured = measure(finder, labelled, clean)
        print(f"{title}: {len(labelled)} labelled prompts, {len(clean)} clean ones ({measured.clean_touched} touched)")
        print(report(measured, finder.types))
        halves, most = percentile(measured.seconds, 0.5), percentile(measured.seconds, 0.95)
        print(f"ms per prompt, best of {_RUNS} runs: {halves:.1f} at the 50th percentile, {most:.1f} at the 95th\n")
    if chosen.prompts:
        print(_touched(finders[0], chosen.prompts))
    return 0


def _touched(finder: PiiFinder, path: Path) -> str:
    prompts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = [{each.type for each in finder.find(prompt)} for prompt in tqdm(prompts, disable=None, leave=False)]
    kinds = Counter(kind for each in found for kind in each)
    listed = ", ".join(f"{kind} in {number}" for kind, number in kinds.most_common()) or "nothing"
    return f"{path.name}: {sum(map(bool, found))} of {len(prompts)} prompts touched: {listed}"


if __name__ == "__main__":
    raise SystemExit(main())
