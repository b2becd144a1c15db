"""Models to audit: multimodal language models and CLIP-like ones, from folders or the hub, with or without an adapter.

An adapter is merged into its base, so that a model before and after its fine-tuning has the same modules by the same
names, and can be compared layer by layer. Nothing is read with pickle, and no code comes with a model.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import peft
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from privacy.errors import AuditedModelError

Kind = Literal["vlm", "clip"]
KINDS: tuple[Kind, ...] = ("vlm", "clip")

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What peft says, as a warning only, when an adapter lacks tensors of its own.
_MISSING = "missing adapter keys"


class LoadedModel(NamedTuple):
    """A transformers model in eval mode, its processor, and whether it writes text ("vlm") or compares ("clip")."""

    model: Any
    processor: Any
    kind: Kind


def load_model(
    place: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> LoadedModel:
    """The model of `place` on `device`, in eval mode.

    place: a folder with safetensors, a hub id, or the folder of a LoRA adapter, which is merged into the base that it
    names. A folder is read without the hub, a hub id through the cache of huggingface_hub.
    device: the accelerator if there is one, else the CPU, by default.
    dtype: float32 on a CPU, and on an accelerator the one that the weights are stored in, by default.

    Raises:
        AuditedModelError: it can't be read, is of neither kind, lacks tensors, or isn't in safetensors.
    """
    target = torch.device(device) if device is not None else default_device()
    if dtype is None and target.type == "cpu":
        dtype = torch.float32
    adapter = Path(place) if (Path(place) / ADAPTER).is_file() else None
    base = str(place) if adapter is None else base_of(adapter)
    kind = kind_of(base)
    model = _base_model(base, kind, dtype)
    if adapter is not None:
        model = _merged(model, adapter)
    processor = _processor(base if adapter is None else _processor_place(adapter, base))
    return LoadedModel(model.to(target).eval(), processor, kind)


def default_device() -> torch.device:
    """The accelerator that torch finds, or the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def kind_of(place: str | Path) -> Kind:
    """Whether the model of a folder or hub id writes text about images, or compares texts with images.

    Raises:
        AuditedModelError: its configuration can't be read, or it does neither.
    """
    folder = Path(place)
    # transformers would look for a folder that isn't there on the hub, and complain of the hub.
    if not folder.is_dir() and (folder.is_absolute() or str(place).startswith((".", "~")) or str(place).count("/") > 1):
        raise AuditedModelError(f"{place}: there is no such folder")
    with _reading(place, "its configuration"):
        config = transformers.AutoConfig.from_pretrained(place, **_options(place))
    # BLIP is in both: as a model that writes it is audited.
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vlm"
    if config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "clip"
    raise AuditedModelError(f"{place}: a {config.model_type} neither writes about images nor compares texts with them")


def base_of(adapter: Path) -> str:
    """The folder or hub id of the model that the LoRA adapter in the folder `adapter` belongs to.

    Raises:
        AuditedModelError: it is no LoRA adapter in safetensors, or doesn't tell its base.
    """
    path = adapter / ADAPTER
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, method = config["base_model_name_or_path"], config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AuditedModelError(f"{path}: is no configuration of an adapter") from None
    if method != "LORA":
        raise AuditedModelError(f"{path}: is of the kind {method!a}; only LoRA is known here")
    if config.get("megatron_config") is not None:  # peft would import a module that the file names
        raise AuditedModelError(f"{path}: is for Megatron")
    if not isinstance(base, str) or not base:
        raise AuditedModelError(f"{path}: names no base model")
    if not (adapter / _ADAPTER_WEIGHTS).is_file():  # peft would take a pickled file instead
        raise AuditedModelError(f"{adapter}: has no {_ADAPTER_WEIGHTS}")
    return base


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from its own bars and from notes on what is meant to be."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what transformers and peft have to change themselves
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _base_model(place: str, kind: Kind, dtype: torch.dtype | None) -> Any:
    cls = transformers.AutoModelForImageTextToText if kind == "vlm" else transformers.AutoModel
    with _reading(place, "its model"):
        model, report = cls.from_pretrained(
            place, use_safetensors=True, dtype=dtype or "auto", output_loading_info=True, **_options(place)
        )
    if report["missing_keys"]:  # transformers would leave random numbers there
        names = sorted(report["missing_keys"])
        raise AuditedModelError(f"{place}: its files lack {len(names)} tensors, {names[0]} among them")
    return model


def _merged(model: Any, adapter: Path) -> Any:
    with _reading(adapter, "its adapter"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merged = peft.PeftModel.from_pretrained(model, str(adapter), local_files_only=True).merge_and_unload()
    for each in said:
        if _MISSING in str(each.message):
            raise AuditedModelError(f"{adapter}: its adapter lacks tensors, or belongs to another model")
    return merged


def _processor_place(adapter: Path, base: str) -> str:
    """The adapter's folder, if a processor was saved with it."""
    names = ("processor_config.json", "preprocessor_config.json")
    return str(adapter) if any((adapter / name).is_file() for name in names) else base


def _processor(place: str) -> Any:
    with _reading(place, "its processor"):
        processor = transformers.AutoProcessor.from_pretrained(place, **_options(place))
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise AuditedModelError(f"{place}: its processor takes no images with texts")
    if not tokenizer.is_fast:
        raise AuditedModelError(f"{place}: a tokenizer of the tokenizers library is needed")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _options(place: str | Path) -> dict[str, Any]:
    return {"local_files_only": os.path.isdir(place), "trust_remote_code": False}


@contextmanager
def _reading(place: str | Path, what: str) -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # transformers and peft let through whatever their many parsers raise
        raise AuditedModelError(f"{place}: {what} can't be read: {first_line(error)}") from error
