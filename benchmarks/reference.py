"""What every figure is compared with: the published Latent Guard's calculation, restated plainly.

The published inference pads each prompt to 77 tokens, encodes it with CLIP ViT-L/14's text tower, and computes the
prompt's keys and values anew for every concept. Speed doesn't depend on the weights, so the tower's are random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from latentguard.mapping import MappingLayer, MappingShape

TOKENS = 77
# Concepts whose states fit into memory beside each other: those of 5,000 would take 1.2 GB, with keys and values 2.8.
_CONCEPTS_AT_A_TIME = 640


@dataclass(frozen=True)
class Tower:
    """The sizes of a CLIP text tower, named as in transformers."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int


VIT_L_14 = Tower(768, 12, 12, 3072, 49408)


@torch.inference_mode()
def published_scores(mapping: MappingLayer, concepts: Tensor, z: Tensor) -> Tensor:
    """Scores [N] of a prompt's states z [L', D] against concepts [N, D], keys and values anew for every concept."""
    return torch.cat([_scores(mapping, some, z) for some in torch.split(concepts, _CONCEPTS_AT_A_TIME)])


def _scores(mapping: MappingLayer, concepts: Tensor, z: Tensor) -> Tensor:
    heads, width = mapping.shape.heads, mapping.shape.head_width
    count, length = len(concepts), len(z)
    states = z.expand(count, -1, -1)  # [N, L', D]
    query = mapping.to_query(concepts)
    q = query.view(count, 1, heads, width).transpose(1, 2)
    k = mapping.to_key(states).view(count, length, heads, width).transpose(1, 2)
    v = mapping.to_value(states).view(count, length, heads, width).transpose(1, 2)
    attention = (q @ k.transpose(-2, -1) / math.sqrt(width)).softmax(dim=-1)
    mapped = mapping.value_output((attention @ v).transpose(1, 2).reshape(count, heads * width))
    return mapping.temperature * F.cosine_similarity(mapped, mapping.query_output(query), dim=-1)


class PublishedPipeline:
    """The published inference with random weights: a text tower, then the calculation above."""

    def __init__(self, tower: Tower) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(0)
        config = CLIPTextConfig(**asdict(tower), max_position_embeddings=TOKENS, eos_token_id=tower.vocab_size - 1)
        self._tower = CLIPTextModel(config).eval().requires_grad_(False)
        self._mapping = MappingLayer(MappingShape(tower.hidden_size)).eval().requires_grad_(False)
        self._width = tower.hidden_size
        self._ids = torch.randint(0, tower.vocab_size - 1, (1, TOKENS))
        self._ids[:, -1] = tower.vocab_size - 1

    def checker(self, concept_count: int) -> Callable[[], float]:
        """A call that scores one prompt against that many concepts and gives the highest score."""
        concepts = torch.randn(concept_count, self._width)

        def check() -> float:
            hidden, pooled = self._encode()
            return float(published_scores(self._mapping, concepts, torch.cat([pooled, hidden[0]])).max())

        return check

    def embed_concept(self) -> Tensor:
        """The pooled state [1, D] of one concept, padded as the published code pads it."""
        return self._encode()[1]

    @torch.inference_mode()
    def _encode(self) -> tuple[Tensor, Tensor]:
        output = self._tower(input_ids=self._ids)
        return output.last_hidden_state, output.pooler_output
