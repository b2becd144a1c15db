"""Blind folders: a guard that reads encrypted prompts, as files without a key and without a readable word.

A blind folder is a weights folder (see :mod:`latentguard.weights`) whose concepts, and the prompt head's categories,
bear keyed hashes as names, with two things more:

    encoder/      the converted encoder, as `privacy.passkey.convert` wrote it
    blind.json    how the encoder is run, what messages may hold, what the bank's concepts are read as, and the SHA-256
                  of every other file; written last

A client needs `blind.json` and `encoder/passkey.json` alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentguard.errors import PromptError, WeightsError
from latentguard.heads import Heads
from latentguard.integrations.passkey.encoder import EncoderSettings
from latentguard.integrations.passkey.messages import EncryptedConcept, Limits
from latentguard.lexicon import WordRarity
from latentguard.mapping import MappingLayer
from latentguard.records import ConceptEntry
from latentguard.weights import Weights, WeightsConfig, load_weights, save_weights

ENCODER = "encoder"
_BLIND = "blind.json"
_FORMAT = "latentguard blind folder 1"
_FIELDS = {"format", "encoder", "limits", "concepts", "files"}
_CARD = """# A guard that reads encrypted prompts

Made by `python -m latentguard blind`. Nothing here is a key, and names are keyed hashes. See docs/blind-screening.md.
"""


@dataclass(frozen=True)
class BlindFolder:
    """What blind.json says.

    Attributes:
        settings: how the encoder is run.
        limits: what messages may hold.
        readings: the ids, and forms of the name, of each concept of the bank, in its order.
        files: SHA-256 of every other file, by its path in the folder.
    """

    settings: EncoderSettings
    limits: Limits
    readings: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]


def write_blind_folder(
    folder: Path,
    mapping: MappingLayer,
    heads: Heads | None,
    config: WeightsConfig,
    concepts: Sequence[EncryptedConcept],
    settings: EncoderSettings,
    limits: Limits,
) -> None:
    """Fills a folder that has its ``encoder/`` already. Names in ``config`` and ``heads`` have to be hashes by now.

    Raises:
        DataError, WeightsError: a file can't be written.
    """
    entries = [ConceptEntry(one.label, one.category, one.threshold) for one in concepts]
    # Rarities are part of each concept; the table that they come from stays with the key holder.
    bare = None if heads is None else replace(heads, rarity=WordRarity.of([]))
    save_weights(folder, mapping, replace(config, training={}), entries, _CARD, bare)
    dicts = [one.as_dict() for one in concepts]
    described = {
        "format": _FORMAT,
        "encoder": settings.as_dict(),
        "limits": {
            "vocabulary": limits.vocabulary,
            "rows": limits.rows,
            "barred": sorted(limits.barred),
            "words": limits.words,
        },
        "concepts": [{"ids": one["ids"], "name": one["name"]} for one in dicts],
        "files": _digests(folder),
    }
    (folder / _BLIND).write_text(json.dumps(described, separators=(",", ":")) + "\n", encoding="utf-8")


def read_blind_folder(folder: str | Path) -> BlindFolder:
    """What a blind folder's blind.json says; its other files are not looked at.

    Raises:
        WeightsError: there is none, so that the folder is no blind one or not whole, or it is damaged.
    """
    path = Path(folder) / _BLIND
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}; so it is no whole blind folder") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cut short or damaged") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.keys() != _FIELDS:
        raise WeightsError(f"{path}: not of the format {_FORMAT!r}")
    readings, files = content["concepts"], content["files"]
    if (
        not isinstance(readings, list)
        or not isinstance(files, dict)
        or not all(isinstance(f, str) for f in files.values())
    ):
        raise WeightsError(f"{path}: damaged")
    try:
        settings = EncoderSettings.from_dict(content["encoder"])
        return BlindFolder(settings, _limits(content["limits"], settings), readings, files)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def load_blind_folder(folder: str | Path) -> tuple[BlindFolder, Weights, list[EncryptedConcept]]:
    """A whole blind folder: what blind.json says, the layers with their config, and the bank.

    Raises:
        WeightsError: a file is missing, was changed, or says what this version can't follow.
    """
    folder = Path(folder)
    described = read_blind_folder(folder)
    found = _digests(folder)
    for name, digest in described.files.items():
        if name not in found:
            raise WeightsError(f"{folder}: {name} is missing")
        if not hmac.compare_digest(found[name].encode(), digest.encode()):
            raise WeightsError(f"{folder}: {name} was changed since the folder was written")
    weights = load_weights(folder)
    if len(weights.concepts) != len(described.readings):
        raise WeightsError(f"{folder}: its concepts and their readings differ in number")
    try:
        concepts = [
            EncryptedConcept.from_dict(
                {"label": e.name, "category": e.category, "threshold": e.threshold, **reading}, described.limits
            )
            for e, reading in zip(weights.concepts, described.readings, strict=True)
        ]
    except (PromptError, TypeError) as error:
        raise WeightsError(f"{folder}: its concepts can't be read ({error})") from None
    return described, weights, concepts


def _limits(content: Any, settings: EncoderSettings) -> Limits:
    whole = (
        isinstance(content, dict)
        and content.keys() == {"vocabulary", "rows", "barred", "words"}
        and isinstance(content["vocabulary"], str)
        and type(content["rows"]) is int
        and content["rows"] > 0
        and isinstance(content["barred"], list)
        and all(type(each) is int for each in content["barred"])
        and type(content["words"]) is bool
    )
    if not whole:
        raise WeightsError("what messages may hold is missing or damaged")
    return Limits(
        content["vocabulary"], content["rows"], frozenset(content["barred"]), settings.content, content["words"]
    )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, however deep, but blind.json."""
    try:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != _BLIND
        }
    except OSError as error:
        raise WeightsError(f"{error.filename}: {error.strerror or error}") from error
