"""Training checkpoints: one safetensors file, no pickle, replaced whole.

It holds no trace of the device and of the number of processes: a training may go on with others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from latentguard.errors import DataError
from latentguard.files import atomic_path


@dataclass
class Checkpoint:
    """How far a training has come: the next step, the evaluations so far, and the best weights among them.

    ``scaler`` is the state of the gradient scaler of "fp16" training, empty for others.
    """

    step: int
    history: list[dict[str, float]]
    best: dict[str, Tensor]
    scaler: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    fingerprint: Mapping[str, Any],
    progress: Checkpoint,
    parameters: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that :func:`load_checkpoint` needs to go on as if nothing had happened."""
    tensors = {f"parameters/{name}": tensor for name, tensor in parameters.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in progress.best.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    described = {
        "step": json.dumps(progress.step),
        "history": json.dumps(progress.history),
        "scaler": json.dumps(progress.scaler),
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({k: v.detach().cpu().clone() for k, v in tensors.items()}, metadata=described))


def load_checkpoint(
    path: Path,
    fingerprint: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> Checkpoint:
    """Fill ``parameters``, ``average`` and ``optimizer`` from a checkpoint and return how far it had come.

    Raises:
        DataError: the file is damaged, or was written under another recipe or precision or with other data.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable checkpoint ({error})") from error
    if described.get("fingerprint") != json.dumps(fingerprint, sort_keys=True):
        raise DataError(f"{path}: written with another recipe, precision or other data; resume with the same")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameters/{name}"])
            prefix = f"optimizer/{name}/"
            optimizer.state[parameter] = {
                # AdamW keeps its step counter on the CPU.
                key[len(prefix) :]: value.cpu() if value.ndim == 0 and key.endswith("/step") else value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
        for name, tensor in average.items():
            tensor.copy_(tensors[f"average/{name}"])
    best = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
    step, history, scaler = (json.loads(described[name]) for name in ("step", "history", "scaler"))
    return Checkpoint(step, history, best, scaler)
