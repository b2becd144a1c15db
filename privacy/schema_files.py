"""Reading attribute schemas from YAML. docs/attributes.md describes the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from privacy.attributes import Attribute, AttributeSchema, PeopleWords, Value
from privacy.errors import SchemaError

_MAX_BYTES = 2**20


def read_schema(path: str | Path) -> AttributeSchema:
    """The schema of a YAML file.

    Raises:
        SchemaError: the file can't be read, is no YAML, or has an entry that is missing, unknown or of the wrong kind;
            the message names the file and the entry.
    """
    path = Path(path)
    try:
        return _schema(_loaded(path))
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _loaded(path: Path) -> object:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SchemaError(f"can't be read: {error.strerror or error}") from error
    if len(content) > _MAX_BYTES:
        raise SchemaError(f"is longer than {_MAX_BYTES:,} bytes")
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SchemaError(f"is not valid YAML{where}") from error


def _schema(content: object) -> AttributeSchema:
    fields = _fields(
        content, "the schema", required={"languages", "templates", "people", "attributes"}, optional={"forbidden"}
    )
    languages = [_text(each, "languages") for each in _list(fields["languages"], "languages")]
    templates = _texts(fields["templates"], "templates")
    people = _mapping(fields["people"], "people")
    if missing := [language for language in languages if language not in templates or language not in people]:
        raise SchemaError(f"the language {missing[0]!r} is missing in 'templates' or 'people'")
    forbidden = _list(fields.get("forbidden") or [], "forbidden")
    return AttributeSchema(
        tuple(_attribute(each, number) for number, each in enumerate(_list(fields["attributes"], "attributes"), 1)),
        {language: _people(people[language], f"people: {language}") for language in languages},
        {language: templates[language] for language in languages},
        tuple(_texts(each, f"forbidden: entry {number}") for number, each in enumerate(forbidden, 1)),
    )


def _attribute(content: object, number: int) -> Attribute:
    fields = _fields(content, f"attribute {number}", required={"name", "values"}, optional={"stated", "ordered"})
    name = _text(fields["name"], f"attribute {number}: name")
    where = f"attribute {name!r}"
    ordered = fields.get("ordered", False)
    if not isinstance(ordered, bool):
        raise SchemaError(f"{where}: ordered: is not true or false")
    values = _list(fields["values"], f"{where}: values")
    stated = _mapping(fields.get("stated") or {}, f"{where}: stated")
    return Attribute(
        name,
        tuple(_value(each, f"{where}: value {place}") for place, each in enumerate(values, 1)),
        {language: _texts(terms, f"{where}: stated: {language}", blank=True) for language, terms in stated.items()},
        ordered,
    )


def _value(content: object, where: str) -> Value:
    fields = _fields(content, where, required={"name", "phrases"}, optional={"weight"})
    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise SchemaError(f"{where}: weight: is not a number")
    return Value(_text(fields["name"], f"{where}: name"), _texts(fields["phrases"], f"{where}: phrases"), float(weight))


def _people(content: object, where: str) -> PeopleWords:
    fields = _fields(content, where, required={"words"}, optional={"phrases", "except"})
    words = _text(fields["words"], f"{where}: words").split()
    phrases, exceptions = (
        [_text(each, f"{where}: {field}") for each in _list(fields.get(field) or [], f"{where}: {field}")]
        for field in ("phrases", "except")
    )
    return PeopleWords((*words, *phrases), tuple(exceptions))


def _fields(content: object, where: str, *, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    fields = _mapping(content, where)
    if missing := sorted(required - fields.keys()):
        raise SchemaError(f"{where}: has no field {missing[0]!r}")
    if unknown := sorted(fields.keys() - required - optional):
        raise SchemaError(f"{where}: has an unknown field {unknown[0]!r}")
    return fields


def _mapping(content: object, where: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise SchemaError(f"{where}: is not a mapping")
    for key in content:
        # YAML takes an unquoted no, on or 1 for something else than text.
        if not isinstance(key, str):
            raise SchemaError(f"{where}: the key {key!r} is not text; put it in quotes")
    return content


def _list(content: object, where: str) -> list[Any]:
    if not isinstance(content, list):
        raise SchemaError(f"{where}: is not a list")
    return content


def _text(content: object, where: str) -> str:
    if not isinstance(content, str) or not content.strip():
        raise SchemaError(f"{where}: is not text, or empty")
    return content


def _texts(content: object, where: str, *, blank: bool = False) -> dict[str, str]:
    texts = _mapping(content, where)
    for key, text in texts.items():
        if not isinstance(text, str) or not (blank or text.strip()):
            raise SchemaError(f"{where}: {key}: is not text{'' if blank else ', or empty'}")
    return dict(texts)
