"""A training run from files to a weights folder."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from latentguard.calibration import threshold_for
from latentguard.encoders import load_encoder
from latentguard.encoders.base import TextEncoder
from latentguard.encoders.model_cache import cache_folder
from latentguard.encoders.torch_runtime import checked_compiler
from latentguard.errors import DataError
from latentguard.guard import LatentGuard
from latentguard.heads import Heads
from latentguard.lexicon import WordRarity
from latentguard.naming import NameMatcher
from latentguard.normalize import normalize
from latentguard.plots import plot_learning_curve
from latentguard.policy import Policy
from latentguard.records import ConceptEntry, read_concepts, read_prompts
from latentguard.shipped import shipped_path
from latentguard.synthesis.splits import REPLACING, read_replacements
from latentguard.training.attacked import attacked_figures
from latentguard.training.cache import TokenStateCache
from latentguard.training.combining import distinct, fit_combination, fit_scale
from latentguard.training.compute import Compute, chosen_half
from latentguard.training.hardening import training_half
from latentguard.training.pairs import PairReport, TrainingPair, names_any, read_negatives, read_pairs, without_excluded
from latentguard.training.processes import joined, local_device
from latentguard.training.trainer import Trainer, TrainingArguments, TrainingResult
from latentguard.weights import DEFAULT_MODEL, WeightsConfig, save_weights
from latentguard.wording import text_key

_REFERENCE = 1_200  # harmless prompts by whose scores the concepts' scale is fitted


@dataclass(frozen=True)
class TrainingRun:
    """What a run reads and writes.

    Attributes:
        data: training pairs: CoPro_v1.0.json, CoProV2 csv, or csv of ``concept, unsafe_prompt, safe_prompt``. None are
            needed where the grammar writes some.
        output: the weights folder to write; checkpoint, metrics and learning curve go to its subfolder ``training``.
        negatives: files of harmless prompts.
        concept_names: files of concept names by which to place the pairs of files that name none (CoProV2).
        exclude_prompts: files of prompts that must not enter training, such as test sets.
        exclude_concepts: files of concepts that must not enter training.
        bank: the default concepts of the trained guard; the project's own if left out.
        calibrate: a file of harmless prompts that the threshold is set on; those held out of training if left out.
        false_positive_rate: the share of them that may be blocked.
        encoder: the encoder's name, or an encoder that is loaded, with the layers to use.
        layers: the encoder's layers whose states are used, side by side; the last alone if left out.
        grammar: pairs, and as many harmless prompts, that the built-in grammar adds to the data.
        replacements: other texts for concepts, as ``synthesize`` writes them: synonyms and adversarial replacements.
            Half of them are trained with, and the guard is measured with the other half on the held-out concepts.
        cache: where token states are kept; the user's cache folder if left out.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...; of several processes each takes its own GPU.
        precision: "fp32", "bf16" or "fp16", of the layer's training; the encoder keeps its own. If left out, "fp32" on
            a processor and "bf16" on a GPU.
        compiler: a backend of torch.compile for the training's forward and backward pass.
    """

    data: Sequence[Path]
    output: Path
    calibrate: Path | None = None
    negatives: Sequence[Path] = ()
    concept_names: Sequence[Path] = ()
    exclude_prompts: Sequence[Path] = ()
    exclude_concepts: Sequence[Path] = ()
    bank: Path | None = None
    false_positive_rate: float = 0.01
    encoder: str | TextEncoder = DEFAULT_MODEL
    device: str = "auto"
    precision: str | None = None
    compiler: str | None = None
    layers: Sequence[int] | None = None
    grammar: int = 0
    replacements: Path | None = None
    cache: Path | None = None
    resume: bool = False
    arguments: TrainingArguments = field(default_factory=TrainingArguments)
    command: str = ""

    def execute(self) -> tuple[Path, PairReport, TrainingResult] | None:
        """Read, encode, train, calibrate, and write the weights folder; returns it with the reports.

        Where several processes were started together (see :mod:`latentguard.training.processes`), all of them train,
        and what follows is the main one's: the others return None.

        Raises:
            LatentGuardError: a file can't be used, or the data is too small to train and to calibrate on; a device, a
                precision or a compiler can't be used here.
        """
        if not self.data and not self.grammar:
            raise DataError("nothing to train on: give files of pairs, or a number of pairs for the grammar to write")
        names = [entry.name for path in self.concept_names for entry in read_concepts(path)]
        excluded_prompts = {row.prompt for path in self.exclude_prompts for row in read_prompts(path)}
        excluded_concepts = {entry.name for path in self.exclude_concepts for entry in read_concepts(path)}
        pairs, report = read_pairs(
            self.data, concepts=names or None, exclude_prompts=excluded_prompts, exclude_concepts=excluded_concepts
        )
        negatives = [read_negatives([path], exclude_prompts=excluded_prompts) for path in self.negatives]
        written = self._written(excluded_prompts, excluded_concepts)
        bank = read_concepts(self.bank if self.bank is not None else shipped_path("datasets") / "concepts.json")
        replacements = self._replacements(excluded_concepts)
        harmless = self._calibration_prompts([text for group in negatives for text in group])
        device = local_device(self.device)
        precision, compiler = chosen_half(self.precision, device), checked_compiler(self.compiler)
        encoder = self._loaded_encoder(device)
        with joined(device) as processes:
            trainer = Trainer(
                encoder,
                TokenStateCache(self._cache_folder(encoder), encoder),
                [*pairs, *written[0]],
                [*negatives, *written[1:]],
                self.arguments,
                self.output / "training",
                Compute(device, precision, compiler, processes),
                None if replacements is None else training_half(_joined(replacements)),
            )
            result = trainer.train(resume=self.resume)
        if not processes.is_main:
            return None
        heads = self._heads(encoder, trainer, result, bank)
        attacked = attacked_figures(
            LatentGuard(encoder, result.mapping, _known(trainer), Policy(0.0), heads),
            trainer.held_out_pairs,
            replacements,
            self.arguments.seed,
        )
        plot_learning_curve(result.history, self.output / "training" / "learning_curve.png")
        harmless = harmless or trainer.held_out_harmless
        threshold = self._threshold(encoder, result, heads, bank, harmless)
        config = WeightsConfig(
            encoder=encoder.name,
            shape=result.mapping.shape,
            threshold=math.ceil(threshold * 1e4) / 1e4,  # upwards, so that no more are blocked
            layers=encoder.layers if self.layers is not None else None,
            prompt_head=None if heads is None else heads.prompt_head.shape,
            combination=None if heads is None else heads.combination,
            training={
                "command": self.command,
                "data": {path.name: _sha256(path) for path in self._files()},
                "recipe": asdict(self.arguments),
                "compute": {"device": device.type, "precision": precision, "processes": processes.count},
                "pairs": report.as_dict(),
                "negatives": sum(len(group) for group in negatives),
                "grammar": {"pairs": len(written[0]), "harmless": len(written[1]) + len(written[2])},
                "held_out_concepts": result.best,
                "attacks_on_held_out_concepts": attacked,
                "calibration": {
                    "source": "harmless prompts held out of training"
                    if self.calibrate is None
                    else self.calibrate.name,
                    "prompts": len(harmless),
                    "false_positive_rate": self.false_positive_rate,
                },
            },
        )
        folder = save_weights(self.output, result.mapping, config, bank, _card(config), heads)
        return folder, report, result

    def _loaded_encoder(self, device: torch.device) -> TextEncoder:
        if not isinstance(self.encoder, str):
            return self.encoder
        return load_encoder(self.encoder, device=device, layers=self.layers)

    def _written(
        self, excluded_prompts: Collection[str], excluded_concepts: Collection[str]
    ) -> tuple[list[TrainingPair], list[str], list[str]]:
        """What the grammar adds, without whatever is excluded: pairs, harmless prompts, and such in users' style."""
        if not self.grammar:
            return [], [], []
        from latentguard.synthesis.grammar import EVERYDAY, Grammar

        grammar = Grammar.load()
        pairs = without_excluded(grammar.pairs(self.grammar, self.arguments.seed), excluded_prompts, excluded_concepts)
        barred = {text_key(prompt) for prompt in excluded_prompts}
        harmless, usual = (
            [
                text
                for text in grammar.harmless(count, self.arguments.seed, category=category)
                if text_key(text) not in barred
            ]
            for count, category in ((self.grammar, None), (self.grammar // 2, EVERYDAY))
        )
        return pairs, harmless, usual

    def _heads(
        self, encoder: TextEncoder, trainer: Trainer, result: TrainingResult, bank: Sequence[ConceptEntry]
    ) -> Heads | None:
        if result.prompt_head is None:
            return None
        harmless = trainer.harmless_texts
        seed = self.arguments.seed
        reference = random.Random(seed).sample(harmless, min(_REFERENCE, len(harmless)))
        scale = fit_scale(result.mapping, encoder, trainer.cache, trainer.table.concepts, reference, seed)
        rarity = WordRarity.of(normalize(text) for text in harmless)
        combination = fit_combination(
            result.mapping,
            result.prompt_head,
            scale,
            rarity,
            encoder,
            trainer.cache,
            [trainer.held_out, trainer.familiar],
            _known(trainer),
            bank,
        )
        return Heads(result.prompt_head, scale, combination, rarity)

    def _files(self) -> list[Path]:
        others = [path for path in (self.calibrate, self.replacements) if path is not None]
        return [*self.data, *self.negatives, *others]

    def _replacements(self, excluded_concepts: Collection[str]) -> dict[str, dict[str, list[str]]] | None:
        """By kind of attack, the texts for each concept that name no excluded one."""
        if self.replacements is None:
            return None
        excluded = NameMatcher(list(dict.fromkeys(excluded_concepts)))
        found = {kind: read_replacements(self.replacements, kind) for kind in REPLACING}
        return {
            kind: {
                concept: [text for text in texts if not names_any(excluded, text)] for concept, texts in all_.items()
            }
            for kind, all_ in found.items()
        }

    def _calibration_prompts(self, negatives: Sequence[str]) -> list[str]:
        if self.calibrate is None:
            return []
        harmless = [row.prompt for row in read_prompts(self.calibrate)]
        if set(harmless) & set(negatives):
            raise DataError(f"{self.calibrate}: holds prompts that training uses, so no threshold can be set on it")
        return harmless

    def _cache_folder(self, encoder: TextEncoder) -> Path:
        if self.cache is not None:
            return self.cache
        layers = "-".join(str(layer) for layer in encoder.layers)
        name = f"{encoder.name}-{getattr(encoder, 'precision', 'fp32')}-layers-{layers}-window-{encoder.window}"
        return cache_folder() / "token-states" / "".join(c if c.isalnum() or c in "-._" else "_" for c in name)

    def _threshold(
        self,
        encoder: TextEncoder,
        result: TrainingResult,
        heads: Heads | None,
        bank: Sequence[ConceptEntry],
        harmless: Sequence[str],
    ) -> float:
        guard = LatentGuard(encoder, result.mapping, bank, Policy(0.0), heads)
        return threshold_for(np.asarray(guard.score(harmless)), self.false_positive_rate)


def _known(trainer: Trainer) -> list[ConceptEntry]:
    """The concepts of the training data, held-out ones too."""
    return distinct([*trainer.table.concepts, *trainer.held_out.concepts])


def _joined(replacements: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The halves of all kinds that may be trained with."""
    joined: dict[str, list[str]] = {}
    for of_kind in replacements.values():
        for concept, texts in training_half(of_kind).items():
            joined.setdefault(concept, []).extend(texts)
    return joined


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _card(config: WeightsConfig) -> str:
    training = config.training
    pairs, held_out, calibration = training["pairs"], training["held_out_concepts"], training["calibration"]
    files = "\n".join(f"- `{name}`, SHA-256 `{digest}`" for name, digest in training["data"].items())
    written = training["grammar"]
    grammar = (
        f", and by the built-in grammar\n{written['pairs']:,} pairs and {written['harmless']:,} harmless prompts"
        if written["pairs"]
        else ""
    )
    heads = ", with a prompt head and a lexical head beside it" if config.prompt_head is not None else ""
    return f"""# A mapping layer for `{config.encoder}`{heads}

Trained by latentguard with the two-way contrastive loss of Latent Guard (Liu et al., ECCV 2024, arXiv 2404.08031) on
{pairs["pairs"]:,} pairs of an unsafe prompt and its safe twin and {training["negatives"]:,} harmless prompts{grammar}.
Licence: Apache-2.0.

## How it was made

```
{training["command"]}
```

From these files:

{files}

Recipe: `{json.dumps(training["recipe"])}`

The concepts held out of training, by which it was stopped: AUC {held_out["auc"]:.3f} against all harmless
prompts, {held_out["auc_twins"]:.3f} against the unsafe prompts' safe twins, {held_out["auc_ordinary"]:.3f} against
ordinary prompts.

The threshold, {config.threshold:.4f}, lets at most {calibration["false_positive_rate"]:.2%} of harmless prompts like
the {calibration["prompts"]:,} of {calibration["source"]} be blocked (split conformal calibration).
"""
