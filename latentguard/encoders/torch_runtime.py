"""How what runs in PyTorch is frozen, placed, compiled and run, in single or half precision."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

from latentguard.encoders.base import Precision
from latentguard.errors import DeviceError, EncoderError

HALVES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions that PyTorch has on every device, and the type that autocast gives to products in each."""

Model = TypeVar("Model", bound=torch.nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class TorchRuntime:
    """A device, a precision and a compiler: "fp32" (None is the same), or "bf16" or "fp16" by autocast.

    threads, if given, sets PyTorch's number of processor threads, which is one for the whole process. compiler: a
    backend of torch.compile. Raises EncoderError for a precision that PyTorch does not have, DeviceError for such a
    compiler.
    """

    def __init__(
        self,
        encoder: str,
        device: torch.device,
        precision: Precision | None,
        threads: int | None,
        compiler: str | None = None,
    ) -> None:
        if precision is not None and precision not in HALVES:
            raise EncoderError(f"{encoder}: no {precision} precision on {device.type} in PyTorch")
        self.device = device
        self._half = HALVES[precision or "fp32"]
        self._compiler = checked_compiler(compiler)
        if threads is not None:
            torch.set_num_threads(threads)

    def frozen(self, model: Model) -> Model:
        """The model on the device, in evaluation mode, with no parameter that takes a gradient."""
        return model.requires_grad_(False).train(False).to(self.device)

    def compiled(self, call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """As :func:`compiled`, by this runtime's compiler."""
        return compiled(call, self._compiler)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a model's call: no gradients, and the precision asked for."""
        with torch.no_grad(), autocast(self.device, self._half):
            yield


def autocast(device: torch.device, half: torch.dtype | None) -> torch.autocast:
    """Products in ``half`` on the device; single precision, as the operands are, for None."""
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def checked_compiler(name: str | None) -> str | None:
    """``name``, None or a backend of torch.compile; DeviceError if PyTorch has none of that name."""
    if name is not None:
        known = torch.compiler.list_backends(exclude_tags=())
        if name not in known:
            usual = ", ".join(torch.compiler.list_backends())
            raise DeviceError(f"no compiler {name!r} in PyTorch; give one of {usual}")
    return name


def compiled(call: Callable[Arguments, Result], compiler: str | None) -> Callable[Arguments, Result]:
    """``call`` compiled by a backend of torch.compile, once for inputs of all sizes; itself for None.

    It is compiled when it is first called, and raises DeviceError then if the backend can't work here, most likely for
    want of a C++ compiler or of Triton.
    """
    if compiler is None:
        return call
    checked_compiler(compiler)
    from torch._dynamo.exc import TorchDynamoException

    fast = torch.compile(call, backend=compiler, dynamic=True)

    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return fast(*args, **kwargs)
        except TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise DeviceError(f"the compiler {compiler} can't be used here: {reason}") from error

    return run


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; on a GPU by way of pinned memory, so that the processor needn't wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
