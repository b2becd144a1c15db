"""Random numbers out of a key: the same on every platform, and to nobody without the key told from chance."""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray


class Keystream:
    """Numbers that follow one another in ChaCha20's keystream (RFC 8439) under `key` (32 bytes), from block 0 on.

    Each key has one use, so the nonce may be fixed: it is 0.
    """

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def uint64s(self, count: int) -> NDArray[np.uint64]:
        """The next `count` numbers, uniform on all of 64 bits; the little end comes first."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8").astype(np.uint64)

    def gaussians(self, *shape: int) -> NDArray[np.float64]:
        """The next independent standard normal numbers: Box and Muller (1958), in float64."""
        count = math.prod(shape)
        bits = self.uint64s(2 * count).reshape(2, count) >> np.uint64(11)
        radius = np.sqrt(-2.0 * np.log((bits[0] + np.uint64(1)) * 2.0**-53))  # of (0, 1]: there is no logarithm of 0
        numbers: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * (bits[1] * 2.0**-53))
        return numbers.reshape(shape)
