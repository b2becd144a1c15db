"""Embeddings that a guarded pipeline handed out itself, with the texts that they were made from.

`encode_prompt` screens its texts; when the embeddings come back later as `prompt_embeds`, bit for bit, those verdicts
hold for them, whatever the encoder. Nothing but digests and texts is kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

_KEPT = 4096


class Receipts:
    """The texts behind the embeddings that were handed out last; safe to use from several threads."""

    def __init__(self) -> None:
        self._texts: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, embeddings: Tensor, texts: Sequence[tuple[str, ...]]) -> None:
        """Remember the texts of each row of embeddings [B * n, ...], n rows in turn for each of B."""
        digests = [_digest(row) for row in embeddings]
        each = len(digests) // len(texts)
        with self._lock:
            for place, digest in enumerate(digests):
                self._texts[digest] = texts[place // each]
                self._texts.move_to_end(digest)
            while len(self._texts) > _KEPT:
                self._texts.popitem(last=False)

    def find(self, row: Tensor) -> tuple[str, ...] | None:
        """The texts that a row of embeddings was made from; None if it is not one that was handed out."""
        with self._lock:
            if not self._texts:
                return None
        digest = _digest(row)
        with self._lock:
            return self._texts.get(digest)


def _digest(row: Tensor) -> bytes:
    described = f"{row.dtype} {tuple(row.shape)}".encode()
    content = row.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, key=described[:64], digest_size=16).digest()
