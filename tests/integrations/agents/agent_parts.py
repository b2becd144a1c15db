"""A user of the agents' tools, and running what is asynchronous."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio

from privacy.encrypted_inference import Client
from privacy.keys import PrivateKey

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Runs a coroutine to its end."""
    return anyio.run(work)


@dataclass(frozen=True)
class User:
    """Somebody with a key to open sealed images with, and an encrypted picture whose label nobody else is to know."""

    key: PrivateKey
    key_file: Path
    client: Client
    secret_file: Path
    query: Path
    keys: Path
    picture: Path
    label: str

    @property
    def public_key(self) -> str:
        return str(self.key.public_key())
