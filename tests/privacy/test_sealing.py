from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.errors import CannotOpenError, DataError, KeyFileError
from privacy.keys import HYBRID, SEALING_KINDS, X25519, PrivateKey, PublicKey, SigningKey
from privacy.sealing import (
    CHUNK_BYTES,
    Metadata,
    open_file,
    open_sealed,
    open_stream,
    rewrap_file,
    seal,
    seal_file,
    seal_stream,
)

KEYS = {kind: PrivateKey.generate(kind) for kind in SEALING_KINDS}
KEY = KEYS[X25519]
SERVER = SigningKey.generate()
PUBLIC = KEY.public_key()
SEALED_CHUNK = CHUNK_BYTES + 16
SEVERAL_CHUNKS = 3 * CHUNK_BYTES + 5
EDGES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, SEVERAL_CHUNKS]

every_kind = pytest.mark.parametrize("kind", SEALING_KINDS)
signed_or_not = pytest.mark.parametrize("signing_key", [None, SERVER], ids=["unsigned", "signed"])


def content(size: int) -> bytes:
    return hashlib.shake_128(b"content").digest(size)


def refused(sealed: bytes, *keys: PrivateKey, signer: SigningKey | None = None) -> None:
    with pytest.raises(CannotOpenError) as raised:
        open_sealed(sealed, keys or KEY, signer=signer and signer.public_key())
    # Always the same words, and nothing in the chain of causes.
    assert str(raised.value) == str(CannotOpenError())
    assert raised.value.__cause__ is None


def header_size(sealed: bytes, size: int, *, signed: bool) -> int:
    chunks = max(1, -(-size // CHUNK_BYTES))
    return len(sealed) - size - 16 * chunks - (64 if signed else 0)


@every_kind
@given(data=st.binary(max_size=300), model=st.text(max_size=20), prompt=st.none() | st.text(), signed=st.booleans())
@settings(max_examples=20)
def test_seal_then_open_is_identity(kind: str, data: bytes, model: str, prompt: str | None, signed: bool) -> None:
    key = KEYS[kind]
    signing_key = SERVER if signed else None
    opened = open_sealed(seal(data, key.public_key(), Metadata(model, prompt), signing_key=signing_key), key)
    assert opened.data == data
    assert opened.info.model == model
    assert opened.info.signer == (SERVER.public_key() if signed else None)
    assert prompt is None or opened.info.made_from(prompt)


@signed_or_not
@pytest.mark.parametrize("size", EDGES)
def test_every_number_of_chunks_comes_back(size: int, signing_key: SigningKey | None) -> None:
    assert open_sealed(seal(content(size), PUBLIC, signing_key=signing_key), KEY).data == content(size)


@given(place=st.integers(0), bit=st.integers(0, 7), signed=st.booleans())
@example(place=0, bit=0, signed=False)
@example(place=-1, bit=7, signed=True)
@settings(max_examples=150)
def test_any_flipped_bit_is_refused(place: int, bit: int, signed: bool) -> None:
    recipients = [key.public_key() for key in KEYS.values()]
    metadata = Metadata("model", "prompt")
    sealed = bytearray(seal(content(100), recipients, metadata, signing_key=SERVER if signed else None))
    sealed[place % len(sealed)] ^= 1 << bit
    refused(bytes(sealed))


@signed_or_not
def test_every_byte_of_the_header_counts(signing_key: SigningKey | None) -> None:
    sealed = seal(b"", [PUBLIC, PrivateKey.generate().public_key()], Metadata("m", "p"), signing_key=signing_key)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x10
        refused(bytes(changed))


@signed_or_not
def test_every_truncation_is_refused(signing_key: SigningKey | None) -> None:
    sealed = seal(content(50), PUBLIC, Metadata("m", "p"), signing_key=signing_key)
    for size in range(len(sealed)):
        refused(sealed[:size])


@signed_or_not
@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_a_file_cut_at_a_chunk_is_refused(chunks: int, signing_key: SigningKey | None) -> None:
    sealed = seal(content(SEVERAL_CHUNKS), PUBLIC, signing_key=signing_key)
    start = header_size(sealed, SEVERAL_CHUNKS, signed=signing_key is not None)
    refused(sealed[: start + chunks * SEALED_CHUNK])
    # Nor does it help to put the signature where the file ends now.
    refused(sealed[: start + chunks * SEALED_CHUNK] + sealed[-64:])


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 2), (1, 2), (0, 1, 2, 2)])
def test_chunks_in_another_order_are_refused(order: tuple[int, ...]) -> None:
    sealed = seal(content(SEVERAL_CHUNKS), PUBLIC)
    start = header_size(sealed, SEVERAL_CHUNKS, signed=False)
    chunks = [sealed[start + i * SEALED_CHUNK : start + (i + 1) * SEALED_CHUNK] for i in range(3)]
    rest = sealed[start + 3 * SEALED_CHUNK :]
    refused(sealed[:start] + b"".join(chunks[i] for i in order) + rest)


def test_a_chunk_of_another_file_is_refused() -> None:
    one, other = (seal(content(SEVERAL_CHUNKS), PUBLIC) for _ in range(2))
    start = header_size(one, SEVERAL_CHUNKS, signed=False)
    refused(one[:start] + other[start : start + SEALED_CHUNK] + one[start + SEALED_CHUNK :])


@signed_or_not
@pytest.mark.parametrize("more", [b"\0", b"\0" * 16, b"\0" * 64, content(SEALED_CHUNK)])
def test_whatever_is_appended_is_refused(more: bytes, signing_key: SigningKey | None) -> None:
    refused(seal(content(CHUNK_BYTES), PUBLIC, signing_key=signing_key) + more)


def test_the_header_of_one_file_does_not_fit_the_content_of_another() -> None:
    one, other = (seal(content(9), PUBLIC, Metadata(model)) for model in ("a", "b"))
    start = header_size(one, 9, signed=False)
    refused(one[:start] + other[start:])


@every_kind
def test_the_wrong_key_is_refused(kind: str) -> None:
    sealed = seal(b"data", KEYS[kind].public_key())
    refused(sealed, PrivateKey.generate(kind))
    refused(sealed, *(key for other, key in KEYS.items() if other != kind))


def test_a_wrong_key_that_bears_the_right_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, key_id = seal(b"data", PUBLIC), PUBLIC.key_id
    monkeypatch.setattr(PublicKey, "key_id", key_id)
    refused(sealed, PrivateKey.generate())


@pytest.mark.parametrize("other", [b"", b"\x89PNG\r\n\x1a\n", b"\x89LGSEAL\n", content(5000)])
def test_what_is_no_sealed_file_is_refused(other: bytes) -> None:
    refused(other)


def test_no_key_opens_nothing() -> None:
    with pytest.raises(CannotOpenError):
        open_sealed(seal(b"data", PUBLIC), [])


def test_every_recipient_can_open() -> None:
    keys = [PrivateKey.generate(kind) for kind in (X25519, HYBRID, X25519)]
    sealed = seal(b"data", [key.public_key() for key in keys])
    for key in keys:
        opened = open_sealed(sealed, key)
        assert opened.data == b"data"
        assert opened.info.key_ids == tuple(key.public_key().key_id for key in keys)


def test_an_older_key_among_several_opens() -> None:
    assert open_sealed(seal(b"data", PUBLIC), [PrivateKey.generate(), KEY]).data == b"data"


@pytest.mark.parametrize("recipients", [[], [PUBLIC] * 1025])
def test_too_few_or_too_many_recipients_are_refused(recipients: list[PublicKey]) -> None:
    with pytest.raises(DataError, match="recipients"):
        seal(b"data", recipients)


def test_a_public_key_that_is_no_good_is_refused() -> None:
    with pytest.raises(KeyFileError, match="not a valid one"):
        seal(b"data", PublicKey(X25519, bytes(32)))


def test_two_seals_of_one_content_have_nothing_in_common() -> None:
    when = datetime(2024, 1, 2, tzinfo=timezone.utc)
    one, other = (seal(content(400), PUBLIC, Metadata("m", "p", when)) for _ in range(2))
    start = header_size(one, 400, signed=False)
    assert one[start:][:64] != other[start:][:64]
    assert open_sealed(one, KEY).info.prompt_hash != open_sealed(other, KEY).info.prompt_hash


def test_the_prompt_is_not_to_be_read_nor_guessed_from_the_file() -> None:
    prompt = "a portrait of Jane"
    sealed = seal(content(10), PUBLIC, Metadata("sdxl", prompt))
    assert prompt.encode() not in sealed
    assert hashlib.sha256(prompt.encode()).digest() not in sealed
    assert prompt not in repr(Metadata("sdxl", prompt))
    info = open_sealed(sealed, KEY).info
    assert info.made_from(prompt)
    assert not info.made_from("a portrait of Joan")


def test_no_text_form_of_what_was_opened_shows_the_content_or_the_file_key() -> None:
    opened = open_sealed(seal(b"secret", PUBLIC, Metadata(prompt="p")), KEY)
    assert "secret" not in repr(opened)
    assert repr(opened.info._file_key)[2:-1] not in repr(opened)


def test_time_and_model_come_back() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))
    info = open_sealed(seal(b"", PUBLIC, Metadata("größe/v1", time=when)), KEY).info
    assert (info.model, info.time) == ("größe/v1", when)


def test_the_time_is_now_if_none_is_given() -> None:
    info = open_sealed(seal(b"", PUBLIC), KEY).info
    assert abs(info.time - datetime.now(timezone.utc)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata("x" * 256),
        Metadata("\ud800"),
        Metadata(time=datetime(2024, 1, 1)),
        Metadata(time=datetime(1969, 1, 1, tzinfo=timezone.utc)),
    ],
)
def test_metadata_that_can_not_be_written_is_refused(metadata: Metadata) -> None:
    with pytest.raises(DataError):
        seal(b"", PUBLIC, metadata)


def test_the_signer_is_told_and_can_be_asked_for() -> None:
    sealed = seal(b"data", PUBLIC, signing_key=SERVER)
    assert open_sealed(sealed, KEY, signer=SERVER.public_key()).info.signer == SERVER.public_key()
    refused(sealed, signer=SigningKey.generate())


def test_an_unsigned_file_is_refused_where_a_signer_is_asked_for() -> None:
    refused(seal(b"data", PUBLIC), signer=SERVER)


def test_a_recipient_can_not_change_what_the_server_signed() -> None:
    """He knows the file key, so he can encrypt other content and only the signature stands against him."""
    from privacy import sealing
    from privacy.sealed_header import FileKeys, read_header, unwrap

    sealed = seal(b"data", PUBLIC, signing_key=SERVER)
    header = read_header(io.BytesIO(sealed).read)
    file_key, _ = unwrap(header, [KEY])
    keys = FileKeys.derive(file_key, header.preamble_bytes)
    start = header_size(sealed, 4, signed=True)
    forged = b"".join(bytes(chunk) for chunk in sealing._encrypted(io.BytesIO(b"fake"), keys, header.preamble_bytes))
    refused(sealed[:start] + forged + sealed[-64:])


def test_streams_may_give_less_than_they_are_asked_for() -> None:
    class Dripping(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(buffer[:1000])

    sealed, opened = io.BytesIO(), io.BytesIO()
    seal_stream(Dripping(content(SEVERAL_CHUNKS)), sealed, PUBLIC, signing_key=SERVER)
    open_stream(Dripping(sealed.getvalue()), opened, KEY)
    assert opened.getvalue() == content(SEVERAL_CHUNKS)


def test_files_are_sealed_and_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content(SEVERAL_CHUNKS))
    seal_file(tmp_path / "a.png", tmp_path / "a.sealed", PUBLIC, signing_key=SERVER)
    info = open_file(tmp_path / "a.sealed", tmp_path / "b.png", KEY)
    assert info.signer == SERVER.public_key()
    assert (tmp_path / "b.png").read_bytes() == content(SEVERAL_CHUNKS)
    assert (tmp_path / "b.png").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", [-1, -100, 100])
def test_a_file_that_can_not_be_opened_leaves_nothing_behind(tmp_path: Path, at: int) -> None:
    sealed = bytearray(seal(content(SEVERAL_CHUNKS), PUBLIC, signing_key=SERVER))
    sealed[at] ^= 1
    (tmp_path / "a.sealed").write_bytes(sealed)
    (tmp_path / "out").write_bytes(b"before")
    with pytest.raises(CannotOpenError):
        open_file(tmp_path / "a.sealed", tmp_path / "out", KEY)
    assert (tmp_path / "out").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sealed", "out"]


def test_files_that_can_not_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: can't be read"):
        seal_file(tmp_path / "none", tmp_path / "out", PUBLIC)
    with pytest.raises(DataError, match="can't be read"):
        seal_file(tmp_path, tmp_path / "out", PUBLIC)
    (tmp_path / "in").write_bytes(b"x")
    with pytest.raises(DataError, match="does not exist"):
        seal_file(tmp_path / "in", tmp_path / "no" / "out", PUBLIC)


def test_a_rotation_changes_who_can_open_and_keeps_the_signature(tmp_path: Path) -> None:
    path, new = tmp_path / "a.sealed", PrivateKey.generate(HYBRID)
    path.write_bytes(seal(content(SEVERAL_CHUNKS), PUBLIC, Metadata("m", "p"), signing_key=SERVER))
    rewrap_file(path, path, KEY, new.public_key())
    opened = open_sealed(path.read_bytes(), new, signer=SERVER.public_key())
    assert opened.data == content(SEVERAL_CHUNKS)
    assert opened.info.made_from("p")
    refused(path.read_bytes())


def test_a_rotation_of_a_damaged_file_leaves_it_as_it_was(tmp_path: Path) -> None:
    damaged = seal(content(CHUNK_BYTES + 9), PUBLIC)[:-1]
    (tmp_path / "a.sealed").write_bytes(damaged)
    with pytest.raises(CannotOpenError):
        rewrap_file(tmp_path / "a.sealed", tmp_path / "a.sealed", KEY, PrivateKey.generate().public_key())
    assert (tmp_path / "a.sealed").read_bytes() == damaged


PEAK = """
import resource, sys
from pathlib import Path
from privacy.keys import PrivateKey, SigningKey
from privacy.sealing import open_file, seal_file
folder, size = Path(sys.argv[1]), int(sys.argv[2])
with open(folder / "in", "wb") as file:
    file.truncate(size)
key, server = PrivateKey.generate(), SigningKey.generate()
seal_file(folder / "in", folder / "sealed", key.public_key(), signing_key=server)
open_file(folder / "sealed", folder / "out", key)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(os.name != "posix", reason="peak memory is asked of POSIX")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(size: int) -> int:
        command = [sys.executable, "-c", PEAK, str(tmp_path), str(size)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)

    small, large = peak(2**20), peak(2**27)
    assert large - small < 8 * 1024  # KiB; the file has 128 MiB
