"""A BERT encoder as an ONNX graph, in float32 or with 8-bit matrix products, for ONNX Runtime on a CPU.

The graph is written straight from the weights, with no tracing. In the 8-bit form each weight matrix has one scale per
output channel, and what it is multiplied with is quantised in one of two ways:

- What comes out of a layer norm, or of attention, has a range that hardly depends on the text, so its scale is fixed.
  A few channels of a layer norm are far larger than the rest; they are evened out by SmoothQuant (Xiao et al., ICML
  2023, arXiv 2211.10438): channel k of the states is divided by s_k = max|x_k|^0.8 / max_n|w_nk|^0.2, and the weights
  are multiplied by it. Dividing is free, since it goes into the gain and bias of the norm.
- What comes out of GELU has a range that depends on the token, so each token gets a scale as it comes:

      y_tn = s_t · s_n · Σ_k a_tk · w_nk,   a_tk = round(x_tk / s_t),   s_t = max(max_k x_tk, 1.2) / 223

  GELU is never below -0.17, so 32 of 256 levels are enough for what is negative.

The fixed ranges are measured by running the float32 graph on texts of random tokens, so no data is needed. No scale
depends on other prompts: a prompt's states don't depend on those that it shares a batch with.

Graph input: ids [B, L] int32, all of them real tokens, since texts of one length are put together. Outputs: hidden
[B, L, D] float32, at each token the states of the layers asked for, one after another, and pooled [B, D] float32, their
mean over the tokens. An 8-bit graph carries some token ids and what the float32 graph makes of them, by which
`onnx_runtime.agreement` tells whether it computes what it should on this processor.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentguard.encoders.onnx_runtime import CHECK, OnnxPrecision
from latentguard.onnx_graph import FLOAT, INT32, MICROSOFT, Array, OnnxGraph
from latentguard.onnx_session import opened

_LARGEST = 127  # of a quantised weight, and of a quantised activation about its zero point
_LARGEST_PAIR = 127.4  # of two neighbouring quantised weights of one sign; rounding makes it 128 at most
# GELU has its minimum, -0.16997, at x = -0.7518. Of a token whose largest entry is 1.2, 223 levels above zero leave 32
# below for 0.172; a smaller one is treated as if it had such an entry.
_GELU_LEVELS, _GELU_RANGE = 223, 1.2
_SMOOTHING = 0.8  # how much of the channels' differences goes into the weights; 0.65 to 0.9 do about as well
_MARGIN = 1.1  # how far a fixed range reaches beyond the largest value measured
_BATCHES, _TEXTS, _LONGEST_TEXT = 32, 8, 48  # random texts that ranges are measured on


@dataclass(frozen=True)
class BertShape:
    """What a BERT's weights don't tell about themselves.

    prefix, suffix: the special tokens' ids that begin and end each text.
    """

    heads: int
    norm_epsilon: float
    window: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def bert_graph(
    weights: Mapping[str, Array], shape: BertShape, layers: Sequence[int], precision: OnnxPrecision
) -> bytes:
    """The serialised ONNX model of a BERT encoder (no pooler) with exact GELU, from its Hugging Face weights.

    layers: those whose states it gives, in that order; 0 is the embeddings' output. It ends with the highest of them.
    An 8-bit one takes some two seconds, in which the float32 one runs.
    """
    if precision == "fp32":
        return _BertGraph(weights, shape, layers).serialised()
    measured = _measured(weights, shape, layers)
    return _Int8BertGraph(weights, shape, layers, measured).serialised({CHECK: measured.check})


class _BertGraph:
    """The float32 graph."""

    def __init__(self, weights: Mapping[str, Array], shape: BertShape, layers: Sequence[int]) -> None:
        self._weights = weights
        self._shape = shape
        self._layers = layers
        self._graph = OnnxGraph()
        self.multiplied: dict[str, str] = {}
        """By the name of each product the states that are multiplied."""

    def serialised(self, metadata: Mapping[str, str] | None = None, *, also: Sequence[str] = ()) -> bytes:
        """The graph; ``also`` names further states to give out."""
        graph, width = self._graph, self._weights["embeddings.word_embeddings.weight"].shape[1] * len(self._layers)
        states = list(self._states())
        graph.add("Concat", [states[layer] for layer in self._layers], "hidden", axis=2)
        graph.add("ReduceMean", ["hidden", self._axis(1)], "pooled", keepdims=0)
        outputs = {"hidden": (FLOAT, ["B", "L", width]), "pooled": (FLOAT, ["B", width])}
        further = {name: (FLOAT, ["B", "L", f"width of {name}"]) for name in also}
        return graph.serialised({"ids": (INT32, ["B", "L"])}, {**outputs, **further}, metadata)

    def _states(self) -> Iterator[str]:
        """The states after the embeddings and after each layer up to the highest one asked for."""
        states, norm = self._embedded(), "embeddings.LayerNorm"
        for number in range(max(self._layers)):
            layer = f"encoder.layer.{number}"
            states, joined = self._norm_and_product(
                states, norm, f"{layer}.attention.qkv", *self._query_key_value(f"{layer}.attention.self")
            )
            yield states
            attended = self._product(
                self._attention(joined, layer),
                f"{layer}.attention.output.dense",
                *self._linear(f"{layer}.attention.output.dense"),
            )
            states = self._graph.add("Add", [attended, states], f"{layer}.attention.sum")
            dense = f"{layer}.intermediate.dense"
            states, inner = self._norm_and_product(
                states, f"{layer}.attention.output.LayerNorm", dense, *self._linear(dense)
            )
            inner = self._graph.add("Gelu", [inner], f"{layer}.gelu", domain=MICROSOFT)
            dense = f"{layer}.output.dense"
            outer = self._product_after_gelu(inner, dense, *self._linear(dense))
            # Plain nodes: ONNX Runtime's SkipLayerNormalization takes nine times as long as its LayerNormalization.
            states, norm = self._graph.add("Add", [outer, states], f"{layer}.sum"), f"{layer}.output.LayerNorm"
        yield self._norm(states, norm)

    def _embedded(self) -> str:
        graph = self._graph
        # Prompts are single texts, so the type embedding is that of the first text at every position.
        places = self._weights["embeddings.position_embeddings.weight"][: self._shape.window]
        places = places + self._weights["embeddings.token_type_embeddings.weight"][0]
        length = graph.add("Shape", ["ids"], "length", start=1, end=2)
        place = graph.add("Slice", [graph.constant("places", places), self._axis(0), length, self._axis(0)], "place")
        return graph.add("Add", [self._words(), place], "embedded")

    def _words(self) -> str:
        words = self._graph.constant("words", self._weights["embeddings.word_embeddings.weight"])
        return self._graph.add("Gather", [words, "ids"], "word")

    def _attention(self, joined: str, layer: str) -> str:
        parts = [f"{layer}.attention.{part}" for part in ("query", "key", "value")]
        self._graph.add_several("Split", [joined], parts, axis=2, num_outputs=3)
        heads = self._shape.heads
        return self._graph.add(
            "MultiHeadAttention", parts, f"{layer}.attention.context", domain=MICROSOFT, num_heads=heads
        )

    def _norm_and_product(self, states: str, norm: str, name: str, weight: Array, bias: Array) -> tuple[str, str]:
        """A layer norm's output, and its product with a weight [N, K], plus bias [N]."""
        normed = self._norm(states, norm)
        return normed, self._product(normed, name, weight, bias)

    def _product(self, states: str, name: str, weight: Array, bias: Array) -> str:
        """states [B, L, K] times a weight [N, K], plus bias [N]."""
        self.multiplied[name] = states
        product = self._graph.add("MatMul", [states, self._graph.constant(f"{name}.weight", weight.T)], f"{name}.bare")
        return self._graph.add("Add", [product, self._graph.constant(f"{name}.bias", bias)], f"{name}.product")

    def _product_after_gelu(self, states: str, name: str, weight: Array, bias: Array) -> str:
        return self._product(states, name, weight, bias)

    def _norm(self, states: str, name: str) -> str:
        return self._norm_by(states, name, *self._linear(name), f"{name}.out")

    def _norm_by(self, states: str, name: str, gain: Array, bias: Array, output: str) -> str:
        inputs = [states, self._graph.constant(f"{name}.gain", gain), self._graph.constant(f"{name}.shift", bias)]
        return self._graph.add("LayerNormalization", inputs, output, axis=-1, epsilon=self._shape.norm_epsilon)

    def _linear(self, name: str) -> tuple[Array, Array]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _query_key_value(self, name: str) -> tuple[Array, Array]:
        weights, biases = zip(*(self._linear(f"{name}.{part}") for part in ("query", "key", "value")), strict=True)
        return np.concatenate(weights), np.concatenate(biases)

    def _axis(self, number: int) -> str:
        return self._graph.constant(f"axis_{number}", np.array([number]))


@dataclass(frozen=True)
class _Measured:
    """What the float32 graph tells: by the name of a product the largest |x_k| [K] of each channel that is multiplied,
    and the text by which `onnx_runtime.agreement` compares."""

    largest: Mapping[str, Array]
    check: str


def _measured(weights: Mapping[str, Array], shape: BertShape, layers: Sequence[int]) -> _Measured:
    writer = _BertGraph(weights, shape, layers)
    writer.serialised()
    multiplied = writer.multiplied
    names = sorted(set(multiplied.values()))
    session = opened(_BertGraph(weights, shape, layers).serialised(also=names), 1)
    chosen, words = np.random.default_rng(0), _ordered(weights["embeddings.word_embeddings.weight"])
    largest = {name: np.zeros(0, np.float32) for name in names}
    check = ""
    for _ in range(_BATCHES):
        ids = chosen.choice(words, (_TEXTS, chosen.integers(1, _LONGEST_TEXT)))
        prefix, suffix = (np.tile(frame, (_TEXTS, 1)) for frame in (shape.prefix, shape.suffix))
        ids = np.concatenate([prefix, ids, suffix], axis=1).astype(np.int32)
        pooled, *states = session.run(["pooled", *names], {"ids": ids})
        for name, values in zip(names, states, strict=True):
            most = np.abs(values).max(axis=(0, 1))
            largest[name] = np.maximum(largest[name], most) if largest[name].size else most
        check = check or _check_text(ids, pooled)
    return _Measured({product: largest[states] for product, states in multiplied.items()}, check)


def _ordered(words: Array) -> Array:
    """The ids of embeddings [V, D] in an order of the embeddings themselves.

    So a model whose tokens have other numbers, and nothing else, is measured on the same texts and scores the same.
    """
    return np.lexsort(words[:, :4].T)


def _check_text(ids: Array, pooled: Array) -> str:
    return json.dumps({"ids": ids.tolist(), "pooled": base64.b64encode(pooled.astype(np.float32).tobytes()).decode()})


class _Int8BertGraph(_BertGraph):
    """The graph with 8-bit products."""

    def __init__(
        self, weights: Mapping[str, Array], shape: BertShape, layers: Sequence[int], measured: _Measured
    ) -> None:
        super().__init__(weights, shape, layers)
        self._largest = measured.largest
        self._states_shape: str | None = None

    def _words(self) -> str:
        # Half precision halves the file and changes no state by more than the products' rounding does.
        words = self._weights["embeddings.word_embeddings.weight"].astype(np.float16)
        half = self._graph.add("Gather", [self._graph.constant("words", words), "ids"], "word_half")
        return self._graph.add("Cast", [half], "word", to=FLOAT)

    def _norm_and_product(self, states: str, norm: str, name: str, weight: Array, bias: Array) -> tuple[str, str]:
        largest = self._largest[name]
        smooth = _smoothing(largest, weight)
        gain, shift = self._linear(norm)
        normed = self._norm_by(states, norm, gain / smooth, shift / smooth, f"{norm}.smooth")
        product = self._fixed_product(normed, name, weight * smooth, bias, float((largest / smooth).max()))
        scales = self._graph.constant(f"{norm}.scales", smooth)
        return self._graph.add("Mul", [normed, scales], f"{norm}.out"), product

    def _product(self, states: str, name: str, weight: Array, bias: Array) -> str:
        return self._fixed_product(states, name, weight, bias, float(self._largest[name].max()))

    def _fixed_product(self, states: str, name: str, weight: Array, bias: Array, largest: float) -> str:
        """states [B, L, K], none of which is meant to be beyond ``largest``, times a weight [N, K], plus bias [N]."""
        graph = self._graph
        # A weight that nothing but zeros has ever met gets a range all the same.
        step = graph.constant(f"{name}.step", np.float32(max(largest, 1e-6) * _MARGIN / _LARGEST))
        zero = graph.constant("zero_128", np.uint8(128))
        rounded = graph.add("QuantizeLinear", [states, step, zero], f"{name}.q")
        levels, scale = _quantised(weight)
        inputs = [
            rounded,
            graph.constant(f"{name}.weight", levels.T),
            step,
            graph.constant(f"{name}.scale", scale),
            zero,
            "",  # weights have no zero point
            graph.constant(f"{name}.bias", bias),
        ]
        return graph.add("MatMulIntegerToFloat", inputs, f"{name}.product", domain=MICROSOFT)

    def _product_after_gelu(self, states: str, name: str, weight: Array, bias: Array) -> str:
        """As :meth:`_product`, with a step for each token, by its largest entry."""
        graph = self._graph
        levels, scale = _quantised(weight)
        columns = graph.constant("columns", np.array([-1, weight.shape[1]]))
        rows = graph.add("Reshape", [states, columns], f"{name}.rows")
        largest = graph.add("ReduceMax", [rows, self._axis(-1)], f"{name}.largest", keepdims=1)
        largest = graph.add("Max", [largest, graph.constant("least_range", np.float32(_GELU_RANGE))], f"{name}.range")
        step = graph.add("Mul", [largest, graph.constant("level", np.float32(1 / _GELU_LEVELS))], f"{name}.step")
        steps = graph.add("Reshape", [step, self._axis(-1)], f"{name}.steps")
        zero = np.array([255 - _GELU_LEVELS], dtype=np.uint8)
        tokens = graph.add("Shape", [steps], f"{name}.tokens")
        zeros = graph.add("Expand", [graph.constant("gelu_zeros", zero), tokens], f"{name}.zeros")
        inputs = [
            graph.add("QuantizeLinear", [rows, steps, zeros], f"{name}.q", axis=0),
            graph.constant(f"{name}.weight", levels.T),
            graph.constant("one", np.float32(1)),
            graph.constant(f"{name}.scale", scale),
            graph.constant("gelu_zero", zero[0]),
        ]
        unscaled = graph.add("MatMulIntegerToFloat", inputs, f"{name}.unscaled", domain=MICROSOFT)
        product = graph.add("Mul", [unscaled, step], f"{name}.bare")
        product = graph.add("Add", [product, graph.constant(f"{name}.bias", bias)], f"{name}.flat")
        return graph.add("Reshape", [product, self._shape_of_states(len(weight))], f"{name}.product")

    def _shape_of_states(self, width: int) -> str:
        if self._states_shape is None:
            size = self._graph.constant("width", np.array([width]))
            texts = self._graph.add("Shape", ["ids"], "texts")
            self._states_shape = self._graph.add("Concat", [texts, size], "states_shape", axis=0)
        return self._states_shape


def _smoothing(largest: Array, weight: Array) -> Array:
    """What each channel [K] of the states is divided by, and of a weight [N, K] multiplied by; 1 on the average."""
    of_weight = np.maximum(np.abs(weight).max(axis=0), 1e-6)
    smooth = np.maximum(largest, 1e-6) ** _SMOOTHING / of_weight ** (1 - _SMOOTHING)
    scaled: Array = (smooth / smooth.mean()).astype(np.float32)
    return scaled


def _quantised(weight: Array) -> tuple[Array, Array]:
    """Levels [N, K] int8 and scale [N] float32 of a weight [N, K], K even: weight ≈ levels · scale, row by row.

    x86 processors without the VNNI instructions add two neighbouring products, of an activation up to 255 and a
    weight, in 16 bits and cut off what doesn't fit. The scale keeps two such weights from adding up to more than 128
    (255 · 128 < 2^15), so that every processor gives the same sums; it costs far less precision than weights of 7 bits.
    """
    pairs = weight.reshape(len(weight), -1, 2)
    largest_pair = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)).max(axis=1)
    scale = np.maximum(np.abs(weight).max(axis=1) / _LARGEST, largest_pair / _LARGEST_PAIR)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale
