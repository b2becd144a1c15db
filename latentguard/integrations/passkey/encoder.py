"""Converted encoders: a plain one's counterpart that takes windows of encrypted ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from latentguard.encoders import checked_precision
from latentguard.encoders.base import Pooling, TextEncoder, Window, split_windows
from latentguard.encoders.embedded import NAME, EmbeddedEncoder
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import EncoderError, WeightsError

Runtime = Literal["embedded", "transformers"]


@dataclass(frozen=True)
class EncoderSettings:
    """How a converted encoder is run, which is how its plain counterpart is: nothing in it is secret.

    Attributes:
        runtime: "embedded", in ONNX Runtime as the embedded encoder, with the same arithmetic; or "transformers".
        window, pooling, pad_id, pad_to_window: as in the plain encoder.
        prefix, suffix: the special ids that begin and end each window.
    """

    runtime: Runtime
    window: int
    pooling: Pooling
    pad_id: int
    pad_to_window: bool
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def of(cls, encoder: TextEncoder) -> EncoderSettings:
        """Those of a plain encoder; EncoderError if it is none that can be converted."""
        runtime: Runtime
        if isinstance(encoder, EmbeddedEncoder):
            runtime, pad_to_window = "embedded", False
        elif isinstance(encoder, HuggingFaceEncoder):
            runtime, pad_to_window = "transformers", encoder.pad_to_window
        else:
            raise EncoderError(f"{encoder.name}: can't be converted; only {NAME} and hf: encoders can")
        prefix, suffix = tuple(encoder.tokenizer.prefix), tuple(encoder.tokenizer.suffix)
        return cls(runtime, encoder.window, encoder.pooling, encoder.pad_id, pad_to_window, prefix, suffix)

    @classmethod
    def from_dict(cls, content: Any) -> EncoderSettings:
        """Reads what `dataclasses.asdict` gave; WeightsError for anything else."""
        try:
            settings = cls(**{**content, "prefix": tuple(content["prefix"]), "suffix": tuple(content["suffix"])})
        except (TypeError, KeyError):
            raise WeightsError("the encoder's settings are missing or damaged") from None
        numbers = (settings.window, settings.pad_id, *settings.prefix, *settings.suffix)
        if (
            not all(type(number) is int and number >= 0 for number in numbers)
            or type(settings.pad_to_window) is not bool
            or settings.runtime not in get_args(Runtime)
            or settings.pooling not in get_args(Pooling)
            or settings.content < 1
        ):
            raise WeightsError("the encoder's settings are damaged")
        return settings

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, ready for JSON."""
        return asdict(self)

    @property
    def content(self) -> int:
        """Most ids of a window beside the special ones."""
        return self.window - len(self.prefix) - len(self.suffix)

    def windows(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None = None) -> list[Window]:
        """The windows of a text's ids, as the plain encoder would cut them; without offsets where they are unknown."""
        spans = [(0, 0)] * len(ids) if offsets is None else offsets
        return split_windows(ids, spans, window=self.window, prefix=self.prefix, suffix=self.suffix)


def converted_encoder(
    folder: str | Path,
    settings: EncoderSettings,
    *,
    device: torch.device | str = "auto",
    precision: str | None = None,
    layers: Sequence[int] | None = None,
) -> TextEncoder:
    """The encoder of a converted folder; it encodes windows of encrypted ids, and reads no text.

    Its name is "passkey:" and the SHA-256 of its weights, shortened. device, precision, layers: as for `load_encoder`.

    Raises:
        EncoderError: the model can't be loaded, or has no such layer.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device, name = torch.device(device), encoder_name(folder)
    if settings.runtime == "embedded":
        return EmbeddedEncoder.for_windows(
            Path(folder),
            name=name,
            device=device,
            precision=checked_precision(name, precision),
            frame=(tuple(settings.prefix), tuple(settings.suffix)),
            layers=layers,
        )
    if precision not in (None, "fp32"):
        raise EncoderError(f"{name}: no {precision} precision for a converted encoder in transformers")
    return HuggingFaceEncoder.for_windows(
        str(folder),
        name=name,
        device=device,
        window=settings.window,
        pad_id=settings.pad_id,
        pooling=settings.pooling,
        pad_to_window=settings.pad_to_window,
        layers=layers,
    )


def encoder_name(folder: str | Path) -> str:
    """The name of a converted folder's encoder, which no other conversion has; EncoderError if it has no weights."""
    try:
        return f"passkey:{hashlib.sha256((Path(folder) / 'model.safetensors').read_bytes()).hexdigest()[:16]}"
    except OSError as error:
        raise EncoderError(f"{folder}: model.safetensors: {error.strerror or error}") from error
