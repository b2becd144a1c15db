"""Where, in which arithmetic and beside which other processes a layer is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from latentguard.encoders.torch_runtime import HALVES, autocast
from latentguard.errors import DeviceError
from latentguard.training.processes import ALONE, Processes

Half = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Compute:
    """What the arithmetic of a training runs on.

    Attributes:
        device: this process's device.
        precision: "fp32", or the type of the products under autocast. The weights, the losses and the optimizer are
            float32 in any case; gradients of "fp16" are scaled, so that small ones are not lost.
        compiler: a backend of torch.compile for the layer's forward and backward pass, or None.
        processes: this process among those that train together.
    """

    device: torch.device
    precision: Half = "fp32"
    compiler: str | None = None
    processes: Processes = ALONE

    def autocast(self) -> torch.autocast:
        """Around the forward pass."""
        return autocast(self.device, HALVES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss of "fp16", and passes others on as they are."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def chosen_half(name: str | None, device: torch.device) -> Half:
    """The precision of that name; None is "fp32" on a processor and "bf16" elsewhere. DeviceError if there is none."""
    if name is None:
        return "fp32" if device.type == "cpu" else "bf16"
    for known in get_args(Half):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise DeviceError(f"no precision {name!r} to train in; give one of {', '.join(get_args(Half))}")
