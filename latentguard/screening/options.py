"""What a screening run may be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from latentguard.errors import DataError

Selection = Literal["blocked", "flagged", "allowed"]
Unusable = Literal["stop", "block"]
ROWS_A_PART = 32_768
CACHED_PROMPTS = 262_144


@dataclass(frozen=True)
class ScreeningOptions:
    """How files are screened.

    Args:
        column: the field that holds the prompts.
        keep: the other columns of the input that go into the output, or ``"all"`` of them.
        only: which rows are written; all of them if None.
        cache: how many different prompts' verdicts are remembered at most, so that a repeated prompt is scored once;
            0 for none.
        near_duplicates: the Jaccard similarity from which a prompt may get the verdict of a harmless one; None for
            identical prompts alone. See :class:`latentguard.screening.near.NearDuplicates`.
        unusable: what a row that can't be used does, such as one with an empty prompt or a broken line: it ends the
            run, or it is written as blocked, with the reason in a column ``fault``.
        part_rows: how many rows of an input go into one file of an output folder; after an interruption, at most as
            many (on Ray: as many for each worker) are screened again.

    Raises:
        DataError: an option is out of its range.
    """

    column: str = "prompt"
    keep: Sequence[str] | Literal["all"] = ()
    only: Selection | None = None
    cache: int = CACHED_PROMPTS
    near_duplicates: float | None = None
    unusable: Unusable = "stop"
    part_rows: int = ROWS_A_PART

    def __post_init__(self) -> None:
        if self.cache < 0:
            raise DataError(f"the number of remembered prompts is {self.cache}, which is below 0")
        if self.part_rows < 1:
            raise DataError(f"the number of rows a part is {self.part_rows}, which is below 1")
        if self.near_duplicates is None:
            return
        if not 0.5 <= self.near_duplicates <= 1:
            raise DataError(f"the similarity of near duplicates is {self.near_duplicates}, not between 0.5 and 1")
        if not self.cache:
            raise DataError("near duplicates are looked for among remembered prompts, and none is to be remembered")
