"""Encrypted inference: a client encrypts an image, a server classifies what it can't see, the client reads the label.

>>> from privacy.encrypted_inference import Client, Server, load_architecture, shipped_folder
>>> client, keys = Client.generate(load_architecture("mnist"), "mnist")
>>> with Server({"mnist": shipped_folder("mnist")}) as server:
...     session = server.register(keys)
...     answer = server.classify(client.encrypt(images))  # [B, 28, 28], from 0 to 1
>>> client.decrypt(answer).labels
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privacy.encrypted_inference.weights import (
    Architecture,
    Weights,
    load_architecture,
    load_weights,
    shipped_folder,
    shipped_names,
)

if TYPE_CHECKING:
    from privacy.encrypted_inference.client import Client, Predictions
    from privacy.encrypted_inference.server import Server
    from privacy.encrypted_inference.tool import Tool, classifier_tool

__all__ = [
    "Architecture",
    "Client",
    "Predictions",
    "Server",
    "Tool",
    "Weights",
    "classifier_tool",
    "load_architecture",
    "load_weights",
    "shipped_folder",
    "shipped_names",
]

_HOMES = {"Client": "client", "Predictions": "client", "Server": "server", "Tool": "tool", "classifier_tool": "tool"}


def __getattr__(name: str) -> Any:
    """What needs TenSEAL or msgpack is imported when it is first asked for."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
