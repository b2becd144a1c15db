"""Populations: the t-closeness of every window stays under the bound that the proof gives."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare  # type: ignore[import-untyped]

from privacy.attributes import AttributeSchema, Profile
from privacy.errors import SchemaError
from privacy.population import Population, guaranteed_closeness, main, t_closeness

SCHEMA = AttributeSchema.default()
NAMES = ("skin colour", "hair colour", "race")


def _counts(profiles: list[Profile]) -> np.ndarray:
    groups = sorted({(each["skin colour"], each["hair colour"]) for each in profiles})
    races = sorted({each["race"] for each in profiles})
    counts = np.zeros((len(groups), len(races)), dtype=np.int64)
    for each in profiles:
        counts[groups.index((each["skin colour"], each["hair colour"])), races.index(each["race"])] += 1
    return counts


@given(seed=st.integers(0, 2**32), window=st.integers(80, 300))
@settings(max_examples=8)
def test_every_window_is_under_the_guaranteed_bound(seed: int, window: int) -> None:
    rng = random.Random(seed)
    population = Population(SCHEMA, window=window, bound=1.0)
    profiles = [population.draw(rng) for _ in range(window + 60)]
    for start in range(0, 60, 7):
        assert t_closeness(_counts(profiles[start : start + window])) <= population.guaranteed + 1e-12


@given(
    whole=st.integers(1, 6),
    ends=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    copies=st.lists(st.integers(1, 3), min_size=4, max_size=4),
)
@settings(max_examples=200)
def test_the_bound_holds_for_whatever_the_ends_of_a_window_hold(whole: int, ends: list[int], copies: list[int]) -> None:
    # A product deck of weights `copies` per value, `whole` times, and up to two more of each card at the ends.
    deck = np.tile(np.array(copies), (3, 1))
    counts = deck * whole + np.minimum(np.array(ends).reshape(3, 4) * deck, 2 * deck)
    window = (whole + 1) * int(deck.sum()) - 1
    assert t_closeness(counts) <= guaranteed_closeness(window, int(deck.sum())) + 1e-12


def test_the_running_closeness_is_that_of_the_last_window() -> None:
    rng = random.Random(4)
    population = Population(SCHEMA, window=150, bound=0.5)
    assert population.closeness() == 0.0
    profiles = [population.draw(rng) for _ in range(400)]
    assert population.closeness() == pytest.approx(t_closeness(_counts(profiles[-150:])))


def test_decks_are_closer_than_independent_draws() -> None:
    rng = random.Random(4)
    population = Population(SCHEMA, window=1000, bound=0.04)
    dealt = [population.draw(rng) for _ in range(1000)]
    independent = [SCHEMA.draw(rng) for _ in range(1000)]
    assert t_closeness(_counts(dealt)) < 0.25 * t_closeness(_counts(independent))


def test_each_profile_by_itself_is_still_uniform() -> None:
    rng = random.Random(9)
    firsts = [Population(SCHEMA, window=100, bound=1.0).draw(rng) for _ in range(600)]
    for name in ("race", "gender", "eye colour"):
        values = sorted({each[name] for each in firsts})
        assert chisquare([sum(each[name] == value for each in firsts) for value in values]).pvalue > 0.001


def test_a_window_too_small_for_the_bound_names_one_that_is_not() -> None:
    with pytest.raises(SchemaError, match=r"it can from (\d+) on") as caught:
        Population(SCHEMA, window=50, bound=0.1)
    enough = int(str(caught.value).split("from ")[1].split()[0].replace(",", ""))
    assert Population(SCHEMA, window=enough, bound=0.1).guaranteed <= 0.1
    with pytest.raises(SchemaError):
        Population(SCHEMA, window=enough - 1, bound=0.1)


def test_forbidden_combinations_are_in_no_deck_and_count_in_the_bound() -> None:
    schema = AttributeSchema(
        SCHEMA.attributes, SCHEMA.people, SCHEMA.templates, ({"skin colour": "dark", "race": "White"},)
    )
    with pytest.raises(SchemaError, match="forbidden combinations alone"):
        Population(schema, window=5000, bound=0.1)
    population = Population(schema, window=1000, bound=0.5)
    rng = random.Random(1)
    assert all(not schema.is_forbidden(population.draw(rng)) for _ in range(200))


def test_a_prompt_is_shuffled_from_a_population() -> None:
    population = Population(SCHEMA, window=100, bound=1.0)
    shuffled = SCHEMA.shuffle("a nurse", random.Random(1), draw=population.draw)
    assert shuffled.profile is not None
    assert population.closeness() == 0.0


@pytest.mark.parametrize(
    ("identifiers", "sensitive"),
    [((), "race"), (("race",), "race"), (("height",), "race"), (("gender", "gender"), "race")],
)
def test_attributes_that_make_no_sense_are_refused(identifiers: tuple[str, ...], sensitive: str) -> None:
    with pytest.raises(SchemaError):
        Population(SCHEMA, window=100, bound=1.0, quasi_identifiers=identifiers, sensitive=sensitive)


def test_the_command_prints_bound_and_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--windows", "150", "--draws", "300"]) == 0
    window, guaranteed, worst, independent = capsys.readouterr().out.splitlines()[1].split()
    assert window == "150"
    assert float(worst) <= float(guaranteed) <= 1
    assert float(worst) < float(independent)
    assert main(["--sensitive", "height"]) == 2
