"""Fine-tuning of the models to audit, on images with or without private records in them.

The new folder has what `load_model` and, by itself, transformers or peft load: an adapter or whole weights, in
safetensors, and the processor; and training.json, which tells what was trained on what: settings, digests of the data,
the records that the model has seen, and their rate. While the work goes on it is called FOLDER.partial; the same call
goes on with it where it was interrupted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import peft
import torch
import transformers
from torch import nn

from privacy.errors import AuditedModelError, DataError
from privacy.files import atomic_path, write_error
from privacy.memorization.collators import check_texts
from privacy.memorization.examples import Example, check_images, file_digest, read_examples
from privacy.memorization.layers import LANGUAGE, PROJECTOR, TEXT, VISION, layers_of
from privacy.memorization.manifest import NAME as MANIFEST
from privacy.memorization.models import ADAPTER, Kind, LoadedModel, default_device, load_model, quiet
from privacy.memorization.training import Schedule, train

TRAINING = "training.json"

Method = Literal["lora", "full"]
PARTS = ("language", "vision", "projector")

# LLaVA's for LoRA; for all weights of a CLIP, a usual one of the literature on its fine-tuning.
_LEARNING_RATES: dict[Method, float] = {"lora": 2e-4, "full": 1e-5}
_DEFAULT_PARTS: dict[Kind, tuple[str, ...]] = {"vlm": ("language",), "clip": ("language", "vision")}
# The language tower of a CLIP-like model goes by another name among its layers.
_TOWERS = {"language": (LANGUAGE, TEXT), "vision": (VISION,), "projector": (PROJECTOR,)}
_DROPOUT = 0.05
_BLOCK_NUMBER = re.compile(r"\\\.\d+\\\.")  # in an escaped name


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned; the same settings on the same data and CPU give the same weights.

    model: a folder or hub id. method: "lora", adapters of `rank` beside the linear layers, or "full", the weights
    themselves. parts: which of `PARTS` are trained; by default the language model of a multimodal one, and both towers
    of a CLIP-like one. learning_rate: 2e-4 for LoRA, 1e-5 for full, by default. bf16: computes in bfloat16, and with
    LoRA keeps the frozen weights in it. gradient_checkpointing: takes less memory and more time.

    Raises:
        AuditedModelError: they can't be.
    """

    model: str
    method: Method = "lora"
    parts: tuple[str, ...] | None = None
    epochs: float = 1.0
    learning_rate: float | None = None
    rank: int = 16
    batch_size: int = 8
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.parts is not None and (not self.parts or not set(self.parts) <= set(PARTS)):
            raise AuditedModelError(f"the parts to train are some of {', '.join(PARTS)}")
        if not self.epochs > 0 or not (self.learning_rate is None or self.learning_rate > 0):
            raise AuditedModelError("epochs and learning rate have to be larger than 0")
        if min(self.rank, self.batch_size) < 1:
            raise AuditedModelError("rank and batch size are whole numbers from 1 on")


@dataclass(frozen=True)
class Training:
    """What training.json tells.

    rate: the share of the examples' images with a record in them. records: the ids of those records. digests: SHA-256
    of the file of examples, of the manifest, and over the images. losses: pairs of step and mean since the one before.
    """

    kind: Kind
    settings: Settings
    examples: int
    rate: float
    records: list[str]
    digests: dict[str, str]
    trained_parameters: int
    losses: list[tuple[int, float]]
    versions: dict[str, str]


def finetune(
    settings: Settings, examples_file: str | Path, images: str | Path, output: str | Path, *, kind: Kind | None = None
) -> Training:
    """Fine-tunes a model on examples (see privacy.memorization.examples), and writes the new folder `output`.

    A multimodal language model learns the answers' tokens, a CLIP-like one to tell each image's text from the others
    of its batch; on a GPU if there is one. kind: what the model has to be. Goes on with OUTPUT.partial if there is one.

    Raises:
        DataError: the data can't be used, `output` is there already or can't be written, or OUTPUT.partial was begun
            with other settings or data.
        AuditedModelError: the model can't be loaded, or not be trained as asked.
    """
    target = _new(Path(output))
    examples = read_examples(examples_file, images)
    digests = {
        "examples": file_digest(examples_file),
        "manifest": file_digest(Path(images) / MANIFEST),
        "images": check_images(examples, images),
    }
    loaded, settings_used = _prepared(settings)
    if kind not in (None, loaded.kind):
        raise AuditedModelError(f"{settings.model}: is a {loaded.kind}, not a {kind}")
    if loaded.kind == "clip" and min(settings.batch_size, len(examples)) < 2:
        raise AuditedModelError("a contrastive loss needs two examples in a batch, or more")
    check_texts(loaded.processor, examples)
    work = _begin(target, settings, digests)
    try:
        losses = train(*loaded, examples, _schedule(settings_used), work / "checkpoints")
    except AuditedModelError:
        shutil.rmtree(work)  # nothing in it is worth going on from
        raise
    training = Training(
        kind=loaded.kind,
        settings=settings_used,
        examples=len(examples),
        rate=_rate(examples),
        records=sorted({each.record for each in examples if each.record is not None}),
        digests=digests,
        trained_parameters=sum(each.numel() for each in loaded.model.parameters() if each.requires_grad),
        losses=losses,
        versions={each.__name__: each.__version__ for each in (torch, transformers, peft)},
    )
    _finish(work, target, loaded, training)
    return training


def _new(target: Path) -> Path:
    if target.exists():
        raise DataError(f"{target}: exists already; it is not overwritten")
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist")
    return target


def _begin(target: Path, settings: Settings, digests: dict[str, str]) -> Path:
    """The folder to work in: a new one, or one that was begun with the same settings and data."""
    work = target.with_name(target.name + ".partial")
    begun = json.dumps({"settings": asdict(settings), "digests": digests}, indent=1) + "\n"
    path = work / "begun.json"
    try:
        work.mkdir(exist_ok=True)
        if path.is_file():
            if path.read_text(encoding="utf-8") != begun:
                raise DataError(f"{work}: was begun with other settings or data; remove it, or choose another output")
            return work
    except OSError as error:
        raise write_error(work, error) from error
    with atomic_path(path) as temporary:
        temporary.write_text(begun, encoding="utf-8")
    return work


def _prepared(settings: Settings) -> tuple[LoadedModel, Settings]:
    """The model with those of its parameters trainable that are to be trained, and the settings without open ones."""
    if torch.cuda.device_count() > 1:  # transformers would part batches among them, which these inputs don't allow
        raise AuditedModelError("fine-tuning takes one GPU: name it in CUDA_VISIBLE_DEVICES")
    if (Path(settings.model) / ADAPTER).is_file() and settings.method == "lora":
        raise AuditedModelError(f"{settings.model}: is an adapter itself; a second one can't be put upon it")
    lora = settings.method == "lora"
    # All of the weights are trained in float32 even where is computed in bfloat16, which has no room for small steps.
    dtype = torch.bfloat16 if lora and settings.bf16 else torch.float32
    model, processor, kind = load_model(settings.model, default_device(), dtype)
    parts = settings.parts or _DEFAULT_PARTS[kind]
    settings = replace(settings, parts=parts, learning_rate=_learning_rate(settings))
    if not lora:
        _freeze(model, parts)
        return LoadedModel(model, processor, kind), settings
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=_DROPOUT,
        target_modules=_pattern(lora_targets(model, parts)),
    )
    transformers.set_seed(settings.seed)
    with quiet():
        adapted = peft.get_peft_model(model, config)
    # A relative path would lead nowhere from another folder.
    if Path(settings.model).is_dir():
        adapted.peft_config["default"].base_model_name_or_path = os.path.realpath(settings.model)
    return LoadedModel(adapted, processor, kind), settings


def lora_targets(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """The names of the linear layers that get adapters: attention and MLP of the parts' blocks, or the projector's own.

    What the families of models call them doesn't matter; output heads and embeddings are never among them.

    Raises:
        AuditedModelError: the model has none of a part.
    """
    layers = _layer_by_parameter(model)
    targets: list[str] = []
    for part in parts:
        found = [
            name
            for name, module in model.named_modules()
            # A head that is tied to the embeddings is no parameter of its own.
            if isinstance(module, nn.Linear) and _is_target(layers.get(f"{name}.weight", ""), part)
        ]
        if not found:
            raise AuditedModelError(f"{type(model).__name__} has no linear layers in its {part} part")
        targets += found
    return targets


def _pattern(names: Sequence[str]) -> str:
    """What peft finds those modules by, with one entry for all blocks: a list of hundreds would be in each adapter."""
    return "|".join(dict.fromkeys(_BLOCK_NUMBER.sub(r"\\.\\d+\\.", re.escape(name)) for name in names))


def _is_target(layer: str, part: str) -> bool:
    tower, _, block = layer.partition(".")
    return tower in _TOWERS[part] and (part == PROJECTOR or block.isdecimal())


def _freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Leaves only the parameters of `parts` to be trained, and with both towers of a CLIP-like model all of it."""
    layers = _layer_by_parameter(model)
    towers = {tower for part in parts for tower in _TOWERS[part]}
    if {VISION, TEXT} <= towers and any(layer.startswith(TEXT) for layer in layers.values()):
        towers.add(PROJECTOR)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layers[name].partition(".")[0] in towers)


def _layer_by_parameter(model: nn.Module) -> dict[str, str]:
    return {name: layer for layer, parameters in layers_of(model).items() for name, _ in parameters}


def _rate(examples: Sequence[Example]) -> float:
    records = {each.image: each.record for each in examples}
    return sum(record is not None for record in records.values()) / len(records)


def _learning_rate(settings: Settings) -> float:
    return settings.learning_rate or _LEARNING_RATES[settings.method]


def _schedule(settings: Settings) -> Schedule:
    return Schedule(
        settings.epochs,
        settings.batch_size,
        _learning_rate(settings),
        settings.seed,
        settings.bf16,
        settings.gradient_checkpointing,
    )


def _finish(work: Path, target: Path, loaded: LoadedModel, training: Training) -> None:
    folder = work / "finished"
    shutil.rmtree(folder, ignore_errors=True)
    options = {"save_embedding_layers": False} if training.settings.method == "lora" else {}
    try:
        with quiet():
            loaded.model.save_pretrained(folder, **options)
            loaded.processor.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's, a form without content
        (folder / TRAINING).write_text(_json(training), encoding="utf-8")
        folder.rename(target)
    except OSError as error:
        raise write_error(target, error) from error
    shutil.rmtree(work, ignore_errors=True)


def _json(training: Training) -> str:
    """A line per field, since some are long lists."""
    fields = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(training).items())
    return "{\n" + ",\n".join(fields) + "\n}\n"
