"""The network on ciphertexts, without a secret key: one image in one ciphertext, or thousands in the slots of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.encrypted_inference.packing import PackedLayer, Packing
from privacy.encrypted_inference.parameters import DEFAULT, Parameters
from privacy.encrypted_inference.seal import levels, primes, seal_context, sealapi
from privacy.encrypted_inference.weights import Floats, Layer, Weights, windows_of

_TOP, _SQUARE, _MIDDLE, _LAST = 3, 2, 1, 0  # levels, by how many primes a rescaling could still drop


class PackedEvaluator:
    """Evaluates a network on one image in one ciphertext, laid out by `Packing`.

    Everything that depends on the weights is encoded once, here.
    """

    def __init__(self, weights: Weights, parameters: Parameters = DEFAULT) -> None:
        context = seal_context(parameters)
        self._evaluator = sealapi.Evaluator(context)
        self._packing = Packing(weights.architecture, parameters.slots)
        encoder, names, moduli = sealapi.CKKSEncoder(context), levels(parameters), primes(parameters)
        first, second, third = self._packing.layers(weights)
        scale, bits = 2.0**parameters.image_scale, [2.0**bits for bits in parameters.weight_scales]
        after = scale * bits[0] / moduli[_TOP]
        self._first = _EncodedLayer(encoder, first, names[_TOP], bits[0], names[_SQUARE], after)
        scale = after**2 / moduli[_SQUARE]
        after = scale * bits[1]
        self._second = _EncodedLayer(encoder, second, names[_MIDDLE], bits[1], names[_MIDDLE], after)
        scale = after**2 / moduli[_MIDDLE]
        self._third = _EncodedLayer(encoder, third, names[_LAST], bits[2], names[_LAST], scale * bits[2])

    def __call__(self, image: Sequence[Any], relin: Any, galois: Any) -> Any:
        """The ciphertext of the logits, of an image's ciphertexts at the top level."""
        evaluator = self._evaluator
        second, third = self._second, self._third
        values = self._first(evaluator, image, galois)
        self._square(values, relin)
        values = second(evaluator, second.babies(evaluator, values, galois), galois)
        self._square(values, relin)
        return third(evaluator, third.babies(evaluator, values, galois), galois)

    def _square(self, values: Any, relin: Any) -> None:
        self._evaluator.square_inplace(values)
        self._evaluator.relinearize_inplace(values, relin)
        self._evaluator.rescale_to_next_inplace(values)


class _EncodedLayer:
    """A packed layer's plaintexts as SEAL multiplies by them; None where a whole plaintext is zero.

    The products are at ``level``; if the sum is to be at the next one, ``after``, it is rescaled before the folds.
    """

    def __init__(
        self, encoder: Any, layer: PackedLayer, level: Any, weight_scale: float, after: Any, scale: float
    ) -> None:
        self._schedule = layer.schedule
        self._rescales = after != level
        self._plaintexts = [
            [_encoded(encoder, slots, level, weight_scale) if slots.any() else None for slots in row]
            for row in layer.plaintexts
        ]
        self._bias = _encoded(encoder, layer.bias, after, scale)

    def babies(self, evaluator: Any, values: Any, galois: Any) -> list[Any]:
        """The vector and its rotations, as the layer multiplies them."""
        babies = [values]
        while len(babies) < self._schedule.babies:
            baby = sealapi.Ciphertext()
            evaluator.rotate_vector(babies[-1], self._schedule.step, galois, baby)
            babies.append(baby)
        return babies

    def __call__(self, evaluator: Any, babies: Sequence[Any], galois: Any) -> Any:
        schedule = self._schedule
        total = None
        for row in reversed(self._plaintexts):
            if total is not None:
                evaluator.rotate_vector_inplace(total, schedule.step * schedule.babies, galois)
            for plaintext, baby in zip(row, babies, strict=True):
                if plaintext is None:
                    continue
                product = sealapi.Ciphertext()
                evaluator.multiply_plain(baby, plaintext, product)
                if total is None:
                    total = product
                else:
                    evaluator.add_inplace(total, product)
        if self._rescales:
            evaluator.rescale_to_next_inplace(total)
        turned = sealapi.Ciphertext()
        for fold in schedule.folds:
            evaluator.rotate_vector(total, fold, galois, turned)
            evaluator.add_inplace(total, turned)
        evaluator.add_plain_inplace(total, self._bias)
        return total


class BatchEvaluator:
    """Evaluates a network on as many images as there are slots: one ciphertext per pixel, a slot per image.

    This is CryptoNets' layout. Since every slot is multiplied by the same whole number, no plaintext is encoded, no
    prime is spent on a product and nothing is rotated; and with few different numbers, a sum of products needs no
    products at all (`_weighted_sum`).
    """

    def __init__(self, weights: Weights, parameters: Parameters = DEFAULT) -> None:
        context = seal_context(parameters)
        self._parameters = parameters
        self._weights = weights
        self._evaluator = sealapi.Evaluator(context)
        self._encoder = sealapi.CKKSEncoder(context)
        shape = weights.architecture
        pixels = np.arange(shape.side**2, dtype=np.float64).reshape(1, shape.side, shape.side)
        self._windows = windows_of(shape, pixels)[0].astype(np.int64)  # [taps, windows], places of pixels

    def __call__(self, pixels: Sequence[Any], relin: Any) -> list[Any]:
        """The ciphertexts of the logits, one per class, of those of the pixels, row by row, at the middle level."""
        first = []
        for channel in range(self._weights.architecture.channels):
            for places in self._windows.T:
                value = self._linear(self._weights.convolution, channel, [pixels[place] for place in places])
                # Three polynomials are kept: relinearising the few sums below is cheaper than the many terms here.
                self._evaluator.square_inplace(value)
                first.append(value)
        second = []
        for output in range(self._weights.architecture.hidden):
            value = self._linear(self._weights.hidden, output, first)
            self._evaluator.relinearize_inplace(value, relin)
            self._evaluator.rescale_to_next_inplace(value)
            self._evaluator.square_inplace(value)
            self._evaluator.relinearize_inplace(value, relin)
            second.append(value)
        return [self._linear(self._weights.output, output, second) for output in range(self._weights.output.bias.size)]

    def _linear(self, layer: Layer, output: int, values: Sequence[Any]) -> Any:
        total = self._weighted_sum(layer.integers[output], values)
        total.scale = total.scale / layer.step
        bias = sealapi.Plaintext()
        self._encoder.encode(float(layer.bias[output]), total.parms_id(), total.scale, bias)
        self._evaluator.add_plain_inplace(total, bias)
        return total

    def _weighted_sum(self, weights: npt.NDArray[np.int16], values: Sequence[Any]) -> Any:
        """The sum of weight times value, by additions alone.

        With S_m the sum of sign(weight) · value over the weights of at least m in size, it is S_1 + S_2 + ...; going
        down from the largest m, each value is added once and each S_m once.
        """
        evaluator, running, total = self._evaluator, None, None
        sizes = np.abs(weights)
        for size in range(int(sizes.max(initial=0)), 0, -1):
            for place in np.flatnonzero(sizes == size).tolist():
                if running is None:
                    running = _signed_copy(evaluator, values[place], weights[place] < 0)
                elif weights[place] < 0:
                    evaluator.sub_inplace(running, values[place])
                else:
                    evaluator.add_inplace(running, values[place])
            if total is None:
                total = _signed_copy(evaluator, running, False)
            else:
                evaluator.add_inplace(total, running)
        return total


def _signed_copy(evaluator: Any, value: Any, negative: bool) -> Any:
    copy = sealapi.Ciphertext()
    evaluator.negate(value, copy)
    if not negative:
        evaluator.negate_inplace(copy)
    return copy


def _encoded(encoder: Any, slots: Floats, level: Any, scale: float) -> Any:
    plaintext = sealapi.Plaintext()
    encoder.encode(slots.tolist(), level, scale, plaintext)
    return plaintext
