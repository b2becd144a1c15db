"""The mapping layer in numpy: the formula of :mod:`latentguard.mapping`, for scoring alone.

It follows :meth:`latentguard.mapping.MappingLayer.score` step by step; tests hold the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from latentguard.arrays import NumpyDevice, as_numpy, single
from latentguard.encoders.base import TokenStates
from latentguard.lite.layers import Linear, real_lengths, softmax
from latentguard.reading import Attribution
from latentguard.shapes import MappingShape

# As in latentguard.mapping: concepts whose attention weights stay in a processor's cache.
_CONCEPTS_AT_A_TIME = 768
_LARGEST_SUM = 1e26


@dataclass(frozen=True)
class NumpyQueries:
    """What a mapping layer keeps of N concepts; see :class:`latentguard.mapping.ConceptQueries`."""

    query: np.ndarray
    direction: np.ndarray

    def __len__(self) -> int:
        return len(self.direction)

    def rows(self, index: np.ndarray) -> NumpyQueries:
        """The same for the concepts at ``index``, in that order."""
        return NumpyQueries(np.ascontiguousarray(self.query[..., index]), self.direction[index])

    def join(self, other: NumpyQueries) -> NumpyQueries:
        """These concepts, then the others."""
        return NumpyQueries(
            np.concatenate([self.query, other.query], axis=-1), np.concatenate([self.direction, other.direction])
        )


@dataclass(frozen=True)
class NumpyMapping:
    """Scores prompts against concepts; the names are those of :class:`latentguard.mapping.MappingLayer`."""

    shape: MappingShape
    to_query: Linear
    to_key: Linear
    to_value: Linear
    value_output: Linear
    query_output: Linear
    temperature: float

    def state_dict(self) -> dict[str, np.ndarray]:
        """The trained numbers, by their names in a weights folder."""
        layers = ("to_query", "to_key", "to_value", "value_output", "query_output")
        state = {"temperature": np.array(self.temperature, dtype=np.float32)}
        for name in layers:
            state |= getattr(self, name).state_dict(name)
        return state

    def on(self, device: NumpyDevice) -> NumpyMapping:
        """The layer itself; see :meth:`latentguard.mapping.MappingLayer.on`."""
        return self

    def attended(self, states: TokenStates) -> tuple[np.ndarray, np.ndarray]:
        """The states that the layer attends over: z [B, 1+L, D], the pooled state first, and its mask [B, 1+L].

        Of states from any device and in any precision, in PyTorch or numpy.
        """
        mask = as_numpy(states.mask)
        hidden = np.where(mask[..., None], as_numpy(single(states.hidden)), np.float32(0))
        pooled = as_numpy(single(states.pooled))
        z = np.concatenate([pooled[:, None], hidden], axis=1)
        return z, np.concatenate([np.ones((len(mask), 1), dtype=bool), mask], axis=1)

    def queries(self, concepts: np.ndarray) -> NumpyQueries:
        """What :meth:`score` needs of concepts [N, D]."""
        heads, width = self.shape.heads, self.shape.head_width
        q = self.to_query(concepts)
        output = self.query_output(q)
        length = np.maximum(np.linalg.norm(output, axis=-1, keepdims=True), np.float32(1e-12))
        query = (q / np.float32(math.sqrt(width))).reshape(-1, heads, width).transpose(1, 2, 0)
        return NumpyQueries(np.ascontiguousarray(query), np.float32(self.temperature) * output / length)

    def score(self, queries: NumpyQueries, z: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Scores [B, N] of prompts z [B, L', D] with mask [B, L'], as :meth:`attended` gives them."""
        scores = np.empty((len(z), len(queries)), dtype=np.float32)
        # One by one, without padding, so that a prompt's score doesn't depend on its neighbours by a single bit.
        for row, states, real, length in zip(scores, z, mask, real_lengths(mask), strict=True):
            self._score_one(queries, states[:length], real[:length], row)
        return scores

    def _score_one(self, queries: NumpyQueries, z: np.ndarray, mask: np.ndarray, scores: np.ndarray) -> None:
        heads, width, size, output = self.shape.heads, self.shape.head_width, self.shape.output, self.value_output
        length = len(z)
        k, v = (layer(z).reshape(length, heads, width).transpose(1, 0, 2) for layer in (self.to_key, self.to_value))
        # W_v' is applied once per position, to the values, or once per concept, to the values it has gathered.
        per_position = length * size < width * (length + size)
        right = output.weight
        if per_position:
            right = (v @ right.reshape(heads, width, size)).reshape(-1, size)
        for start in range(0, len(queries), _CONCEPTS_AT_A_TIME):
            some = slice(start, start + _CONCEPTS_AT_A_TIME)
            left, total = _exponentials(queries.query[..., some], k, mask)
            if not per_position:
                left = v.transpose(0, 2, 1) @ left
            left /= total
            mapped = left.reshape(-1, left.shape[2]).T @ right
            mapped += output.bias
            norm = np.sqrt(np.einsum("no,no->n", mapped, mapped))
            scores[some] = np.einsum("no,no->n", mapped, queries.direction[some]) / np.maximum(norm, np.float32(1e-8))

    def attribute(self, queries: NumpyQueries, z: np.ndarray, mask: np.ndarray, pooling: np.ndarray) -> Attribution:
        """One prompt z [L', D] with mask [L'] and one concept: what each position added to the score."""
        heads, width = self.shape.heads, self.shape.head_width
        k, v = (layer(z).reshape(len(z), heads, width) for layer in (self.to_key, self.to_value))
        logits = np.where(mask, np.einsum("hd,lhd->hl", queries.query[..., 0], k), -np.inf)
        a = softmax(logits, axis=-1)
        a = a[:, 1:] + a[:, :1] * pooling
        parts = np.einsum("hl,lhd->lhd", a, v[1:]).reshape(len(z) - 1, -1) @ self.value_output.weight
        bias = self.value_output.bias
        direction = queries.direction[0] / max(float(np.linalg.norm(parts.sum(0) + bias)), 1e-8)
        return Attribution(parts @ direction, float(bias @ direction))


def _exponentials(query: np.ndarray, k: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp(q Kᵀ) [H, L', N] of queries [H, d, N] and keys [H, L', d] with mask [L'], and its sum over L' [H, 1, N].

    One divided by the other is the attention; both may share a factor.
    """

    def logits() -> np.ndarray:
        a: np.ndarray = k @ query
        if not mask.all():
            a[:, ~mask] = -np.inf
        return a

    a = logits()
    with np.errstate(over="ignore"):
        total = np.exp(a, out=a).sum(axis=1, keepdims=True)
    if not (total.min() > 1 / _LARGEST_SUM and total.max() < _LARGEST_SUM):
        # Rare: logits beyond those of a trained layer. Once more, with the largest taken off before the exponential.
        a = logits()
        a -= a.max(axis=1, keepdims=True)
        total = np.exp(a, out=a).sum(axis=1, keepdims=True)
    return a, total
