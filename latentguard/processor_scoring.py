"""How a guard scores prompts on a processor: one with all its threads, several side by side with a thread each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latentguard.arrays import as_numpy, placed, single
from latentguard.bank import BankSnapshot
from latentguard.encoders.base import SeveralPasses, TextEncoder, TokenStates, Window, available_cores
from latentguard.encoders.passes import in_batches
from latentguard.lite.heads import evidence_of_harm
from latentguard.onnx_scoring import OnnxScoring, agreeing_scoring
from latentguard.reading import ReadPrompt

if TYPE_CHECKING:
    from latentguard.heads import Heads
    from latentguard.mapping import MappingLayer


class ProcessorScoring:
    """Scores prompts by an encoder, a mapping layer and heads on a processor.

    scoring: the two layers in ONNX Runtime; None, where it doesn't give what they do, for the layers themselves.
    """

    def __init__(
        self, encoder: TextEncoder, mapping: MappingLayer, heads: Heads | None, scoring: OnnxScoring | None
    ) -> None:
        self._encoder = encoder
        self._mapping = mapping
        self._heads = heads
        self._scoring = scoring

    @classmethod
    def of(cls, encoder: TextEncoder, mapping: MappingLayer, heads: Heads | None) -> ProcessorScoring:
        """The fastest one that gives what the layers do."""
        threads = encoder.threads if isinstance(encoder, SeveralPasses) else available_cores()
        return cls(encoder, mapping, heads, agreeing_scoring(mapping, heads, threads, encoder.device))

    @property
    def one_thread(self) -> OnnxScoring | None:
        """The layers in ONNX Runtime on one thread, or None."""
        return None if self._scoring is None else self._scoring.single_threaded()

    def scores(
        self, prompts: Sequence[ReadPrompt], snapshot: BankSnapshot, enabled: Sequence[bool] | None
    ) -> np.ndarray:
        """Scores [B, N] of prompts, but for the names that they spell out: the highest over each prompt's windows.

        enabled: which of the prompt head's categories [K] count as harm of any kind; None for all.
        """
        windows = [(owner, window) for owner, prompt in enumerate(prompts) for window in prompt.windows]
        scores = np.full((len(prompts), len(snapshot.concepts)), -np.inf, dtype=np.float32)

        def score(encoder: TextEncoder, places: list[int]) -> np.ndarray:
            scoring = self._scoring if encoder is self._encoder else self.one_thread
            return self._of_windows([windows[i][1] for i in places], encoder, scoring, snapshot, enabled)

        for places, found in in_batches(self._encoder, [len(window.ids) for _, window in windows], score):
            np.maximum.at(scores, [windows[i][0] for i in places], found)
        return scores

    def _of_windows(
        self,
        windows: Sequence[Window],
        encoder: TextEncoder,
        scoring: OnnxScoring | None,
        snapshot: BankSnapshot,
        enabled: Sequence[bool] | None,
    ) -> np.ndarray:
        """Scores [B, N] of windows."""
        states = encoder.encode_windows(windows)
        hidden, mask, pooled = (
            as_numpy(array) for array in (single(states.hidden), states.mask, single(states.pooled))
        )
        scores = np.empty((len(windows), len(snapshot.concepts)), dtype=np.float32)
        for row in range(len(windows)):
            real = hidden[row] if mask[row].all() else hidden[row][mask[row]]
            scores[row] = self._of_states(real, pooled[row], scoring, snapshot, enabled)
        return scores

    def _of_states(
        self,
        hidden: np.ndarray,
        pooled: np.ndarray,
        scoring: OnnxScoring | None,
        snapshot: BankSnapshot,
        enabled: Sequence[bool] | None,
    ) -> np.ndarray:
        """Scores [N] of one window by the states [L, D] of its tokens and their pooled state [D]."""
        found = None if scoring is None else scoring.evidence(snapshot.queries, hidden, pooled)
        if found is not None:
            scores, log_odds = found
            harm = None if log_odds is None else evidence_of_harm(log_odds[None], enabled)
        else:
            mask = np.ones((1, len(hidden)), dtype=bool)
            device = self._encoder.device
            z = self._mapping.attended(
                TokenStates(*(placed(array, device) for array in (hidden[None], mask, pooled[None])))
            )
            scores = as_numpy(self._mapping.score(snapshot.queries, *z))[0]
            harm = None if self._heads is None else as_numpy(self._heads.harm(*z, enabled))
        if self._heads is None or snapshot.scoring is None or harm is None:
            return scores
        moments, categories = as_numpy(snapshot.scoring.moments), as_numpy(snapshot.scoring.categories)
        combined: np.ndarray = self._heads.combination.of_parts(scores, moments, harm[0, categories])
        return combined
