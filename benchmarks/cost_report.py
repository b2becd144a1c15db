"""The table of costs as Markdown: ours beside the published calculation, batch by batch and bank by bank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.cost import ENCODER, LOADED, MEMORY, PARTS, TIME
from benchmarks.report import Figure, grid, number
from latentguard.errors import DataError
from latentguard.files import atomic_path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_NOT_MEASURED = "—"
_Key = tuple[str, int | None, int | None]


def tables(figures: Sequence[Figure]) -> str:
    """Time, memory and the parts of a call, as far as they are among the figures, each with a line of its own above."""
    found = {(figure.what, figure.prompts, figure.concepts): figure for figure in figures}
    parts = []
    if any(figure.what == TIME for figure in figures):
        parts += ["Milliseconds of a call, of them in the encoder, and of a prompt:", _times(found)]
    if any(figure.what == MEMORY for figure in figures):
        parts += ["MB beside the libraries, at most:", _memory(found)]
    if any(figure.what in PARTS for figure in figures):
        parts += ["Milliseconds of a call's steps, each by itself:", _parts(found)]
    return "\n\n".join(parts)


def rewrite(document: Path, circumstances: str, figures: Sequence[Figure]) -> None:
    """Puts the tables between the two marks of a Markdown file; DataError if it can't be read or lacks the marks."""
    before, after = around_tables(document)
    text = f"{before}{BEGIN}\n{circumstances}.\n\n{tables(figures)}\n{END}{after}"
    with atomic_path(document) as temporary:
        temporary.write_text(text, encoding="utf-8")


def around_tables(document: Path) -> tuple[str, str]:
    """What stands before and after the two marks; errors as :func:`rewrite`."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{document}: can't be read") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{document}: has no lines {BEGIN} and {END}, one after the other")
    return before, after


def _times(found: dict[_Key, Figure]) -> str:
    header = ("concepts", "prompts", "call", "encoder", "prompt", "published call", "encoder", "prompt", "ratio")
    rows = []
    for concepts, size in _cells(found, TIME):
        call, encoder = found[TIME, size, concepts], found[ENCODER, size, concepts]
        rows.append(
            (
                f"{concepts:,}",
                f"{size:,}",
                *_of_call(call.value, encoder.value, size),
                *_of_call(call.reference, encoder.reference, size),
                _NOT_MEASURED if call.ratio is None else f"{number(call.ratio)}×",
            )
        )
    return grid(header, rows, numbers=range(len(header)))


def _of_call(whole: float | None, encoder: float | None, size: int) -> tuple[str, str, str]:
    if whole is None or encoder is None:
        return (_NOT_MEASURED,) * 3
    return number(whole), number(encoder), number(whole / size)


def _memory(found: dict[_Key, Figure]) -> str:
    header = ("concepts", "prompts", "loaded", "and a call", "published: loaded", "and a call", "ratio")
    rows = []
    for concepts, size in _cells(found, MEMORY):
        loaded, called = found[LOADED, None, concepts], found[MEMORY, size, concepts]
        cells = (loaded.value, called.value, loaded.reference, called.reference)
        ratio = _NOT_MEASURED if called.ratio is None else f"{number(called.ratio)}×"
        rows.append((f"{concepts:,}", f"{size:,}", *(_NOT_MEASURED if x is None else number(x) for x in cells), ratio))
    return grid(header, rows, numbers=range(len(header)))


def _parts(found: dict[_Key, Figure]) -> str:
    header = ("concepts", "prompts", *PARTS)
    rows = [
        (f"{concepts:,}", f"{size:,}", *(number(found[part, size, concepts].value) for part in PARTS))
        for concepts, size in _cells(found, PARTS[0])
    ]
    return grid(header, rows, numbers=range(len(header)))


def _cells(found: Iterable[_Key], what: str) -> list[tuple[int, int]]:
    """The numbers of concepts and of prompts for which there is such a figure, rising."""
    return sorted(
        (concepts, size) for name, size, concepts in found if name == what and size is not None and concepts is not None
    )
