"""The embedded encoder in ONNX Runtime: compared before it is used, and the same states in any company."""

from __future__ import annotations

import base64
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest

from latentguard.arrays import NUMPY
from latentguard.encoders.base import padded
from latentguard.encoders.embedded import EmbeddedEncoder, _graph
from latentguard.encoders.onnx_runtime import OnnxPrecision, OnnxRuntime, agreement
from latentguard.errors import EncoderError
from latentguard.onnx_session import opened

TEXTS = ["", "a red wine", "a knight with a sword", "a dog", "the photo of a dog running through the field, " * 6]


@pytest.fixture(scope="module")
def encoder() -> EmbeddedEncoder:
    return EmbeddedEncoder(device=NUMPY, threads=2)


def runtime(graph: Any, precision: Any = None) -> OnnxRuntime:
    return OnnxRuntime("minilm-l6", graph, precision, 1, NUMPY)  # type: ignore[arg-type]


def of_the_model(precision: OnnxPrecision) -> bytes:
    return _graph(precision, (6,))


def damaged(precision: OnnxPrecision) -> bytes:
    """The model with one weight matrix of the 8-bit graph turned upside down."""
    if precision == "fp32":
        return of_the_model(precision)
    model = onnx.load_from_string(of_the_model(precision))
    weight = next(t for t in model.graph.initializer if t.name == "encoder.layer.3.intermediate.dense.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    return model.SerializeToString()


def test_the_model_agrees_with_itself_in_float32() -> None:
    assert 0.997 < agreement(opened(of_the_model("int8"), 1)) <= 1


def test_what_the_model_is_compared_with_is_what_float32_gives() -> None:
    described = opened(of_the_model("int8"), 1).get_modelmeta().custom_metadata_map["check"]
    check = json.loads(described)
    (pooled,) = opened(of_the_model("fp32"), 1).run(["pooled"], {"ids": np.array(check["ids"], dtype=np.int32)})
    assert np.frombuffer(base64.b64decode(check["pooled"]), dtype=np.float32) == pytest.approx(pooled.ravel(), abs=1e-5)


def test_a_graph_that_says_nothing_to_compare_with_does_not_agree() -> None:
    assert agreement(opened(of_the_model("fp32"), 1)) == -1


def test_a_wrong_8_bit_model_gives_way_to_float32_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = runtime(damaged)
    assert found.precision == "fp32"
    assert "minilm-l6: its 8-bit states have a cosine of" in caplog.text
    assert "going on in float32" in caplog.text
    ids, mask = np.array([[101, 2417, 102]]), np.ones((1, 3), dtype=bool)
    assert np.array_equal(found(ids, mask).pooled, runtime(of_the_model, "fp32")(ids, mask).pooled)


def test_a_wrong_8_bit_model_that_was_asked_for_is_an_error() -> None:
    with pytest.raises(EncoderError, match="minilm-l6: its 8-bit states have a cosine"):
        runtime(damaged, "int8")


def test_the_model_as_it_is_needs_no_note(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert runtime(of_the_model).precision == "int8"
    assert not caplog.records


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_is_not_there_is_an_error(precision: str) -> None:
    with pytest.raises(EncoderError, match=f"no {precision} precision on cpu in ONNX Runtime"):
        runtime(of_the_model, precision)


def test_a_texts_states_do_not_depend_on_the_others_by_a_single_bit(encoder: EmbeddedEncoder) -> None:
    single, windows = encoder.single_threaded(), [encoder.windows(text)[0] for text in TEXTS]
    together = single.encode_windows(windows)
    for row, window in enumerate(windows):
        alone = single.encode_windows([window])
        length = len(window.ids)
        assert np.array_equal(together.hidden[row, :length], alone.hidden[0])
        assert np.array_equal(together.pooled[row], alone.pooled[0])
        assert not together.hidden[row, length:].any()
        assert together.mask[row].sum() == length


def test_the_pooled_state_is_the_mean_over_the_tokens(encoder: EmbeddedEncoder) -> None:
    states = encoder.encode(TEXTS)
    means = [hidden[mask].mean(axis=0) for hidden, mask in zip(states.hidden, states.mask, strict=True)]
    assert np.array(means) == pytest.approx(states.pooled, abs=1e-5)


def test_one_thread_gives_what_two_give_side_by_side(encoder: EmbeddedEncoder) -> None:
    single = encoder.single_threaded()
    assert (encoder.threads, single.threads) == (2, 1)
    assert single.single_threaded() is single
    assert encoder.single_threaded()._forward is single._forward
    expected = encoder.encode(TEXTS).pooled
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: single.encode(TEXTS).pooled, range(8)):
            assert found == pytest.approx(expected, abs=1e-5)


def test_it_runs_what_a_batch_of_windows_is_padded_to(encoder: EmbeddedEncoder) -> None:
    windows = [encoder.windows(text)[0] for text in TEXTS]
    ids, mask = padded(windows, encoder.pad_id, length=encoder.window)
    assert np.array_equal(encoder._forward(ids, mask).pooled, encoder.encode_windows(windows).pooled)
