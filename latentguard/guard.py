"""LatentGuard: the one door to the prompt guard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from latentguard.bank import BankSnapshot, ConceptBank
from latentguard.encoders import load_encoder
from latentguard.encoders.base import TextEncoder, Window
from latentguard.errors import ConceptError, EncoderError, PolicyError, PromptError, WeightsError
from latentguard.mapping import MappingLayer, with_pooled
from latentguard.normalize import normalize
from latentguard.policy import Policy
from latentguard.records import MAX_PROMPT_CHARS, ConceptEntry
from latentguard.verdict import Explanation, TokenContribution, Verdict
from latentguard.weights import find_weights, load_weights

_PROMPTS_AT_A_TIME = 512
_WINDOWS_AT_A_TIME = 64


class LatentGuard:
    """Blocks prompts near blacklisted concepts, before any diffusion step.

    ::

        from latentguard import LatentGuard

        guard = LatentGuard.from_pretrained()
        verdict = guard.check("a photo of a beheading")
        verdict.blocked, verdict.concept, verdict.score
        print(verdict.explain())
        guard.concepts.add("golden retriever")       # from now on blocked as well; nothing is trained
        guard.concepts.remove("golden retriever")
        verdicts = guard.check_batch(["a red wine", "a bar fight"])

    The guard fails closed: what can't be scored raises an error, and is never passed as allowed.

    Attributes:
        concepts: the concept bank; see :class:`ConceptBank`.
        policy: the thresholds; may be replaced at any time.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        mapping: MappingLayer,
        concepts: Iterable[ConceptEntry | str],
        policy: Policy,
    ) -> None:
        if mapping.shape.width != encoder.width:
            raise WeightsError(
                f"the mapping layer takes states of width {mapping.shape.width}, "
                f"the encoder {encoder.name} gives {encoder.width}"
            )
        self.encoder = encoder
        self.mapping = mapping.to(encoder.device).eval()
        self.policy = policy
        self.concepts = ConceptBank(encoder, self.mapping, concepts)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path | None = None,
        *,
        concepts: Iterable[ConceptEntry | str] | None = None,
        threshold: float | None = None,
        policy: Policy | None = None,
        device: str = "auto",
        encoder: TextEncoder | None = None,
        precision: str | None = None,
    ) -> LatentGuard:
        """A guard from trained weights.

        Args:
            name_or_dir: the name of shipped weights, a folder, or a hub id; the embedded default if left out.
            concepts: the bank to use instead of the one that came with the weights.
            threshold: the score from which a prompt is blocked, instead of the one that came with the weights.
            policy: a whole policy, instead of a threshold.
            device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
            encoder: a loaded encoder of the kind that the weights were trained on; loaded by its name if left out.
            precision: the embedded encoder's arithmetic, "int8" or "fp32"; its fastest on the device if left out.

        Raises:
            WeightsError: the weights can't be had, are damaged, or belong to another encoder.
            EncoderError: the encoder can't be loaded.
            ConceptError, PolicyError: ``concepts``, ``threshold`` or ``policy`` can't be used.
        """
        if policy is not None and threshold is not None:
            raise PolicyError("give a threshold or a policy, not both")
        weights = load_weights(find_weights(name_or_dir))
        config = weights.config
        if encoder is None:
            encoder = load_encoder(
                config.encoder, device=device, pad_to_window=config.pad_to_window, precision=precision
            )
        elif encoder.name != config.encoder:
            raise WeightsError(f"these weights belong to the encoder {config.encoder}, not to {encoder.name}")
        if policy is None:
            policy = Policy(config.threshold if threshold is None else threshold)
        return cls(encoder, weights.mapping, weights.concepts if concepts is None else concepts, policy)

    def check(self, prompt: str) -> Verdict:
        """The verdict on one prompt.

        Raises:
            PromptError: the prompt is no text, empty, or over the limit of length.
            ConceptError, PolicyError: the bank is empty or switched off whole, so that nothing could be blocked.
            EncoderError: the encoder gave no finite numbers.
        """
        return next(self.stream([prompt]))

    def check_batch(self, prompts: Iterable[str]) -> list[Verdict]:
        """The verdicts on any number of prompts, in order; errors as :meth:`check`, naming the prompt's place."""
        return list(self.stream(prompts))

    def stream(self, prompts: Iterable[str]) -> Iterator[Verdict]:
        """The verdicts on prompts, in order, holding a few hundred of them at a time; errors as :meth:`check_batch`."""
        for start, chunk in _chunks(prompts, _PROMPTS_AT_A_TIME):
            snapshot = self._usable_snapshot()
            policy = self.policy
            thresholds = policy.thresholds(snapshot.concepts)
            if not np.isfinite(thresholds).any():
                raise PolicyError("the policy switches every concept off: nothing would be blocked")
            scores = self._scores([_scorable(prompt, start + i) for i, prompt in enumerate(chunk)], snapshot)
            margins = scores - thresholds
            explain = self._explainer(snapshot)
            for i, prompt in enumerate(chunk):
                best = int(margins[i].argmax())
                concept = snapshot.concepts[best]
                yield Verdict(
                    prompt=prompt,
                    score=float(scores[i, best]),
                    concept=concept.name,
                    category=concept.category,
                    threshold=float(thresholds[best]),
                    decision=policy.decide(float(margins[i, best])),
                    _concepts=snapshot.concepts,
                    _scores=scores[i],
                    _explain=explain,
                )

    def score(self, prompts: Iterable[str]) -> np.ndarray:
        """The raw scores, float32 [B]: of each prompt the highest over all concepts; errors as :meth:`check_batch`."""
        snapshot = self._usable_snapshot()
        parts = [
            self._scores([_scorable(prompt, start + i) for i, prompt in enumerate(chunk)], snapshot).max(axis=1)
            for start, chunk in _chunks(prompts, _PROMPTS_AT_A_TIME)
        ]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _usable_snapshot(self) -> BankSnapshot:
        snapshot = self.concepts.snapshot
        if not snapshot.concepts:
            raise ConceptError("the concept bank is empty: nothing would be blocked; add a concept first")
        return snapshot

    def _scores(self, texts: Sequence[str], snapshot: BankSnapshot) -> np.ndarray:
        """Scores [B, N] of normalised texts: of each text and concept the highest over the text's windows."""
        windows: list[Window] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            of_text = self.encoder.windows(text)
            windows += of_text
            owners += [owner] * len(of_text)
        scores = np.full((len(texts), len(snapshot.concepts)), -np.inf, dtype=np.float32)
        by_length = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))
        for start in range(0, len(windows), _WINDOWS_AT_A_TIME):
            batch = by_length[start : start + _WINDOWS_AT_A_TIME]
            z, mask = with_pooled(self.encoder.encode_windows([windows[i] for i in batch]))
            of_windows = self.mapping.score(snapshot.queries, z, mask).cpu().numpy()
            np.maximum.at(scores, [owners[i] for i in batch], of_windows)
        if not np.isfinite(scores).all():
            raise EncoderError("a prompt's score is not a finite number, so the prompt can't be judged")
        return scores

    def _explainer(self, snapshot: BankSnapshot) -> Callable[[Verdict], Explanation]:
        """Explains verdicts against the bank they were made with, whatever has become of the guard's bank since."""
        return lambda verdict: self._explain(verdict, snapshot)

    def _explain(self, verdict: Verdict, snapshot: BankSnapshot) -> Explanation:
        place = next(i for i, concept in enumerate(snapshot.concepts) if concept.name == verdict.concept)
        queries = snapshot.queries.rows(torch.tensor([place], device=self.encoder.device))
        text = normalize(verdict.prompt)
        windows = self.encoder.windows(text)
        scored = [with_pooled(self.encoder.encode_windows([window])) for window in windows]
        scores = [float(self.mapping.score(queries, z, mask)) for z, mask in scored]
        best = int(np.argmax(scores))
        window, (z, mask) = windows[best], scored[best]
        attribution = self.mapping.attribute(queries, z[0], mask[0], self._pooling_shares(window, mask[0, 1:]))
        positions = attribution.positions.cpu().tolist()
        words, whole = _by_word(text, window, positions)
        return Explanation(verdict.concept, text, words, whole, attribution.bias, verdict.threshold)

    def _pooling_shares(self, window: Window, mask: torch.Tensor) -> torch.Tensor:
        """How much each position [L] has in the pooled state."""
        if self.encoder.pooling == "mean":
            return mask / mask.sum()
        shares = torch.zeros(mask.shape[0], device=mask.device)
        shares[0 if self.encoder.pooling == "cls" else len(window.ids) - 1] = 1.0
        return shares


def _chunks(prompts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    if isinstance(prompts, str):
        raise PromptError("expected a list of prompts, got one text; use check for one prompt")
    iterator, start = iter(prompts), 0
    while chunk := list(islice(iterator, size)):
        yield start, chunk
        start += len(chunk)


def _scorable(prompt: object, place: int) -> str:
    """The normalised text of a prompt; PromptError naming its place, and never quoting it, if it can't be scored."""
    if not isinstance(prompt, str):
        raise PromptError(f"prompt {place + 1}: expected text, got {type(prompt).__name__}")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise PromptError(f"prompt {place + 1}: {len(prompt):,} characters; the limit is {MAX_PROMPT_CHARS:,}")
    text = normalize(prompt)
    if not text:
        raise PromptError(f"prompt {place + 1}: empty")
    return text


def _by_word(text: str, window: Window, positions: Sequence[float]) -> tuple[tuple[TokenContribution, ...], float]:
    """The positions' shares gathered by word of the text, and what is left at positions that have no place in it."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    shares: dict[tuple[int, int], float] = {}
    whole = 0.0
    word = 0
    for i, share in enumerate(positions):
        start, end = window.offsets[i] if i < len(window.offsets) else (0, 0)
        if start == end:
            whole += share
            continue
        while word + 1 < len(spans) and spans[word][1] <= start:
            word += 1
        shares[spans[word]] = shares.get(spans[word], 0.0) + share
    return tuple(TokenContribution(text[a:b], a, b, share) for (a, b), share in shares.items()), whole
