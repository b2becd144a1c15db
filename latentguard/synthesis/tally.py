"""What became of everything that was asked for and written: the counts of a synthesis."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Tally:
    """Counts that add up over concepts and runs."""

    requests: int = 0
    retries: int = 0
    refusals: int = 0
    malformed: int = 0
    withheld: int = 0
    twins_refused: int = 0
    duplicates: int = 0
    short: int = 0
    without_synonyms: int = 0
    without_adversarial: int = 0

    def add(self, other: Tally) -> None:
        """Adds another's counts to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def lines(self) -> list[str]:
        """The counts that are not 0, for people to read, one a line."""
        return [f"{getattr(self, name):,} {meaning}" for name, meaning in _MEANINGS.items() if getattr(self, name)]


_MEANINGS = {
    "requests": "requests answered",
    "retries": "requests tried again",
    "refusals": "answers that refused",
    "malformed": "answers or entries dropped: not what was asked for",
    "withheld": "texts dropped: sexual, and with minors",
    "twins_refused": "safe twins dropped: they name the concept, or are no other text",
    "duplicates": "pairs or prompts dropped: their unsafe text stands elsewhere",
    "short": "concepts with fewer pairs than asked for",
    "without_synonyms": "concepts without a synonym",
    "without_adversarial": "concepts without an adversarial replacement",
}
