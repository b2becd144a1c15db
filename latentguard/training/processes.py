"""The processes that train one layer together: one, or as many as ``accelerate launch`` or ``torchrun`` started.

All of them hold the same weights and draw the same batch, whole. Each computes the scores of its share of the prompts
against all concepts of the batch; the shares are put together before the loss, which therefore sees every negative of
the batch, as it would in a single process. A process's gradient is that of its own share, and their sum is the
gradient of the whole. So the number of processes changes how long a training takes, and the weights by no more than
rounding.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentguard.arrays import NumpyDevice, chosen_device
from latentguard.errors import DataError, DeviceError


@dataclass(frozen=True)
class Processes:
    """This process, number ``index`` of ``count``."""

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and tells how far it is."""
        return self.index == 0

    @property
    def share(self) -> slice:
        """This process's share of a list: of neighbours of like length, every process gets as many."""
        return slice(self.index, None, self.count)

    def together(self, part: Tensor, places: Tensor, size: int) -> Tensor:
        """The rows [size, ...] of all processes, from this one's [n, ...] and their places [n] among them.

        The places of all processes are 0 to size - 1, each once. The own rows alone carry a gradient.
        """
        whole = part.new_zeros(size, *part.shape[1:])
        if self.count == 1:
            return whole.index_copy(0, places, part)
        return self._sum(whole.index_copy(0, places, part.detach())).index_copy(0, places, part)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by the sum of all processes', in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        summed = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def check_alike(self, what: str, device: torch.device) -> None:
        """DataError unless ``what`` this process is about to do is what all others are."""
        if self.count == 1:
            return
        digest = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=7).digest(), "big")
        own = torch.zeros(self.count, dtype=torch.int64, device=device)
        own[self.index] = digest
        if bool((self._sum(own) != digest).any()):
            raise DataError("the processes found different data or checkpoints; give them folders that all of them see")

    def _sum(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        summed: Tensor = reduce(tensor, reduction="sum")
        return summed


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """This process among those started with it, which can exchange tensors on ``device`` until the end.

    Raises:
        DeviceError: the processes can't be joined on such a device.
    """
    count = _started()
    if count == 1:
        yield ALONE
        return
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    try:
        if state.num_processes != count or state.device.type != device.type:
            raise DeviceError(f"{count} processes were started, which can't work together on the device {device}")
        yield Processes(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()


def local_device(name: torch.device | str) -> torch.device:
    """The device of that name for this process: of several processes each has the GPU of its own number.

    Raises:
        DeviceError: PyTorch's devices alone can train, and of several processes each needs a GPU, named "cuda".
        EncoderError: PyTorch can't use that device here.
    """
    several = _started() > 1
    if several and str(name) in ("auto", "cuda") and torch.cuda.is_available():
        index = int(os.environ["LOCAL_RANK"])
        if index >= torch.cuda.device_count():
            raise DeviceError(f"process {index} has no GPU of its own: there are {torch.cuda.device_count()}")
        name = f"cuda:{index}"
    elif several and str(name).startswith("cuda:"):
        raise DeviceError(f"{name}: several processes were started, and each takes its own GPU; give the device cuda")
    device = chosen_device(name)
    if isinstance(device, NumpyDevice):
        raise DeviceError(f"{name}: training needs PyTorch, and a device of its")
    return device


def _started() -> int:
    """How many processes the launcher started, by the variable that all of them set."""
    return int(os.environ.get("WORLD_SIZE", "1"))
