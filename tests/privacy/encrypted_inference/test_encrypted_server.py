"""Sessions, and every way in which a query can be wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privacy.encrypted_inference import Client, Server, load_architecture, shipped_folder
from privacy.encrypted_inference.parameters import DEFAULT, Parameters
from privacy.encrypted_inference.seal import from_bytes, sealapi
from privacy.encrypted_inference.wire import BATCHED, PACKED, Answer, Failure, Keys, Query, decode, encode
from privacy.encrypted_inference.worker import Worker
from privacy.errors import (
    CapacityError,
    CiphertextError,
    ContextError,
    DepthError,
    ImageSizeError,
    InferenceError,
    KeyMismatchError,
    ModelError,
    ParameterError,
    SessionExpiredError,
    WorkerError,
)

DIGITS = {"digits": shipped_folder("digits")}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(DIGITS)
    yield worker
    worker.close()


def test_a_session_ends_after_its_last_use(worker: Worker, keys: bytes, query: bytes) -> None:
    clock = Clock()
    server = Server(DIGITS, session_seconds=60, worker=worker, clock=clock)
    server.register(keys)
    clock.now = 59
    server.classify(query)
    clock.now = 118
    server.classify(query)
    clock.now = 179
    with pytest.raises(SessionExpiredError):
        server.classify(query)
    server.register(keys)
    server.classify(query)


def test_keys_are_read_once(worker: Worker, keys: bytes) -> None:
    server = Server(DIGITS, worker=worker)
    assert server.register(keys) is server.register(keys)


def test_a_query_without_keys_is_refused(worker: Worker, query: bytes) -> None:
    with pytest.raises(SessionExpiredError):
        Server(DIGITS, worker=worker).classify(query)


def test_a_full_server_takes_no_more(worker: Worker, keys: bytes) -> None:
    clock = Clock()
    server = Server(DIGITS, session_seconds=10, max_sessions=1, worker=worker, clock=clock)
    server.register(keys)
    other = Client.generate(load_architecture("digits"), "digits")[1]
    with pytest.raises(CapacityError):
        server.register(other)
    clock.now = 11
    server.register(other)


def test_an_answer_sent_back_has_no_depth_left(client: Client, server: Server, query: bytes) -> None:
    answer = decode(server.classify(query), Answer)
    again = replace(decode(query, Query), ciphertexts=answer.ciphertexts * 2)
    with pytest.raises(DepthError, match="1 levels left, where 4"):
        server.classify(encode(again))


def test_a_query_in_the_wrong_layout_is_refused(client: Client, server: Server) -> None:
    images = np.zeros((2, 8, 8))
    packed, batched = (decode(client.encrypt(images, layout), Query) for layout in (PACKED, BATCHED))
    with pytest.raises(ImageSizeError, match="64 are awaited"):
        server.classify(encode(replace(packed, layout=BATCHED)))
    with pytest.raises(DepthError):
        server.classify(encode(replace(batched, layout=PACKED, ciphertexts=batched.ciphertexts[:4])))
    with pytest.raises(CiphertextError, match="not a fresh one"):
        server.classify(encode(replace(packed, layout=BATCHED, ciphertexts=packed.ciphertexts[:1] * 64)))


def test_a_query_for_a_model_of_another_shape_is_refused(server: Server, query: bytes) -> None:
    with pytest.raises(ImageSizeError, match="8 pixels"):
        server.classify(encode(replace(decode(query, Query), shape=bytes(32))))
    with pytest.raises(ModelError, match="isn't served"):
        server.classify(encode(replace(decode(query, Query), model="faces")))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 28, 28)),
        np.zeros((8, 8)),
        np.zeros((0, 8, 8)),
        np.full((1, 8, 8), 1.5),
        np.full((1, 8, 8), np.nan),
    ],
)
def test_images_of_another_size_or_range_are_refused(client: Client, images: np.ndarray) -> None:
    with pytest.raises(ImageSizeError):
        client.encrypt(images)


def test_too_many_images_are_refused(client: Client) -> None:
    with pytest.raises(ImageSizeError, match="1 to 64"):
        client.encrypt(np.zeros((65, 8, 8)), PACKED)
    with pytest.raises(ImageSizeError, match="1 to 4096"):
        client.encrypt(np.zeros((4097, 8, 8)))


def test_keys_that_lack_rotations_are_refused(server: Server, query: bytes) -> None:
    """Keys that were made for another architecture."""
    shape = replace(load_architecture("digits"), hidden=8)
    _, keys = Client.generate(shape, "digits")
    session = server.register(keys)
    with pytest.raises(KeyMismatchError, match="missing"):
        server.classify(encode(replace(decode(query, Query), fingerprint=session.fingerprint)))


def test_keys_of_another_context_are_refused(server: Server, keys: bytes) -> None:
    sent = decode(keys, Keys)
    with pytest.raises(ContextError):
        server.register(encode(replace(sent, parameters=replace(DEFAULT, batch_scale=20))))
    with pytest.raises(CiphertextError):
        server.register(encode(replace(sent, relin=sent.rotations[: len(sent.relin)])))


def test_a_ciphertext_of_another_context_is_refused(client: Client) -> None:
    other = Parameters(prime_bits=(56, 57, 24, 20, 60))
    content = decode(client.encrypt(np.zeros((1, 8, 8))), Query).ciphertexts[0]
    with pytest.raises(CiphertextError):
        from_bytes(sealapi.Ciphertext, content, other, "ciphertext")


def test_insecure_parameters_cant_be_made() -> None:
    with pytest.raises(ParameterError, match="128 bits"):
        Parameters(prime_bits=(60, 60, 60, 60))
    with pytest.raises(ParameterError):
        Parameters(degree=5000)


def test_a_worker_that_dies_costs_one_request(server: Server, query: bytes) -> None:
    worker = server._worker
    server.classify(query)
    assert worker.pid is not None
    worker._process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
    timeout, worker._timeout = worker._timeout, 0.2
    with pytest.raises(WorkerError, match="took too long"):
        server.classify(query)
    worker._timeout = timeout
    server.classify(query)
    os.kill(worker.pid, signal.SIGKILL)
    worker._process.wait()  # type: ignore[union-attr]
    server.classify(query)


def test_a_worker_that_dies_in_the_middle_is_told(
    server: Server, query: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.classify(query)
    worker = server._worker
    running = worker._running()
    monkeypatch.setattr(worker, "_running", lambda: running)
    running.kill()
    running.wait()
    with pytest.raises(WorkerError, match="died"):
        worker.request("check", layout=PACKED, ciphertexts=[b"x"])
    monkeypatch.undo()
    server.classify(query)


def test_a_workers_memory_is_bounded(query: bytes) -> None:
    worker = Worker(DIGITS, memory=1 << 20)
    try:
        with pytest.raises(InferenceError):
            worker.request("check", layout=PACKED, ciphertexts=decode(query, Query).ciphertexts * 40)
    finally:
        worker.close()


def test_a_damaged_model_is_told_by_the_server(tmp_path: Path, keys: bytes) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((DIGITS["digits"] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with Server({"digits": tmp_path}) as server, pytest.raises(ModelError, match="safetensors"):
        server.register(keys)
    with pytest.raises(ModelError):
        Server({"x": tmp_path / "nowhere"})


def test_handle_answers_failures(server: Server, client: Client, query: bytes) -> None:
    assert len(client.decrypt(server.handle(query)).labels) == 1
    failure = server.handle(b"garbage")
    assert decode(failure, Failure).error == "WireError"
    with pytest.raises(InferenceError, match="shorter"):
        client.decrypt(failure)
