"""What came of a run, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from latentguard.policy import Decision


@dataclass
class ScreeningSummary:
    """How many prompts there were, how many blocked, these by category, and how many needed no scoring of their own."""

    prompts: int = 0
    blocked: int = 0
    flagged: int = 0
    by_category: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    near_duplicates: int = 0

    def count(self, decision: Decision, category: str | None) -> None:
        """Take one more verdict into account."""
        self.prompts += 1
        self.flagged += decision == "flag"
        if decision == "block":
            self.blocked += 1
            name = category or "no category"
            self.by_category[name] = self.by_category.get(name, 0) + 1

    def add(self, other: ScreeningSummary) -> None:
        """Take another run's, or a part's, numbers into account."""
        self.prompts += other.prompts
        self.blocked += other.blocked
        self.flagged += other.flagged
        self.repeated += other.repeated
        self.near_duplicates += other.near_duplicates
        for category, count in other.by_category.items():
            self.by_category[category] = self.by_category.get(category, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON holds them; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ScreeningSummary:
        """What `as_dict` gave; TypeError if it is something else."""
        return cls(**fields)

    def __str__(self) -> str:
        text = f"{self.prompts:,} prompts: {self.blocked:,} blocked"
        if self.by_category:
            ordered = sorted(self.by_category.items(), key=lambda item: (-item[1], item[0]))
            text += " (" + ", ".join(f"{category} {count:,}" for category, count in ordered) + ")"
        if self.flagged:
            text += f", {self.flagged:,} flagged"
        text += f", {self.prompts - self.blocked - self.flagged:,} allowed"
        if self.repeated:
            text += f"; {self.repeated:,} repetitions ({self.repeated / self.prompts:.1%}) not scored again"
        if self.near_duplicates:
            share = self.near_duplicates / self.prompts
            text += f"; {self.near_duplicates:,} near duplicates ({share:.1%}) given another's verdict"
        return text
