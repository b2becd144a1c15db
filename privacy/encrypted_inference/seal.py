"""The few calls of SEAL that this package makes, through TenSEAL's binding of it: contexts, keys, bytes in and out.

TenSEAL's own vectors are not used: they make a rotation key for every power of two, encode each plaintext anew at each
product and rescale after every one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

from privacy.encrypted_inference.parameters import Parameters
from privacy.errors import CiphertextError, MissingDependencyError

try:
    import tenseal.sealapi as sealapi
except ImportError as error:
    raise MissingDependencyError("encrypted inference needs TenSEAL: pip install latentguard[privacy]") from error

__all__ = [
    "from_bytes",
    "has_rotation",
    "levels",
    "primes",
    "rotation_keys",
    "seal_context",
    "sealapi",
    "to_bytes",
]

T = TypeVar("T")
_GENERATOR = 3  # of the rotations in SEAL's ring: rotating by s to the left is the automorphism 3^s


@lru_cache(maxsize=4)
def seal_context(parameters: Parameters) -> Any:
    """SEAL's context for `parameters`, held to 128 bits of security by SEAL as well."""
    described = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    described.set_poly_modulus_degree(parameters.degree)
    described.set_coeff_modulus(sealapi.CoeffModulus.Create(parameters.degree, list(parameters.prime_bits)))
    return sealapi.SEALContext(described, True, sealapi.SEC_LEVEL_TYPE.TC128)


def primes(parameters: Parameters) -> list[int]:
    """The primes themselves, in the order of ``prime_bits``."""
    moduli = seal_context(parameters).key_context_data().parms().coeff_modulus()
    return [modulus.value() for modulus in moduli]


def levels(parameters: Parameters) -> list[Any]:
    """SEAL's names (parms_id) of the levels: at place k the one with k + 1 primes left."""
    names, data = [], seal_context(parameters).first_context_data()
    while data is not None:
        names.append(data.parms_id())
        data = data.next_context_data()
    return names[::-1]


def rotation_keys(generator: Any, parameters: Parameters, steps: Iterable[int]) -> Any:
    """Keys for rotating to the left by each of `steps`, and by nothing else."""
    keys = sealapi.GaloisKeys()
    generator.create_galois_keys([pow(_GENERATOR, step, 2 * parameters.degree) for step in steps], keys)
    return keys


def has_rotation(keys: Any, parameters: Parameters, step: int) -> bool:
    """Whether the keys allow rotating to the left by `step`."""
    return bool(keys.has_key(pow(_GENERATOR, step, 2 * parameters.degree)))


def to_bytes(thing: Any) -> bytes:
    """The serialised form of a ciphertext or key; it never touches a disk where the system has files in memory."""
    descriptor, path = _scratch()
    try:
        thing.save(path)
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)
        _remove(path)


def from_bytes(kind: type[T], content: bytes, parameters: Parameters, what: str) -> T:
    """The ciphertext or key in `content`, checked by SEAL against the context.

    Raises:
        CiphertextError: SEAL refuses it. (It may also end the process: read what strangers send in a worker only.)
    """
    thing: Any = kind()
    descriptor, path = _scratch()
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        thing.load(seal_context(parameters), path)
    except (RuntimeError, ValueError, IndexError, MemoryError, OverflowError) as error:
        raise CiphertextError(f"{what}: not one of these parameters") from error
    finally:
        os.close(descriptor)
        _remove(path)
    return thing  # type: ignore[no-any-return]


def _scratch() -> tuple[int, str]:
    """An empty file for SEAL, which reads and writes by path alone: in memory, else only its owner's."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("seal")
        return descriptor, f"/proc/self/fd/{descriptor}"
    return tempfile.mkstemp()


def _remove(path: str) -> None:
    if not path.startswith("/proc/"):
        os.unlink(path)
