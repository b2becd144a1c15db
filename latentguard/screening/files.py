"""Screening into one file, or onto the terminal: rows in, verdict rows out, streamed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from latentguard.errors import DataError, PromptError
from latentguard.normalize import normalize
from latentguard.records import PromptFile, PromptRow, open_writer
from latentguard.screening.inputs import find_inputs
from latentguard.screening.layout import Layout, layout_of
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.progress import Progress
from latentguard.screening.screener import Outcome, Screener
from latentguard.screening.summary import ScreeningSummary

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard

_ROWS_AT_A_TIME = 512
_NARROWEST_PROMPT = 24


def screen_file(
    guard: LatentGuard,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    column: str = "prompt",
    options: ScreeningOptions | None = None,
) -> ScreeningSummary:
    """Screen the prompts of ``inputs`` and write ``prompt, score, concept, blocked`` to the file ``output``.

    There is a row per input row, in the order of the inputs, unless the options say otherwise. ``output`` is written
    under a temporary name and then renamed: it is whole or, after an error or an interruption, what it was before.

    Args:
        inputs: a file, a folder or a pattern, or several; see :func:`latentguard.screening.inputs.find_inputs`.
        column: the field that holds the prompts, where no ``options`` are given.

    Raises:
        DataError: a file can't be read or written, or a row can't be used; the message names file, row and field.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    output = Path(output)
    options = options or ScreeningOptions(column=column)
    paths = find_inputs([inputs] if isinstance(inputs, (str, Path)) else inputs)
    for path in paths:
        if output.exists() and output.samefile(path):
            raise DataError(f"{output}: is the input itself; give another name for the output")
    parquet = output.suffix.lower() == ".parquet"
    layout = layout_of(paths, options, flags=guard.policy.flag_margin > 0, parquet=parquet)
    summary = ScreeningSummary()
    with open_writer(output, layout.columns) as writer:
        for path, row, outcome in _screened(guard, paths, options, layout, summary, progress=True):
            if layout.selects(outcome):
                values = layout.decided(path, row.number, outcome)
                writer.write({"prompt": row.prompt or None} | values | layout.carried(path, row))
    return summary


def print_verdicts(
    guard: LatentGuard,
    inputs: str | Path | Sequence[str | Path],
    stream: TextIO | None = None,
    *,
    column: str = "prompt",
    options: ScreeningOptions | None = None,
) -> ScreeningSummary:
    """Screen the prompts of ``inputs`` and print a line for each, to standard output unless another stream is given.

    Arguments and errors as :func:`screen_file`.
    """
    stream = sys.stdout if stream is None else stream
    options = options or ScreeningOptions(column=column)
    paths = find_inputs([inputs] if isinstance(inputs, (str, Path)) else inputs)
    layout = layout_of(paths, options, flags=guard.policy.flag_margin > 0, parquet=False)
    width = shutil.get_terminal_size((120, 24)).columns
    colour = stream.isatty()
    room = max(_NARROWEST_PROMPT, width - 44)
    summary = ScreeningSummary()
    # On a terminal the lines show the progress, and a bar would run into them.
    screened = _screened(guard, paths, options, layout, summary, progress=not colour)
    for number, (_, row, outcome) in enumerate(screened):
        if number == 0:  # a file that can't be screened gets its error alone
            print(f"{'':7} {'score':>6}  {'nearest concept':<26}  prompt", file=stream)
        if layout.selects(outcome):
            print(_line(row.prompt, outcome, room, colour), file=stream)
    print(f"\n{summary} (threshold {guard.policy.threshold:.2f})", file=stream)
    return summary


class _Screened(NamedTuple):
    path: Path
    row: PromptRow
    outcome: Outcome


def _screened(
    guard: LatentGuard,
    paths: Sequence[Path],
    options: ScreeningOptions,
    layout: Layout,
    summary: ScreeningSummary,
    *,
    progress: bool,
) -> Iterator[_Screened]:
    screener = Screener(guard, options)
    with closing(Progress(sum(path.stat().st_size for path in paths), shown=progress)) as bar:
        for path in paths:
            file, read = PromptFile(path, options.column, fields=layout.fields(), faulty=screener.blocks_unusable), 0
            for rows in chunks(file, _ROWS_AT_A_TIME):
                outcomes, numbers = screened_rows(screener, path, rows)
                summary.add(numbers)
                bar.advance(len(rows), file.bytes_read - read)
                read = file.bytes_read
                yield from (_Screened(path, row, outcome) for row, outcome in zip(rows, outcomes, strict=True))


def chunks(rows: Iterable[PromptRow], size: int) -> Iterator[list[PromptRow]]:
    """The rows, so many at a time."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def screened_rows(screener: Screener, path: Path, rows: Sequence[PromptRow]) -> tuple[list[Outcome], ScreeningSummary]:
    """The outcomes of rows of a file and their numbers. Rows with a fault are blocked.

    Raises:
        DataError: a prompt can't be scored, and the options don't say to block it; the message names the file and the
            row.
        LatentGuardError: as :meth:`LatentGuard.check`.
    """
    prompts = [row.prompt for row in rows if row.fault is None]
    try:
        scored, summary = screener.counted(prompts)
    except PromptError as error:
        unseen = {row.number: _unseen(row) for row in rows if row.fault is None and not normalize(row.prompt)}
        if not unseen:
            raise
        if not screener.blocks_unusable:
            raise DataError(f"{path}: {next(iter(unseen.values()))}") from error
        return screened_rows(screener, path, [replace(row, fault=unseen.get(row.number, row.fault)) for row in rows])
    following = iter(scored)
    outcomes = [next(following) if row.fault is None else Outcome.unusable(row.fault) for row in rows]
    for outcome in outcomes:
        if outcome.fault is not None:
            summary.count(outcome.decision, outcome.category)
    return outcomes, summary


def _unseen(row: PromptRow) -> str:
    return f"prompt {row.number}: empty: it has nothing that can be seen"


def _line(prompt: str, outcome: Outcome, room: int, colour: bool) -> str:
    word = {"allow": "allowed", "flag": "flagged", "block": "BLOCKED"}[outcome.decision]
    if colour:
        code = {"allow": "32", "flag": "33", "block": "31;1"}[outcome.decision]
        word = f"\033[{code}m{word}\033[0m"
    score = "" if outcome.score is None else f"{outcome.score:.2f}"
    concept = outcome.concept or "(unusable)"
    # What a stranger wrote must not steer the reader's terminal.
    shown = "".join(c if c.isprintable() else " " for c in outcome.fault or prompt)
    return f"{word} {score:>6}  {_shortened(concept, 26):<26}  {_shortened(shown, room)}"


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
