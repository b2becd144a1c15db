"""TenSEAL's tutorial network, restated plainly: what the benchmark measures against.

From "Encrypted Convolution on MNIST" in TenSEAL's tutorials (Benaissa, Retiat, Cebere and Belfedhal, "TenSEAL: a
library for encrypted tensor operations using homomorphic encryption", 2021): four 7x7 kernels with stride 3, square,
256 to 64, square, 64 to 10, under a modulus of 240 - 26 bits at degree 8192 with a scale of 26 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tenseal as ts

from privacy.encrypted_inference.weights import Architecture, Floats

ARCHITECTURE = Architecture(28, 7, 3, 4, 64, tuple(str(digit) for digit in range(10)))
_PRIME_BITS = [31, 26, 26, 26, 26, 26, 26, 31]


class TutorialNetwork:
    """The tutorial's server, its context and its client in one, with random weights: its time depends on none."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=_PRIME_BITS)
        self.context.global_scale = 2.0**26
        self.context.generate_galois_keys()
        self._kernels = (random.normal(size=(4, 7, 7)) / 7).tolist()
        self._kernel_biases = random.normal(size=4).tolist()
        self._first = (random.normal(size=(256, 64)) / 16).tolist()
        self._first_bias = random.normal(size=64).tolist()
        self._second = (random.normal(size=(64, 10)) / 8).tolist()
        self._second_bias = random.normal(size=10).tolist()

    def encrypt(self, image: Floats) -> tuple[Any, int]:
        """The encrypted windows of an image [28, 28], and how many there are."""
        encrypted, windows = ts.im2col_encoding(self.context, image.tolist(), 7, 7, 3)
        return encrypted, windows

    def __call__(self, encrypted: Any, windows: int) -> Any:
        """The encrypted logits, as the tutorial's server computes them."""
        channels = [
            encrypted.conv2d_im2col(kernel, windows) + bias
            for kernel, bias in zip(self._kernels, self._kernel_biases, strict=True)
        ]
        values = ts.CKKSVector.pack_vectors(channels)
        values.square_()
        values = values.mm(self._first) + self._first_bias
        values.square_()
        return values.mm(self._second) + self._second_bias

    def public_context_bytes(self) -> int:
        """The size of what the tutorial's client sends once."""
        public = self.context.copy()
        public.make_context_public()
        return len(public.serialize())
