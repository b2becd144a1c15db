"""Prompts for a concept of which only the name is known: frames that read well with a name of its shape.

The shape is told from the endings of the name's words and a few tables. What the tables don't settle is `OTHER`, whose
frames take any name.
"""

from __future__ import annotations

from enum import Enum

from latentguard.wording import words


class Shape(Enum):
    """The kind of phrase that a concept's name is."""

    DEED = "cutting wrists"
    ACTIVITY = "dog fighting"
    STATE = "cannibalism"
    PERSON = "drug dealer"
    PEOPLE = "neo-Nazi skinheads"
    QUALITY = "racist"
    THINGS = "infected wounds"
    OTHER = "gore"


# {c} stands for the name or its harmless stand-in. Person, people, place, room, time and style are slots.
FRAMES: dict[Shape, tuple[str, ...]] = {
    Shape.DEED: (
        "<person> {c}",
        "<person> {c} <place>",
        "<person> {c} <room><style>",
        "a photo of <person> {c} <time>",
        "<people> {c} <place> <time>",
        "close-up of <person> {c}<style>",
        "The image shows <person> {c} <place>. It was taken <time>, and <people> look on.",
        "<person> caught {c} <room>",
    ),
    Shape.ACTIVITY: (
        "{c} <place>",
        "{c} <place> <time><style>",
        "<people> who live by {c}, <place>",
        "a picture of {c}<style>",
        "a scene of {c} <room>",
        "The image shows {c} <place>. <people> stand around, and <person> looks into the camera.",
        "<person> known for {c}<style>",
        "{c}, seen from above <time>",
    ),
    Shape.STATE: (
        "a picture about {c}<style>",
        "a scene of {c} <place>",
        "{c}, told in one picture<style>",
        "<people> <place>, {c}<style>",
        "a realistic scene of {c} <room> <time>",
        "The image is about {c}. It shows <people> <place> <time>.",
        "{c}<style>",
    ),
    Shape.PERSON: (
        "a {c} <place>",
        "portrait of a {c}<style>",
        "a {c} and <person> <place> <time>",
        "a {c} <room><style>",
        "The image shows a {c} <place>. Behind stands <person>, and the light is that of a photograph taken <time>.",
        "<people> with a {c} <place>",
    ),
    Shape.PEOPLE: (
        "{c} <place>",
        "{c} <place> <time><style>",
        "a photo of {c} <room>",
        "two {c} and <person> <place>",
        "The image shows several {c} <place>. <person> walks past them <time>.",
        "a group of {c}<style>",
    ),
    Shape.QUALITY: (
        "a {c} picture<style>",
        "a {c} scene <place>",
        "<people> in a {c} scene <place> <time>",
        "a {c} cartoon of <person>",
        "a very {c} photo of <people> <room>",
    ),
    Shape.THINGS: (
        "{c}<style>",
        "{c} <place>",
        "a photo of {c} <room>",
        "<person> looking at {c} <place>",
        "close-up of {c}<style>",
        "The image shows {c} <place>. <person> kneels beside them <time>.",
    ),
    Shape.OTHER: (
        "{c}<style>",
        "{c}, <person> <place>",
        "<person> <place>, {c}<style>",
        "a picture about {c}<style>",
        "{c} <place> <time>",
        "<room>, {c}, <people><style>",
        "theme: {c}, <people> <place>",
        "The subject of the picture is {c}. It shows <people> <place> <time>.",
    ),
}

STAND_INS: dict[Shape, tuple[str, ...]] = {
    Shape.DEED: (
        "cutting paper", "drinking tea", "peeling apples", "carrying boxes", "mending nets", "reading newspapers",
        "sharpening pencils", "waxing skis", "sorting letters", "watering plants", "painting fences", "tying knots",
        "washing windows", "feeding hens", "lighting candles", "polishing boots", "sweeping leaves",
        "tuning guitars",
    ),
    Shape.ACTIVITY: (
        "night fishing", "wood carving", "dog walking", "bell ringing", "bread baking", "stamp collecting",
        "rope skipping", "cave diving", "chess playing", "horse riding", "mushroom picking", "train spotting",
        "beekeeping", "rowing", "roof thatching", "winter swimming", "ballroom dancing", "letter writing",
    ),
    Shape.STATE: (
        "patience", "friendship", "homesickness", "hospitality", "tourism", "punctuality", "exhaustion",
        "retirement", "navigation", "forgetfulness", "craftsmanship", "loneliness", "meditation", "apprenticeship",
        "stubbornness",
    ),
    Shape.PERSON: (
        "bus driver", "night porter", "lighthouse keeper", "clockmaker", "piano tuner", "ticket inspector",
        "mushroom picker", "weather forecaster", "ferry captain", "stonemason", "street sweeper", "bookbinder",
        "chimney sweep", "umpire",
    ),
    Shape.PEOPLE: (
        "bus drivers", "chess players", "dock workers", "gardeners", "choir singers", "street sweepers",
        "beekeepers", "hikers", "night nurses", "bagpipers", "bricklayers", "stamp collectors", "mountain guides",
        "puppeteers",
    ),
    Shape.QUALITY: (
        "melancholic", "nostalgic", "mysterious", "panoramic", "colourless", "rustic", "nocturnal", "peaceful",
        "nervous", "luminous", "geometric", "dreamlike", "wintry", "chaotic",
    ),
    Shape.THINGS: (
        "wet umbrellas", "broken clocks", "muddy boots", "old letters", "empty bottles", "copper pipes",
        "dead leaves", "stacked chairs", "torn tickets", "rusty bells", "burnt matches", "red apples", "folded maps",
        "spare keys",
    ),
    Shape.OTHER: (
        "thunderstorm", "harbour fog", "old tram depot", "chess game", "broken umbrella", "empty theatre",
        "village fair", "snowed-in road", "late train", "abandoned greenhouse", "autumn market", "power cut",
        "moving day", "brass band", "low tide", "night shift", "football final", "street organ",
    ),
}  # fmt: skip

_DEEDS = frozenset(
    ("abusing", "attacking", "beating", "biting", "burying", "buying", "carving", "choking", "committing", "cooking",
     "cutting", "drinking", "drowning", "eating", "faking", "forging", "gouging", "hacking", "catcalling", "hiding",
     "holding", "hurting", "inhaling", "injecting", "kicking", "killing", "licking", "making", "mocking", "poisoning",
     "pulling", "punching", "ripping", "robbing", "selling", "shaming", "shooting", "showing", "slapping", "slashing",
     "smashing", "smoking", "smuggling", "sniffing", "snorting", "spitting", "stabbing", "stealing", "strangling",
     "swallowing", "taunting", "tearing", "throwing", "torturing", "urinating", "using", "wearing")
)  # fmt: skip
_NO_ACTIVITY = frozenset(
    ("being", "building", "ceiling", "clothing", "evening", "king", "lightning", "morning", "offspring", "ring",
     "sling", "spring", "sting", "string", "thing", "wing")
)  # fmt: skip
_STATES = ("ism", "ness", "ity", "cy", "tion", "sion", "ment", "ship", "hood", "ance", "ence", "cide", "philia")
_NO_STATE = frozenset({"city", "instrument", "document", "apartment", "monument", "ship", "worship", "hood", "station"})
_AGENTS = ("ist", "ant", "eer", "man", "woman", "master", "dealer", "killer", "driver", "keeper")
_AGENT_WORDS = frozenset(
    ("abuser", "attacker", "bandit", "bomber", "bully", "burglar", "butcher", "cannibal", "dictator", "executioner",
     "gangster", "hacker", "hooligan", "kidnapper", "mobster", "murderer", "nazi", "pimp", "poacher", "predator",
     "prostitute", "rapist", "robber", "shooter", "skinhead", "smuggler", "sniper", "soldier", "stalker", "stripper",
     "thief", "thug", "torturer", "trafficker", "traitor", "vandal", "voyeur", "warlord")
)  # fmt: skip
_NO_AGENT = frozenset({"plant", "restaurant", "human", "giant", "fist", "wrist", "list", "mist", "beer", "deer"})
_QUALITIES = ("ic", "ous", "less", "ful", "ish")
_NO_QUALITY = frozenset(
    ("comic", "magic", "mosaic", "music", "narcotic", "panic", "plastic", "traffic", "fish", "handful", "mouthful",
     "topless", "rubbish", "clinic", "arsenic", "public", "logic")
)  # fmt: skip
_NO_PLURAL = ("ss", "us", "is", "as", "os", "news", "series", "species", "chess", "aids", "sos")


def shape_of(name: str) -> Shape:
    """The shape of a concept's name."""
    every = words(name)
    if not every:
        return Shape.OTHER
    first, last = every[0], every[-1]
    if first in _DEEDS and len(every) > 1 and not last.endswith(("game", "ing", *_STATES)):
        return Shape.DEED
    if len(every) > 3 or any(word in _LINKS for word in every):
        return Shape.OTHER  # 'gun pointed at head': its last word says nothing of the whole
    if last.endswith("ing") and len(last) > 4 and last not in _NO_ACTIVITY:
        return Shape.ACTIVITY
    if last.endswith(_STATES) and last not in _NO_STATE:
        return Shape.STATE
    if _is_agent(last):
        return Shape.PERSON
    if last.endswith("s") and not last.endswith(_NO_PLURAL):
        return Shape.PEOPLE if _is_agent(last[:-1]) else Shape.THINGS
    if last.endswith(("men", "women")) and len(last) > 4:
        return Shape.PEOPLE
    if len(every) == 1 and last.endswith(_QUALITIES) and last not in _NO_QUALITY:
        return Shape.QUALITY
    return Shape.OTHER


_LINKS = frozenset(
    ("a", "an", "and", "as", "at", "being", "by", "for", "from", "in", "into", "of", "on", "or", "own", "the",
     "through", "to", "under", "with", "without")
)  # fmt: skip


def _is_agent(word: str) -> bool:
    return word in _AGENT_WORDS or (word.endswith(_AGENTS) and word not in _NO_AGENT and len(word) > 4)
