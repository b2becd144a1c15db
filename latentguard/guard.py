"""LatentGuard: the one door to the prompt guard."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from latentguard.arrays import Array, as_numpy, placed
from latentguard.bank import BankSnapshot, ConceptBank, ConceptScoring
from latentguard.encoders import load_encoder
from latentguard.encoders.base import TextEncoder, TokenStates, Window, batches
from latentguard.errors import ConceptError, EncoderError, PolicyError, PromptError, WeightsError
from latentguard.lexicon import TextForms
from latentguard.normalize import normalize
from latentguard.policy import Policy
from latentguard.reading import Attribution, Contributions, ReadPrompt
from latentguard.records import MAX_PROMPT_CHARS, ConceptEntry
from latentguard.verdict import Explanation, TokenContribution, Verdict
from latentguard.weights import find_weights, read_weights
from latentguard.wording import word_spans

if TYPE_CHECKING:
    from latentguard.heads import Heads
    from latentguard.mapping import MappingLayer

_Prompt = TypeVar("_Prompt")
_PROMPTS_AT_A_TIME = 512


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
        heads: Heads | None = None,
    ) -> None:
        if mapping.shape.width != encoder.width:
            raise WeightsError(
                f"the mapping layer takes states of width {mapping.shape.width}, "
                f"the encoder {encoder.name} gives {encoder.width}"
            )
        self.encoder = encoder
        self.mapping = mapping.on(encoder.device)
        self.heads = None if heads is None else heads.on(encoder.device)
        self.policy = policy
        self.concepts = ConceptBank(encoder, self.mapping, concepts, self.heads)

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
        threads: int | None = None,
    ) -> LatentGuard:
        """A guard from trained weights.

        Args:
            name_or_dir: the name of shipped weights, a folder, or a hub id; the embedded default if left out.
            concepts: the bank to use instead of the one that came with the weights.
            threshold: the score from which a prompt is blocked, instead of the one that came with the weights.
            policy: a whole policy, instead of a threshold.
            device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ..., or "numpy": the processor without
                PyTorch, as "auto" and "cpu" are where PyTorch is not installed. See docs/lite.md.
            encoder: a loaded encoder of the kind that the weights were trained on; loaded by its name if left out.
            precision: the embedded encoder's arithmetic, "int8" or "fp32"; its fastest on the device if left out.
            threads: processor threads of an encoder that is loaded; all that the process may use if left out.

        Raises:
            WeightsError: the weights can't be had, are damaged, or belong to another encoder.
            EncoderError: the encoder can't be loaded.
            MissingDependencyError: what was asked for needs a package that is not installed.
            ConceptError, PolicyError: ``concepts``, ``threshold`` or ``policy`` can't be used.
        """
        if policy is not None and threshold is not None:
            raise PolicyError("give a threshold or a policy, not both")
        stored = read_weights(find_weights(name_or_dir))
        config = stored.config
        if encoder is None:
            encoder = load_encoder(
                config.encoder,
                device=device,
                pad_to_window=config.pad_to_window,
                precision=precision,
                threads=threads,
                layers=config.layers,
            )
        elif encoder.name != config.encoder:
            raise WeightsError(f"these weights belong to the encoder {config.encoder}, not to {encoder.name}")
        elif encoder.layers != (layers := config.layers or (encoder.depth,)):
            raise WeightsError(f"these weights belong to the encoder's layers {layers}, not {encoder.layers}")
        weights = stored.loaded(encoder.device)
        if policy is None:
            policy = Policy(config.threshold if threshold is None else threshold)
        bank = weights.concepts if concepts is None else concepts
        return cls(encoder, weights.mapping, bank, policy, weights.heads)

    def fork(self) -> LatentGuard:
        """A guard of the same model with a bank and a policy of its own, to try changes on; nothing is encoded."""
        other = copy(self)
        other.concepts = self.concepts.fork()
        return other

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
            snapshot, policy = self._usable_snapshot(), self.policy
            thresholds = _usable_thresholds(snapshot, policy)
            texts = [scorable(prompt, start + i) for i, prompt in enumerate(chunk)]
            scores = self._scores([self._read(text, snapshot) for text in texts], snapshot, policy)
            yield from self._verdicts(chunk, scores, thresholds, snapshot, policy)

    def check_read(self, prompts: Iterable[ReadPrompt]) -> list[Verdict]:
        """The verdicts on prompts that were read elsewhere, for this guard's encoder, in order.

        Their ``prompt`` is empty, since nobody here knows it, and they can't be explained; :meth:`contributions` can.

        Raises:
            PromptError: a prompt has no window.
            ConceptError, PolicyError, EncoderError: as :meth:`check`.
        """
        verdicts: list[Verdict] = []
        for start, chunk in _chunks(prompts, _PROMPTS_AT_A_TIME):
            snapshot, policy = self._usable_snapshot(), self.policy
            thresholds = _usable_thresholds(snapshot, policy)
            for i, prompt in enumerate(chunk, start=start):
                _check_windows(prompt, i)
            scores = self._scores(chunk, snapshot, policy)
            verdicts += self._verdicts([""] * len(chunk), scores, thresholds, snapshot, policy)
        return verdicts

    def contributions(self, prompt: ReadPrompt, concept: str) -> Contributions:
        """What each part of a read prompt adds to its score against a concept of the bank. Encodes the prompt once.

        Raises:
            ConceptError: there is no concept of that name.
            PromptError: the prompt has no window.
        """
        snapshot = self.concepts.snapshot
        _check_windows(prompt, 0)
        place = next((i for i, entry in enumerate(snapshot.concepts) if entry.name == concept), None)
        if place is None:
            raise ConceptError(f"no concept {concept!r} in the bank")
        return self._contributions(prompt, place, snapshot, self.policy)

    def check_states(self, states: TokenStates, prompts: Sequence[str | None]) -> list[Verdict]:
        """The verdicts on states [B, L, D] that somebody else computed with the guard's encoder; nothing is encoded.

        Args:
            states: one window of each prompt, as ``guard.encoder.encode_windows`` would give it, on any device and in
                any precision.
            prompts: the text that each row stands for, or None where nobody knows it: the names that a text spells out
                then have no part in the score, and the verdict, whose ``prompt`` is empty, can't be explained.

        Raises:
            PromptError, ConceptError, PolicyError, EncoderError: as :meth:`check`; PromptError too where states and
                prompts differ in number, or the states' width is not the encoder's.
        """
        rows, _, width = states.hidden.shape
        if rows != len(prompts) or width != self.encoder.width:
            raise PromptError(
                f"states of {rows} prompts of width {width} for {len(prompts)} prompts of width {self.encoder.width}"
            )
        snapshot, policy = self._usable_snapshot(), self.policy
        thresholds = _usable_thresholds(snapshot, policy)
        texts = [None if prompt is None else scorable(prompt, i) for i, prompt in enumerate(prompts)]
        forms = [None if text is None else _forms(text, snapshot) for text in texts]
        z, mask = self.mapping.attended(states)
        scores = self._with_names(as_numpy(self._window_scores(snapshot, z, mask, policy)), forms, snapshot)
        known = [prompt or "" for prompt in prompts]
        return list(self._verdicts(known, scores, thresholds, snapshot, policy))

    def _verdicts(
        self,
        prompts: Sequence[str],
        scores: np.ndarray,
        thresholds: np.ndarray,
        snapshot: BankSnapshot,
        policy: Policy,
    ) -> Iterator[Verdict]:
        """The verdicts on prompts with scores [B, N] against concepts with thresholds [N]."""
        margins = scores - thresholds
        explain = self._explainer(snapshot, policy)
        for i, prompt in enumerate(prompts):
            best = int(margins[i].argmax())
            concept = snapshot.concepts[best]
            yield Verdict(
                prompt=prompt,
                score=float(scores[i, best]),
                concept=concept.name,
                category=concept.category,
                threshold=float(thresholds[best]),
                decision=policy.decide(float(margins[i, best])),
                probability=None if self.heads is None else probability(float(scores[i, best])),
                _concepts=snapshot.concepts,
                _scores=scores[i],
                _explain=explain,
            )

    def score(self, prompts: Iterable[str]) -> np.ndarray:
        """The raw scores, float32 [B]: of each prompt the highest over all concepts; errors as :meth:`check_batch`."""
        snapshot, policy = self._usable_snapshot(), self.policy
        parts = []
        for start, chunk in _chunks(prompts, _PROMPTS_AT_A_TIME):
            read = [self._read(scorable(prompt, start + i), snapshot) for i, prompt in enumerate(chunk)]
            parts.append(self._scores(read, snapshot, policy).max(axis=1))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _usable_snapshot(self) -> BankSnapshot:
        snapshot = self.concepts.snapshot
        if not snapshot.concepts:
            raise ConceptError("the concept bank is empty: nothing would be blocked; add a concept first")
        return snapshot

    def _read(self, text: str, snapshot: BankSnapshot) -> ReadPrompt:
        return ReadPrompt(self.encoder.windows(text), _forms(text, snapshot))

    def _scores(self, prompts: Sequence[ReadPrompt], snapshot: BankSnapshot, policy: Policy) -> np.ndarray:
        """Scores [B, N] of read prompts: of each prompt and concept the highest over the prompt's windows."""
        windows: list[Window] = []
        owners: list[int] = []
        for owner, prompt in enumerate(prompts):
            windows += prompt.windows
            owners += [owner] * len(prompt.windows)
        scores = np.full((len(prompts), len(snapshot.concepts)), -np.inf, dtype=np.float32)
        for batch in batches([len(window.ids) for window in windows], self.encoder.device):
            z, mask = self.mapping.attended(self.encoder.encode_windows([windows[i] for i in batch]))
            of_windows = as_numpy(self._window_scores(snapshot, z, mask, policy))
            np.maximum.at(scores, [owners[i] for i in batch], of_windows)
        return self._with_names(scores, [prompt.forms for prompt in prompts], snapshot)

    def _with_names(self, scores: np.ndarray, forms: Sequence[TextForms | None], snapshot: BankSnapshot) -> np.ndarray:
        """Scores [B, N] of prompts with these forms, None where unknown, with what the names spelled out add."""
        if not np.isfinite(scores).all():
            raise EncoderError("a prompt's score is not a finite number, so the prompt can't be judged")
        if self.heads is not None and snapshot.scoring is not None:
            for row, of_prompt in zip(scores, forms, strict=True):
                if of_prompt is not None:
                    match = snapshot.scoring.matcher.match(of_prompt)
                    row[match.concepts] += self.heads.combination.of_grades(match)
        return scores

    def _window_scores(self, snapshot: BankSnapshot, z: Array, mask: Array, policy: Policy) -> Array:
        """Scores [B, N] of windows z [B, L', D] with mask [B, L'], but for the names that a text spells out."""
        scores = self.mapping.score(snapshot.queries, z, mask)
        if self.heads is None or snapshot.scoring is None:
            return scores
        combination, scoring = self.heads.combination, snapshot.scoring
        harm = self.heads.harm(z, mask, self._enabled(policy))[:, scoring.categories]
        mean, spread = scoring.moments[:, 0], scoring.moments[:, 1]
        return combination.concept * (scores - mean) / spread + combination.prompt * harm + combination.bias

    def _enabled(self, policy: Policy) -> list[bool] | None:
        """Which of the prompt head's categories [K] the policy leaves switched on; None for all."""
        if self.heads is None or not any(threshold is None for threshold in policy.categories.values()):
            return None
        known = self.heads.prompt_head.shape.categories
        return [policy.categories.get(name, 0.0) is not None for name in known]

    def _explainer(self, snapshot: BankSnapshot, policy: Policy) -> Callable[[Verdict], Explanation]:
        """Explains verdicts against the bank they were made with, whatever has become of the guard's bank since."""
        return lambda verdict: self._explain(verdict, snapshot, policy)

    def _explain(self, verdict: Verdict, snapshot: BankSnapshot, policy: Policy) -> Explanation:
        if not verdict.prompt:
            raise PromptError(
                "made from states alone, or of a prompt read elsewhere: there is no text to explain the verdict by"
            )
        place = next(i for i, concept in enumerate(snapshot.concepts) if concept.name == verdict.concept)
        text = normalize(verdict.prompt)
        prompt = self._read(text, snapshot)
        parts = self._contributions(prompt, place, snapshot, policy)
        return explanation(parts, text, prompt.windows[parts.window], verdict.concept, verdict.threshold)

    def _contributions(self, prompt: ReadPrompt, place: int, snapshot: BankSnapshot, policy: Policy) -> Contributions:
        """What each part of a prompt adds to its score against the concept at ``place``."""
        only = snapshot.row(place)
        states = [self.mapping.attended(self.encoder.encode_windows([window])) for window in prompt.windows]
        scores = [self._window_scores(only, z, mask, policy).item() for z, mask in states]
        best = int(np.argmax(scores))
        z, mask = states[best]
        pooling = self._pooling_shares(prompt.windows[best], mask[0, 1:])
        attribution = self.mapping.attribute(only.queries, z[0], mask[0], pooling)
        naming: dict[int, float] = {}
        if self.heads is not None and only.scoring is not None and snapshot.scoring is not None:
            attribution = self._with_heads(attribution, self.heads, only.scoring, z, mask, pooling, policy)
            if prompt.forms is not None:
                # Among all names of the bank: a part of a name tells it only where no other name has that part.
                match = snapshot.scoring.matcher.match(prompt.forms)
                shares = self.heads.combination.of_grades(match)
                for concept, words, share in zip(match.concepts, match.words, shares, strict=True):
                    naming |= dict.fromkeys(words, float(share) / len(words)) if concept == place else {}
        return Contributions(best, tuple(as_numpy(attribution.positions).tolist()), naming, attribution.bias)

    def _with_heads(
        self,
        attribution: Attribution,
        heads: Heads,
        scoring: ConceptScoring,
        z: Array,
        mask: Array,
        pooling: Array,
        policy: Policy,
    ) -> Attribution:
        """The whole score of one concept taken apart, from the mapping layer's part of it."""
        combination, head = heads.combination, heads.prompt_head
        mean, spread = scoring.moments[0].tolist()
        share = combination.concept / spread
        harm = heads.harm(z, mask, self._enabled(policy))[0]
        category = int(scoring.categories[0])
        # The evidence of any category is explained by the likeliest one; what the others add is constant. It is no
        # linear function of the log-odds that the positions sum to, so they get what its slope makes of them.
        likeliest = int(harm[:-1].argmax()) if category == len(head.shape.categories) else category
        of_head = head.attribute(z[0], mask[0], pooling, likeliest)
        parts = (1 - math.exp(-float(harm[likeliest]))) * of_head.positions
        rest = float(harm[category]) - float(parts.sum())
        return Attribution(
            share * attribution.positions + combination.prompt * parts,
            share * (attribution.bias - mean) + combination.prompt * rest + combination.bias,
        )

    def _pooling_shares(self, window: Window, mask: Array) -> Array:
        """How much each position [L] has in the pooled state."""
        if self.encoder.pooling == "mean":
            return mask / mask.sum()
        shares = np.zeros(mask.shape[0], dtype=np.float32)
        shares[0 if self.encoder.pooling == "cls" else len(window.ids) - 1] = 1.0
        return placed(shares, self.encoder.device)


def _usable_thresholds(snapshot: BankSnapshot, policy: Policy) -> np.ndarray:
    """The threshold of each concept [N]; PolicyError if the policy switches all of them off."""
    thresholds = policy.thresholds(snapshot.concepts)
    if not np.isfinite(thresholds).any():
        raise PolicyError("the policy switches every concept off: nothing would be blocked")
    return thresholds


def _chunks(prompts: Iterable[_Prompt], size: int) -> Iterator[tuple[int, list[_Prompt]]]:
    if isinstance(prompts, str):
        raise PromptError("expected a list of prompts, got one text; use check for one prompt")
    iterator, start = iter(prompts), 0
    while chunk := list(islice(iterator, size)):
        yield start, chunk
        start += len(chunk)


def scorable(prompt: object, place: int) -> str:
    """The normalised text of a prompt; PromptError naming its place, and never quoting it, if it can't be scored."""
    if not isinstance(prompt, str):
        raise PromptError(f"prompt {place + 1}: expected text, got {type(prompt).__name__}")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise PromptError(f"prompt {place + 1}: {len(prompt):,} characters; the limit is {MAX_PROMPT_CHARS:,}")
    text = normalize(prompt)
    if not text:
        raise PromptError(f"prompt {place + 1}: empty")
    return text


def _check_windows(prompt: ReadPrompt, place: int) -> None:
    if not prompt.windows:
        raise PromptError(f"prompt {place + 1}: empty")


def _forms(text: str, snapshot: BankSnapshot) -> TextForms | None:
    return None if snapshot.scoring is None else snapshot.scoring.matcher.forms(text)


def probability(log_odds: float) -> float:
    """The probability whose log-odds these are."""
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, log_odds))))


def explanation(parts: Contributions, text: str, window: Window, concept: str, threshold: float) -> Explanation:
    """The parts of a score against a concept as a reader of the normalised text sees them, by word.

    ``window`` is the text's window that decided, with its offsets.
    """
    located = word_spans(text)
    spelled = {located[number][1]: share for number, share in parts.words.items()}
    words, whole = _by_word(text, window, parts.positions, spelled)
    return Explanation(concept, text, words, whole, parts.bias, threshold)


def _by_word(
    text: str, window: Window, positions: Sequence[float], spelled: Mapping[int, float]
) -> tuple[tuple[TokenContribution, ...], float]:
    """The shares of positions, and of spelled-out words by where they start, gathered by word of the text, and what is
    left at positions that have no place in it."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    shares: dict[tuple[int, int], float] = {}
    whole = 0.0
    starts = [start for start, _ in spans]

    def add(start: int, share: float) -> None:
        word = spans[max(0, bisect_right(starts, start) - 1)]
        shares[word] = shares.get(word, 0.0) + share

    for i, share in enumerate(positions):
        start, end = window.offsets[i] if i < len(window.offsets) else (0, 0)
        if start == end:
            whole += share
        else:
            add(start, share)
    for start, share in spelled.items():
        add(start, share)
    words = sorted(shares.items())
    return tuple(TokenContribution(text[a:b], a, b, share) for (a, b), share in words), whole
