"""Comparing embeddings: which encrypted id is which token, from the converted model's table and the original's.

A transform that keeps distances keeps the table's shape, by which it is undone: no text and no key is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from privacy.errors import AttackError
from privacy.passkey.attacks.corpus import Ids

Rows = NDArray[np.float32]

_BLOCK = 1024
# With how many principal axes rows are compared, one pass after another. The first few are hardly mixed by noise; each
# pass turns half as many more into place.
_AXES = (10, 10, 10, 15, 15, 20, 20, 30, 30, 45, 70, 100, 150, 230, 350)
_SAMPLE = 3000
_PASSES = 2
_MIN_PAIRS = 2
_SHORTEST = 1e-12


def load_model(folder: str | Path) -> Any:
    """The transformer of a Hugging Face folder, of an encoder-decoder the encoder. Raises AttackError if unreadable."""
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    except Exception as error:  # transformers lets through whatever its many parsers raise
        raise AttackError(f"{folder}: its model can't be read ({type(error).__name__})") from error
    return model.get_encoder() if model.config.is_encoder_decoder else model


def table(folder: str | Path) -> Rows:
    """The token embeddings [V, D] of a Hugging Face folder. Raises AttackError if its model can't be read."""
    rows: Rows = load_model(folder).get_input_embeddings().weight.detach().float().numpy()
    return rows


def by_nearest_row(mapped: Rows, plain: Rows, ids: Ids) -> Ids:
    """Guesses [N] for the observed `ids` [N]: the plain row [V, D] nearest to the mapped one, both tables centred."""
    return _nearest(_centred(mapped)[ids], _centred(plain))


def by_known_pairs(mapped: Rows, plain: Rows, ids: Ids, pairs: Mapping[int, int]) -> Ids:
    """Guesses [N] for the observed `ids` after undoing the map that `pairs`, encrypted id to plain id, determine.

    The orthogonal map that brings known pairs together (Procrustes; Schönemann, 1966) finds more pairs, which determine
    it better.
    """
    if len(pairs) < _MIN_PAIRS:
        return by_nearest_row(mapped, plain, ids)
    mapped, plain = _centred(mapped), _centred(plain)
    keys, values = (np.array(list(each), np.int64) for each in (pairs.keys(), pairs.values()))
    turned = mapped @ _rotation(mapped[keys], plain[values])
    sample = ids[:_SAMPLE]
    for _ in range(_PASSES):
        found, sure = _mutual(turned[sample], plain)
        if sure.sum() < len(pairs):
            break
        turned = mapped @ _rotation(mapped[sample[sure]], plain[found[sure]])
    return _nearest(turned[ids], plain)


def by_principal_axes(mapped: Rows, plain: Rows, ids: Ids) -> Ids:
    """Guesses [N] for the observed `ids` after undoing the map with nothing but the two tables.

    Each table is turned into its own principal axes, with signs that make third moments positive. That is the same for
    both if the map keeps distances, and nearly so in the strongest axes if there is noise; from there pairs that
    choose each other turn more and more axes into place.
    """
    turned, plain = _in_principal_axes(mapped), _in_principal_axes(plain)
    sample = np.random.default_rng(0).permutation(len(turned))[:_SAMPLE]  # of all rows: it needs no observed text
    width = plain.shape[1]
    axes = [each for each in _AXES if each < width] + [width, width]
    for number in tqdm(axes, desc="aligning embeddings", disable=None, leave=False):
        found, sure = _mutual(turned[sample, :number], plain[:, :number])
        wider = min(width, number + number // 2)
        turned[:, :wider] @= _rotation(turned[sample[sure], :wider], plain[found[sure], :wider])
    return _nearest(turned[ids], plain)


def _centred(rows: Rows) -> Rows:
    centred: Rows = rows - rows.mean(axis=0)
    return centred


def _in_principal_axes(rows: Rows) -> Rows:
    centred = _centred(rows).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    turned = centred @ axes[:, ::-1]
    signs = np.where((turned**3).mean(axis=0) < 0, -1.0, 1.0)
    turned_rows: Rows = (turned * signs).astype(np.float32)
    return turned_rows


def _rotation(mapped: Rows, plain: Rows) -> Rows:
    """The orthogonal matrix [D, D] with which `mapped` [N, D] @ it is closest to `plain` [N, D]."""
    left, _, right = np.linalg.svd(mapped.T.astype(np.float64) @ plain)
    rotation: Rows = (left @ right).astype(np.float32)
    return rotation


def _nearest(rows: Rows, table_rows: Rows) -> Ids:
    """For each of `rows` [N, D] the place of the row of the table [V, D] with the largest cosine, in blocks.

    Noise makes rows longer, so that distances would favour those that have little of it.
    """
    directions = table_rows / np.maximum(np.linalg.norm(table_rows, axis=1, keepdims=True), _SHORTEST)
    nearest = np.empty(len(rows), np.int64)
    cosines = np.empty((min(_BLOCK, len(rows)), len(table_rows)), np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        nearest[start : start + _BLOCK] = np.matmul(block, directions.T, out=cosines[: len(block)]).argmax(axis=1)
    return nearest


def _mutual(rows: Rows, table_rows: Rows) -> tuple[Ids, Any]:
    """The nearest row of the table for each of `rows` [N, D], and whether [N] it has that one as its own nearest."""
    found = _nearest(rows, table_rows)
    return found, _nearest(table_rows[found], rows) == np.arange(len(rows))
