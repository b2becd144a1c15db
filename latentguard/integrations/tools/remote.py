"""The tools of a running latentguard service, over HTTPS."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from latentguard.errors import AgentError, ToolError
from latentguard.integrations.tools.base import (
    BlockedError,
    Concept,
    PolicyInForce,
    Score,
    Screening,
    SealedImage,
    ToolName,
    Word,
)
from latentguard.integrations.tools.failures import as_tool_errors
from privacy.keys import PublicKey

_TIMEOUT = httpx.Timeout(30.0, read=600.0)
_MOST_BYTES = 256 * 2**20
_TOKEN = re.compile(r"[\x21-\x7e]{8,512}")
_CODE = re.compile(r"[a-z_]{1,40}")


class RemoteTools:
    """Tools of the service that `client` talks to. It checks the API key, limits, and keeps the audit log.

    Args:
        client: with the service's address and the key's header; closed by `aclose`.
        offered: the tools that the key may use.
    """

    def __init__(self, client: httpx.AsyncClient, offered: Collection[ToolName] = get_args(ToolName)) -> None:
        self._client, self._offered = client, frozenset(offered)

    @classmethod
    def connect(cls, url: str, api_key: str | None, certificate: Path | None = None) -> RemoteTools:
        """Tools of the service at `url`.

        Args:
            url: up to the port, such as https://127.0.0.1:8443.
            api_key: sent with every request; never over plain HTTP to another machine.
            certificate: PEM file of the authority that signed the service's certificate, or of a self-signed one;
                by default those that the system trusts.

        Raises:
            AgentError: one of them can't be used.
        """
        _check_url(url, api_key)
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # Redirects are not followed: they might carry the key elsewhere.
        client = httpx.AsyncClient(
            base_url=url, headers=headers, verify=_context(certificate), timeout=_TIMEOUT, trust_env=False
        )
        return cls(client)

    @property
    def offered(self) -> frozenset[ToolName]:
        return self._offered

    @property
    def place(self) -> str:
        return f"the service at {self._client.base_url.host}"

    async def screen(self, prompt: str, *, nearest: int = 5, words: bool = False) -> Screening:
        answer = await self._json("POST", "/v1/screen", {"prompt": prompt, "top_k": nearest, "explain": words})
        with _as_answered():
            return _screening(answer["results"][0], answer["policy"])

    async def generate(self, prompt: str, recipients: Sequence[PublicKey], *, steps: int | None = None) -> SealedImage:
        body = {"prompt": prompt, "recipients": [str(key) for key in recipients], "format": "json"}
        answer = await self._json("POST", "/v1/generate", body if steps is None else {**body, "steps": steps})
        with _as_answered():
            content = base64.b64decode(answer["images"][0], validate=True)
            return SealedImage(content, {str(kind): int(n) for kind, n in answer["personal_data"].items()}, None)

    async def classify(self, query: bytes, keys: bytes | None = None) -> bytes:
        if keys is not None:
            await self._request("PUT", "/v1/classify-encrypted/keys", content=keys)
        return await self._request("POST", "/v1/classify-encrypted", content=query)

    async def policy(self) -> PolicyInForce:
        answer = await self._json("GET", "/v1/policy")
        with _as_answered():
            return PolicyInForce(
                fingerprint=answer["policy"], threshold=answer["threshold"], concepts=answer["concepts"]
            )

    async def concepts(self) -> tuple[Concept, ...]:
        answer = await self._json("GET", "/v1/concepts")
        with _as_answered():
            return tuple(
                Concept(name=each["name"], category=each["category"], threshold=each["threshold"])
                for each in answer["concepts"]
            )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        answered = await self._request(method, path, content=content, kind="application/json")
        with _as_answered():
            return json.loads(answered)

    async def _request(
        self, method: str, path: str, *, content: bytes | None = None, kind: str = "application/octet-stream"
    ) -> bytes:
        """The body of a successful answer. Raises ToolError with the service's code, BlockedError if it blocked."""
        headers = {"Content-Type": kind} if content is not None else {}
        with as_tool_errors():
            try:
                async with self._client.stream(method, path, content=content, headers=headers) as response:
                    answered = await _limited(response)
            except httpx.TimeoutException:
                raise ToolError("no_answer", "the service took too long") from None
            except httpx.HTTPError as error:
                raise ToolError("no_answer", f"the service can't be reached ({type(error).__name__})") from None
        if response.is_success:
            return answered
        raise _problem(response.status_code, answered)


async def _limited(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise ToolError("bad_answer", "the service's answer is too long")
    return bytes(content)


class _as_answered:
    """Raises what is wrong with an answer's form as a ToolError that quotes nothing of it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (ValueError, LookupError, TypeError, AttributeError, RecursionError, ValidationError)):
            raise ToolError("bad_answer", "the service's answer is none that this version knows") from None


def _problem(status: int, content: bytes) -> ToolError:
    """The error in an RFC 9457 body; what is not one becomes an error that names the status alone."""
    unknown = ToolError("bad_answer", f"the service answered with status {status}")
    try:
        body = json.loads(content)
        code, detail = str(body["code"]), str(body["detail"])
        if code == "prompt_blocked":
            return BlockedError(_screening(body["verdicts"][0], body["policy"]))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return unknown
    shown = "".join(character if character.isprintable() else " " for character in detail)[:300]
    return ToolError(code, shown) if _CODE.fullmatch(code) else unknown


def _screening(verdict: Mapping[str, Any], policy: str) -> Screening:
    explained = verdict["explanation"]
    return Screening(
        decision=verdict["decision"],
        # Nothing that the service blocks is passed on as allowed, whatever else it says.
        blocked=verdict["blocked"] is not False or verdict["decision"] == "block",
        score=verdict["score"],
        threshold=verdict["threshold"],
        concept=verdict["concept"],
        category=verdict["category"],
        probability=verdict["probability"],
        nearest=tuple(Score(concept=each["concept"], score=each["score"]) for each in verdict["concepts"]),
        words=tuple(
            Word(text=word["text"], contribution=word["contribution"])
            for word in (explained["words"] if explained else ())
        ),
        policy=policy,
    )


def _check_url(url: str, api_key: str | None) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise AgentError("the service's URL is not an http or https address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise AgentError("the service's URL is not an http or https address")
    if parts.username or parts.password or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise AgentError("the service's URL ends with the port, and holds no key")
    if api_key is not None and parts.scheme == "http" and not _is_local(host):
        raise AgentError("the API key is not sent over plain http to another machine; use https")
    if api_key is not None and not _TOKEN.fullmatch(api_key):
        raise AgentError("the API key holds characters that no key has")


def _context(certificate: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if certificate is None else str(certificate))
    except (OSError, ssl.SSLError):
        raise AgentError(f"{certificate}: can't be read as a certificate in PEM") from None


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
