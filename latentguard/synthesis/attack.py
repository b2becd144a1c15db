"""Adversarial replacements: tokens that a frozen encoder takes for a concept, with the concept's spelling gone.

A gradient-guided search over tokens, as GCG (Zou et al., arXiv 2307.15043) does it for language models and as the
adversarial split of Latent Guard (Liu et al., ECCV 2024, section 4.1) does it for text encoders: the replacement
maximises the mean cosine between the pooled states of prompts with it and of the same prompts with the concept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from torch import Tensor

from latentguard.encoders import DEFAULT_ENCODER, TextEncoder
from latentguard.encoders.base import Pooling, last_state, mean_pool
from latentguard.errors import ConceptError, EncoderError, MissingDependencyError
from latentguard.naming import NameMatcher, Naming
from latentguard.wording import content_words, derivation_stem, inflection_stem, text_key

from .spelling import spelling

_CONTEXT = ("a photo of ", " in the street")  # what stands around a concept where no prompts with it are given
_TOKENS = (2, 6)  # least and most tokens of a replacement
_PROMISING = 1 / 3  # of a round's swaps, how many are tried within the prompt after all were tried alone
_FIRST_TOKENS = 48  # how many of the nearest allowed tokens a search may start from
_SHARED = 0.5  # replacements of one concept have at most this share of their tokens in common
_WORDPIECE_MODELS = frozenset({"bert", "distilbert", "electra", "mpnet"})
_CLIP_MODELS = frozenset({"clip", "clip_text_model"})


@dataclass(frozen=True)
class Replacement:
    """A text that stands for a concept, and the mean cosine that it reaches with it, in [-1, 1]."""

    text: str
    similarity: float


class AdversarialSearch:
    """Searches replacements of concepts against one encoder.

    encoder: "minilm-l6", "hf:ID" or "hf:FOLDER" of a BERT-like encoder with WordPiece or a CLIP text tower, or such an
    encoder loaded. steps: rounds of the search for each replacement. candidates: token swaps tried in a round. topk:
    for each position the swaps are drawn from that many tokens, best by gradient first. On a CPU the same seed gives
    the same replacements bit for bit.

    Raises EncoderError for an encoder that gives no gradients here: one in ONNX Runtime, open_clip, T5.
    """

    def __init__(
        self,
        encoder: str | TextEncoder = DEFAULT_ENCODER,
        *,
        steps: int = 10,
        candidates: int = 48,
        topk: int = 96,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("steps", steps), ("candidates", candidates), ("topk", topk)):
            if value < 1:
                raise EncoderError(f"{name} must be at least 1, not {value}")
        self._tower = _Tower.of(encoder, device)
        self.encoder = self._tower.name
        self._steps, self._candidates, self._topk, self._seed = steps, candidates, topk, seed

    def replacements(self, concept: str, contexts: Iterable[str] | None = None, count: int = 3) -> list[Replacement]:
        """Up to `count` replacements of a concept, the nearest first; each has tokens of its own.

        contexts: prompts that spell the concept once; the shortest is used, or one of the search's own. The concept
        also counts alone, since within a prompt its neighbours hold the cosine up whatever stands in its place. A
        concept that every allowed token would spell gives none. Raises ConceptError for an empty concept.
        """
        if not content_words(concept):
            raise ConceptError("the concept to replace is empty")
        frames = self._frames(concept, contexts)
        goal = _Goal(self._tower, concept, frames)
        rng = random.Random(f"{self._seed} {text_key(concept)}")
        found: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(count):
            seen = self._search(goal, rng, taken=[ids for _, ids in found])
            best = max(seen.items(), key=lambda item: (item[1], item[0]), default=None)
            if best is None:
                break
            found.append((best[1], best[0]))
        found.sort(reverse=True)
        return [Replacement(self._tower.text(ids), similarity) for similarity, ids in found]

    def _frames(self, concept: str, contexts: Iterable[str] | None) -> list[tuple[str, str]]:
        """What stands before and after the concept: nothing, and a prompt's words."""
        spelt = spelling(concept)
        parted = [spelt.split(context) for context in contexts or ()]
        given = [(parts[0], parts[1]) for parts in parted if len(parts) == 2 and any(parts) and self._tower.fits(parts)]
        return [("", ""), min(given, key=lambda parts: (len("".join(parts)), parts), default=_CONTEXT)]

    def _search(
        self, goal: _Goal, rng: random.Random, taken: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], float]:
        """One climb: every replacement that was tried and counts, with its similarity."""
        start = self._start(goal, rng, taken)
        if start is None:
            return {}
        seen: dict[tuple[int, ...], float] = {}
        current = start
        for _ in range(self._steps):
            swaps = self._swaps(goal, current, goal.gradient(current), rng)
            fresh = [ids for ids in swaps if ids not in seen and _is_new(ids, taken) and goal.allows(ids)]
            fresh = goal.promising(fresh, math.ceil(len(fresh) * _PROMISING))
            seen.update(zip(fresh, goal.similarities(fresh), strict=True))
            if not seen:
                continue
            best = max(seen, key=lambda ids: (seen[ids], ids))
            # From a summit that no swap beats, the climb goes on from the best of the newest.
            current = best if best != current or not fresh else max(fresh, key=lambda ids: (seen[ids], ids))
        return seen

    def _start(self, goal: _Goal, rng: random.Random, taken: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
        """Allowed tokens whose embeddings lie near those of the concept."""
        near = goal.nearest_tokens(_FIRST_TOKENS)
        for _ in range(200 if near else 0):
            ids = tuple(rng.choice(near) for _ in range(goal.tokens))
            if _is_new(ids, taken) and goal.allows(ids):
                return ids
        return None

    def _swaps(
        self, goal: _Goal, current: tuple[int, ...], gradient: Tensor, rng: random.Random
    ) -> list[tuple[int, ...]]:
        """Copies of the current tokens, each with one or two of them swapped for one that the gradient points to."""
        gain = gradient @ goal.allowed_embeddings.T
        best = gain.topk(min(self._topk, gain.shape[1]), dim=1).indices.tolist()
        swaps: dict[tuple[int, ...], None] = {}
        for number in range(3 * self._candidates):
            ids = list(current)
            for place in rng.sample(range(len(ids)), min(len(ids), 1 + (number % 3 == 2))):
                ids[place] = goal.allowed_ids[rng.choice(best[place])]
            swaps[tuple(ids)] = None
        ordered = [ids for ids in swaps if ids != current]
        return ordered[: self._candidates]


def _is_new(ids: tuple[int, ...], taken: Sequence[tuple[int, ...]]) -> bool:
    """Whether the tokens share few enough with each of the replacements found before."""
    return all(len(set(ids) & set(other)) <= _SHARED * len(ids) - (len(ids) == 1) for other in taken)


class _Goal:
    """What a replacement of one concept should reach, and which tokens it may be made of."""

    def __init__(self, tower: _Tower, concept: str, frames: Sequence[tuple[str, str]]) -> None:
        self._tower = tower
        self._contexts = [(tower.ids(before), tower.ids(after)) for before, after in frames]
        self._texts = list(frames)
        self._banned = _banned_words(concept)
        self._matcher = NameMatcher([concept])
        own = tower.ids(concept)
        self.tokens = min(max(len(own) + 1, _TOKENS[0]), _TOKENS[1])
        self.allowed_ids = [
            token for token, surface in tower.vocabulary.items() if not _spells(surface, self._banned, whole=False)
        ]
        self.allowed_embeddings = tower.embeddings[
            torch.tensor(self.allowed_ids, device=tower.device, dtype=torch.long)
        ]
        self._own_embedding = tower.embeddings[torch.tensor(own, device=tower.device)].mean(dim=0)
        with torch.no_grad():
            self._targets = torch.cat([tower.pooled([(*before, *own, *after)]) for before, after in self._contexts])

    def nearest_tokens(self, count: int) -> list[int]:
        """The allowed tokens whose embeddings have the largest cosine with the mean of the concept's."""
        if not self.allowed_ids:
            return []
        cosines = torch.nn.functional.cosine_similarity(self.allowed_embeddings, self._own_embedding[None])
        return [self.allowed_ids[place] for place in cosines.topk(min(count, len(cosines))).indices.tolist()]

    def allows(self, ids: tuple[int, ...]) -> bool:
        """Whether the tokens, as text, don't spell the concept and are read as the same tokens in every context."""
        text = self._tower.text(ids)
        if not text or _spells(text, self._banned, whole=True):
            return False
        if any(naming >= Naming.FULL for naming in self._matcher.find(text).values()):
            return False
        if self._tower.ids(text) != ids:
            return False
        return all(
            self._tower.ids(before_text + text + after_text) == (*before, *ids, *after)
            for (before_text, after_text), (before, after) in zip(self._texts, self._contexts, strict=True)
        )

    def promising(self, rows: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
        """Those `count` replacements that come nearest in the first context, which is the shortest."""
        cosines = self._cosines(rows, 0).tolist() if rows else []
        ordered = sorted(zip(cosines, rows, strict=True), reverse=True)
        return [ids for _, ids in ordered[:count]]

    def similarities(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        """The mean cosine over the contexts of each replacement."""
        if not rows:
            return []
        places = range(len(self._contexts))
        return [float(value) for value in torch.stack([self._cosines(rows, at) for at in places]).mean(dim=0)]

    def _cosines(self, rows: Sequence[tuple[int, ...]], at: int) -> Tensor:
        before, after = self._contexts[at]
        with torch.no_grad():
            pooled = self._tower.pooled([(*before, *ids, *after) for ids in rows])
            return torch.nn.functional.cosine_similarity(pooled, self._targets[at][None])

    def gradient(self, ids: tuple[int, ...]) -> Tensor:
        """How the mean cosine changes with each token's embedding, [tokens, width]."""
        gradient = torch.zeros(len(ids), self._tower.embeddings.shape[1], device=self._tower.device)
        for (before, after), target in zip(self._contexts, self._targets, strict=True):
            place = len(before)
            gradient += self._tower.gradient((*before, *ids, *after), target)[place : place + len(ids)]
        return gradient / len(self._contexts)


@dataclass(frozen=True)
class _Banned:
    """A word that must not be spelt: its letters, the stem of its inflections, and that of its whole family."""

    letters: str
    inflection: str
    family: str


def _banned_words(concept: str) -> list[_Banned]:
    return [_Banned(text_key(word), inflection_stem(word), derivation_stem(word)) for word in content_words(concept)]


def _spells(text: str, banned: Sequence[_Banned], *, whole: bool) -> bool:
    """Whether a text holds a banned word or its stem, spaces aside; a single token must not be a part of one either."""
    letters = text_key(text)
    for word in banned:
        if any(part in letters for part in (word.letters, word.inflection, word.family) if len(part) > 2):
            return True
        if not whole and (letters in word.letters or inflection_stem(letters) == word.inflection):
            return True
    return False


class _Tower:
    """A frozen text encoder with its token embeddings laid open."""

    def __init__(
        self, name: str, model: Any, tokenizer: Tokenizer, *, pooling: Pooling, window: int, device: torch.device
    ) -> None:
        self.name = name
        self.device = device
        self._model = model.requires_grad_(False).eval().to(device)
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._window = window
        self._masked = pooling != "eos"  # a causal tower gets no mask: nothing here is padded
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        (inner,) = tokenizer.encode("a", add_special_tokens=False).ids
        place = framed.index(inner)
        self._prefix, self._suffix = tuple(framed[:place]), tuple(framed[place + 1 :])
        self._table = model.get_input_embeddings()
        self.embeddings: Tensor = self._table.weight.detach()
        self.vocabulary = _usable_tokens(tokenizer)

    @classmethod
    def of(cls, encoder: str | TextEncoder, device: torch.device | str) -> _Tower:
        """The tower of an encoder or of its name; the model is loaded anew, with its gradients in reach."""
        name = encoder if isinstance(encoder, str) else encoder.name
        place = torch.device(device if isinstance(encoder, str) else encoder.device)
        if name == DEFAULT_ENCODER:
            if getattr(encoder, "backend", "torch") != "torch":
                raise EncoderError(f"{name}: in ONNX Runtime it gives no gradients; load it with backend='torch'")
            return _embedded_tower(place)
        kind, _, where = name.partition(":")
        if kind == "hf" and where:
            return _hugging_face_tower(name, where, encoder, place)
        if kind == "open_clip":
            raise EncoderError(f"{name}: open_clip towers give no gradients here; take the same model as hf:ID")
        raise EncoderError(f"{name!r}: not an encoder that replacements can be searched against")

    def ids(self, text: str) -> tuple[int, ...]:
        """The text's token ids, without special tokens."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text that the token ids stand for."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def fits(self, parts: Sequence[str]) -> bool:
        """Whether a context leaves room for a replacement within one window."""
        used = sum(len(self.ids(part)) for part in parts) + len(self._prefix) + len(self._suffix)
        return used + 2 * _TOKENS[1] <= self._window

    def pooled(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Pooled states [B, D] of rows of token ids, all of one length, special tokens left out."""
        ids = torch.tensor([(*self._prefix, *row, *self._suffix) for row in rows], device=self.device)
        mask = torch.ones_like(ids)
        hidden = self._model(input_ids=ids, **({"attention_mask": mask} if self._masked else {})).last_hidden_state
        if self._pooling == "cls":
            return torch.as_tensor(hidden[:, 0])
        return last_state(hidden, mask.bool()) if self._pooling == "eos" else mean_pool(hidden, mask.bool())

    def gradient(self, row: tuple[int, ...], target: Tensor) -> Tensor:
        """The gradient [tokens, width] of the cosine with `target` in the embeddings of the row's tokens."""
        taken: list[Tensor] = []

        def take(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            taken.append(output.detach().requires_grad_(True))
            return taken[-1]

        hook = self._table.register_forward_hook(take)
        try:
            with torch.enable_grad():
                pooled = self.pooled([row])
                cosine = torch.nn.functional.cosine_similarity(pooled, target[None]).sum()
                (gradient,) = torch.autograd.grad(cosine, taken[:1])
        finally:
            hook.remove()
        start = len(self._prefix)
        return gradient[0, start : start + len(row)]


def _usable_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Tokens of ASCII letters alone that begin a word and are read as themselves, with their letters."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    usable: dict[int, str] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        surface = token.removesuffix("</w>")
        if token in special or len(surface) < 2 or not (surface.isascii() and surface.isalpha()):
            continue
        if tokenizer.encode(surface, add_special_tokens=False).ids == [number]:
            usable[number] = surface
    return usable


def _embedded_tower(device: torch.device) -> _Tower:
    from latentguard.encoders.embedded import EmbeddedEncoder, model_folder

    transformers = _transformers(DEFAULT_ENCODER)
    from latentguard.encoders.huggingface import quiet_transformers

    folder = model_folder("config.json", "model.safetensors", "tokenizer.json")
    with quiet_transformers():
        model = transformers.BertModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
        )
    tokenizer = _plain(Tokenizer.from_file(str(folder / "tokenizer.json")))
    return _Tower(DEFAULT_ENCODER, model, tokenizer, pooling="mean", window=EmbeddedEncoder.window, device=device)


def _hugging_face_tower(name: str, place: str, encoder: str | TextEncoder, device: torch.device) -> _Tower:
    transformers = _transformers(name)
    from latentguard.encoders import load_encoder
    from latentguard.encoders.huggingface import quiet_transformers

    # Whatever can be wrong with the place is found, and told, by the encoder itself.
    loaded = load_encoder(name, device="cpu") if isinstance(encoder, str) else encoder
    options = {"local_files_only": Path(place).is_dir(), "trust_remote_code": False}
    kind = transformers.AutoConfig.from_pretrained(place, **options).model_type
    if kind not in _CLIP_MODELS | _WORDPIECE_MODELS:
        raise EncoderError(f"{name}: replacements can't be searched against a {kind} model; take BERT or CLIP")
    factory = transformers.CLIPTextModel if kind in _CLIP_MODELS else transformers.AutoModel
    with quiet_transformers():
        model = factory.from_pretrained(place, use_safetensors=True, dtype=torch.float32, **options)
    backend = transformers.AutoTokenizer.from_pretrained(place, **options).backend_tokenizer
    if not isinstance(backend.model, (BPE, WordPiece)):
        raise EncoderError(f"{name}: replacements need a WordPiece or BPE tokenizer")
    return _Tower(name, model, _plain(backend), pooling=loaded.pooling, window=loaded.window, device=device)


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"searching replacements against {name} needs transformers; install it with: "
            "pip install 'latentguard[transformers]'"
        ) from error
    return transformers


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without padding and truncation, reading special tokens in a text as plain text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer
