"""What a benchmark gives back, and the table that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["ms", "MB", "prompts/s"]


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        benchmark: the benchmark it belongs to.
        what: what was measured.
        value: the median, in ``unit``.
        unit: "ms" and "MB" are better when smaller, "prompts/s" when larger.
        reference: the reference's median in the same unit, measured in the same process.
        p99: the 99th percentile, where single calls were timed.
        wanted_ratio: how many times better than the reference it is meant to be at least.
        wanted_value: the most that ``value`` is meant to be.
    """

    benchmark: str
    what: str
    value: float
    unit: Unit
    reference: float
    p99: float | None = None
    wanted_ratio: float | None = None
    wanted_value: float | None = None

    @property
    def ratio(self) -> float:
        """How many times better than the reference."""
        return self.value / self.reference if self.unit == "prompts/s" else self.reference / self.value

    @property
    def missed(self) -> bool:
        """Whether it falls short of what is wanted."""
        too_slow = self.wanted_ratio is not None and self.ratio < self.wanted_ratio
        return too_slow or (self.wanted_value is not None and self.value > self.wanted_value)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**vars(self), "ratio": self.ratio, "missed": self.missed}


_HEADER = ("", "median", "p99", "reference", "ratio", "wanted", "")


def table(figures: Sequence[Figure]) -> str:
    """The figures as a plain-text table that is Markdown as well."""
    rows = [_HEADER, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    numbers = range(1, 5)

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - 1) + ":" if column in numbers else "-" * width for column, width in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _row(figure: Figure) -> tuple[str, ...]:
    wanted = [] if figure.wanted_ratio is None else [f"≥ {figure.wanted_ratio:g}×"]
    if figure.wanted_value is not None:
        wanted.append(f"≤ {figure.wanted_value:g} {figure.unit}")
    return (
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        "" if figure.p99 is None else f"{_number(figure.p99)} {figure.unit}",
        f"{_number(figure.reference)} {figure.unit}",
        f"{_number(figure.ratio)}×",
        ", ".join(wanted),
        "" if not wanted else "missed" if figure.missed else "reached",
    )


def _number(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
