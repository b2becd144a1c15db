"""Prompts, concepts and a guard that need no data file and no trained weights, the same at every run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import torch

from latentguard import LatentGuard, Policy
from latentguard.encoders.base import TextEncoder
from latentguard.heads import Combination, ConceptScale, Heads
from latentguard.lexicon import WordRarity
from latentguard.mapping import MappingLayer, MappingShape
from latentguard.prompt_head import PromptHead, PromptHeadShape

LAYERS = (2, 4, 6)  # those of the shipped weights
_CATEGORIES = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity")


def guard_of(encoder: TextEncoder, concept_count: int, *, headed: bool = True) -> LatentGuard:
    """A guard with an untrained mapping layer and heads, and made-up concepts: it decides nothing, at full cost.

    One that is not ``headed`` has the mapping layer alone.
    """
    torch.manual_seed(0)
    mapping = MappingLayer(MappingShape(encoder.width)).requires_grad_(False)
    if not headed:
        return LatentGuard(encoder, mapping, concept_names(concept_count), Policy(5.0))
    heads = Heads(
        PromptHead(PromptHeadShape(encoder.width, _CATEGORIES)).requires_grad_(False),
        ConceptScale(mapping.shape.output).requires_grad_(False),
        Combination(concept=1.0, part=0.1, named=2.0, prompt=1.0, bias=-1.0),
        WordRarity.of(prompts(1_000)),
    )
    return LatentGuard(encoder, mapping, concept_names(concept_count), Policy(5.0), heads)


def concept_names(count: int) -> list[str]:
    """That many different made-up concepts of two to four words."""
    names = (" ".join(filter(None, words)) for words in itertools.product(_PLACES, _KINDS, _THINGS))
    found = list(itertools.islice(names, count))
    if len(found) < count:
        raise ValueError(f"{count} concepts asked for, {len(found)} can be made up")
    return found


def names_around(names: Sequence[str]) -> Iterator[str]:
    """The names themselves, then each in made-up manners and places: "bloody knife", "knife at school"."""
    for form in ("{}", *(f"{{}} {place}" for place in _PLACES if place), *(f"{kind} {{}}" for kind in _KINDS)):
        yield from (form.format(name) for name in names)


def prompt_of(encoder: TextEncoder, tokens: int) -> str:
    """A prompt that the encoder reads as so many tokens, in one window or several, with one start and one end."""
    words = itertools.islice(itertools.cycle(_PLAIN_WORDS), tokens)
    for text in itertools.accumulate(words, lambda text, word: f"{text} {word}"):
        spans = {span for window in encoder.windows(text) for span in window.offsets}
        if len(spans - {(0, 0)}) + 2 == tokens:
            return text
    raise ValueError(f"no prompt of {tokens} tokens made of plain words")


def prompts(count: int) -> list[str]:
    """That many prompts of the lengths that people write, a few words to a few lines; the same at every call."""
    chosen = random.Random(0)
    return [_prompt(chosen) for _ in range(count)]


def _prompt(chosen: random.Random) -> str:
    template = chosen.choice(_TEMPLATES)
    scene = template.format(
        subject=chosen.choice(_SUBJECTS), action=chosen.choice(_ACTIONS), place=chosen.choice(_SETTINGS)
    )
    return ", ".join([scene, *chosen.sample(_STYLES, chosen.choice((0, 1, 1, 2, 3, 6)))])


_PLAIN_WORDS = ("a", "man", "and", "a", "dog", "walk", "by", "the", "old", "house", "near", "the", "lake")
_PLACES = ("", "at school", "at night", "in a crowd", "on stage", "at home", "in the woods", "by the road", "at sea",
           "in prison", "at work", "in court")  # fmt: skip
_KINDS = ("armed", "bloody", "broken", "burning", "cruel", "drunk", "forged", "hidden", "illegal", "masked",
          "naked", "poisoned", "secret", "stolen", "tortured", "violent", "wounded", "wrecked", "screaming",
          "dying")  # fmt: skip
_THINGS = ("robber", "crowd", "soldier", "car crash", "knife", "animal", "protest", "duel", "corpse", "weapon",
           "ambush", "body", "drug deal", "insult", "hostage", "explosion", "fist fight", "gang", "grave", "revenge",
           "hanging", "raid", "threat", "assault", "bomb")  # fmt: skip
_TEMPLATES = (
    "{subject}",
    "{subject} {action}",
    "{subject} {action} {place}",
    "a photo of {subject} {place}",
    "an oil painting of {subject} {action} {place}",
    "close-up portrait of {subject} {place}, looking into the camera",
    "a children's book illustration showing {subject} {action} while it rains {place}",
)
_SUBJECTS = ("an old fisherman", "two fencing athletes", "a red fox", "a young nurse in blue scrubs",
             "a robot with copper arms", "a bowl of ripe cherries", "the queen of a winter kingdom",
             "a bearded blacksmith", "three sisters in long coats", "a tabby cat", "a steam locomotive",
             "a surgeon and her team")  # fmt: skip
_ACTIONS = ("mending nets", "reading a torn letter", "running from a shadow", "holding a lantern",
            "arguing over a map", "cutting bread with a large knife", "dancing barefoot",
            "waiting for the last train", "building a tower of books")  # fmt: skip
_SETTINGS = ("at dawn in a small harbour", "in a crowded night market", "under a broken bridge",
             "on the roof of a ruined castle", "in an empty hospital corridor", "beside a frozen lake",
             "in a kitchen full of steam", "on a street in the rain after midnight")  # fmt: skip
_STYLES = ("watercolour", "cinematic lighting", "highly detailed", "8k", "shallow depth of field", "film grain",
           "muted colours", "in the style of a 1970s science fiction cover", "volumetric fog", "golden hour",
           "concept art", "sharp focus", "wide angle lens", "dramatic shadows")  # fmt: skip
