"""The test vectors of RFC 9180 and of its post-quantum extension, for the two suites that files are sealed with.

The vectors fix the sender's randomness, which no library lets a caller do, so they test opening; and they have
associated data, which cryptography's own tests reach by the function used here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl

from privacy.keys import PrivateKey, PublicKey
from privacy.sealed_header import _SUITES

VECTORS = json.loads((Path(__file__).parent / "hpke_vectors.json").read_text())

every_suite = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["kind"])


def raw(vector: dict[str, Any], name: str) -> bytes:
    return bytes.fromhex(vector[name])


def opened(vector: dict[str, Any], ciphertext: bytes) -> bytes:
    key = PrivateKey(vector["kind"], raw(vector, "skRm")).to_hpke()
    info, aad = raw(vector, "info"), raw(vector, "aad")
    return openssl.hpke._decrypt_with_aad(_SUITES[vector["kind"]], ciphertext, key, info, aad)


@every_suite
def test_the_private_key_gives_the_public_key(vector: dict[str, Any]) -> None:
    assert PrivateKey(vector["kind"], raw(vector, "skRm")).public_key().raw == raw(vector, "pkRm")


@every_suite
def test_the_ciphertext_opens(vector: dict[str, Any]) -> None:
    assert opened(vector, raw(vector, "enc") + raw(vector, "ct")) == raw(vector, "pt")


@every_suite
def test_another_ciphertext_is_refused(vector: dict[str, Any]) -> None:
    changed = bytearray(raw(vector, "enc") + raw(vector, "ct"))
    changed[-1] ^= 1
    with pytest.raises(InvalidTag):
        opened(vector, bytes(changed))


@every_suite
def test_what_is_sealed_to_the_public_key_opens(vector: dict[str, Any]) -> None:
    suite = _SUITES[vector["kind"]]
    sealed = suite.encrypt(b"file key", PublicKey(vector["kind"], raw(vector, "pkRm")).to_hpke(), info=b"info")
    key = PrivateKey(vector["kind"], raw(vector, "skRm")).to_hpke()
    assert suite.decrypt(sealed, key, info=b"info") == b"file key"
