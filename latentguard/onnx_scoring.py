"""Mapping layer and prompt head in ONNX Runtime: what scores prompts on a processor.

The formulas are those of :mod:`latentguard.mapping` and :mod:`latentguard.prompt_head`, which train them; here a prompt
takes about two thirds of the time, several threads may score side by side, and no PyTorch is needed. A prompt is read
once for all concepts, and then scored against some hundred concepts at a time, whose attention weights stay in a
processor's cache. Each prompt goes alone and without padding, so its score doesn't depend on its neighbours.
"""

from __future__ import annotations

import logging
from copy import copy
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentguard.arrays import as_numpy, placed
from latentguard.encoders.base import TokenStates
from latentguard.lite.heads import evidence_of_harm
from latentguard.onnx_session import opened

if TYPE_CHECKING:
    import torch

    from latentguard.heads import Heads
    from latentguard.mapping import ConceptQueries, MappingLayer
    from latentguard.prompt_head import PromptHead
    from latentguard.shapes import MappingShape

_LOG = logging.getLogger(__name__)
# Concepts whose attention weights for a long prompt stay in a processor's cache. For a short one, to bring their
# queries together takes longer than to leave the cache.
_CONCEPTS_AT_A_TIME, _FOR_SHORT = 768, 8192
# Exponentials are taken without the largest taken off first; sums of them within this are exact enough.
_LARGEST_SUM = 1e26
_LARGEST_DIFFERENCE = 1e-3
_CHECKED_CONCEPTS, _CHECKED_TOKENS, _CHECKED_SIZE = 16, (5, 64), 0.3


class ReadStates(NamedTuple):
    """What all scores of a prompt need of it: ``keys`` and ``values`` [H, 1 + L, d], and ``log_odds`` [K] of the prompt
    head or None."""

    keys: np.ndarray
    values: np.ndarray
    log_odds: np.ndarray | None


class Evidence(NamedTuple):
    """What a prompt's states say: ``scores`` [N] of the mapping layer, ``log_odds`` [K] of the prompt head or None."""

    scores: np.ndarray
    log_odds: np.ndarray | None


class OnnxScoring:
    """Scores prompts against concepts as a mapping layer and a prompt head do; it holds copies of their weights.

    threads: the processor threads that a prompt takes.
    """

    def __init__(self, mapping: MappingLayer, heads: Heads | None, threads: int) -> None:
        from latentguard.onnx_scoring_graphs import reading_graph, scoring_graph

        weights = _weights(mapping)
        head = None if heads is None else _weights(heads.prompt_head)
        self._shape: MappingShape = mapping.shape
        self._headed = heads is not None
        self._graphs = (
            reading_graph(weights, head, mapping.shape),
            scoring_graph(weights, mapping.shape, per_position=True),
            scoring_graph(weights, mapping.shape, per_position=False),
        )
        self._lock = Lock()
        self._single: OnnxScoring | None = None
        self._open(threads)

    def _open(self, threads: int) -> None:
        self._threads = threads
        self._reading, self._short, self._long = (opened(graph, threads) for graph in self._graphs)

    def single_threaded(self) -> OnnxScoring:
        """The same on one thread, for several prompts side by side; made when first asked for."""
        if self._threads == 1:
            return self
        with self._lock:
            if self._single is None:
                single = copy(self)
                single._open(1)
                self._single = single
            return self._single

    def read(self, hidden: np.ndarray, pooled: np.ndarray) -> ReadStates:
        """A prompt's part of all scores, by the states [L, D] of its real tokens and their pooled state [D]."""
        keys, values, *log_odds = self._reading.run(None, {"hidden": hidden, "pooled": pooled[None]})
        return ReadStates(keys, values, log_odds[0] if self._headed else None)

    def scores(self, queries: ConceptQueries, read: ReadStates) -> np.ndarray | None:
        """The mapping layer's scores [N] of a prompt.

        None where the logits of its attention are beyond those of a trained layer: only the layer itself is exact then.
        """
        length, size, width = read.keys.shape[1], self._shape.output, self._shape.head_width
        # W_v' is applied once per position, to the values, or once per concept, to the values it has gathered.
        short = length * size < width * (length + size)
        session, step = (self._short, _FOR_SHORT) if short else (self._long, _CONCEPTS_AT_A_TIME)
        query, direction = as_numpy(queries.query), as_numpy(queries.direction)
        scores = np.empty(len(direction), dtype=np.float32)
        for start in range(0, len(scores), step):
            some = slice(start, start + step)
            inputs = {
                "keys": read.keys,
                "values": read.values,
                "query": query[..., some],
                "direction": direction[some],
            }
            scores[some], least, most = session.run(["scores", "least", "most"], inputs)
            if not (least > 1 / _LARGEST_SUM and most < _LARGEST_SUM):
                return None
        return scores

    def evidence(self, queries: ConceptQueries, hidden: np.ndarray, pooled: np.ndarray) -> Evidence | None:
        """What a prompt says, by states as for :meth:`read`; None as for :meth:`scores`."""
        read = self.read(hidden, pooled)
        scores = self.scores(queries, read)
        return None if scores is None else Evidence(scores, read.log_odds)


def agreeing_scoring(
    mapping: MappingLayer, heads: Heads | None, threads: int, device: torch.device
) -> OnnxScoring | None:
    """The scoring in ONNX Runtime, where on this processor it gives what the layers themselves do.

    Else None, and a warning says so. device: that of the layers, a processor.
    """
    scoring = OnnxScoring(mapping, heads, threads)
    difference = _difference(scoring, mapping, heads, device)
    if difference <= _LARGEST_DIFFERENCE:
        return scoring
    _LOG.warning("scores in ONNX Runtime are off by %.2g on this processor; going on without, more slowly", difference)
    return None


def _difference(scoring: OnnxScoring, mapping: MappingLayer, heads: Heads | None, device: torch.device) -> float:
    """The largest difference from the layers' own results over a short and a long made-up prompt."""
    chosen = np.random.default_rng(0)
    differences = [0.0]
    for length in _CHECKED_TOKENS:
        concepts, hidden, pooled = (
            chosen.standard_normal((rows, mapping.shape.width), dtype=np.float32) * np.float32(_CHECKED_SIZE)
            for rows in (_CHECKED_CONCEPTS, length, 1)
        )
        queries = mapping.queries(placed(concepts, device))
        found = scoring.evidence(queries, hidden, pooled[0])
        if found is None:
            continue  # the layer is asked itself, for such a prompt as for any other
        mask = np.ones((1, length), dtype=bool)
        z = mapping.attended(TokenStates(*(placed(values, device) for values in (hidden[None], mask, pooled))))
        differences.append(_largest(found.scores - as_numpy(mapping.score(queries, *z))[0]))
        if heads is not None and found.log_odds is not None:
            differences.append(_largest(evidence_of_harm(found.log_odds[None]) - as_numpy(heads.harm(*z))))
    return max(differences)


def _largest(differences: np.ndarray) -> float:
    largest = float(np.abs(differences).max())
    return largest if np.isfinite(largest) else np.inf


def _weights(layer: MappingLayer | PromptHead) -> dict[str, np.ndarray]:
    return {name: as_numpy(values) for name, values in layer.state_dict().items()}
