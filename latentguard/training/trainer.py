"""Training a mapping layer from cached token states."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from tqdm import tqdm

from latentguard.encoders.base import TextEncoder
from latentguard.encoders.torch_runtime import compiled, to_device
from latentguard.errors import DataError
from latentguard.files import atomic_path
from latentguard.mapping import MappingLayer, MappingShape
from latentguard.naming import NameMatcher
from latentguard.normalize import normalize
from latentguard.prompt_head import PromptHead, PromptHeadShape, any_category
from latentguard.training.cache import TokenStateCache
from latentguard.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from latentguard.training.compute import Compute
from latentguard.training.hardening import Replacements, with_padding, with_replacements
from latentguard.training.losses import SOME_CATEGORY, UNLABELLED, prompt_loss, two_way_contrastive
from latentguard.training.mentions import mention
from latentguard.training.pairs import TrainingPair, split_concepts
from latentguard.training.prefetch import ahead
from latentguard.training.sampling import Batch, Places, draw_batch, tabulate

_CHECKPOINT = "checkpoint.safetensors"
_METRICS = "metrics.json"
_HELD_OUT_NEGATIVES = 0.05
_MOST_HELD_OUT_NEGATIVES = 1_000
# Prompts of like length that are scored together: their states stay in a processor's caches; a GPU wants more to do.
_SCORED_AT_A_TIME = {"cpu": 48, "cuda": 256}
# By which figure of an evaluation the best weights of a part are told.
_DECIDES = {"mapping": "auc_decisive", "prompt_head": "auc_prompts"}


@dataclass(frozen=True)
class TrainingArguments:
    """The recipe.

    Attributes:
        epochs: passes over as many prompts as there are pairs.
        concepts_per_batch: concepts in a batch, each with one unsafe prompt and its safe twin.
        negatives_per_batch: further harmless prompts in a batch; each group of them has a share that grows with the
            square root of its size, so that a few hundred prompts in users' style aren't lost among captions.
        learning_rate: the highest; reached after ``warmup``, a share of all steps, then falling as a cosine to 0.
        weight_decay: AdamW's.
        mentions: pairs made for each concept by setting its name into harmless prompts; see ``training.mentions``.
        replaced: pairs of each concept whose unsafe prompt is also shown with another text for the concept's name,
            where such texts are given; see ``training.hardening``.
        padded: the share of the pairs that are also shown within harmless text.
        token_dropout: the share of a prompt's token states left out at random in a step.
        hidden: the hidden width of the prompt head; 0 trains none.
        head_dropout: the share of the prompt head's inputs and hidden units left out at random in a step.
        averaging: the decay of the running average of the weights; the average is what is evaluated and kept.
        held_out: the share of the concepts kept out of training, to stop by.
        held_out_pairs: the share of the other concepts' pairs kept out of training, to weigh the evidence by.
        evaluate_every: steps between evaluations on the held-out concepts; a checkpoint is written at each.
        patience: evaluations without a better one after which training stops.
        seed: of the weights and the batches.
    """

    epochs: int = 3
    concepts_per_batch: int = 64
    negatives_per_batch: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    mentions: int = 10
    replaced: int = 6
    padded: float = 0.2
    token_dropout: float = 0.1
    hidden: int = 192
    head_dropout: float = 0.2
    averaging: float = 0.98
    held_out: float = 0.05
    held_out_pairs: float = 0.03
    evaluate_every: int = 100
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """A trained layer and prompt head (each the best by held-out AUC, on the CPU), and the evaluations in order."""

    mapping: MappingLayer
    prompt_head: PromptHead | None
    best: dict[str, float]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class HeldOut:
    """What training doesn't see: the unsafe prompts of the held-out concepts, their safe twins, and negatives.

    Attributes:
        concepts: the held-out concepts.
        prompts: all prompts' places in the cache [n], ``texts`` the prompts themselves.
        unsafe, twin: which of them are unsafe, and which are safe twins, bool [n].
        mention: which of the unsafe ones show a concept and no harm, bool [n].
    """

    concepts: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: Places
    unsafe: np.ndarray
    twin: np.ndarray
    mention: np.ndarray


class Trainer:
    """Trains on pairs and harmless negatives, stopping by the AUC on concepts that training never saw.

    Args:
        encoder: the frozen encoder; used once per text, then its states come from the cache.
        cache: where the states are kept.
        output: the folder for checkpoint and metrics; made if absent.
        compute: where and how the layer is trained.
        replacements: other texts for concepts, by ``text_key`` of their names, that may be trained with.

    ``held_out_pairs`` are the pairs of the held-out concepts.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        cache: TokenStateCache,
        pairs: Sequence[TrainingPair],
        negatives: Sequence[Sequence[str]],
        arguments: TrainingArguments,
        output: Path,
        compute: Compute,
        replacements: Replacements | None = None,
    ) -> None:
        self.arguments = arguments
        self.output = output
        self.compute = compute
        self.device = device = compute.device
        self.cache = cache
        train, held_out = split_concepts(pairs, held_out=arguments.held_out, seed=arguments.seed)
        if not train or not held_out:
            raise DataError("too few concepts to train on some and hold others out")
        train, familiar = _pairs_kept_back(train, arguments.held_out_pairs, arguments.seed)
        self.held_out_pairs = held_out
        kept, groups = _kept_back(negatives, arguments.seed)
        harmless = [text for group in groups for text in group]
        hardened = [
            *with_replacements(train, replacements or {}, per_concept=arguments.replaced, seed=arguments.seed),
            *with_padding(train, harmless, share=arguments.padded, seed=arguments.seed),
        ]
        train, held_out = (
            side + _mentions(side, texts, arguments) for side, texts in ((train, harmless), (held_out, kept))
        )
        train += hardened
        names = NameMatcher(concepts := sorted({pair.concept for pair in train}))
        naming_twins = [pair.safe for pair in train if pair.safe is not None and _names_own(pair, names, concepts)]
        groups.append(list(dict.fromkeys(naming_twins)))
        train = [replace(pair, safe=None) if _names_own(pair, names, concepts) else pair for pair in train]
        known = [*train, *held_out, *familiar]
        texts = [text for pair in known for text in (pair.unsafe, pair.safe) if text is not None]
        texts += [text for group in [*groups, kept] for text in group]
        normalized = {text: normalize(text) for text in texts}
        self._texts = hashlib.sha256("\0".join(normalized).encode("utf-8", "surrogatepass")).hexdigest()
        cache.fill(list(dict.fromkeys(normalized.values())))
        entries = cache.positions(list(normalized.values())).tolist()
        places = dict(zip(normalized, entries, strict=True))
        self._named = {place: list(names.find(text)) for text, place in places.items()}
        self.categories = tuple(sorted({pair.category for pair in pairs if pair.category is not None}))
        self.table = tabulate(train, places)
        self._labels = self._labelled(train, groups, places)
        self.embeddings = _embed(encoder, self.table.concepts).to(device)
        self.negatives = [np.array([places[text] for text in group], dtype=np.int64) for group in groups if group]
        # Harmless prompts that training doesn't see: of the negatives where there are any, else the safe twins.
        self.held_out_harmless = kept or [pair.safe for pair in held_out if pair.safe is not None]
        self.harmless_texts = sorted(
            text for text, place in places.items() if self._labels.get(place) == len(self.categories)
        )
        self.held_out = _held_out(held_out, kept, places)
        # Pairs that training doesn't see, but of concepts that it does.
        self.familiar = _held_out(familiar, [], places)
        self._held_out_embeddings = _embed(encoder, self.held_out.concepts).to(device)
        self._familiar_embeddings = _embed(encoder, self.familiar.concepts).to(device) if familiar else None
        self.steps = arguments.epochs * math.ceil(len(self.table) / arguments.concepts_per_batch)

    def _labelled(
        self, train: Sequence[TrainingPair], groups: Sequence[Sequence[str]], places: dict[str, int]
    ) -> dict[int, int]:
        """The label of each place for the prompt head. Where sources disagree, harmful counts."""
        labels = {places[text]: len(self.categories) for group in groups for text in group}
        labels |= {places[pair.safe]: len(self.categories) for pair in train if pair.safe is not None}
        for pair in train:
            if not pair.harm:
                labels.setdefault(places[pair.unsafe], UNLABELLED)  # a concept alone is no harm
            else:
                known = pair.category is not None
                labels[places[pair.unsafe]] = self.categories.index(str(pair.category)) if known else SOME_CATEGORY
        return labels

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Train, from the start or from the last checkpoint; the same numbers bit for bit on a CPU either way.

        Of several processes each returns the same, and the main one writes the files.

        Raises:
            DataError: there is a checkpoint and ``resume`` is false, or it belongs to another recipe or other data.
            DeviceError: the compiler can't be used here.
        """
        processes = self.compute.processes
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / _CHECKPOINT
        if path.exists() and not resume:
            raise DataError(f"{path}: a checkpoint of an earlier run; give --resume to go on, or another folder")
        torch.manual_seed(self.arguments.seed)
        model = self._model().to(self.device)
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=self.arguments.weight_decay)
        average = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        progress = Checkpoint(step=0, history=[], best=dict(average))
        if path.exists():
            progress = load_checkpoint(path, self._fingerprint(), parameters, average, optimizer, self.device)
        processes.check_alike(json.dumps([progress.step, self._fingerprint()]), self.device)
        scaler = self.compute.scaler()
        if progress.scaler:
            scaler.load_state_dict(progress.scaler)
        model.train()
        forward = compiled(model, self.compute.compiler)
        bar = tqdm(
            total=self.steps,
            initial=progress.step,
            desc="training",
            unit="step",
            disable=None if processes.is_main else True,
        )
        with bar, closing(ahead(self._read_step, range(progress.step, self.steps), self.device)) as read:
            while not self._has_stalled(progress.history) and (batch := next(read, None)) is not None:
                loss = self._step(model, forward, average, optimizer, scaler, progress.step, batch)
                progress.step += 1
                bar.update()
                if progress.step % self.arguments.evaluate_every == 0 or progress.step == self.steps:
                    figures = {"step": progress.step, "loss": float(loss), **self.evaluate(average)}
                    for part, figure in _DECIDES.items():
                        if figures.get(figure, 0.0) > max((f.get(figure, 0.0) for f in progress.history), default=0.0):
                            progress.best |= {n: t.clone() for n, t in average.items() if n.startswith(f"{part}.")}
                    progress.history.append(figures)
                    bar.set_postfix(loss=f"{figures['loss']:.3f}", auc=f"{figures['auc']:.4f}")
                    progress.scaler = scaler.state_dict()
                    if processes.is_main:
                        save_checkpoint(path, self._fingerprint(), progress, parameters, average, optimizer)
                        self._write_metrics(progress.history)
        trained = self._model()
        trained.load_state_dict({name: tensor.cpu() for name, tensor in progress.best.items()})
        trained.eval().requires_grad_(False)
        best = max(progress.history, key=lambda figures: figures["auc_decisive"])
        return TrainingResult(trained.mapping, trained.prompt_head, best, progress.history)

    def _has_head(self) -> bool:
        return bool(self.arguments.hidden and self.categories)

    def _model(self) -> _Model:
        head = None
        if self._has_head():
            head = PromptHead(PromptHeadShape(self.cache.width, self.categories, self.arguments.hidden))
        return _Model(MappingLayer(MappingShape(self.cache.width)), head)

    def _read_step(self, step: int) -> _ReadBatch:
        """The batch of a step, with all of it that needs no device; runs beside the step before."""
        batch = draw_batch(
            self.table,
            self.negatives,
            concepts=self.arguments.concepts_per_batch,
            harmless=self.arguments.negatives_per_batch,
            seed=self.arguments.seed,
            step=step,
        )
        prompts = batch.prompts
        labels = np.array([self._labels[place] for place in prompts.tolist()])
        return _ReadBatch(batch, self._naming_others(batch), labels, self._read(prompts))

    def _step(
        self,
        model: _Model,
        forward: Forward,
        average: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        step: int,
        read: _ReadBatch,
    ) -> Tensor:
        arguments = self.arguments
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * _schedule(step, self.steps, arguments.warmup)
        torch.manual_seed(arguments.seed * 1_000_003 + step)  # for the dropouts, so that resuming needs no state
        scores, log_odds = self._scores(forward, self.embeddings[self._moved(read.drawn.concepts)], read.prompts, True)
        loss = two_way_contrastive(
            scores, twin_of=self._moved(read.drawn.twin_of), ignored=self._moved(read.naming_others)
        )
        if log_odds is not None:
            loss = loss + prompt_loss(log_odds, self._moved(read.labels))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.compute.processes.sum_gradients(model.parameters())
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            # A short memory at first, so that the average doesn't drag the random start along.
            weight = 1 - min(arguments.averaging, (1 + step) / (10 + step))
            for name, tensor in model.named_parameters():
                average[name].lerp_(tensor, weight)
        return loss.detach()

    def _moved(self, array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), self.device)

    def _naming_others(self, batch: Batch) -> np.ndarray:
        """Which prompts name which concepts [P, C], bool, but for the unsafe prompts and their own."""
        column = {concept: place for place, concept in enumerate(batch.concepts.tolist())}
        naming = np.zeros((len(batch.prompts), len(column)), dtype=bool)
        for row, prompt in enumerate(batch.prompts.tolist()):
            naming[row, [column[concept] for concept in self._named[prompt] if concept in column]] = True
        np.fill_diagonal(naming, False)
        return naming

    def _read(self, entries: Places) -> _ReadPrompts:
        """The states of cached prompts, as far as this process scores them, in groups of like length.

        A few long prompts would pad them all.
        """
        lengths = self.cache.lengths(entries)
        by_length = np.argsort(lengths, kind="stable")
        size = _SCORED_AT_A_TIME.get(self.device.type, _SCORED_AT_A_TIME["cuda"])
        share = self.compute.processes.share
        groups, places = [], []
        for start in range(0, len(entries), size):
            rows = by_length[start : start + size]
            half, mask = self.cache.read(entries[rows[share]], pinned=self.device.type == "cuda")
            groups.append(_Group(half, mask, len(rows), int(lengths[rows].max())))
            places.append(rows[share])
        return _ReadPrompts(groups, np.concatenate(places), len(entries))

    def _scores(
        self, forward: Forward, embeddings: Tensor, prompts: _ReadPrompts, drop: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [P, C] and the prompt head's log-odds [P, K] of prompts, those of all processes put together.

        With ``drop``, a share of the token states is left out of each prompt, and of what the prompt head sees.
        """
        parts, heads = [], []
        for group in prompts.groups:
            z = group.states.to(self.device, non_blocking=True).float()
            mask = group.mask.to(self.device, non_blocking=True)
            noise = None
            if drop:
                mask = mask & self._kept(group)
                noise = self._noise(group)
            with self.compute.autocast():
                scores, log_odds = forward(embeddings, z, mask, noise)
            parts.append(scores.float())
            if log_odds is not None:
                heads.append(log_odds.float())
        places = self._moved(prompts.places)
        of_all, together = prompts.size, self.compute.processes.together
        return together(torch.cat(parts), places, of_all), together(torch.cat(heads), places, of_all) if heads else None

    def _kept(self, group: _Group) -> Tensor:
        """Which states of the group's share stay in this step [b, l]; drawn for the whole group, by every process."""
        kept = torch.rand(group.size, group.longest) >= self.arguments.token_dropout
        kept[:, 0] = True  # the pooled state
        return to_device(self._share_of(kept, group), self.device)

    def _noise(self, group: _Group) -> tuple[Tensor, Tensor] | None:
        """What the prompt head's dropout multiplies inputs and hidden units by, drawn as :meth:`_kept` is."""
        if not self.arguments.head_dropout or not self._has_head():
            return None
        stays = 1 - self.arguments.head_dropout
        inputs, hidden = (
            torch.empty(group.size, group.longest, width, device=self.device).bernoulli_(stays).div_(stays)
            for width in (self.cache.width, self.arguments.hidden)
        )
        return self._share_of(inputs, group), self._share_of(hidden, group)

    def _share_of(self, drawn: Tensor, group: _Group) -> Tensor:
        return drawn[self.compute.processes.share, : group.mask.shape[1]]

    def evaluate(self, state: dict[str, Tensor]) -> dict[str, float]:
        """AUCs on the held-out concepts: unsafe prompts against all harmless ones, and against their twins alone.

        ``auc_familiar`` is the same for held-out pairs of concepts that training knows, with all of these as the bank,
        and ``auc_decisive``, by which the best step is told, the mean of both: a guard is to know its own concepts and
        others. ``auc_prompts`` is the prompt head's, without the unsafe prompts that merely show a concept.
        """
        model = self._model().to(self.device)
        model.load_state_dict(state)
        model.eval()
        with torch.no_grad():
            prompts = self._read(self.held_out.prompts)
            scores, log_odds = self._scores(model, self._held_out_embeddings, prompts, False)
        score = scores.amax(dim=1).cpu().numpy()
        unsafe, twin = self.held_out.unsafe, self.held_out.twin
        against_twins = unsafe | twin
        ordinary = ~twin
        figures = {
            "auc": float(roc_auc_score(unsafe, score)),
            "auc_twins": float(roc_auc_score(unsafe[against_twins], score[against_twins])),
            "auc_ordinary": float(roc_auc_score(unsafe[ordinary], score[ordinary]))
            if (ordinary & ~unsafe).any()
            else 0.0,
        }
        figures["auc_decisive"] = figures["auc"]
        if self._familiar_embeddings is not None:
            figures["auc_familiar"] = self._auc_familiar(model.mapping, self._familiar_embeddings)
            figures["auc_decisive"] = (figures["auc"] + figures["auc_familiar"]) / 2
        if log_odds is not None:
            by_itself = ~self.held_out.mention
            harm = any_category(log_odds).cpu().numpy()
            figures["auc_prompts"] = float(roc_auc_score(unsafe[by_itself], harm[by_itself]))
        return figures

    def _auc_familiar(self, mapping: MappingLayer, embeddings: Tensor) -> float:
        queries = mapping.queries(embeddings)
        prompts = self._read(self.familiar.prompts)
        scores = [
            mapping.score(queries, group.states.to(self.device).float(), group.mask.to(self.device))
            for group in prompts.groups
        ]
        together = self.compute.processes.together(torch.cat(scores), self._moved(prompts.places), prompts.size)
        return float(roc_auc_score(self.familiar.unsafe, together.amax(dim=1).cpu().numpy()))

    def _has_stalled(self, history: list[dict[str, float]]) -> bool:
        if not history:
            return False
        best = max(range(len(history)), key=lambda i: history[i]["auc_decisive"])
        return len(history) - 1 - best >= self.arguments.patience

    def _fingerprint(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to go on: the recipe and the data."""
        return {
            **asdict(self.arguments),
            "precision": self.compute.precision,
            "width": self.cache.width,
            "pairs": len(self.table),
            "concepts": len(self.table.concepts),
            "negatives": sum(len(group) for group in self.negatives),
            "texts": self._texts,
        }

    def _write_metrics(self, history: list[dict[str, float]]) -> None:
        with atomic_path(self.output / _METRICS) as temporary:
            temporary.write_text(
                json.dumps({"recipe": asdict(self.arguments), "evaluations": history}, indent=1) + "\n"
            )


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step as a share of the highest: linear warm-up, then a cosine down to 0."""
    rising = max(1, int(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _mentions(
    pairs: Sequence[TrainingPair], harmless: Sequence[str], arguments: TrainingArguments
) -> list[TrainingPair]:
    """Pairs that mention the concepts of ``pairs``, half of them in harmless prompts, half in other concepts' twins."""
    concepts = {pair.concept for pair in pairs}
    twins = sorted({pair.safe for pair in pairs if pair.safe is not None})
    in_twins = arguments.mentions // 2
    return [
        *mention(concepts, twins, per_concept=in_twins, seed=arguments.seed),
        *mention(concepts, harmless, per_concept=arguments.mentions - in_twins, seed=arguments.seed + 1),
    ]


def _names_own(pair: TrainingPair, names: NameMatcher, concepts: Sequence[str]) -> bool:
    """Whether the safe twin names the concept too: the layer is asked whether a concept is there."""
    return pair.safe is not None and pair.concept in {concepts[index] for index in names.find(pair.safe)}


def _pairs_kept_back(
    pairs: Sequence[TrainingPair], share: float, seed: int
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """The pairs to train on and those kept out; no text of the latter is in the former."""
    aside = set(random.Random(f"{seed} pairs").sample(range(len(pairs)), int(share * len(pairs))))
    texts = {text for i in aside for text in (pairs[i].unsafe, pairs[i].safe)} - {None}
    train = [pair for i, pair in enumerate(pairs) if i not in aside and not texts & {pair.unsafe, pair.safe}]
    return train, [pair for i, pair in enumerate(pairs) if i in aside]


def _kept_back(groups: Sequence[Sequence[str]], seed: int) -> tuple[list[str], list[list[str]]]:
    """Some of each group's texts, which training doesn't see, and the others in their groups; no text twice."""
    kept: list[str] = []
    rest: list[list[str]] = []
    seen: set[str] = set()
    whole = sum(len(group) for group in groups)
    share = min(_HELD_OUT_NEGATIVES, _MOST_HELD_OUT_NEGATIVES / max(1, whole))
    for number, group in enumerate(groups):
        new = [text for text in dict.fromkeys(group) if text not in seen]
        seen.update(new)
        shuffled = random.Random(f"{seed} {number}").sample(new, len(new))
        cut = int(len(shuffled) * share)
        kept += shuffled[:cut]
        rest.append(shuffled[cut:])
    return kept, rest


def _embed(encoder: TextEncoder, concepts: Sequence[str]) -> Tensor:
    texts = [normalize(concept) for concept in concepts]
    return torch.cat([encoder.encode(texts[i : i + 256]).pooled.float() for i in range(0, len(texts), 256)])


def _held_out(pairs: Sequence[TrainingPair], negatives: Sequence[str], places: dict[str, int]) -> HeldOut:
    unsafe = {pair.unsafe: not pair.harm for pair in pairs}
    twins = [pair.safe for pair in pairs if pair.safe is not None]
    twins = [text for text in dict.fromkeys(twins) if text not in unsafe]
    others = [text for text in dict.fromkeys(negatives) if text not in unsafe and text not in set(twins)]
    texts = [*unsafe, *twins, *others]
    kinds = np.repeat([0, 1, 2], [len(unsafe), len(twins), len(others)])
    mention = np.zeros(len(texts), dtype=bool)
    mention[: len(unsafe)] = list(unsafe.values())
    return HeldOut(
        concepts=tuple(sorted({pair.concept for pair in pairs})),
        texts=tuple(texts),
        prompts=np.array([places[text] for text in texts], dtype=np.int64),
        unsafe=kinds == 0,
        twin=kinds == 1,
        mention=mention,
    )


class _Model(nn.Module):
    """What is trained together: one pass over a batch's states serves both."""

    def __init__(self, mapping: MappingLayer, prompt_head: PromptHead | None) -> None:
        super().__init__()
        self.mapping = mapping
        self.prompt_head = prompt_head

    def forward(
        self, embeddings: Tensor, z: Tensor, mask: Tensor, noise: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [B, C] and log-odds [B, K] of prompts z [B, L', D] with mask [B, L'], against concepts [C, D]."""
        scores = self.mapping(embeddings, z, mask)
        return scores, None if self.prompt_head is None else self.prompt_head(z, mask, noise)


Forward = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class _Group:
    """Of ``size`` prompts of up to ``longest`` states this process's share: states [b, l, D] and mask [b, l].

    Both are in the processor's memory, the states in float16.
    """

    states: Tensor
    mask: Tensor
    size: int
    longest: int


@dataclass(frozen=True)
class _ReadPrompts:
    """``size`` prompts in groups of like length, and the ``places`` among them of those that this process scores."""

    groups: list[_Group]
    places: Places
    size: int


@dataclass(frozen=True)
class _ReadBatch:
    """A batch: what was drawn, which prompts name which concepts [P, C], the prompt head's labels [P], the states."""

    drawn: Batch
    naming_others: np.ndarray
    labels: np.ndarray
    prompts: _ReadPrompts
