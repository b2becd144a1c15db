"""How far a run is, on a terminal."""

from __future__ import annotations

from tqdm import tqdm


class Progress:
    """A bar with the prompts a second and the time that is left, told from how much of the inputs' bytes are read.

    Args:
        size: the bytes of all inputs.
        rows, read: the rows that an earlier run did, and the bytes that they took; they don't count for the speed.
        shown: whether it is wanted; even then, it is shown on a terminal only.
    """

    def __init__(self, size: int, *, rows: int = 0, read: int = 0, shown: bool = True) -> None:
        self._size = size
        self._rows = rows
        self._read = read
        hidden = None if shown else True  # None: shown where standard error is a terminal
        self._bar = tqdm(
            desc="screening", unit=" prompts", total=self.expected, initial=rows, disable=hidden, leave=False
        )

    def advance(self, rows: int, read: int) -> None:
        """Rows of so many bytes are done."""
        self._rows += rows
        self._read += read
        self._bar.total = self.expected
        self._bar.update(rows)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    @property
    def expected(self) -> int | None:
        """How many rows the inputs have, as far as it can be told; None before the first."""
        # The rest has as many rows a byte as what was read, as far as anybody can know.
        return max(self._rows, round(self._rows * self._size / self._read)) if self._read else None
