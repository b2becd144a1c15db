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


@torch.inference_mode()
def published_scores_at_once(mapping: MappingLayer, concepts: Tensor, z: Tensor) -> Tensor:
    """Scores [B, N] of prompts z [B, L', D] against concepts [N, D], of all pairs at once.

    On a processor slower than one prompt and some concepts at a time, whose results stay in its cache. A pair takes
    some 0.7 MB: the prompt's states, its values, and its keys twice.
    """
    prompts, count = len(z), len(concepts)
    states = z[:, None].expand(-1, count, -1, -1).flatten(0, 1)
    return _scores(mapping, concepts.repeat(prompts, 1), states).view(prompts, count)


def _scores(mapping: MappingLayer, concepts: Tensor, z: Tensor) -> Tensor:
    heads, width = mapping.shape.heads, mapping.shape.head_width
    count, length = len(concepts), z.shape[-2]
    states = z.expand(count, -1, -1)  # [N, L', D], of one prompt or of one for each concept
    query = mapping.to_query(concepts)
    q = query.view(count, 1, heads, width).transpose(1, 2)
    k = mapping.to_key(states).view(count, length, heads, width).transpose(1, 2)
    v = mapping.to_value(states).view(count, length, heads, width).transpose(1, 2)
    attention = (q @ k.transpose(-2, -1) / math.sqrt(width)).softmax(dim=-1)
    mapped = mapping.value_output((attention @ v).transpose(1, 2).reshape(count, heads * width))
    return mapping.temperature * F.cosine_similarity(mapped, mapping.query_output(query), dim=-1)


class PublishedPipeline:
    """The published inference with random weights: a text tower, then the calculation above."""

    def __init__(self, tower: Tower, device: str = "cpu") -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(0)
        config = CLIPTextConfig(**asdict(tower), max_position_embeddings=TOKENS, eos_token_id=tower.vocab_size - 1)
        self._tower = CLIPTextModel(config).eval().requires_grad_(False).to(device)
        self.mapping = MappingLayer(MappingShape(tower.hidden_size)).eval().requires_grad_(False).to(device)
        self._width = tower.hidden_size
        ids = torch.randint(0, tower.vocab_size - 1, (1, TOKENS))
        ids[:, -1] = tower.vocab_size - 1
        self._ids = ids.to(device)

    def concepts(self, count: int) -> Tensor:
        """Pooled states [N, D] of that many concepts."""
        return torch.randn(count, self._width).to(self._ids.device)

    def checker(self, concept_count: int) -> Callable[[], float]:
        """A call that scores one prompt against that many concepts and gives the highest score."""
        concepts = self.concepts(concept_count)

        def check() -> float:
            return float(published_scores(self.mapping, concepts, self.states(1)[0]).max())

        return check

    def embed_concept(self) -> Tensor:
        """The pooled state [1, D] of one concept, padded as the published code pads it."""
        return self._encode(1)[1]

    def states(self, prompts: int) -> Tensor:
        """The states [B, 78, D] of that many prompts, encoded in one batch, the pooled state of each first."""
        hidden, pooled = self._encode(prompts)
        return torch.cat([pooled[:, None], hidden], dim=1)

    @torch.inference_mode()
    def _encode(self, prompts: int) -> tuple[Tensor, Tensor]:
        output = self._tower(input_ids=self._ids.expand(prompts, -1))
        return output.last_hidden_state, output.pooler_output
