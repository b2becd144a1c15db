"""What is never written, whoever writes it: sexual text that has to do with minors.

A guard needs no such prompts: a bank may hold the concept's name, and the layer generalises to it. The rule is broad on
purpose; a harmless text that falls under it is only drawn anew.
"""

from __future__ import annotations

import re

_MINOR = re.compile(
    r"\b(?:adolescent|bab(?:y|ies)|bo(?:y|ys)|child|children|classroom|daughter|famil(?:y|ies)|girl|girls|grandchild\w*"
    r"|highschool\w*|infant|juvenile|kid|kids|kindergar\w+|little (?:one|sister|brother)|loli\w*|minor|minors|nursery"
    r"|playground|preteen\w*|pupil|school\w*|shota\w*|son|sons|student|students|teen|teens|teenage\w*|toddler\w*"
    r"|underage\w*|under-age\w*|youngster|young (?:one|person|people)|youth|youths)(?:'?s)?\b"
    r"|\b(?:[1-9]|1[0-7])[- ]?(?:year|yr|yo\b|y/o)",
    re.IGNORECASE,
)
_SEXUAL = re.compile(
    r"\b(?:arous\w+|bare[- ]?(?:bod\w+|breast\w*|bottom\w*|buttock\w*|chest\w*|skin)|bdsm|boob\w*|breast\w*|brothel\w*"
    r"|buttock\w*|cleavage|cock|crotch\w*|cum|ejaculat\w+|erect\w*|erotic\w*|escort\w*|fetish\w*|fondl\w+|fuck\w*"
    r"|genital\w*|grop\w+|groom(?:ing|er|ers)|hentai|horny|incest\w*|intercourse|kink\w*|lewd\w*|lingerie|lolicon|lust\w*"
    r"|masturbat\w+|molest\w*|naked\w*|nipple\w*|nsfw|nud(?:e|es|ity|ist|ists)|orgasm\w*|orgy|paedo\w*|panties|panty"
    r"|pedo\w*|penis\w*|pimp\w*|porn\w*|predator\w*|prostitut\w+|provocative\w*|pubic|rape\w*|raping|rapist\w*|seduc\w+|sensual\w*"
    r"|sex|sexes|sext\w+|sexual\w*|sexy|strip(?:s|ped|ping|tease|per|pers)?|thong\w*|topless|undress\w*"
    r"|unclothed|upskirt\w*|vagina\w*|voyeur\w*|vulva\w*)\b",
    re.IGNORECASE,
)
SEXUAL_CATEGORY = "sexual"


def mentions_minors(text: str) -> bool:
    """Whether a text may have to do with minors."""
    return _MINOR.search(text) is not None


def is_withheld(text: str, category: str | None = None) -> bool:
    """Whether a text has to do with minors and is sexual, by its own words or by the category it was written for."""
    if not mentions_minors(text):
        return False
    return (category or "").casefold() == SEXUAL_CATEGORY or _SEXUAL.search(text) is not None
