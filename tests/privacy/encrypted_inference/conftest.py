"""A client and a server for the small shipped model, and images for it; made once, since keys take a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privacy.encrypted_inference import Client, Server, Weights, load_architecture, load_weights, shipped_folder
from privacy.encrypted_inference.data import LabelledImages, load_images

MODEL = "digits"


@pytest.fixture(scope="session")
def weights() -> Weights:
    return load_weights(MODEL)


@pytest.fixture(scope="session")
def digits() -> LabelledImages:
    return load_images(MODEL)


@pytest.fixture(scope="session")
def client_and_keys() -> tuple[Client, bytes]:
    return Client.generate(load_architecture(MODEL), MODEL)


@pytest.fixture(scope="session")
def client(client_and_keys: tuple[Client, bytes]) -> Client:
    return client_and_keys[0]


@pytest.fixture(scope="session")
def keys(client_and_keys: tuple[Client, bytes]) -> bytes:
    return client_and_keys[1]


@pytest.fixture(scope="session")
def shared_server(keys: bytes) -> Iterator[Server]:
    with Server({MODEL: model_folder()}) as server:
        yield server


@pytest.fixture
def server(shared_server: Server, keys: bytes) -> Server:
    """A server that has the client's keys."""
    shared_server.register(keys)
    return shared_server


@pytest.fixture(scope="session")
def query(client: Client, digits: LabelledImages) -> bytes:
    """A query with one image."""
    return client.encrypt(digits.pixels[:1])


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def model_folder() -> Path:
    return shipped_folder(MODEL)
