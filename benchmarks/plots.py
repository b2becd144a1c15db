"""Pictures of the table of costs. Each function draws one PNG, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from benchmarks.cost import MEMORY, TIME
from benchmarks.report import Figure
from latentguard.files import atomic_path

# Of Okabe and Ito's palette, which the colour-blind tell apart; each with a mark of its own all the same.
_STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#000000", "P"))
_OURS, _PUBLISHED = "-", "--"


def plot_cost_time(figures: Sequence[Figure], path: Path) -> None:
    """Milliseconds of a call by its number of prompts and by the bank's number of concepts."""
    _plot([figure for figure in figures if figure.what == TIME], "milliseconds of a call", "Time", path)


def plot_cost_memory(figures: Sequence[Figure], path: Path) -> None:
    """MB beside the libraries at most, by a call's number of prompts and by the bank's number of concepts."""
    _plot([figure for figure in figures if figure.what == MEMORY], "MB at most", "Memory", path)


def _plot(figures: Sequence[Figure], unit: str, title: str, path: Path) -> None:
    cells = {(figure.prompts or 0, figure.concepts or 0): figure for figure in figures}
    sizes, banks = sorted({size for size, _ in cells}), sorted({bank for _, bank in cells})
    picture = Picture(figsize=(10, 5.8), layout="constrained")
    by_size, by_bank = picture.subplots(1, 2, sharey=True)
    _lines(by_size, [(f"{bank:,} concepts", [(size, cells[size, bank]) for size in sizes]) for bank in banks])
    _lines(by_bank, [(_counted(size), [(bank, cells[size, bank]) for bank in banks]) for size in sizes])
    for axes, ticks, label in ((by_size, sizes, "prompts in a call"), (by_bank, banks, "concepts in the bank")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    by_size.set_ylabel(unit)
    kinds = [
        Line2D([], [], color="#555555", linestyle=style, label=name)
        for name, style in (("this guard", _OURS), ("published calculation", _PUBLISHED))
    ]
    picture.legend(handles=kinds, loc="outside lower center", ncols=2)
    picture.suptitle(f"{title} by batch size and number of concepts (both axes logarithmic)")
    with atomic_path(path) as temporary:
        picture.savefig(temporary, format="png", dpi=120)


def _lines(axes: Axes, series: Sequence[tuple[str, Sequence[tuple[int, Figure]]]]) -> None:
    """For each series a line of ours and, as far as it was measured, one of the published calculation's."""
    for index, (label, points) in enumerate(series):
        color, marker = _STYLES[index % len(_STYLES)]
        axes.plot(
            [place for place, _ in points],
            [figure.value for _, figure in points],
            _OURS,
            color=color,
            marker=marker,
            label=label,
        )
        known = [(place, figure.reference) for place, figure in points if figure.reference is not None]
        axes.plot(
            [place for place, _ in known],
            [value for _, value in known],
            _PUBLISHED,
            color=color,
            marker=marker,
            markerfacecolor="white",
        )
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _counted(prompts: int) -> str:
    return f"{prompts:,} prompt{'' if prompts == 1 else 's'}"
