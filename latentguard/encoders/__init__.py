"""Frozen text encoders behind one protocol: `load_encoder` by name, `TextEncoder` for what it returns.

Importing this package imports none of PyTorch, transformers, open_clip or ONNX Runtime; loading an encoder imports what
it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast, get_args

from latentguard.arrays import NumpyDevice, chosen_device, missing_torch, torch_is_installed
from latentguard.encoders.base import Pooling, Precision, TextEncoder, TokenStates, Window
from latentguard.errors import EncoderError

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT_ENCODER", "Pooling", "Precision", "TextEncoder", "TokenStates", "Window", "load_encoder"]

DEFAULT_ENCODER = "minilm-l6"


def load_encoder(
    name: str = DEFAULT_ENCODER,
    *,
    device: torch.device | NumpyDevice | str = "auto",
    pad_to_window: bool = False,
    precision: str | None = None,
    threads: int | None = None,
    layers: Sequence[int] | None = None,
    compiler: str | None = None,
) -> TextEncoder:
    """A text encoder by name, frozen and ready.

    name: "minilm-l6", the embedded default; "hf:ID" or "hf:FOLDER", a Hugging Face CLIP text tower, BERT-like or T5
    encoder; "open_clip:ARCH:PRETRAINED", where an empty PRETRAINED gives random weights. device: "auto" is the GPU if
    there is one; "numpy", for the embedded encoder alone, is the processor without PyTorch, as "auto" and "cpu" are
    where it is not installed. pad_to_window: pad every prompt to the window and count the padding as tokens, as the
    published Latent Guard does; Hugging Face CLIP only. precision: "int8", "fp32", "bf16" or "fp16"; None is the
    encoder's own default. threads: processor threads, by default all that the process may use.
    layers: those whose states are put side by side at each token, rising; 0 is the embeddings' output, and None is the
    last layer alone. compiler: a backend of torch.compile that the encoder is compiled with when it first runs, in
    PyTorch alone; "inductor" is the usual one.

    Raises EncoderError for an unknown name, an encoder that can't be loaded, or an option or a layer it does not have,
    DeviceError for a compiler that can't be used, and MissingDependencyError where the encoder's library is not
    installed.
    """
    where = chosen_device(device)
    chosen = checked_precision(name, precision)
    kind, _, place = name.partition(":")
    if pad_to_window and kind != "hf":
        raise EncoderError(f"{name}: pad_to_window is for Hugging Face CLIP text towers only")
    if name == DEFAULT_ENCODER:
        from latentguard.encoders.embedded import EmbeddedEncoder

        return EmbeddedEncoder(device=where, precision=chosen, threads=threads, layers=layers, compiler=compiler)
    if kind not in ("hf", "open_clip") or not place:
        raise EncoderError(
            f'{name!r}: not an encoder; give "{DEFAULT_ENCODER}", "hf:ID" or "open_clip:ARCH:PRETRAINED"'
        )
    if isinstance(where, NumpyDevice):
        if not torch_is_installed():
            raise missing_torch(f"the encoder {name}")
        raise EncoderError(f"{name}: runs in PyTorch alone, not on the device numpy")
    if kind == "hf":
        from latentguard.encoders.huggingface import HuggingFaceEncoder

        return HuggingFaceEncoder(
            place,
            device=where,
            pad_to_window=pad_to_window,
            precision=chosen,
            threads=threads,
            layers=layers,
            compiler=compiler,
        )
    from latentguard.encoders.openclip import OpenClipEncoder

    return OpenClipEncoder(place, device=where, precision=chosen, threads=threads, layers=layers, compiler=compiler)


def checked_precision(encoder: str, name: str | None) -> Precision | None:
    """`name` as a precision; EncoderError, naming the encoder, if there is none of that name."""
    for known in get_args(Precision):
        if name == known:
            return cast(Precision, known)
    if name is not None:
        raise EncoderError(f"{encoder}: no precision {name!r}; give one of {', '.join(get_args(Precision))}")
    return None
