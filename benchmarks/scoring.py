"""One encoded prompt against the concept bank, at the published sizes: width 768, 16 heads of 32, output 128.

The reference pads every prompt to 77 tokens, so it takes the same time for a short one.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.reference import TOKENS, published_scores
from benchmarks.report import Figure
from benchmarks.settings import WANTED_AT, Settings
from benchmarks.timing import Call, interleaved
from latentguard.mapping import ConceptQueries, MappingLayer, MappingShape
from latentguard.onnx_scoring import OnnxScoring

_SHORT = 20
_AGREEMENT = 1e-4


def scoring(settings: Settings) -> list[Figure]:
    """Figures in ms; ArithmeticError if a score differs from the reference's by more than 1e-4."""
    torch.manual_seed(0)
    width = settings.tower.hidden_size
    mapping = MappingLayer(MappingShape(width)).eval().requires_grad_(False)
    scorer = OnnxScoring(mapping, None, settings.threads)
    figures = []
    for count in settings.concepts:
        concepts, z = torch.randn(count, width), torch.randn(1 + TOKENS, width)
        queries = mapping.queries(concepts)
        calls = {"reference": Call(partial(published_scores, mapping, concepts, z))}
        for tokens in (TOKENS, _SHORT):
            states = z[: 1 + tokens]
            _check_agreement(scorer, queries, published_scores(mapping, concepts, states), states.numpy())
            calls[str(tokens)] = Call(partial(_score, scorer, queries, states.numpy()), settings.calls_at(count))
        times = interleaved(calls, settings.rounds_at(count))
        for tokens in (TOKENS, _SHORT):
            figures.append(
                Figure(
                    "scoring",
                    f"{tokens} tokens, {count:,} concepts",
                    times[str(tokens)].median * 1e3,
                    "ms",
                    times["reference"].median * 1e3,
                    times[str(tokens)].p99 * 1e3,
                    wanted_ratio=400 if (count, tokens) == (WANTED_AT, TOKENS) else None,
                    wanted_value=1.0 if (count, tokens) == (WANTED_AT, _SHORT) else None,
                )
            )
    return figures


def _score(scorer: OnnxScoring, queries: ConceptQueries, states: np.ndarray) -> np.ndarray:
    found = scorer.evidence(queries, states[1:], states[0])
    if found is None:
        raise ArithmeticError("states beyond what is scored in ONNX Runtime")
    return found.scores


def _check_agreement(scorer: OnnxScoring, queries: ConceptQueries, published: Tensor, states: np.ndarray) -> None:
    difference = float(np.abs(_score(scorer, queries, states) - published.numpy()).max())
    if not difference <= _AGREEMENT:
        raise ArithmeticError(f"scores differ from the reference's by {difference:.2g}, allowed are {_AGREEMENT:g}")
