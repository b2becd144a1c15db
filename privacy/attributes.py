"""Sensitive attributes of the persons in pictures, and prompts that state random ones.

The shuffling-based solution of PrivacyAsst (Zhang et al., IEEE TDSC 2024): a prompt that shows a person leaves with a
random profile of sensitive attributes, so that neither the model nor whoever sees the image learns the user's own.

    schema = AttributeSchema.default()
    shuffled = schema.shuffle("a doctor reading a book")
    shuffled.prompt  # 'young adult, Black, woman, light skin, grey hair, blue eyes, a doctor reading a book'
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal

from privacy.errors import SchemaError
from privacy.wording import Statement, Wording

# Above this many combinations it isn't checked beforehand that one of them is allowed.
_MAX_COMBINATIONS = 100_000
_MAX_TRIES = 10_000

_VOWELS = tuple("aeiouAEIOU")

Outcome = Literal["added", "replaced", "stated", "no person"]


@dataclass(frozen=True)
class Value:
    """A value of an attribute: how often it is drawn beside the others (0: never), and its words by language."""

    name: str
    phrases: Mapping[str, str]
    weight: float = 1.0


@dataclass(frozen=True)
class Attribute:
    """A sensitive attribute; `stated` has, by language, the terms that state it with their neutral replacements.

    The values of an `ordered` one, such as an age group, stand in their order.
    """

    name: str
    values: tuple[Value, ...]
    stated: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ordered: bool = False


@dataclass(frozen=True)
class PeopleWords:
    """Words and phrases for persons in one language, and phrases that hold such a word but no person."""

    words: tuple[str, ...]
    exceptions: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Profile(Mapping[str, str]):
    """A value's name for each attribute. It doesn't show its values when printed, so that no log has them."""

    values_by_name: Mapping[str, str]

    def __getitem__(self, attribute: str) -> str:
        return self.values_by_name[attribute]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __repr__(self) -> str:
        return f"<Profile of {len(self)} attributes>"


@dataclass(frozen=True)
class Shuffled:
    """A prompt after shuffling.

    `outcome` is "added" (the profile stands in the prompt), "replaced" (and what the user stated doesn't any more),
    "stated" (left alone since the user states an attribute) or "no person" (left alone). `profile` is None for the last
    two, and `stated` names the attributes that the user stated. Neither prompt nor profile is shown when printed.
    """

    prompt: str = field(repr=False)
    profile: Profile | None = field(repr=False)
    outcome: Outcome
    stated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AttributeSchema:
    """Sensitive attributes with their values and words; the first of the `languages` is the one to fall back on.

    `templates` say, by language, where the profile stands in the prompt: "{profile}, {prompt}". `forbidden` are
    combinations, of two attributes or more, that are never drawn.

    Raises:
        SchemaError: an entry contradicts another one, or nothing can be drawn.
    """

    attributes: tuple[Attribute, ...]
    people: Mapping[str, PeopleWords]
    templates: Mapping[str, str]
    forbidden: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @staticmethod
    def default() -> AttributeSchema:
        """The six attributes of PrivacyAsst, in English, German, French and Spanish; children are never drawn."""
        return _default()

    @staticmethod
    def from_yaml(path: str | Path) -> AttributeSchema:
        """The schema of a YAML file, in the format that docs/attributes.md describes.

        Raises:
            SchemaError: the file can't be read or an entry of it can't be used; the message names both.
        """
        from privacy.schema_files import read_schema

        return read_schema(path)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that it has words for, in order."""
        return tuple(self.templates)

    def attribute(self, name: str) -> Attribute:
        """The attribute of that name; SchemaError if there is none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise SchemaError(f"there is no attribute {name!r}; there are {', '.join(a.name for a in self.attributes)}")

    def draw(self, rng: random.Random | None = None, given: Mapping[str, str] | None = None) -> Profile:
        """A random profile: each attribute by its weights and independent of the others, but no forbidden combination.

        `rng` is the system's cryptographic source unless given, which is for tests. The values of `given` are kept and
        the rest is drawn.

        Raises:
            SchemaError: the combinations that are left are too rare to be drawn, or there is none.
        """
        rng = rng or secrets.SystemRandom()
        given = given or {}
        for _ in range(_MAX_TRIES):
            values = {a.name: given[a.name] if a.name in given else _drawn(a, rng) for a in self.attributes}
            if not self.is_forbidden(values):
                return Profile(values)
        raise SchemaError("nearly every combination of the attributes' values is forbidden: none could be drawn")

    def is_forbidden(self, values: Mapping[str, str]) -> bool:
        """Whether the values, of all or some attributes, hold a forbidden combination."""
        return any(combination.items() <= values.items() for combination in self.forbidden)

    def can_be_drawn(self, given: Mapping[str, str]) -> bool:
        """Whether there is a profile with the values of `given` that isn't forbidden and has no weight of 0."""
        if not self.forbidden:
            return True
        values = [
            [given[a.name]] if a.name in given else [value.name for value in a.values if value.weight > 0]
            for a in self.attributes
        ]
        names = [attribute.name for attribute in self.attributes]
        return any(not self.is_forbidden(dict(zip(names, each, strict=True))) for each in product(*values))

    def shuffle(
        self,
        prompt: str,
        rng: random.Random | None = None,
        *,
        replace_stated: bool = False,
        language: str | None = None,
        draw: Callable[[random.Random | None], Profile] | None = None,
    ) -> Shuffled:
        """The prompt with a random profile, if it shows a person and the user states none of the attributes.

        With `replace_stated`, what the user states gives way to neutral words ("an old man" becomes "a person") and the
        profile is added all the same. The profile is drawn by `draw(rng)`, by default the method of this name, and
        never depends on the prompt. `language` is by default the one with most words for persons in the prompt.

        Raises:
            SchemaError: the schema has no such language, or nothing can be drawn.
        """
        if language is not None and language not in self.languages:
            raise SchemaError(f"the schema has no language {language!r}; it has {', '.join(self.languages)}")
        language = language or self._language_of(prompt)
        wording = self._wordings[language]
        statements = wording.statements(prompt)
        stated = frozenset[str]().union(*(place.attributes for place in statements))
        if not wording.people(prompt):
            return Shuffled(prompt, None, "no person", stated)
        if statements and not replace_stated:
            return Shuffled(prompt, None, "stated", stated)
        profile = (draw or self.draw)(rng)
        text = _neutral(prompt, statements, articles=language == "en") if statements else prompt
        outcome: Outcome = "replaced" if statements else "added"
        return Shuffled(self._with_profile(text, profile, language), profile, outcome, stated)

    @cached_property
    def _wordings(self) -> Mapping[str, Wording]:
        # The exceptions of all languages: a baby elephant holds the German word for a baby, too.
        exceptions = [phrase for language in self.languages for phrase in self.people[language].exceptions]
        return {
            language: Wording(
                self.people[language].words,
                exceptions,
                {attribute.name: attribute.stated.get(language, {}) for attribute in self.attributes},
            )
            for language in self.languages
        }

    @cached_property
    def _phrases(self) -> Mapping[tuple[str, str, str], str]:
        return {
            (attribute.name, value.name, language): phrase
            for attribute in self.attributes
            for value in attribute.values
            for language, phrase in value.phrases.items()
        }

    def _language_of(self, prompt: str) -> str:
        return max(self.languages, key=lambda language: self._wordings[language].people(prompt))

    def _with_profile(self, prompt: str, profile: Profile, language: str) -> str:
        phrases = ", ".join(self._phrases[name, value, language] for name, value in profile.items())
        before, _, after = self.templates[language].partition("{prompt}")
        # Not str.format, to which braces in a prompt would be fields.
        return before.replace("{profile}", phrases) + prompt + after.replace("{profile}", phrases)


def shuffle(prompt: str, rng: random.Random | None = None) -> Shuffled:
    """`AttributeSchema.shuffle` of the default schema."""
    return AttributeSchema.default().shuffle(prompt, rng)


@lru_cache(maxsize=1)
def _default() -> AttributeSchema:
    return AttributeSchema.from_yaml(Path(__file__).with_name("data") / "attributes.yaml")


def _drawn(attribute: Attribute, rng: random.Random) -> str:
    return rng.choices(attribute.values, [value.weight for value in attribute.values])[0].name


# --- neutral words


def _neutral(prompt: str, statements: Sequence[Statement], *, articles: bool) -> str:
    """The prompt with the neutral words of `statements`; English articles then fit the words that follow them."""
    text = ""
    done = 0
    for place in statements:
        text += prompt[done : place.start]
        done = place.end
        neutral = _cased(place.neutral, like=prompt[place.start : place.end])
        if not neutral:
            rest = prompt[done:].lstrip(" ")
            done = len(prompt) - len(rest)
            text = text.rstrip(" ") + (" " if text.strip() and rest[:1] not in ",.;:!?" else "")
        if articles:
            text = _with_article(text, before=neutral or prompt[done:])
        text += neutral
    return (text + prompt[done:]).strip()


def _with_article(text: str, before: str) -> str:
    return re.sub(r"\b([Aa])n?( +)$", lambda match: match[1] + "n" * (before[:1] in _VOWELS) + match[2], text)


def _cased(word: str, *, like: str) -> str:
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


# --- checks


def _check(schema: AttributeSchema) -> None:
    names = [attribute.name for attribute in schema.attributes]
    if not names:
        raise SchemaError("the schema has no attributes")
    if len(set(names)) != len(names):
        raise SchemaError(f"two attributes have the same name: {', '.join(names)}")
    if not schema.templates:
        raise SchemaError("the schema has no languages")
    for attribute in schema.attributes:
        _check_values(attribute, schema.languages)
    for language, template in schema.templates.items():
        if template.count("{prompt}") != 1 or template.count("{profile}") != 1:
            raise SchemaError(f"the template of {language!r} doesn't have {{prompt}} and {{profile}} once each")
        if language not in schema.people or not schema.people[language].words:
            raise SchemaError(f"there are no words for people in the language {language!r}")
    for combination in schema.forbidden:
        _check_forbidden(schema, combination)
    _check_drawable(schema)
    try:
        _ = schema._wordings
    except ValueError as error:
        raise SchemaError(str(error)) from error


def _check_values(attribute: Attribute, languages: Sequence[str]) -> None:
    names = [value.name for value in attribute.values]
    where = f"attribute {attribute.name!r}"
    if len(set(names)) != len(names):
        raise SchemaError(f"{where}: two values have the same name")
    for value in attribute.values:
        if not 0 <= value.weight < float("inf"):
            raise SchemaError(f"{where}: value {value.name!r}: the weight is not a number from 0 on")
        for language in languages:
            if not value.phrases.get(language, "").strip():
                raise SchemaError(f"{where}: value {value.name!r}: there is no phrase in the language {language!r}")
    if sum(value.weight > 0 for value in attribute.values) < 2:
        raise SchemaError(f"{where}: there are no two values of weight above 0 to draw from")


def _check_forbidden(schema: AttributeSchema, combination: Mapping[str, str]) -> None:
    if len(combination) < 2:
        raise SchemaError("a forbidden combination names fewer than two attributes; a weight of 0 forbids one value")
    for name, value in combination.items():
        if value not in {each.name for each in schema.attribute(name).values}:
            raise SchemaError(f"forbidden: attribute {name!r} has no value {value!r}")


def _check_drawable(schema: AttributeSchema) -> None:
    combinations = prod(sum(value.weight > 0 for value in attribute.values) for attribute in schema.attributes)
    if combinations <= _MAX_COMBINATIONS and not schema.can_be_drawn({}):
        raise SchemaError("every combination of the attributes' values is forbidden")
