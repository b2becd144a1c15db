"""Prompts and concepts as they are read: brought to token ids and to forms of words, and not yet scored.

Between a text and its score, this is all that is needed of the text. A guard reads plain texts itself; whoever reads
them elsewhere, under a key of their own, hands over readings, and the guard never sees a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentguard.arrays import Array
from latentguard.encoders.base import Window
from latentguard.lexicon import NameForms, TextForms
from latentguard.records import ConceptEntry


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt, read.

    Attributes:
        windows: what the encoder encodes, at least one; their offsets are needed only to explain a plain text.
        forms: the forms of its words; without them the names that it spells out have no part in its score.
    """

    windows: Sequence[Window]
    forms: TextForms | None


@dataclass(frozen=True)
class ReadConcept:
    """A concept, read.

    Attributes:
        entry: what the bank lists; its name may be any label that no other concept has.
        window: what the encoder encodes.
        forms: the forms of its name; without them no text can spell it out.
    """

    entry: ConceptEntry
    window: Window
    forms: NameForms | None


@dataclass(frozen=True)
class Attribution:
    """A score taken apart: ``positions`` [L], without the pooled state, and ``bias`` sum to it."""

    positions: Array
    bias: float


@dataclass(frozen=True)
class Contributions:
    """What each part of a read prompt added to its score against one concept; the parts sum to the score.

    Attributes:
        window: the number of the window that decided.
        positions: of each position of that window.
        words: by number of the word, of those that name the concept.
        bias: of the constants.
    """

    window: int
    positions: tuple[float, ...]
    words: dict[int, float]
    bias: float
