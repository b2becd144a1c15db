"""The layout in slots: evaluated in the clear, it is the network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.encrypted_inference.packing import Packing, apply
from privacy.encrypted_inference.weights import Architecture, Floats, Layer, Weights
from privacy.errors import ModelError

SLOTS = 4096
LABELS = tuple("abcdefghijklmnop")

shapes = st.builds(
    lambda side, kernel, stride, channels, hidden, classes: Architecture(
        side, min(kernel, side), stride, channels, hidden, LABELS[:classes]
    ),
    side=st.integers(4, 14),
    kernel=st.integers(2, 5),
    stride=st.integers(2, 4),
    channels=st.sampled_from([1, 2, 4, 8]),
    hidden=st.sampled_from([8, 32, 64]),
    classes=st.integers(2, 16),
)


def random_weights(shape: Architecture, random: np.random.Generator) -> Weights:
    def layer(outputs: int, inputs: int) -> Layer:
        integers = random.integers(1, 32, (outputs, inputs)) * random.choice([-1, 1], (outputs, inputs))
        return Layer(integers.astype(np.int16), 0.01, random.normal(size=outputs))

    return Weights(
        shape,
        layer(shape.channels, shape.taps),
        layer(shape.hidden, shape.features),
        layer(shape.classes, shape.hidden),
    )


def in_slots(packing: Packing, weights: Weights, image: Floats) -> Floats:
    first, second, third = packing.layers(weights)
    values = apply(first, packing.encode(image)[0])
    return apply(third, np.square(apply(second, np.square(values))))


@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_what_stands_in_the_slots_is_what_the_network_says(shape: Architecture, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights, image = random_weights(shape, random), random.random((shape.side, shape.side))
    packing = Packing(shape, SLOTS)
    logits, away = packing.decode(in_slots(packing, weights, image))
    np.testing.assert_allclose(logits, weights.logits(image[None])[0], rtol=1e-9, atol=1e-9)
    assert away < 1e-9 * max(1.0, float(np.abs(logits).max()))


def test_an_image_comes_with_its_rotations(random: np.random.Generator) -> None:
    packing = Packing(Architecture(28, 7, 3, 4, 64, LABELS[:10]), SLOTS)
    vectors = packing.encode(random.random((28, 28)))
    assert vectors.shape == (packing.copies, SLOTS)
    np.testing.assert_array_equal(np.roll(vectors[0], -packing.convolution.step), vectors[1])


def test_the_tutorials_shape_needs_few_rotations() -> None:
    packing = Packing(Architecture(28, 7, 3, 4, 64, LABELS[:10]), SLOTS)
    on_the_server = packing.convolution.rotations - 1 + packing.hidden.rotations + packing.output.rotations
    assert on_the_server == 28
    assert len(packing.keys) <= 15


def test_slots_that_dont_look_like_an_answer_are_told() -> None:
    packing = Packing(Architecture(8, 3, 1, 4, 32, LABELS[:10]), SLOTS)
    values = np.zeros(SLOTS)
    assert packing.decode(values)[1] == 0
    values[17] = 3
    assert packing.decode(values)[1] == 3


def test_a_shape_that_needs_more_slots_is_refused() -> None:
    with pytest.raises(ModelError, match="slots"):
        Packing(Architecture(32, 9, 1, 4, 64, LABELS[:10]), SLOTS)
