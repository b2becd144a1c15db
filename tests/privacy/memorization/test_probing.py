"""Probes: they find what is there, are at chance where nothing is, and no record is in training and test at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from privacy.errors import MemorizationError
from privacy.memorization import probing
from privacy.memorization.probing import (
    DESIGNS,
    KNOWN_RECORDS,
    NEW_RECORDS,
    Layout,
    assign_folds,
    difference,
    p_any_layer,
    probe,
    probe_layers,
)

PAIRS, IMAGES, WIDTH = 24, 3, 24
Floats = NDArray[np.float64]


def a_layout(pairs: int = PAIRS, images: int = IMAGES) -> Layout:
    image = np.repeat(np.arange(pairs * images), 2)
    return Layout.of(np.tile([True, False], pairs * images), image // images, image)


def some_states(layout: Layout, *, seed: int = 0, text: float = 1.0) -> Floats:
    """What an untrained model that sees text makes of the views: the image, and the record's own, random, part."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(layout.images.max() + 1, WIDTH))
    record = rng.normal(size=(layout.pair_count, 2, WIDTH))
    noise = rng.normal(size=(len(layout.seen), WIDTH))
    return image[layout.images] + text * record[layout.pairs, layout.seen.astype(int)] + 0.3 * noise


def familiar(layout: Layout, states: Floats, strength: float) -> Floats:
    """The same states, with all seen records moved in one direction."""
    direction = np.random.default_rng(99).normal(size=WIDTH)
    return states + strength * layout.seen[:, None] * direction / np.linalg.norm(direction)


@pytest.mark.parametrize("design", DESIGNS)
def test_nothing_is_found_where_nothing_is(design: probing.Design) -> None:
    layout = a_layout()
    found = [probe(some_states(layout, seed=seed), layout, design, permutations=19, seed=seed) for seed in range(5)]
    assert np.mean([each.accuracy - each.chance for each in found]) == pytest.approx(0, abs=0.06)
    assert sum(each.p_value <= 0.05 for each in found) <= 1


@pytest.mark.parametrize("design", DESIGNS)
def test_what_all_seen_records_share_is_found_in_both_designs(design: probing.Design) -> None:
    layout = a_layout()
    found = probe(familiar(layout, some_states(layout), 4), layout, design, permutations=49)
    assert found.accuracy > 0.75
    assert found.p_value == 0.02
    assert found.low < found.accuracy < found.high


def test_text_that_any_model_reads_raises_the_chance_of_known_records_only() -> None:
    layout = a_layout()
    states = np.hstack([some_states(layout, seed=seed, text=2) for seed in range(4)])
    known = probe(states, layout, KNOWN_RECORDS, permutations=9)
    new = probe(states, layout, NEW_RECORDS, permutations=9)
    assert known.accuracy > 0.8
    assert known.chance == pytest.approx(known.accuracy, abs=0.06)
    assert new.accuracy < 0.65
    assert new.chance == pytest.approx(0.5, abs=0.07)


def test_squares_find_records_that_stand_out_each_in_its_own_direction() -> None:
    layout = a_layout()
    rng = np.random.default_rng(5)
    signs = rng.choice([-1, 1], layout.pair_count)[layout.pairs] * layout.seen
    states = 0.5 * some_states(layout)
    states[:, :3] += 8 * signs[:, None]
    linear = probe(states, layout, NEW_RECORDS, permutations=9)
    quadratic = probe(states, layout, NEW_RECORDS, features="quadratic", permutations=9)
    assert linear.accuracy < 0.6 < 0.75 < quadratic.accuracy


@given(st.integers(5, 12), st.integers(2, 6), st.integers(2, 5), st.integers(0, 1000), st.sampled_from(DESIGNS))
@settings(max_examples=60, deadline=None)
def test_no_image_and_in_new_records_no_record_is_in_two_folds(
    pairs: int, images: int, folds: int, seed: int, design: probing.Design
) -> None:
    layout = a_layout(pairs, images)
    fold = assign_folds(layout, design, folds, seed)
    apart = layout.pairs if design == NEW_RECORDS else layout.images
    for group in np.unique(apart):
        assert len(set(fold[apart == group])) == 1
    for number in np.unique(fold):
        assert layout.seen[fold == number].mean() == 0.5
    if design == KNOWN_RECORDS:
        for pair in range(pairs):
            assert len(set(fold[layout.pairs == pair])) >= 2


@pytest.mark.parametrize("width", [8, 300])
def test_the_probe_is_a_logistic_regression_standardised_within_the_fold(width: int) -> None:
    layout = a_layout(10, 2)
    states = np.random.default_rng(1).normal(3, 10, (40, width)) + layout.seen[:, None]
    fold = assign_folds(layout, NEW_RECORDS, 5, 0)
    correct = []
    for number in range(5):
        test = fold == number
        scaler = StandardScaler().fit(states[~test])
        classifier = LogisticRegression(C=probing._INVERSE_REGULARISATION, max_iter=1000)
        classifier.fit(scaler.transform(states[~test]), layout.seen[~test])
        correct.append(classifier.predict(scaler.transform(states[test])) == layout.seen[test])
    assert probe(states, layout, NEW_RECORDS, permutations=1).accuracy == pytest.approx(np.mean(correct))


@pytest.mark.parametrize("features", probing.FEATURES)
def test_features_are_fitted_on_the_training_fold_alone(features: probing.Features) -> None:
    rng = np.random.default_rng(2)
    train, test = rng.normal(3, 10, (40, 8)), rng.normal(500, 1, (10, 8))
    fitted, _ = probing._fold_features(train, test, features)
    assert fitted.mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert fitted.std(axis=0) == pytest.approx(1)


def test_the_same_seed_gives_the_same_outcome_in_any_number_of_processes() -> None:
    layout = a_layout(10, 2)
    layers = [(str(seed), _Drawn(layout, seed)) for seed in range(2)]
    one = probe_layers(layers, layout, NEW_RECORDS, permutations=5)
    two = probe_layers(layers, layout, NEW_RECORDS, permutations=5, jobs=2)
    assert list(one) == list(two) == ["0", "1"]
    assert [each.accuracy for each in one.values()] == [each.accuracy for each in two.values()]
    assert [each.p_value for each in one.values()] == [each.p_value for each in two.values()]


class _Drawn:
    def __init__(self, layout: Layout, seed: int) -> None:
        self.layout, self.seed = layout, seed

    def __call__(self) -> Floats:
        return some_states(self.layout, seed=self.seed)


def test_having_looked_at_many_layers_raises_the_p_value() -> None:
    layout = a_layout()
    layers = [(str(seed), _Drawn(layout, seed)) for seed in range(4)]
    found = probe_layers(layers, layout, NEW_RECORDS, permutations=29)
    corrected = p_any_layer(found)
    assert all(corrected[name] >= found[name].p_value - 0.034 for name in found)
    assert min(corrected.values()) > 0.05
    signal = {**found, "signal": probe(familiar(layout, some_states(layout), 4), layout, NEW_RECORDS, permutations=29)}
    assert p_any_layer(signal)["signal"] == 1 / 30


def test_two_models_are_compared_pair_by_pair() -> None:
    layout = a_layout()
    before = probe(some_states(layout), layout, KNOWN_RECORDS, permutations=49)
    after = probe(familiar(layout, some_states(layout), 4), layout, KNOWN_RECORDS, permutations=49)
    above = difference(after, before)
    assert above.value == pytest.approx(after.accuracy - before.accuracy)
    assert 0 < above.low < above.value < above.high
    assert above.p_value == 0.02
    same = difference(before, before)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_layouts_that_leak_are_refused() -> None:
    with pytest.raises(MemorizationError, match="each image has to bear"):
        Layout.of([True, True, False, False], [0, 0, 0, 0], [0, 0, 1, 1])
    with pytest.raises(MemorizationError, match="each image has to bear"):
        Layout.of([True, False], [0, 1], [0, 0])
    with pytest.raises(MemorizationError, match="equally many"):
        Layout.of([True], [0, 0], [0])


def test_too_little_for_a_design_is_refused() -> None:
    with pytest.raises(MemorizationError, match="5 folds of new records"):
        assign_folds(a_layout(4, 2), NEW_RECORDS, 5, 0)
    with pytest.raises(MemorizationError, match="two images or more"):
        assign_folds(a_layout(6, 1), KNOWN_RECORDS, 5, 0)
    with pytest.raises(MemorizationError, match="finite"):
        probe(np.full((12, 2), np.nan), a_layout(6, 1), NEW_RECORDS)
