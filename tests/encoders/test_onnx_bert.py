"""The 8-bit weights of the ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard.encoders.embedded import EmbeddedEncoder, _graph
from latentguard.encoders.onnx_bert import _quantised


@pytest.fixture(scope="module")
def int8_weights(embedded: EmbeddedEncoder) -> list[np.ndarray]:
    """The quantised weights [K, N] of the embedded model's graph."""
    assert embedded.precision == "int8"
    tensors = onnx.load_from_string(_graph("int8", embedded.layers)).graph.initializer
    return [onnx.numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]


def test_every_product_of_the_model_is_in_8_bits(int8_weights: list[np.ndarray]) -> None:
    assert len(int8_weights) == 6 * 4


def test_no_layer_above_the_highest_asked_for_is_computed(embedded: EmbeddedEncoder) -> None:
    names = [node.name or node.output[0] for node in onnx.load_from_string(_graph("int8", (0, 2))).graph.node]
    assert any(name.startswith("encoder.layer.1.") for name in names)
    assert not any(name.startswith("encoder.layer.2.") for name in names)


def test_no_pair_of_products_can_overflow_16_bits(int8_weights: list[np.ndarray]) -> None:
    for weight in int8_weights:
        pairs = weight.astype(np.int64).reshape(-1, 2, weight.shape[1])
        largest = max(np.maximum(pairs, 0).sum(axis=1).max(), np.maximum(-pairs, 0).sum(axis=1).max())
        assert 255 * largest < 2**15


@given(seed=st.integers(0, 2**32 - 1), magnitude=st.floats(1e-6, 1e3))
def test_levels_times_scale_are_the_weight_to_half_a_level(seed: int, magnitude: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((3, 8)) * magnitude).astype(np.float32)
    levels, scale = _quantised(weight)
    assert (np.abs(levels * scale[:, None] - weight) <= 0.501 * scale[:, None]).all()


def test_a_row_of_zeros_stays_zero() -> None:
    levels, scale = _quantised(np.zeros((2, 4), np.float32))
    assert not levels.any()
    assert np.isfinite(scale).all()
