"""Whether a network's values stay in the range that the scales and primes leave them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privacy.encrypted_inference.parameters import DEFAULT, Parameters
from privacy.encrypted_inference.weights import Weights, windows_of
from privacy.errors import ModelError

# A value twice as large as any that was measured still has to fit.
LEAST_SPARE_BITS = 1.0
# The largest logit of the images that a network was trained on; it leaves more than that.
MOST_LOGIT = 24.0


def spare_bits(weights: Weights, images: npt.ArrayLike, parameters: Parameters = DEFAULT) -> float:
    """By how many bits the largest value that `images` [B, side, side] cause could grow before it wraps.

    Wherever the evaluations multiply, the scale times the largest value has to stay below half of the primes that are
    left; this is the least of their distances, in either layout.
    """
    first, second, logits = largest_values(weights, images)
    last, middle, square, top, _ = parameters.prime_bits
    scale = float(parameters.image_scale + parameters.weight_scales[0])
    spare = [last + middle + square + top - 1 - scale - math.log2(first)]
    scale = 2 * (scale - top)
    spare.append(last + middle + square - 1 - scale - 2 * math.log2(first))
    scale = 2 * (scale - square + parameters.weight_scales[1])
    spare.append(last + middle - 1 - scale - 2 * math.log2(second))
    scale += parameters.weight_scales[2] - middle
    spare.append(last - 1 - scale - math.log2(logits))

    steps = [-math.log2(layer.step) for layer in (weights.convolution, weights.hidden, weights.output)]
    scale = 2 * (parameters.batch_scale + steps[0])
    spare.append(last + middle - 1 - scale - 2 * math.log2(first))
    scale += steps[1]
    spare.append(last + middle - 1 - scale - math.log2(second))
    scale = 2 * (scale - middle)
    spare.append(last - 1 - scale - 2 * math.log2(second))
    spare.append(last - 1 - scale - steps[2] - math.log2(logits))
    return min(spare)


def check_ranges(weights: Weights, images: npt.ArrayLike) -> float:
    """`spare_bits`, if there are enough.

    Raises:
        ModelError: the values are too large for the scales.
    """
    spare = spare_bits(weights, images)
    if spare < LEAST_SPARE_BITS:
        raise ModelError(
            f"weights: their values come within {spare:.1f} bits of wrapping; train it anew with another seed"
        )
    return spare


def largest_values(weights: Weights, images: npt.ArrayLike) -> tuple[float, float, float]:
    """The largest size of a value before the first square, before the second, and of a logit; at least 1."""
    pixels = np.asarray(images, dtype=np.float64)
    windows = windows_of(weights.architecture, pixels)
    first = np.einsum("ct,btw->bcw", weights.convolution.weight, windows) + weights.convolution.bias[:, None]
    second = np.square(first.reshape(len(pixels), -1)) @ weights.hidden.weight.T + weights.hidden.bias
    logits = np.square(second) @ weights.output.weight.T + weights.output.bias
    largest = [max(1.0, float(np.abs(values).max())) for values in (first, second, logits)]
    return largest[0], largest[1], largest[2]
