"""What a benchmark gives back, and the table that shows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["ms", "MB", "prompts/s"]


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        benchmark: the benchmark it belongs to.
        what: what was measured.
        value: the median, in ``unit``; the least of several, or the most, where the benchmark says so.
        unit: "ms" and "MB" are better when smaller, "prompts/s" when larger.
        reference: the same of the reference, measured in the same process; None where it wasn't, or there is none.
        p99: the 99th percentile, where single calls were timed.
        wanted_ratio: how many times better than the reference it is meant to be at least.
        wanted_value: the most that ``value`` is meant to be.
        prompts: how many prompts a call had, where figures of several batches are compared.
        concepts: how many concepts the bank had, where figures of several banks are compared.
    """

    benchmark: str
    what: str
    value: float
    unit: Unit
    reference: float | None
    p99: float | None = None
    wanted_ratio: float | None = None
    wanted_value: float | None = None
    prompts: int | None = None
    concepts: int | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better than the reference; None without one."""
        if self.reference is None:
            return None
        return self.value / self.reference if self.unit == "prompts/s" else self.reference / self.value

    @property
    def missed(self) -> bool:
        """Whether it falls short of what is wanted."""
        too_slow = self.wanted_ratio is not None and (self.ratio is None or self.ratio < self.wanted_ratio)
        return too_slow or (self.wanted_value is not None and self.value > self.wanted_value)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**vars(self), "ratio": self.ratio, "missed": self.missed}

    @classmethod
    def from_dict(cls, written: dict[str, Any]) -> Figure:
        """What :meth:`as_dict` gave; TypeError for anything else."""
        return cls(**{name: value for name, value in written.items() if name not in ("ratio", "missed")})


_HEADER = ("", "median", "p99", "reference", "ratio", "wanted", "")


def table(figures: Sequence[Figure]) -> str:
    """The figures as a plain-text table that is Markdown as well."""
    return grid(_HEADER, [_row(figure) for figure in figures], numbers=range(1, 5))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int]) -> str:
    """Cells as such a table, the columns ``numbers`` set to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - 1) + ":" if column in numbers else "-" * width for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _row(figure: Figure) -> tuple[str, ...]:
    wanted = [] if figure.wanted_ratio is None else [f"≥ {figure.wanted_ratio:g}×"]
    if figure.wanted_value is not None:
        wanted.append(f"≤ {figure.wanted_value:g} {figure.unit}")
    return (
        figure.what,
        f"{number(figure.value)} {figure.unit}",
        "" if figure.p99 is None else f"{number(figure.p99)} {figure.unit}",
        "" if figure.reference is None else f"{number(figure.reference)} {figure.unit}",
        "" if figure.ratio is None else f"{number(figure.ratio)}×",
        ", ".join(wanted),
        "" if not wanted else "missed" if figure.missed else "reached",
    )


def number(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
