"""Passkey text models: a model that reads only text encrypted with its key.

from privacy.passkey import PassKey, PasskeyClient, convert

passkey = PassKey.from_file("passkey.txt")
convert("model", "encrypted", passkey)                          # once; "encrypted" goes to the server
inputs = PasskeyClient("model", passkey, "encrypted").encrypt_batch(["a text"])

model = AutoModel.from_pretrained("encrypted")                  # on the server, which has no key
model(**inputs)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once, as the function has its module's name: the module would take its place whenever it is first imported.
from privacy.passkey.convert import Converted, convert

if TYPE_CHECKING:
    from privacy.passkey.client import EncryptedText, PasskeyClient
    from privacy.passkey.keys import PassKey, Stretching
    from privacy.passkey.record import Record, check_folder
    from privacy.passkey.transforms import Transform

_HOMES = {
    "EncryptedText": "client",
    "PassKey": "keys",
    "PasskeyClient": "client",
    "Record": "record",
    "Stretching": "keys",
    "Transform": "transforms",
    "check_folder": "record",
}

__all__ = [
    "Converted",
    "EncryptedText",
    "PassKey",
    "PasskeyClient",
    "Record",
    "Stretching",
    "Transform",
    "check_folder",
    "convert",
]


def __getattr__(name: str) -> Any:
    """Imports a name at its first use: cryptography and NumPy take a moment, which `--help` need not cost."""
    if name in _HOMES:
        return getattr(import_module(f"privacy.passkey.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
