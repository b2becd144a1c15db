"""Profiles for many images, drawn so that the images of any window keep a small t-closeness.

Independent draws leave the groups of a window uneven by chance. Here the values of the quasi-identifiers and of the
sensitive attribute come from a deck that holds each combination as often as its weight says; it is shuffled, dealt to
the end, and shuffled again. docs/attributes.md has the proof of the bound, and what dealing to the end costs;
`python -m privacy.population` compares it with what is measured.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from itertools import product
from math import lcm, prod, sqrt

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from privacy.attributes import AttributeSchema, Profile
from privacy.errors import PrivacyError, SchemaError

_MAX_DECK = 100_000

QUASI_IDENTIFIERS = ("skin colour", "hair colour")
SENSITIVE = "race"

Card = tuple[str, ...]
Counts = NDArray[np.int64]


class Population:
    """Draws profiles, and keeps the t-closeness of the last `window` of them.

    For any `window` profiles drawn one after the other, the t-closeness of `sensitive` given `quasi_identifiers`, by
    equal or ordered distance, is at most `bound`; `guaranteed` is the bound that the proof gives, which is tighter.
    Attributes of neither kind are drawn independently. Objects may be shared by threads; the bound is for one object
    and starts anew with another.

        population = Population(AttributeSchema.default(), window=1000, bound=0.1)
        shuffled = schema.shuffle(prompt, draw=population.draw)

    Raises:
        SchemaError: the schema lacks an attribute, the deck would have more than 100,000 cards, or the bound can't be
            guaranteed for windows this small; the message says from which size on it can.
    """

    def __init__(
        self,
        schema: AttributeSchema,
        *,
        window: int,
        bound: float,
        quasi_identifiers: Sequence[str] = QUASI_IDENTIFIERS,
        sensitive: str = SENSITIVE,
    ) -> None:
        if not quasi_identifiers or sensitive in quasi_identifiers:
            raise SchemaError("there have to be quasi-identifiers, and the sensitive attribute is none of them")
        if len(set(quasi_identifiers)) != len(quasi_identifiers):
            raise SchemaError("a quasi-identifier is named twice")
        self._schema = schema
        self._names = (*quasi_identifiers, sensitive)
        self._deck = _deck(schema, self._names)
        of_deck = _Window(schema, self._names, len(self._deck))
        for card in self._deck:
            of_deck.add(card)
        self.guaranteed = min(1.0, guaranteed_closeness(window, len(self._deck)) + of_deck.closeness())
        if self.guaranteed > bound:
            raise SchemaError(_too_small(bound - of_deck.closeness(), len(self._deck), window))
        self._hand: list[Card] = []
        self._window = _Window(schema, self._names, window)
        self._lock = threading.Lock()

    def draw(self, rng: random.Random | None = None) -> Profile:
        """The next profile; `rng` as in `AttributeSchema.draw`."""
        rng = rng or secrets.SystemRandom()
        with self._lock:
            if not self._hand:
                self._hand = list(self._deck)
                rng.shuffle(self._hand)
            card = self._hand.pop()
            self._window.add(card)
        return self._schema.draw(rng, dict(zip(self._names, card, strict=True)))

    def closeness(self) -> float:
        """The t-closeness, by equal distance, of the last `window` profiles, or of all if fewer were drawn."""
        with self._lock:
            return self._window.closeness()


class _Window:
    """The last `size` cards, counted by quasi-identifiers and sensitive value (the last of `names`)."""

    def __init__(self, schema: AttributeSchema, names: Sequence[str], size: int) -> None:
        values = [[value.name for value in schema.attribute(name).values] for name in names]
        self._place = {card: place for place, card in enumerate(product(*values))}
        self._counts: Counts = np.zeros((prod(map(len, values[:-1])), len(values[-1])), dtype=np.int64)
        self._cards: deque[Card] = deque()
        self._size = size

    def add(self, card: Card) -> None:
        self._cards.append(card)
        self._counts.flat[self._place[card]] += 1
        if len(self._cards) > self._size:
            self._counts.flat[self._place[self._cards.popleft()]] -= 1

    def closeness(self) -> float:
        return t_closeness(self._counts)


def t_closeness(counts: Counts) -> float:
    """t by equal distance, of counts [quasi-identifier classes, values of the sensitive attribute]; 0 without any.

    Li, Li and Venkatasubramanian, ICDE 2007, section 4.
    """
    sizes = counts.sum(axis=1)
    if not sizes.any():
        return 0.0
    classes = counts[sizes > 0] / sizes[sizes > 0, None]
    overall = counts.sum(axis=0) / sizes.sum()
    return float(0.5 * np.abs(classes - overall).sum(axis=1).max())


def guaranteed_closeness(window: int, deck: int) -> float:
    """What dealing decks of `deck` cards adds at most to the t-closeness of the deck, over any `window` draws.

    A window holds at least c = floor((window + 1) / deck) - 1 whole decks and parts of at most two others, which moves
    each distribution by at most max over a of 2a(1-a)/(c+2a); docs/attributes.md proves it.
    """
    whole = (window + 1) // deck - 1
    if whole < 1:
        return 1.0
    share = (sqrt(whole * whole + 2 * whole) - whole) / 2
    return min(1.0, 2 * (2 * share * (1 - share) / (whole + 2 * share)))


def _too_small(left: float, deck: int, window: int) -> str:
    if left <= 0:
        return "the forbidden combinations alone make the t-closeness larger than the bound"
    # The bound falls as 1/c: doubling, then halving the interval, finds the first c that will do.
    low, high = 1, 2
    while guaranteed_closeness((high + 1) * deck - 1, deck) > left:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if guaranteed_closeness((middle + 1) * deck - 1, deck) > left:
            low = middle + 1
        else:
            high = middle
    return f"the bound can't be guaranteed over windows of {window:,} images; it can from {(low + 1) * deck - 1:,} on"


def _deck(schema: AttributeSchema, names: Sequence[str]) -> list[Card]:
    """Each combination that isn't forbidden, as often as the product of its weights says."""
    copies = [_copies(schema, name) for name in names]
    size = prod(sum(each.values()) for each in copies)
    if size > _MAX_DECK:
        raise SchemaError(
            f"a deck of the values of {', '.join(names)} has {size:,} cards, of {_MAX_DECK:,} at most: "
            "take fewer attributes or rounder weights"
        )
    deck: list[Card] = []
    for card in product(*copies):
        number = prod(each[value] for each, value in zip(copies, card, strict=True))
        if number and schema.can_be_drawn(dict(zip(names, card, strict=True))):
            deck.extend([card] * number)
    if not deck:
        raise SchemaError(f"every combination of {', '.join(names)} is forbidden")
    return deck


def _copies(schema: AttributeSchema, name: str) -> dict[str, int]:
    """The values' weights as the smallest whole numbers of the same ratios."""
    weights = {value.name: Fraction(str(value.weight)) for value in schema.attribute(name).values}
    denominator = lcm(*(weight.denominator for weight in weights.values()))
    whole = {value: int(weight * denominator) for value, weight in weights.items()}
    divisor = np.gcd.reduce(list(whole.values()))
    return {value: number // int(divisor) for value, number in whole.items()}


# --- python -m privacy.population


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the guaranteed bound beside the worst window of a simulation, and of one with independent draws."""
    parser = argparse.ArgumentParser(
        prog="python -m privacy.population", description="compares the bound on t-closeness with a simulation"
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[200, 1000, 5000], help="numbers of images")
    parser.add_argument("--draws", type=int, default=20_000, help="profiles drawn for each (default: 20000)")
    parser.add_argument("--schema", help="a YAML file of attributes (default: the six published ones)")
    parser.add_argument("--quasi-identifiers", nargs="+", default=list(QUASI_IDENTIFIERS), metavar="NAME")
    parser.add_argument("--sensitive", default=SENSITIVE, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    identifiers = chosen.quasi_identifiers
    try:
        schema = AttributeSchema.from_yaml(chosen.schema) if chosen.schema else AttributeSchema.default()
        print(f"{'window':>8} {'guaranteed':>11} {'worst seen':>11} {'independent draws, worst seen':>30}")
        for window in chosen.windows:
            population = Population(
                schema, window=window, bound=1, quasi_identifiers=identifiers, sensitive=chosen.sensitive
            )
            draws, rng = max(window, chosen.draws), random.Random(chosen.seed)
            names = (*identifiers, chosen.sensitive)
            dealt = _simulated(names, schema, window, draws, partial(population.draw, rng))
            independent = _simulated(names, schema, window, draws, partial(schema.draw, rng))
            print(f"{window:>8,} {population.guaranteed:>11.3f} {dealt:>11.3f} {independent:>30.3f}")
    except PrivacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _simulated(
    names: Sequence[str], schema: AttributeSchema, window: int, draws: int, draw: Callable[[], Profile]
) -> float:
    """The largest t-closeness of any full window of `draws` profiles."""
    last = _Window(schema, names, window)
    worst = 0.0
    for number in tqdm(range(1, draws + 1), disable=None, leave=False):
        profile = draw()
        last.add(tuple(profile[name] for name in names))
        if number >= window:
            worst = max(worst, last.closeness())
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
