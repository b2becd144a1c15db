"""What every text encoder gives to the rest: token states, and the windows they are made from.

A text longer than an encoder's window is never truncated. It is cut into windows that overlap by a quarter of their
content, each wrapped in the encoder's special tokens, so that every token is encoded at least once and a phrase that
falls on a cut is whole in one of the two windows around it (up to a quarter of the window long).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latentguard.arrays import NumpyDevice
from latentguard.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pooling = Literal["mean", "eos", "cls"]
Precision = Literal["int8", "fp32", "bf16", "fp16"]

OVERLAP = 1 / 4
"""Share of a window's content that the next window repeats."""

# Padding included. What a processor's caches hold is encoded twice as fast as what they don't; a GPU wants more.
_TOKENS_AT_A_TIME = {"cpu": 512, "cuda": 16_384}


@dataclass(frozen=True)
class TokenStates:
    """The states of B texts, padded to L tokens; the only thing that leaves an encoder.

    hidden: [B, L, D] float32, at each token the states of the encoder's `layers` one after another, so that D is their
    widths together. mask: [B, L] bool, True at real tokens (special tokens included). pooled: [B, D] float32, made
    from `hidden`. All three are on the encoder's device: tensors, or numpy arrays on `latentguard.arrays.NUMPY`. States
    where `mask` is False mean nothing.
    """

    hidden: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Window:
    """One encoder window of one text.

    ids: the token ids, special tokens included. offsets: for each id its span of characters `[start, end)` in the
    text, (0, 0) for a special token.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class TextEncoder(Protocol):
    """A frozen text encoder: evaluation mode, no gradients, no truncation.

    name: what a weights folder records, and what `load_encoder` takes: "minilm-l6", "hf:ID" or
    "open_clip:ARCH:PRETRAINED". depth: number of layers. layers: those whose states make up `hidden`, rising; 0 is the
    embeddings' output, `depth` the last layer. width: D, the width of one layer times `len(layers)`. window: most
    tokens of one window, special tokens included. pooling: how `pooled` is made from `hidden` (mean over real tokens;
    state at the end-of-text token; state of the first token).
    """

    name: str
    depth: int
    layers: tuple[int, ...]
    width: int
    window: int
    pooling: Pooling
    device: torch.device

    def windows(self, text: str) -> list[Window]:
        """Cut a text into windows that together hold each of its tokens; one for a short or empty text."""
        ...

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        """Token states of B windows, padded to the longest. Batches of similar length waste least."""
        ...

    def encode(self, texts: Sequence[str]) -> TokenStates:
        """Token states of the first window of each text: for concepts and other short texts."""
        ...


@runtime_checkable
class SeveralPasses(TextEncoder, Protocol):
    """An encoder of which several passes may run side by side, each from a thread of its own.

    threads: the processor threads that it may take: of a pass by itself, or of so many passes with one each.
    """

    threads: int

    def windows_of_each(self, texts: Sequence[str]) -> list[list[Window]]:
        """As `windows`, of many texts at once, on several threads where it may take several."""
        ...

    def single_threaded(self) -> TextEncoder:
        """The same encoder, with one thread for each pass."""
        ...


def chosen_layers(encoder: str, layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The layers to take states from: those given, or the last alone for None.

    Raises EncoderError, naming the encoder, unless they are whole numbers that rise strictly, from 0 (the embeddings'
    output) to `depth` (the last layer), and at least one.
    """
    if layers is None:
        return (depth,)
    chosen = tuple(layers)
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer <= depth for layer in chosen)
    if not chosen or not whole or list(chosen) != sorted(set(chosen)):
        raise EncoderError(f"{encoder}: layers are numbers from 0 to {depth} that rise; got {list(chosen)}")
    return chosen


def split_windows(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    *,
    window: int,
    prefix: Sequence[int],
    suffix: Sequence[int],
) -> list[Window]:
    """Cut the tokens of a text, given without special tokens, into overlapping windows.

    Each window is `prefix`, then at most `window - len(prefix) - len(suffix)` tokens, then `suffix`. Neighbours share
    at least `OVERLAP` of their content; the last window ends at the last token and so may share more. Raises
    ValueError when the special tokens leave no room.
    """
    content = window - len(prefix) - len(suffix)
    if content < 1:
        raise ValueError(f"a window of {window} tokens has no room beside {len(prefix) + len(suffix)} special tokens")
    step = content - int(content * OVERLAP)
    last = max(0, len(ids) - content)
    starts = [*range(0, last, step), last]
    return [
        Window(
            ids=(*prefix, *ids[start : start + content], *suffix),
            offsets=(*[(0, 0)] * len(prefix), *offsets[start : start + content], *[(0, 0)] * len(suffix)),
        )
        for start in starts
    ]


def batches(lengths: Sequence[int], device: torch.device | NumpyDevice, *, at_least: int = 1) -> Iterator[list[int]]:
    """The places of all windows of these lengths, in batches of like ones, as large as suits the device.

    at_least: where there are so many windows, smaller batches, so that there are so many of them.
    """
    tokens = min(_TOKENS_AT_A_TIME.get(device.type, _TOKENS_AT_A_TIME["cuda"]), max(1, sum(lengths) // at_least))
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padded(
    windows: Sequence[Window], pad_id: int, *, length: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids [B, L] and mask [B, L] of B windows, padded on the right to `length`, or to the longest.

    Raises ValueError when there is no window, or one is longer than `length`.
    """
    if not windows:
        raise ValueError("no window to encode")
    longest = max(len(window.ids) for window in windows)
    size = longest if length is None else length
    if size < longest:
        raise ValueError(f"a window of {longest} tokens doesn't fit into {size}")
    lengths = np.array([len(window.ids) for window in windows])
    rows = [[*window.ids, *[pad_id] * (size - len(window.ids))] for window in windows]
    return np.array(rows, dtype=np.int64), np.arange(size) < lengths[:, None]


def pad_windows(windows: Sequence[Window], pad_id: int, *, length: int | None = None) -> tuple[Tensor, Tensor]:
    """What :func:`padded` gives, as tensors on the CPU: int64 and bool."""
    import torch

    ids, mask = padded(windows, pad_id, length=length)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, D] of the states [B, L, D] where the mask [B, L] is True."""
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def last_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state [B, D] at the last position of each row where the mask [B, L] is True, its end-of-text token."""
    import torch

    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
