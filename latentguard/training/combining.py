"""Fitting what stands beside the mapping layer once that is trained: the concepts' scale, and the score's weights."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latentguard.bank import BankSnapshot, ConceptBank
from latentguard.encoders.base import TextEncoder
from latentguard.errors import ConceptError
from latentguard.heads import Combination, ConceptScale, Heads
from latentguard.lexicon import WordRarity
from latentguard.mapping import MappingLayer
from latentguard.naming import Naming
from latentguard.normalize import normalize
from latentguard.prompt_head import PromptHead
from latentguard.records import ConceptEntry
from latentguard.training.cache import TokenStateCache
from latentguard.training.trainer import HeldOut

_WORDS = 2_500  # single words that stand for further concepts when the scale is fitted
_RIDGE = 300.0
_AT_A_TIME = 64
_STEPS = 400
_MENTIONS = 0.5  # of the weight of the unsafe prompts: a concept that is there counts as much as harm
_START = Combination(concept=1.0, part=0.2, named=1.0, prompt=1.0, bias=-3.0)


def fit_scale(
    mapping: MappingLayer,
    encoder: TextEncoder,
    cache: TokenStateCache,
    concepts: Sequence[str],
    harmless: Sequence[str],
    seed: int,
) -> ConceptScale:
    """The scale of the scores that cached ``harmless`` prompts have with ``concepts`` and with words of theirs.

    A ridge regression over standardised directions; the further words keep it from learning the concepts by heart.
    """
    rng = random.Random(seed)
    words = sorted({word for text in harmless for word in re.findall(r"[a-z]{3,}", text.casefold())})
    names = [*concepts, *rng.sample(words, min(_WORDS, len(words)))]
    bank = ConceptBank(encoder, mapping, distinct(names)).snapshot
    scores = _scores(mapping, bank, cache, harmless).double()
    spread = scores.std(dim=0).clamp_min(1e-3)
    targets = torch.stack([scores.mean(dim=0), spread.log()], dim=1)
    directions = F.normalize(bank.queries.direction, dim=-1).cpu().double()
    middle, width = directions.mean(dim=0), directions.std(dim=0).clamp_min(1e-6)
    x, y = (directions - middle) / width, targets - targets.mean(dim=0)
    solved = torch.linalg.solve(x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    scale = ConceptScale(x.shape[1])
    with torch.no_grad():
        weight = (solved / width[:, None]).T
        scale.moments.weight.copy_(weight)
        scale.moments.bias.copy_(targets.mean(dim=0) - weight @ middle)
    return scale.eval().requires_grad_(False)


def fit_combination(
    mapping: MappingLayer,
    prompt_head: PromptHead,
    scale: ConceptScale,
    rarity: WordRarity,
    encoder: TextEncoder,
    cache: TokenStateCache,
    held_out: Sequence[HeldOut],
    known: Sequence[ConceptEntry],
    default: Sequence[ConceptEntry],
) -> Combination:
    """The weights of the score, by logistic regression on prompts that training doesn't see.

    A prompt's score is its highest over a bank. All of ``held_out`` are scored with the concepts of the training data,
    ``known``, where a prompt that mentions a concept counts as unsafe; and with the ``default`` bank, without such
    prompts. Of each view harmful and harmless prompts weigh the same, and so do safe twins and other harmless prompts.
    """
    heads = Heads(prompt_head, scale, _START, rarity)
    views = []
    for entries, mentions in ((known, True), (default, False)):
        bank = ConceptBank(encoder, mapping, entries, heads).snapshot
        for one in held_out:
            rows = np.flatnonzero(mentions | ~one.mention)
            if one.unsafe[rows].any() and not one.unsafe[rows].all():
                views.append(_view(mapping, heads, bank, cache, one, rows))
    return _logistic(views)


@dataclass(frozen=True)
class _View:
    """Some prompts against one bank: z [P, N], prompt [P, N], named [2, P, N], whether unsafe [P], and weights [P]."""

    standard: Tensor
    prompt: Tensor
    named: Tensor
    unsafe: Tensor
    weight: Tensor


def _view(
    mapping: MappingLayer,
    heads: Heads,
    bank: BankSnapshot,
    cache: TokenStateCache,
    held_out: HeldOut,
    rows: NDArray[np.int64],
) -> _View:
    if bank.scoring is None:
        raise ConceptError("a bank without heads has no evidence to weigh")
    texts = [held_out.texts[row] for row in rows]
    mean, spread = bank.scoring.moments.cpu().unbind(-1)
    standard = (_scores(mapping, bank, cache, texts) - mean) / spread
    harm = _harm(heads, cache, texts)[:, bank.scoring.categories.cpu()]
    named = torch.zeros(2, *standard.shape)
    for row, text in enumerate(texts):
        matcher = bank.scoring.matcher
        match = matcher.match(matcher.forms(normalize(text)))
        for concept, grade, rare in zip(match.concepts, match.grades, match.rarity, strict=True):
            named[int(grade > Naming.PART), row, int(concept)] = float(rare)
    unsafe = held_out.unsafe[rows]
    kinds = np.where(unsafe, np.where(held_out.mention[rows], 0, 1), np.where(held_out.twin[rows], 2, 3))
    shares = {0: _MENTIONS, 1: 1 - _MENTIONS, 2: 0.5, 3: 0.5}
    weight = np.array([shares[kind] / (kinds == kind).sum() for kind in kinds])
    return _View(standard, harm, named, torch.from_numpy(unsafe).float(), torch.from_numpy(weight).float())


def _logistic(views: Sequence[_View]) -> Combination:
    start = torch.tensor([_START.concept, _START.part, _START.named, _START.prompt])
    positive = start.log().requires_grad_()  # more evidence is never less harm
    bias = torch.tensor(_START.bias, requires_grad=True)
    optimizer = torch.optim.Adam([positive, bias], lr=0.05)
    for _ in range(_STEPS):
        concept, part, whole, prompt = positive.exp()
        loss = torch.zeros(())
        for view in views:
            named = part * view.named[0] + whole * view.named[1]
            score = (concept * view.standard + named + prompt * view.prompt).amax(dim=1) + bias
            loss = loss + F.binary_cross_entropy_with_logits(score, view.unsafe, view.weight, reduction="sum")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Combination(*(round(value, 4) for value in [*positive.exp().tolist(), bias.item()]))


def _scores(mapping: MappingLayer, bank: BankSnapshot, cache: TokenStateCache, texts: Sequence[str]) -> Tensor:
    """The mapping layer's scores [P, N] of cached prompts, on the CPU."""
    return torch.cat([mapping.score(bank.queries, *states).cpu() for states in _states(mapping, cache, texts)])


def _harm(heads: Heads, cache: TokenStateCache, texts: Sequence[str]) -> Tensor:
    return torch.cat([heads.harm(*states).cpu() for states in _states(heads.prompt_head, cache, texts)])


def _states(module: torch.nn.Module, cache: TokenStateCache, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(module.parameters()).device
    places = cache.positions([normalize(text) for text in texts])
    for start in range(0, len(places), _AT_A_TIME):
        yield cache.gather(places[start : start + _AT_A_TIME], device=device)


def distinct(names: Iterable[str]) -> list[ConceptEntry]:
    """The concepts of these names, each once: a bank takes no name twice, and does not tell cases apart."""
    return [ConceptEntry(name) for name in {name.casefold(): name for name in names}.values()]
