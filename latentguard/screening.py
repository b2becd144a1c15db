"""Screening a file of prompts: rows in, verdict rows out, streamed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from latentguard.errors import DataError
from latentguard.guard import LatentGuard
from latentguard.records import count_prompts, open_writer, read_prompts
from latentguard.verdict import Verdict

_COLUMNS = {"prompt": str, "score": float, "concept": str, "blocked": bool}
_NARROWEST_PROMPT = 24


@dataclass
class ScreeningSummary:
    """What came of a file: how many prompts, how many blocked, and these by category."""

    prompts: int = 0
    blocked: int = 0
    flagged: int = 0
    by_category: dict[str, int] = field(default_factory=dict)

    def count(self, verdict: Verdict) -> None:
        """Take one more verdict into account."""
        self.prompts += 1
        self.flagged += verdict.decision == "flag"
        if verdict.blocked:
            self.blocked += 1
            category = verdict.category or "no category"
            self.by_category[category] = self.by_category.get(category, 0) + 1

    def __str__(self) -> str:
        text = f"{self.prompts:,} prompts: {self.blocked:,} blocked"
        if self.by_category:
            ordered = sorted(self.by_category.items(), key=lambda item: (-item[1], item[0]))
            text += " (" + ", ".join(f"{category} {count:,}" for category, count in ordered) + ")"
        if self.flagged:
            text += f", {self.flagged:,} flagged"
        return text + f", {self.prompts - self.blocked - self.flagged:,} allowed"


def screen_file(
    guard: LatentGuard, path: str | Path, output: str | Path, *, column: str = "prompt"
) -> ScreeningSummary:
    """Screen the prompts of ``path`` and write ``prompt, score, concept, blocked`` to ``output``, a row per input row.

    The rows are in the order of the input. ``output`` is written under a temporary name and then renamed: it is whole
    or, after an error or an interruption, what it was before.

    Raises:
        DataError: a file can't be read or written, or a row can't be used; the message names file, row and field.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    path, output = Path(path), Path(output)
    if output.exists() and path.exists() and output.samefile(path):
        raise DataError(f"{output}: is the input itself; give another name for the output")
    summary = ScreeningSummary()
    with open_writer(output, _COLUMNS) as writer:
        for verdict in _verdicts(guard, path, column, progress=True):
            summary.count(verdict)
            writer.write(
                {
                    "prompt": verdict.prompt,
                    "score": verdict.score,
                    "concept": verdict.concept,
                    "blocked": verdict.blocked,
                }
            )
    return summary


def print_verdicts(
    guard: LatentGuard, path: str | Path, stream: TextIO | None = None, *, column: str = "prompt"
) -> ScreeningSummary:
    """Screen the prompts of ``path`` and print a line for each, to standard output unless another stream is given.

    Errors as :func:`screen_file`.
    """
    stream = sys.stdout if stream is None else stream
    width = shutil.get_terminal_size((120, 24)).columns
    colour = stream.isatty()
    room = max(_NARROWEST_PROMPT, width - 44)
    summary = ScreeningSummary()
    # On a terminal the lines show the progress, and a bar would run into them.
    for number, verdict in enumerate(_verdicts(guard, Path(path), column, progress=not colour)):
        if number == 0:  # a file that can't be screened gets its error alone
            print(f"{'':7} {'score':>6}  {'nearest concept':<26}  prompt", file=stream)
        summary.count(verdict)
        print(_line(verdict, room, colour), file=stream)
    print(f"\n{summary} (threshold {guard.policy.threshold:.2f})", file=stream)
    return summary


def _verdicts(guard: LatentGuard, path: Path, column: str, *, progress: bool) -> Iterator[Verdict]:
    prompts = (row.prompt for row in read_prompts(path, column=column))
    hidden = None if progress else True  # None: shown where standard error is a terminal
    bar = tqdm(total=count_prompts(path), desc="screening", unit="prompt", disable=hidden, leave=False)
    with bar:
        for verdict in guard.stream(prompts):
            bar.update()
            yield verdict


def _line(verdict: Verdict, room: int, colour: bool) -> str:
    word = {"allow": "allowed", "flag": "flagged", "block": "BLOCKED"}[verdict.decision]
    if colour:
        code = {"allow": "32", "flag": "33", "block": "31;1"}[verdict.decision]
        word = f"\033[{code}m{word}\033[0m"
    # What a stranger wrote must not steer the reader's terminal.
    prompt = "".join(c if c.isprintable() else " " for c in verdict.prompt)
    return f"{word} {verdict.score:6.2f}  {_shortened(verdict.concept, 26):<26}  {_shortened(prompt, room)}"


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
