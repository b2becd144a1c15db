"""Gradient similarity: what the naive computation gives, in the memory of a layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from privacy.errors import MemorizationError
from privacy.memorization import gradients
from privacy.memorization.collators import collator_for
from privacy.memorization.contrastive import contrastive_loss
from privacy.memorization.examples import Example, read_examples
from privacy.memorization.gradients import GradientSimilarity, answer_loss, gradient_similarity
from privacy.memorization.layers import layers_of
from privacy.memorization.models import load_model

OTHERS = "other images"


@pytest.fixture(scope="module")
def examples(examples_file: Path, image_folder: Path) -> list[Example]:
    return read_examples(examples_file, image_folder)


def naive_cosines(model: Any, loss: Any, one: list[Any], other: list[Any]) -> dict[str, float]:
    """With two whole gradients in memory, each of one sum over all batches."""
    flat = []
    for batches in (one, other):
        model.zero_grad()
        sum(loss(model, batch) for batch in batches).backward()
        flat.append({p: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()})
    layers = {"whole model": list(model.named_parameters()), **layers_of(model)}
    joined = {
        name: [torch.cat([gradient[p].flatten() for _, p in layer]).double() for gradient in flat]
        for name, layer in layers.items()
    }
    return {name: float(a @ b / (a.norm() * b.norm())) for name, (a, b) in joined.items()}


def cosines_of(found: GradientSimilarity, comparison: str) -> dict[str, float]:
    column = found.comparisons.index(comparison)
    return dict(zip(found.layers, found.cosines[:, column].tolist(), strict=True))


@pytest.mark.parametrize("memory", [gradients.DEFAULT_MEMORY, 0])
def test_micro_batches_layer_by_layer_give_what_whole_gradients_give(
    vlm_folder: Path, examples: list[Example], memory: int
) -> None:
    model, processor, kind = load_model(vlm_folder, "cpu")
    collate = collator_for(processor, kind)
    micro = [[collate(examples[place : place + 2]) for place in places] for places in ((0, 2), (4, 6))]
    found = gradient_similarity(model, answer_loss, micro[0], {OTHERS: micro[1]}, memory=memory)
    expected = naive_cosines(model, answer_loss, [collate(examples[:4])], [collate(examples[4:8])])
    assert cosines_of(found, OTHERS) == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert found.layers[-1] == "whole model"


def test_a_contrastive_gradient_is_that_of_the_whole_batch(clip_folder: Path, examples: list[Example]) -> None:
    model, processor, kind = load_model(clip_folder, "cpu")
    collate = collator_for(processor, kind)
    one, other = [collate(examples[:3])], [collate(examples[3:6])]
    found = gradient_similarity(model, contrastive_loss, one, {OTHERS: other}, memory=0)
    assert cosines_of(found, OTHERS) == pytest.approx(naive_cosines(model, contrastive_loss, one, other), abs=1e-4)


def test_the_same_batch_has_cosine_one_and_equal_norms(llava_folder: Path, examples: list[Example]) -> None:
    model, processor, kind = load_model(llava_folder, "cpu")
    batch = [collator_for(processor, kind)(examples[:2])]
    found = gradient_similarity(model, answer_loss, batch, {"itself": batch})
    reached = np.isfinite(found.cosines)
    assert found.cosines[reached] == pytest.approx(1)
    assert found.norms[:, 0] == pytest.approx(found.norms[:, 1])


def test_a_layer_that_the_loss_does_not_reach_has_no_cosine(llava_folder: Path, examples: list[Example]) -> None:
    """This LLaVA reads its vision tower one block before the end."""
    model, processor, kind = load_model(llava_folder, "cpu")
    collate = collator_for(processor, kind)
    batches = [[collate(examples[:2])], [collate(examples[2:4])]]
    for memory in (0, gradients.DEFAULT_MEMORY):
        found = gradient_similarity(model, answer_loss, batches[0], {OTHERS: batches[1]}, memory=memory)
        assert np.isnan(cosines_of(found, OTHERS)["vision.1"])
        assert np.isfinite(cosines_of(found, OTHERS)["vision.0"])


def test_of_an_adapted_model_the_adapters_alone_are_compared(llava_folder: Path, examples: list[Example]) -> None:
    model, processor, kind = load_model(llava_folder, "cpu")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    collate = collator_for(processor, kind)
    found = gradient_similarity(adapted, answer_loss, [collate(examples[:2])], {OTHERS: [collate(examples[2:4])]})
    assert found.layers == ("language.0", "language.1", "whole model")


def test_the_model_is_left_as_it_was(llava_folder: Path, examples: list[Example]) -> None:
    model, processor, kind = load_model(llava_folder, "cpu")
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    kept = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = kept
    batch = [collator_for(processor, kind)(examples[:1])]
    gradient_similarity(model, answer_loss, batch, {"itself": batch})
    assert model.training
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert [p.grad for p in model.parameters() if p.grad is not None] == [kept]
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


class _Stack(nn.Module):
    """Eight wide blocks, whose weights are nearly all of the memory that a pass takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.square().sum()


def test_memory_is_bounded_by_a_layer_and_not_by_the_model() -> None:
    model = _Stack()
    layer = sum(p.numel() * p.element_size() for p in model.layers[0].parameters())
    batches = [[{"x": torch.randn(4, 512)}] for _ in range(3)]
    comparisons = {"second": batches[1], "third": batches[2]}

    def peak(memory: int) -> int:
        with torch.profiler.profile(profile_memory=True) as profiler:
            gradient_similarity(model, lambda m, batch: m(**batch), batches[0], comparisons, memory=memory)
        held = highest = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                highest = max(highest, held)
        return highest

    # Two sums, and the gradient that is being added to one.
    assert peak(0) < 3.5 * layer
    assert peak(gradients.DEFAULT_MEMORY) > 2 * 8 * layer


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(MemorizationError, match="there is none"):
        gradient_similarity(_Stack(), lambda m, batch: m(**batch), [], {"other": [{}]})
