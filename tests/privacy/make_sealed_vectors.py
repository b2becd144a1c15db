"""Makes the test vectors of the sealed format: `python tests/privacy/make_sealed_vectors.py > …/sealed_vectors.json`.

The keys are fixed, what sealing draws at random is not: a run gives other files that open just the same. The first one
stands in docs/sealed-format.md with all that lies between its bytes and its content.
"""

from __future__ import annotations

import hashlib
import io
import json
from datetime import datetime, timezone

from privacy.keys import HYBRID, X25519, PrivateKey, SigningKey
from privacy.sealed_header import FileKeys, read_header, unwrap
from privacy.sealing import Metadata, seal

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)


def seed(name: str) -> bytes:
    """A private key that everybody knows: of no use but in test vectors."""
    return hashlib.sha256(f"latentguard test vector: {name}".encode()).digest()


def vector(name: str, kinds: list[str], content: bytes, metadata: Metadata, *, signed: bool) -> dict[str, object]:
    """One sealed file with its keys, its content, and what is derived on the way."""
    keys = [PrivateKey(kind, seed(f"{name} {place}")) for place, kind in enumerate(kinds)]
    signing_key = SigningKey(seed(f"{name} signer")) if signed else None
    sealed = seal(content, [key.public_key() for key in keys], metadata, signing_key=signing_key)
    header = read_header(io.BytesIO(sealed).read)
    file_key, derived = unwrap(header, keys)
    assert derived == FileKeys.derive(file_key, header.preamble_bytes)
    return {
        "name": name,
        "private_keys": [
            {"kind": key.kind, "seed": key.seed.hex(), "key_id": key.public_key().key_id.hex()} for key in keys
        ],
        "signer": str(signing_key.public_key()) if signing_key else None,
        "time": WHEN.isoformat(),
        "model": metadata.model,
        "prompt": metadata.prompt,
        "content": content.hex(),
        "file_key": file_key.hex(),
        "preamble": header.preamble_bytes.hex(),
        "payload_key": derived.payload.hex(),
        "nonce_prefix": derived.nonce_prefix.hex(),
        "commitment": derived.commitment.hex(),
        "mac_key": derived.mac.hex(),
        "sealed": sealed.hex(),
    }


def main() -> None:
    """Prints all vectors as JSON."""
    vectors = [
        vector("small", [X25519], b"a small image", Metadata("sdxl-turbo", "a red bicycle", WHEN), signed=True),
        vector("empty", [X25519], b"", Metadata(time=WHEN), signed=False),
        vector("hybrid", [HYBRID], b"a small image", Metadata("größe", None, WHEN), signed=False),
        vector("several", [X25519, HYBRID, X25519], bytes(range(256)), Metadata("m", "", WHEN), signed=True),
    ]
    print(json.dumps(vectors, indent=1))


if __name__ == "__main__":
    main()
