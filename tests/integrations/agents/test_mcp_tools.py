"""The MCP server's tools in this process: what they take, give and refuse, whoever calls them."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("mcp", reason="agents' tools need the MCP SDK, of the extra agents")

from agent_parts import User, run
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from latentguard import LatentGuard
from latentguard.errors import ToolError
from latentguard.integrations.mcp.files import Folder
from latentguard.integrations.mcp.server import CONCEPTS_URI, POLICY_URI, Access, mcp_server
from latentguard.integrations.tools.local import LocalTools
from privacy.sealing import open_sealed

BLOCKED = "naked woman lying on a bed"
ALLOWED = "a red fox in the snow"


def call(tools: LocalTools, name: str, arguments: dict[str, Any], **folders: Folder) -> CallToolResult:
    """The result of one call, by the SDK's client."""

    async def work() -> CallToolResult | MCPError:
        async with Client(mcp_server(lambda _: Access(tools, **folders))) as client:
            await client.list_tools()
            try:
                return await client.call_tool(name, arguments)
            except MCPError as error:
                return error  # raised in here, it would come out in a group

    result = run(work)
    if isinstance(result, MCPError):
        raise result
    return result


def failure(result: CallToolResult) -> dict[str, str]:
    assert result.is_error
    assert result.structured_content["status"] == "failed"
    return result.structured_content["failure"]


def test_three_tools_are_listed_with_closed_schemas_and_hints(tools: LocalTools) -> None:
    async def work() -> Any:
        async with Client(mcp_server(lambda _: Access(tools))) as client:
            return (await client.list_tools()).tools

    listed = {tool.name: tool for tool in run(work)}
    assert set(listed) == {"screen_prompt", "generate_private_image", "classify_encrypted_image"}
    for tool in listed.values():
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
        assert tool.input_schema["additionalProperties"] is False
        assert tool.annotations.destructive_hint is False
        assert tool.annotations.open_world_hint is False
    hints = {name: tool.annotations.read_only_hint for name, tool in listed.items()}
    assert hints == {"screen_prompt": True, "generate_private_image": False, "classify_encrypted_image": False}


def test_what_is_not_loaded_is_not_listed_and_cannot_be_called(default_guard: LatentGuard) -> None:
    tools = LocalTools(default_guard)

    async def work() -> list[str]:
        async with Client(mcp_server(lambda _: Access(tools))) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert run(work) == ["screen_prompt"]
    with pytest.raises(MCPError, match="no tool"):
        call(tools, "generate_private_image", {"prompt": ALLOWED, "public_keys": ["x25519:whatever"]})


@pytest.mark.parametrize(("prompt", "blocked"), [(BLOCKED, True), (ALLOWED, False)], ids=["blocked", "allowed"])
def test_a_screening_is_the_guards_verdict(
    tools: LocalTools, default_guard: LatentGuard, prompt: str, blocked: bool
) -> None:
    result = call(tools, "screen_prompt", {"prompt": prompt, "nearest": 3, "words": True})
    verdict = result.structured_content["verdict"]
    expected = default_guard.check(prompt)
    assert not result.is_error  # a verdict is no failure, whatever it says
    assert verdict["blocked"] is blocked is expected.blocked
    assert verdict["score"] == pytest.approx(expected.score)
    assert [each["concept"] for each in verdict["nearest"]] == [name for name, _ in expected.scores(3)]
    assert [word["text"] for word in verdict["words"]] == prompt.split()
    assert prompt not in json.dumps({**verdict, "words": []})


def test_an_image_is_drawn_for_its_owner_and_handed_over_sealed(tools: LocalTools, user: User) -> None:
    result = call(tools, "generate_private_image", {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1})
    assert not result.is_error
    image = result.structured_content["image"]
    [blob] = [each.resource for each in result.content if each.type == "resource"]
    content = base64.b64decode(blob.blob)
    assert blob.uri == image["uri"]
    assert len(content) == image["bytes"]
    assert open_sealed(content, user.key).data.startswith(b"\x89PNG")
    assert b"PNG" not in content
    assert all(each.type != "image" for each in result.content)


def test_with_an_output_folder_the_sealed_image_is_a_new_file_of_it(
    tools: LocalTools, user: User, tmp_path: Path
) -> None:
    given = {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1, "file_name": "fox.sealed"}
    result = call(tools, "generate_private_image", given, outputs=Folder(tmp_path))
    written = tmp_path / "fox.sealed"
    assert result.structured_content["image"]["file_name"] == "fox.sealed"
    assert open_sealed(written.read_bytes(), user.key).data.startswith(b"\x89PNG")
    assert written.stat().st_mode & 0o777 == 0o600

    before = written.read_bytes()
    again = call(tools, "generate_private_image", given, outputs=Folder(tmp_path))
    assert failure(again)["code"] == "invalid_file"
    assert written.read_bytes() == before


def test_a_blocked_prompt_is_an_error_with_its_verdict_and_nothing_is_drawn(
    tools: LocalTools, user: User, drawn: list[str], tmp_path: Path
) -> None:
    before = len(drawn)
    given = {"prompt": BLOCKED, "public_keys": [user.public_key], "steps": 1}
    result = call(tools, "generate_private_image", given, outputs=Folder(tmp_path))
    assert result.is_error
    assert result.structured_content["status"] == "blocked"
    assert result.structured_content["verdict"]["blocked"] is True
    assert result.structured_content["failure"]["code"] == "prompt_blocked"
    assert len(drawn) == before
    assert list(tmp_path.iterdir()) == []


def test_an_encrypted_image_is_classified_and_its_owner_alone_reads_the_label(
    tools: LocalTools, user: User, tmp_path: Path
) -> None:
    inputs, outputs = Folder(user.query.parent), Folder(tmp_path)
    given = {"query_file": "query", "keys_file": "client.keys", "file_name": "answer"}
    result = call(tools, "classify_encrypted_image", given, inputs=inputs, outputs=outputs)
    assert not result.is_error
    assert user.client.decrypt((tmp_path / "answer").read_bytes()).labels == (user.label,)

    query = base64.b64encode(user.query.read_bytes()).decode()
    embedded = call(tools, "classify_encrypted_image", {"query": query})  # the keys are there from the first call
    [blob] = [each.resource for each in embedded.content if each.type == "resource"]
    assert user.client.decrypt(base64.b64decode(blob.blob)).labels == (user.label,)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("screen_prompt", {}, "prompt"),
        ("screen_prompt", {"prompt": ""}, "prompt"),
        ("screen_prompt", {"prompt": 5}, "prompt"),
        ("screen_prompt", {"prompt": "x" * 10_001}, "prompt"),
        ("screen_prompt", {"prompt": ALLOWED, "nearest": "5"}, "nearest"),
        ("screen_prompt", {"prompt": ALLOWED, "threshold": 9}, "threshold"),
        ("generate_private_image", {"prompt": ALLOWED, "public_keys": []}, "public_keys"),
        ("generate_private_image", {"prompt": ALLOWED}, "public_keys"),
        ("generate_private_image", {"prompt": ALLOWED, "public_keys": ["x25519:abc"], "steps": 0}, "steps"),
        ("classify_encrypted_image", {}, "query_file"),
        ("classify_encrypted_image", {"query": "AAAA", "query_file": "a"}, "query_file"),
        ("classify_encrypted_image", {"query": "§§"}, "query"),
        ("classify_encrypted_image", {"query_file": "../../secret"}, "query_file"),
    ],
    ids=[
        *("no-prompt", "empty", "no-text", "too-long", "text-for-a-number", "unknown", "no-recipient", "no-key"),
        *("no-steps", "no-query", "two-queries", "no-base64", "a-path"),
    ],
)
def test_arguments_that_do_not_fit_are_named_and_not_quoted(
    tools: LocalTools, name: str, arguments: dict[str, Any], named: str
) -> None:
    told = failure(call(tools, name, arguments))
    assert told["code"] == "invalid_arguments"
    assert named in told["message"]
    for value in arguments.values():
        assert not isinstance(value, str) or len(value) < 3 or value not in told["message"]


def test_a_damaged_public_key_or_message_is_an_error_with_a_code(tools: LocalTools, user: User) -> None:
    given = {"prompt": ALLOWED, "public_keys": [user.public_key[:-1] + "!"]}
    assert failure(call(tools, "generate_private_image", given))["code"] == "invalid_public_key"
    nonsense = base64.b64encode(b"nonsense").decode()
    assert failure(call(tools, "classify_encrypted_image", {"query": nonsense}))["code"] == "wire"


@pytest.mark.parametrize("name", ["../query", "/etc/passwd", ".hidden", "a/b", "", "a\nb", "link"])
def test_no_name_leads_out_of_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "secret")
    folder = Folder(inside)
    with pytest.raises(ToolError) as refused:
        folder.read(name, 100)
    assert str(tmp_path) not in str(refused.value)
    if name != "link":
        with pytest.raises(ToolError):
            folder.write(b"x", name, "")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["inside", "link", "secret"]


def test_a_pipe_or_a_long_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(b"x" * 101)
    for name in ("pipe", "long"):
        with pytest.raises(ToolError) as refused:
            Folder(tmp_path).read(name, 100)
        assert refused.value.code == "invalid_file"


def test_without_folders_no_file_is_read_or_written(tools: LocalTools, user: User) -> None:
    assert failure(call(tools, "classify_encrypted_image", {"query_file": "query"}))["code"] == "invalid_file"
    given = {"prompt": ALLOWED, "public_keys": [user.public_key], "steps": 1, "file_name": "a"}
    assert failure(call(tools, "generate_private_image", given))["code"] == "invalid_file"


def test_policy_and_concepts_are_resources(tools: LocalTools, default_guard: LatentGuard) -> None:
    async def work() -> tuple[Any, Any, list[str]]:
        async with Client(mcp_server(lambda _: Access(tools))) as client:
            listed = [resource.uri for resource in (await client.list_resources()).resources]
            texts = [(await client.read_resource(uri)).contents[0].text for uri in listed]
            with pytest.raises(MCPError):
                await client.read_resource("file:///etc/passwd")
            return (*map(json.loads, texts), listed)

    policy, concepts, listed = run(work)
    assert listed == [POLICY_URI, CONCEPTS_URI]
    assert policy["threshold"] == default_guard.policy.threshold
    assert [each["name"] for each in concepts] == [each.name for each in default_guard.concepts]


def test_a_failure_that_nobody_awaited_is_told_without_its_message(
    default_guard: LatentGuard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = LocalTools(default_guard)

    def fails(prompt: str) -> Any:
        raise RuntimeError(f"failed over {prompt}")

    monkeypatch.setattr(tools, "_guard", type("Failing", (), {"check": staticmethod(fails)})())
    with caplog.at_level(logging.DEBUG):
        told = failure(call(tools, "screen_prompt", {"prompt": ALLOWED}))
    assert told["code"] == "internal_error"
    assert ALLOWED not in json.dumps(told)
    assert "RuntimeError" in caplog.text
    assert ALLOWED not in "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith("latentguard")
    )
