"""The MCP server as a part of the service: over HTTP, with API keys, by the SDK's own client and by hand."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="agents' tools need the MCP SDK, of the extra agents")
pytest.importorskip("fastapi", reason="the service needs FastAPI, of the extra service")

import httpx
import httpx2
import uvicorn
from agent_parts import User, run
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from latentguard import LatentGuard
from latentguard.errors import AgentError, ToolError
from latentguard.integrations.agent import Agent, RulePlanner
from latentguard.integrations.agent.report import State
from latentguard.integrations.tools.base import BlockedError
from latentguard.integrations.tools.remote import RemoteTools
from latentguard.service.access import Scope
from latentguard.service.app import create_app
from latentguard.service.services import Services, open_services
from latentguard.service.settings import Settings
from latentguard.service.tls import certificate_files
from privacy.keys import PublicKey
from privacy.sealing import open_sealed

ROOT = Path(__file__).parents[3]
BLOCKED = "naked woman lying on a bed"
ALLOWED = "a red fox in the snow"
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


@dataclass(frozen=True)
class Running:
    """A service on 127.0.0.1, and a token for each scope."""

    url: str
    certificate: Path
    services: Services
    tokens: dict[str, str] = field(repr=False)

    def post(self, headers: dict[str, str], content: bytes = json.dumps(CALL).encode()) -> httpx.Response:
        asked = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        return httpx.post(f"{self.url}/mcp", content=content, headers=asked | headers, verify=self.trust)

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def bearer(self, scope: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[scope]}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard, pipeline: Any) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"), http_port=0)
    with open_services(settings, guard=default_guard, pipeline=pipeline) as services, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        files = certificate_files(settings)
        config = uvicorn.Config(
            create_app(services),
            log_level="error",
            access_log=False,
            ssl_certfile=files.certificate,
            ssl_keyfile=files.key,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        tokens = {scope.value: services.keys.create(scope.value, [scope])[1] for scope in Scope}
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.02)
            yield Running(f"https://127.0.0.1:{listener.getsockname()[1]}", files.certificate, services, tokens)
        finally:
            server.should_exit = True
            thread.join(30)


@asynccontextmanager
async def connected(service: Running, scope: str, mode: str = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=service.bearer(scope), verify=service.trust) as http,
        Client(streamable_http_client(f"{service.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_sdks_client_screens_over_http(service: Running, default_guard: LatentGuard, mode: str) -> None:
    async def work() -> Any:
        async with connected(service, "screen", mode) as client:
            listed = [tool.name for tool in (await client.list_tools()).tools]
            return listed, await client.call_tool("screen_prompt", {"prompt": BLOCKED})

    listed, result = run(work)
    assert listed == ["screen_prompt"]  # what the key may not use is not offered
    verdict = result.structured_content["verdict"]
    assert verdict["blocked"] is True
    assert verdict["score"] == pytest.approx(default_guard.check(BLOCKED).score, abs=1e-3)
    assert verdict["policy"] == service.services.policies.fingerprint


def test_a_tool_beyond_the_keys_scopes_cannot_be_called(service: Running, user: User, drawn: list[str]) -> None:
    before = len(drawn)

    async def work() -> bool:
        async with connected(service, "screen") as client:
            try:
                await client.call_tool(
                    "generate_private_image", {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1}
                )
            except MCPError:
                return True
        return False

    assert run(work)
    assert len(drawn) == before


def test_what_tools_screen_is_in_the_audit_log_under_the_callers_key(service: Running) -> None:
    prompt = "an old lighthouse under a purple sky"

    async def work() -> Any:
        async with connected(service, "screen") as client:
            return await client.call_tool("screen_prompt", {"prompt": prompt})

    before = service.services.audit.entries(limit=1)[0].sequence
    run(work)
    [entry] = [each for each in service.services.audit.entries(limit=10) if each.sequence > before]
    key_id = service.tokens["screen"].split("_")[1]
    assert (entry.actor, entry.action, entry.verdict) == (key_id, "screen", "allow")
    assert service.services.audit.verify().intact


def test_a_sealed_image_and_an_encrypted_label_come_embedded(service: Running, user: User) -> None:
    async def work() -> Any:
        async with connected(service, "generate") as client:
            drawn = await client.call_tool(
                "generate_private_image", {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1}
            )
            query, keys = (base64.b64encode(path.read_bytes()).decode() for path in (user.query, user.keys))
            return drawn, await client.call_tool("classify_encrypted_image", {"query": query, "keys": keys})

    drawn, classified = run(work)
    image, answer = (
        base64.b64decode(each.resource.blob)
        for result in (drawn, classified)
        for each in result.content
        if each.type == "resource"
    )
    assert open_sealed(image, user.key).data.startswith(b"\x89PNG")
    assert user.client.decrypt(answer).labels == (user.label,)


def test_a_blocked_prompt_is_an_error_and_nothing_is_drawn(service: Running, user: User, drawn: list[str]) -> None:
    before = len(drawn)

    async def work() -> Any:
        async with connected(service, "admin") as client:
            return await client.call_tool(
                "generate_private_image", {"prompt": BLOCKED, "public_keys": [user.public_key], "steps": 1}
            )

    result = run(work)
    assert result.is_error
    assert result.structured_content["status"] == "blocked"
    assert result.structured_content["verdict"]["blocked"] is True
    assert len(drawn) == before


def test_without_a_good_key_nothing_is_answered(service: Running) -> None:
    for headers in ({}, {"authorization": "Bearer lg_0123456789abcdef_" + "A" * 43}, {"authorization": "Basic x"}):
        response = service.post(headers)
        assert response.status_code == 401
        assert response.json()["code"] == "not_authenticated"
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert service.post({"x-api-key": service.tokens["screen"]}).status_code == 200


def test_a_revoked_key_is_refused(service: Running) -> None:
    key, token = service.services.keys.create("short-lived", [Scope.screen])
    headers = {"authorization": f"Bearer {token}"}
    assert service.post(headers).status_code == 200
    service.services.keys.revoke(key.id)
    assert service.post(headers).status_code == 401


def test_a_page_elsewhere_cannot_reach_the_tools(service: Running) -> None:
    """DNS rebinding: a name of the attacker's leads here, and its page sends what browsers send."""
    good, port = service.bearer("admin"), service.url.rsplit(":", 1)[1]
    evil = service.post({**good, "host": f"evil.example:{port}"})
    assert (evil.status_code, evil.json()["code"]) == (400, "unknown_host")
    for origin in ("https://evil.example", "null", f"https://localhost:{port}", "https://127.0.0.1:1"):
        assert service.post({**good, "origin": origin}).status_code == 403
    assert service.post({**good, "origin": service.url}).status_code == 200
    assert service.post({**good, "host": f"localhost:{port}"}).status_code == 200


def test_no_stream_is_held_open(service: Running) -> None:
    headers = {**service.bearer("admin"), "accept": "text/event-stream"}
    response = httpx.get(f"{service.url}/mcp", headers=headers, timeout=5, verify=service.trust)
    assert response.status_code == 405


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"jsonrpc":"2.0"}', b"\xff\xfe", b"[" * 10_000],
    ids=["empty", "half", "list", "null", "no-method", "no-utf8", "deep"],
)
def test_garbage_is_refused_without_a_stack(service: Running, content: bytes) -> None:
    response = service.post(service.bearer("admin"), content)
    assert 400 <= response.status_code < 500
    assert "Traceback" not in response.text
    assert "/latentguard" not in response.text


# --- the tools of a running service, for the stdio server and the agent


@asynccontextmanager
async def remote(service: Running, scope: str) -> AsyncIterator[RemoteTools]:
    tools = RemoteTools.connect(service.url, service.tokens[scope], service.certificate)
    try:
        yield tools
    finally:
        await tools.aclose()


def test_a_remote_screening_is_the_services_own(service: Running, default_guard: LatentGuard) -> None:
    async def work() -> Any:
        async with remote(service, "admin") as tools:
            return await tools.screen(BLOCKED, nearest=2, words=True), await tools.policy(), await tools.concepts()

    screening, policy, concepts = run(work)
    assert screening.blocked
    assert [each.concept for each in screening.nearest] == [name for name, _ in default_guard.check(BLOCKED).scores(2)]
    assert [word.text for word in screening.words] == BLOCKED.split()
    assert policy.fingerprint == screening.policy
    assert len(concepts) == policy.concepts == len(default_guard.concepts)


def test_remote_errors_keep_their_codes(service: Running, user: User) -> None:
    recipients = [PublicKey.from_line(user.public_key)]

    async def code(scope: str, what: str) -> str:
        async with remote(service, scope) as tools:
            try:
                if what == "screen":
                    await tools.screen("x" * 10_001)
                elif what == "classify":
                    await tools.classify(b"nonsense")
                else:
                    await tools.generate(BLOCKED, recipients, steps=1)
            except BlockedError as blocked:
                return f"{blocked.code}: {blocked.verdict.decision}"
            except ToolError as error:
                return error.code
        return "none"

    async def work() -> list[str]:
        asked = [("generate", "screen"), ("screen", "screen"), ("generate", "classify"), ("generate", "generate")]
        return [await code(*each) for each in asked]

    assert run(work) == ["forbidden", "too_many_prompts", "invalid_message", "prompt_blocked: block"]


def test_a_service_that_is_away_is_said_so() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        tools = RemoteTools.connect(f"http://127.0.0.1:{nobody.getsockname()[1]}", "lg_whatever")
        with pytest.raises(ToolError) as failed:
            run(lambda: tools.screen(ALLOWED))
    assert failed.value.code == "no_answer"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://example.org", "lg_secretsecret"),
        ("ftp://127.0.0.1", None),
        ("https://user:pass@127.0.0.1", None),
        ("https://127.0.0.1/v1", None),
        ("https://127.0.0.1:99999", None),
        ("https://127.0.0.1", "lg_with space"),
        ("https://127.0.0.1", "lg_newline\n"),
    ],
    ids=["key-in-clear", "ftp", "password", "path", "port", "space", "newline"],
)
def test_an_address_or_key_that_cannot_be_right_is_refused(url: str, key: str | None) -> None:
    with pytest.raises(AgentError) as refused:
        RemoteTools.connect(url, key)
    assert key is None or key.strip() not in str(refused.value)


def test_the_agent_works_over_a_service(service: Running, user: User, tmp_path: Path) -> None:
    request = "check the prompt 'a red fox in the snow' and draw it, then classify the encryption image query"

    async def work() -> Any:
        async with remote(service, "admin") as tools:
            keys = [user.key.public_key()]
            agent = Agent(tools, RulePlanner(), output=tmp_path, public_keys=keys, steps=1)
            return await agent.run(request, [user.query, user.keys])

    report = run(work)
    assert [step.state for step in report.steps] == [State.DONE] * 3
    assert {step.place for step in report.steps} == {"the service at 127.0.0.1"}
    sealed, answer = (step.path for step in report.steps[1:])
    assert sealed is not None
    assert answer is not None
    assert open_sealed(sealed.read_bytes(), user.key).data.startswith(b"\x89PNG")
    assert user.client.decrypt(answer.read_bytes()).labels == (user.label,)


def test_an_unknown_certificate_is_not_trusted(service: Running) -> None:
    tools = RemoteTools.connect(service.url, service.tokens["screen"])
    with pytest.raises(ToolError) as refused:
        run(lambda: tools.screen(ALLOWED))
    assert refused.value.code == "no_answer"


def test_the_stdio_server_offers_a_services_tools(service: Running, user: User, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(service.tokens["admin"])
    arguments = ["--url", service.url, "--api-key-file", str(key), "--certificate", str(service.certificate)]
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "latentguard", "mcp", *arguments, "--output-dir", str(tmp_path)],
        env={"PYTHONPATH": str(ROOT)},
    )

    async def work() -> Any:
        async with Client(server) as client:
            drawing = {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1, "file_name": "fox"}
            return await client.call_tool("generate_private_image", drawing)

    result = run(work)
    assert result.structured_content["status"] == "sealed"
    assert open_sealed((tmp_path / "fox").read_bytes(), user.key).data.startswith(b"\x89PNG")


def test_the_command_offers_mcp_alone_over_http(embedded_weights: Path, cache_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latentguard", "mcp", "--transport", "http", "--port", "0"]
    command += ["--guard", str(embedded_weights), "--data-dir", str(tmp_path / "data")]
    environment = os.environ | {"LATENTGUARD_CACHE": str(cache_folder), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            made = Path(process.stdout.readline().strip().removeprefix("admin key, made now: "))
            assert made.stat().st_mode & 0o777 == 0o600
            token = made.read_text().strip()

            async def work() -> Any:
                async with (
                    httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}) as http,
                    Client(streamable_http_client(url, http_client=http)) as client,
                ):
                    return await client.call_tool("screen_prompt", {"prompt": ALLOWED})

            assert run(work).structured_content["status"] == "screened"
            assert url.startswith("http://127.0.0.1:")
            assert httpx.post(url, content=json.dumps(CALL)).status_code == 401
            for path in ("/v1/screen", "/console", "/metrics", "/"):
                assert httpx.get(url.removesuffix("/mcp") + path).status_code == 404
        finally:
            process.terminate()
        assert process.wait(30) is not None
