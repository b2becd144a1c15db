"""The page docs/sealed-format.md is right: a reader written from it alone opens what the library seals."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from privacy.keys import SEALING_KINDS, PrivateKey, SigningKey, VerifyKey, key_to_pem
from privacy.sealing import Metadata, open_sealed, seal

PAGE = (Path(__file__).parents[2] / "docs" / "sealed-format.md").read_text(encoding="utf-8")
ON_PAGE = json.loads(PAGE.partition("## Test vector")[2].partition("```json")[2].partition("```")[0])
VECTORS = json.loads((Path(__file__).parent / "sealed_vectors.json").read_text(encoding="utf-8"))
CHUNK = 65_536

every_vector = pytest.mark.parametrize("vector", [ON_PAGE, *VECTORS], ids=lambda vector: vector["name"])


class Bytes:
    """A file, read field by field."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.data)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")


def derived(file_key: bytes, salt: bytes | None, label: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt, b"latentguard sealed v1 " + label).derive(file_key)


def private_key(kind: str, seed: bytes) -> Any:
    if kind == "x25519":
        return x25519.X25519PrivateKey.from_private_bytes(seed)
    expanded = hashlib.shake_256(seed).digest(96)
    return hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        x25519.X25519PrivateKey.from_private_bytes(expanded[64:]),
    )


def read_by_the_page(sealed: bytes, kind: str, seed: bytes, key_id: bytes) -> dict[str, Any]:
    file = Bytes(sealed)
    assert file.take(8) == bytes.fromhex("894C47534541 4C0A")
    assert file.number(1) == 1
    flags = file.number(1)
    time = file.number(8)
    model = file.take(file.number(1)).decode("utf-8")
    prompt_hash = file.take(32) if flags & 2 else None
    signer = file.take(32) if flags & 1 else None
    preamble = sealed[: file.at]
    commitment = file.take(32)
    before_mac = file.at
    found = None
    for _ in range(file.number(2)):
        suite, its_id, wrapped = file.take(6), file.take(8), file.take(file.number(2))
        if its_id == key_id:
            assert suite.hex() == {"x25519": "002000010003", "mlkem768-x25519": "647a00010003"}[kind]
            found = wrapped
    assert found is not None
    recipients = sealed[before_mac : file.at]
    kem = {"x25519": hpke.KEM.X25519, "mlkem768-x25519": hpke.KEM.MLKEM768_X25519}[kind]
    suite_object = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    info = b"latentguard sealed v1 file key\0" + preamble + commitment
    file_key = suite_object.decrypt(found, private_key(kind, seed), info=info)
    salt = hashlib.sha256(preamble).digest()
    payload = derived(file_key, salt, b"payload", 39)
    assert derived(file_key, salt, b"commitment", 32) == commitment
    mac_key = derived(file_key, salt, b"recipients", 32)
    assert file.take(32) == hmac.digest(mac_key, preamble + commitment + recipients, "sha256")
    end = len(sealed) - (64 if flags & 1 else 0)
    chunks, content, number = sealed[file.at : end], b"", 0
    cipher = ChaCha20Poly1305(payload[:32])
    while True:
        chunk = chunks[number * (CHUNK + 16) :][: CHUNK + 16]
        last = (number + 1) * (CHUNK + 16) >= len(chunks)
        content += cipher.decrypt(payload[32:] + number.to_bytes(4, "big") + bytes([last]), chunk, preamble)
        if last:
            break
        number += 1
    if signer is not None:
        message = b"latentguard sealed v1 signature\0"
        message += hashlib.sha256(preamble + commitment).digest() + hashlib.sha256(chunks).digest()
        ed25519.Ed25519PublicKey.from_public_bytes(signer).verify(sealed[end:], message)
    return {
        "time": time,
        "model": model,
        "prompt_hash": prompt_hash,
        "prompt_key": derived(file_key, None, b"prompt", 32),
        "content": content,
        "preamble": preamble,
        "file_key": file_key,
        "payload_key": payload[:32],
        "nonce_prefix": payload[32:],
        "commitment": commitment,
        "mac_key": mac_key,
    }


@every_vector
def test_the_page_reads_the_vector(vector: dict[str, Any]) -> None:
    for key in vector["private_keys"]:
        sealed = bytes.fromhex(vector["sealed"])
        found = read_by_the_page(sealed, key["kind"], bytes.fromhex(key["seed"]), bytes.fromhex(key["key_id"]))
        names = ("content", "preamble", "file_key", "payload_key", "nonce_prefix", "commitment", "mac_key")
        assert {name: found[name].hex() for name in names} == {name: vector[name] for name in names}
        assert found["model"] == vector["model"]
        if vector["prompt"] is not None:
            assert found["prompt_hash"] == hmac.digest(found["prompt_key"], vector["prompt"].encode(), "sha256")


@every_vector
def test_the_library_opens_the_vector(vector: dict[str, Any]) -> None:
    signer = VerifyKey.from_line(vector["signer"]) if vector["signer"] else None
    for key in vector["private_keys"]:
        opened = open_sealed(
            bytes.fromhex(vector["sealed"]), PrivateKey(key["kind"], bytes.fromhex(key["seed"])), signer=signer
        )
        assert opened.data.hex() == vector["content"]
        assert opened.info.time.isoformat() == vector["time"]
        assert opened.info.model == vector["model"]
        assert opened.info.signer == signer
        assert vector["prompt"] is None or opened.info.made_from(vector["prompt"])


@pytest.mark.parametrize("kind", SEALING_KINDS)
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])
def test_the_page_reads_what_the_library_seals(kind: str, size: int) -> None:
    key, content = PrivateKey.generate(kind), hashlib.shake_128(b"x").digest(size)
    sealed = seal(content, key.public_key(), Metadata("model", "prompt"), signing_key=SigningKey.generate())
    assert read_by_the_page(sealed, kind, key.seed, key.public_key().key_id)["content"] == content


def test_the_page_reads_an_encrypted_key_file() -> None:
    import base64

    key = PrivateKey.generate()
    lines = key_to_pem(key, passphrase=b"secret", scrypt_cost=4).splitlines()
    assert lines[0] == b"-----BEGIN LATENTGUARD ENCRYPTED PRIVATE KEY-----"
    body = base64.b64decode(b"".join(lines[1:-1]))
    assert (len(body), body[0], body[1]) == (1 + 1 + 1 + 16 + 48, 1, 1)
    stretched = Scrypt(salt=body[3:19], length=32, n=2 ** body[2], r=8, p=1).derive(b"secret")
    seed = ChaCha20Poly1305(stretched).decrypt(bytes(12), body[19:], b"latentguard key file\0" + body[:19])
    assert seed == key.seed


def test_the_page_tells_the_sizes_of_public_lines() -> None:
    lines = [PrivateKey.generate(kind).public_key() for kind in SEALING_KINDS] + [SigningKey.generate().public_key()]
    told = re.findall(r"\| ([\d,]+) characters \|", PAGE)
    assert [f"{len(str(line)):,}" for line in lines] == told
