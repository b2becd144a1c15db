"""Token states on disk: a frozen encoder's output is computed once per text and read back in milliseconds.

A cache folder belongs to one encoder and holds

    meta.json    format version, and the encoder's name, width, layers and precision
    states.f16   [rows, D] float16, little-endian, append only: for each text its pooled state, then its L token states
    index.bin    28 bytes per text: blake2b-16 of the text, uint64 first row, uint32 number of rows (1 + L)
    lock         held by the one process that may write

States reach the disk before the index records that point at them. A writer that dies at any moment thus leaves a
usable cache: the next one to hold the lock cuts off a partial record, and states that no record points at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from latentguard.encoders.base import TextEncoder, Window
from latentguard.errors import DataError, EncoderError
from latentguard.files import atomic_path

FORMAT = 2
BATCHES_SORTED = 32  # texts of so many batches are sorted by length together, so that little is padded
_KEY_BYTES = 16
_RECORD = np.dtype([("key", f"V{_KEY_BYTES}"), ("first", "<u8"), ("rows", "<u4")])
_STATE = np.dtype("<f2")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class FillReport:
    """What `fill` did: `texts` distinct ones asked for, of which `encoded` were new.

    Of the new ones, `shortened` were longer than the encoder's window; their first window alone is kept.
    """

    texts: int
    encoded: int
    shortened: int


class TokenStateCache:
    """The token states of many texts under one encoder.

    Entries are numbered in the order in which they were written, and keep their numbers: map texts to numbers once
    with `positions`, then `gather` batches by number. `width` is the encoder's D.
    """

    def __init__(self, folder: str | Path, encoder: TextEncoder) -> None:
        """Opens the cache in `folder`, or makes it.

        Raises EncoderError if the folder belongs to another encoder, DataError if it is no cache or can't be used.
        """
        self.folder = Path(folder)
        self.width = encoder.width
        self._encoder = encoder
        self._states_path = self.folder / "states.f16"
        self._index_path = self.folder / "index.bin"
        self._row_bytes = self.width * _STATE.itemsize
        with _naming(self.folder, "can't be opened"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            try:
                with self._lock.acquire(timeout=0):
                    self._check_meta()
                    self._renew()
            except Timeout:  # another process is filling it: what it has finished can be read all the same
                self._check_meta()
                self._load()

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._first)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._entries

    def fill(self, texts: Iterable[str], batch_size: int = 64, progress: bool = True) -> FillReport:
        """Encode and store the texts that are not there yet; waits while another process fills the same cache.

        Interrupted at any moment, it keeps what was finished, and the next call goes on from there. A progress bar
        shows on a terminal's stderr unless `progress` is false. Raises DataError if the states can't be written (disk
        full), EncoderError if float16 can't hold them.
        """
        wanted = list(dict.fromkeys(texts))
        encoded = shortened = 0
        with self._writing():
            missing = [text for text in wanted if text not in self]
            bar = tqdm(total=len(missing), desc="encoding", unit="text", disable=None if progress else True)
            with bar:
                for chunk in _chunks(missing, batch_size * BATCHES_SORTED):
                    windows = [self._encoder.windows(text) for text in chunk]
                    shortened += sum(len(several) > 1 for several in windows)
                    by_length = sorted(range(len(chunk)), key=lambda row: len(windows[row][0].ids))
                    for rows in _chunks(by_length, batch_size):
                        self._append([chunk[row] for row in rows], [windows[row][0] for row in rows])
                        encoded += len(rows)
                        bar.update(len(rows))
        return FillReport(len(wanted), encoded, shortened)

    def positions(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The entry numbers of texts [len(texts)]. Raises DataError if one is missing."""
        try:
            return np.fromiter((self._entries[_key(text)] for text in texts), dtype=np.int64, count=len(texts))
        except KeyError:
            missing = sum(text not in self for text in texts)
            raise DataError(f"{self.folder}: {missing} of {len(texts)} texts are not in the cache") from None

    def lengths(self, entries: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """How many states each entry has [len(entries)], the pooled one included."""
        lengths: NDArray[np.int64] = self._rows[np.asarray(entries, dtype=np.int64)].astype(np.int64)
        return lengths

    def gather(
        self,
        entries: Sequence[int] | NDArray[np.int64],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """States [B, L, D] and mask [B, L] (bool) of B entries: the pooled state first, then the tokens, then zeros.

        L is 1 + the most tokens among the entries. Raises IndexError for a number that is no entry.
        """
        on_gpu = torch.device(device).type == "cuda"
        half, mask = self.read(entries, pinned=on_gpu)
        return half.to(device, non_blocking=on_gpu).to(dtype), mask.to(device, non_blocking=on_gpu)

    def read(self, entries: Sequence[int] | NDArray[np.int64], *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """What :meth:`gather` gives, as the float16 that is stored, in the processor's memory.

        pinned: in pages that a GPU can copy from while the processor goes on.
        """
        numbers = np.asarray(entries, dtype=np.int64)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"entries are numbered from 0 to {len(self) - 1}")
        first, rows = self._first[numbers], self._rows[numbers]
        longest = int(rows.max(initial=0))
        shape = (len(numbers), longest, self.width)
        # On a CPU numpy's zeros are the faster ones where other processes keep the cores busy.
        half = (
            torch.zeros(shape, dtype=torch.float16, pin_memory=True)
            if pinned
            else torch.from_numpy(np.zeros(shape, dtype=np.float16))
        )
        target = half.numpy()
        for row, (start, count) in enumerate(zip(first.tolist(), rows.tolist(), strict=True)):
            target[row, :count] = self._states[start : start + count]
        mask = torch.from_numpy(np.arange(longest) < rows[:, None])
        return half, mask.pin_memory() if pinned else mask

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock, see what others wrote, and leave whole files behind, whatever happens in between."""
        with self._lock:
            self._renew()
            try:
                yield
            finally:
                self._renew()

    def _renew(self) -> None:
        with _naming(self.folder, "can't be written"):
            self._load()
            self._mend()

    def _append(self, texts: Sequence[str], windows: Sequence[Window]) -> None:
        states = self._encoder.encode_windows(windows)
        hidden = torch.cat([states.pooled[:, None], states.hidden], dim=1)
        mask = torch.cat([states.mask.new_ones(len(texts), 1), states.mask], dim=1)
        packed = hidden[mask].to(device="cpu", dtype=torch.float16)
        if not bool(packed.isfinite().all()):
            raise EncoderError(f"{self._encoder.name}: a token state is not a number that float16 can hold")
        records = np.empty(len(texts), dtype=_RECORD)
        rows = mask.sum(dim=1).cpu().numpy()
        records["key"] = [np.void(_key(text)) for text in texts]
        records["rows"] = rows
        records["first"] = self._written + np.concatenate([[0], rows.cumsum()[:-1]])
        with _naming(self.folder, "can't be written"):
            _append_bytes(self._states_path, packed.numpy().astype(_STATE, copy=False).tobytes())
            _append_bytes(self._index_path, records.tobytes())
        self._written += int(rows.sum())

    def _check_meta(self) -> None:
        path = self.folder / "meta.json"
        mine = {
            "format": FORMAT,
            "encoder": self._encoder.name,
            "width": self.width,
            "layers": list(self._encoder.layers),
            "window": self._encoder.window,  # of a longer text the first window is kept
            "precision": getattr(self._encoder, "precision", None),  # int8 states are not fp32 states
        }
        if not path.exists():
            if self._index_path.exists() or self._states_path.exists():
                raise DataError(f"{path}: missing, so the encoder of these states is unknown")
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DataError(f"{path}: not a token state cache of format {FORMAT}")
        if found != mine:
            raise EncoderError(
                f"{self.folder}: holds the states of another encoder ({found.get('encoder')!r}) than "
                f"{self._encoder.name!r}, or of another width, window, precision or other layers"
            )

    def _load(self) -> None:
        """Read the index as far as it is whole and its states are there."""
        stored = self._states_path.stat().st_size // self._row_bytes if self._states_path.exists() else 0
        content = self._index_path.read_bytes() if self._index_path.exists() else b""
        records = np.frombuffer(content, dtype=_RECORD, count=len(content) // _RECORD.itemsize)
        rows = records["rows"].astype(np.int64)
        ends = rows.cumsum()
        whole = (records["first"].astype(np.int64) == ends - rows) & (rows > 0) & (ends <= stored)
        count = len(whole) if whole.all() else int(np.argmin(whole))
        self._first, self._rows = (ends - rows)[:count], rows[:count]
        self._written = int(ends[count - 1]) if count else 0
        self._entries = {key: number for number, key in enumerate(records["key"][:count].tolist())}
        self._states: NDArray[np.float16] = np.zeros((0, self.width), dtype=_STATE)
        if self._written:
            shape = (self._written, self.width)
            self._states = np.asarray(np.memmap(self._states_path, dtype=_STATE, mode="r", shape=shape))

    def _mend(self) -> None:
        """Cut the files to what `_load` found whole; only under the lock."""
        for path, size in (
            (self._index_path, len(self) * _RECORD.itemsize),
            (self._states_path, self._written * self._row_bytes),
        ):
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def _append_bytes(path: Path, content: bytes) -> None:
    """Write at the end of a file, and return when the bytes are on the disk."""
    with path.open("ab", buffering=0) as file:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _naming(folder: Path, what: str) -> Iterator[None]:
    """Turn a failure of the file system (disk full, no right) into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: the token state cache {what}: {error.strerror or type(error).__name__}") from error
