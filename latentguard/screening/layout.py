"""What a row of the output holds, and which rows there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentguard.errors import DataError
from latentguard.policy import Decision
from latentguard.records import Columns, PromptFile, PromptRow, parquet_types
from latentguard.screening.options import ScreeningOptions, Selection
from latentguard.screening.screener import Outcome

_DECISIONS: Mapping[Selection, Decision] = {"blocked": "block", "flagged": "flag", "allowed": "allow"}


@dataclass(frozen=True)
class Layout:
    """The columns of an output, in order: ``prompt, score, concept, blocked``, then those that are asked for or needed.

    Attributes:
        kept: the columns of the input that are carried over, with what their values are.
        faulty: whether there is a column ``fault``: where rows that can't be used are written too.
        near: whether there is a column ``near_duplicate``: where prompts may get another's verdict.
        flagged: whether there is a column ``flagged``: where the policy flags prompts at all.
        numbered: whether there is a column ``row``: where the place in the output doesn't tell it.
        named: whether there is a column ``file``: where there are several inputs.
        only: the decision whose rows are written; all of them if None.
        strict: whether a field that isn't among those kept is an error: where all are to be kept.
    """

    kept: Columns
    faulty: bool
    near: bool
    flagged: bool
    numbered: bool
    named: bool
    only: Decision | None
    strict: bool

    @property
    def columns(self) -> Columns:
        """All columns in order, each with what its values are."""
        columns: dict[str, Any] = {"prompt": str, "score": float, "concept": str, "blocked": bool}
        if self.flagged:
            columns["flagged"] = bool
        if self.near:
            columns["near_duplicate"] = bool
        if self.faulty:
            columns["fault"] = str
        if self.named:
            columns["file"] = str
        if self.numbered:
            columns["row"] = int
        return columns | dict(self.kept)

    def fields(self) -> list[str] | None:
        """Which other fields of an input have to be read; None for all."""
        return None if self.strict else list(self.kept)

    def selects(self, outcome: Outcome) -> bool:
        """Whether a prompt with that outcome has a row."""
        return self.only is None or outcome.decision == self.only

    def carried(self, path: Path, row: PromptRow) -> dict[str, Any]:
        """The kept fields of a row; DataError if it has one that isn't kept and all should be."""
        if self.strict and (unknown := row.fields.keys() - self.kept.keys()):
            raise DataError(
                f"{path}: row {row.number}: has a field {min(unknown)!r:.40} that the first row lacks; "
                "name the columns to keep"
            )
        return {name: row.fields.get(name) for name in self.kept}

    def decided(self, path: Path, number: int, outcome: Outcome) -> dict[str, Any]:
        """The columns of a row that are neither its prompt nor kept."""
        values: dict[str, Any] = {
            "score": outcome.score,
            "concept": outcome.concept,
            "blocked": outcome.decision == "block",
        }
        if self.flagged:
            values["flagged"] = outcome.decision == "flag"
        if self.near:
            values["near_duplicate"] = outcome.near
        if self.faulty:
            values["fault"] = outcome.fault
        if self.named:
            values["file"] = str(path)
        if self.numbered:
            values["row"] = number
        return values


def layout_of(inputs: Sequence[Path], options: ScreeningOptions, *, flags: bool, parquet: bool) -> Layout:
    """The layout of the output for these inputs.

    Kept columns have Arrow's types where inputs and output are .parquet; otherwise they hold whatever the input does.

    Args:
        flags: whether the policy flags prompts.
        parquet: whether the output is .parquet.

    Raises:
        DataError: an input hasn't a column that is to be kept, has it with another type than the one before, or it
            would have the name of a column of the output; ``only`` asks for flagged prompts, and none are flagged.
    """
    if options.only == "flagged" and not flags:
        raise DataError("no prompt is flagged as long as the margin for flagging is 0")
    kept = _kept(inputs, options, parquet) if options.keep else {}
    layout = Layout(
        kept={},
        faulty=options.unusable == "block",
        near=options.near_duplicates is not None,
        flagged=flags,
        numbered=options.only is not None or len(inputs) > 1,
        named=len(inputs) > 1,
        only=None if options.only is None else _DECISIONS[options.only],
        strict=options.keep == "all",
    )
    if taken := kept.keys() & layout.columns.keys():
        raise DataError(f"the column {min(taken)!r} can't be kept: the output has one of that name")
    return Layout(**(vars(layout) | {"kept": kept}))


def _kept(inputs: Sequence[Path], options: ScreeningOptions, parquet: bool) -> Columns:
    typed = parquet and all(path.suffix.lower() == ".parquet" for path in inputs)
    kept: dict[str, Any] = {}
    first: Path | None = None
    for path in inputs:
        fields = None if options.keep == "all" else options.keep
        names = PromptFile(path, options.column, fields=fields, faulty=options.unusable == "block").other_columns()
        if names is None:
            continue
        wanted = names if options.keep == "all" else list(dict.fromkeys(options.keep))
        for name in wanted:
            if name not in names:
                raise DataError(f"{path}: has no column {name!r} to keep")
        if first is not None and set(wanted) != kept.keys():
            raise DataError(f"{path}: has other columns than {first}; name those to keep")
        first = first or path
        types = parquet_types(path) if typed else dict.fromkeys(wanted, object)
        for name in wanted:
            if kept.setdefault(name, types[name]) != types[name]:
                raise DataError(f"{path}: the column {name!r} is {types[name]}, before it was {kept[name]}")
    return kept
