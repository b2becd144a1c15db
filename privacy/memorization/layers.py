"""The layers of a model by name, as gradients and hidden states are told apart.

Every parameter belongs to exactly one layer, and the names are the same for every family: `vision.embeddings`,
`vision.0` and so on for the blocks of the vision tower, `vision.rest` for its outer norms, `projector` for what leads
from one modality to the other, then the same of `language` (or `text`, in a CLIP-like model, and `language.rest` has
the output head).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from privacy.errors import MemorizationError

VISION, LANGUAGE, TEXT, PROJECTOR = "vision", "language", "text", "projector"
EMBEDDINGS, REST = "embeddings", "rest"

_VISION = re.compile(r"vision|visual|image|vit\b")
_PROJECTOR = re.compile(r"projector|merger|connector|qformer|resampler|perceiver|aligner")
_LATE_PROJECTOR = re.compile(r"projection|logit_scale|logit_bias")
_EMBEDDINGS = re.compile(r"embed|wte\b|wpe\b")


@dataclass(frozen=True)
class Tower:
    """A stack of transformer blocks: `vision`, `language` or `text`; `path` is its module's name in the model."""

    name: str
    path: str
    blocks: tuple[nn.Module, ...]


def towers_of(model: nn.Module) -> tuple[Tower, ...]:
    """The stacks of transformer blocks of a model, the vision tower first.

    Raises:
        MemorizationError: the model has no list of blocks.
    """
    # A CLIP-like model names its other tower "text_model" and has no output head over words.
    other = TEXT if _is_dual(model) else LANGUAGE
    largest: dict[str, tuple[int, Tower]] = {}
    for path, blocks in _block_lists(model):
        if _PROJECTOR.search(path):
            continue
        name = VISION if _VISION.search(path) else other
        size = sum(parameter.numel() for parameter in blocks.parameters())
        if name not in largest or size > largest[name][0]:
            largest[name] = (size, Tower(name, path, tuple(blocks)))
    if not largest:
        raise MemorizationError(f"{type(model).__name__} has no list of transformer blocks")
    return tuple(largest[name][1] for name in (VISION, other) if name in largest)


def layers_of(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """The named parameters of each layer, layers in the order in which data flows.

    Raises:
        MemorizationError: as `towers_of`.
    """
    towers = towers_of(model)
    layers: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in _layer_names(towers)}
    for name, parameter in model.named_parameters():
        layers[_layer_of(name, towers)].append((name, parameter))
    return {name: parameters for name, parameters in layers.items() if parameters}


def _is_dual(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] == "logit_scale" for name, _ in model.named_parameters())


def _block_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of modules of one class with parameters that are in no other such list."""
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in found):
            continue
        if len({type(block) for block in module}) == 1 and any(True for _ in module.parameters()):
            found.append(path)
            yield path, module


def _layer_names(towers: tuple[Tower, ...]) -> list[str]:
    names: list[str] = []
    for number, tower in enumerate(towers):
        blocks = [f"{tower.name}.{block}" for block in range(len(tower.blocks))]
        names += [f"{tower.name}.{EMBEDDINGS}", *blocks, f"{tower.name}.{REST}"]
        if number == 0:
            names.append(PROJECTOR)
    return names


def _layer_of(parameter: str, towers: tuple[Tower, ...]) -> str:
    for tower in towers:
        if parameter.startswith(f"{tower.path}."):
            return f"{tower.name}.{parameter[len(tower.path) + 1 :].partition('.')[0]}"
    if _PROJECTOR.search(parameter):
        return PROJECTOR
    sees = towers[0].name == VISION and _VISION.search(parameter) is not None
    tower = towers[0] if sees else towers[-1]
    if _EMBEDDINGS.search(parameter):
        return f"{tower.name}.{EMBEDDINGS}"
    return PROJECTOR if _LATE_PROJECTOR.search(parameter) else f"{tower.name}.{REST}"
