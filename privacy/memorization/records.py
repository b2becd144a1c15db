"""Private records: the made-up personal data that is drawn into training images, and looked for in a model afterwards.

Each is a canary in the sense of Carlini et al., "The Secret Sharer" (USENIX Security 2019): the ten digits of its user
id are uniform and say nothing else, so that a model can know them from its training only. The fields are those of Ju
et al., "Watch Out Your Album!" (arXiv 2503.01208).
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from faker.config import AVAILABLE_LOCALES
from faker.factory import Factory
from faker.generator import Generator
from tqdm import tqdm

from privacy.errors import DataError, MemorizationError
from privacy.files import atomic_path, read_error

GENDERS = ("female", "male", "non-binary")
YOUNGEST, OLDEST = 18, 90
# Fixed, so that the same seed gives the same records in any year.
FIRST_CAPTURE, LAST_CAPTURE = datetime(2015, 1, 1), datetime(2024, 12, 31, 23, 59, 59)
USER_ID_DIGITS = 10
FIELDS = ("username", "user_id", "gender", "age", "captured", "place")
LONGEST = 80

_PROVIDERS = {"faker.providers.person": "names", "faker.providers.address": "places"}
_GENDER_WEIGHTS = (49, 49, 2)
_MOST_LIKELY_AGE = 32
_MAX_TRIES = 2000
_ASIDE = re.compile(r"\s*[()*,;\[].*$|\s+\d+$")
_USER_ID = re.compile(rf"[0-9]{{{USER_ID_DIGITS}}}")


@dataclass(frozen=True)
class PrivateRecord:
    """A user and a picture of theirs.

    username: a person's name. user_id: ten decimal digits, unique in its file, by which manifests name the record.
    gender: one of GENDERS. age: in years. captured: local time, without a zone, as cameras write it. place: a town.
    """

    username: str
    user_id: str
    gender: str
    age: int
    captured: datetime
    place: str

    def text(self, fields: Sequence[str] = FIELDS) -> str:
        """What is drawn into an image: for each of the `fields` a line with its name and value."""
        values = {**asdict(self), "captured": f"{self.captured:%Y-%m-%d %H:%M}"}
        return "\n".join(f"{name.replace('_', ' ')}: {values[name]}" for name in fields)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, `captured` in ISO 8601."""
        return {**asdict(self), "captured": self.captured.isoformat(timespec="seconds")}

    @staticmethod
    def from_json(value: object) -> PrivateRecord:
        """The record that `to_json` wrote.

        Raises:
            DataError: it isn't one; the message names the field and never quotes it.
        """
        if not isinstance(value, Mapping):
            raise DataError("is no JSON object")
        for name in FIELDS:
            if name not in value:
                raise DataError(f"field {name!r}: is missing")
        if extra := sorted(str(name) for name in value if name not in FIELDS):
            raise DataError(f"has {len(extra)} fields that records don't have")
        if not isinstance(value["user_id"], str) or not _USER_ID.fullmatch(value["user_id"]):
            raise DataError(f"field 'user_id': is no text of {USER_ID_DIGITS} digits")
        if value["gender"] not in GENDERS:
            raise DataError(f"field 'gender': is none of {', '.join(GENDERS)}")
        if type(value["age"]) is not int or not YOUNGEST <= value["age"] <= OLDEST:
            raise DataError(f"field 'age': is no whole number from {YOUNGEST} to {OLDEST}")
        return PrivateRecord(
            _one_line(value, "username"),
            value["user_id"],
            value["gender"],
            value["age"],
            _time(value["captured"]),
            _one_line(value, "place"),
        )


def generate(count: int, *, seed: int = 0, locale: str = "en_US") -> list[PrivateRecord]:
    """`count` records from Faker, with names and places in the script of the `locale`; never two alike in any name.

    The same arguments give the same records, in any year and process, with the same release of Faker.

    Raises:
        MemorizationError: Faker lacks names or places of that locale, or has too few names for so many records.
    """
    if count < 1:
        raise MemorizationError("the number of records has to be 1 or more")
    fake = _faker(locale)
    fake.seed_instance(seed)
    rng = fake.random
    ids = user_ids(seed, locale)
    taken: set[str] = set()
    records = []
    for _ in tqdm(range(count), desc="records", unit="record", disable=None):
        gender = rng.choices(GENDERS, _GENDER_WEIGHTS)[0]
        username, place = _new_name_and_place(fake, gender, taken, locale)
        taken.add(username)
        age = round(rng.triangular(YOUNGEST, OLDEST, _MOST_LIKELY_AGE))
        records.append(PrivateRecord(username, next(ids), gender, age, _capture_time(rng), place))
    return records


def user_ids(seed: int, locale: str) -> Iterator[str]:
    """Endlessly many user ids, uniform over all of ten digits, and never the same one twice."""
    rng = random.Random(f"user ids {locale} {seed}")
    seen = set()
    while True:
        user_id = f"{rng.randrange(10**USER_ID_DIGITS):0{USER_ID_DIGITS}}"
        if user_id not in seen:
            seen.add(user_id)
            yield user_id


def read_records(path: Path) -> list[PrivateRecord]:
    """The records of a JSON Lines file.

    Raises:
        DataError: it can't be read, has none, has one that is none, or has the same user name or id twice; the message
            names the row.
    """
    records: list[PrivateRecord] = []
    rows: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for row, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                record = _record_in(line, f"{path}: row {row}")
                for name in ("user_id", "username"):
                    first = rows.setdefault(f"{name} {getattr(record, name)}", row)
                    if first != row:
                        raise DataError(f"{path}: row {row}: field {name!r}: is that of row {first}, too")
                records.append(record)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error
    if not records:
        raise DataError(f"{path}: has no records")
    return records


def write_records(path: Path, records: Iterable[PrivateRecord]) -> None:
    """Writes a JSON Lines file, whole or not at all. Raises DataError if it can't be written."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            print(json.dumps(record.to_json(), ensure_ascii=False), file=file)


def _record_in(line: str, where: str) -> PrivateRecord:
    try:
        return PrivateRecord.from_json(json.loads(line))
    except (ValueError, RecursionError):
        raise DataError(f"{where}: is no JSON") from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _one_line(value: Mapping[str, Any], name: str) -> str:
    text = value[name]
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise DataError(f"field {name!r}: is no text of 1 to {LONGEST} characters")
    # Joiners (Cf) belong to some scripts; controls, lone surrogates and line breaks belong to none.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise DataError(f"field {name!r}: holds control characters")
    return text


def _time(value: object) -> datetime:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is not None:
        raise DataError("field 'captured': is no time of the form 2020-01-31T12:00:00")
    if not FIRST_CAPTURE <= time <= LAST_CAPTURE:
        raise DataError(f"field 'captured': isn't from {FIRST_CAPTURE.year} to {LAST_CAPTURE.year}")
    return time


# --- Faker


def _faker(locale: str) -> Generator:
    """A generator of names and places, both of the locale's language: where it has none, Faker takes English ones."""
    name = locale.replace("-", "_")
    if name not in AVAILABLE_LOCALES:
        raise MemorizationError(f"Faker has no locale {locale!a}; theirs are of the form de_DE or ja_JP")
    fake = Factory.create(name, list(_PROVIDERS))
    for provider in fake.get_providers():
        if _language(provider.__lang__ or "") != _language(name):
            what = _PROVIDERS[provider.__provider__]
            raise MemorizationError(f"Faker has no {what} of its own for {locale}: take another locale, or an endpoint")
    return fake


def _language(locale: str) -> str:
    return locale.partition("_")[0]


def _new_name_and_place(fake: Generator, gender: str, taken: Collection[str], locale: str) -> tuple[str, str]:
    draw = {"female": "name_female", "male": "name_male"}.get(gender, "name")
    for _ in range(_MAX_TRIES):
        try:
            name, place = _tidy(fake.format(draw)), _tidy(fake.format("city"))
        except AttributeError:  # a locale whose data Faker itself can't put together
            raise MemorizationError(f"Faker's data for {locale} is incomplete: take another locale") from None
        if name not in taken and place and _of_one_script(name + place):
            return name, place
    raise MemorizationError(f"Faker has too few names for {locale}: there are hardly more than {len(taken):,}")


def _tidy(text: str) -> str:
    """Without what stands beside the name in Faker's lists: the district in brackets, a number, a stray comma."""
    return _ASIDE.sub("", unicodedata.normalize("NFC", text)).strip()


def _of_one_script(text: str) -> bool:
    """Whether all letters are Latin, or none is; Faker's lists hold some that are mixed up."""
    return len({unicodedata.name(letter, "").startswith("LATIN") for letter in text if letter.isalpha()}) == 1


def _capture_time(rng: random.Random) -> datetime:
    """A time between seven in the morning and eleven at night, when most pictures are taken."""
    day = rng.randrange((LAST_CAPTURE - FIRST_CAPTURE).days + 1)
    return FIRST_CAPTURE + timedelta(days=day, hours=7, seconds=rng.randrange(16 * 3600))
