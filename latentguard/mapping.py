"""The mapping layer: how near a prompt is to a concept, from a frozen encoder's states.

Cross-attention of a concept query over a prompt's token states, as in Latent Guard (Liu et al., ECCV 2024,
arXiv 2404.08031, section 3.2): with ``e`` [D] the pooled state of a concept and ``z`` [L', D] the states of a prompt,
its pooled state first,

    q = W_q e,  K = W_k z,  V = W_v z          (each split into heads)
    a = softmax(q Kᵀ / √d),  v' = W_v' concat_h(a V),  q' = W_q' q
    score = τ · cos(v', q')

The same formula stands here twice. :meth:`MappingLayer.forward` is the plain, differentiable one that training uses.
:meth:`MappingLayer.score` is the one that answers prompts: whatever depends on the concept alone was computed when the
bank was built (:class:`ConceptQueries`), keys and values are computed once per prompt and not once per concept, the
concepts come last in the big intermediate results, so that every step runs along them, and W_v' is applied to the
values or to the result, whichever is less work. :mod:`latentguard.lite.mapping` has it in numpy, for where PyTorch is
not installed. Tests hold the three together.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentguard.encoders.base import TokenStates
from latentguard.reading import Attribution
from latentguard.shapes import MappingShape as MappingShape

INITIAL_TEMPERATURE = 1 / 0.07
# Concepts compared at a time: their attention weights stay in a CPU's cache.
_CONCEPTS_AT_A_TIME = 768
# Attention weights computed at a time on an accelerator. A CPU takes the prompts one by one: they stay in its cache, no
# query is copied, no padding computed, and a prompt's score doesn't depend on its neighbours by a single bit.
_WEIGHTS_AT_A_TIME = 1 << 26
# While a sum of exponentials lies between this and its inverse, none of those that count has lost precision.
_LARGEST_SUM = 1e26


@dataclass(frozen=True)
class ConceptQueries:
    """What a mapping layer keeps of N concepts: all that depends on the concepts alone.

    ``query`` [H, d, N] is W_q e, already divided by √d; ``direction`` [N, O] is τ · q' / |q'|.
    """

    query: Tensor
    direction: Tensor

    def __len__(self) -> int:
        return self.direction.shape[0]

    def rows(self, index: Tensor | np.ndarray | slice) -> ConceptQueries:
        """The same for the concepts at ``index``, in that order."""
        return ConceptQueries(self.query[..., index].contiguous(), self.direction[index].contiguous())

    def join(self, other: ConceptQueries) -> ConceptQueries:
        """These concepts, then the others."""
        return ConceptQueries(
            torch.cat([self.query, other.query], dim=-1), torch.cat([self.direction, other.direction])
        )


def with_pooled(states: TokenStates) -> tuple[Tensor, Tensor]:
    """The states that the layer attends over: z [B, 1+L, D], the pooled state first, and its mask [B, 1+L].

    Positions that the mask leaves out are zero, so that what an encoder computed there can't matter.
    """
    hidden = states.hidden.masked_fill(~states.mask[..., None], 0)  # not times 0: what stands there may be no number
    z = torch.cat([states.pooled[:, None], hidden], dim=1)
    return z, F.pad(states.mask, (1, 0), value=True)


class _Workspace(threading.local):
    """Buffers that one thread uses again and again: fresh ones cost more, in page faults, than the arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised float32 tensor of ``shape`` on ``like``'s device, valid until ``name`` is taken again."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, like.device))
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name, like.device] = torch.empty(size, dtype=torch.float32, device=like.device)
        return buffer[:size].view(shape)


_take = _Workspace().take


class MappingLayer(nn.Module):
    """Scores prompts against concepts; see the module's text for the formula and its source.

    Attributes follow the paper: ``to_query`` W_q, ``to_key`` W_k, ``to_value`` W_v, ``value_output`` W_v',
    ``query_output`` W_q', ``temperature`` τ (the factor itself, not its logarithm).
    """

    def __init__(self, shape: MappingShape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.heads * shape.head_width
        self.to_query = nn.Linear(shape.width, inner)
        self.to_key = nn.Linear(shape.width, inner)
        self.to_value = nn.Linear(shape.width, inner)
        self.value_output = nn.Linear(inner, shape.output)
        self.query_output = nn.Linear(inner, shape.output)
        self.temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))

    def forward(self, concepts: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """Scores [B, N] of prompts z [B, L', D] with mask [B, L'] against concepts [N, D]; differentiable."""
        mapped = self.mapped(concepts, z, mask)
        directions = self.query_output(self.to_query(concepts))
        return self.temperature * F.cosine_similarity(mapped, directions[None], dim=-1)

    def mapped(self, concepts: Tensor, z: Tensor, mask: Tensor) -> Tensor:
        """The prompts as each concept sees them, v' [B, N, O]; arguments as in :meth:`forward`."""
        heads, width = self.shape.heads, self.shape.head_width
        q = self.to_query(concepts).unflatten(-1, (heads, width))
        k, v = (layer(z).unflatten(-1, (heads, width)) for layer in (self.to_key, self.to_value))
        logits = torch.einsum("nhd,blhd->bhnl", q, k) / math.sqrt(width)
        a = logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(dim=-1)
        mapped: Tensor = self.value_output(torch.einsum("bhnl,blhd->bnhd", a, v).flatten(2))
        return mapped

    def on(self, device: torch.device) -> MappingLayer:
        """The layer, on ``device`` and in eval mode."""
        return self.to(device).eval()

    def attended(self, states: TokenStates) -> tuple[Tensor, Tensor]:
        """:func:`with_pooled` of states from any device and in any precision, for this layer."""
        device = self.temperature.device
        return with_pooled(
            TokenStates(states.hidden.float().to(device), states.mask.to(device), states.pooled.float().to(device))
        )

    @torch.no_grad()
    def queries(self, concepts: Tensor) -> ConceptQueries:
        """What :meth:`score` needs of concepts [N, D]."""
        heads, width = self.shape.heads, self.shape.head_width
        q = self.to_query(concepts)
        direction = self.temperature * F.normalize(self.query_output(q), dim=-1)
        query = (q / math.sqrt(width)).unflatten(-1, (heads, width)).permute(1, 2, 0)
        return ConceptQueries(query.contiguous(), direction)

    @torch.inference_mode()
    def score(self, queries: ConceptQueries, z: Tensor, mask: Tensor) -> Tensor:
        """Scores [B, N] of prompts z [B, L', D] with mask [B, L'], as :func:`with_pooled` gives them; no gradient."""
        scores = torch.empty(z.shape[0], len(queries), dtype=torch.float32, device=z.device)
        if not len(queries):
            return scores
        if rows_apart(z):
            for i, length in enumerate(real_lengths(mask)):
                one = slice(i, i + 1)
                scores[one] = self._score_chunk(queries, z[one, :length], mask[one, :length])
            return scores
        step = max(1, _WEIGHTS_AT_A_TIME // (self.shape.heads * min(len(queries), _CONCEPTS_AT_A_TIME) * z.shape[1]))
        for start in range(0, z.shape[0], step):
            chunk = slice(start, start + step)
            scores[chunk] = self._score_together(queries, z[chunk], mask[chunk])
        return scores

    def _score_together(self, queries: ConceptQueries, z: Tensor, mask: Tensor) -> Tensor:
        """Many prompts at a time, for an accelerator: no step waits for it, and autocast may round the products."""
        heads, width = self.shape.heads, self.shape.head_width
        k, v = (layer(z).unflatten(-1, (heads, width)) for layer in (self.to_key, self.to_value))
        parts = []
        for start in range(0, len(queries), _CONCEPTS_AT_A_TIME):
            some = slice(start, start + _CONCEPTS_AT_A_TIME)
            logits = torch.einsum("blhd,hdn->bhln", k, queries.query[..., some])
            a = logits.masked_fill(~mask[:, None, :, None], -torch.inf).softmax(dim=2)
            mapped = self.value_output(torch.einsum("bhln,blhd->bnhd", a, v).flatten(2)).float()
            norm = torch.linalg.vector_norm(mapped, dim=-1).clamp_min(1e-8)
            parts.append((mapped * queries.direction[some]).sum(dim=-1) / norm)
        return torch.cat(parts, dim=1)

    def _score_chunk(self, queries: ConceptQueries, z: Tensor, mask: Tensor) -> Tensor:
        heads, width, size, output = self.shape.heads, self.shape.head_width, self.shape.output, self.value_output
        (batch, length, _), rows = z.shape, z.shape[0] * heads
        k, v = self._by_head(self.to_key, z, "keys"), self._by_head(self.to_value, z, "values")
        right = output.weight.t().expand(batch, -1, -1)
        # W_v' is applied once per position, to the values, or once per concept, to the values it has gathered.
        per_position = length * size < width * (length + size)
        if per_position:
            right = right.view(batch, heads, width, size).reshape(rows, width, size)
            right = torch.bmm(v, right, out=_take("projected", (rows, length, size), z)).view(batch, -1, size)
        scores = torch.empty(batch, len(queries), dtype=torch.float32, device=z.device)
        for start in range(0, len(queries), _CONCEPTS_AT_A_TIME):
            some = slice(start, start + _CONCEPTS_AT_A_TIME)
            left, total = _exponentials(queries.query[..., some], k, mask)
            if not per_position:
                left = torch.bmm(v.transpose(1, 2), left, out=_take("gathered", (rows, width, left.shape[2]), z))
            left = left.div_(total).view(batch, -1, left.shape[2]).transpose(1, 2)
            mapped = torch.baddbmm(output.bias, left, right, out=_take("mapped", (batch, left.shape[1], size), z))
            norm = torch.linalg.vector_norm(mapped, dim=-1).clamp_min_(1e-8)
            torch.div(mapped.mul_(queries.direction[some]).sum(dim=-1), norm, out=scores[:, some])
        return scores

    def _by_head(self, layer: nn.Linear, z: Tensor, name: str) -> Tensor:
        """``layer`` of z [B, L', D], split into heads: [B·H, L', d]."""
        (batch, length, _), heads, width = z.shape, self.shape.heads, self.shape.head_width
        states = _take(name, (batch * length, heads * width), z)
        torch.addmm(layer.bias, z.reshape(batch * length, -1), layer.weight.t(), out=states)
        return states.view(batch, length, heads, width).transpose(1, 2).reshape(batch * heads, length, width)

    @torch.inference_mode()
    def attribute(self, queries: ConceptQueries, z: Tensor, mask: Tensor, pooling: Tensor) -> Attribution:
        """One prompt z [L', D] with mask [L'] and one concept: what each position added to the score.

        v' is a sum over positions, and for its given length |v'| so is the score: position l adds
        Σ_h a_hl (W_v' V_l)_h · q' τ / (|q'| |v'|), and W_v's bias adds the rest. The pooled state is itself a sum,
        ``pooling`` [L] times the positions' states, so what it added is theirs in the same shares.
        """
        heads, width = self.shape.heads, self.shape.head_width
        k, v = (layer(z).unflatten(-1, (heads, width)) for layer in (self.to_key, self.to_value))
        a = torch.einsum("hd,lhd->hl", queries.query[..., 0], k).masked_fill(~mask, -torch.inf).softmax(dim=-1)
        a = a[:, 1:] + a[:, :1] * pooling
        parts = torch.einsum("hl,lhd->lhd", a, v[1:]).flatten(1) @ self.value_output.weight.t()
        bias = self.value_output.bias
        direction = queries.direction[0] / (parts.sum(0) + bias).norm().clamp_min(1e-8)
        return Attribution(parts @ direction, float(bias @ direction))


def _exponentials(query: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """exp(q Kᵀ) [B·H, L', N] of queries [H, d, N] and keys [B·H, L', d] with mask [B, L'], and its sum over L'.

    One divided by the other is the attention; both may share a factor.
    """
    (heads, width, concepts), (rows, length, _) = query.shape, k.shape
    query = query.expand(rows // heads, -1, -1, -1).reshape(rows, width, concepts)
    a = _take("attention", (rows, length, concepts), k)

    def logits() -> Tensor:
        torch.bmm(k, query, out=a)
        if not mask.all():
            a.view(-1, heads, length, concepts).masked_fill_(~mask[:, None, :, None], -torch.inf)
        return a

    total = logits().exp_().sum(dim=1, keepdim=True)
    least, most = torch.aminmax(total)
    if not (float(least) > 1 / _LARGEST_SUM and float(most) < _LARGEST_SUM):
        # Rare: logits beyond those of a trained layer. Once more, with the largest taken off before the exponential.
        total = logits().sub_(a.amax(dim=1, keepdim=True)).exp_().sum(dim=1, keepdim=True)
    return a, total


def rows_apart(z: Tensor) -> bool:
    """Whether prompts are scored one by one: by a processor, unless it is to compute in half precision."""
    return z.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def real_lengths(mask: Tensor) -> list[int]:
    """For each row of mask [B, L'], how many positions reach up to its last real one."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths: list[int] = (mask * places).amax(dim=1).tolist()
    return lengths
