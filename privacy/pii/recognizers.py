"""Presidio's recognizers of personal data that need no model, and the rules by which weak matches count.

A number alone may be anything: a seed, a size, an identifier of nobody. What a checksum or a shape doesn't settle only
counts with a word before it that says what it is. Nothing here uses the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import tldextract
from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer, RecognizerResult
from presidio_analyzer.context_aware_enhancers import ContextAwareEnhancer
from presidio_analyzer.nlp_engine import NlpArtifacts
from presidio_analyzer.predefined_recognizers import (
    AuTfnRecognizer,
    CreditCardRecognizer,
    DeTaxIdRecognizer,
    EmailRecognizer,
    EsNieRecognizer,
    EsNifRecognizer,
    FiPersonalIdentityCodeRecognizer,
    IbanRecognizer,
    InAadhaarRecognizer,
    IpRecognizer,
    ItFiscalCodeRecognizer,
    KrRrnRecognizer,
    NhsRecognizer,
    PhoneRecognizer,
    PlPeselRecognizer,
    SePersonnummerRecognizer,
    SgFinRecognizer,
    UkNinoRecognizer,
    UsSsnRecognizer,
)
from presidio_analyzer.predefined_recognizers.country_specific.canada.ca_sin_recognizer import CaSinRecognizer

# Numbers that start with + are found whatever the region.
PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IN")

# Reserved or used at home only, so that no public list has them; an address is personal all the same.
_MORE_SUFFIXES = ("test", "example", "invalid", "local", "localhost", "internal", "lan", "home", "corp")

_STRONG_IDS = (
    UsSsnRecognizer,
    UkNinoRecognizer,
    EsNifRecognizer,
    EsNieRecognizer,
    ItFiscalCodeRecognizer,
    FiPersonalIdentityCodeRecognizer,
    SgFinRecognizer,
)
# Digits that one number in ten passes the checksum of, in groups that other numbers have too.
_WEAK_IDS = (
    NhsRecognizer,
    PlPeselRecognizer,
    SePersonnummerRecognizer,
    InAadhaarRecognizer,
    AuTfnRecognizer,
    CaSinRecognizer,
    DeTaxIdRecognizer,
    KrRrnRecognizer,
)

_CONTEXT = {
    "PHONE_NUMBER": r"phone|tel|telefon\w*|téléphone|teléfono|cell|mobile|handy|call|ring|dial|text|sms|whatsapp|fax"
    r"|contact|number|reach\w*",
    "NATIONAL_ID": r"ssn|social\s+security|nhs|national\s+(?:id|insurance|health)|nino|id|identity|identification"
    r"|insurance|passport|tax|tfn|sin|pesel|personnummer|hetu|aadhaar|nif|nie|dni|nric|fin|rrn|codice\s+fiscale"
    r"|steuer\w*|idnr|ausweis\w*",
    "DATE_OF_BIRTH": r"born(?:\s+on)?|d\.?\s?o\.?\s?b|date\s+of\s+birth|birth\s?date|birthday|geboren(?:\s+am)?"
    r"|geburtsdatum|geburtstag|née?(?:\s+le)?|date\s+de\s+naissance|nacid[oa](?:\s+el)?|fecha\s+de\s+nacimiento",
}
# At most three words between it and the number, in the same line: "call me any time on 5550199".
_BEFORE = {
    entity: re.compile(rf"(?<!\w)(?:{words})(?!\w)[^\w\n]*(?:\w+[^\w\n]+){{0,3}}$", re.IGNORECASE)
    for entity, words in _CONTEXT.items()
}
_CONTEXT_CHARS = 60
_NO_SCORE = 0.0


class OfflineEmailRecognizer(EmailRecognizer):
    """Presidio's, with the list of public suffixes that tldextract ships: its default is to download a new one."""

    def validate_result(self, pattern_text: str) -> bool:
        return bool(_suffixes()(pattern_text).suffix)


@lru_cache(maxsize=1)
def _suffixes() -> tldextract.TLDExtract:
    return tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), extra_suffixes=_MORE_SUFFIXES)


# Dates, addresses of the internet, card numbers, and runs of more digits than a phone number has. Presidio takes some
# for phone numbers, and searching them for one costs most of the time.
_NO_PHONE = re.compile(
    r"(?<![\d.+/-])"
    r"(?:\d{4}([./-])\d{1,2}\1\d{1,2}|\d{1,2}([./-])\d{1,2}\2\d{4}|\d{1,3}(?:\.\d{1,3}){3}"
    r"|\d{4}(?:[ -]?\d{4}){3,}|\d{16,})"
    r"(?![./-]?\d)"
)
_PHONE_LIKE = re.compile(r"(?:\d[^\w\n]{0,3}){7}")


class QuickPhoneRecognizer(PhoneRecognizer):
    """Presidio's, a region at a time, until there is nothing like a phone number left in the text."""

    def __init__(self, regions: Sequence[str]) -> None:
        super().__init__(supported_regions=tuple(regions))
        self._by_region = [PhoneRecognizer(supported_regions=(region,)) for region in regions]

    def analyze(
        self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        left = _NO_PHONE.sub(_blank, text)
        results: list[RecognizerResult] = []
        for recognizer in self._by_region:
            if not _PHONE_LIKE.search(left):
                break
            for result in recognizer.analyze(left, entities):
                # Presidio only keeps results under the name of a recognizer that it knows.
                result.recognition_metadata[RecognizerResult.RECOGNIZER_IDENTIFIER_KEY] = self.id
                results.append(result)
                left = left[: result.start] + "|" * (result.end - result.start) + left[result.end :]
        return results


def _blank(match: re.Match[str]) -> str:
    return "|" * len(match[0])


class AllCardsRecognizer(CreditCardRecognizer):
    """Presidio's card numbers, and Mastercard's from 2221 to 2720."""

    def __init__(self) -> None:
        second_series = Pattern("Mastercard 2 (weak)", r"\b2[2-7]\d{2}[- ]?\d{4}[- ]?\d{4}[- ]?\d{4}\b", 0.3)
        super().__init__(patterns=[*CreditCardRecognizer.PATTERNS, second_series])


_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan januar janvier enero",
            "february feb februar février febrero",
            "march mar märz mars marzo",
            "april apr avril abril",
            "may mai mayo",
            "june jun juni juin junio",
            "july jul juli juillet julio",
            "august aug août agosto",
            "september sep sept septembre septiembre",
            "october oct oktober octobre octubre",
            "november nov novembre noviembre",
            "december dec dezember décembre diciembre",
        ),
        1,
    )
    for name in names.split()
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_ISO = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_NUMBERS = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})")


class DateOfBirthRecognizer(PatternRecognizer):
    """Whole dates that somebody alive may be born on; `NeedsContext` wants a word before them that says so."""

    def __init__(self) -> None:
        patterns = [
            Pattern("year first", r"(?<![\d.-])\d{4}([-/.])\d{1,2}\1\d{1,2}(?![\d-])", 0.4),
            Pattern("year last", r"(?<![\d.-])\d{1,2}([-/.])\d{1,2}\1(?:\d{4}|\d{2})(?![\d-])", 0.4),
            Pattern(
                "day, month, year",
                rf"\b\d{{1,2}}(?:st|nd|rd|th|\.)?\s+(?:of\s+|de\s+)?(?:{_MONTH})\.?,?\s+(?:de\s+)?\d{{4}}\b",
                0.4,
            ),
            Pattern("month, day, year", rf"\b(?:{_MONTH})\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}\b", 0.4),
        ]
        super().__init__("DATE_OF_BIRTH", patterns=patterns, name="DateOfBirthRecognizer")

    def validate_result(self, pattern_text: str) -> bool | None:
        """False for what is no day of the last 120 years; None, which keeps the score, for one that is."""
        return None if _may_be_birth(pattern_text) else False


def _may_be_birth(text: str) -> bool:
    today = date.today()
    return any(date(today.year - 120, 1, 1) <= day <= today for day in _days(text))


def _days(text: str) -> list[date]:
    """The days that a date may stand for: 03/04/85 may be of March or April."""
    if found := _ISO.fullmatch(text):
        readings = [(int(found[1]), int(found[2]), int(found[3]))]
    elif found := _NUMBERS.fullmatch(text):
        first, second, year = map(int, found.groups())
        years = [year] if len(found[3]) == 4 else [1900 + year, 2000 + year]
        readings = [(each, *pair) for each in years for pair in ((first, second), (second, first))]
    else:
        words = re.findall(r"[^\W\d]+|\d+", text.casefold())
        month = next((_MONTHS[word] for word in words if word in _MONTHS), 0)
        numbers = [int(word) for word in words if word.isdigit()]
        readings = [(numbers[-1], month, numbers[0])]
    return [day for reading in readings if (day := _day(*reading))]


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


class NeedsContext(ContextAwareEnhancer):
    """Takes the score from weak matches without a word before them that says what they are.

    Weak are dates, the numbers of `_WEAK_IDS`, and phone numbers and ids of digits alone. Presidio's own enhancer
    raises scores by lemmas near by, for which it needs a model.
    """

    def __init__(self) -> None:
        super().__init__(0.0, 0.0, 0, 0)

    def enhance_using_context(
        self,
        text: str,
        raw_results: list[RecognizerResult],
        nlp_artifacts: NlpArtifacts,
        recognizers: list[EntityRecognizer],
        context: list[str] | None = None,
    ) -> list[RecognizerResult]:
        weak_ids = {recognizer.id for recognizer in recognizers if isinstance(recognizer, _WEAK_IDS)}
        for result in raw_results:
            if _is_weak(result, text, weak_ids) and not _has_context(result, text):
                result.score = _NO_SCORE
        return raw_results


def _is_weak(result: RecognizerResult, text: str, weak_ids: set[str]) -> bool:
    if result.entity_type == "DATE_OF_BIRTH":
        return True
    if result.entity_type not in _BEFORE:
        return False
    identifier = result.recognition_metadata[RecognizerResult.RECOGNIZER_IDENTIFIER_KEY]
    return identifier in weak_ids or text[result.start : result.end].isdigit()


def _has_context(result: RecognizerResult, text: str) -> bool:
    before = text[max(0, result.start - _CONTEXT_CHARS) : result.start]
    return _BEFORE[result.entity_type].search(before) is not None


def pattern_recognizers(phone_regions: Sequence[str] = PHONE_REGIONS) -> list[EntityRecognizer]:
    """The recognizers of every type of personal data that is told by pattern and checksum."""
    ids: tuple[Any, ...] = (*_STRONG_IDS, *_WEAK_IDS)
    return [
        OfflineEmailRecognizer(),
        QuickPhoneRecognizer(phone_regions),
        IbanRecognizer(),
        AllCardsRecognizer(),
        IpRecognizer(),
        DateOfBirthRecognizer(),
        *(recognizer(supported_language="en", supported_entity="NATIONAL_ID") for recognizer in ids),
    ]
