"""The formulas of mapping layer and prompt head as ONNX graphs; see :mod:`latentguard.onnx_scoring`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from latentguard.onnx_graph import FLOAT, MICROSOFT, Array, Declared, OnnxGraph
from latentguard.shapes import MappingShape

_LEAST_NORM = 1e-8


def reading_graph(mapping: Mapping[str, Array], head: Mapping[str, Array] | None, shape: MappingShape) -> bytes:
    """hidden [L, D] and pooled [1, D] to keys and values [H, 1+L, d] and, with a prompt head, log_odds [K]."""
    graph = OnnxGraph()
    layers = [(mapping, "to_key"), (mapping, "to_value")]
    if head is not None:
        layers.append((head, "to_hidden"))
    weight = np.concatenate([weights[f"{name}.weight"] for weights, name in layers])
    bias = np.concatenate([weights[f"{name}.bias"] for weights, name in layers])
    z = graph.add("Concat", ["pooled", "hidden"], "z", axis=0)
    product = graph.add("Gemm", [z, graph.constant("weight", weight.T), graph.constant("bias", bias)], "product")
    sizes = np.array([len(weights[f"{name}.bias"]) for weights, name in layers])
    parts = [name for _, name in layers]
    graph.add_several("Split", [product, graph.constant("sizes", sizes)], parts, axis=1)
    by_head = graph.constant("by_head", np.array([-1, shape.heads, shape.head_width]))
    for part, name in (("to_key", "keys"), ("to_value", "values")):
        graph.add("Transpose", [graph.add("Reshape", [part, by_head], f"{name}_rows")], name, perm=[1, 0, 2])
    split: tuple[int, list[int | str]] = (FLOAT, [shape.heads, "P", shape.head_width])
    outputs = {"keys": split, "values": split}
    if head is not None:
        _add_prompt_head(graph, "to_hidden", head)
        outputs["log_odds"] = (FLOAT, [len(head["value.bias"])])
    return graph.serialised({"hidden": (FLOAT, ["L", shape.width]), "pooled": (FLOAT, [1, shape.width])}, outputs)


def _add_prompt_head(graph: OnnxGraph, units: str, head: Mapping[str, Array]) -> None:
    """The head's log-odds of its hidden units [P, hidden] before GELU."""
    hidden = graph.add("Gelu", [units], "hidden_units", domain=MICROSOFT)
    logits, found = (
        graph.add("MatMul", [hidden, graph.constant(f"{name}.weight", head[f"{name}.weight"].T)], name)
        for name in ("attention", "value")
    )
    shares = graph.add("Softmax", [logits], "shares", axis=0)
    shared = graph.add("Mul", [shares, found], "shared")
    total = graph.add("ReduceSum", [shared, graph.constant("first_axis", np.array([0]))], "total", keepdims=0)
    graph.add("Add", [total, graph.constant("value.bias", head["value.bias"])], "log_odds")


def scoring_graph(mapping: Mapping[str, Array], shape: MappingShape, *, per_position: bool) -> bytes:
    """keys and values [H, P, d], query [H, d, N] and direction [N, O] to scores [N] and the sums' least and most [].

    per_position: whether W_v' is applied to the values, once per position, or, better for long prompts, to what each
    concept has gathered of them. The sums are those of a softmax's exponentials.
    """
    graph = OnnxGraph()
    heads, width, size = shape.heads, shape.head_width, shape.output
    output = mapping["value_output.weight"].T  # [H·d, O]
    logits = graph.add("MatMul", ["keys", "query"], "logits")
    exponentials = graph.add("Exp", [logits], "exponentials")
    sums = graph.add("ReduceSum", [exponentials, _axis(graph, 1)], "sums", keepdims=1)
    graph.add("ReduceMin", [sums], "least", keepdims=0)
    graph.add("ReduceMax", [sums], "most", keepdims=0)
    if per_position:
        left = graph.add("Div", [exponentials, sums], "attention")
        by_head = graph.constant("output", output.reshape(heads, width, size))
        right = graph.add("MatMul", ["values", by_head], "projected")
        right = graph.add("Reshape", [right, graph.constant("by_output", np.array([-1, size]))], "right")
    else:
        columns = graph.add("Transpose", ["values"], "columns", perm=[0, 2, 1])
        left = graph.add("Div", [graph.add("MatMul", [columns, exponentials], "gathered"), sums], "averages")
        right = graph.constant("output", output)
    concepts = graph.add("Shape", ["query"], "concepts", start=2, end=3)
    rows = graph.add("Concat", [_axis(graph, -1), concepts], "rows", axis=0)
    left = graph.add("Reshape", [left, rows], "left")
    bias = graph.constant("bias", mapping["value_output.bias"])
    mapped = graph.add("Gemm", [left, right, bias], "mapped", transA=1)  # [N, O]
    along = graph.add(
        "ReduceSum", [graph.add("Mul", [mapped, "direction"], "parts"), _axis(graph, 1)], "along", keepdims=0
    )
    norm = graph.add("ReduceL2", [mapped, _axis(graph, 1)], "norm", keepdims=0)
    norm = graph.add("Max", [norm, graph.constant("least_norm", np.float32(_LEAST_NORM))], "divisor")
    graph.add("Div", [along, norm], "scores")
    split: tuple[int, list[int | str]] = (FLOAT, [heads, "P", width])
    inputs: Declared = {
        "keys": split,
        "values": split,
        "query": (FLOAT, [heads, width, "N"]),
        "direction": (FLOAT, ["N", size]),
    }
    return graph.serialised(inputs, {"scores": (FLOAT, ["N"]), "least": (FLOAT, []), "most": (FLOAT, [])})


def _axis(graph: OnnxGraph, number: int) -> str:
    return graph.constant(f"axis_{number}", np.array([number]))
