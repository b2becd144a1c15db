"""Prompts as an attacker would write them, for measuring how a guard holds: the splits of the paper, and noise.

The synonym and adversarial splits follow the published protocol (Liu et al., ECCV 2024, section 4.1): in an unsafe
prompt the concept's name is swapped for another text, and prompts that don't spell it are left out. The other attacks
need no replacement and change every prompt, harmless ones too: users misspell as well, and a guard that only tells
clean text from noise should not look good.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentguard.errors import DataError
from latentguard.records import open_writer, read_prompts
from latentguard.training.formats import REPLACEMENT_KEYS, RawPair, read_file
from latentguard.wording import text_key

from .grammar import Grammar
from .limits import mentions_minors
from .spelling import replaced, spelling

REPLACING = ("synonym", "adversarial")
"""Attacks that need replacements for each concept."""

PADDED = ("padding", "halves")
"""Attacks that need harmless text."""

_KEY_OF = dict(zip(REPLACING, REPLACEMENT_KEYS, strict=True))
_PADDINGS = 400  # harmless texts that prompts are padded with
_NOISY_SHARE = 0.35  # of the words of four letters and more, beside the concept's own
_COLUMNS: Mapping[str, type] = {"prompt": str, "concept": str, "unsafe": int}

_HOMOGLYPHS = dict(zip("aceijopsxyABCEHIKMOPTX", "асеіјорѕхуАВСЕНІКМОРТХ", strict=True))  # Latin to Cyrillic
_LEET = dict(zip("aeiostblg", "431057819", strict=True))
_NEIGHBOURS = {
    "a": "sqz", "b": "vgn", "c": "xvd", "d": "sfe", "e": "wrd", "f": "dgr", "g": "fht", "h": "gjy", "i": "uok",
    "j": "hku", "k": "jli", "l": "kop", "m": "nj", "n": "bmh", "o": "ipl", "p": "ol", "q": "wa", "r": "etf",
    "s": "adw", "t": "ryg", "u": "yij", "v": "cbf", "w": "qes", "x": "zcs", "y": "tuh", "z": "xa",
}  # fmt: skip


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt with its label. `concept` is what an unsafe one shows, if that is known."""

    prompt: str
    concept: str | None
    unsafe: bool


@dataclass
class AttackReport:
    """What became of the prompts. `not_spelt` and `without_replacement` count unsafe prompts that are left out."""

    kind: str
    read: int = 0
    written: int = 0
    changed: int = 0
    not_spelt: int = 0
    without_replacement: int = 0
    unchangeable: int = 0
    missing: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """The counts for people to read, one a line."""
        told = [f"{self.written:,} of {self.read:,} prompts written, {self.changed:,} of them changed"]
        if self.not_spelt:
            told.append(f"{self.not_spelt:,} unsafe prompts left out: they don't spell their concept")
        if self.without_replacement:
            told.append(
                f"{self.without_replacement:,} unsafe prompts left out: no replacement for their concept "
                f"({len(self.missing):,} concepts)"
            )
        if self.unchangeable:
            told.append(f"{self.unchangeable:,} prompts written as they are: nothing in them to change")
        return told


# --- reading


def read_labelled(path: str | Path) -> list[LabelledPrompt]:
    """The prompts of an evaluation file (columns `prompt`, `unsafe` and, if known, `concept`) or of a pair file.

    A file without the column `unsafe` is taken for all unsafe if it has `concept`. Of a pair both sides come, the safe
    twin as harmless. Raises DataError.
    """
    path = Path(path)
    if path.suffix.lower() == ".json" or _is_pair_csv(path):
        prompts = []
        for pair in _without_variants(read_file(path).pairs):
            prompts.append(LabelledPrompt(pair.unsafe, pair.concept, True))
            if pair.safe is not None:
                prompts.append(LabelledPrompt(pair.safe, pair.concept, False))
        return list(dict.fromkeys(prompts))
    prompts = []
    for row in read_prompts(path):
        concept = row.fields.get("concept")
        label = str(row.fields.get("unsafe", "" if concept is None else "1")).strip().lower()
        if label not in _LABELS:
            raise DataError(f"{path}, row {row.number}: field 'unsafe' is neither 0 nor 1")
        name = concept.strip() if isinstance(concept, str) else ""
        prompts.append(LabelledPrompt(row.prompt, name or None, _LABELS[label]))
    return prompts


_LABELS = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


def _is_pair_csv(path: Path) -> bool:
    if path.suffix.lower() != ".csv":
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            header = {name.strip() for name in next(csv.reader(file), [])}
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except csv.Error as error:
        raise DataError(f"{path}, line 1: {error}") from error
    return {"concept", "unsafe_prompt"} <= header


def _without_variants(pairs: Sequence[RawPair]) -> Iterator[RawPair]:
    """The pairs that stand in a file, without those that its synonyms and adversarial replacements were put into."""
    source, before, after = "", "", ""
    for pair in pairs:
        found = [] if pair.concept is None else list(spelling(pair.concept).finditer(pair.unsafe))
        if found:
            source, before, after = pair.source, pair.unsafe[: found[0].start()], pair.unsafe[found[-1].end() :]
        elif pair.source == source and pair.unsafe.startswith(before) and pair.unsafe.endswith(after):
            continue
        yield pair


def read_replacements(path: str | Path, kind: str) -> dict[str, list[str]]:
    """Other texts for each concept, by its name's `text_key`.

    The file is JSON: an object of concepts with a text or a list of texts (or of objects with `text`), or a data set in
    the format of CoPro_v1.0.json, whose `concept_synonym` or `concept_adv` is taken, by the kind. Raises DataError.
    """
    path = Path(path)
    try:
        root = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON") from error
    found: dict[str, list[str]] = {}
    for concept, texts in _listed(path, root, _KEY_OF[kind]):
        known = found.setdefault(text_key(concept), [])
        known += [text for text in texts if text not in known]
    if not any(found.values()):
        raise DataError(f"{path}: no replacements of the kind {kind}")
    return found


def _listed(path: Path, root: Any, key: str) -> Iterator[tuple[str, list[str]]]:
    """Each concept of a replacement file with its texts."""
    if isinstance(root, dict) and not any(_holds_records(value) for value in root.values()):
        for concept, value in root.items():
            yield concept, _texts(path, concept, value)
        return
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += reversed(node)
        elif isinstance(node, dict) and "concept" in node:
            if not isinstance(node["concept"], str):
                raise DataError(f"{path}: a record's concept is not a text")
            yield node["concept"], _texts(path, node["concept"], node.get(key, []))
        elif isinstance(node, dict):
            waiting += reversed(list(node.values()))


def _holds_records(value: object) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) and "text" not in item for item in value)
    return isinstance(value, dict)


def _texts(path: Path, concept: str, value: object) -> list[str]:
    texts = []
    for item in value if isinstance(value, list) else [value]:
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}, concept {concept!r}: a replacement is not a text, or empty")
        texts.append(" ".join(text.split()))
    return texts


# --- attacking


def attack_prompts(
    prompts: Sequence[LabelledPrompt],
    kind: str,
    *,
    seed: int = 0,
    replacements: Mapping[str, Sequence[str]] | None = None,
    grammar: Grammar | None = None,
) -> tuple[list[LabelledPrompt], AttackReport]:
    """The prompts after an attack, in their order, and what became of them.

    kind: "synonym" and "adversarial" swap the concept's name in unsafe prompts for one of its `replacements` (those of
    `read_replacements`); harmless prompts stay as they are. "characters" misspells words, the concept's own first.
    "order" shuffles the words. "padding" puts harmless text of the `grammar` before or after, "halves" in the middle. A
    seed gives the same prompts again, whatever else is in the file. Raises DataError for an unknown kind or without
    what it needs.
    """
    if kind not in KINDS:
        raise DataError(f"no attack {kind!r}; give one of {', '.join(KINDS)}")
    if kind in REPLACING and replacements is None:
        raise DataError(f"the attack {kind} needs replacements")
    grammar = (grammar or Grammar.load()) if kind in PADDED else None
    padding = [] if grammar is None else grammar.harmless(_PADDINGS, seed)
    # What is read may be sexual, and must not come to stand beside minors.
    padding = [text for text in padding if not mentions_minors(text)]
    report = AttackReport(kind, read=len(prompts))
    attacked: list[LabelledPrompt] = []
    for one in prompts:
        rng = random.Random(f"{seed} {kind} {one.prompt}")
        if kind not in REPLACING:
            text: str | None = _ATTACKS[kind](one, rng, padding)
            report.unchangeable += text == one.prompt
        elif one.unsafe:
            text = _swapped(one, replacements or {}, rng, report)
        else:
            text = one.prompt
        if text is None:
            continue
        report.changed += text != one.prompt
        attacked.append(LabelledPrompt(text, one.concept, one.unsafe))
    report.written = len(attacked)
    return attacked, report


def write_labelled(prompts: Sequence[LabelledPrompt], path: str | Path) -> None:
    """Writes prompts with the columns prompt, concept and unsafe (0 or 1). Raises DataError."""
    with open_writer(path, _COLUMNS) as writer:
        for one in prompts:
            writer.write({"prompt": one.prompt, "concept": one.concept, "unsafe": int(one.unsafe)})


def _swapped(
    one: LabelledPrompt, replacements: Mapping[str, Sequence[str]], rng: random.Random, report: AttackReport
) -> str | None:
    if one.concept is None or not spelling(one.concept).search(one.prompt):
        report.not_spelt += 1
        return None
    others = replacements.get(text_key(one.concept))
    if not others:
        report.without_replacement += 1
        report.missing.add(one.concept)
        return None
    return replaced(one.prompt, one.concept, rng.choice(others))


def _misspelt(one: LabelledPrompt, rng: random.Random, padding: Sequence[str]) -> str:
    own = set() if one.concept is None else {text_key(word) for word in one.concept.split()}
    parts = re.split(r"(\W+)", one.prompt)
    long = [place for place, word in enumerate(parts) if len(word) > 3 and word.isalpha()]
    chosen = {place for place in long if rng.random() < _NOISY_SHARE}
    chosen |= {place for place, word in enumerate(parts) if text_key(word) in own and word.isalpha()}
    if not chosen and long:
        chosen = {rng.choice(long)}
    noise = rng.choice(_NOISES)
    for place in sorted(chosen):
        noisy = noise(parts[place], rng)
        parts[place] = noisy if noisy != parts[place] else _typo(parts[place], rng)
    return "".join(parts)


def _typo(word: str, rng: random.Random) -> str:
    place = rng.randrange(len(word) - 1) if len(word) > 1 else 0
    letter = word[place]
    way = rng.randrange(4)
    if way == 0 and len(word) > 1 and word[place + 1] != letter:
        return word[:place] + word[place + 1] + letter + word[place + 2 :]
    if way == 1 and len(word) > 2:
        return word[:place] + word[place + 1 :]
    if way == 2 and letter.lower() in _NEIGHBOURS:
        return word[:place] + rng.choice(_NEIGHBOURS[letter.lower()]) + word[place + 1 :]
    return word[:place] + letter + word[place:]


def _homoglyphs(word: str, rng: random.Random) -> str:
    return "".join(_HOMOGLYPHS.get(letter, letter) if rng.random() < 0.7 else letter for letter in word)


def _leet(word: str, rng: random.Random) -> str:
    return "".join(_LEET.get(letter.lower(), letter) if rng.random() < 0.7 else letter for letter in word)


def _spaced(word: str, rng: random.Random) -> str:
    return rng.choice((" ", ".", "-")).join(word)


_NOISES: tuple[Callable[[str, random.Random], str], ...] = (_typo, _homoglyphs, _leet, _spaced)


def _shuffled(one: LabelledPrompt, rng: random.Random, padding: Sequence[str]) -> str:
    words = one.prompt.split()
    if len(set(words)) < 2:
        return one.prompt
    while (shuffled := rng.sample(words, len(words))) == words:
        pass
    return " ".join(shuffled)


def _padded(one: LabelledPrompt, rng: random.Random, padding: Sequence[str]) -> str:
    before, after = rng.choice(((1, 0), (0, 1), (1, 1)))
    texts = [*rng.sample(padding, before), one.prompt, *rng.sample(padding, after)]
    return _link(texts, rng)


def _halved(one: LabelledPrompt, rng: random.Random, padding: Sequence[str]) -> str:
    words = one.prompt.split()
    if len(words) < 2:
        return one.prompt
    middle = len(words) // 2
    return _link([" ".join(words[:middle]), *rng.sample(padding, 1), " ".join(words[middle:])], rng)


def _link(texts: Sequence[str], rng: random.Random) -> str:
    mark = rng.choice((". ", ", ", "; "))
    return mark.join(text.strip().rstrip(".,;") for text in texts)


_ATTACKS: dict[str, Callable[[LabelledPrompt, random.Random, Sequence[str]], str]] = {
    "characters": _misspelt,
    "order": _shuffled,
    "padding": _padded,
    "halves": _halved,
}
KINDS = (*REPLACING, *_ATTACKS)
