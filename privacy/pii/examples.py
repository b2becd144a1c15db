"""A labelled set to measure the finding of personal data with: prompts in eight shapes, and clean ones.

All of it is made up, from a seed. Numbers have right checksums and come, where there is such a thing, from ranges kept
for documentation and drama, so that they are nobody's.
"""

from __future__ import annotations

import random
import re
from calendar import month_name
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from privacy.pii.finder import Finding

_SLOT = re.compile(r"\{([A-Z_]+)\}")


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt of a shape, and where its personal data is."""

    shape: str
    text: str
    spans: tuple[Finding, ...]


def labelled_prompts(count: int = 560, seed: int = 0) -> list[LabelledPrompt]:
    """`count` prompts with personal data, spread evenly over the shapes."""
    rng = random.Random(seed)
    shapes = list(_SHAPES)
    return [_filled(shapes[number % len(shapes)], rng) for number in range(count)]


def clean_prompts(count: int = 500, seed: int = 0) -> list[str]:
    """`count` different prompts without personal data, though with numbers and words that resemble it."""
    rng = random.Random(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        scene = f"{rng.choice(_SUBJECTS)} {rng.choice(_ACTIONS)}"
        prompts[f"{scene}, {rng.choice(_STYLES)}{rng.choice(_LOOKALIKES)(rng)}"] = None
    return list(prompts)


def _filled(shape: str, rng: random.Random) -> LabelledPrompt:
    text, spans, done = "", [], 0
    template = rng.choice(_SHAPES[shape])
    for slot in _SLOT.finditer(template):
        text += template[done : slot.start()]
        value = rng.choice(_STYLES) if slot[1] == "STYLE" else _VALUES[slot[1]](rng)
        if slot[1] != "STYLE":
            spans.append(Finding(len(text), len(text) + len(value), slot[1], 1.0))
        text += value
        done = slot.end()
    return LabelledPrompt(shape, text + template[done:], tuple(spans))


_SHAPES: Mapping[str, Sequence[str]] = {
    "caption": (
        "portrait of {PERSON} in {LOCATION}, {STYLE}",
        "a photo of {PERSON} walking the dog, {STYLE}",
        "{PERSON} and {PERSON} at their wedding in {LOCATION}",
        "a birthday cake for {PERSON}, born on {DATE_OF_BIRTH}, {STYLE}",
        "the old house in {LOCATION} where {PERSON} grew up, {STYLE}",
    ),
    "request": (
        "My name is {PERSON}. Please paint my garden in {LOCATION} and send it to {EMAIL_ADDRESS}",
        "Draw a logo for my shop, you can reach me at {PHONE_NUMBER} or {EMAIL_ADDRESS}",
        "I was born on {DATE_OF_BIRTH} in {LOCATION}, show the sky of that night",
        "I need a passport style photo, my social security number is {NATIONAL_ID}",
        "charge my card {CREDIT_CARD} and make me a poster of a sailing boat",
    ),
    "tags": (
        "{PERSON}, {LOCATION}, oil painting, {STYLE}, 8k, --ar 16:9",
        "business card, {PERSON}, {PHONE_NUMBER}, {EMAIL_ADDRESS}, minimalist, 4k",
        "flyer, lost cat, call {PHONE_NUMBER}, bold letters, {STYLE}",
        "tattoo design, {PERSON}, born {DATE_OF_BIRTH}, black ink, {STYLE}",
    ),
    "document": (
        "an identity card that reads 'Name: {PERSON}, date of birth: {DATE_OF_BIRTH}, ID number: {NATIONAL_ID}'",
        "a close-up of a bank card with the number {CREDIT_CARD} and the name {PERSON}, {STYLE}",
        "an invoice to be paid to {IBAN_CODE}, questions to {EMAIL_ADDRESS}, {STYLE}",
        "a driving licence, DOB {DATE_OF_BIRTH}, national insurance {NATIONAL_ID}, flat lay",
    ),
    "log line": (
        "2024-03-02 12:01:22 INFO user={EMAIL_ADDRESS} ip={IP_ADDRESS} prompt='a red bicycle' seed=2938471023",
        "[worker-3] 203 ms client {IP_ADDRESS} asked for 'a {STYLE} lake', steps=30, cfg=7.5",
        "WARN payment of 12.50 from {IBAN_CODE} refused for {EMAIL_ADDRESS}",
        "DEBUG card={CREDIT_CARD} status=declined addr={IP_ADDRESS}",
    ),
    "letter": (
        "Dear team, this is {PERSON} from {LOCATION}. My last picture never arrived. Call me on {PHONE_NUMBER}. "
        "Kind regards, {PERSON}",
        "Hello, please refund the picture to {IBAN_CODE}. My tax id is {NATIONAL_ID}. Thanks, {PERSON}",
        "Hi, I moved to {LOCATION} last week. My new mobile is {PHONE_NUMBER}. Best, {PERSON}",
    ),
    "JSON": (
        '{"prompt": "a castle, {STYLE}", "email": "{EMAIL_ADDRESS}", "ip": "{IP_ADDRESS}"}',
        '{"name": "{PERSON}", "dob": "{DATE_OF_BIRTH}", "phone": "{PHONE_NUMBER}", "style": "{STYLE}"}',
        '{"iban": "{IBAN_CODE}", "card": "{CREDIT_CARD}", "id number": "{NATIONAL_ID}"}',
    ),
    "form": (
        "Name: {PERSON}\nDate of birth: {DATE_OF_BIRTH}\nPhone: {PHONE_NUMBER}\nMotif: a lighthouse, {STYLE}",
        "Customer: {PERSON}\nCity: {LOCATION}\nIBAN: {IBAN_CODE}\nMotif: two cats",
        "E-mail: {EMAIL_ADDRESS}\nSSN: {NATIONAL_ID}\nCard: {CREDIT_CARD}\nIP: {IP_ADDRESS}",
    ),
}

# --- made-up values

# fmt: off
_FIRST = [
    "Anna", "James", "Maria", "Robert", "Fatima", "Wei", "Priya", "Carlos", "Emily", "Ahmed", "Sofia", "Thomas",
    "Yuki", "Olga", "Daniel", "Chloe", "Michael", "Aisha", "Lars", "Ingrid", "Pedro", "Laura", "Kevin", "Nadia",
    "George", "Hannah", "Samuel", "Elena", "Victor", "Grace",
]
_LAST = [
    "Schmidt", "Johnson", "Garcia", "Nguyen", "Müller", "Kowalski", "Rossi", "Tanaka", "Singh", "Smith", "Brown",
    "Haddad", "O'Connor", "Petrov", "Silva", "Andersson", "Dubois", "Williams", "Cohen", "Okafor", "Jensen", "Miller",
    "Martinez", "Kim", "Patel", "Novak", "Fischer", "Taylor", "Moreau", "Walker",
]
_PLACES = [
    "Berlin", "Paris", "London", "New York", "Tokyo", "Chicago", "Madrid", "Lagos", "Mumbai", "Sydney", "Toronto",
    "Vienna", "Oslo", "Cairo", "Lisbon", "Boston", "Dublin", "Springfield", "Leeds", "Hamburg", "Nairobi", "Seattle",
    "Buenos Aires", "San Diego", "Manchester", "Krakow", "Bristol", "Zurich", "Kyoto", "Austin",
]
# fmt: on
_MONTHS = list(month_name)[1:]


def _person(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"


def _email(rng: random.Random) -> str:
    first, last = rng.choice(_FIRST).lower(), rng.choice(_LAST).lower().replace("'", "").replace("ü", "ue")
    name = rng.choice((f"{first}.{last}", f"{first[0]}{last}{rng.randint(1, 99)}", f"{last}_{first}", f"{first}+ai"))
    return f"{name}@{rng.choice(('example.com', 'example.org', 'mail.example.net', 'post.example.co.uk'))}"


def _phone(rng: random.Random) -> str:
    line, london = f"555-01{rng.randint(0, 99):02}", f"7946 0{rng.randint(0, 999):03}"
    return rng.choice(
        (
            f"+1 212-{line}",
            f"(415) {line}",
            f"202-{line}",
            f"+44 20 {london}",
            f"020 {london}",
            f"+49 30 23125{rng.randint(0, 999):03}",
            f"+33 1 99 00 {rng.randint(10, 99)} {rng.randint(10, 99)}",
        )
    )


def _iban(rng: random.Random) -> str:
    country, account = rng.choice(
        (
            ("DE", _digits(rng, 18)),
            ("GB", "WEST" + _digits(rng, 14)),
            ("NL", "ABNA" + _digits(rng, 10)),
            ("ES", _digits(rng, 20)),
            ("AT", _digits(rng, 16)),
        )
    )
    as_number = "".join(str(int(each, 36)) for each in f"{account}{country}00")
    iban = f"{country}{98 - int(as_number) % 97:02}{account}"
    return iban if rng.random() < 0.4 else _grouped(iban, 4)


def _card(rng: random.Random) -> str:
    number = rng.choice(("411111", "555555", "222300", "601111")) + _digits(rng, 9)
    doubled = "".join(str(int(digit) * (2 - place % 2)) for place, digit in enumerate(number))
    number += str(-sum(map(int, doubled)) % 10)
    return rng.choice((number, _grouped(number, 4), _grouped(number, 4).replace(" ", "-")))


def _ip(rng: random.Random) -> str:
    last = rng.randint(1, 254)
    return rng.choice(
        (
            f"192.0.2.{last}",
            f"198.51.100.{last}",
            f"203.0.113.{last}",
            f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{last}",
            f"2001:db8::{rng.randint(1, 65535):x}:{last:x}",
        )
    )


def _national_id(rng: random.Random) -> str:
    return rng.choice((_us, _uk, _spain, _finland, _sweden, _health, _poland))(rng)


def _us(rng: random.Random) -> str:
    return f"{rng.randint(100, 599)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"


def _uk(rng: random.Random) -> str:
    pairs = [f"{rng.randint(0, 99):02}" for _ in range(3)]
    return rng.choice((" ", "")).join([rng.choice(("AB", "CE", "JG", "PX")), *pairs, rng.choice("ABCD")])


def _spain(rng: random.Random) -> str:
    number = rng.randint(10_000_000, 99_999_999)
    return f"{number}{'TRWAGMYFPDXBNJZSQVHLCKE'[number % 23]}"


def _finland(rng: random.Random) -> str:
    day, rest = f"{rng.randint(1, 28):02}{rng.randint(1, 12):02}{rng.randint(40, 99)}", f"{rng.randint(2, 899):03}"
    return f"{day}-{rest}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(day + rest) % 31]}"


def _sweden(rng: random.Random) -> str:
    digits = f"{rng.randint(40, 99)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}{_digits(rng, 3)}"
    doubled = "".join(str(int(digit) * (2 - place % 2)) for place, digit in enumerate(digits))
    return f"{digits[:6]}-{digits[6:]}{-sum(map(int, doubled)) % 10}"


def _health(rng: random.Random) -> str:
    while True:
        digits = "999" + _digits(rng, 6)
        check = -sum(int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=True)) % 11
        if check < 10:
            return f"{digits[:3]} {digits[3:6]} {digits[6:]}{check}"


def _poland(rng: random.Random) -> str:
    digits = f"{rng.randint(40, 99)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}{_digits(rng, 4)}"
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)
    return digits + str(-sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % 10)


def _birth(rng: random.Random) -> str:
    year, month, day = rng.randint(1930, 2010), rng.randint(1, 12), rng.randint(1, 28)
    name = _MONTHS[month - 1]
    return rng.choice(
        (
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{month:02}/{day:02}/{year}",
            f"{day} {name} {year}",
            f"{name} {day}, {year}",
        )
    )


_VALUES: Mapping[str, Callable[[random.Random], str]] = {
    "PERSON": _person,
    "LOCATION": lambda rng: rng.choice(_PLACES),
    "EMAIL_ADDRESS": _email,
    "PHONE_NUMBER": _phone,
    "IBAN_CODE": _iban,
    "CREDIT_CARD": _card,
    "IP_ADDRESS": _ip,
    "NATIONAL_ID": _national_id,
    "DATE_OF_BIRTH": _birth,
}


def _digits(rng: random.Random, number: int) -> str:
    return "".join(rng.choices("0123456789", k=number))


def _grouped(text: str, size: int) -> str:
    return " ".join(text[start : start + size] for start in range(0, len(text), size))


# --- clean prompts

# fmt: off
_SUBJECTS = [
    "a red bicycle", "two kittens", "an old lighthouse", "a knight in armour", "a bowl of ramen",
    "a girl with an umbrella", "a steam train", "a crowded market", "a glass teapot", "an astronaut",
    "a field of sunflowers", "a wooden cabin", "a jazz band", "a robot gardener", "a paper boat", "a barista",
    "a snowy owl", "a vintage camera", "a dragon made of smoke", "an elderly fisherman", "a greenhouse",
    "a cathedral window", "a street musician", "a bakery counter", "a ballet dancer", "a mountain pass",
]
_ACTIONS = [
    "at dawn", "in the rain", "under a starry sky", "on a rooftop", "by the river", "in an empty room",
    "beside a fireplace", "in thick fog", "on a winter morning", "seen from above", "reflected in a puddle",
    "behind a window", "in the golden hour", "at the edge of a forest",
]
_STYLES = [
    "watercolour", "oil painting", "35mm film", "studio light", "flat vector art", "pencil sketch",
    "cinematic lighting", "isometric render", "soft focus", "pixel art", "charcoal drawing", "long exposure",
    "macro photo", "pastel colours", "high contrast", "art nouveau poster",
]
# fmt: on
_LOOKALIKES: Sequence[Callable[[random.Random], str]] = (
    lambda rng: "",
    lambda rng: f", seed {rng.randint(10**9, 10**10 - 1)}",
    lambda rng: f", {rng.choice(('1920x1080', '1024x1024', '3840 x 2160'))}, --ar 16:9 --v 5.2",
    lambda rng: f", f/1.8, 1/250 s, ISO {rng.choice((100, 400, 3200))}, 85 mm",
    lambda rng: f", a sign that says {rng.randint(100, 9999)}",
    lambda rng: f", poster for the fair on {rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1950, 2024)}",
    lambda rng: f", dated {rng.randint(1, 28):02}.{rng.randint(1, 12):02}.{rng.randint(1900, 2023)}",
    lambda rng: f", steps {rng.randint(20, 50)}, cfg 7.5, model 2.1, {_digits(rng, 12)}",
    lambda rng: f", price tag of {rng.randint(1, 999)}.{rng.randint(10, 99)}, item {_digits(rng, 8)}",
    lambda rng: f", (best quality:1.{rng.randint(1, 4)}), 8k, trending on ArtStation, Unreal Engine 5",
    lambda rng: f", clock showing {rng.randint(1, 12)}:{rng.randint(10, 59)}, Octane render",
    lambda rng: f", number plate {rng.choice('ABCDEFG')}{rng.randint(10, 99)} {rng.randint(100, 999)}, icon@2x.png",
)
