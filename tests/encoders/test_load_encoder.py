"""Encoders by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentguard.encoders import load_encoder
from latentguard.errors import EncoderError


def test_the_default_is_the_embedded_encoder() -> None:
    encoder = load_encoder(device="cpu")
    assert (encoder.name, encoder.width, encoder.window, encoder.pooling) == ("minilm-l6", 384, 128, "mean")


def test_auto_is_the_gpu_if_there_is_one() -> None:
    assert load_encoder(device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_folder_is_loaded_by_hf(bert_folder: Path) -> None:
    assert load_encoder(f"hf:{bert_folder}", device="cpu").name == f"hf:{bert_folder}"


@pytest.mark.parametrize("name", ["", "hf:", "open_clip:", "minilm", "bert-base-uncased"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="not an encoder"):
        load_encoder(name)


def test_layers_are_chosen_by_number(bert_folder: Path) -> None:
    for name, layers in (("minilm-l6", [2, 4, 6]), (f"hf:{bert_folder}", [0, 2])):
        encoder = load_encoder(name, device="cpu", layers=layers)
        assert encoder.layers == tuple(layers)
        assert encoder.width == len(layers) * load_encoder(name, device="cpu").width


@pytest.mark.parametrize("layers", [(), (7,), (-1,), (4, 2), (2, 2), (2.0,), (True, 2), ("2",)], ids=str)
def test_layers_that_do_not_exist_or_do_not_rise_are_refused(layers: tuple[object, ...]) -> None:
    with pytest.raises(EncoderError, match="minilm-l6: layers are numbers from 0 to 6"):
        load_encoder(device="cpu", layers=layers)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(EncoderError, match="not a device"):
        load_encoder(device="abacus")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(EncoderError, match="no precision 'fp8'"):
        load_encoder(device="cpu", precision="fp8")


def test_padding_to_the_window_is_for_clip_alone(bert_folder: Path) -> None:
    for name in ("minilm-l6", f"hf:{bert_folder}", "open_clip:RN50:"):
        with pytest.raises(EncoderError, match="pad_to_window"):
            load_encoder(name, device="cpu", pad_to_window=True)


def test_importing_the_package_imports_no_encoders_library() -> None:
    script = (
        "import sys, latentguard.encoders\n"
        "print([name for name in ('transformers', 'open_clip', 'torchvision', 'onnx', 'onnxruntime') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
