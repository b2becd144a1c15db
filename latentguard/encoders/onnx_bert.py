"""A BERT encoder as an ONNX graph, in float32 or with 8-bit matrix products, for ONNX Runtime on a CPU.

The graph is written straight from the weights, about half a second for a small BERT, with no tracing. In the int8
form each weight matrix has one scale per output channel, and the activations one scale per token, worked out as they
come:

    y_tn = s_t · s_n · Σ_k a_tk · w_nk,   a_tk = round(x_tk / s_t),   s_t = max_k |x_tk| / 127

One scale per token rather than one per tensor, which is what `onnxruntime.quantization` makes, has two gains: a
prompt's states do not depend on the prompts it shares a batch with, and they stay nearer to the float32 ones. The
inputs of the last product of each layer, the outputs of GELU, are never below -0.17; shifted by that much they use all
256 levels, and the shift is taken back in the bias.

Graph inputs: ids [B, L] int32, mask [B, L] int32, 1 at real tokens. Outputs: hidden [B, L, D] float32, at each token
the states of the layers asked for, one after another, and pooled [B, D] float32, their mean over the real tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION, _MICROSOFT = 18, 9, "com.microsoft"  # understood by ONNX Runtime 1.16 and later
_LARGEST = 127  # of a quantised weight, and of a quantised activation about its zero point
_LARGEST_PAIR = 127.4  # of two neighbouring quantised weights of one sign; rounding makes it 128 at most
_GELU_SHIFT = 0.17  # GELU has its minimum, -0.16997, at x = -0.7518

Array = NDArray[Any]


@dataclass(frozen=True)
class BertShape:
    """What a BERT's weights don't tell about themselves."""

    heads: int
    norm_epsilon: float
    window: int


def bert_graph(
    weights: Mapping[str, Array], shape: BertShape, layers: Sequence[int], precision: Literal["int8", "fp32"]
) -> bytes:
    """The serialised ONNX model of a BERT encoder (no pooler) with exact GELU, from its Hugging Face weights.

    layers: those whose states it gives, in that order; 0 is the embeddings' output. It ends with the highest of them.
    """
    return _BertGraph(weights, shape, precision).serialised(layers)


class _BertGraph:
    def __init__(self, weights: Mapping[str, Array], shape: BertShape, precision: Literal["int8", "fp32"]) -> None:
        self._weights = weights
        self._shape = shape
        self._int8 = precision == "int8"
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def serialised(self, layers: Sequence[int]) -> bytes:
        states = [self._embeddings()]
        for layer in range(max(layers)):
            states.append(self._layer(states[layer], f"encoder.layer.{layer}"))
        self._add("Concat", [states[layer] for layer in layers], "hidden", axis=2)
        self._mean("hidden")
        width = self._weights["embeddings.word_embeddings.weight"].shape[1] * len(layers)
        graph = helper.make_graph(
            self._nodes,
            "bert",
            inputs=[helper.make_tensor_value_info(name, TensorProto.INT32, ["B", "L"]) for name in ("ids", "mask")],
            outputs=[
                helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "L", width]),
                helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["B", width]),
            ],
            initializer=list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
        return model

    def _embeddings(self) -> str:
        words = self._weights["embeddings.word_embeddings.weight"]
        # Prompts are single texts, so the type embedding is that of the first text at every position.
        places = self._weights["embeddings.position_embeddings.weight"][: self._shape.window]
        places = places + self._weights["embeddings.token_type_embeddings.weight"][0]
        length = self._add("Shape", ["ids"], "length", start=1, end=2)
        first, axis = self._constant("first", np.array([0])), self._constant("length_axis", np.array([0]))
        place = self._add("Slice", [self._constant("places", places), first, length, axis], "place")
        if self._int8:
            # Half precision halves the file and changes no state by more than the products' rounding does.
            half = self._add("Gather", [self._constant("words", words.astype(np.float16)), "ids"], "word_half")
            word = self._add("Cast", [half], "word", to=TensorProto.FLOAT)
        else:
            word = self._add("Gather", [self._constant("words", words), "ids"], "word")
        return self._norm(self._add("Add", [word, place], "embedded"), "embeddings.LayerNorm")

    def _layer(self, states: str, layer: str) -> str:
        attention = f"{layer}.attention"
        parts = [f"{attention}.self.{part}" for part in ("query", "key", "value")]
        joined = self._product(
            states, np.concatenate([self._weights[f"{part}.weight"] for part in parts]), f"{attention}.qkv"
        )
        bias = np.concatenate([self._weights[f"{part}.bias"] for part in parts])
        split = [f"{part}.states" for part in parts]
        self._nodes.append(helper.make_node("Split", [joined], split, axis=2, num_outputs=3))
        context = self._add(
            "MultiHeadAttention",
            [*split, self._constant(f"{attention}.qkv.bias", bias), "mask"],
            f"{attention}.context",
            domain=_MICROSOFT,
            num_heads=self._shape.heads,
        )
        dense = f"{attention}.output.dense"
        attended = self._product(context, self._weights[f"{dense}.weight"], dense)
        states = self._add_and_norm(attended, self._weights[f"{dense}.bias"], states, f"{attention}.output.LayerNorm")

        dense = f"{layer}.intermediate.dense"
        inner = self._product(states, self._weights[f"{dense}.weight"], dense)
        bias_name = self._constant(f"{dense}.bias", self._weights[f"{dense}.bias"])
        inner = self._add("BiasGelu", [inner, bias_name], f"{layer}.gelu", domain=_MICROSOFT)
        dense = f"{layer}.output.dense"
        outer, bias = self._after_gelu(inner, self._weights[f"{dense}.weight"], self._weights[f"{dense}.bias"], dense)
        return self._add_and_norm(outer, bias, states, f"{layer}.output.LayerNorm")

    def _product(self, states: str, weight: Array, name: str) -> str:
        """states [B, L, K] times the weight's transpose [K, N]."""
        if not self._int8:
            return self._add("MatMul", [states, self._constant(f"{name}.weight", weight.T)], f"{name}.product")
        levels, scale = _quantised(weight)
        largest = self._row_max(self._add("Abs", [states], f"{name}.abs"), name)
        return self._int8_product(states, largest, levels, scale, name, top=_LARGEST, zero=128)

    def _after_gelu(self, states: str, weight: Array, bias: Array, name: str) -> tuple[str, Array]:
        """As `_product`, for states that come from GELU; with it the bias that is still to be added."""
        if not self._int8:
            return self._product(states, weight, name), bias
        levels, scale = _quantised(weight)
        shift = np.float32(_GELU_SHIFT)
        shifted = self._add("Add", [states, self._constant("gelu_shift", shift)], f"{name}.shifted")
        product = self._int8_product(shifted, self._row_max(shifted, name), levels, scale, name, top=255, zero=0)
        return product, bias - shift * scale * levels.sum(axis=1, dtype=np.float32)

    def _row_max(self, states: str, name: str) -> str:
        axis = self._constant("state_axis", np.array([-1]))
        return self._add("ReduceMax", [states, axis], f"{name}.largest", keepdims=1)

    def _int8_product(
        self, states: str, largest: str, levels: Array, scale: Array, name: str, *, top: int, zero: int
    ) -> str:
        """Quantise each token's state so that its largest entry is `top` above `zero`; multiply; scale back.

        A state of zeros divides by zero on the way, to a product that is finite and is then multiplied by zero.
        """
        factor = self._add("Div", [self._constant(f"top_{top}", np.float32(top)), largest], f"{name}.factor")
        zero_point = self._constant(f"zero_{zero}", np.uint8(zero))
        scaled = self._add("Mul", [states, factor], f"{name}.scaled")
        rounded = self._add("QuantizeLinear", [scaled, self._constant("one", np.float32(1)), zero_point], f"{name}.q")
        inputs = [
            rounded,
            self._constant(f"{name}.weight", levels.T),
            self._constant(f"unit_{top}", np.float32(1 / top)),
            self._constant(f"{name}.scale", scale),
            zero_point,
        ]
        product = self._add("MatMulIntegerToFloat", inputs, f"{name}.unscaled", domain=_MICROSOFT)
        return self._add("Mul", [product, largest], f"{name}.product")

    def _add_and_norm(self, states: str, bias: Array, residual: str, norm: str) -> str:
        # Plain nodes: ONNX Runtime's SkipLayerNormalization takes nine times as long as its LayerNormalization.
        biased = self._add("Add", [states, self._constant(f"{norm}.before", bias)], f"{norm}.biased")
        return self._norm(self._add("Add", [biased, residual], f"{norm}.sum"), norm)

    def _norm(self, states: str, name: str) -> str:
        gain = self._constant(f"{name}.weight", self._weights[f"{name}.weight"])
        bias = self._constant(f"{name}.bias", self._weights[f"{name}.bias"])
        epsilon = self._shape.norm_epsilon
        return self._add("LayerNormalization", [states, gain, bias], f"{name}.out", axis=-1, epsilon=epsilon)

    def _mean(self, states: str) -> None:
        weight = self._add("Cast", ["mask"], "weight", to=TensorProto.FLOAT)
        last, middle = self._constant("state_axis", np.array([-1])), self._constant("token_axis", np.array([1]))
        share = self._add("Div", [weight, self._add("ReduceSum", [weight, last], "tokens")], "share")
        row = self._add("Unsqueeze", [share, middle], "share_row")
        self._add("Squeeze", [self._add("MatMul", [row, states], "pooled_row"), middle], "pooled")

    def _constant(self, name: str, value: Array | np.generic) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output


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
