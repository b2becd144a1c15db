"""The secret key never leaves the client: it is in nothing that the server gets, nor in what can be made of that."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from privacy.encrypted_inference import Client, Server, load_architecture
from privacy.encrypted_inference.client import LOGIT_ERROR
from privacy.encrypted_inference.data import LabelledImages
from privacy.encrypted_inference.parameters import DEFAULT
from privacy.encrypted_inference.seal import from_bytes, sealapi, to_bytes
from privacy.encrypted_inference.wire import BATCHED, PACKED, Answer, Keys, Query, decode, encode
from privacy.errors import CiphertextError, DecryptionError, KeyFileError, KeyMismatchError


@pytest.fixture(scope="module")
def stranger() -> Client:
    return Client.generate(load_architecture("digits"), "digits")[0]


def test_nothing_that_the_server_gets_is_a_secret_key(client: Client, keys: bytes, query: bytes) -> None:
    secret = to_bytes(client._secret_key)
    sent = decode(keys, Keys)
    everything = [sent.relin, sent.rotations, *decode(query, Query).ciphertexts]
    assert {field for message in (keys, query) for field in vars(decode_any(message))} == {
        *("parameters", "relin", "rotations"),
        *("fingerprint", "model", "shape", "layout", "count", "ciphertexts"),
    }
    from_bytes(sealapi.SecretKey, secret, DEFAULT, "the secret key itself")  # what the next lines are compared with
    for content in everything:
        with pytest.raises(CiphertextError):
            from_bytes(sealapi.SecretKey, content, DEFAULT, "what was sent")
    # A serialised secret key is recognised by any piece of its body.
    pieces = [secret[start : start + 24] for start in range(64, len(secret) - 24, 4096)]
    assert not any(piece in message for piece in pieces for message in (keys, query))


def decode_any(message: bytes) -> Keys | Query:
    return decode(message, Keys) if message[5] == Keys.KIND else decode(message, Query)


def test_what_the_server_gets_doesnt_decrypt(client: Client, stranger: Client, keys: bytes, query: bytes) -> None:
    """Every polynomial that the server holds, tried as a secret key, decrypts to noise; so does another's key."""
    content = decode(query, Query).ciphertexts[0]
    ours, theirs = client._decrypted(content), stranger._decrypted(content)
    assert np.abs(ours).max() < 1.1
    assert np.abs(theirs).max() > 1e6


@pytest.mark.parametrize("layout", [PACKED, BATCHED])
def test_an_answer_decrypted_with_another_key_is_refused(
    client: Client, stranger: Client, server: Server, digits: LabelledImages, layout: str
) -> None:
    answer = server.classify(client.encrypt(digits.pixels[:1], layout))
    with pytest.raises(KeyMismatchError):
        stranger.decrypt(answer)
    found = decode(answer, Answer)
    forged = Answer(stranger.fingerprint, found.model, found.layout, found.count, found.ciphertexts)
    with pytest.raises(DecryptionError, match="noise"):
        stranger.decrypt(encode(forged))


def test_a_query_under_anothers_key_gives_noise(client: Client, stranger: Client, server: Server) -> None:
    """A ciphertext doesn't tell its key, but what comes of mixing keys doesn't pass for an answer."""
    mixed = decode(stranger.encrypt(np.zeros((1, 8, 8))), Query)
    query = Query(client.fingerprint, mixed.model, mixed.shape, mixed.layout, mixed.count, mixed.ciphertexts)
    answer = server.classify(encode(query))
    with pytest.raises(DecryptionError):
        client.decrypt(answer)


def test_the_server_process_is_never_handed_a_secret() -> None:
    source = "".join(
        path.read_text(encoding="utf-8")
        for name in ("server", "worker", "evaluation")
        for path in [Path(__file__).parents[3] / "privacy" / "encrypted_inference" / f"{name}.py"]
    )
    assert "SecretKey" not in source
    assert "Decryptor" not in source


def test_a_saved_key_is_its_owners_alone_and_decrypts(
    client: Client, server: Server, query: bytes, digits: LabelledImages, tmp_path: Path
) -> None:
    path = tmp_path / "client.secret"
    client.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Client.load(path)
    assert again.decrypt(server.classify(query)).labels == (str(digits.classes[0]),)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Client.load(path)


@pytest.mark.parametrize("content", [b"", b"not a key", b"\x81\xa4kind\xa1x", b"\x80"])
def test_a_damaged_key_file_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "client.secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        Client.load(path)


def test_a_cut_key_file_is_told(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "client.secret"
    client.save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(KeyFileError):
        Client.load(path)


def test_shared_logits_are_flooded(client: Client, server: Server, query: bytes) -> None:
    answer = server.classify(query)
    exact = client.decrypt(answer).logits
    flooded = client.decrypt_to_share(answer, statistical_bits=10).logits
    again = client.decrypt_to_share(answer, statistical_bits=10).logits
    assert (flooded != again).all()
    spread = np.sqrt(12) * 2**5 * LOGIT_ERROR
    assert LOGIT_ERROR < np.abs(flooded - exact).max() < 8 * spread
