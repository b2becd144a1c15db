"""How the encoders that run in PyTorch are frozen, placed and run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch

from latentguard.encoders.base import Precision
from latentguard.errors import EncoderError

_AUTOCAST: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Model = TypeVar("Model", bound=torch.nn.Module)


class TorchRuntime:
    """A device and a precision: "fp32" (None is the same), or on a GPU "bf16" or "fp16" by autocast.

    threads, if given, sets PyTorch's number of processor threads, which is one for the whole process. Raises
    EncoderError for a precision that the device does not have.
    """

    def __init__(self, encoder: str, device: torch.device, precision: Precision | None, threads: int | None) -> None:
        halves = {"fp32": None} if device.type == "cpu" else _AUTOCAST
        if precision is not None and precision not in halves:
            raise EncoderError(f"{encoder}: no {precision} precision on {device.type} in PyTorch")
        self.device = device
        self._half = halves[precision or "fp32"]
        if threads is not None:
            torch.set_num_threads(threads)

    def frozen(self, model: Model) -> Model:
        """The model on the device, in evaluation mode, with no parameter that takes a gradient."""
        return model.requires_grad_(False).train(False).to(self.device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a model's call: no gradients, and the precision asked for."""
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self._half, enabled=self._half is not None):
            yield
