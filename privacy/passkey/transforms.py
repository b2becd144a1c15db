"""Keyed maps of embeddings that keep all distances between them: x ↦ A x + b with A orthogonal.

`glide` is the repeated glide reflection of SentinelLMs (Mishra et al., AAAI 2024, arXiv 2312.17342): a reflection in a
hyperplane and a translation inside it. `orthogonal` is a random rotation or reflection in all directions at once, which
a few glide reflections are far from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConversionError
from privacy.passkey.keystream import Keystream

Kind = Literal["glide", "orthogonal", "none"]
Array = NDArray[np.float64]

MAX_FACTOR = 64


@dataclass(frozen=True)
class Transform:
    """What is done to the embeddings: public, the key isn't part of it.

    kind: "glide", "orthogonal" or "none". factor: how many glide reflections are done one after another, 1 to 64.
    noise: standard deviation of the Gaussian noise that each row gets before the map, as a share of the row's length.
    carried: whether the rest of the model was made to follow the map; see `privacy.passkey.carrying`.

    Raises:
        ConversionError: there is no such kind, a factor or carrying has no use for it, or a number is out of range.
    """

    kind: Kind = "glide"
    factor: int = 1
    noise: float = 0.0
    carried: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConversionError(f"the transform is one of {', '.join(get_args(Kind))}")
        if type(self.factor) is not int or not 1 <= self.factor <= MAX_FACTOR:
            raise ConversionError(f"the factor is not a whole number from 1 to {MAX_FACTOR}")
        if self.kind != "glide" and self.factor != 1:
            raise ConversionError(f"the factor repeats a glide reflection; the transform {self.kind} has none")
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise <= 1:
            raise ConversionError("the noise is not a number from 0 to 1")
        if type(self.carried) is not bool or (self.carried and self.kind == "none"):
            raise ConversionError(f"the transform {self.kind} is not one that the rest of a model can follow")

    @classmethod
    def from_dict(cls, content: Any) -> Transform:
        """Reads what `dataclasses.asdict` gave. Raises ConversionError for anything else."""
        if not isinstance(content, dict) or set(content) != {"kind", "factor", "noise", "carried"}:
            raise ConversionError("the transform's parameters are missing or damaged")
        kind = content["kind"] if isinstance(content["kind"], str) else ""
        return cls(cast(Kind, kind), content["factor"], content["noise"], content["carried"])

    @property
    def changes_rows(self) -> bool:
        """Whether embeddings come out other than they went in."""
        return self.kind != "none" or self.noise > 0

    @property
    def maps_states(self) -> bool:
        """Whether the states that the model gives are mapped as well."""
        return self.carried and self.kind == "orthogonal"

    def map(self, key: bytes, width: int, scale: float) -> AffineMap:
        """The keyed map of embeddings [V, width]; `scale`, their mean length, is how far a glide reflection moves."""
        if self.kind == "glide":
            return glide(key, width, factor=self.factor, scale=scale)
        return orthogonal(key, width) if self.kind == "orthogonal" else AffineMap.identity(width)


@dataclass(frozen=True)
class AffineMap:
    """x ↦ A x + b. matrix A [D, D], orthogonal; offset b [D]; both float64."""

    matrix: Array
    offset: Array

    @classmethod
    def identity(cls, width: int) -> AffineMap:
        """The map that changes nothing."""
        return cls(np.eye(width), np.zeros(width))

    def __call__(self, rows: Array) -> Array:
        """The images [N, D] of `rows` [N, D]."""
        images: Array = rows @ self.matrix.T + self.offset
        return images

    def inverse(self) -> AffineMap:
        """The map back."""
        return AffineMap(self.matrix.T, -self.matrix.T @ self.offset)


def glide(key: bytes, width: int, *, factor: int, scale: float) -> AffineMap:
    """`factor` glide reflections one after another.

    Each reflects in the hyperplane through the origin with a random unit normal n, and then translates by a random t
    inside of it, `scale` long: x ↦ x - 2 (n·x) n + t with n·t = 0. Each has a normal of its own: the same one twice
    would be no reflection at all, only a translation.
    """
    matrix, offset, keystream = np.eye(width), np.zeros(width), Keystream(key)
    for _ in range(factor):
        normal, direction = keystream.gaussians(2, width)
        normal = normal / np.linalg.norm(normal)
        inside = direction - (normal @ direction) * normal
        matrix = matrix - 2.0 * np.outer(normal, normal @ matrix)
        offset = offset - 2.0 * (normal @ offset) * normal + scale * inside / np.linalg.norm(inside)
    return AffineMap(matrix, offset)


def orthogonal(key: bytes, width: int) -> AffineMap:
    """A random orthogonal map that leaves the direction of all ones alone, uniform (Haar) among those.

    As means over the dimensions stay, a layer norm's centring commutes with it. Uniform by QR of a Gaussian matrix with
    the signs of R's diagonal taken out (Mezzadri, 2007).
    """
    q, r = np.linalg.qr(Keystream(key).gaussians(width - 1, width - 1))
    block = np.eye(width)
    block[1:, 1:] = q * np.sign(np.diag(r))
    # A Householder reflection that exchanges the first axis with the direction of all ones.
    mirror = np.full(width, -1.0 / np.sqrt(width))
    mirror[0] += 1.0
    reflection = np.eye(width) - 2.0 * np.outer(mirror, mirror) / (mirror @ mirror)
    return AffineMap(reflection @ block @ reflection, np.zeros(width))


def noisy(keystream: Keystream, rows: Array, share: float) -> Array:
    """`rows` [N, D] with Gaussian noise on each, whose expected squared length is (`share` · the row's length)²."""
    if not share:
        return rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    noise: Array = share / np.sqrt(rows.shape[1]) * lengths * keystream.gaussians(*rows.shape)
    return rows + noise
