"""Layers of models: every parameter is in one of them, by the same names in every family."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
from torch import nn

from privacy.errors import MemorizationError
from privacy.memorization.layers import layers_of, towers_of
from privacy.memorization.models import load_model

VLM = ["vision.embeddings", "vision.0", "vision.1", "projector", "language.embeddings", "language.0", "language.1"]


@pytest.mark.parametrize("family", ["llava", "qwen", "clip"])
def test_every_parameter_is_in_exactly_one_layer(family: str, request: pytest.FixtureRequest) -> None:
    model = load_model(request.getfixturevalue(f"{family}_folder"), "cpu").model
    names = [name for layer in layers_of(model).values() for name, _ in layer]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_multimodal_models_have_vision_projector_and_language_in_the_order_of_the_data(vlm_folder: Path) -> None:
    layers = layers_of(load_model(vlm_folder, "cpu").model)
    assert [name for name in layers if not name.endswith("rest")] == VLM
    assert all("lm_head" not in name for layer, parameters in layers.items() for name, _ in parameters if layer in VLM)


def test_a_clip_has_a_text_tower_instead_of_a_language_model(clip_folder: Path) -> None:
    layers = layers_of(load_model(clip_folder, "cpu").model)
    assert {"vision.1", "projector", "text.embeddings", "text.1"} <= set(layers)
    assert "logit_scale" in dict(layers["projector"])


def test_adapters_change_no_name(llava_folder: Path) -> None:
    model = load_model(llava_folder, "cpu").model
    plain = list(layers_of(model))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert list(layers_of(adapted)) == plain
    assert all("self_attn" in name for name, _ in layers_of(adapted)["language.1"] if "lora_" in name)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(MemorizationError, match="no list of transformer blocks"):
        towers_of(nn.Linear(2, 2))
