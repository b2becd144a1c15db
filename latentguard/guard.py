"""LatentGuard: the one door to the prompt guard."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from latentguard.arrays import HALF, Array, as_numpy, fetched, half_precision, placed
from latentguard.bank import BankSnapshot, ConceptBank, ConceptScoring
from latentguard.encoders import load_encoder
from latentguard.encoders.base import SeveralPasses, TextEncoder, TokenStates, Window, batches
from latentguard.encoders.passes import in_batches
from latentguard.errors import ConceptError, DeviceError, EncoderError, PolicyError, PromptError, WeightsError
from latentguard.lexicon import TextForms
from latentguard.normalize import normalize
from latentguard.policy import Policy
from latentguard.processor_scoring import ProcessorScoring
from latentguard.reading import Attribution, Contributions, ReadPrompt
from latentguard.records import MAX_PROMPT_CHARS, ConceptEntry
from latentguard.search import ConceptSearch, Named
from latentguard.verdict import Explanation, TokenContribution, Verdict
from latentguard.weights import find_weights, read_weights
from latentguard.wording import word_spans

if TYPE_CHECKING:
    from latentguard.heads import Heads
    from latentguard.mapping import MappingLayer

_Prompt = TypeVar("_Prompt")
_PROMPTS_AT_A_TIME = 512
_SCORES_AT_A_TIME = 1 << 23  # and no more prompts than have so many scores
_KEPT_WHOLE = 10_000  # of a larger bank a verdict holds the highest scores alone,
_KEPT_SCORES = 1000  # so many
_READ_AT_A_TIME = {"cuda": 128}  # a processor reads all of them first, and has fuller batches


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
        *,
        search: int | None = None,
    ) -> None:
        if search is not None and search < 1:
            raise ConceptError(f"search: {search} concepts; at least 1")
        if search is not None and encoder.device.type != "cpu":
            raise DeviceError(f"{encoder.device}: search is for processors; a GPU scores a large bank whole")
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
        # Half precision is for GPUs, and on a processor does what it does on one.
        on_processor = encoder.device.type == "cpu" and getattr(encoder, "precision", None) not in HALF
        self._processor = ProcessorScoring.of(encoder, self.mapping, self.heads) if on_processor else None
        self._search: ConceptSearch | None = None
        if search is not None:
            scoring = None if self._processor is None else self._processor.one_thread
            self._search = ConceptSearch(self.mapping, self.heads, encoder.device, search, scoring)

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
        compiler: str | None = None,
        search: int | None = None,
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
            precision: the encoder's arithmetic: of the embedded one on a processor "int8" (its own) or "fp32"; in
                PyTorch, so on a GPU, "fp32" (its own), "bf16" or "fp16", in which the rest is computed too.
            threads: processor threads of an encoder that is loaded; all that the process may use if left out.
            compiler: a backend of torch.compile for an encoder that is loaded, such as "inductor"; see docs/gpu.md.
            search: banks of so many concepts or more are searched: only the concepts that can decide are scored. For
                processors; pays from about 10,000 on. Left out, every concept is scored. See docs/large-banks.md.

        Raises:
            WeightsError: the weights can't be had, are damaged, or belong to another encoder.
            EncoderError: the encoder can't be loaded.
            DeviceError: the compiler, or a search on the device, can't be used.
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
                compiler=compiler,
            )
        elif encoder.name != config.encoder:
            raise WeightsError(f"these weights belong to the encoder {config.encoder}, not to {encoder.name}")
        elif encoder.layers != (layers := config.layers or (encoder.depth,)):
            raise WeightsError(f"these weights belong to the encoder's layers {layers}, not {encoder.layers}")
        weights = stored.loaded(encoder.device)
        if policy is None:
            policy = Policy(config.threshold if threshold is None else threshold)
        bank = weights.concepts if concepts is None else concepts
        return cls(encoder, weights.mapping, bank, policy, weights.heads, search=search)

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
        for start, chunk in _chunks(prompts, _at_a_time(len(self.concepts))):
            snapshot, policy = self._usable_snapshot(), self.policy
            thresholds = _usable_thresholds(snapshot, policy)
            texts = [scorable(prompt, start + i) for i, prompt in enumerate(chunk)]
            read = self._read_each(texts, snapshot)
            scores = self._scores(read, len(texts), snapshot, policy, thresholds)
            yield from self._verdicts(chunk, scores, thresholds, snapshot, policy)

    def check_read(self, prompts: Iterable[ReadPrompt]) -> list[Verdict]:
        """The verdicts on prompts that were read elsewhere, for this guard's encoder, in order.

        Their ``prompt`` is empty, since nobody here knows it, and they can't be explained; :meth:`contributions` can.

        Raises:
            PromptError: a prompt has no window.
            ConceptError, PolicyError, EncoderError: as :meth:`check`.
        """
        verdicts: list[Verdict] = []
        for start, chunk in _chunks(prompts, _at_a_time(len(self.concepts))):
            snapshot, policy = self._usable_snapshot(), self.policy
            thresholds = _usable_thresholds(snapshot, policy)
            for i, prompt in enumerate(chunk, start=start):
                _check_windows(prompt, i)
            scores = self._scores(chunk, len(chunk), snapshot, policy, thresholds)
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
        if self._search is None or not self._search.takes(snapshot):
            scores = self._with_names(as_numpy(self._window_scores(snapshot, z, mask, policy)), forms, snapshot)
        else:
            states_of = [[(z[i : i + 1], mask[i : i + 1])] for i in range(rows)]
            scores = self._found(self._search, states_of, forms, snapshot, policy, thresholds)
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
        searched = self._search is not None and self._search.takes(snapshot)
        large = searched or len(snapshot.concepts) > _KEPT_WHOLE
        for i, prompt in enumerate(prompts):
            best = int(margins[i].argmax())
            concept = snapshot.concepts[best]
            places = _highest(scores[i]) if large else None
            yield Verdict(
                prompt=prompt,
                score=float(scores[i, best]),
                concept=concept.name,
                category=concept.category,
                threshold=float(thresholds[best]),
                decision=policy.decide(float(margins[i, best])),
                probability=None if self.heads is None else probability(float(scores[i, best])),
                _concepts=snapshot.concepts,
                _scores=scores[i] if places is None else scores[i, places],
                _explain=explain,
                _places=places,
                _score_all=lambda verdict: self._score_all(verdict, snapshot, policy),
            )

    def score(self, prompts: Iterable[str]) -> np.ndarray:
        """The raw scores, float32 [B]: of each prompt the highest over all concepts; errors as :meth:`check_batch`."""
        snapshot, policy = self._usable_snapshot(), self.policy
        parts = []
        for start, chunk in _chunks(prompts, _at_a_time(len(self.concepts))):
            texts = [scorable(prompt, start + i) for i, prompt in enumerate(chunk)]
            read = self._read_each(texts, snapshot)
            parts.append(self._scores(read, len(texts), snapshot, policy, np.float32(0)).max(axis=1))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _usable_snapshot(self) -> BankSnapshot:
        snapshot = self.concepts.snapshot
        if not snapshot.concepts:
            raise ConceptError("the concept bank is empty: nothing would be blocked; add a concept first")
        return snapshot

    def _read(self, text: str, snapshot: BankSnapshot) -> ReadPrompt:
        return ReadPrompt(self.encoder.windows(text), _forms(text, snapshot))

    def _read_each(self, texts: Sequence[str], snapshot: BankSnapshot) -> Iterable[ReadPrompt]:
        """The texts, read: at once on a processor, one after another, as they are asked for, while a GPU computes."""
        if len(texts) == 1 or self._processor is None or not isinstance(self.encoder, SeveralPasses):
            return (self._read(text, snapshot) for text in texts)
        windows = self.encoder.windows_of_each(texts)
        return [ReadPrompt(some, _forms(text, snapshot)) for some, text in zip(windows, texts, strict=True)]

    def _scores(
        self,
        prompts: Iterable[ReadPrompt],
        count: int,
        snapshot: BankSnapshot,
        policy: Policy,
        thresholds: np.ndarray | np.float32,
    ) -> np.ndarray:
        """Scores [B, N] of ``count`` prompts: of each prompt and concept the highest over the prompt's windows.

        Where a large bank is searched, concepts that can't decide by these thresholds have minus infinity.
        """
        if self._search is None or not self._search.takes(snapshot):
            return self._whole_scores(prompts, count, snapshot, policy)
        read = list(prompts)
        windows = [(owner, window) for owner, prompt in enumerate(read) for window in prompt.windows]
        states_of: list[list[tuple[Array, Array]]] = [[] for _ in read]

        def attended(encoder: TextEncoder, places: list[int]) -> tuple[Array, Array]:
            z, mask = self.mapping.attended(encoder.encode_windows([windows[i][1] for i in places]))
            return z, mask

        for places, (z, mask) in in_batches(self.encoder, [len(window.ids) for _, window in windows], attended):
            for row, i in enumerate(places):
                states_of[windows[i][0]].append((z[row : row + 1], mask[row : row + 1]))
        return self._found(self._search, states_of, [prompt.forms for prompt in read], snapshot, policy, thresholds)

    def _found(
        self,
        search: ConceptSearch,
        states_of: Sequence[Sequence[tuple[Array, Array]]],
        forms: Sequence[TextForms | None],
        snapshot: BankSnapshot,
        policy: Policy,
        thresholds: np.ndarray | np.float32,
    ) -> np.ndarray:
        """Scores [B, N] of prompts with the states of these windows, minus infinity where they can't decide."""
        enabled, scores = self._enabled(policy), np.empty((len(states_of), len(snapshot.concepts)), dtype=np.float32)
        search.cells(snapshot)  # not in every thread at once

        def find(row: int) -> None:
            named = self._named(forms[row], snapshot)
            scores[row] = search.scores(snapshot, states_of[row], named, thresholds, enabled, -policy.flag_margin)

        if len(states_of) == 1 or not isinstance(self.encoder, SeveralPasses):
            for row in range(len(states_of)):
                find(row)
            return scores
        with ThreadPoolExecutor(self.encoder.threads) as pool:
            for _ in pool.map(find, range(len(states_of))):
                pass
        return scores

    def _named(self, forms: TextForms | None, snapshot: BankSnapshot) -> Named:
        if self.heads is None or snapshot.scoring is None or forms is None:
            return Named(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        match = snapshot.scoring.matcher.match(forms)
        return Named(match.concepts, self.heads.combination.of_grades(match))

    def _score_all(self, verdict: Verdict, snapshot: BankSnapshot, policy: Policy) -> np.ndarray:
        """The scores [N] of a prompt against every concept of the bank."""
        if not verdict.prompt:
            raise PromptError("made from states alone, or of a prompt read elsewhere: there is no text to score anew")
        scores: np.ndarray = self._whole_scores([self._read(normalize(verdict.prompt), snapshot)], 1, snapshot, policy)[
            0
        ]
        return scores

    def _whole_scores(
        self, prompts: Iterable[ReadPrompt], count: int, snapshot: BankSnapshot, policy: Policy
    ) -> np.ndarray:
        """Scores [B, N] of ``count`` prompts against all concepts.

        While a GPU computes, the next prompts are read; the scores of one batch are fetched while it does the next.
        """
        if self._processor is not None:
            read = list(prompts)
            found = self._processor.scores(read, snapshot, self._enabled(policy))
            return self._with_names(found, [prompt.forms for prompt in read], snapshot)
        forms: list[TextForms | None] = []
        scores = np.full((count, len(snapshot.concepts)), -np.inf, dtype=np.float32)
        underway: list[tuple[list[int], Callable[[], np.ndarray]]] = []
        for start, some in _chunks(prompts, _READ_AT_A_TIME.get(self.encoder.device.type, count)):
            windows: list[Window] = []
            owners: list[int] = []
            for owner, prompt in enumerate(some, start):
                forms.append(prompt.forms)
                windows += prompt.windows
                owners += [owner] * len(prompt.windows)
            for batch in batches([len(window.ids) for window in windows], self.encoder.device):
                z, mask = self.mapping.attended(self.encoder.encode_windows([windows[i] for i in batch]))
                of_windows = fetched(self._window_scores(snapshot, z, mask, policy))
                underway.append(([owners[i] for i in batch], of_windows))
                if len(underway) > 1:
                    _keep_highest(scores, *underway.pop(0))
        for last in underway:
            _keep_highest(scores, *last)
        return self._with_names(scores, forms, snapshot)

    def _with_names(self, scores: np.ndarray, forms: Sequence[TextForms | None], snapshot: BankSnapshot) -> np.ndarray:
        """Scores [B, N] of prompts with these forms, None where unknown, with what the names spelled out add."""
        if not np.isfinite(scores).all():
            raise EncoderError("a prompt's score is not a finite number, so the prompt can't be judged")
        if self.heads is not None and snapshot.scoring is not None:
            for row, of_prompt in zip(scores, forms, strict=True):
                named = self._named(of_prompt, snapshot)
                row[named.places] += named.added
        return scores

    def _window_scores(self, snapshot: BankSnapshot, z: Array, mask: Array, policy: Policy) -> Array:
        """Scores [B, N] of windows z [B, L', D] with mask [B, L'], but for the names that a text spells out."""
        with half_precision(z, getattr(self.encoder, "precision", None)):
            return self._evidence(snapshot, z, mask, policy)

    def _evidence(self, snapshot: BankSnapshot, z: Array, mask: Array, policy: Policy) -> Array:
        scores = self.mapping.score(snapshot.queries, z, mask)
        if self.heads is None or snapshot.scoring is None:
            return scores
        scoring = snapshot.scoring
        harm = self.heads.harm(z, mask, self._enabled(policy))[:, scoring.categories]
        return self.heads.combination.of_parts(scores, scoring.moments, harm)

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


def _at_a_time(concepts: int) -> int:
    """How many prompts to score together against a bank of that size."""
    return max(1, min(_PROMPTS_AT_A_TIME, _SCORES_AT_A_TIME // max(1, concepts)))


def _highest(scores: np.ndarray) -> np.ndarray:
    """The places, rising, of the highest of scores [N] that are finite, as many as a verdict keeps."""
    count = min(_KEPT_SCORES, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    return np.sort(best[np.isfinite(scores[best])])


def _keep_highest(scores: np.ndarray, owners: Sequence[int], of_windows: Callable[[], np.ndarray]) -> None:
    """Raise the scores [B, N] of the windows' owners to those of their windows."""
    np.maximum.at(scores, list(owners), of_windows())


def _usable_thresholds(snapshot: BankSnapshot, policy: Policy) -> np.ndarray:
    """The threshold of each concept [N]; PolicyError if the policy switches all of them off."""
    thresholds = snapshot.thresholds(policy)
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
