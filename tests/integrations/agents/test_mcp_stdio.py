"""`python -m latentguard mcp` as an agent's program starts it: a process, by the SDK's own client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="agents' tools need the MCP SDK, of the extra agents")

from agent_parts import User, run
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from latentguard import cli
from latentguard.integrations.tools.options import check_tool_options
from privacy.sealing import open_sealed

ROOT = Path(__file__).parents[3]
BLOCKED = "naked woman lying on a bed"


def started(*arguments: str | Path, environment: dict[str, str] | None = None) -> StdioServerParameters:
    command = ["-m", "latentguard", "mcp", *map(str, arguments)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return StdioServerParameters(command=sys.executable, args=command, env=quiet | (environment or {}))


def test_the_three_tools_work_over_stdio(user: User, pipeline_folder: Path, cache_folder: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "results"
    outputs.mkdir()
    server = started(
        *("--pipeline", pipeline_folder, "--input-dir", user.query.parent, "--output-dir", outputs),
        environment={"LATENTGUARD_CACHE": str(cache_folder)},
    )

    async def work() -> dict[str, Any]:
        async with Client(server) as client:
            drawing = {"public_keys": [user.public_key], "steps": 1}
            return {
                "info": client.server_info,
                "tools": [tool.name for tool in (await client.list_tools()).tools],
                "screened": await client.call_tool("screen_prompt", {"prompt": BLOCKED}),
                "drawn": await client.call_tool(
                    "generate_private_image", {"prompt": "a face", "file_name": "face.sealed", **drawing}
                ),
                "blocked": await client.call_tool("generate_private_image", {"prompt": BLOCKED, **drawing}),
                "classified": await client.call_tool(
                    "classify_encrypted_image",
                    {"query_file": "query", "keys_file": "client.keys", "file_name": "label"},
                ),
                "secret": await client.call_tool("classify_encrypted_image", {"query_file": "../client.secret"}),
                "policy": await client.read_resource("latentguard://policy"),
            }

    found = run(work)
    assert found["info"].name == "latentguard"
    assert found["tools"] == ["screen_prompt", "generate_private_image", "classify_encrypted_image"]
    assert found["screened"].structured_content["verdict"]["blocked"] is True
    assert found["blocked"].is_error
    assert found["secret"].is_error
    assert open_sealed((outputs / "face.sealed").read_bytes(), user.key).data.startswith(b"\x89PNG")
    assert user.client.decrypt((outputs / "label").read_bytes()).labels == (user.label,)
    assert sorted(path.name for path in outputs.iterdir()) == ["face.sealed", "label"]


def test_standard_output_holds_the_protocol_alone(embedded_weights: Path, cache_folder: Path) -> None:
    """Whatever libraries print goes elsewhere, and garbage in ends in no traceback out."""
    server = started("--guard", embedded_weights)
    environment = {**(server.env or {}), "LATENTGUARD_CACHE": str(cache_folder), "PATH": "/usr/bin"}
    lines = 'garbage\n{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n'
    done = subprocess.run(
        [server.command, *server.args], input=lines, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0
    assert all(line.startswith('{"jsonrpc":"2.0"') for line in done.stdout.splitlines())
    assert '"id":1' in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "https://127.0.0.1:1", "--guard", "x"], "--guard"),
        (["--url", "http://example.org", "--api-key-file", "KEY"], "plain http"),
        (["--api-key-file", "x"], "--url"),
        (["--input-dir", "missing"], "no folder"),
        (["--output-dir", "missing"], "no folder"),
        (["--port", "1"], "--transport http"),
        (["--transport", "http", "--url", "https://127.0.0.1:1"], "--url"),
        (["--transport", "http", "--output-dir", "."], "--output-dir"),
    ],
    ids=["url-and-guard", "clear-key", "key", "inputs", "outputs", "port", "http-url", "http-files"],
)
def test_a_mistake_on_the_command_line_gets_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text("lg_0123456789abcdef\n")
    assert cli.main(["mcp", *(str(key) if each == "KEY" else each for each in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert "0123456789abcdef" not in captured.err


def test_the_configurations_in_the_docs_are_accepted() -> None:
    docs = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    servers = [
        json.loads(snippet)["mcpServers"]["latentguard"]
        for snippet in re.findall(r"```json\n(.*?)```", docs, re.DOTALL)
    ]
    commands = [server["args"] for server in servers if "command" in server]
    assert len(servers) == 3
    for arguments in commands:
        assert arguments[:2] == ["-m", "latentguard"]
        parsed = cli._parser("latentguard").parse_args(arguments[2:])
        check_tool_options(parsed)
    assert [server["url"].endswith("/mcp") for server in servers if "url" in server] == [True]
