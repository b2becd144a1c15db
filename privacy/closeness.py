"""How well groups of like records hide each other: k-anonymity, l-diversity and t-closeness, by pycanon.

k is the size of the smallest group of records that agree in all quasi-identifiers; l the smallest number of different
values of a sensitive attribute in a group; t the largest distance between a group's distribution of that attribute and
the distribution in all records (Li, Li and Venkatasubramanian, ICDE 2007), with the equal distance, or with the ordered
one for attributes whose values have an order.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Distance:
    """How far a group is from all records, from 0 to 1, and how many records it has."""

    group: str
    size: int
    distance: float


@dataclass(frozen=True)
class AttributeCloseness:
    """One sensitive attribute: l-diversity, t-closeness, the kind of distance, and every group, the furthest first."""

    name: str
    l_diversity: int
    t_closeness: float
    ordered: bool
    groups: tuple[Distance, ...]


@dataclass(frozen=True)
class Closeness:
    """The figures of a table of `rows` records in `groups` groups of like quasi-identifiers."""

    rows: int
    groups: int
    quasi_identifiers: tuple[str, ...]
    k_anonymity: int
    attributes: tuple[AttributeCloseness, ...]


def read_table(path: str | Path, columns: Sequence[str], rows: int | None = None) -> pd.DataFrame:
    """The named columns, as text, of the first `rows` rows of a .csv with a header or of a .parquet.

    Raises:
        DataError: the file can't be read, has no such column or no rows, or a value is missing; the message names the
            file and, for a value, its row and field.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: its suffix is none of {', '.join(SUFFIXES)}")
    if rows is not None and rows < 1:
        raise DataError(f"{path}: the number of rows to read is not 1 or more")
    wanted = list(dict.fromkeys(columns))
    try:
        if path.suffix.lower() == ".csv":
            table = pd.DataFrame(_csv_columns(path, wanted, rows))
        else:
            table = _parquet_table(path, wanted, rows)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:  # what the decoder and pyarrow raise, too
        raise DataError(f"{path}: is damaged: {' '.join(str(error).split())}") from error
    if table.empty:
        raise DataError(f"{path}: has no rows")
    _check_values(path, table)
    return table[wanted].astype(str).reset_index(drop=True)


def measure(
    table: pd.DataFrame,
    quasi_identifiers: Sequence[str],
    sensitive: Sequence[str],
    ordered: Mapping[str, Sequence[str]] | None = None,
) -> Closeness:
    """The figures of a table without missing values, such as `read_table` gives.

    `ordered` has, for each sensitive attribute whose values have an order, these values from first to last; with an
    empty sequence they are numbers and have the order of numbers.

    Raises:
        DataError: a column is missing, or both quasi-identifier and sensitive, or has a value outside its order.
        MissingDependencyError: pycanon is not installed.
    """
    try:
        from pycanon import anonymity
    except ImportError as error:
        raise MissingDependencyError(
            "closeness is measured by pycanon, which is not installed: pip install 'latentguard[privacy]'"
        ) from error

    ordered = ordered or {}
    _check_columns(table, quasi_identifiers, sensitive, ordered)
    table = table.reset_index(drop=True)
    identifiers = list(quasi_identifiers)
    measured = []
    for name in sensitive:
        coded = table[[*identifiers, name]].copy()
        if name in ordered:
            coded[name] = _ranks(table[name], ordered[name])
        groups = _distances(coded, identifiers, name, ordered=name in ordered)
        # pycanon divides by the number of values less one, which for a single value is 0.
        single = coded[name].nunique() == 1
        measured.append(
            AttributeCloseness(
                name,
                int(anonymity.l_diversity(coded, identifiers, [name])),
                0.0 if single else float(anonymity.t_closeness(coded, identifiers, [name])),
                name in ordered,
                groups,
            )
        )
    return Closeness(
        len(table),
        len(measured[0].groups),
        tuple(identifiers),
        int(anonymity.k_anonymity(table, identifiers)),
        tuple(measured),
    )


def report(closeness: Closeness) -> str:
    """The figures as a table in text."""
    lines = [
        f"{closeness.rows:,} rows in {closeness.groups:,} groups by {', '.join(closeness.quasi_identifiers)}: "
        f"k-anonymity {closeness.k_anonymity}",
        "",
    ]
    width = max(len("sensitive attribute"), *(len(each.name) for each in closeness.attributes))
    lines.append(f"{'sensitive attribute':<{width}}  {'distance':>8}  {'l-diversity':>11}  {'t-closeness':>11}")
    for each in closeness.attributes:
        kind = "ordered" if each.ordered else "equal"
        lines.append(f"{each.name:<{width}}  {kind:>8}  {each.l_diversity:>11}  {each.t_closeness:>11.4f}")
    return "\n".join(lines)


def draw_chart(closeness: Closeness, path: str | Path, most: int = 20) -> None:
    """Bars of the distance of each group, at most the `most` furthest ones, to a .png, .svg or .pdf file.

    Raises:
        DataError: the file can't be written, or its suffix is none of these.
        MissingDependencyError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise DataError(f"{path}: its suffix is none of .png, .svg, .pdf")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("charts are drawn by matplotlib, which is not installed") from error
    from privacy.files import atomic_path

    shown = min(most, closeness.groups)
    figure = Figure(figsize=(7.5, len(closeness.attributes) * (1.0 + 0.24 * shown)), layout="constrained")
    axes = figure.subplots(len(closeness.attributes), squeeze=False)[:, 0]
    for each, plot in zip(closeness.attributes, axes, strict=True):
        bars = each.groups[:most][::-1]
        plot.barh([f"{bar.group} ({bar.size})" for bar in bars], [bar.distance for bar in bars], color="#4c72b0")
        plot.axvline(each.t_closeness, color="#c44e52", linestyle="--", label=f"t = {each.t_closeness:.4f}")
        which = f"the {shown} furthest of {closeness.groups} groups" if shown < closeness.groups else "by group (rows)"
        plot.set_title(f"{each.name}: distance from all rows, {which}", fontsize=10)
        plot.tick_params(labelsize=8)
        plot.legend(loc="lower right", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix[1:].lower())


def _csv_columns(path: Path, columns: Sequence[str], rows: int | None) -> dict[str, list[str]]:
    # Not by pandas, which drops fields beyond the header without a word.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        _check_names(path, names, columns)
        places = {column: names.index(column) for column in columns}
        values: dict[str, list[str]] = {column: [] for column in columns}
        for number, row in enumerate(islice(filter(None, reader), rows), 1):
            if len(row) != len(names):
                raise DataError(f"{path}: row {number}: has {len(row)} fields where the header has {len(names)}")
            for column, place in places.items():
                values[column].append(row[place])
    return values


def _parquet_table(path: Path, columns: list[str], rows: int | None) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names, columns)
        batches: list[Any] = []
        left = math.inf if rows is None else rows
        for batch in file.iter_batches(columns=columns):
            batches.append(batch.slice(0, int(min(left, len(batch)))).select(columns))
            left -= len(batch)
            if left <= 0:
                break
        schema = pa.schema([file.schema_arrow.field(column) for column in columns])
    return pa.Table.from_batches(batches, schema=schema).to_pandas()


def _check_names(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if (times := list(names).count(column)) != 1:
            how = "more than one" if times else "no"
            raise DataError(f"{path}: has {how} column {column!r}; its columns are: {', '.join(names)}")


def _check_values(path: Path, table: pd.DataFrame) -> None:
    # A record without a value would be of no group: pycanon leaves it out without a word.
    for column in table.columns:
        blank = table[column].isna() | (table[column].astype(str).str.strip() == "")
        if blank.any():
            raise DataError(f"{path}: row {int(blank.argmax()) + 1}: field {column!r} is empty")


def _check_columns(
    table: pd.DataFrame, identifiers: Sequence[str], sensitive: Sequence[str], ordered: Mapping[str, Sequence[str]]
) -> None:
    if not identifiers or not sensitive:
        raise DataError("there has to be a quasi-identifier and a sensitive attribute")
    named = [*identifiers, *sensitive]
    if missing := [name for name in named if name not in table.columns]:
        raise DataError(f"the table has no column {missing[0]!r}")
    if twice := [name for name in named if named.count(name) > 1]:
        raise DataError(f"the column {twice[0]!r} is named twice")
    if unknown := [name for name in ordered if name not in sensitive]:
        raise DataError(f"the column {unknown[0]!r} has an order and is no sensitive attribute")


def _ranks(values: pd.Series[Any], order: Sequence[str]) -> pd.Series[Any]:
    if order:
        ranks = {value: rank for rank, value in enumerate(order)}
        if unknown := [value for value in values.unique() if value not in ranks]:
            raise DataError(f"the order of {values.name!r} lacks a value: {unknown[0]!r}")
        return values.map(ranks).astype(int)
    try:
        numbers = values.astype(float)
    except ValueError as error:
        raise DataError(f"the column {values.name!r} has values that are no numbers: name their order") from error
    if not numbers.map(math.isfinite).all():
        raise DataError(f"the column {values.name!r} has values that are not finite")
    return numbers


def _distances(table: pd.DataFrame, identifiers: list[str], name: str, *, ordered: bool) -> tuple[Distance, ...]:
    """Each group's distance; the largest is what pycanon's t-closeness is."""
    counts = table.groupby([*identifiers, name]).size().unstack(fill_value=0)
    sizes = counts.sum(axis=1)
    difference = counts.div(sizes, axis=0) - counts.sum() / sizes.sum()
    if ordered:
        distances = difference.cumsum(axis=1).abs().sum(axis=1) / max(1, counts.shape[1] - 1)
    else:
        distances = difference.abs().sum(axis=1) / 2
    groups = [
        Distance(", ".join(map(str, group)) if isinstance(group, tuple) else str(group), int(sizes[group]), float(far))
        for group, far in distances.items()
    ]
    return tuple(sorted(groups, key=lambda each: (-each.distance, each.group)))
