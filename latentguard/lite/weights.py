"""The layers of a weights folder as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from safetensors.numpy import load
from threadpoolctl import threadpool_limits

from latentguard.errors import WeightsError
from latentguard.lite.heads import NumpyHeads, NumpyPromptHead, NumpyScale
from latentguard.lite.layers import Linear
from latentguard.lite.mapping import NumpyMapping
from latentguard.shapes import MappingShape, PromptHeadShape

if TYPE_CHECKING:
    from latentguard.heads import Heads
    from latentguard.mapping import MappingLayer
    from latentguard.weights import StoredWeights


def numpy_layers(stored: StoredWeights, path: Path) -> tuple[MappingLayer, Heads | None]:
    """Mapping layer and heads out of what a weights folder holds; ``path`` is the tensors' file, for errors.

    To guard and bank they are what their namesakes of PyTorch's are, and so their types say. numpy's products run in
    one thread from now on, in the whole process: they are so short that waiting for a second one takes longer, on a
    busy machine thirty times as long.

    Raises:
        SafetensorError, WeightsError: the tensors can't be read, or don't fit the config.
    """
    threadpool_limits(limits=1, user_api="blas")
    try:
        state = load(stored.content)
    except KeyError as error:
        raise WeightsError(f"{path}: holds numbers of the type {error}, which only PyTorch reads") from error
    mapping, head, scale = (_Tensors(tensors, path) for tensors in stored.by_layer(state))
    config = stored.config
    layer = cast("MappingLayer", _mapping(mapping, config.shape))
    if config.prompt_head is None or config.combination is None or stored.rarity is None:
        return layer, None
    heads = NumpyHeads(
        _prompt_head(head, config.prompt_head),
        NumpyScale(scale.linear("moments", 2, config.shape.output)),
        config.combination,
        stored.rarity,
    )
    scale.check_all_taken()
    return layer, cast("Heads", heads)


class _Tensors:
    """Named tensors of a layer, to be taken out one by one, each of the shape that the config claims."""

    def __init__(self, tensors: Mapping[str, np.ndarray], path: Path) -> None:
        self._left = dict(tensors)
        self._path = path

    def take(self, name: str, *shape: int) -> np.ndarray:
        tensor = self._left.pop(name, None)
        if tensor is None or tensor.shape != shape:
            found = "there is none" if tensor is None else f"it is {tensor.shape}"
            raise self._misfit(f"{name} should be {shape}, {found}")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{self._path}: holds numbers that are not finite")
        return np.asarray(tensor, dtype=np.float32, order="C")

    def linear(self, name: str, rows: int, columns: int) -> Linear:
        weight = self.take(f"{name}.weight", rows, columns)
        return Linear(np.ascontiguousarray(weight.T), self.take(f"{name}.bias", rows))

    def check_all_taken(self) -> None:
        if self._left:
            raise self._misfit(f"unexpected: {', '.join(sorted(self._left))[:200]}")

    def _misfit(self, reason: str) -> WeightsError:
        return WeightsError(f"{self._path}: the tensors don't fit the layer ({reason})")


def _mapping(tensors: _Tensors, shape: MappingShape) -> NumpyMapping:
    inner = shape.heads * shape.head_width
    layer = NumpyMapping(
        shape,
        to_query=tensors.linear("to_query", inner, shape.width),
        to_key=tensors.linear("to_key", inner, shape.width),
        to_value=tensors.linear("to_value", inner, shape.width),
        value_output=tensors.linear("value_output", shape.output, inner),
        query_output=tensors.linear("query_output", shape.output, inner),
        temperature=float(tensors.take("temperature")),
    )
    tensors.check_all_taken()
    return layer


def _prompt_head(tensors: _Tensors, shape: PromptHeadShape) -> NumpyPromptHead:
    head = NumpyPromptHead(
        shape,
        to_hidden=tensors.linear("to_hidden", shape.hidden, shape.width),
        attention=np.ascontiguousarray(tensors.take("attention.weight", len(shape.categories), shape.hidden).T),
        value=tensors.linear("value", len(shape.categories), shape.hidden),
    )
    tensors.check_all_taken()
    return head
