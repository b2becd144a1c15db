"""PyTorch where it is installed, numpy where it isn't: which one, and the few things that guard and bank do to arrays
of either kind themselves.

An encoder's device decides. On :data:`NUMPY` everything between the encoder and the score is a numpy array and comes
from :mod:`latentguard.lite`; on a device of PyTorch's it is a tensor. The two kinds are never mixed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from latentguard.errors import EncoderError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Array = Any
"""A ``torch.Tensor`` or a ``numpy.ndarray``."""

HALF = ("bf16", "fp16")
"""The precisions of half as many bits, which are PyTorch's alone."""


@dataclass(frozen=True)
class NumpyDevice:
    """The processor, without PyTorch."""

    type: str = "cpu"

    def __str__(self) -> str:
        return "numpy"


NUMPY = NumpyDevice()


def torch_is_installed() -> bool:
    """Whether PyTorch is there to be imported; it is not imported to find out."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec, as sys.modules["torch"] = None is
        return False


def chosen_device(name: torch.device | NumpyDevice | str = "auto") -> torch.device | NumpyDevice:
    """The device of that name: "auto" is a GPU if there is one, "numpy" the processor without PyTorch.

    Where PyTorch is not installed, "auto" and "cpu" are "numpy".

    Raises:
        EncoderError: PyTorch can't use that device here.
        MissingDependencyError: PyTorch is not installed, and the device needs it.
    """
    if isinstance(name, NumpyDevice) or name == str(NUMPY):
        return NUMPY
    if not torch_is_installed():
        if name in ("auto", "cpu"):
            return NUMPY
        raise missing_torch(f"the device {name}")
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        raise EncoderError(f"{name}: not a device that PyTorch can use here") from error
    return device


def run_in_one_thread() -> None:
    """Keeps PyTorch, where it is in use, from sharing out this thread's products among others, as numpy's never are."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def missing_torch(what: str) -> MissingDependencyError:
    """The error that says what needs PyTorch, and how to install it."""
    return MissingDependencyError(f"{what}: needs PyTorch; install it with: pip install 'latentguard[torch]'")


def as_numpy(array: Array) -> np.ndarray:
    """The array's numbers, brought to the processor's memory."""
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def half_precision(array: Array, precision: str | None) -> AbstractContextManager[object]:
    """Around what is computed from the array: PyTorch's autocast for "bf16" and "fp16", nothing for any other."""
    if precision not in HALF:
        return nullcontext()
    import torch

    return torch.autocast(array.device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def fetched(array: Array) -> Callable[[], np.ndarray]:
    """Starts to bring the array's numbers to the processor's memory; what it gives waits for them.

    What is given to a GPU to do after this call, it does while they are on their way.
    """
    if isinstance(array, np.ndarray) or array.device.type != "cuda":
        numbers = as_numpy(array)
        return lambda: numbers
    import torch

    host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
    host.copy_(array, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(array.device))

    def wait() -> np.ndarray:
        arrived.synchronize()
        return as_numpy(host)

    return wait


def placed(values: np.ndarray, device: torch.device | NumpyDevice) -> Array:
    """Numbers as an array of the device's kind, on it."""
    if isinstance(device, NumpyDevice):
        return values
    import torch

    return torch.from_numpy(values).to(device)


def joined(first: Array, *others: Array) -> Array:
    """Arrays of one kind, one after another along their first axis."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, *others])
    import torch

    return torch.cat([first, *others])


def single(array: Array) -> Array:
    """The array in single precision; itself where it is."""
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()
