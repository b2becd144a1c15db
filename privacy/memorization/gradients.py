"""How much private content moves a model's gradients: cosine similarities, layer by layer.

After Ju et al., "Watch Out Your Album!" (arXiv 2503.01208): if a training batch's gradient turns about as far when
private text is drawn into its images as when the images are augmented or the text paraphrased, training takes notice
of that text although it has nothing to do with the task. A changed task and another batch show how far gradients turn
when everything changes.

    turned = gradient_similarity(model, answer_loss, batches, {"private text": with_text, "other batch": others})
    turned.cosines  # [layers, comparisons]

Only the layers whose two gradient sums fit in `memory` are looked at in one pass over the batches, the others are
frozen meanwhile, and each parameter's own gradient is given back as soon as it is added: memory is bounded by one
layer however large the model is, and nothing goes to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from privacy.errors import MemorizationError
from privacy.memorization.layers import layers_of

WHOLE = "whole model"
DEFAULT_MEMORY = 2 * 2**30

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], Tensor]
_Layer = list[tuple[str, nn.Parameter]]

_CHUNK = 2**16  # parameters that are multiplied at a time in float64


@dataclass(frozen=True)
class GradientSimilarity:
    """Cosine similarities with the gradient of the reference, and gradient norms; the last row is the whole model.

    `cosines` [layers, comparisons] is NaN where one of the two gradients is zero: the loss doesn't reach that layer.
    `norms` [layers, 1 + comparisons] has the reference first.
    """

    layers: tuple[str, ...]
    comparisons: tuple[str, ...]
    cosines: NDArray[np.float64]
    norms: NDArray[np.float64]


def gradient_similarity(
    model: nn.Module,
    loss: Loss,
    reference: Sequence[Batch],
    comparisons: Mapping[str, Sequence[Batch]],
    *,
    memory: int = DEFAULT_MEMORY,
) -> GradientSimilarity:
    """Compares the gradient of `loss` over the micro-batches of `reference` with that over each of `comparisons`.

    Gradients of micro-batches are summed in float32, so `loss` should give a sum over what it averages (`answer_loss`
    does). Where the model has LoRA adapters, their parameters alone are compared. `memory` are the bytes that the sums
    may take; a layer that needs more is looked at on its own. The model is evaluated without dropout, and left in the
    mode and with the gradients that it had.

    Raises:
        MemorizationError: the model has no layers, or there is nothing to compare.
    """
    if not reference or not comparisons or not all(comparisons.values()):
        raise MemorizationError("gradients are compared between batches, and there is none")
    layers = compared_parameters(model)
    dots: list[NDArray[np.float64]] = []
    with _prepared(model):
        groups = list(_groups(layers, memory))
        for group in tqdm(groups, desc="layers", disable=None, leave=False):
            dots += _compare(model, loss, reference, comparisons, [layers[name] for name in group])
    products = np.stack([*dots, np.sum(dots, axis=0)])  # [layers + 1, 2, 1 + comparisons]
    norms = np.sqrt(products[:, 1])
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = products[:, 0, 1:] / (norms[:, :1] * norms[:, 1:])
    cosines[~np.isfinite(cosines)] = np.nan
    return GradientSimilarity((*layers, WHOLE), tuple(comparisons), cosines, norms)


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The summed cross entropy of a batch's answer tokens, those whose label isn't -100, in a multimodal model.

    Unlike the mean that models give, it adds up over micro-batches of answers of different lengths.
    """
    mean: Tensor = model(**batch, use_cache=False).loss
    answered: Tensor = (batch["labels"][:, 1:] != -100).sum()
    return mean * answered


def compared_parameters(model: nn.Module) -> dict[str, _Layer]:
    """The parameters by layer whose gradients are compared: the LoRA adapters' if there are any, otherwise all."""
    layers = layers_of(model)
    adapters = {name: [each for each in layer if "lora_" in each[0]] for name, layer in layers.items()}
    adapters = {name: layer for name, layer in adapters.items() if layer}
    return adapters or layers


def _compare(
    model: nn.Module,
    loss: Loss,
    reference: Sequence[Batch],
    comparisons: Mapping[str, Sequence[Batch]],
    layers: Sequence[_Layer],
) -> list[NDArray[np.float64]]:
    """For each layer [2, 1 + comparisons]: scalar products with the reference's gradient, and squared norms."""
    parameters = [parameter for layer in layers for _, parameter in layer]
    base = _summed_gradients(model, loss, reference, parameters)
    products = [np.zeros((2, 1 + len(comparisons))) for _ in layers]
    for layer, product in zip(layers, products, strict=True):
        product[:, 0] = sum(_dot(base[parameter], base[parameter]) for _, parameter in layer)
    for column, batches in enumerate(comparisons.values(), start=1):
        other = _summed_gradients(model, loss, batches, parameters)
        for layer, product in zip(layers, products, strict=True):
            product[0, column] = sum(_dot(base[parameter], other[parameter]) for _, parameter in layer)
            product[1, column] = sum(_dot(other[parameter], other[parameter]) for _, parameter in layer)
        del other  # or there would be three sets when the next one is summed
    return products


def _summed_gradients(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], parameters: Sequence[nn.Parameter]
) -> dict[nn.Parameter, Tensor]:
    """The gradient of each parameter summed over batches, in float32; no parameter keeps one of its own."""
    sums = {parameter: torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters}
    with ExitStack() as stack:
        for parameter in parameters:
            parameter.requires_grad_(True)
            stack.callback(parameter.requires_grad_, False)
            handle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_add_and_free, sums)
            )
            stack.callback(handle.remove)
        for batch in batches:
            value = loss(model, batch)
            if value.requires_grad:  # it doesn't where the loss depends on none of these layers
                value.backward()  # type: ignore[no-untyped-call]
    return sums


def _add_and_free(sums: Mapping[nn.Parameter, Tensor], parameter: Tensor) -> None:
    if not isinstance(parameter, nn.Parameter) or parameter.grad is None:
        return
    sums[parameter].add_(parameter.grad)
    parameter.grad = None


def _dot(one: Tensor, other: Tensor) -> float:
    """The scalar product in float64, without a copy of more than a chunk."""
    chunks = zip(torch.split(one.flatten(), _CHUNK), torch.split(other.flatten(), _CHUNK), strict=True)
    return float(sum(torch.dot(a.double(), b.double()) for a, b in chunks))


def _groups(layers: Mapping[str, _Layer], memory: int) -> Iterator[list[str]]:
    """The layers' names in order, as many at a time as two float32 gradients of each fit in `memory`, at least one."""
    group: list[str] = []
    taken = 0
    for name, layer in layers.items():
        size = 2 * 4 * sum(parameter.numel() for _, parameter in layer)
        if group and taken + size > memory:
            yield group
            group, taken = [], 0
        group.append(name)
        taken += size
    if group:
        yield group


@contextmanager
def _prepared(model: nn.Module) -> Iterator[None]:
    """The model frozen and in eval mode; afterwards everything is as before."""
    training = {module: module.training for module in model.modules()}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for module, mode in training.items():
            module.training = mode
