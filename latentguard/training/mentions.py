"""Concepts mentioned in passing: training pairs made of harmless captions and concept names.

Pairs written by a language model show a concept in full: its unsafe prompt is about it, and often the safe twin names
it too. A layer trained on them alone learns the manner of such prompts, and misses a prompt that merely contains a
concept. So each concept is also set, as a phrase, into captions that have nothing to do with it: the caption with the
concept is the unsafe prompt, the caption without it the safe twin, and nothing but the concept tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from latentguard.synthesis.limits import is_withheld
from latentguard.training.pairs import TrainingPair

SOURCE = "mention"
_PATTERNS = (
    "{caption}, {concept}",
    "{concept}, {caption}",
    "{start} {concept} {end}",
    "{start}, {concept}, {end}",
    "{caption} with {concept}",
    "{caption} and {concept} in the background",
    "{concept} beside {caption}",
    "a picture of {concept}, {caption}",
)


def mention(concepts: Iterable[str], captions: Sequence[str], *, per_concept: int, seed: int) -> list[TrainingPair]:
    """Up to ``per_concept`` pairs for each concept, the same for the same seed; none if there are no captions.

    Fewer where a text came out that may not be written (``synthesis.limits``).
    """
    if not captions:
        return []
    pairs = []
    for concept in sorted(set(concepts)):
        rng = random.Random(f"{seed} {concept}")
        for caption in rng.sample(captions, min(per_concept, len(captions))):
            text = _with(concept, caption, rng)
            if not is_withheld(text):
                pairs.append(TrainingPair(concept, text, caption, None, SOURCE, harm=False))
    return pairs


def _with(concept: str, caption: str, rng: random.Random) -> str:
    caption = caption.strip().rstrip(".")
    words = caption.split()
    cut = rng.randint(0, len(words))
    start, end = " ".join(words[:cut]), " ".join(words[cut:])
    return rng.choice(_PATTERNS).format(caption=caption, concept=concept, start=start, end=end).strip(" ,")
