"""Reading and writing ``weights/`` folders: a trained mapping layer with all that is needed to use it.

A folder holds ``model.safetensors`` (the layer and the heads beside it), ``config.json`` (their sizes, the encoder that
they belong to, the threshold, the SHA-256 of that file), ``concepts.json`` (the default bank), ``lexicon.json`` (how
frequent words are in harmless prompts; only with heads) and a card, ``README.md``. Nothing in it is code and nothing is
read with pickle; the published checkpoint, which is a pickle, goes through :func:`import_official` once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from latentguard.arrays import NumpyDevice, chosen_device
from latentguard.errors import DataError, PolicyError, WeightsError
from latentguard.files import atomic_path
from latentguard.lexicon import WordRarity
from latentguard.policy import checked_threshold
from latentguard.records import ConceptEntry, read_concepts
from latentguard.shapes import Combination, MappingShape, PromptHeadShape
from latentguard.shipped import shipped_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from latentguard.heads import Heads
    from latentguard.mapping import MappingLayer

    _Module = TypeVar("_Module", bound=nn.Module)
_T = TypeVar("_T")

DEFAULT_MODEL = "minilm-l6"
_FORMAT = 1
_MODEL, _CONFIG, _CONCEPTS, _CARD = "model.safetensors", "config.json", "concepts.json", "README.md"
_LEXICON = "lexicon.json"
_HEADS = ("prompt_head.", "concept_scale.")  # before the names of the heads' tensors

# The published checkpoint's names for the layers, and its sizes (CLIP ViT-L/14).
_OFFICIAL_NAMES = {
    "x2_to_query": "to_query",
    "x1_to_key": "to_key",
    "x1_to_value": "to_value",
    "final_mlp": "value_output",
    "mlp_query1": "query_output",
}
OFFICIAL_ENCODER = "hf:openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class WeightsConfig:
    """What ``config.json`` says.

    Attributes:
        encoder: the name of the encoder whose states the layer was trained on.
        shape: the layer's sizes.
        threshold: the score from which a prompt is blocked.
        pad_to_window: whether the layer attends over the padding up to the encoder's window, as the published one does.
        layers: the encoder's layers whose states the layer takes, side by side; None for the last alone.
        prompt_head: the prompt head's sizes, None where the folder holds the mapping layer alone.
        combination: how the scores of layer and heads are combined, None likewise.
        training: how the layer was made, for the reader.
    """

    encoder: str
    shape: MappingShape
    threshold: float
    pad_to_window: bool = False
    layers: tuple[int, ...] | None = None
    prompt_head: PromptHeadShape | None = None
    combination: Combination | None = None
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A trained mapping layer, its config, its default concepts, and the heads beside it if it has any."""

    config: WeightsConfig
    mapping: MappingLayer
    concepts: tuple[ConceptEntry, ...]
    heads: Heads | None = None


def find_weights(name_or_dir: str | Path | None = None) -> Path:
    """The folder that ``name_or_dir`` means: one of the shipped names, a folder, or a repository on Hugging Face's hub.

    Raises:
        WeightsError: there is no such folder, name or repository.
    """
    name = str(name_or_dir if name_or_dir is not None else DEFAULT_MODEL)
    # A Path, or a text with a folder in it, is never a shipped name.
    is_name = not isinstance(name_or_dir, Path) and Path(name).name == name
    for folder in (*([shipped_path("weights") / name] if is_name else []), Path(name)):
        if (folder / _CONFIG).is_file():
            return folder
    if Path(name).exists():
        raise WeightsError(f"{name}: no {_CONFIG} there, so it is not a weights folder")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        shipped = ", ".join(sorted(p.parent.name for p in shipped_path("weights").glob(f"*/{_CONFIG}"))) or "none"
        raise WeightsError(f"{name}: no such weights; shipped: {shipped}; or give a folder or a hub id OWNER/NAME")
    return _download(name)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[_MODEL, _CONFIG, _CONCEPTS, _LEXICON, _CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{hub_id}: no such folder, and not to be had from Hugging Face's hub ({reason})") from error
    if not (folder / _CONFIG).is_file():
        raise WeightsError(f"{hub_id}: no {_CONFIG} in that repository, so it holds no weights of this project")
    return folder


@dataclass(frozen=True)
class StoredWeights:
    """What a weights folder holds, checked but for its tensors, of which no layer is made yet.

    Attributes:
        folder: where it was read.
        config: what ``config.json`` says.
        content: the bytes of ``model.safetensors``, whose SHA-256 is the config's.
        concepts: the default bank.
        rarity: what ``lexicon.json`` says, None where the folder holds the mapping layer alone.
    """

    folder: Path
    config: WeightsConfig
    content: bytes = field(repr=False)
    concepts: tuple[ConceptEntry, ...]
    rarity: WordRarity | None

    def loaded(self, device: torch.device | NumpyDevice) -> Weights:
        """The weights as layers of the device's kind, on the CPU, in eval mode and frozen; errors as `load_weights`."""
        path = self.folder / _MODEL
        try:
            if isinstance(device, NumpyDevice):
                from latentguard.lite.weights import numpy_layers

                mapping, heads = numpy_layers(self, path)
            else:
                mapping, heads = _torch_layers(self, path)
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a safetensors file ({error})") from error
        return Weights(self.config, mapping, self.concepts, heads)

    def by_layer(self, state: Mapping[str, _T]) -> tuple[dict[str, _T], dict[str, _T], dict[str, _T]]:
        """The named tensors of mapping layer, prompt head and scale; WeightsError for heads that the config lacks."""
        if self.rarity is None and any(name.startswith(_HEADS) for name in state):
            raise WeightsError(f"{self.folder / _MODEL}: holds heads that {_CONFIG} knows nothing of")
        head, scale = ({n.removeprefix(p): t for n, t in state.items() if n.startswith(p)} for p in _HEADS)
        return {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}, head, scale


def load_weights(folder: str | Path, device: torch.device | NumpyDevice | None = None) -> Weights:
    """Read a weights folder; the layers are of the kind that ``device`` takes, on the CPU, in eval mode and frozen.

    Raises:
        WeightsError: a file is missing or damaged, or says what this version can't follow.
    """
    return read_weights(folder).loaded(chosen_device("cpu") if device is None else device)


def read_weights(folder: str | Path) -> StoredWeights:
    """What a weights folder holds, without PyTorch; errors as :func:`load_weights`."""
    folder = Path(folder)
    described = _read_config(folder / _CONFIG)
    try:
        config = WeightsConfig(
            encoder=str(described["encoder"]),
            shape=MappingShape(**{name: int(size) for name, size in described["shape"].items()}),
            threshold=checked_threshold(described["threshold"]),
            pad_to_window=bool(described.get("pad_to_window", False)),
            layers=_layers(described.get("layers")),
            prompt_head=_prompt_head_shape(described.get("prompt_head")),
            combination=_combination(described.get("combination")),
            training=described.get("training", {}),
        )
        if (config.prompt_head is None) != (config.combination is None):
            raise ValueError("prompt_head and combination belong together")
        digest = described["sha256"]
    except KeyError as error:
        raise WeightsError(f"{folder / _CONFIG}: has no field {error}") from error
    except (TypeError, ValueError, OverflowError, AttributeError, PolicyError) as error:
        raise WeightsError(f"{folder / _CONFIG}: can't be used: {error}") from error
    path = folder / _MODEL
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise WeightsError(f"{path}: damaged or truncated: its SHA-256 is not the one in {_CONFIG}")
    try:
        concepts = tuple(read_concepts(folder / _CONCEPTS))
    except DataError as error:
        raise WeightsError(f"{folder.name}: {error}") from error
    return StoredWeights(folder, config, content, concepts, _rarity(config, folder))


def save_weights(
    folder: str | Path,
    mapping: MappingLayer,
    config: WeightsConfig,
    concepts: Iterable[ConceptEntry],
    card: str,
    heads: Heads | None = None,
) -> Path:
    """Write a weights folder. Each file is whole or absent; ``config.json`` comes last, and with it the folder counts.

    Raises:
        DataError, WeightsError: the folder can't be made, or a file in it can't be written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder}: no folder can be made there ({error.strerror or error})") from error
    # To memory first: save_file of safetensors reports a full disk as an error of its own.
    state = mapping.state_dict()
    if heads is not None:
        for prefix, module in zip(_HEADS, (heads.prompt_head, heads.scale), strict=True):
            state |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
        with atomic_path(folder / _LEXICON) as temporary:
            temporary.write_bytes(heads.rarity.as_bytes())
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    with atomic_path(folder / _MODEL) as temporary:
        temporary.write_bytes(content)
    _write_text(folder / _CONCEPTS, _concepts_json(concepts))
    _write_text(folder / _CARD, card)
    described = {
        "format": _FORMAT,
        **asdict(config),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    _write_text(folder / _CONFIG, json.dumps(described, indent=2) + "\n")
    return folder


def with_threshold(
    folder: str | Path,
    target: str | Path,
    threshold: float,
    *,
    calibration: Mapping[str, Any],
    note: str,
    concepts: Iterable[ConceptEntry] | None = None,
) -> Path:
    """The weights of ``folder`` with another threshold, and another bank if one is given, written to ``target``.

    ``target`` is ``folder`` itself, of which no file is changed before all can be, or a new or empty folder, which is
    there whole or not at all. ``calibration`` goes into the config, under "training", and ``note`` into the card, as
    its last section; an earlier one is replaced.

    Raises:
        WeightsError: ``folder`` holds no weights that can be loaded; or ``target`` can't be made or isn't empty.
        DataError: a file can't be written.
    """
    folder, target = Path(folder), Path(target)
    training = load_weights(folder).config.training  # damaged weights are not passed on
    described = _read_config(folder / _CONFIG) | {
        "threshold": checked_threshold(threshold),
        "training": {**(training if isinstance(training, Mapping) else {}), "calibration": dict(calibration)},
    }
    card = (folder / _CARD).read_text(encoding="utf-8") if (folder / _CARD).is_file() else "# Weights\n"
    heading = "\n## How the threshold was set\n"
    # In place, files are put there in the reverse of this order: the config, with which they count, last.
    texts = {
        _CONFIG: json.dumps(described, indent=2) + "\n",
        _CARD: f"{card.partition(heading)[0].rstrip()}\n{heading}\n{note}",
    }
    if concepts is not None:
        texts[_CONCEPTS] = _concepts_json(concepts)
    if os.path.realpath(target) == os.path.realpath(folder):
        with ExitStack() as all_of_them:
            for name, text in texts.items():
                all_of_them.enter_context(atomic_path(folder / name)).write_text(text, encoding="utf-8")
        return target
    temporary = Path(os.path.abspath(target)).with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        temporary.mkdir(parents=True)
        for name in (_MODEL, _LEXICON, _CONCEPTS):
            if (folder / name).is_file() and name not in texts:
                (temporary / name).write_bytes((folder / name).read_bytes())
        for name, text in texts.items():
            _write_text(temporary / name, text)
        temporary.replace(target)
    except OSError as error:
        raise WeightsError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def read_official(path: str | Path) -> MappingLayer:
    """The mapping layer in the published ``model_parameters.pth``, read with ``weights_only=True``.

    Raises:
        WeightsError: the file is missing, is not such a checkpoint, or holds anything but tensors.
    """
    import torch

    path = Path(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # the reader raises errors of a dozen kinds for what is damaged or no checkpoint
        raise WeightsError(f"{path}: not a checkpoint that holds tensors and nothing else, or a damaged one") from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds {type(loaded).__name__}, not named tensors")
    state: dict[str, Tensor] = {}
    for official, ours in _OFFICIAL_NAMES.items():
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = _tensor(loaded, f"{official}.{part}", path)
    temperature, query, output = _tensor(loaded, "tempr", path), state["to_query.weight"], state["value_output.weight"]
    if temperature.numel() != 1 or query.ndim != 2 or output.ndim != 2:
        raise WeightsError(f"{path}: its tensors don't have the shapes of the published checkpoint")
    state["temperature"] = temperature.reshape(())
    (inner, width), heads = query.shape, MappingShape.heads
    if inner % heads:
        raise WeightsError(f"{path}: {inner} rows of x2_to_query don't split into {heads} heads")
    return _mapping(MappingShape(width, heads, inner // heads, output.shape[0]), state, path)


def import_official(
    path: str | Path,
    folder: str | Path,
    *,
    threshold: float,
    concepts: Iterable[ConceptEntry],
    encoder: str = OFFICIAL_ENCODER,
) -> Path:
    """Turn the published ``model_parameters.pth`` into a weights folder; errors as :func:`read_official`."""
    mapping = read_official(path)
    config = WeightsConfig(
        encoder=encoder,
        shape=mapping.shape,
        threshold=checked_threshold(threshold),
        pad_to_window=True,
        training={"source": "the published Latent Guard checkpoint (Liu et al., ECCV 2024, arXiv 2404.08031)"},
    )
    card = (
        "# The published Latent Guard mapping layer\n\n"
        "Imported from the authors' `model_parameters.pth` (Liu et al., ECCV 2024, arXiv 2404.08031) with\n"
        "`python -m latentguard import-official`. Attends over all positions of the encoder's window, padding\n"
        f"included, as the published code does. Encoder: `{encoder}`. Threshold: {config.threshold}.\n"
    )
    return save_weights(folder, mapping, config, concepts, card)


def _mapping(shape: MappingShape, state: Mapping[str, Tensor], path: Path) -> MappingLayer:
    from latentguard.mapping import MappingLayer

    return _filled(lambda: MappingLayer(shape), state, path)


def _rarity(config: WeightsConfig, folder: Path) -> WordRarity | None:
    if config.prompt_head is None:
        return None
    if config.prompt_head.width != config.shape.width:
        raise WeightsError(f"{folder / _CONFIG}: the heads take states of another width than the mapping layer")
    try:
        words = (folder / _LEXICON).read_bytes()
    except OSError as error:
        raise WeightsError(f"{folder / _LEXICON}: {error.strerror or error}") from error
    try:
        return WordRarity.from_bytes(words)
    except WeightsError as error:
        raise WeightsError(f"{folder / _LEXICON}: {error}") from error


def _torch_layers(stored: StoredWeights, path: Path) -> tuple[MappingLayer, Heads | None]:
    from safetensors.torch import load

    from latentguard.heads import ConceptScale, Heads
    from latentguard.prompt_head import PromptHead

    config = stored.config
    mapping, head, scale = stored.by_layer(load(stored.content))
    layer = _mapping(config.shape, mapping, path)
    shape, combination, rarity = config.prompt_head, config.combination, stored.rarity
    if shape is None or combination is None or rarity is None:
        return layer, None
    prompt_head = _filled(lambda: PromptHead(shape), head, path)
    return layer, Heads(
        prompt_head, _filled(lambda: ConceptScale(config.shape.output), scale, path), combination, rarity
    )


def _filled(made: Callable[[], _Module], state: Mapping[str, Tensor], path: Path) -> _Module:
    """The module with these tensors, in eval mode and frozen."""
    import torch

    try:
        with torch.device("meta"):  # no memory for what a config only claims
            module = made()
        module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: the tensors don't fit the layer ({reason})") from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise WeightsError(f"{path}: holds numbers that are not finite")
    return module.eval().requires_grad_(False)


def _layers(described: Sequence[Any] | None) -> tuple[int, ...] | None:
    return None if described is None else tuple(int(layer) for layer in described)


def _prompt_head_shape(described: Mapping[str, Any] | None) -> PromptHeadShape | None:
    if described is None:
        return None
    categories = tuple(str(name) for name in described["categories"])
    return PromptHeadShape(int(described["width"]), categories, int(described["hidden"]))


def _combination(described: Mapping[str, Any] | None) -> Combination | None:
    if described is None:
        return None
    return Combination(**{name: checked_threshold(value, name) for name, value in described.items()})


def _tensor(loaded: Mapping[Any, Any], name: str, path: Path) -> Tensor:
    from torch import Tensor

    tensor = loaded.get(name)
    if not isinstance(tensor, Tensor):
        raise WeightsError(f"{path}: no tensor {name!r}, so it is not the published checkpoint")
    return tensor


def _read_config(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON ({error})") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise WeightsError(f"{path}: not a config of format {_FORMAT}")
    return described


def _concepts_json(concepts: Iterable[ConceptEntry]) -> str:
    entries = [{k: v for k, v in asdict(concept).items() if v is not None} for concept in concepts]
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]\n"


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
