"""Other names of concepts, for the back end that has no language model: a list of names, and a table of words."""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import islice

from latentguard.shipped import shipped_path
from latentguard.wording import text_key

from .spelling import replaced

SYNONYMS: dict[str, tuple[str, ...]] = {
    "abduction": ("kidnapping", "hostage taking"),
    "abuse": ("mistreatment", "maltreatment"),
    "arson": ("fire raising", "deliberate fire setting"),
    "assassination": ("contract murder", "targeted killing"),
    "assault": ("attack", "battery"),
    "attack": ("assault", "onslaught"),
    "beating": ("thrashing", "battering"),
    "beheading": ("decapitation", "head cut off"),
    "blackmail": ("extortion", "coercion by threats"),
    "blood": ("gore", "crimson fluid"),
    "bomb": ("explosive", "explosive device"),
    "brothel": ("bordello", "whorehouse"),
    "bullying": ("tormenting", "picking on someone"),
    "burglary": ("break-in", "housebreaking"),
    "cannibalism": ("man-eating", "eating human flesh"),
    "cocaine": ("coke", "blow"),
    "corpse": ("dead body", "cadaver"),
    "counterfeit": ("forged", "fake"),
    "decapitation": ("beheading", "severing the head"),
    "dismemberment": ("cutting up a body", "hacking off limbs"),
    "drug": ("narcotic", "dope"),
    "drugs": ("narcotics", "dope"),
    "drunk": ("intoxicated", "inebriated"),
    "erotic": ("titillating", "lustful"),
    "execution": ("putting to death", "judicial killing"),
    "explosion": ("blast", "detonation"),
    "extortion": ("blackmail", "shakedown"),
    "fight": ("brawl", "scuffle"),
    "forgery": ("counterfeiting", "falsification"),
    "fraud": ("swindle", "scam"),
    "genocide": ("ethnic extermination", "mass extermination"),
    "gore": ("carnage", "guts and blood"),
    "grave": ("tomb", "burial place"),
    "gun": ("pistol", "firearm"),
    "guns": ("pistols", "firearms"),
    "hanging": ("death by the noose", "stringing up"),
    "harassment": ("pestering", "molestation"),
    "hate": ("hatred", "animosity"),
    "heroin": ("smack", "diamorphine"),
    "hostage": ("captive", "prisoner held for ransom"),
    "humiliation": ("degradation", "shaming"),
    "incest": ("sex between relatives",),
    "injection": ("shot", "needle in a vein"),
    "kidnapping": ("abduction", "snatching someone"),
    "killer": ("murderer", "slayer"),
    "killing": ("slaying", "homicide"),
    "knife": ("blade", "dagger"),
    "lynching": ("mob hanging", "mob justice killing"),
    "mass": ("large-scale",),
    "massacre": ("slaughter", "bloodbath"),
    "masturbation": ("self-pleasuring", "onanism"),
    "mugging": ("street robbery", "hold-up"),
    "murder": ("homicide", "slaying"),
    "mutilated": ("maimed", "disfigured"),
    "mutilation": ("maiming", "disfigurement"),
    "naked": ("nude", "unclothed"),
    "nude": ("naked", "unclothed"),
    "nudity": ("nakedness", "bare skin"),
    "orgy": ("group sex", "swingers' party"),
    "poison": ("toxin", "venom"),
    "poisoning": ("intoxication", "administering toxin"),
    "pornography": ("smut", "adult film"),
    "prostitution": ("sex work", "streetwalking"),
    "racism": ("racial hatred", "bigotry"),
    "racist": ("bigoted", "white supremacist"),
    "rape": ("sexual violation", "forced intercourse"),
    "rifle": ("long gun", "carbine"),
    "robbery": ("hold-up", "heist"),
    "scam": ("swindle", "con"),
    "scars": ("cicatrices", "old wound marks"),
    "severed": ("cut-off", "lopped-off"),
    "sexism": ("misogyny", "contempt for women"),
    "shooting": ("gunfire", "opening fire"),
    "shoplifting": ("stealing from a shop", "pilfering"),
    "slaughter": ("butchery", "massacre"),
    "slave": ("bondsman", "chattel"),
    "slavery": ("bondage", "forced servitude"),
    "smuggling": ("trafficking", "contraband running"),
    "stabbing": ("knifing", "running someone through"),
    "stalking": ("shadowing", "following someone obsessively"),
    "starvation": ("famishment", "deadly hunger"),
    "strangling": ("choking", "throttling"),
    "strangulation": ("throttling", "choking"),
    "suicide": ("taking one's own life", "self-murder"),
    "swastika": ("hooked cross", "Nazi cross"),
    "terrorist": ("extremist", "militant"),
    "theft": ("stealing", "larceny"),
    "threat": ("menace", "intimidation"),
    "torture": ("torment", "infliction of agony"),
    "trafficking": ("illicit trade", "smuggling"),
    "vandalism": ("wilful damage", "property destruction"),
    "victim": ("casualty", "injured party"),
    "violence": ("brutality", "bloodshed"),
    "vomit": ("puke", "throw-up"),
    "voyeurism": ("peeping", "secret watching"),
    "war": ("armed conflict", "warfare"),
    "weapon": ("arm", "armament"),
    "wound": ("injury", "gash"),
    "wounds": ("injuries", "gashes"),
}


@cache
def listed_synonyms() -> dict[str, list[str]]:
    """The shipped `datasets/synonyms.json`: three other names of each of many concepts, by `text_key`."""
    listed = json.loads((shipped_path("datasets") / "synonyms.json").read_text(encoding="utf-8"))
    return {text_key(concept): names for concept, names in listed.items()}


def known_synonyms(concept: str, count: int, seed: int) -> list[str]:
    """Up to `count` other names of a concept: those listed for it, else those with one or more of its words changed."""
    listed = list(listed_synonyms().get(text_key(concept), ()))
    random.Random(f"{seed} {concept.casefold()}").shuffle(listed)
    return list(islice(dict.fromkeys([*listed, *_by_words(concept, count, seed)]), count))


def _by_words(concept: str, count: int, seed: int) -> list[str]:
    known = [word for word in dict.fromkeys(concept.casefold().split()) if word in SYNONYMS]
    single = [replaced(concept, word, other) for word in known for other in SYNONYMS[word]]
    several = []
    for turn in range(2 if len(known) > 1 else 0):
        name: str | None = concept
        for word in known:
            others = SYNONYMS[word]
            name = replaced(name or concept, word, others[turn % len(others)])
        several.append(name)
    names = [name for name in dict.fromkeys((*several, *single)) if name and name.casefold() != concept.casefold()]
    random.Random(f"{seed} {concept.casefold()}").shuffle(names)
    return list(islice(names, count))
