"""Where a prompt spells a concept, and putting another text in its place: the published protocol of the splits."""

from __future__ import annotations

import re


def spelling(concept: str) -> re.Pattern[str]:
    """Finds the concept's name in a prompt: its words as spelt, in any case, and not inside a longer word."""
    words = r"\s+".join(re.escape(word) for word in concept.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def replaced(prompt: str, concept: str, other: str) -> str | None:
    """The prompt with `other` wherever it spells the concept; None if it doesn't spell it."""
    text, count = spelling(concept).subn(lambda _: other, prompt)
    return text if count else None
