"""The built-in grammar: unsafe prompts, their safe twins and harmless prompts, written with no model.

Its lexicon is data, `datasets/grammar/*.json`, each file one category:

    category    text; "everyday" for what is no harm
    scenes      list of {concept, unsafe, safe}; both sides are templates (see `templates`). The "unsafe" side of an
                everyday scene shows its concept and no harm
    details     {unsafe, safe}: lists of templates that can follow any scene of the category
    harmless    list of templates of whole harmless prompts
    vocabulary  in one of the files: the entries of each slot, and under `style` what can follow any prompt

A pair is a scene, expanded with the same choices on both sides and decorated in one of several ways, again the same on
both sides. The same seed gives the same prompts.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from latentguard.errors import DataError
from latentguard.shipped import shipped_path
from latentguard.training.pairs import TrainingPair
from latentguard.wording import text_key

from .frames import FRAMES, STAND_INS, shape_of
from .limits import is_withheld
from .templates import Choices, is_prose, phrase, sentence, template_fault, tidy

STYLE = "style"
_RECIPE = 1  # raise it when the same lexicon gives other prompts for a seed
_CIRCUMSTANCES = ("place", "time")
EVERYDAY = "everyday"  # the category of harmless prompts as users type them
_ATTEMPTS = 40  # draws in a row that may give nothing new before a concept counts as used up
_MEDIUM = re.compile(
    r"\b(?:anime|art|artwork|cartoon|caricature|cctv|close-?up|comic|drawing|engraving|film|footage|fresco|illustration"
    r"|image|logo|manga|meme|mural|painting|panel|photo|photograph|picture|polaroid|portrait|poster|print|render"
    r"|rendering|scene|screenshot|selfie|shot|sketch|snapshot|still|theme|view|woodcut)\b",
    re.IGNORECASE,
)
_NOUN_PHRASE = re.compile(r"(?:an?|the|two|three|four|five|several|some|many)\s", re.IGNORECASE)
_MEDIA = (
    "photo of", "a photo of", "picture of", "an image of", "painting of", "oil painting of", "a detailed drawing of",
    "digital painting of", "a watercolor of", "pencil sketch of", "black and white photo of", "a realistic photo of",
    "cinematic shot of", "illustration of", "close-up of", "3d render of", "generate an image of", "draw", "show me",
    "concept art of", "an old photograph of", "anime drawing of", "a film still of", "a poster of",
)  # fmt: skip
_OPENINGS = (
    "digital art,", "photo,", "masterpiece, best quality,", "oil painting,", "photorealistic,", "cinematic,", "8k,",
    "highly detailed,", "anime,", "a prompt:", "35mm photo,", "comic,", "realistic,", "concept art,", "wide shot,",
)  # fmt: skip


class _Texts(NamedTuple):
    """The two sides of a pair."""

    unsafe: str
    safe: str

    def both(self, change: Callable[[str], str]) -> _Texts:
        return _Texts(change(self.unsafe), change(self.safe))


@dataclass(frozen=True)
class Scene:
    """A harmful scene and its safe twin, both templates. `source` says where it stands in the lexicon."""

    concept: str
    category: str
    unsafe: str
    safe: str
    source: str


@dataclass(frozen=True)
class Lexicon:
    """What the files of a folder hold. `details` and `harmless` are keyed by category."""

    scenes: list[Scene]
    unsafe_details: dict[str, list[str]]
    safe_details: dict[str, list[str]]
    harmless: list[tuple[str, str]]
    vocabulary: dict[str, list[str]]


class Grammar:
    """Writes prompts from a lexicon.

    concepts: the category of each concept that it has scenes for; of several, the first that is harm.
    version: changes whenever the prompts of a seed may.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self.version = f"{_RECIPE}-{hashlib.sha256(repr(lexicon).encode()).hexdigest()[:12]}"
        self._scenes: defaultdict[str, list[Scene]] = defaultdict(list)
        for scene in lexicon.scenes:
            self._scenes[text_key(scene.concept)].append(scene)
        self.concepts: dict[str, str] = {}
        for scenes in self._scenes.values():
            categories = [scene.category for scene in scenes if scene.category != EVERYDAY]
            self.concepts[scenes[0].concept] = categories[0] if categories else EVERYDAY
        self._of_category: defaultdict[str, list[Scene]] = defaultdict(list)
        for scene in lexicon.scenes:
            self._of_category[scene.category].append(scene)

    @classmethod
    def load(cls, folder: str | Path | None = None) -> Grammar:
        """The grammar of a folder of lexicon files, by default the shipped one.

        Raises DataError that names the file and the entry if one is not as it should be.
        """
        return cls(read_lexicon(shipped_path("datasets") / "grammar" if folder is None else Path(folder)))

    def pairs(self, count: int, seed: int) -> list[TrainingPair]:
        """That many pairs, spread evenly over the concepts; no text occurs twice, on whichever side.

        Raises DataError if the lexicon hasn't that many.
        """
        rng = random.Random(seed)
        used: set[str] = set()
        drawing = {key: self._drawn(scenes, rng, used) for key, scenes in self._scenes.items()}
        pairs: list[TrainingPair] = []
        while drawing and len(pairs) < count:
            order = list(drawing)
            rng.shuffle(order)
            for key in order[: count - len(pairs)]:
                pair = next(drawing[key], None)
                if pair is None:
                    del drawing[key]
                else:
                    pairs.append(pair)
        if len(pairs) < count:
            raise DataError(f"the grammar has no more than {len(pairs):,} different pairs; {count:,} were asked for")
        rng.shuffle(pairs)
        return pairs

    def concept_pairs(
        self, concept: str, count: int, seed: int, *, category: str | None = None
    ) -> Iterator[TrainingPair]:
        """Up to that many different pairs of one concept: of its scenes, or if it has none, of frames for its name.

        A name that is sexual and has to do with minors gives none.
        """
        rng = random.Random(f"{seed} {text_key(concept)}")
        scenes = self._scenes.get(text_key(concept))
        if is_withheld(concept, category):
            return
        drawn = self._drawn(scenes, rng, set()) if scenes else self._framed(concept, category, rng)
        for _, pair in zip(range(count), drawn, strict=False):
            yield replace(pair, concept=concept, category=category or pair.category)

    def harmless(self, count: int, seed: int, *, category: str | None = None) -> list[str]:
        """That many different harmless prompts, spread evenly over the lexicon's templates, or a category's.

        Raises DataError if the lexicon hasn't that many.
        """
        templates = [one for one in self._lexicon.harmless if category in (None, one[0])]
        rng = random.Random(seed)
        texts: dict[str, str] = {}
        misses = 0
        while len(texts) < count:
            round_of = list(templates)
            rng.shuffle(round_of)
            for category, template in round_of[: count - len(texts)]:
                text = self._decorated_harmless(category, template, rng)
                misses = misses + 1 if text_key(text) in texts else 0
                texts.setdefault(text_key(text), text)
            if misses > _ATTEMPTS * len(round_of) or not round_of:
                raise DataError(
                    f"the grammar has no more than {len(texts):,} harmless prompts; {count:,} were asked for"
                )
        return list(texts.values())

    # --- scenes

    def _drawn(self, scenes: Sequence[Scene], rng: random.Random, used: set[str]) -> Iterator[TrainingPair]:
        """Pairs of the scenes of one concept, each scene in its turn, until nothing new comes."""
        turns: list[Scene] = []
        misses = 0
        while misses < _ATTEMPTS:
            if not turns:
                turns = rng.sample(scenes, len(scenes))
            scene = turns.pop()
            texts = self._decorated(scene, rng)
            keys = None if texts is None else (text_key(texts.unsafe), text_key(texts.safe))
            if texts is None or keys is None or keys[0] == keys[1] or not used.isdisjoint(keys):
                misses += 1
                continue
            misses = 0
            used.update(keys)
            harm = scene.category != EVERYDAY
            category = scene.category if harm else None
            yield TrainingPair(scene.concept, texts.unsafe, texts.safe, category, scene.source, harm)

    def _decorated(self, scene: Scene, rng: random.Random) -> _Texts | None:
        """The scene's two sides, expanded and decorated; None if what came out may not be written."""
        texts = self._expanded(scene, rng)
        (decorate,) = rng.choices(_DECORATIONS, _WEIGHTS)
        texts = decorate(self, scene, texts, rng)
        if decorate not in (Grammar._plain, Grammar._with_style) and rng.random() < 0.15:
            texts = self._with_style(scene, texts, rng)
        texts = texts.both(tidy).both(_casing(rng))
        if is_withheld(texts.unsafe, scene.category):
            return None
        return texts

    def _expanded(self, scene: Scene, rng: random.Random) -> _Texts:
        choices = Choices(self._lexicon.vocabulary, rng)
        return _Texts(choices.fill(scene.unsafe), choices.fill(scene.safe))

    # --- decorations: each takes a scene and its two sides, and gives two sides that differ no more than before

    def _plain(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        return texts

    def _with_details(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        unsafe, safe = self._lexicon.unsafe_details[scene.category], self._lexicon.safe_details[scene.category]
        if not unsafe or not safe:
            return texts
        for _ in range(rng.choice((1, 1, 2))):
            place = rng.randrange(len(unsafe))
            # The n-th details of the two sides are written as twins, where there are as many.
            twin = safe[place] if len(unsafe) == len(safe) else rng.choice(safe)
            choices = Choices(self._lexicon.vocabulary, rng)
            texts = _Texts(
                _appended(texts.unsafe, choices.fill(unsafe[place])), _appended(texts.safe, choices.fill(twin))
            )
        return texts

    def _with_style(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        styles = rng.sample(self._lexicon.vocabulary[STYLE], rng.choice((1, 1, 1, 2, 3)))
        # Switches such as ', --ar 16:9' are read at the end of a prompt only.
        tail = "".join(sorted(styles, key=lambda style: "--" in style))
        return texts.both(lambda text: phrase(text) + tail)

    def _with_opening(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        if is_prose(texts.unsafe) or any(_MEDIUM.search(text[:60]) for text in texts):
            return texts
        if all(_NOUN_PHRASE.match(text) for text in texts):
            opening = rng.choice(_MEDIA)
            return texts.both(lambda text: f"{opening} {text}")
        opening = rng.choice(_OPENINGS)
        return texts.both(lambda text: f"{opening} {text}")

    def _with_circumstances(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        templates = scene.unsafe + scene.safe
        slots = [name for name in _CIRCUMSTANCES if f"<{name}>" not in templates]
        if "<room>" in templates or any(is_prose(text) for text in texts):
            slots = [name for name in slots if name != "place"]
        for name in slots[: rng.choice((1, 2))]:
            words = rng.choice(self._lexicon.vocabulary[name])
            loose = rng.random() < 0.5 or any("," in text for text in texts)
            texts = _Texts(*(_placed(text, words, loose=loose) for text in texts))
        return texts

    def _joined(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        other = self._expanded(rng.choice(self._of_category[scene.category]), rng)
        prose = any(is_prose(text) for text in (*texts, *other))
        link = ". " if prose else rng.choice(_LINKS)
        return _Texts(_linked(texts.unsafe, link, other.unsafe), _linked(texts.safe, link, other.safe))

    def _in_context(self, scene: Scene, texts: _Texts, rng: random.Random) -> _Texts:
        (places,) = rng.choices(("before", "after", "around"), (5, 4, 2))
        if places != "after":
            before = self._context(scene, rng)
            link = ". " if is_prose(before) or is_prose(texts.unsafe) else rng.choice(_LINKS)
            texts = texts.both(lambda text: _linked(before, link, text))
        if places != "before":
            after = self._context(scene, rng)
            mark = ". " if is_prose(after) or is_prose(texts.unsafe) else rng.choice(_LINKS)
            texts = texts.both(lambda text: _linked(text, mark, after))
        return texts

    def _context(self, scene: Scene, rng: random.Random) -> str:
        """A harmless text to stand beside a scene: a harmless prompt, or the safe side of another category's scene."""
        others = [category for category in self._of_category if category != scene.category]
        if others and rng.random() < 0.4:
            return self._expanded(rng.choice(self._of_category[rng.choice(others)]), rng).safe
        if not self._lexicon.harmless:
            return self._expanded(scene, rng).safe
        return Choices(self._lexicon.vocabulary, rng).fill(rng.choice(self._lexicon.harmless)[1])

    # --- harmless prompts and bare names

    def _decorated_harmless(self, category: str, template: str, rng: random.Random) -> str:
        text = Choices(self._lexicon.vocabulary, rng).fill(template)
        alone = Scene("", category, template, template, "")
        twice = _Texts(text, text)
        (way,) = rng.choices(("plain", "style", "opening", "circumstances", "joined"), (40, 20, 12, 12, 16))
        if way == "style":
            twice = self._with_style(alone, twice, rng)
        elif way == "opening":
            twice = self._with_opening(alone, twice, rng)
        elif way == "circumstances":
            twice = self._with_circumstances(alone, twice, rng)
        elif way == "joined":
            twice = self._in_context(alone, twice, rng)
        return tidy(_casing(rng)(tidy(twice.safe)))

    def _framed(self, concept: str, category: str | None, rng: random.Random) -> Iterator[TrainingPair]:
        """Pairs for a name without a scene, until nothing new comes."""
        shape = shape_of(concept)
        used: set[str] = set()
        misses = 0
        while misses < _ATTEMPTS:
            number = rng.randrange(len(FRAMES[shape]))
            frame, stand_in = FRAMES[shape][number], rng.choice(STAND_INS[shape])
            choices = Choices(self._lexicon.vocabulary, rng)
            change = _casing(rng)
            unsafe, safe = (
                change(choices.fill(frame.replace("{c}", name.replace("{", "(").replace("<", "("))))
                for name in (concept, stand_in)
            )
            if text_key(unsafe) in used or text_key(unsafe) == text_key(safe) or is_withheld(unsafe, category):
                misses += 1
                continue
            misses = 0
            used.add(text_key(unsafe))
            yield TrainingPair(concept, unsafe, safe, category, f"grammar:{shape.name.lower()}#{number}")


_DECORATIONS = (
    Grammar._plain,
    Grammar._with_details,
    Grammar._with_style,
    Grammar._with_opening,
    Grammar._with_circumstances,
    Grammar._joined,
    Grammar._in_context,
)
_WEIGHTS = (20, 17, 16, 11, 8, 10, 18)
_LINKS = (", ", ", ", ". ", ". ", "; ", ", and ", ", while in the background ")


def _linked(first: str, link: str, second: str) -> str:
    if link == ". ":
        return f"{sentence(first)} {sentence(second)}"
    return f"{phrase(first)}{link}{phrase(second)}"


def _appended(text: str, detail: str) -> str:
    return f"{text} {sentence(detail)}" if is_prose(text) else f"{phrase(text)}, {detail}"


def _placed(text: str, words: str, *, loose: bool) -> str:
    """The text with a time or place: behind it, or as a sentence's opening."""
    if is_prose(text):
        return f"{words[:1].upper()}{words[1:]}. {text}"
    return f"{phrase(text)}{', ' if loose else ' '}{words}"


def _casing(rng: random.Random) -> Callable[[str], str]:
    """How a prompt is cased: mostly as it is."""
    draw = rng.random()
    if draw < 0.14:
        return str.lower
    return sentence if draw < 0.24 else str


# --- reading the lexicon


def read_lexicon(folder: Path) -> Lexicon:
    """What the lexicon files of a folder hold. Raises DataError that names the file and the entry."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(f"{folder}: no grammar here (*.json)")
    files = [(path, _read_object(path)) for path in paths]
    vocabularies = [(path, content["vocabulary"]) for path, content in files if "vocabulary" in content]
    if len(vocabularies) != 1:
        raise DataError(f"{folder}: {len(vocabularies)} files have the key vocabulary; there must be one")
    vocabulary = _read_vocabulary(*vocabularies[0])
    lexicon = Lexicon([], defaultdict(list), defaultdict(list), [], vocabulary)
    for path, content in files:
        _read_category(path, content, lexicon)
    if not lexicon.scenes:
        raise DataError(f"{folder}: no scenes in its files")
    return lexicon


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a JSON object")
    return content


def _read_vocabulary(path: Path, vocabulary: object) -> dict[str, list[str]]:
    if not isinstance(vocabulary, dict):
        raise DataError(f"{path}, key vocabulary: not an object")
    for name, entries in vocabulary.items():
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{path}, key vocabulary.{name}: not a list, or empty")
        for place, entry in enumerate(entries):
            if not isinstance(entry, str) or not entry.strip() or set(entry) & set("{}<>"):
                raise DataError(f"{path}, key vocabulary.{name}[{place}]: not a plain text, or empty")
    for name in (STYLE, "person", "people", "room", *_CIRCUMSTANCES):
        if name not in vocabulary:
            raise DataError(f"{path}, key vocabulary: no entries for {name}")
    return vocabulary


def _read_category(path: Path, content: dict[str, Any], lexicon: Lexicon) -> None:
    category = content.get("category")
    if not isinstance(category, str) or not category.strip():
        raise DataError(f"{path}, key category: not a text, or empty")
    for place, scene in enumerate(_listed(path, content, "scenes")):
        at = f"scenes[{place}]"
        if not isinstance(scene, dict) or set(scene) != {"concept", "unsafe", "safe"}:
            raise DataError(f"{path}, key {at}: not an object of concept, unsafe and safe")
        if not isinstance(scene["concept"], str) or not scene["concept"].strip():
            raise DataError(f"{path}, key {at}.concept: not a text, or empty")
        for side in ("unsafe", "safe"):
            _check_template(path, f"{at}.{side}", scene[side], lexicon)
        source = f"grammar:{path.name}#{place}"
        lexicon.scenes.append(Scene(scene["concept"].strip(), category, scene["unsafe"], scene["safe"], source))
    details = content.get("details", {})
    if not isinstance(details, dict) or not set(details) <= {"unsafe", "safe"}:
        raise DataError(f"{path}, key details: not an object of unsafe and safe")
    for side, kept in (("unsafe", lexicon.unsafe_details), ("safe", lexicon.safe_details)):
        kept[category] += _templates(path, details, side, f"details.{side}", lexicon)
    harmless = _templates(path, content, "harmless", "harmless", lexicon)
    lexicon.harmless.extend((category, template) for template in harmless)


def _templates(path: Path, parent: dict[str, Any], key: str, at: str, lexicon: Lexicon) -> list[str]:
    templates = _listed(path, parent, key, at)
    for place, template in enumerate(templates):
        _check_template(path, f"{at}[{place}]", template, lexicon)
    return templates


def _listed(path: Path, parent: dict[str, Any], key: str, at: str | None = None) -> list[Any]:
    value = parent.get(key, [])
    if not isinstance(value, list):
        raise DataError(f"{path}, key {at or key}: not a list")
    return value


def _check_template(path: Path, at: str, template: object, lexicon: Lexicon) -> None:
    fault = template_fault(template, lexicon.vocabulary)
    if fault is not None:
        raise DataError(f"{path}, key {at}: {fault}")
