"""How the embedded encoder runs in ONNX Runtime on a processor."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from copy import copy
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np

from latentguard.arrays import placed
from latentguard.encoders.base import Precision, TokenStates
from latentguard.errors import EncoderError
from latentguard.onnx_session import opened

if TYPE_CHECKING:
    import onnxruntime
    import torch

OnnxPrecision = Literal["int8", "fp32"]
CHECK = "check"
"""By this name an 8-bit graph carries what :func:`agreement` reads."""

_LOG = logging.getLogger(__name__)
_LEAST_AGREEMENT = 0.99


class OnnxRuntime:
    """A BERT graph and the processor threads to run it on.

    encoder: its name, for errors. graph: gives the graph of a precision. precision: None is "int8", or "fp32" with a
    warning where the 8-bit graph doesn't compute on this processor what it should. Raises EncoderError for a precision
    that isn't there, and for "int8" asked for by name that can't be had.
    """

    def __init__(
        self,
        encoder: str,
        graph: Callable[[OnnxPrecision], bytes],
        precision: Precision | None,
        threads: int,
        device: torch.device,
    ) -> None:
        self.threads = threads
        self._device = device
        self._graph = graph
        self._lock = Lock()
        self._single: OnnxRuntime | None = None
        if precision == "fp32":
            self.precision: OnnxPrecision = precision
        elif precision == "int8" or precision is None:
            self.precision = "int8"
        else:
            raise EncoderError(f"{encoder}: no {precision} precision on {device.type} in ONNX Runtime")
        self._session = opened(graph(self.precision), self.threads)
        if self.precision == "int8" and (found := agreement(self._session)) < _LEAST_AGREEMENT:
            reason = f"its 8-bit states have a cosine of {found:.3f} with the float32 ones on this processor"
            if precision == "int8":
                raise EncoderError(f"{encoder}: {reason}")
            _LOG.warning("%s: %s; going on in float32, more slowly", encoder, reason)
            self.precision = "fp32"
            self._session = opened(graph(self.precision), self.threads)

    def single_threaded(self) -> OnnxRuntime:
        """The same on one thread, for several passes side by side; made when first asked for."""
        if self.threads == 1:
            return self
        with self._lock:
            if self._single is None:
                single = copy(self)
                single.threads, single._session = 1, opened(self._graph(self.precision), 1)
                self._single = single
            return self._single

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> TokenStates:
        """The states of token ids [B, L] whose mask [B, L] is True up to each text's end.

        Texts of one length run together, without padding, so that no state depends on the others of the batch.
        """
        lengths = mask.sum(axis=1)
        distinct = np.unique(lengths)
        if len(distinct) == 1 and distinct[0] == mask.shape[1]:
            hidden, pooled = self._run(ids)
        else:
            hidden = pooled = np.empty(0, dtype=np.float32)
            for length in distinct:
                rows = lengths == length
                some, means = self._run(ids[rows, :length])
                if not hidden.size:
                    hidden = np.zeros((*ids.shape, some.shape[2]), dtype=np.float32)
                    pooled = np.empty((len(ids), some.shape[2]), dtype=np.float32)
                hidden[rows, :length], pooled[rows] = some, means
        return TokenStates(*(placed(values, self._device) for values in (hidden, mask, pooled)))

    def _run(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden, pooled = self._session.run(["hidden", "pooled"], {"ids": ids.astype(np.int32)})
        return hidden, pooled


def agreement(session: onnxruntime.InferenceSession) -> float:
    """The least cosine between pooled states of an 8-bit graph and those of the float32 one, over a few texts.

    From -1 to 1; -1 where the graph says nothing to compare with, or gives no numbers.
    """
    described = session.get_modelmeta().custom_metadata_map.get(CHECK)
    if described is None:
        return -1.0
    check = json.loads(described)
    expected = np.frombuffer(base64.b64decode(check["pooled"]), dtype=np.float32).reshape(len(check["ids"]), -1)
    (pooled,) = session.run(["pooled"], {"ids": np.array(check["ids"], dtype=np.int32)})
    lengths = np.linalg.norm(pooled, axis=1) * np.linalg.norm(expected, axis=1)
    least = float(((pooled * expected).sum(axis=1) / lengths).min())
    return least if np.isfinite(least) else -1.0
