"""Blind screening: a server refuses unsafe prompts that it can't read.

::

    from latentguard.integrations.passkey import BlindClient, BlindGuard

    client = BlindClient("blind", PassKey.from_file("passkey.txt"))     # whoever has the passkey
    message = client.encrypt("a photo of a beheading").as_json()

    guard = BlindGuard.from_pretrained("blind")                         # the server, which has none
    guard.check(message).blocked

`python -m latentguard blind` writes the folder. docs/blind-screening.md says what it hides and what it doesn't.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentguard.integrations.passkey.client import BlindClient
    from latentguard.integrations.passkey.guard import BlindGuard
    from latentguard.integrations.passkey.keyholder import PasskeyEncoder, blind
    from latentguard.integrations.passkey.messages import EncryptedConcept, EncryptedPrompt

# The server's half imports nothing of `privacy`, which a server may lack.
_HOMES = {
    "BlindClient": "client",
    "BlindGuard": "guard",
    "EncryptedConcept": "messages",
    "EncryptedPrompt": "messages",
    "PasskeyEncoder": "keyholder",
    "blind": "keyholder",
}

__all__ = [
    "BlindClient",
    "BlindGuard",
    "EncryptedConcept",
    "EncryptedPrompt",
    "PasskeyEncoder",
    "blind",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
