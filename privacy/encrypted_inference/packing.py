"""How an image lies in the slots of one ciphertext, and which rotations and products evaluate the network on it.

An image is a vector whose slot ``tap · W + window`` holds the pixel under that tap of the kernel at that window (W is
the number of windows, rounded up to a power of two), repeated until the slots are full. The client sends it with the
few rotations of it that the convolution needs: they cost the server nothing then, and carry less noise.

Each linear layer is a sum of the vector rotated, times a plaintext, evaluated by baby and giant steps (Halevi and
Shoup, "Faster homomorphic linear transformations in HElib", CRYPTO 2018), and folds: the sum of a vector and its own
rotation, which halve what is left to add up. Wherever a layer's plaintexts are zero, what stands in the slots doesn't
matter. The last layer's folds go round all slots, so that an answer holds the logits and nothing else of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privacy.encrypted_inference.weights import MAX_CLASSES, Architecture, Floats, Weights, windows_of
from privacy.errors import ModelError


@dataclass(frozen=True)
class Schedule:
    """The rotations of one layer: babies ``step`` apart, giants ``step · babies`` apart, then the ``folds``.

    It depends on the network's shape alone, so a client knows from it which rotation keys a server needs.
    """

    step: int
    babies: int
    giants: int
    folds: tuple[int, ...]

    @property
    def diagonals(self) -> int:
        return self.babies * self.giants

    @property
    def rotations(self) -> int:
        """How many rotations the layer costs."""
        return self.babies - 1 + self.giants - 1 + len(self.folds)

    @property
    def keys(self) -> frozenset[int]:
        """The steps for which it needs a rotation key."""
        baby = {self.step} if self.babies > 1 else set()
        giant = {self.step * self.babies} if self.giants > 1 else set()
        return frozenset(baby | giant | set(self.folds))


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A layer ready to evaluate: ``plaintexts`` [giants, babies, slots] and ``bias`` [slots]."""

    schedule: Schedule
    plaintexts: Floats
    bias: Floats


class Packing:
    """The places of everything for one architecture in ciphertexts of ``slots`` slots."""

    def __init__(self, architecture: Architecture, slots: int) -> None:
        """Raises ModelError if the architecture doesn't fit in the slots."""
        self.architecture = architecture
        self.slots = slots
        # The slots of a tap's windows, and of a channel's; the hidden layer needs twice as many inputs as outputs.
        self._width = max(_power_of_two(architecture.windows), 2 * architecture.hidden // architecture.channels)
        self._taps = max(_power_of_two(architecture.taps), architecture.channels)
        self._features = architecture.channels * self._width
        if self._taps * self._width > slots:
            needed = self._taps * self._width
            raise ModelError(f"architecture: its windows need {needed} slots, and a ciphertext has {slots}")
        folds = range(int(math.log2(self._taps // architecture.channels)))
        self.convolution = _schedule(self._width, architecture.channels, tuple(self._features << i for i in folds))
        self.hidden = self._hidden_schedule()
        all_classes = range(int(math.log2(slots // MAX_CLASSES)))
        self.output = _schedule(1, MAX_CLASSES, tuple(MAX_CLASSES << i for i in all_classes))

    @property
    def keys(self) -> tuple[int, ...]:
        """The rotations that a server needs keys for, in slots to the left."""
        convolution = self.convolution.keys - {self.convolution.step}
        return tuple(sorted(convolution | self.hidden.keys | self.output.keys))

    @property
    def copies(self) -> int:
        """How many ciphertexts an image is."""
        return self.convolution.babies

    def encode(self, image: Floats) -> Floats:
        """The slots of an image [side, side] and of its rotations, [copies, slots]."""
        block = np.zeros((self._taps, self._width))
        block[: self.architecture.taps, : self.architecture.windows] = windows_of(self.architecture, image[None])[0]
        vector = np.tile(block.ravel(), self.slots // block.size)
        return np.stack([np.roll(vector, -self.convolution.step * copy) for copy in range(self.copies)])

    def decode(self, values: Floats) -> tuple[Floats, float]:
        """The logits [classes] in the slots of an answer, and how far the slots are from how an answer looks.

        An answer repeats sixteen slots, logits first and zeros after them. The distance is the largest difference
        between two repetitions, or of a zero from zero.
        """
        repeated = values.reshape(-1, MAX_CLASSES)
        logits = repeated.mean(axis=0)
        classes = self.architecture.classes
        away = max(float(np.ptp(repeated, axis=0).max()), float(np.abs(repeated[:, classes:]).max(initial=0)))
        return logits[:classes], away

    def layers(self, weights: Weights) -> tuple[PackedLayer, PackedLayer, PackedLayer]:
        """The three linear layers of the network, ready to evaluate."""
        return self._pack_convolution(weights), self._pack_hidden(weights), self._pack_output(weights)

    def _hidden_schedule(self) -> Schedule:
        """The fewest babies whose giants fit beside one another.

        Giant g of an output q stands in slot q + stride · g and meets the features from there on. With a stride of
        outputs + babies the giants meet, modulo the features, every multiple of ``babies`` once.
        """
        outputs, babies = self.architecture.hidden, 1
        while babies < self._features:
            giants = self._features // babies
            stride = outputs + babies
            if outputs > babies and stride * (giants - 1) + outputs <= self.slots:
                return _schedule(1, babies, tuple(stride << i for i in range(int(math.log2(giants)))))
            babies *= 2
        raise ModelError("architecture: the hidden layer doesn't fit in a ciphertext")

    def _pack_convolution(self, weights: Weights) -> PackedLayer:
        shape, schedule = self.architecture, self.convolution
        slot = np.arange(self.slots)
        tap, window = (slot // self._width) % self._taps, slot % self._width
        channel = tap % shape.channels
        kernels = np.zeros((shape.channels, self._taps))
        kernels[:, : shape.taps] = weights.convolution.weight
        diagonals = np.stack(
            [
                np.where(window < shape.windows, kernels[channel, (tap + shift) % self._taps], 0)
                for shift in range(schedule.diagonals)
            ]
        )
        bias = np.where(window < shape.windows, weights.convolution.bias[channel], 0)
        return PackedLayer(schedule, _by_giants(schedule, diagonals), bias)

    def _pack_hidden(self, weights: Weights) -> PackedLayer:
        shape, schedule = self.architecture, self.hidden
        matrix = np.zeros((shape.hidden, shape.channels, self._width))
        matrix[:, :, : shape.windows] = weights.hidden.weight.reshape(shape.hidden, shape.channels, shape.windows)
        rows = matrix.reshape(shape.hidden, self._features)
        diagonals = np.zeros((schedule.diagonals, self.slots))
        outputs = np.arange(shape.hidden)
        stride = shape.hidden + schedule.diagonals
        for giant in range(self._features // schedule.diagonals):
            slot = outputs + stride * giant
            for shift in range(schedule.diagonals):
                diagonals[shift, slot] = rows[outputs, (slot + shift) % self._features]
        return PackedLayer(schedule, _by_giants(schedule, diagonals), self._padded(weights.hidden.bias))

    def _pack_output(self, weights: Weights) -> PackedLayer:
        schedule = self.output
        matrix = np.zeros((MAX_CLASSES, self.architecture.hidden))
        matrix[: self.architecture.classes] = weights.output.weight
        diagonals = np.zeros((schedule.diagonals, self.slots))
        inputs = np.arange(self.architecture.hidden)
        for shift in range(schedule.diagonals):
            slot = (inputs - shift) % self.slots
            diagonals[shift, slot] = matrix[slot % MAX_CLASSES, inputs]
        bias = np.zeros(MAX_CLASSES)
        bias[: self.architecture.classes] = weights.output.bias
        return PackedLayer(schedule, _by_giants(schedule, diagonals), np.tile(bias, self.slots // MAX_CLASSES))

    def _padded(self, values: Floats) -> Floats:
        return np.concatenate([values, np.zeros(self.slots - len(values))])


def apply(layer: PackedLayer, slots: Floats) -> Floats:
    """What the layer makes of a vector [slots], in the clear and step by step as on a ciphertext."""
    schedule = layer.schedule
    babies = [slots]
    while len(babies) < schedule.babies:
        babies.append(np.roll(babies[-1], -schedule.step))
    total = np.zeros_like(slots)
    for plaintexts in layer.plaintexts[::-1]:
        total = np.roll(total, -schedule.step * schedule.babies) + sum(
            plaintext * baby for plaintext, baby in zip(plaintexts, babies, strict=True)
        )
    for fold in schedule.folds:
        total = total + np.roll(total, -fold)
    folded: Floats = total + layer.bias
    return folded


def _schedule(step: int, diagonals: int, folds: tuple[int, ...]) -> Schedule:
    babies = 1 << math.ceil(math.log2(diagonals) / 2)
    return Schedule(step, babies, diagonals // babies, folds)


def _by_giants(schedule: Schedule, diagonals: Floats) -> Floats:
    """Diagonals [giants · babies, slots] as [giants, babies, slots], each turned back by what its giant step turns."""
    turned = [
        np.roll(diagonal, (place // schedule.babies) * schedule.babies * schedule.step)
        for place, diagonal in enumerate(diagonals)
    ]
    return np.stack(turned).reshape(schedule.giants, schedule.babies, -1)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
