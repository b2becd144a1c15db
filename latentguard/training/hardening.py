"""Adversarial training: pairs rewritten as one would who wants past a guard, so that the layer learns to see through.

Of each concept's replacements (synonyms, and texts found by a gradient search; see ``synthesis``) one half is trained
with and the other kept for measuring. Padding sets a pair's two sides into the same harmless text, since harm among
much that is harmless is what a pooled view loses. How prompts are attacked when a guard is measured is written
elsewhere (``synthesis.splits``), and pads with other texts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from latentguard.synthesis.limits import is_withheld, mentions_minors
from latentguard.synthesis.spelling import replaced
from latentguard.training.pairs import TrainingPair
from latentguard.wording import text_key

_MOST_WORDS = 70  # of a padded prompt: it should fit into one window of an encoder
_LINKS = (". ", ", ", " ")
_TEXTS = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2))  # how many harmless texts before and after
Replacements = Mapping[str, Sequence[str]]


def training_half(replacements: Replacements) -> dict[str, list[str]]:
    """Of each concept's texts the first, third, ...: those that may be trained with."""
    return {concept: list(texts[::2]) for concept, texts in replacements.items()}


def measuring_half(replacements: Replacements) -> dict[str, list[str]]:
    """Of each concept's texts the second, fourth, ...: those that training doesn't see."""
    return {concept: list(texts[1::2]) for concept, texts in replacements.items()}


def with_replacements(
    pairs: Sequence[TrainingPair], replacements: Replacements, *, per_concept: int, seed: int
) -> list[TrainingPair]:
    """Pairs whose unsafe text has another text where it spelt its concept; at most ``per_concept`` for each concept.

    ``replacements`` are keyed by ``wording.text_key`` of the concept's name. The same seed gives the same pairs.
    """
    by_concept: dict[str, list[TrainingPair]] = {}
    for pair in pairs:
        by_concept.setdefault(pair.concept, []).append(pair)
    rewritten = []
    for concept, own in sorted(by_concept.items()):
        others = replacements.get(text_key(concept))
        if not others:
            continue
        rng = random.Random(f"{seed} replaced {concept}")
        made = 0
        for pair in rng.sample(own, len(own)):
            text = replaced(pair.unsafe, concept, rng.choice(others)) if made < per_concept else None
            if text is not None and not is_withheld(text, pair.category):
                rewritten.append(replace(pair, unsafe=text, source=f"replaced:{pair.source}"))
                made += 1
    return rewritten


def with_padding(
    pairs: Sequence[TrainingPair], harmless: Sequence[str], *, share: float, seed: int
) -> list[TrainingPair]:
    """A share of the pairs, both sides of each within the same harmless texts; none without such texts.

    Pairs that are too long already are passed over. The same seed gives the same pairs.
    """
    texts = [text for text in harmless if not mentions_minors(text)]
    if len(texts) < max(map(sum, _TEXTS)):
        return []
    rng = random.Random(f"{seed} padded")
    rewritten = []
    for pair in rng.sample(list(pairs), round(share * len(pairs))):
        before, after = rng.choice(_TEXTS)
        around = rng.sample(texts, before + after)
        link = rng.choice(_LINKS)
        longest = max(len(text.split()) for text in (pair.unsafe, pair.safe or ""))
        if longest + sum(len(text.split()) for text in around) > _MOST_WORDS:
            continue
        unsafe, safe = (
            None if text is None else _linked([*around[:before], text, *around[before:]], link)
            for text in (pair.unsafe, pair.safe)
        )
        if unsafe is not None:
            rewritten.append(replace(pair, unsafe=unsafe, safe=safe, source=f"padded:{pair.source}"))
    return rewritten


def _linked(texts: Sequence[str], link: str) -> str:
    return link.join(text.strip().rstrip(".,;") for text in texts)
