"""Models to audit are loaded from folders, merged with their adapters, and never from pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from memorization_models import probe_inputs

from privacy.errors import AuditedModelError
from privacy.memorization.models import load_model


@pytest.fixture(scope="module")
def adapter_folder(llava_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the LLaVA that changes what it does; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    peft.get_peft_model(load_model(llava_folder, "cpu").model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("name", "kind"), [("llava", "vlm"), ("qwen", "vlm"), ("clip", "clip")])
def test_a_folder_is_loaded_with_its_processor_and_kind(
    name: str, kind: str, request: pytest.FixtureRequest, image_folder: Path
) -> None:
    loaded = load_model(request.getfixturevalue(f"{name}_folder"), "cpu")
    assert loaded.kind == kind
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    inputs = probe_inputs(loaded, image_folder / "shapes/0.png")
    assert set(inputs) >= {"input_ids", "pixel_values"}
    loaded.model(**inputs)


def test_an_adapter_is_merged_into_its_base(adapter_folder: Path, llava_folder: Path, image_folder: Path) -> None:
    base, adapted = load_model(llava_folder, "cpu"), load_model(adapter_folder, "cpu")
    inputs = probe_inputs(base, image_folder / "shapes/0.png")
    apart = peft.PeftModel.from_pretrained(load_model(llava_folder, "cpu").model, str(adapter_folder)).eval()
    with torch.inference_mode():
        before, after, wanted = (each(**inputs).logits for each in (base.model, adapted.model, apart))
    assert torch.allclose(after, wanted, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)
    names = [[name for name, _ in each.model.named_parameters()] for each in (base, adapted)]
    assert names[0] == names[1]


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(AuditedModelError, match="there is no such folder"):
        load_model(tmp_path / "nothing", "cpu")


def test_pickled_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    torch.save(load_model(clip_folder, "cpu").model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(AuditedModelError, match="safetensors"):
        load_model(folder, "cpu")


def test_a_pickled_adapter_is_refused(adapter_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AuditedModelError, match=r"has no adapter_model\.safetensors"):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"megatron_config": {}, "megatron_core": "os"}, "Megatron"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "/nowhere/base"}, "there is no such folder"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    adapter_folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AuditedModelError, match=message):
        load_model(folder, "cpu")


def test_an_adapter_of_another_model_is_refused(adapter_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter_folder, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(clip_folder)}))
    with pytest.raises(AuditedModelError, match="belongs to another model"):
        load_model(folder, "cpu")


def test_weights_with_a_tensor_missing_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AuditedModelError, match=r"lack \d+ tensors, vision_model"):
        load_model(folder, "cpu")


def test_a_model_of_texts_alone_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(AuditedModelError, match="a bert neither writes about images"):
        load_model(tmp_path, "cpu")
