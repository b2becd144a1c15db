"""Training on plaintext, and the images it reads."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from privacy.encrypted_inference import Architecture, load_weights
from privacy.encrypted_inference.data import LabelledImages, load_images, load_picture
from privacy.encrypted_inference.model import LEVELS, FoldedNet, SquareNet
from privacy.encrypted_inference.ranges import check_ranges
from privacy.encrypted_inference.training import Recipe, accuracy, save_run, train
from privacy.encrypted_inference.weights import Layer, Weights, save_weights
from privacy.errors import DataError, ModelError

SHAPE = Architecture(8, 3, 1, 4, 32, tuple("0123456789"))
SHORT = Recipe(epochs=6, rounded_epochs=2)


def test_a_short_training_learns_and_saves(digits: LabelledImages, tmp_path: Path) -> None:
    seen, unseen = digits.part(slice(0, 1000)), digits.part(slice(1000, None))
    trained = train(SHAPE, seen, SHORT)
    assert accuracy(trained.weights, unseen) > 0.7
    assert [epoch.stage for epoch in trained.history] == ["free"] * 6 + ["rounded"] * 2
    save_run(trained, tmp_path / "model", {"accuracy": 0.5}, SHORT)
    assert (tmp_path / "model" / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["metrics"]["accuracy"] == 0.5
    again = load_weights(tmp_path / "model")
    np.testing.assert_array_equal(again.logits(unseen.pixels), trained.weights.logits(unseen.pixels))


def test_training_is_repeatable(digits: LabelledImages) -> None:
    recipe = Recipe(epochs=1, rounded_epochs=1)
    first, second = (train(SHAPE, digits.part(slice(0, 300)), recipe).weights for _ in range(2))
    np.testing.assert_array_equal(first.hidden.integers, second.hidden.integers)


def test_training_stops_early(digits: LabelledImages) -> None:
    recipe = Recipe(epochs=40, rounded_epochs=1, patience=1, learning_rate=0.3)
    assert len(train(SHAPE, digits.part(slice(0, 200)), recipe).history) < 41


def test_folding_batch_norm_changes_nothing_but_the_rounding(
    digits: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LEVELS:
        monkeypatch.setitem(LEVELS, name, 2**14)
    torch.manual_seed(0)
    net = SquareNet(SHAPE)
    images = torch.from_numpy(digits.pixels[:200])
    net(images)  # gives the batch norms statistics
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(FoldedNet.fold(net)(images), net(images), rtol=5e-3, atol=5e-3)


def test_weights_whose_values_would_wrap_are_refused(weights: Weights, digits: LabelledImages) -> None:
    output = Layer(weights.output.integers, 0.5, weights.output.bias)
    with pytest.raises(ModelError, match="wrapping"):
        check_ranges(Weights(weights.architecture, weights.convolution, weights.hidden, output), digits.pixels)


def test_an_output_without_weights_is_refused(weights: Weights) -> None:
    nothing = Layer(np.zeros_like(weights.output.integers), 0.5, weights.output.bias)
    with pytest.raises(ModelError, match="all zero"):
        Weights(weights.architecture, weights.convolution, weights.hidden, nothing)


def test_idx_files_are_read_zipped_or_not(tmp_path: Path, random: np.random.Generator) -> None:
    pixels = random.integers(0, 256, (5, 6, 6), dtype=np.uint8)
    image_bytes = struct.pack(">IIII", 0x803, 5, 6, 6) + pixels.tobytes()
    (tmp_path / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(image_bytes))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 5) + bytes([0, 1, 2, 1, 0]))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte\.gz: is missing"):
        load_images(tmp_path)
    (tmp_path / "a-labels-idx1-ubyte").rename(tmp_path / "a-labels-idx1-ubyte.gz")
    data = load_images(tmp_path)
    np.testing.assert_allclose(data.pixels, pixels / np.float32(255))
    assert data.classes.tolist() == [0, 1, 2, 1, 0]
    assert data.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header"),
        (struct.pack(">IIII", 0x802, 5, 6, 6), "header"),
        (struct.pack(">IIII", 0x803, 5, 6, 6) + bytes(10), "10 bytes of data"),
        (gzip.compress(bytes(100))[:-20], "can't be read"),
    ],
)
def test_damaged_idx_files_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 1) + bytes(1))
    with pytest.raises(DataError, match=said):
        load_images(tmp_path)


def test_a_folder_of_pictures_is_a_class_per_folder(tmp_path: Path, random: np.random.Generator) -> None:
    for name, level in (("dark", 20), ("light", 220)):
        (tmp_path / name).mkdir()
        for place in range(4):
            pixels = random.integers(level - 20, level + 20, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{place}.png")
    data = load_images(tmp_path, side=12)
    assert data.labels == ("dark", "light")
    assert data.pixels.shape == (8, 12, 12)
    assert data.pixels[data.classes == 0].max() < data.pixels[data.classes == 1].min()
    (tmp_path / "dark" / "5.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"5\.png: can't be read as a picture"):
        load_images(tmp_path, side=12)


def test_what_isnt_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="0 folders"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="can't be read"):
        load_picture(tmp_path / "nowhere.png", 8)


def test_images_of_another_size_or_too_few_are_refused(digits: LabelledImages) -> None:
    with pytest.raises(DataError, match="takes 28"):
        train(Architecture(28, 7, 3, 4, 64, digits.labels), digits)
    with pytest.raises(DataError, match="too few"):
        train(SHAPE, digits.part(slice(0, 8)))


@pytest.mark.parametrize(
    "changes", [{"side": 40}, {"channels": 3}, {"hidden": 0}, {"labels": ("one",)}, {"kernel": 9}, {"stride": 0}]
)
def test_impossible_shapes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(changes))):
        Architecture.from_dict(SHAPE.as_dict() | changes)


@pytest.mark.parametrize("described", [None, {}, {"side": 8}, SHAPE.as_dict() | {"labels": "0123456789"}])
def test_a_damaged_description_is_told(described: object) -> None:
    with pytest.raises(ModelError):
        Architecture.from_dict(described)


def test_damaged_weights_are_told(weights: Weights, tmp_path: Path) -> None:
    save_weights(weights, tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    for content in ("[]", "{", json.dumps(config | {"steps": {}}), json.dumps(config | {"steps": None})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError):
            load_weights(tmp_path)
    with pytest.raises(ModelError, match="no model of that name"):
        load_weights("faces")
