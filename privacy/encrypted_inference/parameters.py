"""The CKKS parameters, and how many bits of security the standard's table gives them."""

from __future__ import annotations

from dataclasses import dataclass

from privacy.errors import ParameterError

# Most bits of the whole modulus for 128 bits of classical security with a ternary secret: table 1 of Albrecht et al.,
# "Homomorphic Encryption Standard" (2018), https://homomorphicencryption.org/standard/.
_MOST_BITS_AT_128 = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


@dataclass(frozen=True)
class Parameters:
    """Ring degree, primes and scales; client and server have to agree on every one.

    ``prime_bits`` are the primes' sizes, in SEAL's order: the one that is left at the end, those that rescaling drops
    (the last first), and the special one of key switching. Scales are exponents of two.

    A packed ciphertext holds an image (``image_scale``, weights encoded at ``weight_scales``), a batched one a pixel of
    as many images as there are slots (``batch_scale``; weights stay whole numbers). Few large primes make rotations
    cheap, so where precision allows, rescaling waits for the square. The convolution takes the scale from 23 to 44
    bits, and a prime of 20 brings it back to 24; its square is at 48, and a prime of 24 leaves 24; the hidden layer and
    its square take that to 2 (24 + 20) = 88, and a prime of 57 to 31; the last layer's 19 leave 7 of 57 bits for the
    sign and size of a logit. `ranges` checks a model for that.
    """

    degree: int = 8192
    prime_bits: tuple[int, ...] = (57, 57, 24, 20, 60)
    image_scale: int = 23
    weight_scales: tuple[int, int, int] = (21, 20, 19)
    batch_scale: int = 30

    def __post_init__(self) -> None:
        most = _MOST_BITS_AT_128.get(self.degree)
        if most is None or sum(self.prime_bits) > most:
            raise ParameterError(
                f"parameters: {sum(self.prime_bits)} bits of modulus at degree {self.degree} have less than 128 bits "
                "of security by the homomorphic encryption standard's table"
            )

    @property
    def slots(self) -> int:
        return self.degree // 2

    @property
    def ciphertext_bytes(self) -> int:
        """The most bytes of a serialised ciphertext of two polynomials, with room for headers."""
        return 2 * (len(self.prime_bits) - 1) * self.degree * 8 + 4096

    @property
    def key_bytes(self) -> int:
        """The bytes of a pair of polynomials under every prime."""
        return 2 * len(self.prime_bits) * self.degree * 8

    @property
    def switching_key_bytes(self) -> int:
        """The most bytes of one serialised key of key switching (relinearisation, or one rotation)."""
        return (len(self.prime_bits) - 1) * self.key_bytes + 4096


DEFAULT = Parameters()
