"""Layers trained on plain states, made to read those of a converted encoder.

Where a map of the embeddings is carried through an encoder (`privacy.passkey.carrying`), plain states are an affine
function of its own: z = z' W + b. Whatever reads states does so by a linear layer first, so that function goes into
its weights: A z + c = (A Wᵀ) z' + (A b + c), and nothing is left to compute.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from latentguard.heads import Heads
from latentguard.mapping import MappingLayer
from privacy.passkey import PassKey
from privacy.passkey.carrying import Readout, readouts
from privacy.passkey.keys import subkeys
from privacy.passkey.model_files import TextModel
from privacy.passkey.record import Record


def readouts_of(original: str | Path, record: Record, passkey: PassKey, layers: Sequence[int]) -> list[Readout]:
    """How the plain states of ``layers`` are had from those of the conversion that ``record`` describes.

    Raises:
        privacy.errors.PasskeyError: wrong passkey, or the original encoder can't be read.
    """
    keys = subkeys(passkey, record.stretching)
    record.verify(keys)
    plain = TextModel.load(original)
    width = plain.embeddings[0].shape[1]
    linear = torch.from_numpy(record.transform.map(keys.transform, width, 1.0).matrix.T)
    of_layers = readouts(plain.model, linear)
    return [of_layers[layer] for layer in layers]


@torch.no_grad()
def folded(
    mapping: MappingLayer, heads: Heads | None, of_layers: Sequence[Readout]
) -> tuple[MappingLayer, Heads | None]:
    """Copies of the layers that read the converted encoder's states [D], those of its layers side by side."""
    weight = torch.block_diag(*[readout.weight.double() for readout in of_layers])  # type: ignore[no-untyped-call]
    bias = torch.cat([readout.bias.double() for readout in of_layers])
    mapping = copy.deepcopy(mapping)
    for reader in (mapping.to_query, mapping.to_key, mapping.to_value):
        _fold(reader, weight, bias)
    if heads is None:
        return mapping, None
    prompt_head = copy.deepcopy(heads.prompt_head)
    _fold(prompt_head.to_hidden, weight, bias)
    return mapping, replace(heads, prompt_head=prompt_head)


def _fold(reader: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    own = reader.weight.double()  # [out, D]
    reader.bias.add_((own @ bias).to(reader.bias.dtype))
    reader.weight.copy_(own @ weight.T)
