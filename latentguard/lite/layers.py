"""The layers and functions of PyTorch's that scoring needs, in numpy and single precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erf to 1.5e-7. numpy has none of its own.
_ERF_P = np.float32(0.3275911)
_ERF_A = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))


@dataclass(frozen=True)
class Linear:
    """x [..., K] times weight [K, N], plus bias [N].

    The weight is the transpose of PyTorch's: with few rows of x, a BLAS spends more time on reordering it than on
    multiplying.
    """

    weight: np.ndarray
    bias: np.ndarray

    def state_dict(self, name: str) -> dict[str, np.ndarray]:
        """Weight and bias by the names, and in the shapes, that PyTorch's layer ``name`` has them."""
        return {f"{name}.weight": self.weight.T, f"{name}.bias": self.bias}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        product: np.ndarray = x @ self.weight
        product += self.bias
        return product


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x), with Φ the normal distribution function."""
    size = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + _ERF_P * size)
    series = np.zeros_like(t)
    for a in _ERF_A:
        series = (series + a) * t
    tail = np.float32(0.5) * series * np.exp(-size * size)  # 1 - Φ(|x|)
    product: np.ndarray = x * np.where(x < 0, tail, 1 - tail)
    return product


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) over its sum along an axis; an entry of minus infinity has no share."""
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: np.ndarray = exponentials / exponentials.sum(axis=axis, keepdims=True)
    return shares


def real_lengths(mask: np.ndarray) -> list[int]:
    """For each row of mask [B, L'], how many positions reach up to its last real one."""
    lengths: list[int] = (mask * np.arange(1, mask.shape[1] + 1)).max(axis=1).tolist()
    return lengths
