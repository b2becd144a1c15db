"""Search in a large concept bank: score the concepts that can decide, instead of all of them.

Concepts whose queries are alike attend to a prompt alike. So the bank is parted into cells by spherical k-means
(Dhillon and Modha, Machine Learning 42, 2001) on the query side of the mapping layer, and of a prompt only what the
centre u_j of each cell sees of it is computed. Every concept c of cell j is then estimated by its own direction,

    cos(v'_c, q'_c)  ≈  cos(v'_j, q'_c),

with its own scale, category and threshold: 128 products instead of a whole attention. The concepts with the highest
estimated margins, and all whose names the prompt spells out, get their exact scores. That is the inverted file with
re-ranking of nearest-neighbour search (Jégou, Douze and Schmid, TPAMI 33, 2011), for a score that is no inner product.

How far to look is not a fixed number. While the best concept left out, raised by twice the largest error that the
estimate made among those scored, could still decide, more are scored, and in the end all: a doubt costs time, no block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentguard.arrays import Array, NumpyDevice, as_numpy, placed
from latentguard.bank import BankSnapshot
from latentguard.errors import EncoderError
from latentguard.lite.heads import evidence_of_harm
from latentguard.lite.layers import Linear, softmax
from latentguard.onnx_scoring import OnnxScoring, ReadStates

if TYPE_CHECKING:
    import torch

    from latentguard.heads import Heads
    from latentguard.mapping import ConceptQueries, MappingLayer

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

_CONCEPTS_PER_CELL = 50
_ROUNDS = 6  # of k-means
_SAMPLE_PER_CELL = 15  # concepts that a cell's centre is learned from
_ROWS_AT_A_TIME = 4096
_FIRST = 1000  # concepts scored at first
_GROWTH = 4  # and so many times as many each time that they don't do
_CAUTION = 2  # times the largest error seen, by which a concept left out may be better than its estimate
_MOST = 4  # scoring one concept in so many one by one takes as long as scoring all


@dataclass(frozen=True)
class Named:
    """The concepts that a prompt spells out, by their places in the bank, and what that adds to each one's score."""

    places: Places
    added: Floats


@dataclass(frozen=True)
class Cells:
    """A bank of N concepts parted into K cells. It never changes.

    Attributes:
        concepts: the bank's concepts.
        built_with: how many concepts the centres were learned from.
        mean: of the concepts' queries [H·d].
        centres: unit vectors [K, H·d + O] in the space where cells are made: see :func:`_features`.
        queries: the mean query of each cell's concepts [H, d, K].
        cell_of: the cell of each concept [N].
        order: the concepts' places, cell by cell [N].
        queries_of: of each cell the queries of its concepts [n, H·d], in the same order, a concept's side by side: in
            the bank they are far from each other, and picking a thousand concepts takes ten times as long.
        directions: of each cell the directions of its concepts [n, O], likewise.
    """

    concepts: tuple[object, ...]
    built_with: int
    mean: Floats
    centres: Floats
    queries: Floats
    cell_of: NDArray[np.int32]
    order: Places
    queries_of: tuple[Floats, ...]
    directions: tuple[Floats, ...]

    @classmethod
    def of(cls, snapshot: BankSnapshot) -> Cells:
        """A bank parted anew. The same for the same bank."""
        count, query = len(snapshot.concepts), as_numpy(snapshot.queries.query)
        flat = query.reshape(-1, count)
        mean = flat.mean(axis=1, dtype=np.float32)
        cells = max(1, count // _CONCEPTS_PER_CELL)
        chosen = np.random.default_rng(0).permutation(count)[: cells * _SAMPLE_PER_CELL]
        sample = _features(snapshot, chosen, mean)
        centres = sample[:cells].copy()
        for _ in range(_ROUNDS):
            sums = np.zeros_like(centres)
            np.add.at(sums, _nearest(sample, centres), sample)
            # A cell that has lost all its concepts keeps its centre.
            centres = np.where(sums.any(axis=1, keepdims=True), _unit(sums), centres)
        cell_of = _cells_of(snapshot, np.arange(count), mean, centres)
        order, starts = _by_cell(cell_of, cells)
        queries_of = np.split(np.ascontiguousarray(flat.T)[order], starts[1:])
        # Of a cell without concepts nothing is estimated, so its query doesn't matter.
        centre_queries = np.stack([of.sum(axis=0) / np.float32(max(1, len(of))) for of in queries_of], axis=1)
        directions = np.split(as_numpy(snapshot.queries.direction)[order], starts[1:])
        return cls(
            snapshot.concepts,
            count,
            mean,
            centres,
            centre_queries.reshape(*query.shape[:2], cells),
            cell_of,
            order,
            tuple(queries_of),
            tuple(directions),
        )

    def of_changed(self, snapshot: BankSnapshot) -> Cells:
        """The cells of what the bank has become: the centres stay, only the cells of what came or went are made anew.

        A bank that has doubled since its cells were made, or lost half, is parted anew.
        """
        count = len(snapshot.concepts)
        if not self.built_with / 2 <= count <= self.built_with * 2:
            return Cells.of(snapshot)
        before = {id(concept): place for place, concept in enumerate(self.concepts)}
        came_from = np.array([before.get(id(concept), -1) for concept in snapshot.concepts], dtype=np.int64)
        new = np.flatnonzero(came_from < 0)
        cell_of = self.cell_of[came_from]
        cell_of[new] = _cells_of(snapshot, new, self.mean, self.centres)
        gone = np.ones(len(self.concepts), dtype=bool)
        gone[came_from[came_from >= 0]] = False
        changed = {*cell_of[new].tolist(), *self.cell_of[gone].tolist()}
        order, starts = _by_cell(cell_of, len(self.centres))
        if (np.diff(came_from[came_from >= 0]) < 0).any():  # concepts that stayed have changed places among themselves
            changed = set(range(len(self.centres)))
        direction, query = as_numpy(snapshot.queries.direction), as_numpy(snapshot.queries.query).reshape(-1, count)
        queries_of, directions, members = list(self.queries_of), list(self.directions), np.split(order, starts[1:])
        for cell in changed:
            queries_of[cell] = np.ascontiguousarray(query[:, members[cell]].T)
            directions[cell] = direction[members[cell]]
        return Cells(
            snapshot.concepts,
            self.built_with,
            self.mean,
            self.centres,
            self.queries,
            cell_of,
            order,
            tuple(queries_of),
            tuple(directions),
        )

    def rows(self, places: Places) -> tuple[Floats, Floats]:
        """Queries [H, d, n] and directions [n, O] of the concepts at these places."""
        heads, width, _ = self.queries.shape
        cells = self.cell_of[places]
        in_cell = self.place_in_cell[places].tolist()
        picked = list(zip(cells.tolist(), in_cell, strict=True))
        query = np.empty((len(picked), heads * width), dtype=np.float32)
        direction = np.empty((len(picked), self.directions[0].shape[1]), dtype=np.float32)
        for row, (cell, place) in enumerate(picked):
            query[row], direction[row] = self.queries_of[cell][place], self.directions[cell][place]
        return np.ascontiguousarray(query.T).reshape(heads, width, -1), direction

    @cached_property
    def place_in_cell(self) -> Places:
        """The place of each concept [N] among those of its cell."""
        found = np.empty_like(self.order)
        for part in np.split(self.order, np.cumsum([len(of) for of in self.directions])[:-1]):
            found[part] = np.arange(len(part))
        return found

    def estimates(self, seen: Floats) -> Floats:
        """What the mapping layer scores each concept [N], roughly, from how each centre sees a prompt, seen [K, O]."""
        found = np.empty(len(self.order), dtype=np.float32)
        found[self.order] = np.concatenate([of @ by for of, by in zip(self.directions, seen, strict=True)])
        return found


class _Window(NamedTuple):
    """A window's z [1, L', D] and mask [1, L'], what they were read to, and the evidence of harm [1, K + 1] or None."""

    z: Array
    mask: Array
    read: ReadStates
    harm: Floats | None


class ConceptSearch:
    """Finds the concept that decides on a prompt without scoring all of a large bank. Any thread may use it.

    The cells are made when a bank is first searched (some ten seconds for 100,000 concepts), and kept up with it.
    """

    def __init__(
        self,
        mapping: MappingLayer,
        heads: Heads | None,
        device: torch.device | NumpyDevice,
        smallest: int,
        scoring: OnnxScoring | None = None,
    ) -> None:
        """``smallest`` is the number of concepts from which on a bank is searched; ``scoring`` gives what the mapping
        layer does, on one thread, so that prompts can be searched for side by side."""
        self._smallest = smallest
        self._scoring = scoring
        self._mapping = mapping
        self._heads = heads
        self._device = device
        self._lock = threading.Lock()
        self._cells: Cells | None = None
        weights = {name: as_numpy(tensor) for name, tensor in mapping.state_dict().items()}
        shape = mapping.shape
        self._key, self._value = (_linear(weights, name) for name in ("to_key", "to_value"))
        output = _linear(weights, "value_output")
        self._output = Linear(output.weight.reshape(shape.heads, shape.head_width, shape.output), output.bias)

    def takes(self, snapshot: BankSnapshot) -> bool:
        """Whether the bank is large enough to be searched."""
        return len(snapshot.concepts) >= self._smallest

    def cells(self, snapshot: BankSnapshot) -> Cells:
        """The cells of a bank."""
        with self._lock:
            if self._cells is None:
                self._cells = Cells.of(snapshot)
            elif self._cells.concepts is not snapshot.concepts:
                self._cells = self._cells.of_changed(snapshot)
            return self._cells

    def scores(
        self,
        snapshot: BankSnapshot,
        windows: Sequence[tuple[Array, Array]],
        named: Named,
        thresholds: Floats | np.float32,
        enabled: Sequence[bool] | None = None,
        enough: float = 0.0,
    ) -> Floats:
        """One prompt's scores [N]: exact where the concept can decide, minus infinity where it wasn't scored.

        Args:
            snapshot: the bank.
            windows: the prompt's windows, z [1, L', D] and mask [1, L'] of each.
            named: the concepts that the prompt spells out; they are scored whatever their estimate.
            thresholds: of each concept [N], or of all. What is looked for is the score furthest above its own one.
            enabled: which of the prompt head's categories [K] count; None for all.
            enough: margins below this one need not be found.

        Raises:
            EncoderError: a score is not a finite number.
        """
        cells = self.cells(snapshot)
        read = [self._read(z, mask, enabled) for z, mask in windows]
        every = slice(None)
        estimated = _highest(
            _finite(self._combined(snapshot, every, cells.estimates(self._seen(cells, one)), one.harm)) for one in read
        )
        limits = np.broadcast_to(thresholds, estimated.shape)
        margins = estimated - limits
        found = np.full(len(cells.concepts), -np.inf, dtype=np.float32)
        added = np.zeros_like(found)
        added[named.places] = named.added
        promising, count, largest_error = margins.copy(), _FIRST, 0.0
        promising[named.places] = np.inf  # always among the first
        count += len(named.places)
        done: Places = np.empty(0, dtype=np.int64)
        while len(done) < len(found):
            if count * _MOST >= len(found):
                count = len(found)
            first = np.argpartition(-promising, count - 1)[:count] if count < len(found) else np.arange(count)
            places = np.setdiff1d(first, done)
            exact = self._exact(snapshot, cells, places, read)
            found[places] = exact + added[places]
            largest_error = max(largest_error, float((exact - estimated[places]).max(initial=0)))
            done = np.concatenate([done, places])
            best = float((found[done] - limits[done]).max())
            promising[places] = np.inf
            left = margins.copy()
            left[done] = -np.inf
            if float(left.max(initial=-np.inf)) + _CAUTION * largest_error < max(best, enough):
                break
            count *= _GROWTH
        return found

    def _read(self, z: Array, mask: Array, enabled: Sequence[bool] | None) -> _Window:
        states = as_numpy(z)[0][as_numpy(mask)[0]]
        if self._scoring is not None:
            read = self._scoring.read(states[1:], states[0])
            harm = None if read.log_odds is None else evidence_of_harm(read.log_odds[None], enabled)
            return _Window(z, mask, read, harm)
        heads, width, _ = self._output.weight.shape
        keys, values = (
            layer(states).reshape(-1, heads, width).transpose(1, 0, 2) for layer in (self._key, self._value)
        )
        harm = None if self._heads is None else as_numpy(self._heads.harm(z, mask, enabled))
        return _Window(z, mask, ReadStates(keys, values, None), harm)

    def _exact(self, snapshot: BankSnapshot, cells: Cells, places: Places, windows: Sequence[_Window]) -> Floats:
        """The exact scores [n] of the concepts at these places, but for their names."""
        return _highest(
            _finite(self._combined(snapshot, places, self._mapped(snapshot, cells, places, one), one.harm))
            for one in windows
        )

    def _mapped(self, snapshot: BankSnapshot, cells: Cells, places: Places, window: _Window) -> Floats:
        """The mapping layer's scores [n] of a window for concepts at these places."""
        if len(places) * _MOST >= len(cells.concepts):
            return self._scored(snapshot.queries, window)[places]
        query, direction = (placed(part, self._device) for part in cells.rows(places))
        return self._scored(type(snapshot.queries)(query, direction), window)

    def _scored(self, queries: ConceptQueries, window: _Window) -> Floats:
        found = None if self._scoring is None else self._scoring.scores(queries, window.read)
        return as_numpy(self._mapping.score(queries, window.z, window.mask))[0] if found is None else found

    def _combined(self, snapshot: BankSnapshot, rows: Places | slice, scores: Floats, harm: Floats | None) -> Floats:
        """The scores [n] of the mapping layer with the evidence of harm [1, K + 1], for concepts at these rows."""
        if self._heads is None or snapshot.scoring is None or harm is None:
            return scores
        moments, categories = (as_numpy(part)[rows] for part in (snapshot.scoring.moments, snapshot.scoring.categories))
        combined: Floats = self._heads.combination.of_parts(scores, moments, harm[0, categories])
        return combined

    def _seen(self, cells: Cells, window: _Window) -> Floats:
        """How each cell's centre sees a window: the unit vectors v' / |v'| [K, O]."""
        keys, values, _ = window.read
        shares = softmax(keys @ cells.queries, axis=1)
        right = (values @ self._output.weight).reshape(-1, self._output.weight.shape[-1])
        return _unit(shares.reshape(len(right), -1).T @ right + self._output.bias)


def _linear(weights: Mapping[str, np.ndarray], name: str) -> Linear:
    return Linear(np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"])


def _features(snapshot: BankSnapshot, places: Places, mean: Floats) -> Floats:
    """Unit vectors [n, H·d + O] of concepts: query, less the bank's mean, and direction, each of length one before."""
    query = as_numpy(snapshot.queries.query).reshape(len(mean), -1)[:, places].T - mean
    return _unit(np.concatenate([_unit(query), _unit(as_numpy(snapshot.queries.direction)[places])], axis=1))


def _cells_of(snapshot: BankSnapshot, places: Places, mean: Floats, centres: Floats) -> NDArray[np.int32]:
    """The cell of each of these concepts [n]."""
    parts = [
        _nearest(_features(snapshot, places[start : start + _ROWS_AT_A_TIME], mean), centres)
        for start in range(0, len(places), _ROWS_AT_A_TIME)
    ]
    return np.concatenate([np.empty(0, dtype=np.int32), *parts])


def _nearest(features: Floats, centres: Floats) -> NDArray[np.int32]:
    """The centre [n] nearest to each of the features [n, F]."""
    starts = range(0, len(features), _ROWS_AT_A_TIME)
    parts = [(features[start : start + _ROWS_AT_A_TIME] @ centres.T).argmax(axis=1) for start in starts]
    return np.concatenate(parts).astype(np.int32)


def _by_cell(cell_of: NDArray[np.int32], cells: int) -> tuple[Places, Places]:
    """The concepts' places cell by cell [N], rising in each, and where each cell begins [K]."""
    order = np.argsort(cell_of, kind="stable")
    return order, np.searchsorted(cell_of[order], np.arange(cells))


def _unit(vectors: Floats) -> Floats:
    lengths = np.sqrt(np.einsum("no,no->n", vectors, vectors))[:, None]
    unit: Floats = vectors / np.maximum(lengths, np.float32(1e-8))
    return unit


def _highest(of_windows: Iterable[Floats]) -> Floats:
    """Of each concept the highest score [n] over a prompt's windows."""
    highest: Floats = reduce(np.maximum, of_windows)
    return highest


def _finite(scores: Floats) -> Floats:
    if not np.isfinite(scores).all():
        raise EncoderError("a prompt's score is not a finite number, so the prompt can't be judged")
    return scores
