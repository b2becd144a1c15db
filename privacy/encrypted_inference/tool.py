"""The encrypted classifier as a tool: a name, a JSON schema and a call, for agents and the service."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from privacy.encrypted_inference.server import Server
from privacy.errors import InferenceError, WireError


@dataclass(frozen=True)
class Tool:
    """Something that an agent may call: ``call`` takes arguments that fit the JSON schema ``parameters``."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[Mapping[str, Any]], dict[str, Any]]


def classifier_tool(server: Server) -> Tool:
    """The tool that classifies encrypted images on `server`.

    A call returns ``{"answer": base64}`` or, for whatever a caller can do wrong, ``{"error": name, "message": text}``.
    """

    def call(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            unknown = set(arguments) - {"query", "keys"}
            if unknown:
                raise WireError(f"arguments: unknown: {', '.join(sorted(map(str, unknown)))[:100]}")
            if "keys" in arguments:
                server.register(_decoded("keys", arguments["keys"]))
            answer = server.classify(_decoded("query", arguments.get("query")))
        except InferenceError as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"answer": base64.b64encode(answer).decode("ascii")}

    return Tool(
        name="classify_encrypted_image",
        description=(
            "Classifies images that stay encrypted (CKKS): takes a query that the client encrypted and gives back the "
            "encrypted answer, which only that client can decrypt. The first call has to bring the client's "
            "evaluation keys; later ones need them only after a SessionExpiredError."
        ),
        parameters={
            "type": "object",
            "properties": {
                "query": {
                    "type": "string",
                    "contentEncoding": "base64",
                    "description": "the message of Client.encrypt",
                },
                "keys": {
                    "type": "string",
                    "contentEncoding": "base64",
                    "description": "the message with the client's evaluation keys, which hold no secret",
                },
            },
            "required": ["query"],
            "additionalProperties": False,
        },
        call=call,
    )


def _decoded(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise WireError(f"arguments: {name} isn't a text in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError(f"arguments: {name} isn't base64") from error
