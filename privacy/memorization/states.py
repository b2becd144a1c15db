"""Hidden states of a model by layer, reduced to one vector an input, in safetensors shards that bound memory.

Forward hooks reduce the states of each transformer block to their mean over tokens and to one token's as soon as they
are computed, so neither a pass nor a file ever holds the states of all tokens. Layers are named as in
`privacy.memorization.layers`; `vision.embeddings` is what enters block 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm import tqdm

from privacy.errors import DataError, MemorizationError
from privacy.files import atomic_path, write_error
from privacy.memorization.examples import file_digest, rows
from privacy.memorization.journal import Journal
from privacy.memorization.layers import EMBEDDINGS, VISION, Tower, towers_of

MEAN, LAST = "mean", "last"
POOLINGS = (MEAN, LAST)

Batch = Mapping[str, Any]
Vectors = NDArray[np.float32]
_T = TypeVar("_T")

_INDEX = "states.jsonl"
_SHARD = 64  # inputs
_SAMPLES = 256  # values of a tensor that its fingerprint looks at
_CLASS_TOKENS = ("class_embedding", "cls_token")


class States:
    """The vectors that `write_states` wrote: `read(layer, pooling)` gives those of all inputs, in their order.

    Raises:
        DataError: there are none, they aren't complete, or a file was changed.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _INDEX
        lines = [line for _, line in rows(path)]
        try:
            self._shards = [(folder / Path(line["file"]).name, str(line["sha256"])) for line in lines[1:]]
            self.layers = tuple(str(name) for name in lines[0]["layers"])
            self.count = int(lines[0]["inputs"])
            written = sum(int(line["inputs"]) for line in lines[1:])
        except (IndexError, KeyError, TypeError, ValueError):
            raise DataError(f"{path}: is no list of hidden states") from None
        if written != self.count:
            raise DataError(f"{path}: has {written} of {self.count} inputs: run the command again to go on")
        for shard, digest in self._shards:
            if file_digest(shard) != digest:
                raise DataError(f"{shard}: was changed, or is damaged")

    def read(self, layer: str, pooling: str) -> Vectors:
        """The vectors [inputs, D] of one layer. Raises DataError if there is no such layer or pooling."""
        parts = []
        for shard, _ in self._shards:
            try:
                with safe_open(shard, framework="np") as file:
                    parts.append(file.get_tensor(f"{layer}/{pooling}"))
            except (SafetensorError, OSError) as error:
                raise DataError(f"{shard}: has no states of {layer}, {pooling}") from error
        return np.concatenate(parts)


def write_states(
    model: nn.Module,
    inputs: Sequence[_T],
    batch_of: Callable[[Sequence[_T]], Batch],
    folder: Path,
    *,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> States:
    """Writes, for each of `inputs` and every block of every tower, the mean over its tokens and its last token's state.

    `batch_of` makes the model's arguments from at most `batch_size` inputs. Models that pack or crop images need one at
    a time. Tokens that `attention_mask` leaves out count in no text tower. In a vision tower with a class token, which
    comes first, that one stands for the last: it is what such a tower is read out by.

    `settings` describe the inputs in JSON. What an interrupted run with the same settings and weights wrote is kept.

    Raises:
        MemorizationError: `folder` holds states of other settings or weights, the model has no blocks, or its states
            don't tell the inputs of a batch apart.
        DataError: a file can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    towers = towers_of(model)
    layers = [name for tower in towers for name in _layer_names(tower)]
    described = {"layers": layers, "inputs": len(inputs), "weights": fingerprint(model), **(settings or {})}
    with (
        Journal(folder / _INDEX, described) as journal,
        tqdm(total=len(inputs), desc="hidden states", unit="image", disable=None) as bar,
    ):
        done = sum(line["inputs"] for line in journal.done)
        bar.update(done)
        for start in range(done, len(inputs), _SHARD):
            shard = inputs[start : start + _SHARD]
            vectors = _vectors(model, towers, shard, batch_of, batch_size, bar)
            if absent := [layer for layer in layers if f"{layer}/{MEAN}" not in vectors]:
                raise MemorizationError(f"these inputs don't reach {absent[0]}")
            target = folder / f"states-{start // _SHARD:05}.safetensors"
            with atomic_path(target) as temporary:
                save_file(vectors, temporary)
            journal.append({"file": target.name, "inputs": len(shard), "sha256": file_digest(target)})
    return States(folder)


def fingerprint(model: nn.Module) -> str:
    """A digest of a model's weights that looks at some values of every tensor: any training changes it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLES)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _vectors(
    model: nn.Module,
    towers: Sequence[Tower],
    inputs: Sequence[_T],
    batch_of: Callable[[Sequence[_T]], Batch],
    batch_size: int,
    bar: Any,
) -> dict[str, Vectors]:
    """By `layer/pooling` the vectors [inputs, D]."""
    parts: dict[str, list[Vectors]] = {}
    with ExitStack() as stack, torch.inference_mode():
        pooler = _Pooler(model, towers, stack)
        for start in range(0, len(inputs), batch_size):
            chosen = inputs[start : start + batch_size]
            for key, value in pooler.run(batch_of(chosen), len(chosen)).items():
                parts.setdefault(key, []).append(value)
            bar.update(len(chosen))
    return {key: np.concatenate(values) for key, values in parts.items()}


class _Pooler:
    """Hooks on the blocks of all towers, which hold on to the reduced states of the last pass."""

    def __init__(self, model: nn.Module, towers: Sequence[Tower], stack: ExitStack) -> None:
        self._model = model
        self._states: dict[str, Vectors] = {}
        self._mask: Tensor | None = None
        self._size = 0
        for tower in towers:
            entering, *leaving = _layer_names(tower)
            first = tower.name == VISION and _has_class_token(model, tower)

            def before(_: nn.Module, given: Any, named: Any, layer: str = entering, first: bool = first) -> None:
                self._keep(layer, given[0] if given else named["hidden_states"], first)

            stack.callback(tower.blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
            for block, name in zip(tower.blocks, leaving, strict=True):

                def after(_: nn.Module, given: Any, output: Any, layer: str = name, first: bool = first) -> None:
                    self._keep(layer, output[0] if isinstance(output, tuple) else output, first)

                stack.callback(block.register_forward_hook(after).remove)

    def run(self, batch: Batch, size: int) -> dict[str, Vectors]:
        """The reduced states [size, D] of the inputs of a batch, by `layer/pooling`."""
        self._states, self._mask, self._size = {}, batch.get("attention_mask"), size
        was_training = self._model.training
        self._model.eval()
        try:
            self._model(**batch)
        finally:
            self._model.train(was_training)
        return self._states

    def _keep(self, layer: str, hidden: Tensor, class_token: bool) -> None:
        tokens = hidden.reshape(1, -1, hidden.shape[-1]) if self._size == 1 else hidden
        if tokens.dim() != 3 or len(tokens) != self._size:
            raise MemorizationError(
                f"the states of {layer} don't tell the inputs of a batch apart: take batches of one"
            )
        mask = self._mask if not layer.startswith(f"{VISION}.") else None
        if mask is None or mask.shape != tokens.shape[:2]:
            mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        weights = mask.to(tokens.device, torch.float32)[..., None]
        mean = (tokens.float() * weights).sum(1) / weights.sum(1)
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        last = torch.zeros_like(places[:1]).expand(self._size) if class_token else (mask * places).argmax(1)
        self._states[f"{layer}/{MEAN}"] = mean.cpu().numpy()
        self._states[f"{layer}/{LAST}"] = tokens[torch.arange(self._size), last].float().cpu().numpy()


def _layer_names(tower: Tower) -> list[str]:
    return [f"{tower.name}.{EMBEDDINGS}", *(f"{tower.name}.{number}" for number in range(len(tower.blocks)))]


def _has_class_token(model: nn.Module, tower: Tower) -> bool:
    """Whether one is among the parameters of the module that holds the tower's blocks, or of one around it."""
    root = tower.path.rpartition(".")[0]
    # The blocks are in an encoder beside the embeddings, or in the same module as they are.
    around = root.rpartition(".")[0]
    return any(name.startswith(around) and name.endswith(_CLASS_TOKENS) for name, _ in model.named_parameters())
