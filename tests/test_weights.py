"""Weights folders: what was written is read, and what is missing, damaged or made for something else is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import CONCEPTS, random_mapping, save_tiny_weights
from safetensors.torch import load_file, save_file

from latentguard import WeightsError, shipped
from latentguard.encoders.base import TokenStates
from latentguard.files import atomic_path
from latentguard.mapping import MappingShape, with_pooled
from latentguard.weights import WeightsConfig, find_weights, load_weights, save_weights

CONFIG = WeightsConfig(
    encoder="minilm-l6", shape=MappingShape(32, 4, 8, 16), threshold=4.25, pad_to_window=True, training={"seed": 3}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_weights(tmp_path / "weights", random_mapping(), CONFIG, CONCEPTS, "# The card\n")


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def change_model(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the tensors as an attacker would, with a checksum that fits them."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    change_config(folder, sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_weights(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_was_written_is_read(folder: Path) -> None:
    weights = load_weights(folder)
    assert weights.config == CONFIG
    assert weights.concepts == CONCEPTS
    assert (folder / "README.md").read_text() == "# The card\n"
    for name, tensor in random_mapping().state_dict().items():
        assert torch.equal(weights.mapping.state_dict()[name], tensor)


def test_a_layer_that_was_read_is_frozen_and_scores_as_before(folder: Path) -> None:
    mapping = load_weights(folder).mapping
    assert not mapping.training
    assert not any(parameter.requires_grad for parameter in mapping.parameters())
    states = TokenStates(torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.bool), torch.randn(1, 32))
    embeddings, same = torch.randn(3, 32), random_mapping()
    expected = same.score(same.queries(embeddings), *with_pooled(states))
    assert torch.equal(mapping.score(mapping.queries(embeddings), *with_pooled(states)), expected)


def test_writing_again_replaces_what_was_there(folder: Path) -> None:
    save_weights(folder, random_mapping(seed=1), CONFIG, CONCEPTS[:2], "# Another card\n")
    weights = load_weights(folder)
    assert weights.concepts == CONCEPTS[:2]
    assert torch.equal(weights.mapping.to_key.weight, random_mapping(seed=1).to_key.weight)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "concepts.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize("kept", [0, 8, 500, -1])
def test_a_truncated_layer_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors: damaged or truncated" in refusal(folder)


def test_a_layer_with_one_bit_changed_is_refused(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged" in refusal(folder)


def test_a_layer_that_is_no_safetensors_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"junk")
    change_config(folder, sha256=hashlib.sha256(b"junk").hexdigest())
    assert "not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_not_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json: not JSON" in refusal(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 2}', "null"])
def test_a_config_of_another_format_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json: not a config of format 1" in refusal(folder)


@pytest.mark.parametrize("field", ["encoder", "shape", "threshold", "sha256"])
def test_a_config_without_a_field_says_which(folder: Path, field: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"config.json: has no field '{field}'" in refusal(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": "high"},
        {"threshold": float("nan")},
        {"threshold": None},
        {"shape": None},
        {"shape": []},
        {"shape": {"width": 32, "depth": 2}},
        {"shape": {"width": "wide"}},
        {"shape": {"width": float("inf")}},
        {"shape": {"heads": 4}},
    ],
)
def test_a_config_whose_fields_cannot_be_used_is_refused(folder: Path, fields: dict[str, Any]) -> None:
    change_config(folder, **fields)
    assert "config.json: can't be used" in refusal(folder)


@pytest.mark.parametrize("shape", [{"width": 48}, {"heads": 2}, {"output": 128}, {"width": -1}, {"width": 10**12}])
def test_a_layer_of_other_sizes_than_the_config_says_is_refused(folder: Path, shape: dict[str, int]) -> None:
    change_config(folder, shape={"width": 32, "heads": 4, "head_width": 8, "output": 16} | shape)
    assert "the tensors don't fit the layer" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_layer_with_numbers_that_are_not_finite_is_refused(folder: Path, value: float) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["to_key.bias"][3] = value

    change_model(folder, spoil)
    assert "not finite" in refusal(folder)


@pytest.mark.parametrize("change", [lambda s: s.pop("to_key.bias"), lambda s: s.update(more=torch.zeros(1))])
def test_a_layer_with_a_tensor_missing_or_too_many_is_refused(folder: Path, change: Callable[..., None]) -> None:
    change_model(folder, change)
    assert "the tensors don't fit the layer" in refusal(folder)


def test_a_layer_stored_in_half_precision_is_read_as_float32(folder: Path) -> None:
    change_model(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    assert {tensor.dtype for tensor in load_weights(folder).mapping.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"name": ""}]', '["bomb", "bomb"]'])
def test_a_bank_that_cannot_be_used_is_refused(folder: Path, content: str) -> None:
    (folder / "concepts.json").write_text(content)
    assert "concepts.json" in refusal(folder)


def test_a_write_that_fails_leaves_weights_that_are_refused_or_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> Any:
        if path.name == "config.json":
            raise KeyboardInterrupt
        return atomic_path(path)

    monkeypatch.setattr("latentguard.weights.atomic_path", failing)
    with pytest.raises(KeyboardInterrupt):
        save_weights(folder, random_mapping(seed=1), CONFIG, CONCEPTS, "# Another card\n")
    assert "its SHA-256 is not the one in config.json" in refusal(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "concepts.json",
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/weights"):
        with pytest.raises(WeightsError, match="no folder can be made there"):
            save_weights(tmp_path / place, random_mapping(), CONFIG, CONCEPTS, "")


# --- where weights are found


def test_a_folder_is_found_by_its_path(folder: Path) -> None:
    assert find_weights(folder) == folder
    assert find_weights(str(folder)) == folder


def test_the_installations_own_weights_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as in a wheel: the package with its data inside, and nothing beside it."""
    package = tmp_path / "site-packages" / "latentguard"
    inside = save_tiny_weights(package / "_shipped" / "weights" / "minilm-l6", "minilm-l6")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    save_tiny_weights(tmp_path / "minilm-l6", "minilm-l6")
    assert find_weights() == inside
    assert find_weights("minilm-l6") == inside
    for explicit in ("./minilm-l6", Path("minilm-l6")):
        assert find_weights(explicit) == Path("minilm-l6")


def test_a_checkout_has_its_data_beside_the_package() -> None:
    assert (shipped.shipped_path("datasets") / "concepts.json").is_file()


def test_an_unknown_name_is_refused_with_the_names_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_weights(tmp_path / "weights" / "tiny", "minilm-l6")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "latentguard")
    with pytest.raises(WeightsError, match=r"^large: no such weights; shipped: tiny; or give a folder or a hub id"):
        find_weights("large")


def test_a_hub_id_that_cannot_be_reached_is_refused_in_one_line() -> None:
    with pytest.raises(WeightsError, match=r"^nobody/nothing: no such folder, and not to be had") as caught:
        find_weights("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_weights_are_independent_of_where_they_lie(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert load_weights(moved).config == CONFIG
