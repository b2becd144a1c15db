"""Finding personal data in texts with Presidio, with nothing of what it finds in a log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.errors import MissingDependencyError, PiiError

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

PATTERN_TYPES = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "IBAN_CODE",
    "CREDIT_CARD",
    "IP_ADDRESS",
    "NATIONAL_ID",
    "DATE_OF_BIRTH",
)
NAME_TYPES = ("PERSON", "LOCATION")
TYPES = (*PATTERN_TYPES, *NAME_TYPES)

_THRESHOLD = 0.3
_LOGGERS = ("presidio-analyzer", "presidio-anonymizer")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Finding:
    """Personal data at `text[start:end]`, of one of TYPES, with Presidio's confidence from 0 to 1."""

    start: int
    end: int
    type: str
    score: float


class PiiFinder:
    """Finds the personal data of a text.

        finder = PiiFinder()
        finder.find("call Anna Schmidt on +49 30 901820")

    `types` are those looked for, by default all. Names of persons and places need a spaCy model: with `names` None they
    are found where one is installed, and `note` says so where it isn't; True demands a model, False does without. What
    stands in `keep` is never found, letter case aside: an artist's name that is no secret. `phone_regions` are the
    countries whose numbers are known without a + in front.

    Raises:
        MissingDependencyError: Presidio is not installed, or `names` is True and there is no model.
        PiiError: a type is unknown, or none is left.
    """

    def __init__(
        self,
        types: Iterable[str] | None = None,
        *,
        names: bool | None = None,
        keep: Iterable[str] = (),
        phone_regions: Sequence[str] | None = None,
    ) -> None:
        wanted = tuple(TYPES if types is None else types)
        if unknown := [each for each in wanted if each not in TYPES]:
            raise PiiError(f"there is no type {unknown[0]!r} of personal data; there are {', '.join(TYPES)}")
        model = _model(names, wanted)
        self.types = tuple(each for each in TYPES if each in wanted and (model or each in PATTERN_TYPES))
        if not self.types:
            raise PiiError("there is no type of personal data to look for")
        self.note = _note(wanted, self.types, asked=names is not False)
        if self.note:
            _log.warning(self.note)
        self._keep = frozenset(each.casefold() for each in keep)
        self._engine = _engine(model, phone_regions)

    def find(self, text: str) -> list[Finding]:
        """What there is, in order and without overlap; of two findings at one place, the surer, then the longer.

        Raises:
            PiiError: a pattern took too long on this text, so that nobody can say what it holds.
        """
        if not text.strip():
            return []
        with _unlogged() as skipped:
            results = self._engine.analyze(text, language="en", entities=list(self.types), score_threshold=_THRESHOLD)
        if skipped:
            raise PiiError("a pattern took too long: the text can't be searched for personal data")
        found = (_trimmed(Finding(each.start, each.end, each.entity_type, each.score), text) for each in results)
        return _without_overlap(each for each in found if self._counts(each, text))

    def _counts(self, found: Finding, text: str) -> bool:
        from privacy.pii.names import is_name

        value = text[found.start : found.end]
        return value.casefold() not in self._keep and (found.type not in NAME_TYPES or is_name(value))


def _model(names: bool | None, wanted: Sequence[str]) -> str | None:
    try:
        from privacy.pii.names import HOW_TO_INSTALL, installed_model
    except ImportError as error:
        raise MissingDependencyError(
            "personal data is found with Presidio, which is not installed: pip install 'latentguard[privacy]'"
        ) from error

    if names is False or not set(wanted) & set(NAME_TYPES):
        return None
    model = installed_model()
    if model is None and names:
        raise MissingDependencyError(f"names are found with a spaCy model, and none is installed: {HOW_TO_INSTALL}")
    return model


def _note(wanted: Sequence[str], types: Sequence[str], *, asked: bool) -> str | None:
    from privacy.pii.names import HOW_TO_INSTALL

    if not asked or not set(wanted) - set(types):
        return None
    return f"names of persons and places are NOT found: no spaCy model is installed ({HOW_TO_INSTALL})"


def _engine(model: str | None, phone_regions: Sequence[str] | None) -> AnalyzerEngine:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NoOpNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    from privacy.pii.names import NamesEngine
    from privacy.pii.recognizers import PHONE_REGIONS, NeedsContext, pattern_recognizers

    with _unlogged():
        recognizers = pattern_recognizers(phone_regions or PHONE_REGIONS)
        if model:
            recognizers.append(SpacyRecognizer(supported_entities=list(NAME_TYPES)))
        return AnalyzerEngine(
            RecognizerRegistry(recognizers, supported_languages=["en"]),
            NamesEngine(model) if model else NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}]),
            supported_languages=["en"],
            context_aware_enhancer=NeedsContext(),
        )


def _trimmed(found: Finding, text: str) -> Finding:
    # A model counts a line's end among the name before it.
    value = text[found.start : found.end]
    start = found.end - len(value.lstrip())
    return replace(found, start=start, end=start + len(value.strip()))


def _without_overlap(found: Iterable[Finding]) -> list[Finding]:
    # Patterns before names: a model takes parts of addresses and numbers for names.
    best_first = sorted(
        found, key=lambda each: (each.type in NAME_TYPES, -each.score, each.start - each.end, each.start, each.type)
    )
    kept: list[Finding] = []
    for each in best_first:
        if all(each.end <= other.start or each.start >= other.end for other in kept):
            kept.append(each)
    return sorted(kept)


# --- Presidio's log quotes what it works on


_skipped: ContextVar[list[str] | None] = ContextVar("_skipped", default=None)


class _DropOurs(logging.Filter):
    """Drops what Presidio logs while this module calls it, and notes when it gave a pattern up."""

    def filter(self, record: logging.LogRecord) -> bool:
        skipped = _skipped.get()
        if skipped is None:
            return True
        if "timed out" in str(record.msg):
            skipped.append(record.name)
        return False


_filter = _DropOurs()


@contextmanager
def _unlogged() -> Iterator[list[str]]:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
    skipped: list[str] = []
    token = _skipped.set(skipped)
    try:
        yield skipped
    finally:
        _skipped.reset(token)
