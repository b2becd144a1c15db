"""The wire format: versioned, typed, bounded; ten thousand mutations of it raise typed errors and end no process."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.encrypted_inference import Server
from privacy.encrypted_inference.parameters import DEFAULT
from privacy.encrypted_inference.seal import from_bytes, rotation_keys, seal_context, sealapi, to_bytes
from privacy.encrypted_inference.wire import (
    PACKED,
    Answer,
    Failure,
    Keys,
    Query,
    decode,
    encode,
)
from privacy.encrypted_inference.worker import Worker
from privacy.errors import ContextError, DepthError, InferenceError, WireError

BLOB = st.binary(min_size=1, max_size=50)
NAME = st.from_regex(r"[a-z]{1,20}", fullmatch=True)
MESSAGES = st.one_of(
    st.builds(Keys, st.just(DEFAULT), BLOB, BLOB),
    st.builds(
        Query,
        st.binary(min_size=32, max_size=32),
        NAME,
        st.binary(min_size=32, max_size=32),
        st.sampled_from(["packed", "batched"]),
        st.integers(1, 4096),
        st.lists(BLOB, min_size=1, max_size=5).map(tuple),
    ),
    st.builds(Failure, NAME, NAME),
)


@settings(max_examples=50)
@given(MESSAGES)
def test_what_is_encoded_decodes_to_itself(message: Keys | Query | Failure) -> None:
    assert decode(encode(message), type(message)) == message


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error(content: bytes) -> None:
    for kind in (Keys, Query, Answer):
        with pytest.raises(WireError):
            decode(content, kind)


def framed(body: object, kind: int = Query.KIND, version: int = 1, magic: bytes = b"LGEI") -> bytes:
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    return struct.pack(">4sBBI", magic, version, kind, len(packed)) + packed


def query_body(**changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "fingerprint": bytes(32),
        "model": "digits",
        "shape": bytes(32),
        "layout": PACKED,
        "count": 1,
        "ciphertexts": [b"x"],
    }
    return body | changes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "shorter than its header"),
        (framed(query_body(), magic=b"PK\x03\x04"), "doesn't begin"),
        (framed(query_body(), version=2), "version 2"),
        (framed(query_body(), kind=9), "unknown kind 9"),
        (framed(query_body(), kind=Answer.KIND), "kind 3, where Query"),
        (framed(query_body())[:-1], "bytes of body"),
        (framed(query_body()) + b"x", "bytes of body"),
        (struct.pack(">4sBBI", b"LGEI", 1, 4, 2**32 - 1), "more than"),
        (framed(b"\xc1"), "isn't msgpack"),
        (framed(b"\xdf\xff\xff\xff\xff"), "isn't msgpack"),
        (framed(b"\x91" * 5000), "isn't msgpack"),
        (framed([1, 2]), "has to have the fields"),
        (framed(query_body() | {"extra": 1}), "has to have the fields"),
        (framed({"model": "digits"}), "has to have the fields"),
        (framed(query_body(count=True)), "count"),
        (framed(query_body(count=4097)), "count"),
        (framed(query_body(layout="pickle")), "layout"),
        (framed(query_body(model="a\nb")), "model"),
        (framed(query_body(shape=b"short")), "shape"),
        (framed(query_body(ciphertexts=[])), "ciphertexts"),
        (framed(query_body(ciphertexts=[b""])), "ciphertexts: 1"),
        (framed(query_body(ciphertexts=[bytes(DEFAULT.ciphertext_bytes + 1)])), "ciphertexts: 1"),
        (framed(query_body(ciphertexts=["text"])), "ciphertexts: 1"),
    ],
)
def test_every_way_to_be_wrong_is_told(content: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode(content, Query)


def test_keys_of_other_parameters_are_a_context_error() -> None:
    other = replace(DEFAULT, image_scale=21)
    with pytest.raises(ContextError):
        decode(encode(Keys(other, b"x", b"x")), Keys)


def test_a_failure_is_raised_as_the_error_it_stands_for() -> None:
    with pytest.raises(DepthError, match="levels"):
        decode(encode(Failure.of(DepthError("too few levels"))), Answer)
    with pytest.raises(InferenceError, match="odd"):
        decode(encode(Failure("SystemExit", "odd")), Answer)


def test_nothing_here_unpickles() -> None:
    package = Path(__file__).parents[3] / "privacy" / "encrypted_inference"
    for path in package.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(
            r"^\s*(import|from) (pickle|shelve|marshal)|torch\.load|(?<![.\w])(eval|exec)\(", source, re.M
        )


Mutate = Callable[[np.random.Generator, bytes, int], bytes]


def _flip(random: np.random.Generator, content: bytes, within: int) -> bytes:
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        changed[int(random.integers(0, min(within, len(content))))] ^= 1 << int(random.integers(0, 8))
    return bytes(changed)


def _cut(random: np.random.Generator, content: bytes, within: int) -> bytes:
    return content[: int(random.integers(0, min(within, len(content))))]


def _insert(random: np.random.Generator, content: bytes, within: int) -> bytes:
    place = int(random.integers(0, min(within, len(content))))
    return content[:place] + random.bytes(int(random.integers(1, 40))) + content[place:]


def _overwrite(random: np.random.Generator, content: bytes, within: int) -> bytes:
    place, length = int(random.integers(0, min(within, len(content)))), int(random.integers(1, 40))
    return content[:place] + random.bytes(length) + content[place + length :]


def _extreme(random: np.random.Generator, content: bytes, within: int) -> bytes:
    """A length or count field somewhere, set to its largest or smallest."""
    place, length = int(random.integers(0, min(within, len(content)))), int(random.choice([1, 2, 4, 8]))
    value = (b"\xff" if random.integers(2) else b"\x00") * length
    return content[:place] + value + content[place + length :]


def _endless(mutations: list[Mutate], seed: int) -> Iterator[tuple[np.random.Generator, Mutate]]:
    random = np.random.default_rng(seed)
    while True:
        yield random, mutations[int(random.integers(len(mutations)))]


MUTATIONS: list[Mutate] = [_flip, _cut, _insert, _overwrite, _extreme]


def typed_errors_only(call: Callable[[bytes], object], contents: Iterator[bytes], count: int) -> int:
    """How many of `count` contents were refused; whatever isn't an `InferenceError` fails the test."""
    refused = 0
    for _, content in zip(range(count), contents, strict=False):
        try:
            call(content)
        except InferenceError:
            refused += 1
    return refused


def test_5000_mutated_frames_raise_typed_errors(query: bytes, keys: bytes) -> None:
    """Mutations of everything but the ciphertexts: the frame, the map, the fields, in a short query and in keys."""
    body = query_body(ciphertexts=[b"c" * 20] * 3)
    short = framed(body)
    few_keys = encode(Keys(DEFAULT, b"r" * 30, b"g" * 30))
    for message, kind, seed in ((short, Query, 1), (few_keys, Keys, 2)):
        contents = (mutate(random, message, len(message)) for random, mutate in _endless(MUTATIONS, seed))
        assert typed_errors_only(lambda content, kind=kind: decode(content, kind), contents, 2500) > 1000


def test_5000_mutated_ciphertexts_raise_typed_errors_and_the_worker_lives(server: Server, query: bytes) -> None:
    """Mutations of what SEAL reads, half of them in its headers, all in the worker process, whose memory is bounded."""
    whole = decode(query, Query)
    blob = whole.ciphertexts[0]
    worker = server._worker
    server.check(query)
    starts = worker.starts
    contents = (
        mutate(random, blob, len(blob) if random.integers(2) else 120) for random, mutate in _endless(MUTATIONS, 3)
    )

    def check(content: bytes) -> None:
        # Many in one request would stop at the first that is refused.
        server.check(encode(replace(whole, ciphertexts=(content or b"x",))))

    assert typed_errors_only(check, contents, 5000) > 2000
    server.check(query)
    assert worker.starts - starts <= 5
    assert peak_bytes(worker) < 600 << 20


def test_mutated_ciphertexts_that_seal_takes_are_evaluated_or_refused(server: Server, query: bytes) -> None:
    whole = decode(query, Query)
    first, *others = whole.ciphertexts
    contents = (_flip(random, first, len(first)) for random, _ in _endless(MUTATIONS, 6))

    def classify(content: bytes) -> None:
        server.classify(encode(replace(whole, ciphertexts=(content, *others))))

    typed_errors_only(classify, contents, 40)
    server.classify(query)


def test_150_mutated_keys_raise_typed_errors(keys: bytes) -> None:
    generator = sealapi.KeyGenerator(seal_context(DEFAULT))
    relin = sealapi.RelinKeys()
    generator.create_relin_keys(relin)
    whole = Keys(DEFAULT, to_bytes(relin), to_bytes(rotation_keys(generator, DEFAULT, [1])))
    folder = Path(__file__).parents[3] / "privacy" / "encrypted_inference" / "shipped" / "digits"
    with Server({"digits": folder}, max_sessions=1000) as server:
        contents = (mutate(random, whole.rotations, 400) for random, mutate in _endless(MUTATIONS, 4))

        def register(content: bytes) -> None:
            server.register(encode(replace(whole, rotations=content or b"x")))

        assert typed_errors_only(register, contents, 150) > 50
        assert peak_bytes(server._worker) < 2 << 30


def test_a_mutated_answer_raises_typed_errors_at_the_client(server: Server, query: bytes) -> None:
    answer = decode(server.classify(query), Answer).ciphertexts[0]
    contents = (mutate(random, answer, 200) for random, mutate in _endless([_cut, _insert], 5))
    load = lambda content: from_bytes(sealapi.Ciphertext, content, DEFAULT, "answer")  # noqa: E731
    assert typed_errors_only(load, contents, 50) > 20


def peak_bytes(worker: Worker) -> int:
    """The most memory that the worker process had, 0 where the system doesn't tell."""
    status = Path(f"/proc/{worker.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
